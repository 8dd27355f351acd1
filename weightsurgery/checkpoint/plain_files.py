"""Plain files: read and written without following foreign links.

Other users who may write beside an output, or publish a checkpoint, may put links, pipes and
devices there. So a written file is new or this user's own plain file, and a file copied out of a
checkpoint lies in it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
from pathlib import Path
from typing import IO, Any

from weightsurgery.errors import OutputError

__all__ = [
    "check_own",
    "create",
    "held_bytes",
    "is_plain_within",
    "need_space",
    "new_file",
    "open_own",
    "sync_directory",
    "sync_file",
    "write_whole",
]

_REMEDY = "Look at who put it there, and remove it; or write elsewhere."


def is_plain_within(path: Path, root: Path) -> bool:
    """Whether a path leads to a plain file that lies in a directory, whatever links it follows.

    A snapshot of the Hub's cache links to its repository's ``blobs``: those belong to it.

    Args:
        path: Below ``root``; a file, a link, or nothing.
        root: The directory.
    """
    real, inside = Path(os.path.realpath(path)), Path(os.path.realpath(root))
    if not real.is_file():  # nor a pipe or a device, which would be waited for
        return False
    if real.is_relative_to(inside):
        return True
    return inside.parent.name == "snapshots" and real.parent == inside.parent.parent / "blobs"


def check_own(path: Path, directory: bool = False) -> None:
    """Refuse what lies at a path of ours and is not ours: links, others' files, pipes, devices.

    Args:
        path: Of an earlier run, or nothing.
        directory: Whether it should be a directory rather than a file; then all in it is looked
            at too.

    Raises:
        OutputError: It is something else, or another user's.
    """
    with contextlib.suppress(FileNotFoundError):
        _check(path, os.lstat(path), directory)
        if directory:
            for folder, folders, files in os.walk(path, onerror=_raise):
                for names, are_folders in ((folders, True), (files, False)):
                    for name in names:
                        entry = Path(folder) / name
                        _check(entry, os.lstat(entry), are_folders)


def _raise(error: OSError) -> None:
    raise error


def _check(path: Path, facts: os.stat_result, directory: bool) -> None:
    if stat.S_ISLNK(facts.st_mode):
        raise OutputError(f"{path}: a link, where ws keeps its own", _REMEDY)
    if not (stat.S_ISDIR if directory else stat.S_ISREG)(facts.st_mode):
        wanted = "directory" if directory else "plain file"
        raise OutputError(f"{path}: no {wanted}, where ws keeps its own", _REMEDY)
    if facts.st_uid != os.geteuid():
        raise OutputError(f"{path}: belongs to another user (uid {facts.st_uid})", _REMEDY)
    if not directory and facts.st_nlink > 1:
        raise OutputError(f"{path}: has a second name elsewhere (a hard link)", _REMEDY)


def create(path: Path) -> int:
    """A new, empty file under a name of ours, open for reading and writing.

    An existing file or link is removed first; the target of a link is never touched.

    Raises:
        OSError: The old file cannot be removed, or the new one not be created.
    """
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.open(path, flags, 0o666)


def open_own(path: Path, flags: int = 0) -> int:
    """Open this user's own plain file for reading and writing; made where there is none.

    Args:
        path: The file.
        flags: More of them, as ``os.O_APPEND``.

    Raises:
        OutputError: A link, another user's, or no plain file.
        OSError: It cannot be opened.
    """
    check_own(path)
    wanted = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    handle = os.open(path, wanted | flags, 0o666)
    try:
        _check(path, os.fstat(handle), directory=False)  # again: of what was opened
    except BaseException:
        os.close(handle)
        raise
    return handle


def sync_file(path: Path) -> None:
    """Flush what a file holds to disk."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_directory(path: Path) -> None:
    """Flush a directory's entries to disk."""
    sync_file(path)


def write_whole(path: Path, content: bytes | str) -> None:
    """Write a file, whole or not at all; a link of that name is replaced, not followed.

    It is flushed before it gets its name, and the name with it: a machine that goes down leaves
    the old file or the new one.

    Raises:
        OSError: It cannot be written.
    """
    data = content.encode() if isinstance(content, str) else content
    draft = path.with_name(f".{path.name}.part")
    try:
        with new_file(draft) as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            draft.unlink()
        raise
    sync_directory(path.parent)


def new_file(path: Path) -> IO[Any]:
    """As :func:`create`, as a file to write bytes to."""
    return os.fdopen(create(path), "w+b")


def held_bytes(directory: Path) -> int:
    """Bytes of all files under a directory; 0 where there is none."""
    return sum(path.lstat().st_size for path in directory.rglob("*") if not path.is_dir())


def need_space(where: Path, needed: int, on: Path, why: str = "", options: str = "-o") -> None:
    """Refuse work whose output has no room.

    Args:
        where: What is named in the message.
        needed: Bytes.
        on: A place on the disk.
        why: What needs them, as in ``" for the output and its vector"``.
        options: Those that name the place.

    Raises:
        OutputError: Too little is free.
    """
    free = shutil.disk_usage(on).free
    if needed > free:
        raise OutputError(
            f"{where}: {needed / 1e6:,.1f} MB needed{why}, {free / 1e6:,.1f} MB free",
            f"Free some space, or write to another disk with {options}.",
        )
