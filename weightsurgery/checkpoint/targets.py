"""Where an output may be written: what is read, or is not ours, is never replaced."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from weightsurgery.errors import OutputError, WeightSurgeryError

__all__ = ["beside", "check_target", "refuse_address"]


def beside(target: Path) -> Path:
    """Where an output of this name grows."""
    return target.parent / f".{target.name}.ws-partial"


def check_target(target: Path, inputs: Iterable[Path], overwrite: bool) -> None:
    """Refuse a target whose replacement would lose data.

    Args:
        target: Directory to be written, resolved.
        inputs: Directories that are read.
        overwrite: Whether the user asked to replace an existing output.

    Raises:
        OutputError: The target is, holds, or lies in an input; or it exists, and ``overwrite``
            is not set, or it or a file in it was not written by this tool; or it is an address.
    """
    refuse_address(target)
    for given in inputs:
        source = given.resolve()
        if source == target or source in target.parents:
            raise OutputError(
                f"{target}: is or lies in the input {source}",
                "Write to a directory of its own with -o.",
            )
        for path in _read_paths(source):
            if target in path.parents or beside(target) in path.parents:
                raise OutputError(
                    f"{target}: would replace the input {path}",
                    "Write to a directory of its own with -o.",
                )
    above = next(path for path in target.parents if path.exists())
    if not above.is_dir():
        raise OutputError(f"{target}: {above} is no directory", "Write somewhere else with -o.")
    if not target.exists():
        return
    if not target.is_dir():
        raise OutputError(f"{target}: exists and is no directory", "Choose another name.")
    if not any(target.iterdir()):
        return
    if not overwrite:
        raise OutputError(f"{target}: exists", "Choose another name, or pass --overwrite.")
    _check_ours(target)


def refuse_address(target: Path) -> None:
    """Refuse an object store's address where a directory is written.

    Raises:
        OutputError: It is one.
    """
    if "s3:" in target.parts:  # s3://bucket/prefix, taken for a path
        raise OutputError(
            f"{target}: no directory, and of what ws writes only edited checkpoints go to S3",
            "Write to a directory with -o, and copy it there.",
        )


def _check_ours(target: Path) -> None:
    """Refuse to replace what this tool did not write.

    Raises:
        OutputError: There is no record that can be read, or a file that it does not know.
    """
    from weightsurgery.checkpoint.record import read_record, unrecorded
    from weightsurgery.checkpoint.staging import RECORD_NAME

    remedy = "Remove it yourself, or choose another name; --overwrite replaces ws outputs only."
    if not (target / RECORD_NAME).is_file():
        raise OutputError(f"{target}: holds no {RECORD_NAME}, so it was not written by ws", remedy)
    try:
        foreign = unrecorded(target, read_record(target))
    except WeightSurgeryError as error:
        why = f"{target}: was not written by ws, as far as can be told ({error.what})"
        raise OutputError(why, remedy) from None
    if foreign:
        more = f" and {len(foreign) - 1} more" if foreign[1:] else ""
        raise OutputError(
            f"{target}: holds {foreign[0]}{more}, which ws did not write there",
            "Move it away first, or choose another name; --overwrite replaces what ws wrote.",
        )


def _read_paths(source: Path) -> Iterator[Path]:
    """The paths that are read: the directory, its files, and the targets of links among them."""
    yield source
    if source.is_dir():
        yield from (path.resolve() for path in source.iterdir())
