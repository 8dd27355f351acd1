"""Removal of cache files that no command used for a month.

A file's modification time is the time of its last use: every use sets it. An open file is held with
a shared lock, so that it stays however old it is; one that cannot be locked stays too. Files whose
names are not ours are never touched.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import time
from pathlib import Path

__all__ = ["UNUSED_DAYS", "hold", "is_at", "mark_used", "remove_unused"]

UNUSED_DAYS = 30

_DAY = 24 * 60 * 60

_cleaned: set[Path] = set()


def hold(file: int) -> None:
    """Keep an open file from being removed until it is closed; waits for a removal under way."""
    with contextlib.suppress(OSError):  # no locks on this file system: then nobody removes either
        fcntl.flock(file, fcntl.LOCK_SH)


def is_at(file: int, path: Path) -> bool:
    """Whether a path still leads to an open file."""
    try:
        return os.path.samestat(os.fstat(file), os.lstat(path))
    except FileNotFoundError:
        return False


def mark_used(path: Path) -> None:
    """Set a file's time of use, once a day: a cache that cannot be written is used all the same."""
    with contextlib.suppress(OSError):
        if time.time() - os.stat(path).st_mtime > _DAY:
            os.utime(path)


def remove_unused(folder: Path, ours: re.Pattern[str], beside: str | None = None) -> None:
    """Remove files that were not used for :data:`UNUSED_DAYS`; once per folder and process.

    Args:
        folder: Of a cache.
        ours: Pattern of our files' full names; other files are ignored.
        beside: The ending of a file that belongs to another one and goes with it, before it.
    """
    if folder in _cleaned:
        return
    _cleaned.add(folder)
    limit = time.time() - UNUSED_DAYS * _DAY
    with contextlib.suppress(OSError):  # without removal, the cache still serves
        with os.scandir(folder) as entries:
            names = sorted(entry.name for entry in entries if ours.fullmatch(entry.name))
        for name in names:
            with contextlib.suppress(OSError):
                _remove(folder / name, limit, beside)


def _remove(path: Path, limit: float, beside: str | None) -> None:
    if beside is not None and path.name.endswith(beside):
        if os.path.lexists(path.with_name(path.name.removesuffix(beside))):
            return
        beside = None
    if os.lstat(path).st_mtime >= limit:
        return
    file = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Checked again under the lock: another process may just have used or replaced it.
        if os.fstat(file).st_mtime < limit and is_at(file, path):
            if beside is not None:
                path.with_name(f"{path.name}{beside}").unlink(missing_ok=True)
            path.unlink()
    finally:
        os.close(file)
