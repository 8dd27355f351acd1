"""What a checkpoint directory holds, learned from its headers and index alone.

Every claim is checked before any weight is read: against the file sizes, against the other
shards, and against the index.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from weightsurgery.checkpoint.header import (
    ARITHMETIC_DTYPES,
    BITS,
    ShardHeader,
    TensorEntry,
    encode_header,
    parse_header,
    parse_json,
)
from weightsurgery.errors import (
    CheckpointError,
    CorruptCheckpointError,
    SourceError,
    UnsupportedCheckpointError,
)

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
_SINGLE_NAME = "model.safetensors"

# Pickles beside a model that hold no weights.
_TRAINING_STATE = ("training_args", "optimizer", "scheduler", "rng_state", "random_states")


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


def _local_header(root: Path, shard: str) -> ShardHeader:
    path = root / shard
    try:
        with path.open("rb") as file:

            def read(offset: int, length: int) -> bytes:
                file.seek(offset)
                return file.read(length)

            return parse_header(shard, os.fstat(file.fileno()).st_size, read)
    except CheckpointError as error:  # it names the shard: say in which directory
        raise type(error)(f"{root}{os.sep}{error.what}", error.remedy) from None
    except OSError as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: OSError) -> CheckpointError:
    return CheckpointError(
        f"{path}: cannot be read: {error.strerror or error}", "Check the file and its permissions."
    )


def _read_index(root: Path, index_name: str) -> dict[str, str]:
    """The index's ``weight_map``, with every path checked to stay in the directory."""
    path = root / index_name
    remedy = "Download the index again, or rebuild it from the shards."
    try:
        index = parse_json(path.read_bytes())
    except ValueError as error:
        raise CorruptCheckpointError(f"{path}: not valid JSON: {error}", remedy) from None
    except OSError as error:
        raise _unreadable(path, error) from None
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise CorruptCheckpointError(f"{path}: no weight_map", remedy)
    found = {}
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
        found[name] = "/".join(parts)
    return found


def _find_weights(root: Path) -> tuple[str | None, list[str]]:
    """The index's name, or None and the one weight file, of a local directory."""
    indexes = sorted(path.name for path in root.glob("*.safetensors.index.json"))
    files = sorted(path.name for path in root.glob("*.safetensors"))
    if INDEX_NAME in indexes:
        return INDEX_NAME, []
    if _SINGLE_NAME in files:
        return None, [_SINGLE_NAME]
    if len(indexes) == 1:
        return indexes[0], []
    if len(indexes) > 1:
        raise SourceError(
            f"{root}: several indexes: {', '.join(indexes)}",
            f"Keep one, or name the one to use {INDEX_NAME}.",
        )
    if len(files) == 1:
        return None, files
    if files:
        raise CorruptCheckpointError(
            f"{root}: {len(files)} weight files and no index",
            f"Download {INDEX_NAME} too, or keep a single .safetensors file in the directory.",
        )
    _refuse_pickles(root)
    raise SourceError(
        f"{root}: no .safetensors file",
        "Name a directory that holds a model's weights; other formats must be converted first.",
    )


def _refuse_pickles(root: Path) -> None:
    pickles = sorted(
        path.name
        for end in ("*.bin", "*.pt", "*.pth")
        for path in root.glob(end)
        if not path.name.startswith(_TRAINING_STATE)
    )
    if not pickles:
        return
    remedy = "Load it with the library that wrote it, and save it as safetensors."
    if pickles[0].startswith("pytorch_model"):
        code = (
            "import pathlib, torch; from safetensors.torch import save_file; "
            f"d = pathlib.Path({str(root)!r}); w = {{}}; "
            "[w.update(torch.load(f, map_location='cpu', weights_only=True)) "
            "for f in sorted(d.glob('pytorch_model*.bin'))]; "
            "save_file({n: w.pop(n).clone().contiguous() for n in list(w)}, "
            f"d / {_SINGLE_NAME!r}, {{'format': 'pt'}})"
        )
        remedy = f"Write {_SINGLE_NAME} beside it:  python -c {shlex.quote(code)}"
    raise UnsupportedCheckpointError(
        f"{root}: holds PyTorch pickles ({', '.join(pickles[:3])}), no safetensors", remedy
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
        if index_name == INDEX_NAME and _SINGLE_NAME not in names:
            _refuse_rival(root)
    missing = [name for name in names if not os.path.isfile(root / name)]
    if missing:
        raise CorruptCheckpointError(
            f"{root}: shard {missing[0]} is missing ({len(missing)} of {len(names)})",
            "Download the checkpoint again until every shard is there.",
        )
    shards = {name: _local_header(root, name) for name in names}
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
            f"{root}: no tensor in any weight file", "Save the model again."
        )
    return Layout(shards, entries, index_name)


def _refuse_rival(root: Path) -> None:
    """A single file beside a sharded save: transformers would load the file, not the shards."""
    if os.path.lexists(root / _SINGLE_NAME):
        raise SourceError(
            f"{root}: holds {_SINGLE_NAME} and {INDEX_NAME}, which does not mention it",
            "These are two models in one directory: remove the one that is not meant.",
        )


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
