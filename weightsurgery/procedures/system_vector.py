"""The vector of a system: found on the model in memory, and saved as it is stored."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from weightsurgery.algebra.lowrank import LowRank
from weightsurgery.algebra.svd import truncated_svd
from weightsurgery.checkpoint.naming import kind_of, layer_of
from weightsurgery.checkpoint.record import EditRecord
from weightsurgery.errors import DataError, EditError, NonFiniteError
from weightsurgery.learning.guard import Guard, added
from weightsurgery.learning.identify import is_main
from weightsurgery.learning.parameters import load_float32
from weightsurgery.learning.stages import encode_rows
from weightsurgery.procedures.change_request import ChangeRequest
from weightsurgery.procedures.matrices import held_as
from weightsurgery.procedures.system_request import SystemRequest
from weightsurgery.procedures.systems import Made
from weightsurgery.progress import Progress
from weightsurgery.vectors.saved import VectorWriter

__all__ = ["find_change", "write_vector"]

GUARD = "guard"


def find_change(
    request: SystemRequest, progress: Progress | None, workspace: Path
) -> tuple[Made, dict[str, str]]:
    """Train.

    Args:
        request: What was asked for.
        progress: See :class:`~weightsurgery.procedures.change_request.ChangeRequest`.
        workspace: See there.

    Returns:
        What was found, and for each parameter that may change the matrix it is stored as.

    Raises:
        DataError: Data that the model cannot take.
        UnsupportedCheckpointError: See :func:`weightsurgery.procedures.matrices.held_as`.
        NonFiniteError: A loss or weight is NaN or infinite.
    """
    model: Any = load_float32(request.base)
    held = held_as(model, request.base, request.names)
    for each in (*request.sets.every, *request.unseen):
        try:
            encode_rows(model, request.tokenizer, each.examples, request.training.max_length)
        except DataError as error:
            raise DataError(f"{each.name}: {error.what}", error.remedy) from None
    model.to(request.device)
    asked = ChangeRequest(
        model,
        request.tokenizer,
        tuple(held),
        request.sets.examples,
        [each for rows in request.sets.keep for each in rows.examples],
        [each for rows in request.unseen for each in rows.examples],
        request.training,
        request.settings,
        request.rank,
        request.chosen,
        progress,
        workspace,
    )
    guard = None
    if is_main():
        guard = Guard(
            model,
            request.tokenizer,
            request.sets.examples,
            {each.name: each.examples for each in request.sets.keep},
            seed=request.training.seed,
            progress=progress,
        )
    try:
        made = request.row.change(asked)
        if guard is not None:
            with added(model, made.change):
                made = replace(made, notes={**made.notes, GUARD: guard.report(model).to_dict()})
        return made, held
    except NonFiniteError as error:
        # Trainings are shared with commands whose options have other names.
        rate = "--lr or --set helper_rate" if "helper_rate" in request.settings else "--lr"
        raise NonFiniteError(
            f"{request.how.method}: {error.what}",
            f"Lower {rate}, take fewer --steps, raise --warmup, or train with --precision float32"
            " or bfloat16; at step 1, look for NaN in the checkpoint.",
        ) from None


def write_vector(
    request: SystemRequest,
    writer: VectorWriter,
    made: Made,
    held: Mapping[str, str],
    command: Sequence[str],
) -> EditRecord:
    """Save ``T = W − W'``, and how it came about.

    Args:
        request: What was asked for.
        writer: Holds the vector's place; it is committed.
        made: What was found.
        held: Parameter → the matrix it is stored as.
        command: The command line, for the record.

    Returns:
        The vector's record.

    Raises:
        EditError: Nothing changed, or what was not to change.
        NonFiniteError: The change is NaN or infinite.
        OutputError: The vector cannot be written.
    """
    strays = [name for name in made.change if name not in held]
    if strays:
        raise EditError(
            f"{request.how.method} changed {strays[0]!r}, which is not among what may change",
            "Return changes of the request's names alone.",
        )
    change = {held[name]: each for name, each in made.change.items()}
    if not any(_squared(each) > 0 for each in change.values()):
        raise EditError(
            f"{request.how.method} changed nothing", "Raise --lr, or take more --steps."
        )
    tensors: dict[str, dict[str, Any]] = {}
    whole = 0.0
    for name in (each for each in request.base.entries if each in change):
        found = change[name]
        task = replace(found, U=-found.U) if isinstance(found, LowRank) else found.neg()
        squared = _squared(task)
        if not math.isfinite(squared):
            raise NonFiniteError(
                f"tensor {name!r}: its change holds NaN or infinity", "Lower --lr or --steps."
            )
        if request.how.rank is not None:
            dense = task.matrix() if isinstance(task, LowRank) else task
            cut = truncated_svd(
                dense.to(request.device), request.how.rank, seed=request.training.seed
            )
            task = cut.factors.to("cpu")
        norm = float(request.base.tensor(name).double().norm())
        tensors[name] = {"kind": kind_of(name), "layer": layer_of(name), "norm": math.sqrt(squared)}
        tensors[name]["relative"] = math.sqrt(squared) / norm if norm > 0 else 0.0
        if isinstance(task, LowRank):
            tensors[name]["rank"] = task.rank
            if request.how.rank is not None:
                tensors[name]["kept_energy"] = task.energy / squared if squared else 1.0
        writer.add(name, task if isinstance(task, LowRank) else task.contiguous())
        whole += squared
    record = EditRecord("task-vector", command=list(command))
    record.parameters, record.inputs = request.parameters, request.inputs
    record.versions, record.tensors = request.versions, tensors
    record.summary = {
        "examples": len(request.sets.examples),
        "tensors": len(tensors),
        "norm": math.sqrt(whole),
        "training": {name: value for name, value in made.notes.items() if name != GUARD},
        GUARD: made.notes[GUARD],
    }
    return writer.commit(record)


def _squared(change: torch.Tensor | LowRank) -> float:
    if isinstance(change, LowRank):
        return change.energy
    return float(change.double().square().sum())
