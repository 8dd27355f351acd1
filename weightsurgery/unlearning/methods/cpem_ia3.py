"""CPEM with (IA)³: trained scaling vectors, negated and folded into the weights.

CPEM negates an adapter inside: the factor ``A`` or the factor ``B`` of LoRA, never both (which
would change nothing), and ``l → (1 + s) − s·l`` of (IA)³. On the weights both are plain negation,
``−s · (B A)`` and ``−s · (l − 1) ∘ W``, so that what distinguishes them is what was trained.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from weightsurgery.checkpoint.selection import Selection
from weightsurgery.errors import EditError, UnsupportedCheckpointError
from weightsurgery.learning.settings import Training
from weightsurgery.unlearning.merging import BenchPoints, ByMerging, Line

if TYPE_CHECKING:
    from weightsurgery.unlearning.system import ChangeRequest


__all__ = ["NegatedScaling"]


class NegatedScaling(ByMerging):
    """``l → (1 + s) − s·l`` of trained (IA)³ vectors (Zhang et al. 2023, arXiv 2306.14870)."""

    name = "cpem-ia3"
    about = "l → (1 + s) − s·l of trained (IA)³ vectors, folded into W"
    paper = "CPEM, Zhang et al., arXiv 2306.14870"
    published = Training(learning_rate=1e-2, batch_size=32)  # the rate is ours
    takes_rank = False
    bench = (
        BenchPoints((2.0, 4.0, 6.0, 8.0), rate=60),
        BenchPoints((1.5, 2.0, 2.5, 3.0), rate=200),
    )

    @classmethod
    def line(cls, request: ChangeRequest) -> Line:
        """See :class:`ByMerging`.

        Raises:
            EditError: A rank was given.
            UnsupportedCheckpointError: A bias would be scaled that is not among what may change.
        """
        # peft takes seconds to import
        from weightsurgery.learning.scaling import attached, folded, train_scaling

        if request.lora_rank is not None:
            raise EditError("scaling vectors as a LoRA adapter", "Leave out --lora-rank.")
        with attached(request.model, request.names) as adapted:
            beside = sorted(set(folded(adapted)) - set(request.names))
        if beside:
            raise UnsupportedCheckpointError(
                f"{beside[0]!r}: (IA)³ scales this bias too, which is not among what may change",
                "Use cpem-lora, whose adapters change weights alone.",
            )
        return Line(
            train_scaling(
                request.model,
                request.tokenizer,
                request.forget,
                request.training,
                selection=Selection(include=request.names),
                progress=request.progress,
            )
        )
