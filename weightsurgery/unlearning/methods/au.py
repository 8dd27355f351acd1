"""AU, Who's Harry Potter: logits that rise in a reinforced model are lowered."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from weightsurgery.deferred import torch
from weightsurgery.learning.settings import Training
from weightsurgery.unlearning.by_loss import (
    BenchGrid,
    ByDistillation,
    check_helpers,
    check_positive,
)

if TYPE_CHECKING:
    from torch import Tensor

    from weightsurgery.learning.unlearners.batch_outputs import BatchOutputs
    from weightsurgery.learning.unlearners.work import Preparation


__all__ = ["GenericLabels", "generic_labels"]


@dataclass(frozen=True)
class AUSettings:
    """The settings of AU.

    Attributes:
        alpha: Factor of the rise in the reinforced model's logits, which is subtracted.
        helper_steps: Steps for which that model is trained on what to forget.
        helper_rate: Its learning rate.

    Raises:
        EditError: Values that make no sense.
    """

    alpha: float = 5.0
    helper_steps: int = 30
    helper_rate: float = 5e-5

    def __post_init__(self) -> None:
        check_positive(self, "alpha")
        check_helpers(self)


def generic_labels(base: Tensor, reinforced: Tensor, alpha: float) -> Tensor:
    """``v_base − α ReLU(v_reinforced − v_base)`` (Eldan and Russinovich 2023, arXiv 2310.02238).

    Args:
        base: Logits of the model before.
        reinforced: Those of one trained further on what to forget.
        alpha: Factor of the rise, which is subtracted.
    """
    return base - alpha * torch.nn.functional.relu(reinforced - base)


class GenericLabels(ByDistillation):
    """AU, Who's Harry Potter: labels ``softmax(v_base − α ReLU(v_reinforced − v_base))``.

    Eldan and Russinovich 2023, arXiv 2310.02238. A model trained further on what to forget says
    which words belong to it; the model is then trained on its former logits, less these. Their
    second half, which replaces names by those of a dictionary that a larger model writes, is left
    out: it needs such a model. α, rates and epochs are ours.
    """

    name = "au"
    about = "the model's own labels less what a reinforced one says more strongly"
    paper = "Eldan and Russinovich 2023, arXiv 2310.02238, without the dictionary of names"
    published = Training(epochs=5, learning_rate=5e-5, batch_size=32)
    Settings = AUSettings
    references = 2
    bench = (
        BenchGrid("generic labels of a reinforced model (AU), no dictionary", rates=(3e-4, 1e-3)),
    )

    @classmethod
    def prepare(cls, work: Preparation) -> dict[str, Any]:
        """The model before, and the reinforced one."""
        work.helpers = 1
        schedule = work.settings.helper_steps, work.settings.helper_rate
        reinforced = work.finetuned("reinforced", work.forget, *schedule)
        return {**super().prepare(work), "reinforced": reinforced}

    @override
    def target(self, forget: BatchOutputs) -> Tensor:
        base, reinforced = (self.reference_logits(name, forget) for name in ("base", "reinforced"))
        return generic_labels(base, reinforced, self.settings.alpha)
