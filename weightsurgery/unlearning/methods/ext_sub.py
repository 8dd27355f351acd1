"""Ext-Sub: a good vector added, and of the bad one negated what it does not share with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from typing_extensions import override

from weightsurgery.checkpoint.naming import is_transposed
from weightsurgery.checkpoint.selection import LARGEST_SCALE
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


__all__ = ["ExtSub"]


@dataclass(frozen=True)
class ExtSubSettings(MergeSettings):
    """The settings of Ext-Sub.

    Attributes:
        expert: Factor of the good change that is added, 1 as published; 0 where the model itself
            is good at what is to be kept, and the good change only says what to spare.

    Raises:
        EditError: Values that make no sense.
    """

    expert: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_setting("expert", self.expert, "a finite number", -LARGEST_SCALE, LARGEST_SCALE)


class ExtSub(ByMerging):
    """``W + T_keep − λT`` less both's directions, by rows (Hu et al. 2023, arXiv 2308.08090)."""

    name = "ext-sub"
    about = "W + T_keep − λT less the directions of both, row by row"
    paper = "Ext-Sub, Hu et al., arXiv 2308.08090"
    published = Training(learning_rate=1e-4, batch_size=32)  # the rate is ours
    Settings = ExtSubSettings
    needs_keep = True
    # The base answers all that is to be kept, so that the good change has little to add: both.
    bench = (
        BenchPoints((0.5, 1.0, 2.0)),
        BenchPoints((0.75, 1.0, 1.25, 1.5, 2.0), settings={"expert": 0.0}),
    )

    @classmethod
    @override
    def line(cls, request: ChangeRequest) -> Line:
        from weightsurgery.algebra.negations import extracted

        bad, good = vector(request, request.forget), vector(request, request.keep)
        config = request.model.config.to_dict()
        negated = {}
        for name, tensor in bad.items():
            # A row is what belongs to one output; a bias or norm is one row.
            transposed = is_transposed(name, config)
            rows, others = (
                matrix.T if transposed else matrix.reshape(-1, matrix.shape[-1])
                for matrix in (tensor, good[name])
            )
            residual = extracted(rows, others)
            negated[name] = (
                residual.T if transposed else residual.reshape(tensor.shape)
            ).contiguous()
        expert = request.settings["expert"]
        return Line(negated, {name: expert * tensor for name, tensor in good.items()})
