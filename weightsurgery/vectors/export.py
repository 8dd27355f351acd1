"""Writing a low-rank change as a PEFT LoRA adapter: megabytes beside a base that stays as it is.

A matrix's change ``T ≈ U diag(S) Vᵀ`` becomes ``B = U √S`` and ``A = √S Vᵀ``, factors of equal
size; ``lora_alpha`` is the rank, so that peft adds ``B A`` as it is. Changes that are factors
already stay factors, and then no weight of the base is read but a few samples to know it by.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from weightsurgery.algebra.lowrank import RankRule
from weightsurgery.checkpoint.reader import Checkpoint
from weightsurgery.checkpoint.record import EditRecord
from weightsurgery.checkpoint.selection import LARGEST_SCALE, Selection
from weightsurgery.deferred import torch
from weightsurgery.errors import EditError
from weightsurgery.progress import Progress
from weightsurgery.vectors.deltas import SumDelta
from weightsurgery.vectors.finetuned import refuse_quantised
from weightsurgery.vectors.lineage import check_lineage
from weightsurgery.vectors.lora_content import Content, sort_tensors
from weightsurgery.vectors.lora_export import Inputs, check_dtype, write_adapter
from weightsurgery.vectors.lora_plan import AdapterPlan, plan_adapter
from weightsurgery.vectors.task_vector import TaskVector

__all__ = ["as_it_is", "export_adapter", "plan_export"]


def as_it_is(
    vector: TaskVector, chosen: Mapping[str, float], rule: RankRule | None, seed: int = 0
) -> Content:
    """A vector as the content of an adapter.

    Args:
        vector: The change, scaled as the adapter is to have it.
        chosen: The tensors that may change, with a factor for each.
        rule: How many factors to keep of each matrix; None for all there are.
        seed: Of the randomised SVD.

    Raises:
        EditError: A factor that is not finite, or beyond all sense.
    """
    for factor, term in vector.terms:
        if not abs(factor) <= LARGEST_SCALE:
            raise EditError(f"{term.label}: scale {factor}", "Give a finite number, up to 1e30.")

    def outline(name: str) -> SumDelta | None:
        return (chosen.get(name, 1.0) * vector).at(name)

    def change(name: str) -> tuple[SumDelta, Mapping[str, Any]] | None:
        delta = outline(name)
        return None if delta is None else (delta, {})

    return Content(vector.label, chosen, outline, change, rule, seed=seed)


def export_adapter(
    base: Checkpoint,
    vector: TaskVector,
    save_to: str | os.PathLike[str],
    *,
    selection: Selection | None = None,
    rule: RankRule | None = None,
    dtype: str = "bfloat16",
    overwrite: bool = False,
    allow_unrelated: bool = False,
    device: torch.device | str = "cpu",
    seed: int = 0,
    command: Sequence[str] = (),
    each: Callable[..., Iterable[Any]] = map,
    progress: Progress | None = None,
) -> EditRecord:
    """Write a change of a base as a LoRA adapter, which peft loads beside that base.

    Args:
        base: The base.
        vector: The change, scaled as the adapter is to have it.
        save_to: Directory for ``adapter_config.json`` and ``adapter_model.safetensors``.
        selection: Which tensors; by default all. Others are left out, and the record names them.
        rule: How many factors to keep of each matrix; by default all there are, and a dense
            change is refused.
        dtype: The factors are stored as ``bfloat16``, ``float16`` or ``float32``.
        overwrite: Replace an existing output of this tool.
        allow_unrelated: Write it although the change does not derive from the base.
        device: Where dense changes are decomposed.
        seed: Of the randomised SVD.
        command: The command line, for the record.
        each: Goes through the matrices: ``map``, or its like over threads, in their order.
        progress: Called as ``progress(stage, done, total)`` in bytes of the base's matrices.

    Returns:
        The record. ``tensors``: of each matrix its ``rank``, the ``norm`` of the whole change, the
        fractions of its energy that were ``kept`` and ``lost``, the size of what the dtype missed
        relative to what was kept (``rounding``), and the SVD's ``residual``. ``summary``: the same
        over all, and the names of tensors that are ``left_out`` or ``unchanged``.

    Raises:
        VectorError: A selected tensor's change is nothing that a LoRA holds.
        WeightSurgeryError: See :mod:`weightsurgery.errors`; nothing is written then.
    """
    check_dtype(dtype)
    selection = selection or Selection()
    content = as_it_is(vector, _chosen(base, selection), rule, seed)
    lineage = check_lineage(base, [change for _, change in vector.terms], allow_unrelated)
    found = sort_tensors(base, content)
    record = EditRecord("adapter", command=list(command))
    record.parameters = {
        "to": "peft",
        "rule": str(rule) if rule is not None else "all factors",
        "dtype": dtype,
        "selection": asdict(selection),
        "seed": seed,
    }
    record.lineage = [kin.to_dict() for kin in lineage]
    return write_adapter(
        base,
        content,
        found,
        save_to,
        record,
        _inputs(base, vector, found.reads_base),
        dtype=dtype,
        overwrite=overwrite,
        device=device,
        each=each,
        progress=progress,
    )


def plan_export(
    base: Checkpoint,
    vector: TaskVector,
    save_to: str | os.PathLike[str],
    *,
    selection: Selection | None = None,
    rule: RankRule | None = None,
    dtype: str = "bfloat16",
    overwrite: bool = False,
    workers: int = 1,
) -> AdapterPlan:
    """What :func:`export_adapter` with these arguments would read, write and hold.

    Args:
        base: See :func:`export_adapter`, as for the others.
        vector: The change.
        save_to: Where the adapter would go.
        selection: Which tensors.
        rule: How many factors to keep of each matrix.
        dtype: Of the factors.
        overwrite: Replace an existing output of this tool.
        workers: Matrices that are worked on at a time.

    Raises:
        WeightSurgeryError: What :func:`export_adapter` would raise before it factors anything, but
            for the check of lineage.
    """
    check_dtype(dtype)
    content = as_it_is(vector, _chosen(base, selection or Selection()), rule)
    found = sort_tensors(base, content)
    paths = [path for _, each in _inputs(base, vector, True).values() for path in each]
    return plan_adapter(
        "export", base, content, found, save_to, paths,
        vectors=[vector], dtype=dtype, overwrite=overwrite, workers=workers,
    )  # fmt: skip


def _chosen(base: Checkpoint, selection: Selection) -> dict[str, float]:
    refuse_quantised(base)
    return selection.resolve(base.entries)


def _inputs(base: Checkpoint, vector: TaskVector, reads_base: bool) -> Inputs:
    """What the adapter depends on."""
    source = {"kind": "checkpoint", "name": base.source.name, "revision": base.source.revision}
    paths = base.files_read()
    if not reads_base:
        paths = [path for path in paths if path.name == "config.json"]
    found: dict[str, Any] = {"base": (source, paths)}
    for number, (factor, change) in enumerate(vector.terms, 1):
        role = "vector" if len(vector.terms) == 1 else f"vector.{number}"
        described = {**change.provenance(), "factor": factor}
        found[role] = (described, described.pop("paths"))
    return found
