"""Unlearning by merging: the survey's systems that train vectors and negate what is left of them.

Each finds a :class:`Line` of changes, ``start − λ · direction``, from what is to be forgotten and
what is to be kept; how far to go along it is :func:`weightsurgery.unlearning.tuned.tune`'s to say,
or the caller's.

================  ==========================================================  ===================
``task-vector``   the joint task vector (TV)                                  arXiv 2212.04089
``cpem-lora``     a LoRA adapter's change (CPEM)                              arXiv 2306.14870
``cpem-ia3``      folded scaling vectors (CPEM)                               arXiv 2306.14870
``negmerge``      several vectors, where all agree in sign                    arXiv 2410.05583
``ethos``         the vector's large entries in the basis of tuned weights    arXiv 2403.08994
``ext-sub``       a good vector added, the rest of the bad one negated        arXiv 2308.08090
================  ==========================================================  ===================

CPEM negates an adapter inside: the factor ``A`` or the factor ``B`` of LoRA, never both (which
would change nothing), and ``l → (1 + s) − s·l`` of (IA)³. On the weights both are plain negation,
``−s · (B A)`` and ``−s · (l − 1) ∘ W``, so that what distinguishes them is what was trained.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from weightsurgery.algebra import negations
from weightsurgery.checkpoint.naming import is_transposed
from weightsurgery.checkpoint.selection import LARGEST_SCALE, Selection
from weightsurgery.errors import EditError, UnsupportedCheckpointError
from weightsurgery.learning.data import Example
from weightsurgery.learning.identify import train_vector
from weightsurgery.learning.method import Method
from weightsurgery.learning.settings import Training
from weightsurgery.unlearning.change_request import ChangeRequest

__all__ = ["MERGERS", "Change", "Line", "Merger", "find_line", "settled"]

Change = dict[str, torch.Tensor]

_RANK = 16


@dataclass(frozen=True)
class Line:
    """The changes ``start − λ · direction``.

    Attributes:
        direction: By parameter; what is negated.
        start: By parameter, of those in ``direction``; what is added whatever λ is.
    """

    direction: Change
    start: Change = field(default_factory=dict)

    def at(self, scale: float) -> Change:
        """The change at a λ, float32, ready to be added to the weights."""
        found = {name: -scale * t for name, t in self.direction.items()}
        return {
            name: t + self.start[name] if name in self.start else t for name, t in found.items()
        }


def _vector(
    request: ChangeRequest,
    examples: Sequence[Example],
    training: Training | None = None,
    lora_rank: int | None = None,
) -> Change:
    """The joint task vector of some examples."""
    return train_vector(
        request.model,
        request.tokenizer,
        examples,
        training or request.training,
        Method("joint", lora_rank=lora_rank or request.lora_rank),
        selection=Selection(include=request.names),
        progress=request.progress,
    )


def _task_vector(request: ChangeRequest) -> Line:
    return Line(_vector(request, request.forget))


def _lora(request: ChangeRequest) -> Line:
    return Line(_vector(request, request.forget, lora_rank=request.lora_rank or _RANK))


def _ia3(request: ChangeRequest) -> Line:
    # peft takes seconds to import
    from weightsurgery.learning.scaling import attached, folded, train_scaling

    if request.lora_rank is not None:
        raise EditError("scaling vectors as a LoRA adapter", "Leave out --lora-rank.")
    with attached(request.model, request.names) as adapted:
        beside = sorted(set(folded(adapted)) - set(request.names))
    if beside:
        raise UnsupportedCheckpointError(
            f"{beside[0]!r}: (IA)³ scales this bias too, which is not among what may change",
            "Use cpem-lora, whose adapters change weights alone.",
        )
    return Line(
        train_scaling(
            request.model,
            request.tokenizer,
            request.forget,
            request.training,
            selection=Selection(include=request.names),
            progress=request.progress,
        )
    )


def _negmerge(request: ChangeRequest) -> Line:
    spread, seeds = request.settings["spread"], range(request.settings["seeds"])
    vectors = [
        _vector(
            request,
            request.forget,
            replace(
                request.training,
                learning_rate=rate * request.training.learning_rate,
                seed=request.training.seed + seed,
            ),
        )
        for rate in sorted({1 / spread, 1.0, spread})
        for seed in seeds
    ]
    return Line({name: negations.agreed([each[name] for each in vectors]) for name in vectors[0]})


def _ethos(request: ChangeRequest) -> Line:
    threshold = request.settings["threshold"]
    vector, auxiliary = _vector(request, request.forget), _vector(request, request.keep)
    for name, t in vector.items():
        if t.ndim == 2:  # biases and norms have no singular basis
            weights = request.model.get_parameter(name).detach().cpu() + auxiliary[name]
            vector[name] = negations.specific(t, weights, threshold)
    return Line(vector)


def _ext_sub(request: ChangeRequest) -> Line:
    bad, good = _vector(request, request.forget), _vector(request, request.keep)
    config = request.model.config.to_dict()
    left = {}
    for name, t in bad.items():
        # A row is what belongs to one output; a bias or norm is one row.
        turned = is_transposed(name, config)
        rows, others = (
            each.T if turned else each.reshape(-1, each.shape[-1]) for each in (t, good[name])
        )
        found = negations.extracted(rows, others)
        left[name] = (found.T if turned else found.reshape(t.shape)).contiguous()
    expert = request.settings["expert"]
    return Line(left, {name: expert * t for name, t in good.items()})


@dataclass(frozen=True)
class Merger:
    """A merging system.

    Attributes:
        about: What it does, in a line.
        line: Finds it.
        source: Where it comes from.
        needs_keep: Whether it needs examples to keep.
        settings: Its own, by name, beside ``scale``, and what they are if nobody says. For
            ``negmerge``, what learning rates are divided and multiplied by, and the number of
            seeds for each of the three; for ``ethos`` the published threshold; for ``ext-sub`` the
            factor of the good change that is added, 1 as published (0 where the model itself is
            good at what is to be kept, and the good change only says what to spare).
        adapter_rank: Rank of the adapter that it trains, unless the request names one; None if it
            trains weights or scaling vectors.
        learning_rate: One that suits what it trains, where the caller knows no better; ours.
        takes_rank: Whether it can train a LoRA adapter where the request names a rank.
    """

    about: str
    line: Callable[[ChangeRequest], Line]
    source: str
    needs_keep: bool = False
    learning_rate: float = 1e-4
    adapter_rank: int | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    takes_rank: bool = True


MERGERS: Mapping[str, Merger] = {
    "task-vector": Merger(
        "W − λT, T the joint task vector", _task_vector, "TV, Ilharco et al., arXiv 2212.04089"
    ),
    "cpem-lora": Merger(
        "W − s·BA, a LoRA adapter with one factor negated",
        _lora,
        "CPEM, Zhang et al., arXiv 2306.14870",
        learning_rate=1e-3,
        adapter_rank=_RANK,
    ),
    "cpem-ia3": Merger(
        "l → (1 + s) − s·l of trained (IA)³ vectors, folded into W",
        _ia3,
        "CPEM, Zhang et al., arXiv 2306.14870",
        learning_rate=1e-2,
        takes_rank=False,
    ),
    "negmerge": Merger(
        "W − λ·mean of several T where all agree in sign",
        _negmerge,
        "NegMerge, Kim et al., arXiv 2410.05583",
        settings={"spread": 2.0, "seeds": 2},
    ),
    "ethos": Merger(
        "W − λT, T without its small entries in the singular basis of W tuned to keep data",
        _ethos,
        "Ethos, Gao et al., arXiv 2403.08994",
        needs_keep=True,
        settings={"threshold": 0.03},
    ),
    "ext-sub": Merger(
        "W + T_keep − λT less the directions of both, row by row",
        _ext_sub,
        "Ext-Sub, Hu et al., arXiv 2308.08090",
        needs_keep=True,
        settings={"expert": 1.0},
    ),
}


def settled(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """All settings of a merging system.

    Args:
        name: One of :data:`MERGERS`.
        given: Some of them by name; ``scale`` is λ, or None to have it found by the recipe of
            :mod:`weightsurgery.unlearning.tuned`.

    Raises:
        EditError: An unknown name, or a value of another kind or that makes no sense.
    """
    if name not in MERGERS:
        raise EditError(f"method {name!r}", f"Choose one of: {', '.join(MERGERS)}.")
    known = {"scale": None, **MERGERS[name].settings}
    for each, value in given.items():
        if each not in known:
            raise EditError(f"setting {each!r}", f"This method's settings: {', '.join(known)}.")
        if each == "scale" and value is None:
            continue
        wanted, spoken, least, most = _SENSIBLE[each]
        number = isinstance(value, wanted) and not isinstance(value, bool)
        if not number or not least <= value <= most:
            raise EditError(f"{each} = {value!r}", f"Give {spoken}.")
    return {**known, **given}


# What a setting may be: its type, in words, and its bounds.
_SENSIBLE: Mapping[str, tuple[Any, str, float, float]] = {
    "scale": (int | float, "a finite number", -LARGEST_SCALE, LARGEST_SCALE),
    "spread": (int | float, "a number from 1", 1, 1e6),
    "seeds": (int, "a whole number from 1", 1, 1000),
    "threshold": (int | float, "a share from 0 to 1", 0, 1),
    "expert": (int | float, "a finite number", -LARGEST_SCALE, LARGEST_SCALE),
}


def find_line(name: str, request: ChangeRequest) -> Line:
    """Trains what a merging system needs; the model is as before in the end, to the bit.

    Args:
        name: One of :data:`MERGERS`.
        request: What to forget and what to keep. Settings that it lacks are the system's own.

    Returns:
        The changes it offers, by parameter, float32 on the CPU.

    Raises:
        EditError: See :func:`settled`; no examples to forget or, where needed, to keep.
        WeightSurgeryError: A training fails; see ``learning.identify.train_vector``.
    """
    settings = settled(name, request.settings)
    if not request.forget:
        raise EditError(f"{name} without examples to forget", "Give some.")
    if MERGERS[name].needs_keep and not request.keep:
        raise EditError(f"{name} without examples to keep", "Give some.")
    return MERGERS[name].line(replace(request, settings=settings))
