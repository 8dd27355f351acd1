"""The paired SHA-256 is hashlib's, whatever the lengths and however the bytes come."""

import hashlib
import random

import pytest

from weightsurgery.checkpoint import hashing
from weightsurgery.checkpoint.hashing import PAIRED, Sha256, update_each

LENGTHS = (0, 1, 55, 56, 57, 63, 64, 65, 119, 120, 127, 128, 4096, 4097, 100_003)


@pytest.fixture(params=[pytest.param("paired", marks=pytest.mark.skipif(
    not PAIRED, reason="no SHA instructions, or no compiler")), "hashlib"])  # fmt: skip
def way(request, monkeypatch):
    if request.param == "hashlib":
        monkeypatch.setattr(hashing, "_update", None)
    return request.param


def content(length, seed):
    return random.Random(seed).randbytes(length)


@pytest.mark.parametrize("length", LENGTHS)
def test_one_stream(way, length):
    data = content(length, length)
    mine = Sha256()
    assert mine.hexdigest() == hashlib.sha256().hexdigest()
    mine.update(data)
    assert mine.hexdigest() == hashlib.sha256(data).hexdigest()
    mine.update(b"more")  # a digest does not end it
    assert mine.hexdigest() == hashlib.sha256(data + b"more").hexdigest()


@pytest.mark.parametrize("seed", range(30))
def test_streams_of_any_lengths_side_by_side(way, seed):
    draw = random.Random(seed)
    count = draw.randint(1, 5)
    mine, theirs = [Sha256() for _ in range(count)], [hashlib.sha256() for _ in range(count)]
    for _ in range(6):
        parts = [content(draw.choice((*LENGTHS, 64, 128, 8192)), draw.random()) for _ in mine]
        update_each([(each, memoryview(part)) for each, part in zip(mine, parts, strict=True)])
        for each, part in zip(theirs, parts, strict=True):
            each.update(part)
    found = [each.hexdigest() for each in mine]
    assert found == [each.hexdigest() for each in theirs]
    assert len(set(found)) == count


@pytest.mark.skipif(not PAIRED, reason="no SHA instructions, or no compiler")
def test_the_instructions_are_what_runs(monkeypatch):
    called = []
    real = hashing._update
    monkeypatch.setattr(hashing, "_update", lambda *a: called.append(len(a)) or real(*a))
    one, two = Sha256(), Sha256()
    update_each([(one, memoryview(bytes(128))), (two, memoryview(bytes(192)))])
    assert 4 in called  # both at once
    assert one.hexdigest() == hashlib.sha256(bytes(128)).hexdigest()
    assert two.hexdigest() == hashlib.sha256(bytes(192)).hexdigest()


@pytest.mark.skipif(not PAIRED, reason="no SHA instructions, or no compiler")
def test_wrong_lengths_are_refused():
    state = bytearray(32)
    for arguments in ((state, bytes(63)), (bytearray(31), bytes(64)),
                      (state, bytes(64), bytearray(32), bytes(128))):  # fmt: skip
        with pytest.raises(ValueError, match="blocks"):
            hashing._update(*arguments)


def compiled_part():
    module = pytest.importorskip("weightsurgery.checkpoint._sha256", reason="no compiler")
    if not hasattr(module, "update_plain"):
        pytest.skip("compiled from an older source: install the package again")
    return module


@pytest.fixture(params=["native", "plain"])
def compiled(request, monkeypatch):
    """A processor with SHA instructions, or one without."""
    module = compiled_part()
    if request.param == "plain":
        monkeypatch.setattr(hashing, "_blocks", module.update_plain)
        monkeypatch.setattr(hashing, "_update", None)
    return request.param


@pytest.mark.parametrize("length", LENGTHS)
def test_a_hash_goes_on_from_its_state(compiled, length):
    data = content(length, length)
    whole = hashlib.sha256(data + b"more").hexdigest()
    assert hashlib.sha256(b"more").hexdigest() != whole or not length
    for cut in {0, 1, length // 2, length}:
        first = Sha256("")
        first.update(data[:cut])
        state = first.state()
        first.update(b"not what follows")  # a state is of its moment
        second = Sha256(state)
        assert second.hexdigest() == hashlib.sha256(data[:cut]).hexdigest()
        second.update(data[cut:])
        second.update(b"more")
        assert second.hexdigest() == whole


def test_a_state_from_one_processor_goes_on_at_another(monkeypatch):
    module = compiled_part()
    data = content(100_003, 1)
    states = []
    for update in (module.update, module.update_plain):
        monkeypatch.setattr(hashing, "_blocks", update)
        each = Sha256("")
        each.update(data)
        states.append(each.state())
    assert states[0] == states[1]
    assert Sha256("").state() != states[0]


def test_a_state_needs_the_compiled_part(monkeypatch):
    monkeypatch.setattr(hashing, "_blocks", None)
    monkeypatch.setattr(hashing, "_update", None)
    assert Sha256().hexdigest() == hashlib.sha256().hexdigest()
    with pytest.raises(NotImplementedError, match="compiled"):
        Sha256("")
