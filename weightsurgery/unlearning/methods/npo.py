"""NPO: negative preference; what goes is an answer one would rather not have."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from weightsurgery.deferred import torch
from weightsurgery.errors import EditError
from weightsurgery.learning.settings import Training
from weightsurgery.learning.unlearners.losses import kl
from weightsurgery.suggestions import one_of
from weightsurgery.unlearning.by_loss import (
    LONG,
    BenchGrid,
    ByLoss,
    check_not_negative,
    check_positive,
)

if TYPE_CHECKING:
    from torch import Tensor

    from weightsurgery.learning.unlearners.batch_outputs import BatchOutputs


__all__ = ["NPO", "npo"]

_RETAIN = ("none", "gdr", "klr")


@dataclass(frozen=True)
class NPOSettings:
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
        check_positive(self, "beta")
        if self.retain not in _RETAIN:
            raise EditError(f"retain = {self.retain}", one_of(self.retain, _RETAIN))
        check_not_negative(self, "keep_weight")


def npo(nll: Tensor, reference: Tensor, beta: float, count: Tensor | int) -> Tensor:
    """``mean −(2/β) log σ(−β log π/π_ref)`` (Zhang et al. 2024, arXiv 2404.05868).

    Args:
        nll: ``−log π(y|x)``, shape (rows,).
        reference: The same of the model before.
        beta: Inverse temperature; towards 0 the loss becomes gradient ascent's.
        count: Rows that the mean is over.
    """
    return -2 / beta * (torch.nn.functional.logsigmoid(beta * (nll - reference)).sum() / count)


class NPO(ByLoss):
    """``L = −(2/β) log σ(−β log π(y|x)/π_ref(y|x))`` (Zhang et al. 2024, arXiv 2404.05868).

    Published: β = 0.1. Learning rate 1e-5, batches of 32 and 20 epochs are those of the
    configuration that the authors of SimNPO (arXiv 2410.07163) run it by on TOFU.
    """

    name = "npo"
    about = "negative preference; retain=gdr or klr adds a term of what to keep"
    paper = "Zhang et al. 2024, arXiv 2404.05868"
    published = Training(epochs=20, learning_rate=1e-5, batch_size=32, weight_decay=0.01)
    Settings = NPOSettings
    references = 1
    bench = (
        BenchGrid("NPO, β=0.1", rates=(3e-5, 1e-4)),
        BenchGrid(
            "NPO, β=0.1, + CE(keep)",
            rates=(3e-5, 1e-4),
            settings=({"retain": "gdr"},),
            label="npo-gdr",
        ),
        BenchGrid(
            "NPO, β=0.1, + KL(base‖model) on keep",
            rates=(3e-5, 1e-4),
            settings=({"retain": "klr"},),
            label="npo-klr",
        ),
        BenchGrid(
            "npo-gdr, up to 160 steps",
            rates=(3e-5, 1e-4),
            settings=({"retain": "gdr"},),
            every=LONG,
            label="npo-gdr-long",
        ),
    )

    @classmethod
    @override
    def keeps(cls, settings: Any) -> bool:
        return bool(settings.retain != "none")

    @override
    def loss(self, forget: BatchOutputs, keep: BatchOutputs | None) -> Tensor:
        reference, _ = self.reference_outputs("base", forget.inputs).nll
        loss = npo(forget.nll[0], reference, self.settings.beta, forget.whole.rows)
        if keep is None:
            return loss
        if self.settings.retain == "gdr":
            retained = keep.cross_entropy
        else:
            before = self.reference_outputs("base", keep.inputs)
            retained = kl(before.counted, keep.counted, keep.whole.tokens)
        weight: float = self.settings.keep_weight
        return loss + weight * retained
