"""SatImp: tokens count by how likely they still are, and by how much is left to learn of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from typing_extensions import override

from weightsurgery.learning.unlearners.losses import weighted_ascent
from weightsurgery.unlearning.by_loss import BenchGrid, ByLoss, check_not_negative
from weightsurgery.unlearning.methods.gradient_ascent import GradientAscent

if TYPE_CHECKING:
    from torch import Tensor

    from weightsurgery.learning.unlearners.batch_outputs import BatchOutputs

__all__ = ["SatImp"]


@dataclass(frozen=True)
class SatImpSettings:
    """The settings of SatImp.

    Attributes:
        saturation: Exponent of a token's probability in its weight.
        importance: Exponent of one minus that probability.
        keep_weight: Factor of the loss on what to keep.

    Raises:
        EditError: A negative or infinite number.
    """

    saturation: float = 5.0
    importance: float = 1.0
    keep_weight: float = 0.1

    def __post_init__(self) -> None:
        check_not_negative(self, "saturation", "importance", "keep_weight")


class SatImp(ByLoss):
    """``L = mean p^β₁ (1 − p)^β₂ log p`` over the tokens to forget ``+ w CE(D_r)``.

    Yang et al. 2025, arXiv 2505.11953; the factors before the logarithm are constants. β₁ = 5,
    β₂ = 1 and w = 0.1 are those that open-unlearning runs it by; rate, batches and epochs are
    gradient ascent's.
    """

    name = "satimp"
    about = "gradient ascent by saturation and importance of tokens, CE(keep)"
    paper = "Yang et al. 2025, arXiv 2505.11953"
    published = GradientAscent.published
    Settings = SatImpSettings
    needs_keep = True
    bench = (BenchGrid("ascent weighted by p^5 (1 − p), + CE(keep)", rates=(1e-4, 3e-4)),)

    @override
    def loss(self, forget: BatchOutputs, keep: BatchOutputs | None) -> Tensor:
        assert keep is not None
        settings: SatImpSettings = self.settings
        ascent = weighted_ascent(
            forget.counted,
            forget.wanted,
            forget.whole.tokens,
            settings.saturation,
            settings.importance,
        )
        return ascent + settings.keep_weight * keep.cross_entropy
