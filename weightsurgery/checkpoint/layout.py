"""What a safetensors checkpoint holds, learned from its headers and index alone.

Every claim is checked before any weight is read: against the file sizes, against the other
shards, and against the index. The format: 8 bytes little-endian header length, a JSON header
``{name: {dtype, shape, data_offsets}}`` padded with spaces, then the tensors without holes.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from weightsurgery.errors import CorruptCheckpointError, SourceError, UnsupportedCheckpointError

__all__ = [
    "ARITHMETIC_DTYPES",
    "BITS",
    "INDEX_NAME",
    "Layout",
    "ShardHeader",
    "TensorEntry",
    "encode_header",
    "parse_header",
    "read_layout",
]

INDEX_NAME = "model.safetensors.index.json"

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
        """Length of the first axis; 1 for a scalar."""
        return self.shape[0] if self.shape else 1

    @property
    def row_bytes(self) -> int:
        """Bytes of one slice along the first axis."""
        return self.nbytes // self.rows if self.rows else 0


@dataclass(frozen=True)
class ShardHeader:
    """The header of one shard: its raw bytes, and what they say.

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


@dataclass(frozen=True)
class Layout:
    """All shards of a checkpoint, checked against each other and the index.

    Attributes:
        shards: Headers by file name, in the order of the index's first mention.
        entries: Every tensor by name, shard by shard, in the order of the bytes.
        index_name: File name of the index, or None for a checkpoint in a single file.
    """

    shards: Mapping[str, ShardHeader]
    entries: Mapping[str, TensorEntry] = field(repr=False)
    index_name: str | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(entry.nbytes for entry in self.entries.values())

    @property
    def parameters(self) -> int:
        """Number of elements of all tensors."""
        return sum(entry.numel for entry in self.entries.values())


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"{key!r} appears twice")
        found[key] = value
    return found


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


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
        header = json.loads(raw[8:].decode("utf-8"), object_pairs_hook=_no_duplicates)
    except (ValueError, RecursionError) as error:
        raise corrupt(f"the header is not valid JSON: {error}") from None
    if not isinstance(header, dict):
        raise corrupt("the header is not a JSON object")
    metadata = header.pop("__metadata__", None) or {}
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
    where = f"{shard}: tensor {name!r}"
    remedy = "Save the checkpoint again with safetensors; its header is not to be trusted."
    if not isinstance(info, dict):
        raise CorruptCheckpointError(f"{where} has no description", remedy)
    dtype, shape, offsets = info.get("dtype"), info.get("shape"), info.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in BITS:
        raise UnsupportedCheckpointError(
            f"{where} has dtype {dtype!r}", f"Known dtypes: {', '.join(BITS)}."
        )
    if not isinstance(shape, list) or not all(_whole(axis) for axis in shape):
        raise CorruptCheckpointError(f"{where} has shape {shape!r}", remedy)
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(_whole, offsets)):
        raise CorruptCheckpointError(f"{where} has offsets {offsets!r}", remedy)
    start, stop = offsets
    bits = math.prod(shape) * BITS[dtype]
    if bits % 8 or stop - start != bits // 8:
        raise CorruptCheckpointError(
            f"{where}: {dtype} {shape} needs {bits / 8:g} bytes, its offsets span {stop - start}",
            remedy,
        )
    return TensorEntry(name, dtype, tuple(shape), shard, data_start + start, data_start + stop)


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


def _local_header(root: Path, shard: str) -> ShardHeader:
    path = root / shard
    with path.open("rb") as file:

        def read(offset: int, length: int) -> bytes:
            file.seek(offset)
            return file.read(length)

        return parse_header(shard, os.fstat(file.fileno()).st_size, read)


def _read_index(root: Path, index_name: str) -> dict[str, str]:
    """The index's ``weight_map``, with every path checked to stay in the directory."""
    remedy = "Download the index again, or rebuild it from the shards."
    try:
        text = (root / index_name).read_text(encoding="utf-8")
        index = json.loads(text, object_pairs_hook=_no_duplicates)
    except (ValueError, RecursionError) as error:
        raise CorruptCheckpointError(f"{index_name}: not valid JSON: {error}", remedy) from None
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise CorruptCheckpointError(f"{index_name}: no weight_map", remedy)
    for name, shard in weight_map.items():
        parts = PurePosixPath(shard).parts if isinstance(shard, str) else ("..",)
        if not parts or ".." in parts or parts[0] == "/" or "\\" in shard or "\0" in shard:
            raise CorruptCheckpointError(
                f"{index_name}: tensor {name!r} points to {shard!r}, outside the checkpoint",
                "Do not use this checkpoint unless you know who made it.",
            )
    return weight_map


def _find_weights(root: Path) -> tuple[str | None, list[str]]:
    """The index's name and the shards of a local directory (or the one weight file)."""
    indexes = sorted(path.name for path in root.glob("*.safetensors.index.json"))
    files = sorted(path.name for path in root.glob("*.safetensors"))
    if INDEX_NAME in indexes or len(indexes) == 1:
        return (INDEX_NAME if INDEX_NAME in indexes else indexes[0]), files
    if len(indexes) > 1:
        raise SourceError(
            f"{root}: several indexes: {', '.join(indexes)}",
            f"Keep one, or name the one to use {INDEX_NAME}.",
        )
    if "model.safetensors" in files:
        return None, ["model.safetensors"]
    if len(files) == 1:
        return None, files
    if files:
        raise CorruptCheckpointError(
            f"{root}: {len(files)} weight files and no index",
            f"Download {INDEX_NAME} too, or keep a single .safetensors file in the directory.",
        )
    pickles = sorted(
        path.name
        for end in ("*.bin", "*.pt", "*.pth")
        for path in root.glob(end)
        if path.name not in {"training_args.bin", "optimizer.pt", "scheduler.pt"}
    )
    if pickles:
        raise UnsupportedCheckpointError(
            f"{root}: holds PyTorch pickles ({', '.join(pickles[:3])}), no safetensors",
            'Convert it first:  python -c "from transformers import AutoModelForCausalLM as M; '
            f"M.from_pretrained('{root}', dtype='auto').save_pretrained('{root}-safetensors')\"  "
            "(and copy the tokenizer files beside it).",
        )
    raise SourceError(
        f"{root}: no .safetensors file", "Name a directory that holds a model's weights."
    )


def read_layout(root: Path) -> Layout:
    """Read and check all headers and the index of a local checkpoint directory.

    Args:
        root: Directory of the checkpoint.

    Returns:
        The layout; every tensor lies wholly inside its file.

    Raises:
        SourceError: There are no weights here.
        CorruptCheckpointError: A shard is missing or damaged, or index and shards disagree.
        UnsupportedCheckpointError: Pickled weights, or an unknown dtype.
    """
    index_name, files = _find_weights(root)
    if index_name is None:
        names, weight_map = files, None
    else:
        weight_map = _read_index(root, index_name)
        names = list(dict.fromkeys(weight_map.values()))
    missing = [name for name in names if not (root / name).is_file()]
    if missing:
        raise CorruptCheckpointError(
            f"{root}: shard {missing[0]} is missing ({len(missing)} of {len(names)})",
            "Download the checkpoint again until every shard in the index is there.",
        )
    shards = {name: _local_header(root, name) for name in names}
    entries: dict[str, TensorEntry] = {}
    for header in shards.values():
        for entry in header.entries:
            if entry.name in entries:
                raise CorruptCheckpointError(
                    f"tensor {entry.name!r} stands in {entries[entry.name].shard} and in "
                    f"{entry.shard}",
                    "Remove the shards of another save from the directory.",
                )
            entries[entry.name] = entry
    if weight_map is not None:
        _check_index(index_name or "", weight_map, entries)
    if not entries:
        raise CorruptCheckpointError(
            f"{root}: no tensor in any weight file", "Save the model again."
        )
    return Layout(shards, entries, index_name)


def _check_index(
    index_name: str, weight_map: Mapping[str, str], entries: Mapping[str, TensorEntry]
) -> None:
    remedy = "Index and shards come from different saves: download or save the checkpoint again."
    for name, shard in weight_map.items():
        entry = entries.get(name)
        if entry is None or entry.shard != shard:
            raise CorruptCheckpointError(
                f"{index_name}: tensor {name!r} is not in {shard}, where the index has it", remedy
            )
    for name, entry in entries.items():
        if name not in weight_map:
            raise CorruptCheckpointError(
                f"{entry.shard}: tensor {name!r} is missing from {index_name}", remedy
            )
