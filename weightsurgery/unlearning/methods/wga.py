"""Weighted gradient ascent: tokens count by how likely they still are."""

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

__all__ = ["WGA"]


@dataclass(frozen=True)
class WGASettings:
    """The settings of weighted gradient ascent.

    Attributes:
        beta: Power of a token's probability that it counts by; 0 is plain gradient ascent.
        keep_weight: Factor of the loss on what to keep.

    Raises:
        EditError: A negative or infinite number.
    """

    beta: float = 1.0
    keep_weight: float = 1.0

    def __post_init__(self) -> None:
        check_not_negative(self, "beta", "keep_weight")


class WGA(ByLoss):
    """``L = mean p^β log p`` over the tokens to forget ``+ w CE(D_r)``, ``p^β`` a constant.

    Wang et al. 2025, arXiv 2502.19301. What is forgotten already pushes on no further, which is
    what makes gradient ascent ruin a model. β = 1 and w = 1 are those that open-unlearning runs it
    by; rate, batches and epochs are gradient ascent's.
    """

    name = "wga"
    about = "gradient ascent by how likely tokens still are, CE(keep)"
    paper = "Wang et al. 2025, arXiv 2502.19301"
    published = GradientAscent.published
    Settings = WGASettings
    needs_keep = True
    bench = (BenchGrid("ascent weighted by p^β, β=1, + CE(keep)", rates=(1e-4, 3e-4)),)

    @override
    def loss(self, forget: BatchOutputs, keep: BatchOutputs | None) -> Tensor:
        assert keep is not None
        settings: WGASettings = self.settings
        ascent = weighted_ascent(forget.counted, forget.wanted, forget.whole.tokens, settings.beta)
        return ascent + settings.keep_weight * keep.cross_entropy
