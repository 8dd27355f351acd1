"""The road from a change to the two files of an adapter: factor its layers, write them, record.

Whoever has a change to hand over, a vector as it is or an edit that works its change out first,
describes it as :class:`~weightsurgery.vectors.lora_content.Content`; the rest is the same for all.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from weightsurgery.algebra.svd import Truncation
from weightsurgery.checkpoint.reader import Checkpoint
from weightsurgery.checkpoint.record import EditRecord, file_sha256
from weightsurgery.checkpoint.staging import Staging
from weightsurgery.deferred import torch
from weightsurgery.errors import EditError
from weightsurgery.progress import Progress
from weightsurgery.vectors.lora_content import Content, Sorted, factored
from weightsurgery.vectors.lora_layers import LoraLayer
from weightsurgery.vectors.lora_writer import DTYPES, LoraWriter, adapter_config, halves

__all__ = ["Inputs", "check_dtype", "write_adapter"]

# By role: how an input is described, and its files.
Inputs = Mapping[str, tuple[Mapping[str, Any], Sequence[Path]]]


def check_dtype(dtype: str) -> None:
    """Refuse a dtype that factors are not stored in.

    Raises:
        EditError: It is none of ``bfloat16``, ``float16`` and ``float32``.
    """
    if dtype not in DTYPES:
        raise EditError(f"dtype {dtype!r} for factors", f"Choose one of: {', '.join(DTYPES)}.")


def write_adapter(
    base: Checkpoint,
    content: Content,
    found: Sorted,
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
    """Factor what was sorted and write it, all or nothing.

    Args:
        base: The base.
        content: The change.
        found: Its tensors, sorted.
        save_to: Directory to write.
        record: Of the adapter; inputs' hashes, tensors, summary and files are added here.
        inputs: What the change is made from.
        dtype: Of the stored factors; see :func:`check_dtype`.
        overwrite: Replace an existing output of this tool.
        device: Where dense changes are decomposed.
        each: Goes through the matrices: ``map``, or its like over threads, in their order.
        stage: What progress is called.
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

    staging = Staging(Path(save_to), f"adapter {os.getpid()} {id(found)}", folders, overwrite)
    with LoraWriter(staging, dtype) as writer:
        tensors: dict[str, dict[str, Any]] = {}
        done, total = 0, sum(base.entry(layer.name).nbytes for layer in found.layers)
        for layer, result in zip(found.layers, each(work, found.layers), strict=True):
            if result is None:
                found.unchanged.append(layer.name)
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
            role: {**described, "files": {path.name: file_sha256(path) for path in paths}}
            for role, (described, paths) in inputs.items()
        }
        record.tensors = tensors
        record.summary = {
            **_over_all(tensors),
            **({"relative_change": _relative(tensors, weights)} if relative else {}),
            "parameters": writer.parameters,
            "left_out": found.left_out,
            "unchanged": found.unchanged,
        }
        return writer.commit(record, adapter_config(base, found.places, writer.ranks))


def _energy(base: Checkpoint, name: str) -> float:
    """Squared Frobenius norm of one of the base's matrices, read in blocks."""
    blocks = (base.rows(name, start, stop) for start, stop in base.entry(name).blocks())
    return math.fsum(float(rows.double().square().sum()) for rows in blocks)


def _relative(tensors: Mapping[str, Mapping[str, Any]], weights: Mapping[str, float]) -> float:
    """``‖ΔW‖ / ‖W‖`` over the matrices that change; as an edited checkpoint's record has it."""
    change = math.fsum(facts["kept"] * facts["norm"] ** 2 for facts in tensors.values())
    whole = math.fsum(weights[name] for name in tensors)
    return float(f"{math.sqrt(change / whole):.6g}") if whole > 0 else float(change > 0)


def _facts(found: Truncation, missed: float) -> dict[str, Any]:
    return {
        "rank": found.factors.rank,
        "norm": math.sqrt(found.total),
        "kept": found.kept,
        "lost": 1 - found.kept,
        "rounding": missed / math.sqrt(found.factors.energy),
        "residual": found.residual,
    }


def _over_all(tensors: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    energies = {name: facts["norm"] ** 2 for name, facts in tensors.items()}
    total = sum(energies.values())
    kept = {name: energies[name] * facts["kept"] for name, facts in tensors.items()}
    missed = sum(kept[name] * facts["rounding"] ** 2 for name, facts in tensors.items())
    return {
        "tensors": len(tensors),
        "rank": max(facts["rank"] for facts in tensors.values()),
        "norm": math.sqrt(total),
        "kept": sum(kept.values()) / total,
        "lost": 1 - sum(kept.values()) / total,
        "rounding": math.sqrt(missed / sum(kept.values())),
    }
