"""A search for the change that data sets ask for, as a method of the road."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from typing_extensions import override

from weightsurgery.checkpoint.selection import Selection
from weightsurgery.checkpoint.stacks import input_width
from weightsurgery.learning.directions import sums_bytes
from weightsurgery.learning.models import halves_sooner
from weightsurgery.surgery.plan import EditPlan
from weightsurgery.unlearning.job import Job
from weightsurgery.unlearning.method import OnModel
from weightsurgery.unlearning.plan import SearchPlan
from weightsurgery.unlearning.search import Search
from weightsurgery.vectors.lora_files import AdapterPlan

__all__ = ["BySearch"]

# Texts of a pass, their usual length in tokens, and the places of each that count.
_PASS, _LENGTH, _PLACES = 16, 40, 14


@dataclass(frozen=True)
class BySearch(OnModel):
    """Forget or learn by a search.

    Attributes:
        search: Its settings, which say too what may be harmed.
    """

    search: Search

    @property
    @override
    def seed(self) -> int:  # type: ignore[override]
        return self.search.seed

    @property
    @override
    def budget(self) -> float:  # type: ignore[override]
        return self.search.budget

    @property
    @override
    def allow_harm(self) -> bool:  # type: ignore[override]
        return self.search.allow_harm

    @override
    def plan(
        self, job: Job, edit: EditPlan | AdapterPlan, vector: Path, finished: bool
    ) -> SearchPlan:
        search, entries = self.search, job.base.entries
        shapes = [entries[name].shape for name in job.names]
        if search.neighbours is None:
            trained, halves = sum(rows * columns for rows, columns in shapes), 0
            # Gradients, two moments, the weights before and after, and the watch's best.
            copies = 6 if job.sets.watching else 5
            statistics = sum(12 * input_width(job.base, name) ** 2 for name in job.names)
            activations = 0
        else:
            rank = search.neighbours.rank
            trained = sum(min(rank, *shape) * sum(shape) for shape in shapes)
            copies = 5  # factors, gradients, two moments, and the copy of a look
            statistics = sums_bytes([input_width(job.base, name) for name in job.names])
            activations = _activations(job)
            halves = _halves(job) if halves_sooner(job.device) else 0
        return SearchPlan(
            edit=edit,
            vector=str(vector),
            vector_bytes=4 * trained,
            finished=finished,
            settings={"edit": search.edit, **search.described()},
            examples=len(job.sets.examples),
            keep_examples=sum(len(each.examples) for each in job.sets.keep),
            matrices=len(job.names),
            trained=trained,
            weights=4 * sum(entry.numel for entry in entries.values()) + halves,
            training=4 * copies * trained,
            statistics=statistics,
            activations=activations,
        )


def _halves(job: Job) -> int:
    """Bytes of the linear layers' weights in bfloat16, which stand beside the float32 ones."""
    return 2 * sum(
        job.base.entry(name).numel for name in Selection("all-linear").resolve(job.base.entries)
    )


def _activations(job: Job) -> int:
    """What a backward pass over texts of usual length finds, float32.

    Each linear layer that is trained holds what it is given; what any of them says is held by what
    follows, and the norms, rotations and gates between them hold about half as much again. Logits
    count three times, with their softmax and gradient.
    """
    tokens, places = _PASS * _LENGTH, _PASS * _PLACES
    config = job.base.config
    vocabulary = int(config.get("text_config", config).get("vocab_size", 0))
    given = sum(input_width(job.base, name) for name in job.names)
    said = 0
    for name in Selection("all-linear").resolve(job.base.entries):
        if len(job.base.entry(name).shape) > 1:
            said += sum(job.base.entry(name).shape[-2:]) - input_width(job.base, name)
    layers = given + said
    return 4 * (tokens * int(1.5 * layers) + 3 * places * vocabulary)
