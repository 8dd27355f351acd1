"""What an edit from data sets would train, hold and write, from headers alone."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch

from weightsurgery.checkpoint.plain_files import need_space
from weightsurgery.surgery.plan import EditPlan
from weightsurgery.unlearning.shared_plan import SharedMemory
from weightsurgery.vectors.lora_files import AdapterPlan

__all__ = ["SearchPlan", "SystemPlan", "TrainingPlan", "apart", "check_space"]


def apart(device: torch.device, beside_model: int, by_processor: int) -> dict[str, int]:
    """``training`` and ``copies`` of a plan: on the processor, both are in one memory."""
    if device.type == "cpu":
        return {"training": beside_model + by_processor, "copies": 0}
    return {"training": beside_model, "copies": by_processor}


@dataclass(frozen=True, kw_only=True)
class TrainingPlan:
    """What an edit from data sets would train, hold and write, from headers alone.

    Attributes:
        edit: What it would write.
        vector: Where the vector would be saved.
        vector_bytes: Its size, at most.
        finished: Whether that vector is there already, of the same settings and inputs.
        settings: Of the method.
        examples: Number of examples to forget or to learn.
        keep_examples: Number of examples to keep.
        matrices: Number of selected matrices; a method may train fewer.
        trained: Number of trained parameters, at most.
        weights: Bytes of the model in float32, and of its halves where it is trained in them.
        training: Bytes of gradients, of the optimiser's moments and of copies, at most, where the
            model is.
        copies: Bytes that the processor holds for a model that is on a GPU, at most; 0 for one
            that is not.
        shared: What each process holds where several share the model; empty where none can.
    """

    edit: EditPlan | AdapterPlan
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
    copies: int = 0
    shared: tuple[SharedMemory, ...] = ()

    def summary(self) -> dict[str, Any]:
        """Numbers and names, for ``--dry-run --json``."""
        values = {attribute.name: getattr(self, attribute.name) for attribute in fields(self)}
        return {
            **values,
            "settings": dict(self.settings),
            "edit": self.edit.summary(),
            "shared": [asdict(each) for each in self.shared],
        }


@dataclass(frozen=True, kw_only=True)
class SearchPlan(TrainingPlan):
    """What ``ws project`` and ``ws learn`` would do with data sets.

    Attributes:
        statistics: Bytes of activation statistics (float64, ``n²`` per distinct input) as they
            are gathered and decomposed, at most; they are gone before the training begins.
        eigenvectors: Bytes of what stays of them (float32), where the model is; 0 by neighbours.
        activations: Bytes of activations and logits of one pass, estimated; 0 where the length of
            the texts decides.
        never_knew: Bytes of a model that says what is to be said; it is beside the statistics, and
            gone with them.
    """

    statistics: int = 0
    eigenvectors: int = 0
    activations: int = 0
    never_knew: int = 0

    @property
    def held(self) -> int:
        """Bytes that the training holds at once, on the device, in all."""
        training = self.training + self.eigenvectors + self.activations
        return self.weights + max(self.statistics + self.never_knew, training)

    def summary(self) -> dict[str, Any]:
        """Numbers and names, for ``--dry-run --json``."""
        return {**super().summary(), "held": self.held}


@dataclass(frozen=True, kw_only=True)
class SystemPlan(TrainingPlan):
    """What ``ws unlearn`` would do.

    Attributes:
        method: The system.
        source: The paper it comes from.
        steps: Of the training; None where epochs count.
        epochs: Of the training, where no steps are given.
        learning_rate: Of the training.
        batch_size: Of the training.
        lora_rank: Of the adapter that is trained, if one is.
        unseen_examples: Number of examples that the model never saw.
    """

    method: str
    source: str
    steps: int | None
    epochs: float
    learning_rate: float
    batch_size: int
    lora_rank: int | None
    unseen_examples: int


def check_space(plan: TrainingPlan, out: Path, vector: Path, beside: int = 0) -> None:
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
        above = next(parent for parent in path.parents if parent.exists())
        disk = os.stat(above).st_dev
        needed[disk] = above, size + needed.get(disk, (above, 0))[1]
    for above, size in needed.values():
        need_space(above, size, above, " for the output and its vector", "-o and --vector")
