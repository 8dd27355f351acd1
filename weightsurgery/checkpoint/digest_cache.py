"""SHA-256 of files that were hashed before, so that a sweep over one base hashes it once.

A digest is kept beside the file's device, inode, size and times of change, and trusted only while
all of them agree: the kernel sets the change time at every write, and no program can set it back.
A file changed less than two seconds before it was read is not remembered, since file systems keep
coarse time. Nothing breaks when the cache is deleted; outputs are verified from their bytes always.

What no command used for a month is removed from the cache. A file's modification time is the time
of its last use: every use sets it. An open file is held with a shared lock, so that it stays
however old it is; one that cannot be locked stays too. Files whose names are not ours are never
touched.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import stat
import time
from collections.abc import Callable
from pathlib import Path

from weightsurgery.checkpoint.plain_files import new_file

__all__ = [
    "UNUSED_DAYS",
    "Stamp",
    "cache_directory",
    "cache_folder",
    "cached_digest",
    "declare",
    "declared_digest",
    "hold",
    "is_at",
    "mark_used",
    "remove_unused",
    "stamp",
    "store_digest",
]

# Smaller files are read again: that is as fast.
LEAST_BYTES = 1 << 22

_SETTLED_NS = 2_000_000_000

_NAMES = re.compile(r"[0-9a-f]{64}\.json(\.\d+)?")

Stamp = tuple[int, int, int, int, int]


def cache_directory() -> Path:
    """``$WEIGHTSURGERY_CACHE``, else ``weightsurgery`` in ``$XDG_CACHE_HOME`` or ``~/.cache``."""
    configured = os.environ.get("WEIGHTSURGERY_CACHE")
    if configured:
        return Path(configured)
    general = os.environ.get("XDG_CACHE_HOME")
    return (Path(general) if general else Path.home() / ".cache") / "weightsurgery"


def cache_folder(name: str) -> Path:
    """A folder of the cache that this user alone may write in; made if needed.

    Raises:
        OSError: It cannot be made, or belongs to another user, who could forge its content.
    """
    folder = cache_directory() / name
    folder.mkdir(parents=True, exist_ok=True)
    facts = os.lstat(folder)
    if not stat.S_ISDIR(facts.st_mode) or facts.st_uid != os.geteuid():
        raise PermissionError(errno.EPERM, "belongs to another user, or is a link")
    if facts.st_mode & 0o022:
        folder.chmod(stat.S_IMODE(facts.st_mode) & ~0o022)
    return folder


def _is_ours_alone(place: Path) -> bool:
    """Whether this user alone can have written a digest."""
    for path in (place, place.parent):
        facts = os.lstat(path)
        if facts.st_uid != os.geteuid() or stat.S_ISLNK(facts.st_mode):
            return False
    return not facts.st_mode & 0o022


def stamp(path: Path) -> Stamp:
    """A file's stamp: device, inode, size, modification and change time."""
    facts = os.stat(path)
    return facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns


def _place(path: Path) -> Path:
    name = hashlib.sha256(os.path.realpath(path).encode(errors="surrogateescape")).hexdigest()
    return cache_directory() / "sha256" / f"{name}.json"


_declared: dict[Path, tuple[str, Callable[[], Path | None]]] = {}


def declare(path: Path, digest: str, whole: Callable[[], Path | None] = lambda: None) -> None:
    """Note the digest of a file that is not here in whole, as the Hub gives it for a commit.

    Args:
        path: What the file is called: ``org/name@commit/file``. Where a file of that name lies
            here all the same, its own digest counts.
        digest: SHA-256, hexadecimal.
        whole: Where all of its bytes are by now, to be hashed; None while some are missing.
    """
    _declared[path] = digest, whole


def declared_digest(path: Path) -> tuple[str, Path | None] | None:
    """A declared digest, and where the whole file is; None for a file that is here or unknown."""
    if path not in _declared or os.path.lexists(path):
        return None
    digest, whole = _declared[path]
    return digest, whole()


def cached_digest(path: Path) -> str | None:
    """The digest of a file that has not changed since it was hashed; None if there is none."""
    if path in _declared and not os.path.lexists(path):
        return _declared[path][0]
    place = _place(path)
    try:
        if not _is_ours_alone(place):
            return None
        noted = json.loads(place.read_text(encoding="ascii"))
        same = tuple(noted["stamp"]) == stamp(path)
        digest = noted["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if not same or not isinstance(digest, str) or len(digest) != 64:
        return None
    mark_used(place)
    return digest


def store_digest(path: Path, before: Stamp, digest: str) -> None:
    """Keep the digest of a file, if it did not change while it was read.

    Args:
        path: The file.
        before: Its :func:`stamp` before it was read.
        digest: SHA-256, hexadecimal.
    """
    if before[2] < LEAST_BYTES or time.time_ns() - before[4] < _SETTLED_NS:
        return
    place = _place(path)
    with contextlib.suppress(OSError):  # a cache that cannot be written is no cache
        if stamp(path) != before:
            return
        cache_folder("sha256")
        draft = place.with_name(f"{place.name}.{os.getpid()}")
        with new_file(draft) as file:
            file.write(json.dumps({"stamp": before, "sha256": digest}).encode())
        draft.replace(place)
        remove_unused(place.parent, _NAMES)


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
