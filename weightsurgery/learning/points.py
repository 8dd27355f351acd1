"""Points of a training from which a killed run goes on: flushed and whole, or not used.

transformers' Trainer writes a point file by file and flushes none of them; after a power failure
any of them may be empty. So a point counts once a list of its files by SHA-256 stands in it, which
is written when they are on disk, and only then is the point before it removed.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from weightsurgery.algebra.devices import ran_out
from weightsurgery.checkpoint.digests import content_sha256
from weightsurgery.checkpoint.plain_files import sync_directory, sync_file, write_whole
from weightsurgery.errors import OutputError

__all__ = ["last_point", "save_tensors", "seal", "unseal", "writing"]

_LIST = "whole.json"


@contextmanager
def writing(where: str | os.PathLike[str]) -> Iterator[None]:
    """Turn what libraries raise when a file cannot be written into an error of ours.

    Raises:
        OutputError: With the first line of the library's message.
    """
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        if ran_out(error):
            raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise OutputError(
            f"{where}: the state of the training cannot be written: {reason}",
            "Free some space, then run the same command again: it goes on from what was kept;"
            " or write to another disk with -o.",
        ) from error


def save_tensors(tensors: dict[str, Tensor], file: Path, metadata: dict[str, str]) -> None:
    """Write a safetensors file that is whole under its name, and flushed, or not there.

    Raises:
        OSError: It cannot be written.
        SafetensorError: The same, as the library says it.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".partial")
    partial.unlink(missing_ok=True)  # whatever it is: a link would be followed
    save_file(tensors, partial, metadata)
    sync_file(partial)
    os.replace(partial, file)
    sync_directory(file.parent)


def unseal(point: Path) -> None:
    """Say that a point is about to be written."""
    (point / _LIST).unlink(missing_ok=True)


def seal(point: Path, best: Path | None) -> None:
    """Flush a point and say that it is whole; then remove the others.

    Args:
        point: Its folder.
        best: A point that stays too.
    """
    digests = {}
    for path in sorted(point.rglob("*")):
        if path.is_dir():
            sync_directory(path)
        elif path.name != _LIST:
            sync_file(path)
            digests[str(path.relative_to(point))] = content_sha256(path)
    write_whole(point / _LIST, json.dumps(digests, indent=1))
    sync_directory(point.parent)
    for other in point.parent.glob("checkpoint-*"):
        if other not in (point, best):
            shutil.rmtree(other, ignore_errors=True)


def _whole(point: Path) -> bool:
    try:
        digests = json.loads((point / _LIST).read_text(encoding="utf-8"))
        files = {str(p.relative_to(point)): p for p in point.rglob("*") if not p.is_dir()}
        del files[_LIST]
        return bool(digests == {name: content_sha256(path) for name, path in files.items()})
    except (OSError, ValueError, KeyError):
        return False


def last_point(directory: Path) -> Path | None:
    """The last point that is as it was written, byte for byte."""
    points = [
        (int(number), path)
        for path in directory.glob("checkpoint-*")
        if (number := path.name.removeprefix("checkpoint-")).isdecimal()
    ]
    return next((path for _, path in sorted(points, reverse=True) if _whole(path)), None)
