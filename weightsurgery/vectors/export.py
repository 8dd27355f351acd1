"""Writing a low-rank change as a PEFT LoRA adapter: megabytes beside an unchanged base.

A matrix's change ``T ≈ U diag(S) Vᵀ`` becomes ``B = U √S`` and ``A = √S Vᵀ``, factors of equal
size; ``lora_alpha`` is the rank, so that peft adds ``B A`` as it is. Changes that are factors
already stay factors, and then no weight of the base is read but a few samples to recognise it by.

The change, be it a vector or an edit that computes its change first, is described as
:class:`~weightsurgery.vectors.lora.Content`; the rest is the same for all.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from weightsurgery.algebra.lowrank import RankRule
from weightsurgery.algebra.svd import Truncation
from weightsurgery.checkpoint.digests import input_sha256
from weightsurgery.checkpoint.reader import Checkpoint
from weightsurgery.checkpoint.record import EditRecord, identity_of, read_record
from weightsurgery.checkpoint.selection import LARGEST_SCALE, Selection
from weightsurgery.checkpoint.staging import Staging
from weightsurgery.deferred import torch
from weightsurgery.errors import EditError
from weightsurgery.progress import Progress
from weightsurgery.suggestions import one_of
from weightsurgery.vectors.deltas import SumDelta
from weightsurgery.vectors.finetuned import refuse_quantised
from weightsurgery.vectors.lineage import check_lineage
from weightsurgery.vectors.lora import Content, LoraLayer, Sorted, factored, sort_tensors
from weightsurgery.vectors.lora_files import (
    DTYPES,
    AdapterPlan,
    LoraWriter,
    adapter_config,
    halves,
    plan_adapter,
)
from weightsurgery.vectors.task_vector import TaskVector

__all__ = ["Inputs", "check_dtype", "content_of", "export_adapter", "plan_export", "write_adapter"]


def content_of(
    vector: TaskVector, chosen: Mapping[str, float], rule: RankRule | None, seed: int = 0
) -> Content:
    """A vector as the content of an adapter.

    Args:
        vector: The change, scaled as the adapter is to have it.
        chosen: The tensors that may change, with a factor for each.
        rule: How many factors to keep of each matrix; None for all there are.
        seed: Of the randomised SVD.

    Raises:
        EditError: A factor that is not finite, or too large.
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
        each: Maps over the matrices: ``map``, or an ordered map over threads.
        progress: Called as ``progress(stage, done, total)`` in bytes of the base's matrices.

    Returns:
        The record. ``tensors``: of each matrix its ``rank``, the ``norm`` of the whole change, the
        fractions of its energy that were ``kept`` and ``lost``, the norm of the dtype's rounding
        error relative to what was kept (``rounding``), and the SVD's ``residual``. ``summary``: the
        same over all, and the names of tensors that are ``left_out`` or ``unchanged``.

    Raises:
        VectorError: A LoRA cannot hold a selected tensor's change.
        WeightSurgeryError: See :mod:`weightsurgery.errors`; nothing is written then.
    """
    check_dtype(dtype)
    selection = selection or Selection()
    content = content_of(vector, _chosen(base, selection), rule, seed)
    lineage = check_lineage(base, [change for _, change in vector.terms], allow_unrelated)
    sorted_tensors = sort_tensors(base, content)
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
        sorted_tensors,
        save_to,
        record,
        _inputs(base, vector, sorted_tensors.reads_base),
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
    """The bytes that :func:`export_adapter` with these arguments would read, write and hold.

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
    content = content_of(vector, _chosen(base, selection or Selection()), rule)
    sorted_tensors = sort_tensors(base, content)
    paths = [path for _, files in _inputs(base, vector, True).values() for path in files]
    return plan_adapter(
        "export", base, content, sorted_tensors, save_to, paths,
        vectors=[vector], dtype=dtype, overwrite=overwrite, workers=workers,
    )  # fmt: skip


def _chosen(base: Checkpoint, selection: Selection) -> dict[str, float]:
    refuse_quantised(base)
    return selection.resolve(base.entries)


def _inputs(base: Checkpoint, vector: TaskVector, reads_base: bool) -> Inputs:
    """The files that the adapter depends on, with their descriptions, by role."""
    source = {"kind": "checkpoint", "name": base.source.name, "revision": base.source.revision}
    paths = base.files_read()
    if not reads_base:
        paths = [path for path in paths if path.name == "config.json"]
    inputs: dict[str, Any] = {"base": (source, paths)}
    for number, (factor, change) in enumerate(vector.terms, 1):
        role = "vector" if len(vector.terms) == 1 else f"vector.{number}"
        described = {**change.provenance(), "factor": factor}
        inputs[role] = (described, described.pop("paths"))
    return inputs


# By role: how an input is described, and its files.
Inputs = Mapping[str, tuple[Mapping[str, Any], Sequence[Path]]]


def check_dtype(dtype: str) -> None:
    """Check the dtype of an adapter's factors.

    Raises:
        EditError: It is none of ``bfloat16``, ``float16`` and ``float32``.
    """
    if dtype not in DTYPES:
        raise EditError(f"dtype {dtype!r} for factors", one_of(dtype, DTYPES))


def write_adapter(
    base: Checkpoint,
    content: Content,
    sorted_tensors: Sorted,
    save_to: str | os.PathLike[str],
    record: EditRecord,
    inputs: Inputs,
    *,
    dtype: str,
    overwrite: bool = False,
    device: torch.device | str = "cpu",
    each: Callable[..., Iterable[Any]] = map,
    stage: str = "export",
    relative: bool = False,
    progress: Progress | None = None,
) -> EditRecord:
    """Factor the sorted changes and write them, all or nothing.

    Args:
        base: The base.
        content: The change.
        sorted_tensors: Its tensors, sorted by :func:`~weightsurgery.vectors.lora.sort_tensors`.
        save_to: Directory to write.
        record: Of the adapter; inputs' hashes, tensors, summary and files are added here.
        inputs: The files that the change is computed from.
        dtype: Of the stored factors; see :func:`check_dtype`.
        overwrite: Replace an existing output of this tool.
        device: Where dense changes are decomposed.
        each: Maps over the matrices: ``map``, or an ordered map over threads.
        stage: Name of the stage for progress.
        relative: Whether to read the base's matrices, and record how much of them changes.
        progress: Called as ``progress(stage, done, total)`` in bytes of the base's matrices.

    Returns:
        The record, complete.

    Raises:
        EditError: Nothing changes.
        NonFiniteError: A change holds NaN or infinity, or its factors are beyond the dtype.
        OutputError: The output may not or cannot be written.
    """
    folders = sorted({base.path, *(path.parent for _, paths in inputs.values() for path in paths)})
    weights: dict[str, float] = {}

    def work(layer: LoraLayer) -> tuple[torch.Tensor, torch.Tensor, dict[str, Any]] | None:
        result = factored(base, content, layer, device)
        if result is None:
            return None
        truncation, facts = result
        a, b, missed = halves(layer.name, truncation.factors, dtype)
        if relative:
            weights[layer.name] = _energy(base, layer.name)
        return a, b, {**facts, **_facts(truncation, missed)}

    # Devices round differently: one does not go on with what another left.
    identity = identity_of(inputs, parameters=record.parameters, dtype=dtype, relative=relative,
                           device=str(device).split(":")[0])  # fmt: skip
    staging = Staging(Path(save_to), identity, folders, overwrite)
    if staging.complete:  # of a run that was killed thereafter
        return read_record(staging.target)
    with LoraWriter(staging, dtype) as writer:
        tensors: dict[str, dict[str, Any]] = {}
        layers = sorted_tensors.layers
        done, total = 0, sum(base.entry(layer.name).nbytes for layer in layers)
        for layer, result in zip(layers, each(work, layers), strict=True):
            if result is None:
                sorted_tensors.unchanged.append(layer.name)
            else:
                a, b, tensors[layer.name] = result
                writer.add(layer, a, b)
            done += base.entry(layer.name).nbytes
            if progress is not None:
                progress(stage, done, total)
        if not tensors:
            raise EditError(
                f"{content.label}: changes none of the selected tensors",
                "Give a --scale other than 0, keep less, or widen --targets, --include or"
                " --layers.",
            )
        record.inputs = {
            role: {**described, "files": {path.name: input_sha256(path) for path in paths}}
            for role, (described, paths) in inputs.items()
        }
        record.tensors = tensors
        record.summary = {
            **_summary(tensors),
            **({"relative_change": _relative(tensors, weights)} if relative else {}),
            "parameters": writer.parameters,
            "left_out": sorted_tensors.left_out,
            "unchanged": sorted_tensors.unchanged,
        }
        return writer.commit(record, adapter_config(base, sorted_tensors.places, writer.ranks))


def _energy(base: Checkpoint, name: str) -> float:
    """Squared Frobenius norm of one of the base's matrices, read in blocks."""
    blocks = (base.rows(name, start, stop) for start, stop in base.entry(name).blocks())
    return math.fsum(float(rows.double().square().sum()) for rows in blocks)


def _relative(tensors: Mapping[str, Mapping[str, Any]], weights: Mapping[str, float]) -> float:
    """``‖ΔW‖ / ‖W‖`` over the matrices that change; as an edited checkpoint's record has it."""
    change = math.fsum(facts["kept"] * facts["norm"] ** 2 for facts in tensors.values())
    whole = math.fsum(weights[name] for name in tensors)
    return float(f"{math.sqrt(change / whole):.6g}") if whole > 0 else float(change > 0)


def _facts(truncation: Truncation, missed: float) -> dict[str, Any]:
    return {
        "rank": truncation.factors.rank,
        "norm": math.sqrt(truncation.total),
        "kept": truncation.kept,
        "lost": 1 - truncation.kept,
        "rounding": missed / math.sqrt(truncation.factors.energy),
        "residual": truncation.residual,
    }


def _summary(tensors: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    energies = {name: facts["norm"] ** 2 for name, facts in tensors.items()}
    total = sum(energies.values())
    kept_energies = {name: energies[name] * facts["kept"] for name, facts in tensors.items()}
    missed = sum(kept_energies[name] * facts["rounding"] ** 2 for name, facts in tensors.items())
    return {
        "tensors": len(tensors),
        "rank": max(facts["rank"] for facts in tensors.values()),
        "norm": math.sqrt(total),
        "kept": sum(kept_energies.values()) / total,
        "lost": 1 - sum(kept_energies.values()) / total,
        "rounding": math.sqrt(missed / sum(kept_energies.values())),
    }
