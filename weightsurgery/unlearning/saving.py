"""Saves a method's change as one task vector, all or nothing; a killed training resumes."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from weightsurgery.algebra.lowrank import LowRank
from weightsurgery.algebra.svd import truncated_svd
from weightsurgery.checkpoint.naming import kind_of, layer_of
from weightsurgery.checkpoint.record import EditRecord, read_record, verify
from weightsurgery.checkpoint.staging import Staging, output_errors
from weightsurgery.checkpoint.targets import beside
from weightsurgery.errors import HarmError, NonFiniteError, WeightSurgeryError
from weightsurgery.unlearning.job import Job
from weightsurgery.vectors.saved import VectorWriter, is_saved_vector

__all__ = ["MethodResult", "find_and_save", "finished", "save", "workspace_of"]


@dataclass(frozen=True)
class MethodResult:
    """The change that a method found.

    Attributes:
        change: ``W' − W`` by tensor, as the base stores it: whole, float32, or in factors; on the
            CPU. Tensors may be read lazily.
        summary: Of the training, for the record.
    """

    change: Mapping[str, torch.Tensor | LowRank]
    summary: Mapping[str, Any]


def workspace_of(job: Job, place: Path) -> Path:
    """Where the training leaves what it takes to go on after a kill, beside the vector."""
    root = beside(Path(os.path.realpath(place)))
    return root / f"training-{job.digest[:16]}"


def finished(job: Job, place: Path) -> EditRecord | None:
    """The record of a whole vector that this job made, if one is there."""
    try:
        if not is_saved_vector(place):
            return None
        record = read_record(place)
        if [record.parameters, record.inputs, record.versions] != job.identity():
            return None
        return verify(place)
    except WeightSurgeryError:
        return None  # damaged: it is in the way like any other


def find_and_save(
    job: Job,
    place: Path,
    overwrite: bool,
    find: Callable[[Path], MethodResult],
    command: Sequence[str] = (),
) -> EditRecord:
    """Finds the change, or goes on with a training that was killed, and saves the vector.

    Args:
        job: The job.
        place: Where the vector goes.
        overwrite: Replace what is there.
        find: Finds it, with a workspace for what a killed run should find.
        command: The command line, for the record.

    Returns:
        The vector's record.

    Raises:
        OutputError: The vector, or the state of the training, cannot be written.
        WeightSurgeryError: What ``find`` raises. What was trained stays where nothing is wrong with
            it: after an interrupt, on a full disk, or where it harms and may yet be allowed to.
    """
    staging = Staging(place, job.digest, job.read_places, overwrite)
    if staging.complete:
        return verify(place)
    workspace = workspace_of(job, place)
    try:
        with output_errors(staging.target):
            for stale in set(staging.root.glob("training-*")) - {workspace}:
                shutil.rmtree(stale)
        result = find(workspace)
    except HarmError:
        staging.leave()
        raise
    except BaseException as error:
        if workspace.is_dir() and any(workspace.iterdir()):
            staging.give_up(error)
        else:
            staging.close()  # nothing that a later run could go on from
        raise
    with VectorWriter(place, [], staging=staging) as writer:
        return save(job, result, writer, command)


def save(
    job: Job, result: MethodResult, writer: VectorWriter, command: Sequence[str] = ()
) -> EditRecord:
    """Save the vector ``T``, tensor by tensor, with its record.

    Args:
        job: The job. To learn, ``T = W' − W``; to forget, ``T = W − W'``.
        result: The change.
        writer: Holds the vector's place; it is committed.
        command: The command line, for the record.

    Returns:
        The vector's record.

    Raises:
        NonFiniteError: The change is NaN or infinite.
        OutputError: The vector cannot be written.
    """
    tensors: dict[str, dict[str, Any]] = {}
    whole, held = 0.0, 0.0
    for name in (n for n in job.base.entries if n in result.change):
        task = result.change[name]
        if not job.learning:
            task = replace(task, U=-task.U) if isinstance(task, LowRank) else task.neg()
        squared = task.energy if isinstance(task, LowRank) else float(task.double().square().sum())
        if not math.isfinite(squared):
            raise NonFiniteError(
                f"tensor {name!r}: its change holds NaN or infinity",
                "Lower --lr, take fewer --steps, or look for NaN in the checkpoint.",
            )
        norm = float(job.base.tensor(name).double().norm())
        facts = {"kind": kind_of(name), "layer": layer_of(name), "norm": math.sqrt(squared)}
        facts["relative"] = math.sqrt(squared) / norm if norm > 0 else 0.0
        whole += squared
        if job.rank is not None:
            dense = task.matrix() if isinstance(task, LowRank) else task
            truncation = truncated_svd(dense.to(job.device), job.rank, seed=job.method.seed)
            task = truncation.factors.to("cpu")
            held += task.energy
            facts |= {"rank": task.rank, "kept_energy": truncation.kept}
        elif isinstance(task, LowRank):
            facts["rank"] = task.rank
        writer.add(name, task if isinstance(task, LowRank) else task.contiguous())
        tensors[name] = facts
    record = EditRecord("task-vector", command=list(command), lineage=list(job.lineage))
    record.parameters, record.inputs = job.parameters, job.inputs
    record.versions, record.tensors = job.versions, tensors
    record.summary = {
        **result.summary,
        "examples": len(job.sets.examples),
        "tensors": len(tensors),
        "norm": math.sqrt(whole),
        **({} if job.rank is None or not whole else {"kept_energy": held / whole}),
    }
    return writer.commit(record)
