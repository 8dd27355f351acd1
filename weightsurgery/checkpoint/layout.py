"""The shards and tensors of a checkpoint, from its headers and index alone.

Headers are checked before any weight is read: against the file sizes, against the other shards,
and against the index.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Protocol

from weightsurgery.checkpoint.header import (
    ARITHMETIC_DTYPES,
    BITS,
    ReadBytes,
    ShardHeader,
    TensorEntry,
    encode_header,
    parse_header,
    parse_json,
)
from weightsurgery.checkpoint.weight_files import INDEX_NAME, SINGLE_NAME, find_weights
from weightsurgery.errors import CheckpointError, CorruptCheckpointError, SourceError

__all__ = [
    "ARITHMETIC_DTYPES",
    "BITS",
    "INDEX_NAME",
    "Files",
    "Layout",
    "ShardHeader",
    "TensorEntry",
    "encode_header",
    "layout_of",
    "missing_shards",
    "named_header",
    "parse_header",
    "read_layout",
]


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


class Files(Protocol):
    """Access to a checkpoint's files: in a directory, or in a repository on the Hub."""

    @property
    def root(self) -> Path:
        """The prefix of a file's name in messages."""
        ...

    def names(self) -> Sequence[str]:
        """Every file, relative to the root."""
        ...

    def read(self, name: str) -> bytes:
        """A whole small file."""
        ...

    def headers(self, names: Sequence[str]) -> list[ShardHeader]:
        """Headers of safetensors files."""
        ...


@dataclass(frozen=True)
class LocalFiles:
    """The files of a directory.

    Attributes:
        root: The directory.
    """

    root: Path

    def names(self) -> Sequence[str]:
        """See :class:`Files`; those of the directory itself, and whatever an index may name."""
        return sorted(path.name for path in self.root.glob("*"))

    def read(self, name: str) -> bytes:
        """See :class:`Files`."""
        try:
            return (self.root / name).read_bytes()
        except OSError as error:
            raise _unreadable(self.root / name, error) from None

    def headers(self, names: Sequence[str]) -> list[ShardHeader]:
        """See :class:`Files`."""
        missing = [name for name in names if not os.path.isfile(self.root / name)]
        if missing:
            raise missing_shards(self.root, missing, names)
        return [self._header(name) for name in names]

    def _header(self, shard: str) -> ShardHeader:
        path = self.root / shard
        try:
            with path.open("rb") as file:

                def read(offset: int, length: int) -> bytes:
                    file.seek(offset)
                    return file.read(length)

                return named_header(self.root, shard, os.fstat(file.fileno()).st_size, read)
        except OSError as error:
            raise _unreadable(path, error) from None


def missing_shards(root: Path, missing: Sequence[str], of: Sequence[str]) -> CheckpointError:
    """The error for shards that the index names and that are not there."""
    return CorruptCheckpointError(
        f"{root}: shard {missing[0]} is missing ({len(missing)} of {len(of)})",
        "Download the checkpoint again until every shard is there.",
    )


def named_header(root: Path, shard: str, size: int, read: ReadBytes) -> ShardHeader:
    """:func:`parse_header`, with the shard's path in messages."""
    try:
        return parse_header(shard, size, read)
    except CheckpointError as error:
        raise type(error)(f"{root}{os.sep}{error.what}", error.remedy) from None


def _unreadable(path: Path, error: OSError) -> CheckpointError:
    return CheckpointError(
        f"{path}: cannot be read: {error.strerror or error}", "Check the file and its permissions."
    )


def _read_index(files: Files, index_name: str) -> dict[str, str]:
    """The index's ``weight_map``, with every path checked to stay in the directory."""
    path = files.root / index_name
    remedy = "Download the index again, or remove it: shards that are all there are read without."
    try:
        index = parse_json(files.read(index_name))
    except ValueError as error:
        raise CorruptCheckpointError(f"{path}: not valid JSON: {error}", remedy) from None
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise CorruptCheckpointError(f"{path}: no weight_map", remedy)
    checked = {}
    for name, shard in weight_map.items():
        parts = PurePosixPath(shard).parts if isinstance(shard, str) else ("..",)
        if not parts or ".." in parts or parts[0] == "/" or "\\" in shard or "\0" in shard:
            raise CorruptCheckpointError(
                f"{path}: tensor {name!r} points to {shard!r}, outside the checkpoint",
                "Do not use this checkpoint unless you know who made it.",
            )
        if not shard.endswith(".safetensors"):
            raise CorruptCheckpointError(
                f"{path}: tensor {name!r} points to {shard!r}, no .safetensors file", remedy
            )
        checked[name] = "/".join(parts)
    return checked


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
    return layout_of(LocalFiles(root))


def layout_of(files: Files) -> Layout:
    """:func:`read_layout` for files in any place."""
    root, present = files.root, files.names()
    index_name, names = find_weights(root, present)
    weight_map = None
    if index_name is not None:
        weight_map = _read_index(files, index_name)
        names = list(dict.fromkeys(weight_map.values()))
        if index_name == INDEX_NAME and SINGLE_NAME not in names and SINGLE_NAME in present:
            # transformers would load the file, not the shards.
            raise SourceError(
                f"{root}: holds {SINGLE_NAME} and {INDEX_NAME}, which does not mention it",
                "These are two models in one directory: remove the one that is not meant.",
            )
    shards = dict(zip(names, files.headers(names), strict=True))
    entries: dict[str, TensorEntry] = {}
    for header in shards.values():
        for entry in header.entries:
            if entry.name in entries:
                raise CorruptCheckpointError(
                    f"{root}: tensor {entry.name!r} stands in {entries[entry.name].shard}"
                    f" and in {entry.shard}",
                    "Remove the shards of another save from the directory.",
                )
            entries[entry.name] = entry
    if index_name is not None and weight_map is not None:
        _check_index(root / index_name, weight_map, entries)
    if not entries:
        raise CorruptCheckpointError(
            f"{root}: no tensor in any weight file",
            "Save the model again, gathered: a partitioned one (ZeRO-3) leaves such files.",
        )
    return Layout(shards, entries, index_name)


def _check_index(
    index: Path, weight_map: Mapping[str, str], entries: Mapping[str, TensorEntry]
) -> None:
    remedy = "Index and shards come from different saves: download or save the checkpoint again."
    for name, shard in weight_map.items():
        entry = entries.get(name)
        if entry is None or entry.shard != shard:
            raise CorruptCheckpointError(
                f"{index}: tensor {name!r} is not in {shard}, where the index has it", remedy
            )
    for name, entry in entries.items():
        if name not in weight_map:
            raise CorruptCheckpointError(
                f"{index.parent / entry.shard}: tensor {name!r} is missing from {index.name}",
                remedy,
            )
