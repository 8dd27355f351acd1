"""Writing a checkpoint whose shards mirror those of its base.

Shards are preallocated and filled at their offsets in any order and from any thread. A tensor
enters the journal only after its bytes were flushed, so what a resumed run trusts is on disk.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weightsurgery.checkpoint.layout import (
    BITS,
    ShardHeader,
    TensorEntry,
    encode_header,
    parse_header,
)
from weightsurgery.checkpoint.plain_files import open_own
from weightsurgery.checkpoint.reader import Checkpoint
from weightsurgery.checkpoint.staging import Staging, output_errors
from weightsurgery.errors import OutputError

__all__ = [
    "ALIGNMENT",
    "CheckpointWriter",
    "free_space_needed",
    "mirrored",
    "write_all",
]

_COPY_BLOCK = 1 << 23

# Offsets, lengths and memory of writes past the page cache: a page, which suits any block size.
ALIGNMENT = 4096


def mirrored(header: ShardHeader, dtype: Callable[[TensorEntry], str]) -> ShardHeader:
    """The header an output shard gets: the base's, byte for byte unless a dtype changes.

    Args:
        header: The base's.
        dtype: The dtype each tensor is to be stored in.
    """
    wanted = [(entry.name, dtype(entry), entry.shape) for entry in header.entries]
    if all(entry.dtype == new for entry, (_, new, _) in zip(header.entries, wanted, strict=True)):
        return header
    raw = encode_header(wanted, header.metadata)
    size = len(raw) + sum(math.prod(shape) * BITS[new] // 8 for _, new, shape in wanted)
    return parse_header(header.shard, size, lambda start, length: raw[start : start + length])


def free_space_needed(shards: Sequence[ShardHeader], present: Path | None = None) -> int:
    """Bytes the shards need, less what an interrupted run has allocated already."""
    needed = sum(header.size for header in shards)
    if present is not None and present.is_dir():
        needed -= sum(path.stat().st_blocks * 512 for path in present.rglob("*") if path.is_file())
    return max(0, needed)


@dataclass(frozen=True)
class _Shard:
    header: ShardHeader
    handle: int
    direct: int | None = None  # past the page cache, where the file system can


class CheckpointWriter:
    """Fills the shards of an output; see the module's text.

    Args:
        staging: Where the output grows.
        shards: The headers to write, e.g. from :func:`mirrored`.

    Attributes:
        done: Facts of the tensors an interrupted run has finished, by name.
        resumed: Their number, at the beginning.
    """

    # How long finished tensors may wait for the flush that lets them into the journal.
    FLUSH_SECONDS = 0.5

    def __init__(self, staging: Staging, shards: Sequence[ShardHeader]) -> None:
        self.staging = staging
        self.entries: dict[str, TensorEntry] = {
            entry.name: entry for header in shards for entry in header.entries
        }
        self.done: dict[str, dict[str, Any]] = {}
        self._pending: list[tuple[str, dict[str, Any], str | None]] = []
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._failure: BaseException | None = None
        self._shards: dict[str, _Shard] = {}
        try:
            with output_errors(staging.target):
                self._allocate(shards)
        except BaseException:
            self._close_files()  # open files hold their space, even when they are removed
            raise
        self.resumed = len(self.done)
        self._flusher = threading.Thread(target=self._flush_periodically, daemon=True)
        self._flusher.start()

    def path(self, shard: str) -> Path:
        """A shard's file: ``NAME.part`` while it is filled, as it would pass for a valid one."""
        final = self.staging.files / shard
        return final if final.is_file() else final.with_name(f"{final.name}.part")

    def _allocate(self, shards: Sequence[ShardHeader]) -> None:
        finished = {
            line["tensor"]: (line["facts"], line.get("sha256"))
            for line in self.staging.finished
            if {"tensor", "facts"} <= line.keys()
        }
        whole = all(
            self.path(h.shard).is_file() and self.path(h.shard).stat().st_size == h.size
            for h in shards
        )
        if finished and not whole:
            self.staging.restart()
            finished = {}
        for header in shards:
            path = self.path(header.shard)
            path.parent.mkdir(parents=True, exist_ok=True)
            handle = open_own(path)
            self._shards[header.shard] = _Shard(header, handle, _open_direct(path))
            if not finished:
                os.posix_fallocate(handle, 0, max(1, header.size))
                os.ftruncate(handle, header.size)
            write_all(handle, header.raw, 0)
        # Other machines may write beside the headers from here on: no page of ours may come later.
        for shard in self._shards.values():
            os.fsync(shard.handle)
        # A tensor that differs from its journaled digest is done again: it was changed since.
        self.done = {
            name: facts
            for name, (facts, digest) in finished.items()
            if name in self.entries and digest == self._digest(name, facts)
        }

    def _digest(self, name: str, facts: Mapping[str, Any]) -> str:
        """The journal's digest of a tensor, from its bytes in the unfinished output."""
        entry = self.entries[name]
        digest = hashlib.sha256()
        buffer = memoryview(bytearray(min(_COPY_BLOCK, entry.nbytes)))
        for start in range(entry.start, entry.stop, _COPY_BLOCK):
            view = buffer[: min(_COPY_BLOCK, entry.stop - start)]
            self.read_window(entry.shard, start, view)
            digest.update(view)
        return _noted(facts, digest.hexdigest())

    def write(self, name: str, offset: int, data: memoryview | bytes) -> None:
        """Write some of a tensor's bytes at ``offset``, relative to the tensor."""
        entry = self.entries[name]
        if offset < 0 or offset + len(data) > entry.nbytes:
            raise ValueError(f"bytes {offset}+{len(data)} outside tensor {name!r}")
        with output_errors(self.staging.target):
            write_all(self._shards[entry.shard].handle, data, entry.start + offset)

    def write_window(self, shard: str, offset: int, data: memoryview) -> None:
        """Write a stretch of a shard's file, past the page cache where that can be.

        The page cache would have to be filled first and flushed later, which costs more than the
        writing itself on a fast disk, and drives out what is still to be read.

        Args:
            shard: File name of the shard.
            offset: Where in the file; a multiple of :data:`ALIGNMENT`.
            data: Page-aligned memory.
        """
        place = self._shards[shard]
        done = 0
        with output_errors(self.staging.target):
            if place.direct is not None and offset % ALIGNMENT == 0:
                whole = len(data) // ALIGNMENT * ALIGNMENT
                try:
                    write_all(place.direct, data[:whole], offset)
                    done = whole
                except OSError as error:
                    # Other alignment wanted, or not from memory that is locked for a GPU.
                    if error.errno not in (errno.EINVAL, errno.EFAULT):
                        raise
            write_all(place.handle, data[done:], offset + done)

    def read_window(self, shard: str, offset: int, buffer: memoryview) -> None:
        """Read back what an interrupted run has written."""
        done = 0
        with output_errors(self.staging.target):
            while done < len(buffer):
                count = os.preadv(self._shards[shard].handle, [buffer[done:]], offset + done)
                if count == 0:
                    raise OSError(errno.EIO, "the unfinished output ended early")
                done += count

    def copy(self, name: str, base: Checkpoint) -> None:
        """Copy a tensor's bytes from the base, through the kernel where it can."""
        source, entry = base.entry(name), self.entries[name]
        writing = self._shards[entry.shard].handle
        done = 0
        while base.as_stored and done < entry.nbytes:
            try:
                count = os.copy_file_range(
                    base.handle(source.shard),
                    writing,
                    min(_COPY_BLOCK, entry.nbytes - done),
                    source.start + done,
                    entry.start + done,
                )
            except OSError:  # across file systems, or a kernel without it
                break
            if count == 0:
                break
            done += count
        while done < entry.nbytes:  # whatever the kernel did not copy; reads check for truncation
            stop = min(done + _COPY_BLOCK, entry.nbytes)
            self.write(name, done, memoryview(base.read_bytes(name, done, stop)))
            done = stop

    def finish(
        self, name: str, facts: dict[str, Any], resumable: bool = True, sha256: str | None = None
    ) -> None:
        """Mark a tensor as finished: all of its bytes are written.

        Args:
            name: The tensor.
            facts: Statistics of its change.
            resumable: Whether a resumed run may trust it. Its bytes are then journaled by their
                SHA-256.
            sha256: Of its bytes; None to read them back.

        Raises:
            OutputError: An earlier flush failed (a full disk shows up late).
        """
        if self._failure is not None:
            with output_errors(self.staging.target):
                raise self._failure
        noted = None
        if resumable:
            noted = self._digest(name, facts) if sha256 is None else _noted(facts, sha256)
        with self._lock:
            self._pending.append((name, facts, noted))

    def _flush_periodically(self) -> None:
        while not self._stop.wait(self.FLUSH_SECONDS):
            try:
                self._flush()
            except BaseException as error:  # whatever it is, the run must not go on without
                self._failure = error
                return

    def _flush(self) -> None:
        with self._lock:
            pending, self._pending = self._pending, []
        if not pending:
            return
        noted = [item for item in pending if item[2] is not None]
        for shard in {self.entries[name].shard for name, _, _ in noted}:
            os.fdatasync(self._shards[shard].handle)
        self.staging.note(
            {"tensor": name, "facts": facts, "sha256": digest} for name, facts, digest in noted
        )
        self.done.update((name, facts) for name, facts, _ in pending)

    def seal(self) -> None:
        """Flush all shards and give them their names.

        Raises:
            OutputError: A tensor was never finished, or the disk failed.
        """
        self._stop.set()
        self._flusher.join()
        with output_errors(self.staging.target):
            if self._failure is not None:
                raise self._failure
            self._flush()
            missing = [name for name in self.entries if name not in self.done]
            if missing:
                raise OutputError(
                    f"{self.staging.target}: tensor {missing[0]!r} was never written",
                    "This is a bug in weightsurgery: please report it.",
                )
            for name, shard in self._shards.items():
                os.fsync(shard.handle)
                self.path(name).rename(self.staging.files / name)
            self._close_files()

    def abandon(self) -> None:
        """Stop without sealing: close the files without flushing them."""
        self._stop.set()
        self._flusher.join()
        self._close_files()

    def _close_files(self) -> None:
        while self._shards:
            shard = self._shards.popitem()[1]
            os.close(shard.handle)
            if shard.direct is not None:
                os.close(shard.direct)


def _noted(facts: Mapping[str, Any], sha256: str) -> str:
    """SHA-256 of a tensor's facts and of its bytes' SHA-256, by which the journal knows both."""
    return hashlib.sha256(f"{json.dumps(facts, sort_keys=True)}\n{sha256}".encode()).hexdigest()


def _open_direct(path: Path) -> int | None:
    try:
        return os.open(path, os.O_RDWR | os.O_DIRECT | os.O_CLOEXEC | os.O_NOFOLLOW)
    except (OSError, AttributeError):
        return None


def write_all(handle: int, data: memoryview | bytes, offset: int) -> None:
    """Write all of some bytes at an offset of a file."""
    view = memoryview(data)
    done = 0
    while done < len(view):
        done += os.pwrite(handle, view[done:], offset + done)
