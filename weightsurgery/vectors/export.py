"""Writing a low-rank change as a PEFT LoRA adapter: megabytes beside a base that stays as it is.

A matrix's change ``T ≈ U diag(S) Vᵀ`` becomes ``B = U √S`` and ``A = √S Vᵀ``, factors of equal
size; ``lora_alpha`` is the rank, so that peft adds ``B A`` as it is. Changes that are factors
already stay factors, and then no weight of the base is read but a few samples to know it by.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from weightsurgery.algebra.lowrank import Rank, RankRule
from weightsurgery.algebra.rounding import compute_dtype
from weightsurgery.algebra.svd import Truncation
from weightsurgery.checkpoint.reader import Checkpoint, torch_dtype
from weightsurgery.checkpoint.record import EditRecord, file_sha256
from weightsurgery.checkpoint.selection import LARGEST_SCALE, Selection
from weightsurgery.checkpoint.staging import Staging
from weightsurgery.deferred import torch
from weightsurgery.errors import EditError, VectorError
from weightsurgery.vectors.finetuned import refuse_quantised
from weightsurgery.vectors.lineage import check_lineage
from weightsurgery.vectors.lora_layers import LoraLayer, LoraLayers, Refusal
from weightsurgery.vectors.lora_writer import DTYPES, LoraWriter, adapter_config, halves
from weightsurgery.vectors.task_vector import DenseDelta, FactorDelta, SumDelta, TaskVector

__all__ = ["export_adapter"]

_DENSE = Refusal(
    "a dense change, which no LoRA holds as it is",
    "Pass --rank K to truncate it (what that loses is reported), or export what 'ws subspace'"
    " saves.",
)


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
    progress: Callable[[str, int, int], None] | None = None,
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
    if dtype not in DTYPES:
        raise EditError(f"dtype {dtype!r}", f"Choose one of: {', '.join(DTYPES)}.")
    for factor, change in vector.terms:
        if not abs(factor) <= LARGEST_SCALE:
            raise EditError(f"{change.label}: scale {factor}", "Give a finite number, up to 1e30.")
    refuse_quantised(base)
    selection = selection or Selection()
    lineage = check_lineage(base, [change for _, change in vector.terms], allow_unrelated)
    plan = _plan(base, vector, selection, rule)
    inputs = _inputs(base, vector, plan.reads_base)
    folders = sorted({base.path, *(path.parent for _, paths in inputs.values() for path in paths)})
    record = EditRecord("adapter", command=list(command))

    def factors_of(layer: LoraLayer) -> Truncation | None:
        delta = plan.deltas(layer.name)
        return None if delta is None else _truncate(base, layer, delta, rule, device, seed)

    staging = Staging(Path(save_to), f"adapter {os.getpid()} {id(plan)}", folders, overwrite)
    with LoraWriter(staging, dtype) as writer:
        tensors: dict[str, dict[str, Any]] = {}
        done, total = 0, sum(base.entry(layer.name).nbytes for layer in plan.layers)
        for layer, found in zip(plan.layers, each(factors_of, plan.layers), strict=True):
            if found is None or found.total == 0:
                plan.unchanged.append(layer.name)
            else:
                a, b, missed = halves(layer.name, found.factors, dtype)
                writer.add(layer, a, b)
                tensors[layer.name] = _facts(found, missed)
            done += base.entry(layer.name).nbytes
            if progress is not None:
                progress("export", done, total)
        if not tensors:
            raise EditError(
                f"{vector.label}: changes none of the selected tensors",
                "Give a --scale other than 0, or widen --targets, --include or --layers.",
            )
        record.parameters = {
            "to": "peft",
            "rule": str(rule) if rule is not None else "all factors",
            "dtype": dtype,
            "selection": asdict(selection),
            "seed": seed,
        }
        record.inputs = {
            role: {**described, "files": {path.name: file_sha256(path) for path in paths}}
            for role, (described, paths) in inputs.items()
        }
        record.lineage = [kin.to_dict() for kin in lineage]
        record.tensors = tensors
        record.summary = {
            **_over_all(tensors),
            "parameters": writer.parameters,
            "left_out": plan.left_out,
            "unchanged": plan.unchanged,
        }
        return writer.commit(record, adapter_config(base, plan.places, writer.ranks))


@dataclass
class _Plan:
    """What goes into the adapter, what does not, and whether the base's weights are needed."""

    places: LoraLayers
    deltas: Callable[[str], SumDelta | None]
    layers: list[LoraLayer] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    unchanged: list[str] = field(default_factory=list)
    reads_base: bool = False


def _plan(
    base: Checkpoint, vector: TaskVector, selection: Selection, rule: RankRule | None
) -> _Plan:
    """Sort the tensors that the vector changes.

    Raises:
        VectorError: Some are nothing that a LoRA holds; it names the first of each kind.
    """
    chosen = selection.resolve(base.entries)
    plan = _Plan(LoraLayers(base), lambda name: (chosen.get(name, 1.0) * vector).at(name))
    refused: dict[Refusal, list[str]] = {}
    for name in base.entries:
        delta = plan.deltas(name)
        if delta is None:
            continue
        if name not in chosen:
            plan.left_out.append(name)
            continue
        place = plan.places.find(name)
        if isinstance(place, LoraLayer) and rule is None and not _is_factored(delta):
            place = _DENSE
        if isinstance(place, LoraLayer) and base.entry(name).numel:
            plan.layers.append(place)
            plan.reads_base = plan.reads_base or _needs_base(delta)
        elif isinstance(place, LoraLayer) or _is_zero(base, name, delta):
            plan.unchanged.append(name)
        else:
            refused.setdefault(place, []).append(name)
    if refused:
        kinds = [
            f"{names[0]!r}{f' and {len(names) - 1} more' if names[1:] else ''}: {why.reason}"
            for why, names in refused.items()
        ]
        remedies = dict.fromkeys(why.remedy for why in refused)
        raise VectorError(f"{vector.label}: {'; '.join(kinds)}", " ".join(remedies))
    return plan


def _inputs(
    base: Checkpoint, vector: TaskVector, reads_base: bool
) -> dict[str, tuple[Mapping[str, Any], Sequence[Path]]]:
    """What the adapter depends on, by role: how it is described, and its files."""
    source = {"kind": "checkpoint", "name": base.source.name, "revision": base.source.revision}
    paths = base.files_read()
    if not reads_base:
        paths = [path for path in paths if path.name == "config.json"]
    found: dict[str, tuple[Mapping[str, Any], Sequence[Path]]] = {"base": (source, paths)}
    for number, (factor, change) in enumerate(vector.terms, 1):
        role = "vector" if len(vector.terms) == 1 else f"vector.{number}"
        described = {**change.provenance(), "factor": factor}
        found[role] = (described, described.pop("paths"))
    return found


def _is_factored(delta: SumDelta) -> bool:
    return all(isinstance(each, FactorDelta) for _, each in delta.terms)


def _needs_base(delta: SumDelta) -> bool:
    """Whether a change is told by the weights it leads to."""
    return any(isinstance(each, DenseDelta) and each.relative for _, each in delta.terms)


def _base_rows(base: Checkpoint, name: str, delta: SumDelta) -> Callable[[int, int], torch.Tensor]:
    if _needs_base(delta):
        return lambda start, stop: base.rows(name, start, stop)
    return lambda start, stop: torch.empty(0)


def _is_zero(base: Checkpoint, name: str, delta: SumDelta) -> bool:
    """Whether a change is none; reads up to the first number that is not zero."""
    entry, rows = base.entry(name), _base_rows(base, name, delta)
    dtype = compute_dtype(torch_dtype(entry.dtype))
    for start, stop in entry.blocks():
        out = torch.zeros((stop - start, *entry.columns), dtype=dtype)
        delta.add_rows(out, start, stop, 1.0, rows(start, stop).to(dtype))
        if bool(out.count_nonzero()):
            return False
    return True


def _truncate(
    base: Checkpoint,
    layer: LoraLayer,
    delta: SumDelta,
    rule: RankRule | None,
    device: torch.device | str,
    seed: int,
) -> Truncation:
    """The factors that are kept, oriented as the layer computes."""
    rows, columns = base.entry(layer.name).shape
    found = delta.truncated(
        _base_rows(base, layer.name, delta),
        (rows, columns),
        rule or Rank(min(rows, columns)),
        transposed=layer.flipped,
        device=device,
        seed=seed,
    )
    # Asked for more factors than a dense change has, the rest is rounding.
    s = found.factors.S
    rank = max(1, int((s > s[:1] * torch.finfo(torch.float32).eps).sum()))
    return replace(found, factors=found.factors.truncated(rank))


def _facts(found: Truncation, missed: float) -> dict[str, Any]:
    kept = found.factors.energy
    return {
        "rank": found.factors.rank,
        "norm": math.sqrt(found.total),
        "kept": found.kept,
        "lost": 1 - found.kept,
        "rounding": missed / math.sqrt(kept),
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
