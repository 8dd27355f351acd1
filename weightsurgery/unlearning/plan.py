"""What an edit from data sets would train, hold and write, from headers alone."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Protocol

from weightsurgery.checkpoint.plain_files import need_space
from weightsurgery.checkpoint.stacks import input_width
from weightsurgery.surgery.plan import Plan
from weightsurgery.unlearning.job import Job
from weightsurgery.unlearning.search import Search
from weightsurgery.vectors.lora_files import AdapterPlan

# Texts of a pass, their usual length in tokens, and the places of each that count.
PASS, LENGTH, PLACES = 16, 40, 14

__all__ = ["Planned", "TrainingPlan", "check_space", "training_plan"]


@dataclass(frozen=True)
class TrainingPlan:
    """What an edit from data sets would train, hold and write, from headers alone.

    Attributes:
        edit: What it would write.
        vector: Where the vector would be saved.
        vector_bytes: Its size; at most, where it is truncated.
        finished: Whether that vector is there already, of the same settings and inputs.
        settings: What would happen, as the record would say it.
        examples: To forget or to learn, in all.
        keep_examples: To keep, in all.
        matrices: How many are trained.
        trained: How many numbers that is.
        weights: Bytes of the model in float32.
        training: Bytes of gradients, of the optimiser's moments and of copies.
        statistics: Bytes of activation statistics (float64, ``n²`` each) and of their eigenvectors
            (float32), at most: matrices with one input share them. None by neighbours.
        activations: Bytes of activations and logits of one pass, estimated; 0 where the length of
            the texts decides.
    """

    edit: Plan | AdapterPlan
    vector: str
    vector_bytes: int
    finished: bool
    settings: Mapping[str, Any]
    examples: int
    keep_examples: int
    matrices: int
    trained: int
    weights: int
    training: int
    statistics: int
    activations: int = 0

    @property
    def held(self) -> int:
        """Bytes that the training holds at once, on the device, in all."""
        return self.weights + self.training + self.statistics + self.activations

    def summary(self) -> dict[str, Any]:
        """Numbers and names, for ``--dry-run --json``."""
        own = {each.name: getattr(self, each.name) for each in fields(self)}
        return {
            **own,
            "settings": dict(self.settings),
            "held": self.held,
            "edit": self.edit.summary(),
        }


def training_plan(
    job: Job, search: Search, edit: Plan | AdapterPlan, vector: Path, finished: bool
) -> TrainingPlan:
    """What an edit from data sets will take.

    Args:
        job: What was asked for.
        search: How the change is found.
        edit: The plan of writing the output.
        vector: Where the vector goes.
        finished: Whether it is there already.
    """
    entries = job.base.entries
    shapes = [entries[name].shape for name in job.names]
    trained = sum(rows * columns for rows, columns in shapes)
    settings = {"edit": search.edit, **search.described()}
    common: dict[str, Any] = {
        "examples": len(job.sets.examples),
        "keep_examples": sum(len(each.examples) for each in job.sets.keep),
        "matrices": len(job.names),
    }
    numel = sum(entry.numel for entry in entries.values())
    if search.neighbours is not None:
        rank = search.neighbours.rank
        factors = sum(min(rank, *shape) * sum(shape) for shape in shapes)
        return TrainingPlan(
            edit,
            str(vector),
            4 * factors,
            finished,
            settings,
            **common,
            trained=factors,
            weights=4 * numel,
            # Factors, gradients, two moments, and the copy of a look.
            training=4 * 5 * factors,
            statistics=0,
            activations=_activations(job, shapes),
        )
    return TrainingPlan(
        edit,
        str(vector),
        4 * trained,
        finished,
        settings,
        **common,
        trained=trained,
        weights=4 * numel,
        # Gradients, two moments, the weights before and after, and the watch's best.
        training=4 * (6 if job.sets.watching else 5) * trained,
        statistics=sum(12 * input_width(job.base, name) ** 2 for name in job.names),
    )


def _activations(job: Job, shapes: Sequence[tuple[int, ...]]) -> int:
    """What a backward pass over texts of usual length finds, float32.

    Each linear layer holds what it is given and what it says, and the norms, rotations and gates
    between them about as much again; logits count three times, with their softmax and gradient.
    """
    tokens, places = PASS * LENGTH, PASS * PLACES
    config = job.base.config
    vocabulary = int(config.get("text_config", config).get("vocab_size", 0))
    layers = sum(sum(shape) for shape in shapes)
    return 4 * (tokens * int(1.5 * layers) + 3 * places * vocabulary)


class Planned(Protocol):
    """A plan of finding a vector and writing an edit, as far as disks are concerned."""

    @property
    def edit(self) -> Plan | AdapterPlan:
        """What would be written."""

    @property
    def vector_bytes(self) -> int:
        """Size of the vector."""

    @property
    def finished(self) -> bool:
        """Whether that is there already."""

    @property
    def trained(self) -> int:
        """How many numbers are trained."""

    def summary(self) -> dict[str, Any]:
        """Numbers and names, for ``--dry-run --json``."""


def check_space(plan: Planned, out: Path, vector: Path, beside: int = 0) -> None:
    """Refuse what the disks cannot hold.

    Args:
        plan: Of the vector and the output.
        out: Where the output goes.
        vector: Where the vector goes.
        beside: Bytes that the training will keep there meanwhile.

    Raises:
        OutputError: Too little is free.
    """
    needed: dict[int, tuple[Path, int]] = {}
    wanted = [(out, plan.edit.write_bytes)]
    wanted += [] if plan.finished else [(vector, plan.vector_bytes + beside)]
    for path, size in wanted:
        above = next(each for each in path.parents if each.exists())
        disk = os.stat(above).st_dev
        needed[disk] = above, size + needed.get(disk, (above, 0))[1]
    for above, size in needed.values():
        need_space(above, size, above, " for the output and its vector", "-o and --vector")
