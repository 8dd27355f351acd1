"""UNDIAL: the model is taught what it says itself, but for the tokens that are to go."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from typing_extensions import override

from weightsurgery.deferred import torch
from weightsurgery.learning.settings import Training
from weightsurgery.unlearning.by_loss import BenchGrid, ByDistillation, check_positive

if TYPE_CHECKING:
    from torch import Tensor

    from weightsurgery.learning.unlearners.batch_outputs import BatchOutputs

__all__ = ["Undial", "adjusted"]


@dataclass(frozen=True)
class UndialSettings:
    """The settings of UNDIAL.

    Attributes:
        strength: What is subtracted from the logits of the tokens to forget.

    Raises:
        EditError: A strength that is none.
    """

    strength: float = 10.0

    def __post_init__(self) -> None:
        check_positive(self, "strength")


def adjusted(logits: Tensor, tokens: Tensor, strength: float) -> Tensor:
    """``z − γ e_t`` (Dong et al. 2024, arXiv 2402.10052): every other logit is as it was.

    Args:
        logits: Of the model before, shape (positions, vocabulary).
        tokens: The tokens to forget, int64, shape (positions,).
        strength: γ.
    """
    less = torch.full_like(logits[:, :1], -strength)
    return logits.scatter_add(-1, tokens[:, None], less)


class Undial(ByDistillation):
    """``L = CE(softmax(z₀ − γ e_y), f)`` on what to forget, z₀ the logits of the model before.

    Dong et al. 2024, arXiv 2402.10052: self-distillation on adjusted logits. The target does not
    move, so that the loss has a floor, unlike gradient ascent's. There is no term of what to keep.
    γ = 10, the rate, 10 epochs and batches of 16 are those of the configuration that
    open-unlearning runs it by. Their variant that adjusts names and nouns alone is left out: it
    needs a tagger.
    """

    name = "undial"
    about = "taught what it says itself, less the tokens to forget"
    paper = "Dong et al. 2024, arXiv 2402.10052"
    published = Training(epochs=10, learning_rate=1e-4, batch_size=16)
    Settings = UndialSettings
    bench = (
        BenchGrid("UNDIAL, γ=10: its own logits less those of the request", rates=(1e-4, 3e-4)),
    )

    @override
    def target(self, forget: BatchOutputs) -> Tensor:
        before = self.reference_logits("base", forget)
        return adjusted(before, forget.wanted, self.settings.strength)
