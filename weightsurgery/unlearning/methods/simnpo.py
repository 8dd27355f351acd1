"""SimNPO: negative preference by length, without the model before."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from weightsurgery.deferred import torch
from weightsurgery.errors import EditError
from weightsurgery.learning.settings import Training
from weightsurgery.unlearning.by_loss import BenchGrid, ByLoss, check_not_negative, check_positive

if TYPE_CHECKING:
    from torch import Tensor

    from weightsurgery.learning.unlearners.batch_outputs import BatchOutputs


__all__ = ["SimNPO", "simnpo"]


@dataclass(frozen=True)
class SimNPOSettings:
    """The settings of SimNPO.

    Attributes:
        beta: Inverse temperature.
        delta: Margin of the reward.
        forget_weight: Factor of the loss on what to forget.
        keep_weight: Factor of the cross-entropy on what to keep; 0 for no such term.

    Raises:
        EditError: Values that make no sense.
    """

    beta: float = 4.5
    delta: float = 0.0
    forget_weight: float = 0.125
    keep_weight: float = 1.0

    def __post_init__(self) -> None:
        check_positive(self, "beta")
        if not math.isfinite(self.delta):
            raise EditError(f"delta = {self.delta}", "Give a finite number.")
        check_not_negative(self, "forget_weight", "keep_weight")


def simnpo(nll: Tensor, tokens: Tensor, beta: float, delta: float, count: Tensor | int) -> Tensor:
    """``mean −(2/β) log σ(−(β/|y|) log π − δ)`` (Fan et al. 2024, arXiv 2410.07163).

    Args:
        nll: ``−log π(y|x)``, shape (rows,).
        tokens: ``|y|``, shape (rows,).
        beta: Inverse temperature.
        delta: Margin of the reward, which the paper calls γ.
        count: Rows that the mean is over.
    """
    return -2 / beta * (torch.nn.functional.logsigmoid(beta * nll / tokens - delta).sum() / count)


class SimNPO(ByLoss):
    """``L = −w (2/β) log σ(−(β/|y|) log π(y|x) − δ) + CE(D_r)``; no model before is needed.

    Fan et al. 2024, arXiv 2410.07163. Published, for a tenth of TOFU: β = 4.5, δ = 0, ``w`` =
    0.125 (their code's ``npo_coeff``), learning rate 1e-5, batches of 32, weight decay 0.01; 20
    epochs is what their configuration says. Their code multiplies the margin by β too, the paper
    does not; at δ = 0 the two are one.
    """

    name = "simnpo"
    about = "negative preference by length, and CE(keep)"
    paper = "Fan et al. 2024, arXiv 2410.07163"
    published = Training(epochs=20, learning_rate=1e-5, batch_size=32, weight_decay=0.01)
    Settings = SimNPOSettings
    needs_keep = True
    bench = (BenchGrid("SimNPO, β=4.5, δ=0, + CE(keep)", rates=(1e-4, 3e-4)),)

    @classmethod
    @override
    def keeps(cls, settings: Any) -> bool:
        return bool(settings.keep_weight > 0)

    @override
    def loss(self, forget: BatchOutputs, keep: BatchOutputs | None) -> Tensor:
        settings = self.settings
        nll, tokens = forget.nll
        forgotten = simnpo(nll, tokens, settings.beta, settings.delta, forget.whole.rows)
        loss: Tensor = settings.forget_weight * forgotten
        return loss if keep is None else loss + settings.keep_weight * keep.cross_entropy
