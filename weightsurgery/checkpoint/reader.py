"""Reading a checkpoint lazily: whole tensors, row blocks, byte ranges, from many threads."""

from __future__ import annotations

import json
import os
import threading
import weakref
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from weightsurgery.checkpoint.layout import Layout, ShardHeader, TensorEntry, read_layout
from weightsurgery.checkpoint.source import Source, resolve_source
from weightsurgery.errors import CheckpointError, CorruptCheckpointError, UnsupportedCheckpointError

if TYPE_CHECKING:
    import torch

__all__ = ["Checkpoint", "torch_dtype"]


_T = TypeVar("_T")


def torch_dtype(dtype: str) -> torch.dtype:
    """The torch dtype of a safetensors dtype.

    Raises:
        UnsupportedCheckpointError: torch has no such dtype.
    """
    import torch

    names = {
        "F64": "float64",
        "F32": "float32",
        "F16": "float16",
        "BF16": "bfloat16",
        "F8_E4M3": "float8_e4m3fn",
        "F8_E5M2": "float8_e5m2",
        "F8_E4M3FNUZ": "float8_e4m3fnuz",
        "F8_E5M2FNUZ": "float8_e5m2fnuz",
        "C64": "complex64",
        "I64": "int64",
        "U64": "uint64",
        "I32": "int32",
        "U32": "uint32",
        "I16": "int16",
        "U16": "uint16",
        "I8": "int8",
        "U8": "uint8",
        "BOOL": "bool",
    }
    if dtype not in names:
        raise UnsupportedCheckpointError(
            f"dtype {dtype} cannot be read as numbers", "Exclude the tensor, or dequantise it."
        )
    as_torch: torch.dtype = getattr(torch, names[dtype])
    return as_torch


def _close_all(files: dict[str, int]) -> None:
    while files:
        os.close(files.popitem()[1])


class Checkpoint:
    """A checkpoint on disk. Opening it reads headers alone; tensors are read lazily.

    All reads are positional (``preadv``) into fresh memory, so any number of threads may read
    at once and nothing of the file stays mapped.

    Attributes:
        source: Where it was found.
        layout: What it holds.
        entries: Every tensor by name.
        dequantises: Whether quantised codes are read as numbers, of this checkpoint and of those
            compared with it.
        as_stored: Whether shards and bytes are those of the files.
        notes: How it was converted when it was opened, for the user, a line each.

    Example::

        with Checkpoint.open("org/model") as checkpoint:
            for name, entry in checkpoint.entries.items():
                print(name, entry.dtype, entry.shape)
            weight = checkpoint.tensor("model.embed_tokens.weight")
    """

    notes: tuple[str, ...] = ()
    dequantises = False
    as_stored = True

    def __init__(self, source: Source, layout: Layout) -> None:
        self.source = source
        self.layout = layout
        self.entries: Mapping[str, TensorEntry] = layout.entries
        self._reset_files()

    def __getstate__(self) -> dict[str, Any]:
        """The state for another process: source and layout, no open files."""
        unpicklable = ("_files", "_lock", "_remembered", "_closer")
        return {key: value for key, value in self.__dict__.items() if key not in unpicklable}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._reset_files()

    def _reset_files(self) -> None:
        self._files: dict[str, int] = {}
        self._lock = threading.Lock()
        self._remembered: dict[str, Any] = {}
        # Vectors hold checkpoints that are not closed explicitly.
        self._closer = weakref.finalize(self, _close_all, self._files)

    @classmethod
    def open(cls, name: str | os.PathLike[str]) -> Checkpoint:
        """Open ``path`` or ``org/name[@revision]``; see :func:`read_layout` for what it raises."""
        return cls.at(resolve_source(name))

    @classmethod
    def at(cls, source: Source) -> Checkpoint:
        """Open a source that is resolved already."""
        return cls(source, read_layout(source.path))

    @property
    def path(self) -> Path:
        """Directory of the checkpoint."""
        return self.source.path

    @property
    def shards(self) -> Mapping[str, ShardHeader]:
        """Headers by shard name."""
        return self.layout.shards

    @property
    def remote(self) -> bool:
        """Whether tensors are fetched over the network when they are read."""
        return False

    @property
    def fetched(self) -> int:
        """Bytes of weight files fetched over the network so far."""
        return 0

    @property
    def to_download(self) -> int:
        """Bytes of weight files that opening it as a whole would fetch."""
        return 0

    def absent(self, names: Iterable[str]) -> int:
        """Bytes of these tensors that would have to be fetched over the network."""
        return 0

    def file(self, name: str) -> Path | None:
        """Where a file beside the weights can be read; None if there is none."""
        path = self.path / name
        return path if path.is_file() else None

    def beside(self) -> Path:
        """The directory that holds the files beside the weights, as the tokenizer's."""
        return self.path

    def prefetch(self, names: Iterable[str]) -> None:
        """Announce which tensors will be read, so that a remote checkpoint can fetch them."""

    def files_read(self) -> list[Path]:
        """The files a change or an edit depends on: shards, and the config that explains them."""
        config = self.file("config.json")
        shards = [self.path / shard for shard in self.shards]
        return shards if config is None else [*shards, config]

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the files."""
        with self._lock:
            _close_all(self._files)

    def handle(self, shard: str) -> int:
        """File descriptor of a shard, for positional reads; closed with the checkpoint.

        Raises:
            CheckpointError: The file cannot be opened any more.
        """
        with self._lock:
            if shard not in self._files:
                try:
                    self._files[shard] = os.open(self.path / shard, os.O_RDONLY | os.O_CLOEXEC)
                except OSError as error:
                    raise CheckpointError(
                        f"{self.path / shard}: cannot be opened: {error.strerror}",
                        "Leave inputs alone until the end, and check their permissions.",
                    ) from None
            return self._files[shard]

    def read_into(self, entry: TensorEntry, offset: int, buffer: memoryview) -> None:
        """Fill ``buffer`` with a tensor's bytes from ``offset`` (relative to the tensor).

        Raises:
            CorruptCheckpointError: The file ends early: it was changed after it was opened.
            CheckpointError: The disk fails.
        """
        if offset < 0 or offset + len(buffer) > entry.nbytes:
            raise ValueError(f"bytes {offset}+{len(buffer)} outside tensor {entry.name!r}")
        self._fill(entry.shard, entry.start + offset, buffer, f"tensor {entry.name!r}")

    def read_shard_into(self, shard: str, offset: int, buffer: memoryview) -> None:
        """Fill ``buffer`` with a shard's bytes from ``offset``, header included.

        Raises:
            CorruptCheckpointError: The file ends early: it was changed after it was opened.
            CheckpointError: The disk fails.
        """
        self._fill(shard, offset, buffer, f"{len(buffer)} bytes at {offset}")

    def _fill(self, shard: str, position: int, buffer: memoryview, what: str) -> None:
        handle, done = self.handle(shard), 0
        while done < len(buffer):
            try:
                count = os.preadv(handle, [buffer[done:]], position + done)
            except OSError as error:
                raise CheckpointError(
                    f"{self.path / shard}: reading {what}: {error.strerror}",
                    "Check the disk, or read from a copy on another.",
                ) from None
            if count == 0:
                raise CorruptCheckpointError(
                    f"{self.path / shard}: ended while reading {what}",
                    "The file was changed while it was read: leave inputs alone until the end.",
                )
            done += count

    def read_bytes(self, name: str, start: int = 0, stop: int | None = None) -> bytearray:
        """Bytes ``start:stop`` of a tensor, as stored."""
        entry = self.entry(name)
        buffer = bytearray((entry.nbytes if stop is None else stop) - start)
        self.read_into(entry, start, memoryview(buffer))
        return buffer

    def entry(self, name: str) -> TensorEntry:
        """The entry of a tensor.

        Raises:
            CheckpointError: There is no such tensor.
        """
        try:
            return self.entries[name]
        except KeyError:
            raise CheckpointError(
                f"{self.source.name}: no tensor {name!r}", "List the names with 'ws inspect'."
            ) from None

    def tensor(self, name: str) -> torch.Tensor:
        """A whole tensor, in its stored dtype and shape, in memory of its own."""
        entry = self.entry(name)
        return self.rows(name, 0, entry.rows).reshape(entry.shape)

    def rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Rows ``start:stop``, in the stored dtype; see :attr:`TensorEntry.rows`.

        Returns:
            Shape ``(stop - start, n)``; ``(stop - start,)`` for vectors and scalars.
        """
        import torch

        entry = self.entry(name)
        if not 0 <= start <= stop <= entry.rows:
            raise ValueError(f"rows {start}:{stop} of {entry.rows} of tensor {name!r}")
        dtype = torch_dtype(entry.dtype)
        out = torch.empty((stop - start) * entry.row_bytes, dtype=torch.uint8)
        if out.numel():
            self.read_into(entry, start * entry.row_bytes, memoryview(out.numpy().data))
        return out.view(dtype).reshape(stop - start, *entry.columns)

    def remember(self, key: str, find: Callable[[], _T]) -> _T:
        """The value that ``find`` returned at the first call with this key."""
        if key not in self._remembered:
            self._remembered[key] = find()
        value: _T = self._remembered[key]
        return value

    @cached_property
    def config(self) -> dict[str, Any]:
        """``config.json`` as a dictionary; empty if there is none.

        Raises:
            CorruptCheckpointError: It is not a JSON object.
        """
        path = self.file("config.json")
        if path is None:
            return {}
        remedy = "Restore it from where the model comes from."
        try:
            config = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise CorruptCheckpointError(f"{path}: not valid JSON: {error}", remedy) from None
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be read: {error.strerror}", remedy) from None
        if not isinstance(config, dict):
            raise CorruptCheckpointError(f"{path}: not a JSON object", remedy)
        return config

    @property
    def text_config(self) -> dict[str, Any]:
        """The language model's part of the config (multimodal models nest it)."""
        for key in ("text_config", "llm_config", "language_config"):
            nested = self.config.get(key)
            if isinstance(nested, dict):
                return {**self.config, **nested}
        return self.config
