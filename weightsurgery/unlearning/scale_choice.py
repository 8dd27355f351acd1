"""How far to negate: the published recipe for λ of task arithmetic.

Ilharco et al. (arXiv 2212.04089): of the 21 values 0, 0.05, …, 1, the one with the lowest score
on the target task among those that leave at least 95 % of the pretrained model's score on the
control task, on validation data. Theirs is one control; here every control must hold.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from weightsurgery.errors import EditError
from weightsurgery.learning.answers import answered
from weightsurgery.learning.data import Example
from weightsurgery.learning.models import PreTrainedModel, PreTrainedTokenizerBase
from weightsurgery.learning.stages import set_values, values_of
from weightsurgery.learning.unlearners.settings import settings_of
from weightsurgery.progress import Progress
from weightsurgery.unlearning.merging import ByMerging, Change, Line, find_line
from weightsurgery.unlearning.system import ChangeRequest

__all__ = ["SCALES", "SHARE", "ScaleChoice", "choose_scale", "find_scale", "merge", "with_change"]

SCALES: tuple[float, ...] = tuple(k / 20 for k in range(21))
"""``linspace(0, 1, 21)``."""

SHARE = 0.95
"""Of the pretrained control score that must be left."""

# What float64 makes of equal shares.
_EQUAL = 1e-12


@dataclass(frozen=True)
class ScaleChoice:
    """A λ, and what was measured for it.

    Attributes:
        scale: λ.
        target: Score of what is to be forgotten.
        controls: Scores of what is to be kept.
        before: The target's and the controls' scores of the model without any change.
        tried: Scales that were measured.
    """

    scale: float
    target: float
    controls: tuple[float, ...]
    before: tuple[float, ...]
    tried: tuple[float, ...]


def choose_scale(
    scores: Mapping[float, Sequence[float]], before: Sequence[float], share: float = SHARE
) -> float | None:
    """The recipe's choice among measured scales.

    Args:
        scores: λ → the target's score and the controls'.
        before: The same of the pretrained model.
        share: Share of the controls' scores before that must be left.

    Returns:
        Of those that hold every control the λ of the lowest target score; of equal ones the
        smallest. None where none holds.
    """
    best = None
    for scale, (target, *controls) in scores.items():
        pairs = zip(controls, before[1:], strict=True)
        if all(after >= share * first - _EQUAL for after, first in pairs):
            best = min(best or (target, scale), (target, scale))
    return None if best is None else best[1]


def find_scale(
    line: Line,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    target: Sequence[Example],
    controls: Sequence[Sequence[Example]],
    *,
    scales: Sequence[float] = SCALES,
    share: float = SHARE,
    score: Callable[..., float] = answered,
    progress: Progress | None = None,
) -> ScaleChoice:
    """Chooses λ by the recipe; the model is as before in the end, to the bit.

    Args:
        line: Changes to choose from.
        model: What they are changes of, float32.
        tokenizer: Its tokenizer.
        target: Examples to forget.
        controls: Validation examples to keep, one or more lists, none of them empty.
        scales: λ to try.
        share: Share of the controls' scores before that must be left.
        score: Called as ``score(model, tokenizer, examples)``; larger is better.
        progress: Called as ``progress(text, done, total)`` in scales.

    Raises:
        EditError: No scales, target or controls, a control without any score to keep, or no
            scale that keeps enough.
        NonFiniteError: The model's predictions are NaN.
    """
    sets = [target, *controls]
    if not scales or len(sets) < 2 or not all(sets):
        raise EditError(
            "no scales, or no examples to choose one by", "Give examples to forget and to keep."
        )
    before = tuple(score(model, tokenizer, examples) for examples in sets)
    if min(before[1:]) <= 0:
        raise EditError(
            "a set to keep on which the model scores 0 before any change",
            "Nothing can be lost there: leave it out, or pass a scale of your own.",
        )
    scores = {}
    for number, scale in enumerate(scales):
        if progress is not None:
            progress(f"scale {scale:g}", number, len(scales))
        with with_change(model, line.at(scale)):
            scores[scale] = tuple(score(model, tokenizer, examples) for examples in sets)
    chosen = choose_scale(scores, before, share)
    if chosen is None:
        raise EditError(
            f"no scale leaves {share:.0%} of every score to keep",
            "Pass a scale of your own, or lower the share.",
        )
    return ScaleChoice(chosen, scores[chosen][0], scores[chosen][1:], before, tuple(scales))


def merge(kind: type[ByMerging], request: ChangeRequest) -> tuple[Change, dict[str, Any]]:
    """The change of a merging system, ``W' − W`` by parameter, and what to say of it.

    Args:
        kind: The method.
        request: What to forget and to keep. Its setting ``scale`` is λ; where that is None or
            missing, the recipe finds it, with the examples to keep as the control.

    Returns:
        The change, and ``{"scale": λ}``, with the scores that λ was chosen by where it was.

    Raises:
        EditError: See :func:`~weightsurgery.unlearning.merging.find_line` and :func:`find_scale`;
            or no scale of the recipe forgets anything.
    """
    name, scale = kind.name, settings_of(kind, request.settings).scale
    if scale is None and not request.keep:
        raise EditError(f"{name} without a scale", "Give one, or examples to keep to find it by.")
    line = find_line(kind, request)
    if scale is not None:
        return line.at(scale), {"scale": scale}
    choice = find_scale(
        line,
        request.model,
        request.tokenizer,
        request.forget,
        [request.keep],
        progress=request.progress,
    )
    if choice.target >= choice.before[0]:
        raise EditError(
            f"{name}: no scale up to 1 forgets anything and keeps {SHARE:.0%} of what is to stay",
            "Train longer or faster, or give a scale of your own.",
        )
    notes = {
        "scale": choice.scale,
        "scales_tried": len(choice.tried),
        "share_to_keep": SHARE,
        "forget": {"before": choice.before[0], "after": choice.target},
        "keep": {"before": choice.before[1], "after": choice.controls[0]},
    }
    return line.at(choice.scale), notes


@contextmanager
def with_change(model: PreTrainedModel, change: Mapping[str, Tensor]) -> Iterator[None]:
    """The model with a change inside; as it was, to the bit, after.

    Args:
        model: Its parameters are set in place.
        change: By parameter, float32 on the CPU.
    """
    before = values_of(model, list(change))
    try:
        set_values(model, {name: before[name] + t for name, t in change.items()})
        yield
    finally:
        set_values(model, before)
