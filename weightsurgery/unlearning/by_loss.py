"""Methods that train on their own loss, and their grids on the bench."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from typing_extensions import override

from weightsurgery.checkpoint.selection import Selection
from weightsurgery.errors import EditError
from weightsurgery.learning.unlearners.base import Unlearner
from weightsurgery.learning.unlearners.losses import soft_cross_entropy
from weightsurgery.learning.unlearners.settings import settings_of
from weightsurgery.unlearning.system import System, SystemResult

if TYPE_CHECKING:
    from torch import Tensor

    from weightsurgery.learning.data import Example
    from weightsurgery.learning.models import PreTrainedModel, PreTrainedTokenizerBase
    from weightsurgery.learning.settings import Training
    from weightsurgery.learning.unlearners.batch_outputs import BatchOutputs
    from weightsurgery.learning.unlearners.run import Look
    from weightsurgery.learning.unlearners.work import Preparation
    from weightsurgery.unlearning.system import ChangeRequest

__all__ = [
    "LONG",
    "BenchGrid",
    "ByDistillation",
    "ByLoss",
    "check_helpers",
    "check_not_negative",
    "check_positive",
    "unlearn",
]

LONG = 40
"""Steps between evaluations where a row of the bench trains four times as long."""


@dataclass(frozen=True)
class BenchGrid:
    """A row of the bench: the settings of a method that are tried.

    Settings of the loss are the published ones unless they go by the size of a model's hidden
    states; the learning rates are not, since a model of a few million parameters needs others than
    one of billions: a row has more than one, and shares its evaluations among them. Every
    evaluation is a candidate.

    Attributes:
        about: What it does, in a line.
        rates: Learning rates.
        settings: Settings that are not as published, every one tried with every rate.
        every: Steps between evaluations.
        ends_itself: One evaluation per learning rate, where the method's stopping rule ends it.
        label: The row's name; None for the method's.
    """

    about: str
    rates: Sequence[float]
    settings: Sequence[Mapping[str, Any]] = ({},)
    every: int = 10
    ends_itself: bool = False
    label: str | None = None


class ByLoss(Unlearner, System):
    """A system that is a loss; see :class:`weightsurgery.learning.unlearners.base.Unlearner`."""

    goes_on = True
    bench: ClassVar[Sequence[BenchGrid]] = ()

    @classmethod
    @override
    def prepare(cls, work: Preparation) -> dict[str, Any]:
        """The model before as ``base``, for a loss that has frozen references."""
        return {"base": work.current_values()} if cls.references else {}

    @classmethod
    def change(cls, request: ChangeRequest) -> SystemResult:
        """See :class:`System`: trains on the loss."""
        from weightsurgery.learning.unlearners.run import train_unlearner

        result = train_unlearner(
            cls,
            request.model,
            request.tokenizer,
            request.forget,
            request.keep,
            request.training,
            settings_of(cls, request.settings),
            selection=Selection(include=request.names),
            unseen=request.unseen,
            lora_rank=request.lora_rank,
            chosen=request.chosen,
            progress=request.progress,
            workspace=request.workspace,
        )
        return SystemResult(result.change, result.notes)


class ByDistillation(ByLoss):
    """A system that teaches the model its own former answers, altered: ``CE(softmax(t), f)``."""

    references = 1

    def target(self, forget: BatchOutputs) -> Tensor:
        """Target logits, shape (positions, vocabulary)."""
        raise NotImplementedError

    def reference_logits(self, which: str, forget: BatchOutputs) -> Tensor:
        """Of a frozen reference, float32, shape (positions, vocabulary)."""
        return self.reference_outputs(which, forget.inputs).counted.float()

    @override
    def loss(self, forget: BatchOutputs, keep: BatchOutputs | None) -> Tensor:
        return soft_cross_entropy(self.target(forget), forget.counted, forget.whole.tokens)


def check_positive(settings: Any, *names: str) -> None:
    """Refuse settings that are not above 0 and finite.

    Raises:
        EditError: One is not.
    """
    for name in names:
        if not 0 < getattr(settings, name) < math.inf:
            raise EditError(f"{name} = {getattr(settings, name)}", "Give a number above 0.")


def check_not_negative(settings: Any, *names: str) -> None:
    """Refuse settings that are below 0 or infinite.

    Raises:
        EditError: One is.
    """
    for name in names:
        if not 0 <= getattr(settings, name) < math.inf:
            raise EditError(f"{name} = {getattr(settings, name)}", "Give a number from 0.")


def check_helpers(settings: Any) -> None:
    """Refuse helpers that would learn nothing.

    Raises:
        EditError: No steps, or no learning rate.
    """
    if settings.helper_steps < 1:
        raise EditError(f"helper_steps = {settings.helper_steps}", "Give a whole number from 1.")
    check_positive(settings, "helper_rate")


def unlearn(
    name: str,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    forget: Sequence[Example],
    keep: Sequence[Example],
    training: Training | None = None,
    *,
    settings: Mapping[str, Any] | None = None,
    selection: Selection | None = None,
    unseen: Sequence[Example] = (),
    lora_rank: int | None = None,
    look: Look | None = None,
) -> dict[str, Tensor]:
    """Trains a model in memory with a method that is a loss; it is as before in the end.

    Args:
        name: Of a method of :mod:`weightsurgery.unlearning.methods`.
        model: Float32.
        tokenizer: Its tokenizer.
        forget: What to forget.
        keep: What to keep; not used by all.
        training: Training settings; by default as published.
        settings: Settings of the method, by name; the others are as published.
        selection: Which parameters to train; by default all linear layers, of which a method may
            take fewer.
        unseen: What the model never saw; not used by all.
        lora_rank: Train an adapter of this rank instead.
        look: Called after each step with the steps taken and a function of the change so far; true
            ends the training.

    Returns:
        Parameter → its change, float32 on the CPU.

    Raises:
        EditError: An unknown name or setting, or no examples where they are needed.
        NonFiniteError: The loss or a weight is NaN or infinite, as gradient ascent ends if it
            goes on long enough.
    """
    from weightsurgery.algebra.lowrank import LowRank
    from weightsurgery.learning.unlearners.run import train_unlearner
    from weightsurgery.unlearning.methods import system

    kind = system(name)
    if not issubclass(kind, ByLoss):
        raise EditError(f"method {name!r}: no loss of its own", "Choose one that trains on one.")
    result = train_unlearner(
        kind,
        model,
        tokenizer,
        forget,
        keep,
        training or kind.published,
        settings_of(kind, settings),
        selection=selection,
        unseen=unseen,
        lora_rank=lora_rank,
        chosen=selection is not None,
        look=look,
    )
    return {
        name: change.matrix() if isinstance(change, LowRank) else change
        for name, change in result.change.items()
    }
