"""What ``ws unlearn`` would train, hold and write, from headers alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from weightsurgery.procedures.system_request import SystemRequest
from weightsurgery.surgery.plan import Plan
from weightsurgery.vectors.lora_files import AdapterPlan

__all__ = ["SystemPlan"]


@dataclass(frozen=True)
class SystemPlan:
    """What ``ws unlearn`` would train, hold and write, from headers alone.

    Attributes:
        edit: What it would write.
        method: The system.
        source: Where that comes from.
        settings: All of its settings.
        steps: Of the training; None where epochs count.
        epochs: Of the training, where no steps are given.
        learning_rate: Of the training.
        batch_size: Of the training.
        lora_rank: Of the adapter that is trained, if one is.
        vector: Where the vector would be saved.
        vector_bytes: Its size, at most.
        finished: Whether that vector is there already, of the same settings and inputs.
        examples: To forget, in all.
        keep_examples: To keep, in all.
        unseen_examples: That the model never saw, in all.
        matrices: How many are selected; a method may train fewer.
        trained: How many numbers are trained, at most.
        weights: Bytes of the model in float32.
        training: Bytes of gradients, moments and copies, at most.
    """

    edit: Plan | AdapterPlan
    method: str
    source: str
    settings: Mapping[str, Any]
    steps: int | None
    epochs: float
    learning_rate: float
    batch_size: int
    lora_rank: int | None
    vector: str
    vector_bytes: int
    finished: bool
    examples: int
    keep_examples: int
    unseen_examples: int
    matrices: int
    trained: int
    weights: int
    training: int

    @classmethod
    def of(
        cls, request: SystemRequest, edit: Plan | AdapterPlan, vector: Path, finished: bool
    ) -> SystemPlan:
        """What a request will take.

        Args:
            request: What was asked for.
            edit: The plan of writing the output.
            vector: Where the vector goes.
            finished: Whether it is there already.
        """
        entries, rank, how = request.base.entries, request.rank, request.training
        sizes = [entries[name].numel for name in request.names]
        if rank is not None:
            sizes = [rank * sum(entries[name].shape) for name in request.names]
        return cls(
            edit,
            request.how.method,
            request.row.source,
            request.settings,
            how.steps,
            how.epochs,
            how.learning_rate,
            how.batch_size,
            rank,
            str(vector),
            4 * sum(sizes),
            finished,
            len(request.sets.examples),
            sum(len(each.examples) for each in request.sets.keep),
            sum(len(each.examples) for each in request.unseen),
            len(request.names),
            sum(sizes),
            weights=4 * sum(entry.numel for entry in entries.values()),
            # Gradients, two moments, the values before and after, and models that stand still.
            training=4 * (5 + request.row.models) * sum(sizes),
        )

    def summary(self) -> dict[str, Any]:
        """Numbers and names, for ``--dry-run --json``."""
        own = {each.name: getattr(self, each.name) for each in fields(self)}
        return {**own, "edit": self.edit.summary()}
