"""Gradient ascent on what to forget against descent on what to keep."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from typing_extensions import override

from weightsurgery.unlearning.by_loss import BenchGrid, ByLoss, check_not_negative
from weightsurgery.unlearning.methods.gradient_ascent import GradientAscent

if TYPE_CHECKING:
    from torch import Tensor

    from weightsurgery.learning.unlearners.batch_outputs import BatchOutputs


__all__ = ["GradientDifference"]


@dataclass(frozen=True)
class GradientDifferenceSettings:
    """How much what to keep counts.

    Attributes:
        keep_weight: Factor of the loss on what to keep.

    Raises:
        EditError: A negative or infinite factor.
    """

    keep_weight: float = 1.0

    def __post_init__(self) -> None:
        check_not_negative(self, "keep_weight")


class GradientDifference(ByLoss):
    """``L = −CE(D_f) + w CE(D_r)`` (Liu et al. 2022, arXiv 2203.12817).

    The control of TOFU (arXiv 2401.06121). Published: ``w`` = 1. Rate, batches and epochs are
    gradient ascent's.
    """

    name = "gradient-difference"
    about = "−CE(forget) + CE(keep)"
    paper = "Liu et al. 2022, arXiv 2203.12817"
    published = GradientAscent.published
    Settings = GradientDifferenceSettings
    needs_keep = True
    bench = (BenchGrid("trained on −CE(forget) + CE(keep)", rates=(1e-4, 3e-4)),)

    @override
    def loss(self, forget: BatchOutputs, keep: BatchOutputs | None) -> Tensor:
        assert keep is not None
        weight: float = self.settings.keep_weight
        return weight * keep.cross_entropy - forget.cross_entropy
