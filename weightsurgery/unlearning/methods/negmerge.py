"""NegMerge: the mean of task vectors where all agree in sign."""

from __future__ import annotations

from dataclasses import dataclass, replace
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


__all__ = ["NegMerge"]


@dataclass(frozen=True)
class NegMergeSettings(MergeSettings):
    """The settings of NegMerge.

    Attributes:
        spread: What learning rates are divided and multiplied by.
        seeds: Trainings per learning rate.

    Raises:
        EditError: Values that make no sense.
    """

    spread: float = 2.0
    seeds: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        check_setting("spread", self.spread, "a number from 1", 1, 1e6)
        check_setting("seeds", self.seeds, "a whole number from 1", 1, 1000)


class NegMerge(ByMerging):
    """``W − λ·mean`` of vectors T where all agree in sign (Kim et al. 2024, arXiv 2410.05583)."""

    name = "negmerge"
    about = "W − λ·mean of several T where all agree in sign"
    paper = "NegMerge, Kim et al., arXiv 2410.05583"
    published = Training(learning_rate=1e-4, batch_size=32)  # the rate is ours
    Settings = NegMergeSettings
    bench = (BenchPoints((0.5, 0.75, 1.0, 1.125, 1.25, 1.375, 1.5, 2.0)),)

    @classmethod
    @override
    def line(cls, request: ChangeRequest) -> Line:
        from weightsurgery.algebra.negations import agreed

        spread, seeds = request.settings["spread"], range(request.settings["seeds"])
        vectors = [
            vector(
                request,
                request.forget,
                replace(
                    request.training,
                    learning_rate=rate * request.training.learning_rate,
                    seed=request.training.seed + seed,
                ),
            )
            for rate in sorted({1 / spread, 1.0, spread})
            for seed in seeds
        ]
        return Line({name: agreed([change[name] for change in vectors]) for name in vectors[0]})
