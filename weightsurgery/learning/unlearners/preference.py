"""Negative preference: what is to be forgotten is an answer one would rather not have."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from weightsurgery.errors import EditError
from weightsurgery.learning.settings import Training
from weightsurgery.learning.unlearners.base import Unlearner
from weightsurgery.learning.unlearners.losses import kl, npo, simnpo
from weightsurgery.learning.unlearners.said import Said
from weightsurgery.learning.unlearners.work import Work

__all__ = ["NPO", "SimNPO"]

_RETAIN = ("none", "gdr", "klr")


@dataclass(frozen=True)
class Preference:
    """The settings of NPO.

    Attributes:
        beta: Inverse temperature.
        retain: ``none``; ``gdr``, the cross-entropy on what to keep; or ``klr``, ``KL(f₀‖f)``
            there, as MUSE (arXiv 2407.06460) names them.
        keep_weight: Factor of that.

    Raises:
        EditError: Values that make no sense.
    """

    beta: float = 0.1
    retain: str = "none"
    keep_weight: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.beta < math.inf:
            raise EditError(f"beta = {self.beta}", "Give a number above 0.")
        if self.retain not in _RETAIN:
            raise EditError(f"retain = {self.retain}", f"Choose one of: {', '.join(_RETAIN)}.")
        if not 0 <= self.keep_weight < math.inf:
            raise EditError(f"keep_weight = {self.keep_weight}", "Give a number from 0.")


class NPO(Unlearner):
    """``L = −(2/β) log σ(−β log π(y|x)/π_ref(y|x))`` (Zhang et al. 2024, arXiv 2404.05868).

    Published: β = 0.1. Learning rate 1e-5, batches of 32 and 20 epochs are those of the
    configuration that the authors of SimNPO (arXiv 2410.07163) run it by on TOFU.
    """

    paper = "Zhang et al. 2024, arXiv 2404.05868"
    published = Training(epochs=20, learning_rate=1e-5, batch_size=32, weight_decay=0.01)
    Settings = Preference
    models = 1

    @classmethod
    def keeps(cls, settings: Any) -> bool:
        """See :class:`Unlearner`."""
        return bool(settings.retain != "none")

    @classmethod
    def prepare(cls, work: Work) -> dict[str, Any]:
        """The model before."""
        return {"base": work.values()}

    def loss(self, forget: Said, keep: Said | None) -> Tensor:
        """See :class:`Unlearner`."""
        reference, _ = self.said_by("base", forget.inputs).nll
        loss = npo(forget.nll[0], reference, self.settings.beta, forget.whole.rows)
        if keep is None:
            return loss
        if self.settings.retain == "gdr":
            kept = keep.cross_entropy
        else:
            before = self.said_by("base", keep.inputs)
            kept = kl(before.counted, keep.counted, keep.whole.tokens)
        weight: float = self.settings.keep_weight
        return loss + weight * kept


@dataclass(frozen=True)
class SimplePreference:
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
        if not 0 < self.beta < math.inf:
            raise EditError(f"beta = {self.beta}", "Give a number above 0.")
        if not math.isfinite(self.delta):
            raise EditError(f"delta = {self.delta}", "Give a finite number.")
        for name in ("forget_weight", "keep_weight"):
            if not 0 <= getattr(self, name) < math.inf:
                raise EditError(f"{name} = {getattr(self, name)}", "Give a number from 0.")


class SimNPO(Unlearner):
    """``L = −w (2/β) log σ(−(β/|y|) log π(y|x) − δ) + CE(D_r)``; no model before is needed.

    Fan et al. 2024, arXiv 2410.07163. Published, for a tenth of TOFU: β = 4.5, δ = 0, ``w`` =
    0.125 (their code's ``npo_coeff``), learning rate 1e-5, batches of 32, weight decay 0.01; 20
    epochs is what their configuration says. Their code multiplies the margin by β too, the paper
    does not; at δ = 0 the two are one.
    """

    paper = "Fan et al. 2024, arXiv 2410.07163"
    published = Training(epochs=20, learning_rate=1e-5, batch_size=32, weight_decay=0.01)
    Settings = SimplePreference
    needs_keep = True

    @classmethod
    def keeps(cls, settings: Any) -> bool:
        """See :class:`Unlearner`."""
        return bool(settings.keep_weight > 0)

    def loss(self, forget: Said, keep: Said | None) -> Tensor:
        """See :class:`Unlearner`."""
        own = self.settings
        nll, tokens = forget.nll
        forgotten = simnpo(nll, tokens, own.beta, own.delta, forget.whole.rows)
        loss: Tensor = own.forget_weight * forgotten
        return loss if keep is None else loss + own.keep_weight * keep.cross_entropy
