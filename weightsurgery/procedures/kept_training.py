"""A vector found by training, saved all or nothing; a training that was killed goes on."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

from weightsurgery.checkpoint.record import EditRecord, verify
from weightsurgery.checkpoint.staging import Staging, output_errors
from weightsurgery.errors import HarmError
from weightsurgery.vectors.saved import VectorWriter

__all__ = ["find_and_save", "workspace_of"]

Found = TypeVar("Found")


class Identified(Protocol):
    """A request, as far as what it leaves on disk is concerned."""

    @property
    def digest(self) -> str:
        """All that decides the vector, as SHA-256."""

    @property
    def read_places(self) -> Sequence[Path]:
        """What is read, which no output may touch."""


def workspace_of(request: Identified, place: Path) -> Path:
    """Where the training leaves what it takes to go on after a kill, beside the vector."""
    root = Staging.beside(Path(os.path.realpath(place)))
    return root / f"training-{request.digest[:16]}"


def find_and_save(
    request: Identified,
    place: Path,
    overwrite: bool,
    find: Callable[[Path], Found],
    write: Callable[[VectorWriter, Found], EditRecord],
) -> EditRecord:
    """Trains, or goes on with a training that was killed, and saves the vector.

    Args:
        request: What was asked for.
        place: Where the vector goes.
        overwrite: Replace what is there.
        find: Trains, with a workspace for what a killed run should find.
        write: Saves what was found.

    Returns:
        The vector's record.

    Raises:
        OutputError: The vector, or the state of the training, cannot be written.
        WeightSurgeryError: What the two raise. What was trained stays where nothing is wrong with
            it: after an interrupt, or where it harms and may yet be allowed to.
    """
    staging = Staging(place, request.digest, request.read_places, overwrite)
    if staging.complete:
        return verify(place)
    workspace = workspace_of(request, place)
    try:
        with output_errors(staging.target):
            for stale in set(staging.root.glob("training-*")) - {workspace}:
                shutil.rmtree(stale)
        found = find(workspace)
    except HarmError:
        staging.leave()
        raise
    except BaseException as error:
        if workspace.is_dir():
            staging.give_up(error)
        else:
            staging.close()  # nothing that a later run could go on from
        raise
    with VectorWriter(place, [], staging=staging) as writer:
        return write(writer, found)
