"""Unlearning by merging: methods that train vectors and negate what is left of them.

Each finds a :class:`Line` of changes, ``start − λ · direction``, from what is to be forgotten and
what is to be kept; the distance λ along it is found by
:func:`weightsurgery.unlearning.scale_choice.find_scale`, or the caller's to say.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

from weightsurgery.checkpoint.selection import LARGEST_SCALE, Selection
from weightsurgery.errors import EditError
from weightsurgery.learning.unlearners.settings import settings_of
from weightsurgery.unlearning.system import System, SystemResult

if TYPE_CHECKING:
    import torch

    from weightsurgery.learning.data import Example
    from weightsurgery.learning.settings import Training
    from weightsurgery.unlearning.system import ChangeRequest

__all__ = [
    "BenchPoints",
    "ByMerging",
    "Change",
    "Line",
    "MergeSettings",
    "check_setting",
    "find_line",
    "vector",
]

Change = dict[str, "torch.Tensor"]


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
        scaled = {name: -scale * t for name, t in self.direction.items()}
        return {
            name: t + self.start[name] if name in self.start else t for name, t in scaled.items()
        }


@dataclass(frozen=True)
class BenchPoints:
    """The bench's grid of a method: points of one of its lines.

    Attributes:
        scales: λ.
        rate: Factor of the learning rate of the world's fine-tunes, which are in full;
            adapters take larger ones.
        settings: Settings of the method.
    """

    scales: Sequence[float]
    rate: float = 1.0
    settings: Mapping[str, Any] = field(default_factory=dict)


def check_setting(name: str, value: float, spoken: str, least: float, most: float) -> None:
    """Refuse a setting out of bounds.

    Raises:
        EditError: It is, or NaN.
    """
    if not least <= value <= most:
        raise EditError(f"{name} = {value!r}", f"Give {spoken}.")


@dataclass(frozen=True)
class MergeSettings:
    """The setting of all methods that merge.

    Attributes:
        scale: λ; None to have the recipe find it, see
            :mod:`weightsurgery.unlearning.scale_choice`.

    Raises:
        EditError: It is infinite, or too large to make sense.
    """

    scale: float | None = None

    def __post_init__(self) -> None:
        if self.scale is not None:
            check_setting("scale", self.scale, "a finite number", -LARGEST_SCALE, LARGEST_SCALE)


class ByMerging(System):
    """A system that merges.

    Attributes:
        needs_keep: Whether it needs examples to keep, whatever λ is.
        bench: Eight points of its lines, as every method has eight candidates.
    """

    Settings = MergeSettings
    needs_keep: ClassVar[bool] = False
    bench: ClassVar[Sequence[BenchPoints]] = ()

    @classmethod
    def line(cls, request: ChangeRequest) -> Line:
        """Trains the vectors it needs; the request's settings are complete."""
        raise NotImplementedError

    @classmethod
    def keeps(cls, settings: Any) -> bool:
        """See :class:`System`: without a scale the recipe needs something to hold on to."""
        return bool(cls.needs_keep or settings.scale is None)

    @classmethod
    def change(cls, request: ChangeRequest) -> SystemResult:
        """See :class:`System`: the change at the scale given, or found by the recipe."""
        from weightsurgery.unlearning.scale_choice import merge

        return SystemResult(*merge(cls, request))


def vector(
    request: ChangeRequest,
    examples: Sequence[Example],
    training: Training | None = None,
    lora_rank: int | None = None,
) -> Change:
    """The joint task vector of the examples, by parameter."""
    from weightsurgery.learning import identify
    from weightsurgery.learning.method import IdentifyMode

    return identify.train_vector(
        request.model,
        request.tokenizer,
        examples,
        training or request.training,
        IdentifyMode("joint", lora_rank=lora_rank or request.lora_rank),
        selection=Selection(include=request.names),
        progress=request.progress,
    )


def find_line(kind: type[ByMerging], request: ChangeRequest) -> Line:
    """Trains what a method that merges needs; the model is as before in the end, to the bit.

    Args:
        kind: The method.
        request: What to forget and what to keep. Settings that it lacks are the method's own.

    Returns:
        The changes it offers, by parameter, float32 on the CPU.

    Raises:
        EditError: Settings that make no sense; no examples to forget or, where needed, to keep.
        WeightSurgeryError: A training fails; see ``learning.identify.train_vector``.
    """
    settings = asdict(settings_of(kind, request.settings))
    if not request.forget:
        raise EditError(f"{kind.name} without examples to forget", "Give some.")
    if kind.needs_keep and not request.keep:
        raise EditError(f"{kind.name} without examples to keep", "Give some.")
    return kind.line(replace(request, settings=settings))
