"""The vector of an edit from data: trained on the model in memory, and saved as it is stored."""

from __future__ import annotations

import glob
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from weightsurgery.algebra.discriminate import KeepSpace
from weightsurgery.algebra.lowrank import LowRank
from weightsurgery.algebra.svd import truncated_svd
from weightsurgery.checkpoint.naming import is_transposed, kind_of, layer_of
from weightsurgery.checkpoint.record import EditRecord
from weightsurgery.checkpoint.selection import Selection
from weightsurgery.checkpoint.stacks import input_width
from weightsurgery.errors import DataError, EditError, HarmError, NonFiniteError
from weightsurgery.learning.forget import ByNeighbours, change_by_neighbours
from weightsurgery.learning.guard import Guard, GuardReport, added, harm
from weightsurgery.learning.kept import Kept
from weightsurgery.learning.parameters import load_float32
from weightsurgery.learning.rounds import find_change
from weightsurgery.learning.stages import encode_rows
from weightsurgery.learning.watch import Rule, Watch
from weightsurgery.procedures.matrices import held_as
from weightsurgery.procedures.request import Request
from weightsurgery.progress import Progress
from weightsurgery.surgery.workers import torch_threads
from weightsurgery.vectors.saved import VectorWriter
from weightsurgery.vectors.statistics import total_gram

__all__ = ["Change", "find_change_of", "write_vector"]


@dataclass(frozen=True)
class Change:
    """What was found on the model in memory.

    Attributes:
        change: ``W' − W`` by matrix: whole, float32, or in factors; on the CPU.
        told: How it came about, for the record's summary.
        guard: What the model is like with it.
    """

    change: Mapping[str, torch.Tensor | LowRank]
    told: Mapping[str, Any]
    guard: GuardReport


def find_change_of(
    request: Request, workspace: Path | None = None, progress: Progress | None = None
) -> Change:
    """Train on the model in memory, and look at it with the guard, before and after.

    Args:
        request: What was asked for.
        workspace: Where a killed run finds what it had.
        progress: See :func:`weightsurgery.learning.rounds.find_change`.

    Raises:
        DataError: Data that the model cannot take, or knows nothing of where it is watched.
        EditError: Nothing was found, or nothing that leaves ordinary language as it was.
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
    role = request.search.role
    guard = Guard(
        model,
        request.tokenizer,
        request.sets.examples,
        {each.name: each.examples for each in request.sets.keep},
        role=role,
        budget=search.budget,
        seed=search.seed,
        progress=progress,
    )
    change: Mapping[str, torch.Tensor | LowRank]
    if search.neighbours is not None:
        change, told = _by_neighbours(request, model, held, search.neighbours, workspace, progress)
    else:
        change, told = _in_rounds(request, model, held, progress)
    with added(model, change):
        report = guard.report(model)
    del model
    if not report.inside and not search.allow_harm:
        raise HarmError(
            f"{harm(report.to_dict())} Nothing was written.",
            "Take fewer --steps or a smaller --lr, keep more data, raise --budget if that much is"
            " bearable, or pass --allow-harm to write it all the same.",
        )
    return Change({held[name]: each for name, each in change.items()}, told, report)


def _by_neighbours(
    request: Request,
    model: Any,
    held: Mapping[str, str],
    settings: ByNeighbours,
    workspace: Path | None,
    progress: Progress | None,
) -> tuple[Mapping[str, LowRank], dict[str, Any]]:
    budget = request.search.budget
    found = change_by_neighbours(
        model,
        request.tokenizer,
        request.sets.examples,
        [each.examples for each in request.sets.keep],
        list(held),
        replace(settings, training=replace(settings.training, budget=budget)),
        learning=request.search.learning,
        workspace=workspace,
        progress=progress,
    )
    first, last = found.looks[0], found.chosen or found.looks[-1]
    learning = request.search.learning
    gained = last.known - first.known if learning else first.known - last.known
    if not request.search.allow_harm and (found.chosen is None or gained <= 0):
        raise HarmError(
            f"nothing was {'learned' if learning else 'forgotten'} inside the budget of"
            f" {budget:g} nats a token: after"
            f" {found.looks[-1].step} steps the truth is the likeliest answer at"
            f" {found.looks[-1].known:.0%} of its places ({first.known:.0%} before), and ordinary"
            f" language has moved by {found.looks[-1].language:.3g}",
            "Take more --steps, raise --budget if that much is bearable, or pass --allow-harm to"
            " write it all the same.",
        )
    told = {
        "rounds": [{"first_loss": found.trained.first_loss, "last_loss": found.trained.last_loss}],
        "watched": [],
        "looks": [{k: v for k, v in asdict(each).items() if k != "left"} for each in found.looks],
        "steps": last.step,
        "gathered": found.notes,
    }
    return found.change, told


def _in_rounds(
    request: Request, model: Any, held: Mapping[str, str], progress: Progress | None
) -> tuple[Mapping[str, torch.Tensor], dict[str, Any]]:
    search = request.search
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
    if not any(bool(each.any()) for each in found.change.values()):
        done = "taught" if search.learning else "forgot"
        raise EditError(
            f"nothing was found: no look {done} anything and left every validation set at"
            f" {search.threshold:.1%} of its accuracy",
            "If a set suffered, lower --lr or --epsilon or keep more data; if nothing moved, take"
            " more --steps or --rounds.",
        )
    told = {
        "rounds": [{"first_loss": first, "last_loss": last} for first, last in found.losses],
        "watched": [_look(each) for each in found.watched],
    }
    return found.change, told


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
            seed=request.search.seed,
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


def write_vector(
    request: Request, writer: VectorWriter, found: Change, command: Sequence[str]
) -> EditRecord:
    """Save ``T``, and how it came about.

    Args:
        request: What was asked for.
        writer: Holds the vector's place; it is committed.
        found: The change.
        command: The command line, for the record.

    Returns:
        The vector's record.

    Raises:
        NonFiniteError: The change is NaN or infinite.
        OutputError: The vector cannot be written.
    """
    base, search = request.base, request.search
    tensors: dict[str, dict[str, Any]] = {}
    whole, held = 0.0, 0.0
    for name in (each for each in base.entries if each in found.change):
        each = found.change[name]
        if not search.learning:
            each = replace(each, U=-each.U) if isinstance(each, LowRank) else each.neg()
        squared = each.energy if isinstance(each, LowRank) else float(each.double().square().sum())
        if not math.isfinite(squared):
            raise NonFiniteError(
                f"tensor {name!r}: its change holds NaN or infinity", "Lower --lr."
            )
        norm = float(base.tensor(name).double().norm())
        facts = {"kind": kind_of(name), "layer": layer_of(name), "norm": math.sqrt(squared)}
        facts["relative"] = math.sqrt(squared) / norm if norm > 0 else 0.0
        whole += squared
        if search.rank is not None:
            dense = each.matrix() if isinstance(each, LowRank) else each
            truncation = truncated_svd(dense.to(request.device), search.rank, seed=search.seed)
            each = truncation.factors.to("cpu")
            held += each.energy
            facts |= {"rank": each.rank, "kept_energy": truncation.kept}
        elif isinstance(each, LowRank):
            facts["rank"] = each.rank
        writer.add(name, each if isinstance(each, LowRank) else each.contiguous())
        tensors[name] = facts
    record = EditRecord("task-vector", command=list(command), lineage=list(request.lineage))
    record.parameters, record.inputs, record.versions, record.tensors = (
        request.parameters,
        request.inputs,
        request.versions,
        tensors,
    )
    record.summary = {
        **found.told,
        "guard": found.guard.to_dict(),
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
