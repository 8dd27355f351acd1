"""The header of one safetensors file, checked before any weight is read.

The format: 8 bytes little-endian header length, a JSON header
``{name: {dtype, shape, data_offsets}}`` padded with spaces, then the tensors without holes. Every
header accepted here is accepted by the reference implementation too; not always vice versa.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from weightsurgery.errors import CorruptCheckpointError, UnsupportedCheckpointError

__all__ = [
    "ARITHMETIC_DTYPES",
    "BITS",
    "BLOCK_ELEMENTS",
    "ShardHeader",
    "TensorEntry",
    "encode_header",
    "parse_header",
    "parse_json",
]

# Bits per element of each safetensors dtype.
BITS: Mapping[str, int] = {
    "F64": 64,
    "F32": 32,
    "F16": 16,
    "BF16": 16,
    "F8_E4M3": 8,
    "F8_E5M2": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8,
    "F8_E8M0": 8,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "F4": 4,
    "C64": 64,
    "I64": 64,
    "U64": 64,
    "I32": 32,
    "U32": 32,
    "I16": 16,
    "U16": 16,
    "I8": 8,
    "U8": 8,
    "BOOL": 8,
}

# Dtypes whose stored number is the value itself, so that adding and scaling mean something.
ARITHMETIC_DTYPES = frozenset(
    {"F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ"}
)

# The reference implementation refuses longer headers, and so do we: it is garbage, or an attack.
MAX_HEADER_BYTES = 100_000_000

# Names are matched against patterns, printed and sorted; real models' are far shorter.
LONGEST_NAME = 1000

# Elements worked on at a time: 1 MB of float32, so that several such blocks fit a core's cache.
BLOCK_ELEMENTS = 1 << 18

ReadBytes = Callable[[int, int], bytes]


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """Where one tensor lies.

    Attributes:
        name: Name within the checkpoint.
        dtype: safetensors dtype, e.g. ``"BF16"``.
        shape: Sizes of the axes; ``()`` for a scalar.
        shard: File name of the shard, relative to the checkpoint's directory.
        start: Absolute offset of the first byte within the shard.
        stop: Absolute offset after the last byte.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    shard: str
    start: int
    stop: int

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return self.stop - self.start

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def rows(self) -> int:
        """Number of rows: all axes but the last, taken together; a vector has one per element.

        A stack of matrices is so read row by row too, and never a whole matrix at a time.
        """
        return math.prod(self.shape[:-1]) if len(self.shape) > 1 else self.numel

    @property
    def columns(self) -> tuple[int, ...]:
        """Shape of one row: ``(n,)``, or ``()`` for vectors and scalars."""
        return self.shape[-1:] if len(self.shape) > 1 else ()

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return self.nbytes // self.rows if self.rows else 0

    def blocks(self, elements: int = BLOCK_ELEMENTS) -> Iterator[tuple[int, int]]:
        """Ranges of rows that cover the tensor, each of about so many elements.

        Args:
            elements: By default 1 MB of float32: several such blocks fit a core's cache.

        Yields:
            First row, and the row after the last.
        """
        step = max(1, elements // max(1, math.prod(self.columns)))
        for start in range(0, self.rows, step):
            yield start, min(start + step, self.rows)


@dataclass(frozen=True)
class ShardHeader:
    """The header of one shard, raw and parsed.

    Attributes:
        shard: File name relative to the checkpoint's directory.
        raw: The first ``8 + header length`` bytes, as they stand in the file.
        entries: Tensors in the order of their bytes.
        metadata: The free-form ``__metadata__`` strings.
        size: Size of the whole file in bytes.
    """

    shard: str
    raw: bytes
    entries: tuple[TensorEntry, ...]
    metadata: Mapping[str, str]
    size: int


def parse_json(data: bytes) -> Any:
    """Parse JSON as the reference implementation does, and refuse duplicate keys as well.

    Raises:
        ValueError: It is not valid; the standard library's NaN, ``-0`` as an integer, and lone
            surrogates are not.
    """
    text = data.decode("utf-8")
    try:
        value = json.loads(
            text, object_pairs_hook=_object, parse_int=_integer, parse_constant=_constant
        )
    except RecursionError:
        raise ValueError("nested too deeply") from None
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members: dict[str, Any] = {}
    for key, value in pairs:
        if key in members:
            raise ValueError(f"{key!r} appears twice")
        for text in (key, value):
            if isinstance(text, str) and not _encodable(text):
                raise ValueError(f"{text!r} holds half a character")
        members[key] = value
    return members


def _encodable(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _integer(digits: str) -> int | float:
    return -0.0 if digits == "-0" else int(digits)


def _constant(word: str) -> None:
    raise ValueError(f"{word} is no number")


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 64


def _elements(shape: Iterable[int]) -> int | None:
    """Number of elements; None where a 64-bit counter overflows on the way to it."""
    count = 1
    for axis in shape:
        count *= axis
        if count >= 1 << 64:
            return None
    return count


def parse_header(shard: str, size: int, read: ReadBytes) -> ShardHeader:
    """Read and check the header of one safetensors file.

    Args:
        shard: Name of the file, for the entries and the messages.
        size: Size of the whole file in bytes.
        read: ``read(offset, length)`` returns bytes of the file; a local file, a range of a
            remote one, or a test's buffer.

    Returns:
        The header, its entries sorted by offset.

    Raises:
        CorruptCheckpointError: The header contradicts itself or the file's size.
        UnsupportedCheckpointError: A dtype that the format does not know.
    """
    again = "Download or save this file again; it cannot be repaired by guessing."

    def corrupt(what: str, remedy: str = again) -> CorruptCheckpointError:
        return CorruptCheckpointError(f"{shard}: {what}", remedy)

    if size < 8:
        raise corrupt(f"{size} bytes are too short for a safetensors file")
    length = int.from_bytes(read(0, 8), "little")
    if length > min(size - 8, MAX_HEADER_BYTES):
        head = read(0, min(size, 64))
        if head.startswith(b"version https://git-lfs"):
            raise corrupt(
                "this is a git-lfs pointer, not the weights",
                "Run 'git lfs pull' in the checkpoint's repository.",
            )
        raise corrupt(f"header of {length} bytes in a file of {size}: truncated or no safetensors")
    raw = read(0, 8 + length)
    if len(raw) != 8 + length:
        raise corrupt("the file ends inside its header")
    try:
        header = parse_json(raw[8:])
    except ValueError as error:
        raise corrupt(f"the header is not valid JSON: {error}") from None
    if not isinstance(header, dict):
        raise corrupt("the header is not a JSON object")
    metadata = header.pop("__metadata__", None)
    if metadata is None:
        metadata = {}
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise corrupt("__metadata__ is not a map of strings")

    entries = [_parse_entry(shard, 8 + length, name, info) for name, info in header.items()]
    entries.sort(key=lambda entry: (entry.start, entry.stop))
    position = 8 + length
    for entry in entries:
        if entry.start < position:
            raise corrupt(f"tensor {entry.name!r} overlaps the bytes of another")
        if entry.start > position:
            raise corrupt(f"{entry.start - position} unaccounted bytes before {entry.name!r}")
        position = entry.stop
    if position > size:
        late = next(entry for entry in entries if entry.stop > size)
        raise corrupt(f"truncated: {size} bytes of {position}; tensor {late.name!r} is cut off")
    if position < size:
        raise corrupt(f"{size - position} bytes follow the last tensor")
    return ShardHeader(shard, raw, tuple(entries), dict(metadata), size)


def _parse_entry(shard: str, data_start: int, name: str, info: object) -> TensorEntry:
    if len(name) > LONGEST_NAME:
        raise UnsupportedCheckpointError(
            f"{shard}: a tensor's name of {len(name)} characters: {name[:40]!r}...",
            f"Save the model under names of up to {LONGEST_NAME} characters.",
        )
    where = f"{shard}: tensor {name!r}"
    remedy = "Save the checkpoint again with safetensors; its header is not to be trusted."
    if not isinstance(info, dict) or info.keys() != {"dtype", "shape", "data_offsets"}:
        raise CorruptCheckpointError(
            f"{where} is not described by dtype, shape and data_offsets alone", remedy
        )
    dtype, shape, offsets = info["dtype"], info["shape"], info["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BITS:
        raise UnsupportedCheckpointError(
            f"{where} has dtype {_short(dtype)}", f"Known dtypes: {', '.join(BITS)}."
        )
    if not isinstance(shape, list) or not all(_whole(axis) for axis in shape):
        raise CorruptCheckpointError(f"{where} has shape {_short(shape)}", remedy)
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(_whole, offsets)):
        raise CorruptCheckpointError(f"{where} has offsets {_short(offsets)}", remedy)
    start, stop = offsets
    elements = _elements(shape)
    if elements is None or elements * BITS[dtype] != (stop - start) * 8:
        raise CorruptCheckpointError(
            f"{where}: {dtype} {_short(shape)} does not fill the {stop - start} bytes its offsets"
            " span",
            remedy,
        )
    return TensorEntry(name, dtype, tuple(shape), shard, data_start + start, data_start + stop)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}…"


def encode_header(
    tensors: Iterable[tuple[str, str, tuple[int, ...]]], metadata: Mapping[str, str]
) -> bytes:
    """Write the header of a safetensors file.

    Args:
        tensors: ``(name, dtype, shape)`` in the order of their bytes.
        metadata: Free-form strings.

    Returns:
        Length and JSON, padded with spaces to a multiple of 8 bytes.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    position = 0
    for name, dtype, shape in tensors:
        stop = position + math.prod(shape) * BITS[dtype] // 8
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [position, stop]}
        position = stop
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
