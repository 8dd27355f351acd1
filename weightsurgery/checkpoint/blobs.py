"""Files of huggingface_hub's cache, compared with the hashes that the Hub names them by.

huggingface_hub stores a file under the hash that the server gave, SHA-256 for files in LFS or xet
and git's SHA-1 for small ones, and checks sizes alone: bytes corrupted on the way would pass for
the model's.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from pathlib import Path

from weightsurgery.errors import CorruptCheckpointError

__all__ = ["check_blob", "check_file", "check_snapshot", "git_sha1"]

# What git holds itself is smaller, on the Hub; a mirror may name more after their SHA-1.
_MOST_BYTES = 1 << 26


def git_sha1(content: bytes) -> str:
    """How git names a file's content, hexadecimal."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def check_blob(path: Path, sha256: str) -> None:
    """Compare a file's digest with what a blob of the cache is named after; other files pass.

    Args:
        path: The file, or a link to it.
        sha256: Of its bytes.

    Raises:
        CorruptCheckpointError: It is a blob, of other bytes than its name says.
    """
    name = _named(path)
    if name is not None and len(name) == 64 and name != sha256:
        raise _corrupt(path, sha256, name)
    if name is not None and len(name) == 40:
        check_file(path, name)


def check_file(path: Path, named: str) -> None:
    """Compare a file with a hash: SHA-256, or git's SHA-1 where it is no larger than git's are.

    Raises:
        CorruptCheckpointError: It has other bytes.
    """
    if path.stat().st_size > _MOST_BYTES:  # weights: hashed when an edit reads them
        return
    content = path.read_bytes()
    if len(named) == 64:
        digests = [hashlib.sha256(content).hexdigest()]
    else:  # a mirror may give the SHA-1 of the bytes alone
        digests = [git_sha1(content), hashlib.sha1(content).hexdigest()]
    if named not in digests:
        raise _corrupt(path, digests[0], named)


def check_snapshot(folder: Path, named: Mapping[str, str]) -> None:
    """Compare the files beside the weights of a repository with its hashes.

    Args:
        folder: A snapshot in the cache.
        named: Hashes from the listing of the repository, where it was requested.

    Raises:
        CorruptCheckpointError: A file has other bytes.
    """
    for path in sorted(folder.rglob("*")):
        if path.suffix == ".safetensors" or not path.is_file():
            continue
        name = named.get(path.relative_to(folder).as_posix()) or _named(path)
        if name is not None:
            check_file(path, name)


def _named(path: Path) -> str | None:
    """The hash that a blob of huggingface_hub's own cache is named after; None for other files."""
    if not path.is_symlink():
        return None
    real = Path(os.path.realpath(path))
    hashed = re.fullmatch("[0-9a-f]{40}|[0-9a-f]{64}", real.name)
    return real.name if hashed and _is_blob(real, path) else None


def _is_blob(real: Path, link: Path) -> bool:
    """Whether a file is a blob of the repository in huggingface_hub's own cache that links to it.

    Args:
        real: The file, resolved.
        link: What led there.
    """
    from huggingface_hub.constants import HF_HUB_CACHE

    repository = real.parent.parent
    here = Path(os.path.realpath(HF_HUB_CACHE))
    return (
        real.parent.name == "blobs"
        and repository.parent == here
        and Path(os.path.realpath(link.parent)).is_relative_to(repository / "snapshots")
        and real.is_file()
    )


def _corrupt(path: Path, digest: str, named: str) -> CorruptCheckpointError:
    return CorruptCheckpointError(
        f"{path}: its bytes hash to {digest[:12]}…, on the Hub to {named[:12]}…: they went wrong on"
        " the way or on this disk",
        f"Remove {os.path.realpath(path)}, then run again: it is fetched anew.",
    )
