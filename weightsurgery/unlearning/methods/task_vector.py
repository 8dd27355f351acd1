"""TV: the joint task vector, negated."""

from __future__ import annotations

from typing import TYPE_CHECKING

from typing_extensions import override

from weightsurgery.learning.settings import Training
from weightsurgery.unlearning.merging import BenchPoints, ByMerging, Line, vector

if TYPE_CHECKING:
    from weightsurgery.unlearning.system import ChangeRequest


__all__ = ["TaskVectorNegation"]


class TaskVectorNegation(ByMerging):
    """``W − λT``, T the joint task vector (Ilharco et al. 2023, arXiv 2212.04089)."""

    name = "task-vector"
    about = "W − λT, T the joint task vector"
    paper = "TV, Ilharco et al., arXiv 2212.04089"
    published = Training(learning_rate=1e-4, batch_size=32)  # the rate is ours
    # On the published grid, which ends at 1; the bench's `negate` goes on to 2.
    bench = (BenchPoints(tuple(k / 20 for k in range(6, 21, 2))),)

    @classmethod
    @override
    def line(cls, request: ChangeRequest) -> Line:
        return Line(vector(request, request.forget))
