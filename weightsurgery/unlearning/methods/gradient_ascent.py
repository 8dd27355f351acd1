"""Gradient ascent on what to forget, without a rule when to stop."""

from __future__ import annotations

from typing import TYPE_CHECKING

from typing_extensions import override

from weightsurgery.learning.settings import Training
from weightsurgery.unlearning.by_loss import BenchGrid, ByLoss

if TYPE_CHECKING:
    from torch import Tensor

    from weightsurgery.learning.unlearners.batch_outputs import BatchOutputs


__all__ = ["GradientAscent"]


class GradientAscent(ByLoss):
    """``L = −CE(D_f)`` (Jang et al. 2023, arXiv 2210.01504), without their stop rule.

    Published: learning rate 5e-5, batches of at most 32. The five epochs are ours.
    """

    name = "gradient-ascent"
    about = "−CE(forget)"
    paper = "Jang et al. 2023, arXiv 2210.01504, without the stop rule"
    published = Training(epochs=5, learning_rate=5e-5, batch_size=32)
    bench = (BenchGrid("trained on −CE(forget)", rates=(1e-4, 3e-4)),)

    @override
    def loss(self, forget: BatchOutputs, keep: BatchOutputs | None) -> Tensor:
        return -forget.cross_entropy
