"""The vector of an edit from data: trained on the model in memory, and saved as it is stored."""

from __future__ import annotations

import glob
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from weightsurgery.algebra.discriminate import KeepSpace
from weightsurgery.algebra.svd import truncated_svd
from weightsurgery.checkpoint.naming import is_transposed, kind_of, layer_of
from weightsurgery.checkpoint.record import EditRecord
from weightsurgery.checkpoint.selection import Selection
from weightsurgery.errors import DataError, EditError, NonFiniteError
from weightsurgery.learning.kept import Kept
from weightsurgery.learning.parameters import load_float32
from weightsurgery.learning.rounds import Found, find_change
from weightsurgery.learning.stages import encode_rows
from weightsurgery.learning.watch import Rule, Watch
from weightsurgery.procedures.matrices import held_as
from weightsurgery.procedures.request import Request
from weightsurgery.surgery.edit import input_width
from weightsurgery.surgery.workers import torch_threads
from weightsurgery.vectors.saved import VectorWriter
from weightsurgery.vectors.statistics import total_gram

__all__ = ["find_vector"]

Progress = Callable[[str, int, int], None]


def find_vector(
    request: Request, writer: VectorWriter, command: Sequence[str], progress: Progress | None
) -> EditRecord:
    """Train, and write the vector.

    Args:
        request: What was asked for.
        writer: Holds the vector's place; it is committed.
        command: The command line, for the record.
        progress: See :func:`weightsurgery.learning.rounds.find_change`.

    Returns:
        The vector's record.

    Raises:
        DataError: Data that the model cannot take, or knows nothing of where it is watched.
        EditError: Nothing was found.
        UnsupportedCheckpointError: See :func:`weightsurgery.procedures.matrices.held_as`.
        NonFiniteError: A loss or weight is NaN or infinite.
        OutputError: The vector cannot be written.
    """
    base, search = request.base, request.search
    model: Any = load_float32(base)
    held = held_as(model, base, request.names)
    for each in request.sets.every:
        try:
            encode_rows(model, request.tokenizer, each.examples, None)
        except DataError as error:
            raise DataError(
                f"{each.name}: {error.what}", "Take it out, or split it into shorter ones."
            ) from None
    model.to(request.device)
    found = find_change(
        model,
        request.tokenizer,
        request.sets.examples,
        _kept(request, held),
        search.rounds,
        selection=Selection("all", tuple(glob.escape(name) for name in held)),
        watch=_watch(request),
        progress=progress,
    )
    del model
    change = {held[name]: each for name, each in found.change.items()}
    if not any(bool(each.any()) for each in change.values()):
        done = "taught" if search.learning else "forgot"
        raise EditError(
            f"nothing was found: no look {done} anything and left every validation set at"
            f" {search.threshold:.1%} of its accuracy",
            "If a set suffered, lower --lr or --epsilon or keep more data; if nothing moved, take"
            " more --steps or --rounds.",
        )
    return _write(request, writer, change, found, command)


def _kept(request: Request, held: Mapping[str, str]) -> Kept:
    base, statistics = request.base, request.keep.inputs

    def gram(parameter: str) -> torch.Tensor | None:
        name = held[parameter]
        return total_gram(statistics, name, input_width(base, name)) if statistics else None

    directions = {}
    with torch_threads(1):
        for parameter, name in held.items():
            found = _directions(request, name)
            if found is not None:
                directions[parameter] = found
    return Kept([each.examples for each in request.sets.keep], directions, gram)


def _directions(request: Request, name: str) -> torch.Tensor | None:
    """Input directions of the vectors to keep, ``(n, q)``; None where none changes the matrix."""
    base, entry = request.base, request.base.entry(name)
    factors = []
    for vector in request.keep.vectors:
        delta = vector.at(name)
        if delta is None:
            continue
        truncation = delta.truncated(
            lambda start, stop: base.rows(name, start, stop),
            (entry.shape[0], entry.shape[1]),
            request.search.keep_rank,
            transposed=is_transposed(name, base.config),
            device=request.device,
            seed=request.search.rounds.seed,
        )
        factors.append(truncation.factors)
    return KeepSpace.of(factors).V if factors else None


class _KnownBefore(Watch):
    """A watch that refuses to look at what the model does not know in the first place."""

    def begin(self, model: Any, tokenizer: Any, names: Sequence[str]) -> None:
        """See :class:`Watch`.

        Raises:
            DataError: The base knows nothing of a validation set, or all of what to learn.
        """
        super().begin(model, tokenizer, names)
        for name, known in self.seen[0].items():
            if known == 0 and (name or not self.learning):
                what = name or "the data to forget"
                raise DataError(
                    f"{what}: the base answers none of it, so there is nothing to watch",
                    "Watch what the base knows; a completion may lack the space before it.",
                )
        if self.learning and self.seen[0][""] == 1:
            raise DataError("the data to learn: the base knows all of it", "Learn something new.")


def _watch(request: Request) -> Watch | None:
    if not request.watching:
        return None
    sets, rounds = request.sets, request.search.rounds
    target = sets.validation_target[0].examples if sets.validation_target else sets.examples
    # So that the last step of a round is looked at, and not every one.
    every = next((n for n in (10, 9, 8, 7, 6, 5) if rounds.steps % n == 0), min(10, rounds.steps))
    return _KnownBefore(
        target,
        {each.name: each.examples for each in sets.validation_keep},
        Rule(request.search.threshold),
        rounds.steps if rounds.objective == "negate" else every,
        request.search.learning,
    )


def _write(
    request: Request,
    writer: VectorWriter,
    change: Mapping[str, torch.Tensor],
    found: Found,
    command: Sequence[str],
) -> EditRecord:
    """Save ``T``, and how it came about."""
    base, search = request.base, request.search
    tensors: dict[str, dict[str, Any]] = {}
    whole, held = 0.0, 0.0
    for name in (each for each in base.entries if each in change):
        task = change[name] if search.learning else change[name].neg()
        squared = float(task.double().square().sum())
        if not math.isfinite(squared):
            raise NonFiniteError(
                f"tensor {name!r}: its change holds NaN or infinity", "Lower --lr."
            )
        norm = float(base.tensor(name).double().norm())
        facts = {"kind": kind_of(name), "layer": layer_of(name), "norm": math.sqrt(squared)}
        facts["relative"] = math.sqrt(squared) / norm if norm > 0 else 0.0
        whole += squared
        if search.rank is None:
            writer.add(name, task.contiguous())
        else:
            where = task.to(request.device)
            truncation = truncated_svd(where, search.rank, seed=search.rounds.seed)
            writer.add(name, truncation.factors.to("cpu"))
            held += truncation.factors.energy
            facts |= {"rank": truncation.factors.rank, "kept_energy": truncation.kept}
        tensors[name] = facts
    record = EditRecord("task-vector", command=list(command), lineage=list(request.lineage))
    record.parameters, record.inputs, record.versions, record.tensors = (
        request.parameters,
        request.inputs,
        request.versions,
        tensors,
    )
    record.summary = {
        "rounds": [{"first_loss": first, "last_loss": last} for first, last in found.losses],
        "watched": [_look(each) for each in found.watched],
        "examples": len(request.sets.examples),
        "tensors": len(tensors),
        "norm": math.sqrt(whole),
        **({} if search.rank is None else {"kept_energy": held / whole}),
    }
    return writer.commit(record)


def _look(scores: Mapping[str, float]) -> dict[str, Any]:
    """What the watch saw at a step; 0 is before any."""
    kept = {name: value for name, value in scores.items() if name not in ("", "step")}
    return {"step": int(scores.get("step", 0)), "target": scores[""], "keep": kept}
