"""SHA-256 of files: read, or known from before, and compared with what the Hub says."""

from __future__ import annotations

import hashlib
from pathlib import Path

from weightsurgery.checkpoint.blobs import check_blob
from weightsurgery.checkpoint.digest_cache import Stamp, cached_digest, stamp, store_digest
from weightsurgery.errors import CheckpointError

__all__ = [
    "content_sha256",
    "file_sha256",
    "input_sha256",
    "known_sha256",
    "remember_sha256",
]

_BLOCK = 1 << 22


def file_sha256(path: Path) -> str:
    """SHA-256 of an input file, hexadecimal, without reading it where it is known.

    A file that was hashed before and has not changed since need not be read (see
    :mod:`weightsurgery.checkpoint.digest_cache`). To check a file, use :func:`content_sha256`.

    Raises:
        CorruptCheckpointError: See :func:`remember_sha256`.
    """
    known = known_sha256(path)
    if known is not None:
        return known
    before = stamp(path)
    digest = content_sha256(path)
    remember_sha256(path, before, digest)
    return digest


def input_sha256(path: Path) -> str:
    """The same of an input file, where a failing disk raises an error of ours.

    Raises:
        CheckpointError: It cannot be read.
        CorruptCheckpointError: See :func:`remember_sha256`.
    """
    try:
        return file_sha256(path)
    except OSError as error:
        raise CheckpointError(
            f"{path}: cannot be read: {error.strerror or error}",
            "Check the file, its permissions and the disk.",
        ) from None


def known_sha256(path: Path) -> str | None:
    """The SHA-256 of a file, or None where it would have to be read."""
    return cached_digest(path)


def remember_sha256(path: Path, before: Stamp, digest: str) -> None:
    """Store the digest of a file that was read, and compare it with the Hub's.

    Args:
        path: The file, or a link to it.
        before: Its stamp before it was read.
        digest: SHA-256, hexadecimal.

    Raises:
        CorruptCheckpointError: It is a blob of huggingface_hub's cache, named after another hash.
    """
    check_blob(path, digest)
    store_digest(path, before, digest)


def content_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, hexadecimal."""
    digest = hashlib.sha256()
    buffer = bytearray(_BLOCK)
    view = memoryview(buffer)
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            digest.update(view[:count])
    return digest.hexdigest()
