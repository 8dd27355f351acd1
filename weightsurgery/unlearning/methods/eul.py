"""EUL: an adapter that leaves the model on what goes, and stays with it on what stays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from typing_extensions import override

from weightsurgery.learning.settings import Training
from weightsurgery.learning.unlearners.losses import kl
from weightsurgery.unlearning.by_loss import LONG, BenchGrid, ByLoss, check_not_negative

if TYPE_CHECKING:
    from torch import Tensor

    from weightsurgery.learning.unlearners.batch_outputs import BatchOutputs


__all__ = ["EfficientUnlearning"]


@dataclass(frozen=True)
class EULSettings:
    """The settings of EUL.

    Attributes:
        alpha: Weight of staying with the model before on what to keep.
        task: Weight of the cross-entropy on what to keep.
        gamma: Weight of the cross-entropy on what to forget, which is raised.

    Raises:
        EditError: A negative or infinite weight.
    """

    alpha: float = 1.0
    task: float = 1.0
    gamma: float = 0.1

    def __post_init__(self) -> None:
        check_not_negative(self, "alpha", "task", "gamma")


class EfficientUnlearning(ByLoss):
    """EUL: an adapter trained on ``α KL(D_r) − KL(D_f) + λ L_task(D_r) − γ L_LM(D_f)``.

    Chen and Yang 2023, arXiv 2310.20150; a reconstruction from their words. Their unlearning
    layers stand behind each feed-forward network of a T5; here they are a LoRA adapter beside the
    selected matrices, and the masked language modelling loss is the causal one. Weights, rate,
    rank and epochs are ours.
    """

    name = "eul"
    about = "an adapter that leaves the model on forget and stays on keep"
    paper = "Chen and Yang 2023, arXiv 2310.20150; a reconstruction"
    published = Training(epochs=5, learning_rate=1e-3, batch_size=32)
    Settings = EULSettings
    references = 1
    needs_keep = True
    adapter_rank = 16
    bench = (
        BenchGrid(
            "EUL (reconstruction): LoRA of rank 16 beside all linear layers", rates=(3e-4, 1e-3)
        ),
        BenchGrid("eul, up to 160 steps", rates=(3e-4, 1e-3), every=LONG, label="eul-long"),
    )

    @override
    def loss(self, forget: BatchOutputs, keep: BatchOutputs | None) -> Tensor:
        assert keep is not None
        settings = self.settings
        keep_kl, forget_kl = (
            kl(
                outputs.counted,
                self.reference_outputs("base", outputs.inputs).counted,
                outputs.whole.tokens,
            )
            for outputs in (keep, forget)
        )
        teacher = settings.alpha * keep_kl - forget_kl
        loss: Tensor = (
            teacher + settings.task * keep.cross_entropy - settings.gamma * forget.cross_entropy
        )
        return loss
