"""What an edit from data sets would train, hold and write, from headers alone."""

from __future__ import annotations

import os
import shutil
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Protocol

from weightsurgery.errors import OutputError
from weightsurgery.learning.rounds import Rounds
from weightsurgery.procedures.request import Request
from weightsurgery.surgery.edit import input_width
from weightsurgery.surgery.plan import Plan
from weightsurgery.vectors.lora_plan import AdapterPlan

__all__ = ["TrainingPlan", "check_space", "training_plan"]


@dataclass(frozen=True)
class TrainingPlan:
    """What an edit from data sets would train, hold and write, from headers alone.

    Attributes:
        edit: What it would write.
        vector: Where the vector would be saved.
        vector_bytes: Its size; at most, where it is truncated.
        finished: Whether that vector is there already, of the same settings and inputs.
        rounds: What would happen.
        examples: To forget or to learn, in all.
        keep_examples: To keep, in all.
        matrices: How many are trained.
        trained: How many numbers that is.
        weights: Bytes of the model in float32.
        training: Bytes of gradients, of the optimiser's moments and of copies.
        statistics: Bytes of activation statistics (float64, ``n²`` each) and of their eigenvectors
            (float32), at most: matrices with one input share them.
    """

    edit: Plan | AdapterPlan
    vector: str
    vector_bytes: int
    finished: bool
    rounds: Rounds
    examples: int
    keep_examples: int
    matrices: int
    trained: int
    weights: int
    training: int
    statistics: int

    def summary(self) -> dict[str, Any]:
        """Numbers and names, for ``--dry-run --json``."""
        own = {each.name: getattr(self, each.name) for each in fields(self)}
        return {**own, "rounds": asdict(self.rounds), "edit": self.edit.summary()}


def training_plan(
    request: Request, edit: Plan | AdapterPlan, vector: Path, finished: bool
) -> TrainingPlan:
    """What a request will take.

    Args:
        request: What was asked for.
        edit: The plan of writing the output.
        vector: Where the vector goes.
        finished: Whether it is there already.
    """
    entries = request.base.entries
    trained = sum(entries[name].numel for name in request.names)
    widths = [input_width(request.base, name) for name in request.names]
    kept = sum(len(each.examples) for each in request.sets.keep)
    return TrainingPlan(
        edit,
        str(vector),
        4 * trained,
        finished,
        request.search.rounds,
        len(request.sets.examples),
        kept,
        len(request.names),
        trained,
        weights=4 * sum(entry.numel for entry in entries.values()),
        # Gradients, two moments, the weights before and after, and the watch's best.
        training=4 * (6 if request.watching else 5) * trained,
        statistics=sum(12 * width**2 for width in widths),
    )


class Writes(Protocol):
    """A plan, as far as disks are concerned."""

    @property
    def edit(self) -> Plan | AdapterPlan:
        """What would be written."""

    @property
    def vector_bytes(self) -> int:
        """Size of the vector."""

    @property
    def finished(self) -> bool:
        """Whether that is there already."""


def check_space(plan: Writes, out: Path, vector: Path) -> None:
    """Refuse what the disks cannot hold.

    Raises:
        OutputError: Too little is free.
    """
    needed: dict[int, tuple[Path, int]] = {}
    wanted = [(out, plan.edit.write_bytes)]
    wanted += [] if plan.finished else [(vector, plan.vector_bytes)]
    for path, size in wanted:
        above = next(each for each in path.parents if each.exists())
        disk = os.stat(above).st_dev
        needed[disk] = above, size + needed.get(disk, (above, 0))[1]
    for above, size in needed.values():
        free = shutil.disk_usage(above).free
        if size > free:
            raise OutputError(
                f"{above}: {size / 1e6:,.1f} MB needed for the output and its vector,"
                f" {free / 1e6:,.1f} MB free",
                "Free some space, or write to another disk with -o and --vector.",
            )
