"""An edit written as a LoRA adapter: base and adapter together are what the edit would write.

A plain edit passes its vector on, scaled; a discriminating one computes the changes of matrices as
for a checkpoint, and the adapter holds their factors.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

from weightsurgery.algebra.activations import work_bytes
from weightsurgery.algebra.lowrank import RankRule
from weightsurgery.checkpoint.reader import Checkpoint
from weightsurgery.checkpoint.record import EditRecord
from weightsurgery.checkpoint.selection import Selection
from weightsurgery.checkpoint.stacks import input_width, matrix_count
from weightsurgery.errors import EditError
from weightsurgery.surgery.as_checkpoint import parent_of
from weightsurgery.surgery.edit import Applied, Edit, Prepared, Run, task_of
from weightsurgery.surgery.notices import held_back_notices, input_notices, size_notices
from weightsurgery.surgery.plan import check_matrices, worker_count
from weightsurgery.surgery.provenance import files, inputs_of_edit, lineage_of_edit
from weightsurgery.surgery.workers import device_for, in_order, torch_threads
from weightsurgery.vectors.deltas import FactorDelta, SumDelta
from weightsurgery.vectors.export import check_dtype, content_of, write_adapter
from weightsurgery.vectors.finetuned import refuse_quantised
from weightsurgery.vectors.lora import Content, sort_tensors
from weightsurgery.vectors.lora_files import AdapterPlan, plan_adapter

__all__ = ["AdapterStorage"]

# Of a task's norm: a factor below this is the rounding error of discrimination.
_ROUNDING = 1e-6
# Of a task's energy: less than that counts as nothing, and the record's figure may round it to 0.
_LEAST_SURVIVED = 1e-10


@dataclass(frozen=True)
class AdapterStorage:
    """How an adapter is stored.

    Attributes:
        dtype: Of the factors: ``bfloat16``, ``float16`` or ``float32``.
        rule: Number of factors per matrix of a plain edit; None for all, and then a dense change
            is refused. Discriminating edits have their own rank.
        seed: Of the randomised SVD that truncates a dense change.
    """

    dtype: str = "bfloat16"
    rule: RankRule | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        check_dtype(self.dtype)

    def plan(
        self, edit: Edit, base: Checkpoint, out: str | os.PathLike[str], run: Run
    ) -> AdapterPlan:
        """What writing the adapter reads, writes and holds.

        Raises:
            VectorError: A selected tensor's change is nothing that a LoRA holds.
        """
        content = _content(edit, base, run.selection, self, "cpu")
        sorted_tensors = sort_tensors(base, content)
        widths = {layer.name: input_width(base, layer.name) for layer in sorted_tensors.layers}
        grams = len(edit.statistics())
        return plan_adapter(
            edit.name,
            base,
            content,
            sorted_tensors,
            out,
            files(inputs_of_edit(edit, base)),
            vectors=list(edit.vectors().values()),
            dtype=self.dtype,
            overwrite=run.overwrite,
            workers=_workers(edit, run.workers),
            beside={n: (4 * grams * w**2, work_bytes(w)) for n, w in widths.items()}
            if grams
            else None,
            most=edit.most_factors(),
        )

    def write(self, edit: Edit, base: Checkpoint, out: str | os.PathLike[str], run: Run) -> Applied:
        """Write the adapter that makes the edited checkpoint of the base, all or nothing.

        The record is of kind ``adapter``; it holds the edit's facts of all matrices and those of
        :func:`weightsurgery.vectors.export.export_adapter`.

        Raises:
            VectorError: A selected tensor's change is nothing that a LoRA holds.
            WeightSurgeryError: See :mod:`weightsurgery.errors`; nothing is left of the output then.
        """
        if run.cluster is not None:
            raise EditError(
                "an adapter on a cluster: it is worked out on one machine",
                "Leave out --cluster, or write a checkpoint.",
            )
        count = _workers(edit, run.workers)
        torch_device = device_for(run.device, decomposes=edit.factors or self.rule is not None)
        content = _content(edit, base, run.selection, self, torch_device)
        inputs, lineage = inputs_of_edit(edit, base), lineage_of_edit(edit, base, run)
        sorted_tensors = sort_tensors(base, content)
        record = EditRecord("adapter", command=list(run.command), parent=parent_of(base))
        record.parameters = {
            "edit": edit.name,
            **edit.parameters(),
            "to": "peft",
            "rule": "all factors" if self.rule is None else str(self.rule),
            "dtype": self.dtype,
            "selection": asdict(run.selection),
            "device": torch_device.split(":")[0],
            "allow_unrelated": run.allow_unrelated,
            **({} if edit.factors else {"seed": self.seed}),
        }
        record.lineage = lineage
        # One thread per operation: its result would depend on their number.
        with torch_threads(1):
            record = write_adapter(
                base,
                content,
                sorted_tensors,
                out,
                record,
                {role: (source.described, source.paths) for role, source in inputs.items()},
                dtype=self.dtype,
                overwrite=run.overwrite,
                device=torch_device,
                each=partial(in_order, workers=count),
                stage=edit.name,
                relative=True,
                progress=run.progress,
            )
        return Applied(record, tuple(_notices(record)))


def _workers(edit: Edit, workers: int | None) -> int:
    """As for a checkpoint, but that a plain edit's changes are decomposed here too."""
    count = worker_count(edit, workers)
    return count if workers is not None else min(count, 2)


def _content(
    edit: Edit, base: Checkpoint, selection: Selection, storage: AdapterStorage, device: str
) -> Content:
    """An edit as the content of an adapter."""
    refuse_quantised(base)
    chosen = selection.resolve(base.entries)
    if not edit.factors:
        (vector,) = edit.vectors().values()
        scaled = content_of(edit.sign * edit.scale * vector, chosen, storage.rule, storage.seed)
        return replace(scaled, label=vector.label)
    if storage.rule is not None:
        raise EditError(
            f"{edit.name}: a rank of the adapter beside that of the edit",
            "Give the edit's rank alone: what is left of it is what the adapter holds.",
        )
    check_matrices(base, chosen)
    matrices = {name: factor for name, factor in chosen.items() if matrix_count(base.entry(name))}
    edit.check_statistics(base, matrices)

    task = task_of(edit)

    def change(name: str) -> tuple[SumDelta, Mapping[str, Any]] | None:
        prepared = edit.prepare(base, name, device)
        if prepared is None:
            return None
        delta = _significant(prepared)
        if not delta.left.shape[1]:
            return None
        scale = edit.sign * edit.scale * matrices[name]
        return SumDelta(((scale, delta),), name, task.label), prepared.facts

    return Content(task.label, matrices, task.at, change, factored=True)


def _significant(prepared: Prepared) -> FactorDelta:
    """A discriminated task, without factors that are rounding errors."""
    delta = prepared.delta
    assert isinstance(delta, FactorDelta)
    singular = delta.left.norm(dim=0)
    task_norm = float(singular.norm()) / math.sqrt(max(prepared.facts["survived"], _LEAST_SURVIVED))
    significant = singular > _ROUNDING * task_norm
    return FactorDelta(delta.left[:, significant], delta.right[:, significant])


def _notices(record: EditRecord) -> list[str]:
    notices = []
    lost = record.summary["lost"]
    if lost > 1e-6:
        notices.append(
            f"Truncation lost {lost:.2%} of the change's energy: the adapter is not all of the edit"
            " (a larger --rank keeps more)."
        )
    return input_notices(record) + notices + size_notices(record) + held_back_notices(record)
