"""A local mirror of a remote file: sparse on disk, with a list of the byte ranges it holds.

A range is listed once its bytes are flushed, so whatever is killed goes on from there. Several
processes may fetch the same file: they write the same bytes to the same places. Files unused for a
month are removed (see :mod:`weightsurgery.checkpoint.digest_cache`).
"""

from __future__ import annotations

import contextlib
import os
import re
import threading
from bisect import bisect_left, bisect_right

from weightsurgery.checkpoint.digest_cache import (
    cache_directory,
    cache_folder,
    hold,
    is_at,
    remove_unused,
)
from weightsurgery.checkpoint.plain_files import check_own, open_own
from weightsurgery.errors import CheckpointError

__all__ = ["Mirror", "Ranges"]

_LIST = ".ranges"
_NAMES = re.compile(r"[0-9a-f]{64}(\.ranges)?")


class Ranges:
    """A set of bytes as disjoint, sorted ranges ``[start, stop)``."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._stops: list[int] = []

    def add(self, start: int, stop: int) -> None:
        """Add a range; neighbours become one."""
        if start >= stop:
            return
        first = bisect_left(self._stops, start)
        last = bisect_right(self._starts, stop)
        if first < last:
            start = min(start, self._starts[first])
            stop = max(stop, self._stops[last - 1])
        self._starts[first:last] = [start]
        self._stops[first:last] = [stop]

    def missing(self, start: int, stop: int) -> list[tuple[int, int]]:
        """The parts of a range that are not in the set."""
        gaps = []
        for number in range(bisect_right(self._stops, start), len(self._starts)):
            if self._starts[number] >= stop:
                break
            if self._starts[number] > start:
                gaps.append((start, self._starts[number]))
            start = self._stops[number]
        if start < stop:
            gaps.append((start, stop))
        return gaps


class Mirror:
    """The local part of a remote file; reads and writes are safe from many threads.

    Args:
        key: What identifies the content: 64 hexadecimal digits.
        size: Of the whole file in bytes.

    Raises:
        CheckpointError: The cache cannot be written.
    """

    def __init__(self, key: str, size: int) -> None:
        self.path = cache_directory() / "parts" / key
        self._list = self.path.with_name(f"{key}{_LIST}")
        self._lock = threading.Lock()
        self._here = Ranges()
        self._file = -1
        try:
            self._open()
            if os.fstat(self._file).st_size != size:  # new, or not what it is named after
                self._list.unlink(missing_ok=True)
                os.ftruncate(self._file, size)
            self._read_list(size)
        except OSError as error:
            self.close()
            raise self._failed(error) from None
        remove_unused(self.path.parent, _NAMES, _LIST)

    def _open(self) -> None:
        """Open the file, and hold it: from here on it is in use."""
        cache_folder("parts")
        while self._file < 0:
            self._file = open_own(self.path)
            hold(self._file)
            if is_at(self._file, self.path):
                os.utime(self._file)
            else:  # removed between the two
                os.close(self._file)
                self._file = -1

    def _failed(self, error: OSError) -> CheckpointError:
        return CheckpointError(
            f"{self.path.parent}: parts of remote files cannot be kept here:"
            f" {error.strerror or error}",
            "Free some space, or set WEIGHTSURGERY_CACHE to a directory on another disk.",
        )

    def _read_list(self, size: int) -> None:
        if not os.path.lexists(self._list):
            return
        check_own(self._list)
        for line in self._list.read_text(encoding="ascii", errors="replace").split("\n")[:-1]:
            start, _, stop = line.partition(" ")  # a line that was torn has no end and is left out
            if start.isdecimal() and stop.isdecimal() and int(start) < int(stop) <= size:
                self._here.add(int(start), int(stop))

    def missing(self, start: int, stop: int) -> list[tuple[int, int]]:
        """The parts of a range that are not here yet."""
        with self._lock:
            return self._here.missing(start, stop)

    def write(self, offset: int, data: bytes) -> None:
        """Write bytes, not yet listed.

        Raises:
            CheckpointError: The disk is full or fails.
        """
        view = memoryview(data)
        try:
            while view:
                count = os.pwrite(self._file, view, offset)
                view, offset = view[count:], offset + count
        except OSError as error:
            raise self._failed(error) from None

    def note(self, start: int, stop: int) -> None:
        """List a range that was written.

        Raises:
            CheckpointError: The disk is full or fails.
        """
        if start >= stop:
            return
        try:
            os.fdatasync(self._file)
            with self._lock:
                # Where the cache was deleted, a list would describe the next file at this path.
                if is_at(self._file, self.path):
                    with os.fdopen(open_own(self._list, os.O_APPEND), "ab", 0) as file:
                        file.write(f"{start} {stop}\n".encode())
                self._here.add(start, stop)
        except OSError as error:
            raise self._failed(error) from None

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill a buffer with bytes that are here.

        Raises:
            CheckpointError: The disk fails, or somebody cut the file short.
        """
        done = 0
        while done < len(buffer):
            try:
                count = os.preadv(self._file, [buffer[done:]], offset + done)
            except OSError as error:
                raise self._failed(error) from None
            if count == 0:
                raise CheckpointError(
                    f"{self.path}: was cut short while it was read", "Run the command again."
                )
            done += count

    def close(self) -> None:
        """Close the file; what is here stays."""
        if self._file >= 0:
            with contextlib.suppress(OSError):
                os.utime(self._file)  # until now it was in use
            os.close(self._file)
            self._file = -1
