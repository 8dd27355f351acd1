"""Ethos: the task vector's large entries in the singular basis of fine-tuned weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from typing_extensions import override

from weightsurgery.learning.settings import Training
from weightsurgery.unlearning.merging import (
    BenchPoints,
    ByMerging,
    Line,
    MergeSettings,
    check_setting,
    vector,
)

if TYPE_CHECKING:
    from weightsurgery.unlearning.system import ChangeRequest


__all__ = ["Ethos"]


@dataclass(frozen=True)
class EthosSettings(MergeSettings):
    """The settings of Ethos.

    Attributes:
        threshold: Entries below this share of the largest are dropped; the published one.

    Raises:
        EditError: Values that make no sense.
    """

    threshold: float = 0.03

    def __post_init__(self) -> None:
        super().__post_init__()
        check_setting("threshold", self.threshold, "a share from 0 to 1", 0, 1)


class Ethos(ByMerging):
    """``W − λT'``, T' the large entries of ``Uᵀ T V`` (Gao et al. 2024, arXiv 2403.08994).

    U and V are of W fine-tuned on what is to be kept.
    """

    name = "ethos"
    about = "W − λT, T without its small entries in the singular basis of W tuned to keep data"
    paper = "Ethos, Gao et al., arXiv 2403.08994"
    published = Training(learning_rate=1e-4, batch_size=32)  # the rate is ours
    Settings = EthosSettings
    needs_keep = True
    bench = (BenchPoints((0.5, 0.75, 1.0, 1.125, 1.25, 1.375, 1.5, 2.0)),)

    @classmethod
    @override
    def line(cls, request: ChangeRequest) -> Line:
        from weightsurgery.algebra.negations import specific
        from weightsurgery.learning.values import values_of

        threshold = request.settings["threshold"]
        task, auxiliary = vector(request, request.forget), vector(request, request.keep)
        for name, t in task.items():
            if t.ndim == 2:  # biases and norms have no singular basis
                weights = values_of(request.model, [name])[name] + auxiliary[name]
                task[name] = specific(t, weights, threshold)
        return Line(task)
