"""What a model was taught of a request, taken back: a change of its matrices in closed form.

``W`` is a matrix of the model and ``W₀`` that of the one it was tuned from. ``W − W₀`` is what all
of its teaching did. The request's share of that is found by the matrix's inputs: with the
directions ``A`` in which those of the request stand out from those that are to stay, and the
loadings ``L`` by which ``L A x`` is a regression of an input ``x`` on them
(:class:`~weightsurgery.learning.directions.Directions`),

    ``D = s (W₀ − W) L A``.

Where ``L A x = x``, as for all inputs of the request if there are directions enough, and ``s = 1``,
the changed matrix does with them what it did before. An input that is to stay has next to no
coordinates ``A x``, and meets what it met. A few directions say a part of what an input is; a
larger ``s`` makes up for that. It is the largest at which the answers are not less likely than to
the model that never knew, and ordinary language has not moved by more than nine tenths of what
the edit may cost.

Changed matrices change the inputs of those behind them. So the directions are found a second time,
by the inputs that the first change makes, and the second change is in its place.

This is UNLEARN's arithmetic (arXiv 2408.04140), ``W − λT'``, with a task vector that is
discriminated by inputs, not by other tasks' weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from weightsurgery.algebra.lowrank import LowRank, recompress
from weightsurgery.errors import EditError, NonFiniteError, UnsupportedCheckpointError
from weightsurgery.learning.activations import linear_inputs
from weightsurgery.learning.directions import Directions, directions, sample
from weightsurgery.learning.guard import added
from weightsurgery.learning.looks import Looks, divergence, truth_probability
from weightsurgery.learning.material import Material
from weightsurgery.learning.models import halved
from weightsurgery.progress import Progress

__all__ = ["before_it_was_taught", "take_back"]

_ROUNDS = 2

# Tokens that are read, of the request and of each kind of what is to stay.
_TOKENS = (8192, 4096)

# Strengths that are tried: halves of what is left of the interval, so many times.
_STRONGEST, _HALVINGS = 4.0, 7

# Of the budget: what is trained afterwards (:mod:`weightsurgery.learning.sureness`) costs, too.
_SHARE = 0.9

# Of the matrices' norm, what no tuning changes: two models that were trained apart differ by 1.4.
_UNRELATED = 0.5

_REMEDY = (
    "Name the checkpoint that it was tuned from, or give --steps, to train towards what the other"
    " says."
)


def before_it_was_taught(
    model: PreTrainedModel,
    names: Sequence[str],
    load: Callable[[], PreTrainedModel] | None,
) -> PreTrainedModel:
    """The model that another may have been tuned from, as far as its matrices tell.

    Args:
        model: The other.
        names: Its parameters that may change.
        load: Loads it.

    Raises:
        EditError: It cannot be the one: no such matrices, or far away.
        UnsupportedCheckpointError: A parameter is no linear layer, as where experts are stacked.
        NonFiniteError: NaN or infinity in either.
    """
    if load is None:
        raise EditError("no model from before it was taught", "Name one: --never-knew CKPT.")
    layers = linear_inputs(model)
    for name in names:
        if name not in layers:
            raise UnsupportedCheckpointError(
                f"{name!r}, shape {list(model.get_parameter(name).shape)}: no linear layer, whose"
                " inputs say what of it is the request's",
                "Leave it out with --exclude; stacked experts with --exclude '*experts*'.",
            )
    before = load()
    theirs = dict(before.named_parameters())
    apart = whole = 0.0
    for name in names:
        own, other = model.get_parameter(name).detach(), theirs.get(name)
        if other is None or other.shape != own.shape:
            found = "no such matrix" if other is None else f"shape {list(other.shape)}"
            raise EditError(
                f"--never-knew: {name!r} has shape {list(own.shape)} in the model to edit, and"
                f" {found} there: that is not what it was tuned from",
                _REMEDY,
            )
        difference = other.detach().to(own.device).double() - own.double()
        squares = float(difference.square().sum())
        if not math.isfinite(squares):
            raise NonFiniteError(
                f"--never-knew: NaN or infinity in {name!r}, there or in the model to edit",
                "Name a checkpoint whose weights are finite, or leave the tensor out with"
                f" --exclude '{name}'.",
            )
        apart += squares
        whole += float(own.double().square().sum())
    if apart > _UNRELATED**2 * whole:
        raise EditError(
            f"--never-knew: its matrices differ from those of the model to edit by"
            f" {(apart / whole) ** 0.5:.0%}: that is not what it was tuned from",
            _REMEDY,
        )
    return before


def take_back(
    model: PreTrainedModel,
    before: PreTrainedModel,
    names: Sequence[str],
    material: Material,
    rank: int,
    looks: Looks,
    *,
    language: Callable[[PreTrainedModel], float] | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> tuple[dict[str, LowRank], float]:
    """A change by which a model has less of a request, from the one it was tuned from.

    Args:
        model: As it is; left as it was.
        before: The one it was tuned from.
        names: Weights of its linear layers.
        material: Texts to forget and to keep.
        rank: Of the change of each matrix.
        looks: They have what ordinary language may move by; two are added, before and after.
        language: What else may not move by more than that: the divergence of a changed model.
        seed: Of the iteration that finds eigenvectors.
        progress: Called as ``progress(text, done, total)``.

    Returns:
        The change by parameter, float32 on the CPU, and ``s``. A matrix that never ran is missing.

    Raises:
        NonFiniteError: The model computes NaN or infinity.
        OutputError: A look cannot be written.
    """
    change: dict[str, LowRank] = {}
    strength = 0.0
    read = _half_language(material)
    with halved(model):
        looks.look(model, (), 0)
    for _ in range(_ROUNDS):
        with added(model, change), halved(model):
            found = directions(
                model, names, read, rank, tokens=(_TOKENS[0], None), seed=seed, progress=progress
            )
        whole = _change(model, found, _columns(model, before, found))
        strength = _strength(model, whole, material, looks, language, progress)
        change = _times(whole, strength)
    with added(model, change), halved(model):
        looks.look(model, (), 1)
    return {name: change[name].to("cpu") for name in names if name in change}, strength


def _half_language(material: Material) -> Material:
    """A sample of what is to stay, with ordinary language so often that it is half of it.

    Else a change in closed form, which nothing pulls back, costs most where texts are unlike both
    the request and what was given to keep.
    """
    kept = {kind: sample(rows, _TOKENS[1]) for kind, rows in material.kept.items()}
    tokens = {kind: sum(len(row.tokens) for row in rows) for kind, rows in kept.items()}
    language = tokens.pop("language", 0)
    if language:
        kept["language"] *= max(1, round(sum(tokens.values()) / language))
    return replace(material, kept=kept)


def _columns(
    model: PreTrainedModel, other: PreTrainedModel, found: Mapping[str, Directions]
) -> dict[str, Tensor]:
    """``(W₀ − W) L`` of each matrix, (m, rank)."""
    columns = {}
    for name, each in found.items():
        own, theirs = model.get_parameter(name).detach(), other.get_parameter(name).detach()
        difference = theirs.to(own.device).float() - own.float()
        columns[name] = (difference.T if _flipped(model, name) else difference) @ each.loadings
    return columns


def _change(
    model: PreTrainedModel, found: Mapping[str, Directions], columns: Mapping[str, Tensor]
) -> dict[str, LowRank]:
    """``(W₀ − W) L A``, oriented as each parameter is."""
    change = {}
    for name, each in found.items():
        left, right = columns[name], each.rows.T
        if _flipped(model, name):
            left, right = right, left
        change[name] = recompress(left, torch.eye(left.shape[1]).to(left), right)
    return change


def _times(change: Mapping[str, LowRank], strength: float) -> dict[str, LowRank]:
    return {name: replace(each, S=strength * each.S) for name, each in change.items()}


def _flipped(model: PreTrainedModel, name: str) -> bool:
    return isinstance(model.get_submodule(name.removesuffix(".weight")), Conv1D)


def _strength(
    model: PreTrainedModel,
    change: Mapping[str, LowRank],
    material: Material,
    looks: Looks,
    language: Callable[[PreTrainedModel], float] | None,
    progress: Progress | None,
) -> float:
    """The largest at which the truth is not too unlikely, nor language too far away."""
    low, high, budget = 0.0, _STRONGEST, _SHARE * looks.budget
    for number in range(_HALVINGS):
        middle = (low + high) / 2
        with added(model, _times(change, middle)), halved(model), torch.no_grad():
            truth, wanted = truth_probability(model, material, looks.padding)
            beyond = truth < wanted
            beyond = beyond or divergence(model, material.guard, looks.padding) > budget
        if language is not None and not beyond:
            with added(model, _times(change, middle)):
                beyond = language(model) > budget
        low, high = (low, middle) if beyond else (middle, high)
        if progress is not None:
            progress("strength", number + 1, _HALVINGS)
    return low
