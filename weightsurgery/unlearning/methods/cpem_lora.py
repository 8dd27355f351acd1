"""CPEM with a LoRA adapter, one factor of which is negated; see :mod:`.cpem_ia3`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from typing_extensions import override

from weightsurgery.learning.settings import Training
from weightsurgery.unlearning.merging import BenchPoints, ByMerging, Line, vector

if TYPE_CHECKING:
    from weightsurgery.unlearning.system import ChangeRequest


__all__ = ["NegatedLora"]


class NegatedLora(ByMerging):
    """``W − s·BA`` of a trained LoRA adapter (Zhang et al. 2023, arXiv 2306.14870)."""

    name = "cpem-lora"
    about = "W − s·BA, a LoRA adapter with one factor negated"
    paper = "CPEM, Zhang et al., arXiv 2306.14870"
    published = Training(learning_rate=1e-3, batch_size=32)  # the rate is ours
    adapter_rank = 16
    bench = (
        BenchPoints((0.75, 1.0, 1.25, 1.5), rate=10),
        BenchPoints((0.25, 0.375, 0.5, 0.75), rate=20),
    )

    @classmethod
    @override
    def line(cls, request: ChangeRequest) -> Line:
        rank = request.lora_rank or cls.adapter_rank
        return Line(vector(request, request.forget, lora_rank=rank))
