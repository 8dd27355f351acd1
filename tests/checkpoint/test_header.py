import json
import random

import hypothesis
import pytest
from hypothesis import strategies as st
from safetensors import SafetensorError, deserialize, safe_open

from weightsurgery.checkpoint.layout import (
    BITS,
    encode_header,
    parse_header,
    read_layout,
)
from weightsurgery.errors import (
    CheckpointError,
    CorruptCheckpointError,
    UnsupportedCheckpointError,
)

from .handmade import TWO, content, describe, directory, file_bytes, frame, says


def parse(data: bytes, shard: str = "x.safetensors"):
    return parse_header(shard, len(data), lambda start, length: data[start : start + length])


DATA = b"".join(content(name, *facts) for name, facts in TWO.items())


def changed(name: str = "a.weight", **facts) -> bytes:
    """The good file of two tensors, with one's description changed."""
    header = describe(TWO)
    header[name] |= facts
    return frame(header, DATA)


# A good file


def test_a_good_file_is_read():
    header = parse(file_bytes(TWO, {"format": "pt"}))
    first, second = header.entries
    assert (first.name, first.dtype, first.shape) == ("a.weight", "F32", (2, 3))
    assert (first.nbytes, first.numel, first.rows, first.row_bytes) == (24, 6, 2, 12)
    assert (first.start, first.stop) == (len(header.raw), len(header.raw) + 24)
    assert (second.name, second.start, second.stop) == ("b.weight", first.stop, first.stop + 8)
    assert header.metadata == {"format": "pt"}
    assert header.size == len(header.raw) + 32
    assert header.shard == first.shard == "x.safetensors"


def test_scalars_and_empty_tensors_have_rows():
    header = parse(
        file_bytes(
            {"s": ("F32", ()), "e": ("F32", (0, 5)), "f": ("F32", (3, 0)), "z": ("I8", (2,))}
        )
    )
    facts = {e.name: (e.rows, e.row_bytes, e.nbytes) for e in header.entries}
    assert facts == {"s": (1, 4, 4), "e": (0, 0, 0), "f": (3, 0, 0), "z": (2, 1, 2)}


names = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
described = st.one_of(
    st.tuples(
        st.sampled_from([d for d, bits in BITS.items() if bits >= 8]),
        st.lists(st.integers(0, 5), max_size=4).map(tuple),
    ),
    # Below one byte: whole bytes only.
    st.tuples(st.sampled_from(["F4", "F6_E2M3", "F6_E3M2"]), st.sampled_from([(4,), (2, 8), (0,)])),
)
tensor_sets = st.dictionaries(names.filter(lambda n: n != "__metadata__"), described, max_size=8)
metadata = st.none() | st.dictionaries(names, st.text(max_size=8).filter(str.isprintable))


@hypothesis.settings(max_examples=200)
@hypothesis.given(tensor_sets, metadata, st.integers(0, 9))
def test_agrees_with_safetensors(tensors, metadata, padding):
    data = file_bytes(tensors, metadata)
    length = int.from_bytes(data[:8], "little")
    data = frame(data[8 : 8 + length] + b" " * padding, data[8 + length :])
    header = parse(data)
    theirs = dict(deserialize(data))
    assert {e.name for e in header.entries} == set(theirs) == set(tensors)
    for entry in header.entries:
        other = theirs[entry.name]
        assert (entry.dtype, list(entry.shape)) == (other["dtype"], other["shape"])
        assert data[entry.start : entry.stop] == bytes(other["data"])
    assert header.metadata == (metadata or {})
    starts = [entry.start for entry in header.entries]
    assert starts == sorted(starts)


@hypothesis.settings(max_examples=100)
@hypothesis.given(tensor_sets, st.dictionaries(names, st.text(max_size=8).filter(str.isprintable)))
def test_an_encoded_header_is_read_back_by_safetensors(tensors, metadata):
    header = encode_header([(name, *facts) for name, facts in tensors.items()], metadata)
    assert len(header) % 8 == 0
    data = header + b"".join(content(name, *facts) for name, facts in tensors.items())
    theirs = {name: bytes(facts["data"]) for name, facts in deserialize(data)}
    assert theirs == {name: content(name, *facts) for name, facts in tensors.items()}
    assert parse(data).metadata == metadata


# Bad files

A = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]'  # to be continued
WRONG = {
    "empty": (b"", "0 bytes"),
    "seven bytes": (bytes(7), "7 bytes"),
    "garbage length": (b"\xff" * 8 + bytes(100), "truncated or no safetensors"),
    "header longer than the file": ((1000).to_bytes(8, "little") + b"{}", "header of 1000 bytes"),
    "no JSON": (frame(b"hello   "), "not valid JSON"),
    "not UTF-8": (frame(b'{"\xff":1}'), "not valid JSON"),
    "a list": (frame([]), "not a JSON object"),
    "after the JSON": (frame(A + b"}}x", bytes(4)), "not valid JSON"),
    "zeros after the JSON": (frame(A + b"}}\0\0", bytes(4)), "not valid JSON"),
    "a name twice": (
        frame(
            json.dumps(describe({"a": ("F32", (1,))}))[:-1].encode() + b"," + A[1:] + b"}}", b"1234"
        ),
        "'a' appears twice",
    ),
    "a field twice": (frame(A + b',"dtype":"F32"}}', bytes(4)), "'dtype' appears twice"),
    "nested deeply": (frame(b"[" * 100_000 + b"]" * 100_000), "not valid JSON"),
    "nested deeply in a field": (
        frame(A + b',"x":' + b"[" * 300 + b"]" * 300 + b"}}", bytes(4)),
        "'a'",
    ),
    "NaN": (frame(A + b',"x":NaN}}', bytes(4)), "NaN"),
    "half a surrogate pair": (
        frame(A.replace(b'"a"', b'"\\ud800"') + b"}}", bytes(4)),
        "half a character",
    ),
    "unknown field": (frame(A + b',"strides":[1]}}', bytes(4)), "'a' is not described by"),
    "missing field": (
        frame({"a": {"dtype": "F32", "shape": [1]}}, bytes(4)),
        "'a' is not described by",
    ),
    "a number for a description": (frame({"a": 3}), "'a' is not described by"),
    "metadata of numbers": (frame({"__metadata__": {"a": 1}}), "__metadata__"),
    "metadata as an empty list": (frame({"__metadata__": []}), "__metadata__"),
    "metadata as false": (frame({"__metadata__": False}), "__metadata__"),
    "one byte short": (file_bytes(TWO)[:-1], "'b.weight' is cut off"),
    "one byte more": (file_bytes(TWO) + b"\0", "1 bytes follow the last tensor"),
    "cut inside the first": (file_bytes(TWO)[:-20], "'a.weight' is cut off"),
    "a hole": (
        frame(
            {**describe(TWO), "c": {"dtype": "I8", "shape": [1], "data_offsets": [33, 34]}},
            bytes(34),
        ),
        "1 unaccounted bytes before 'c'",
    ),
    "a hole at the start": (changed(shape=[5], data_offsets=[4, 24]), "4 unaccounted bytes"),
    "an overlap": (changed("b.weight", data_offsets=[20, 28]), "'b.weight' overlaps"),
    "the same bytes twice": (
        frame(
            {**describe(TWO), "c": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}}, DATA
        ),
        "overlaps",
    ),
    "an empty tensor inside another": (
        frame({**describe(TWO), "c": {"dtype": "F32", "shape": [0], "data_offsets": [4, 4]}}, DATA),
        "overlaps",
    ),
    "offsets backwards": (changed(data_offsets=[24, 0]), "'a.weight'"),
    "offsets negative": (changed(data_offsets=[-24, 0]), "offsets [-24, 0]"),
    "offsets with a fraction": (changed(data_offsets=[0, 24.0]), "offsets [0, 24.0]"),
    "offsets true": (changed(data_offsets=[False, 24]), "offsets [False, 24]"),
    "offset minus zero": (frame(A.replace(b"[0,4", b"[-0,4") + b"}}", bytes(4)), "'a'"),
    "offsets of three": (changed(data_offsets=[0, 24, 24]), "offsets [0, 24, 24]"),
    "offsets as text": (changed(data_offsets="24"), "offsets '24'"),
    "offsets huge": (changed(data_offsets=[10**30, 10**30 + 24]), "'a.weight'"),
    "an integer of five thousand digits": (
        frame(A.replace(b"[0,4", b"[0," + b"9" * 5000) + b"}}", bytes(4)),
        "not valid JSON",
    ),
    "shape does not fit": (
        changed(shape=[2, 4]),
        "'a.weight': F32 [2, 4] does not fill the 24 bytes",
    ),
    "shape negative": (changed(shape=[-2, -3]), "shape [-2, -3]"),
    "shape null": (changed(shape=None), "shape None"),
    "shape with a fraction": (changed(shape=[2.0, 3]), "shape [2.0, 3]"),
    "shape overflows": (changed(shape=[2**63] * 40), "'a.weight'"),
    "shape overflows to nothing": (
        changed(shape=[2**40, 2**40, 0], data_offsets=[0, 0]),
        "'a.weight'",
    ),
    "shape beyond 64 bits, of nothing": (
        changed(shape=[0, 2**70], data_offsets=[0, 0]),
        "'a.weight'",
    ),
    "half a byte": (
        frame({"a": {"dtype": "F4", "shape": [3], "data_offsets": [0, 1]}}, bytes(1)),
        "'a': F4 [3]",
    ),
}


def test_the_good_neighbours_of_the_bad_files_are_read():
    assert len(parse(changed()).entries) == 2
    assert len(parse(frame(A + b"}}  \n", bytes(4))).entries) == 1
    assert len(parse(frame({"__metadata__": None, **describe(TWO)}, DATA)).entries) == 2
    empty = {"dtype": "F32", "shape": [0, 2**40, 2**40], "data_offsets": [24, 24]}
    assert len(parse(frame({**describe(TWO), "c": empty}, DATA)).entries) == 3


@pytest.mark.parametrize("case", WRONG)
def test_wrong_headers_are_refused(case):
    data, words = WRONG[case]
    with pytest.raises(CorruptCheckpointError) as error:
        parse(data)
    says(error, "x.safetensors", words)
    assert len(str(error.value)) < 1000


@pytest.mark.parametrize("dtype", ["F128", "f32", "", 5, None, ["F32"]])
def test_an_unknown_dtype_is_refused(dtype):
    assert parse(changed(dtype="I32")).entries[0].dtype == "I32"
    with pytest.raises(UnsupportedCheckpointError) as error:
        parse(changed(dtype=dtype))
    says(error, "x.safetensors", "'a.weight'", repr(dtype))
    assert "BF16" in error.value.remedy


def test_a_header_over_the_limit_is_not_read():
    size = 100_000_001 + 8
    lengths = []

    def read(start, length):
        lengths.append(length)
        return (100_000_001).to_bytes(8, "little") + b"{" * (length - 8)

    with pytest.raises(CorruptCheckpointError) as error:
        parse_header("x.safetensors", size, read)
    says(error, "100000001")
    assert max(lengths) <= 64


def mutants(seed: int, count: int):
    """Headers with flipped bits, swapped and repeated pieces, and plausible other values."""
    rng = random.Random(seed)
    spice = [
        b"-",
        b"0",
        b"null",
        b"true",
        b'"',
        b"[",
        b"}",
        b",",
        b"1e3",
        b"\\u0000",
        b"\\ud83d",
        b"\xc3",
    ]
    spice += [b"18446744073709551616", b"F64", b" ", b'"__metadata__":{},', b"-0", b"0.0"]
    tensors = {**TWO, "c": ("F32", (0, 7)), "layer.é": ("I8", (2, 2)), "s": ("F16", ())}
    good = file_bytes(tensors, {"format": "pt", "k": "v"})
    for _ in range(count):
        data = bytearray(good)
        length = int.from_bytes(data[:8], "little")
        for _ in range(rng.randint(1, 2)):
            where = rng.randrange(8 + length) if rng.random() < 0.9 else rng.randrange(len(data))
            kind = rng.randrange(5)
            if kind == 0:
                data[where] ^= 1 << rng.randrange(8)
            elif kind == 1:
                data[where] = rng.randrange(32, 127)
            elif kind == 2 and where >= 8:
                piece = rng.choice(spice)
                data[where : where + rng.randint(0, 3)] = piece
                if rng.random() < 0.8:
                    data[:8] = (length + len(data) - len(good)).to_bytes(8, "little", signed=True)
            elif kind == 3:
                del data[-rng.randint(1, 9) :]
            else:  # a digit for a digit: the likeliest lie
                digits = [i for i in range(8, 8 + length) if i < len(data) and 48 <= data[i] < 58]
                if digits:
                    data[rng.choice(digits)] = rng.randrange(48, 58)
        yield bytes(data)


@pytest.mark.parametrize("seed", range(4))
def test_mutants_are_refused_or_read_as_safetensors_reads_them(seed):
    read = refused = unnamed = 0
    for data in mutants(seed, 1500):
        try:
            header = parse(data)
        except CheckpointError as error:
            refused += bool(error.what.startswith("x.safetensors: ") and error.remedy)
            unnamed += not error.what.startswith("x.safetensors: ")
            continue
        read += 1
        theirs = dict(deserialize(data))  # raises what we should have refused
        assert {
            e.name: (e.dtype, list(e.shape), data[e.start : e.stop]) for e in header.entries
        } == {
            name: (facts["dtype"], facts["shape"], bytes(facts["data"]))
            for name, facts in theirs.items()
        }
    assert read > 50
    assert refused > 500
    assert unnamed == 0


def test_mutants_on_disk_are_refused_or_opened_as_safe_open_opens_them(tmp_path):
    opened = unnamed = 0
    for data in mutants(99, 400):
        path = directory(tmp_path, {"model.safetensors": data}) / "model.safetensors"
        try:
            layout = read_layout(tmp_path)
        except CheckpointError as error:
            unnamed += str(path) not in error.what
            continue
        with safe_open(path, "pt") as file:
            opened += 1
            assert set(file.keys()) == set(layout.entries)
            assert (file.metadata() or {}) == layout.shards["model.safetensors"].metadata
    assert opened > 10
    assert unnamed == 0
    path.write_bytes(file_bytes(TWO)[:-1])
    with pytest.raises(SafetensorError):
        safe_open(path, "pt")
