"""KGA: the knowledge gap on what to forget is aligned with the gap on unseen data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from weightsurgery.deferred import torch
from weightsurgery.errors import EditError
from weightsurgery.learning.settings import Training
from weightsurgery.learning.unlearners.losses import kl
from weightsurgery.unlearning.by_loss import BenchGrid, ByLoss, check_helpers, check_not_negative

if TYPE_CHECKING:
    from torch import Tensor

    from weightsurgery.learning.unlearners.batch_outputs import BatchOutputs, BatchTotals
    from weightsurgery.learning.unlearners.work import Preparation


__all__ = ["KnowledgeGapAlignment"]


@dataclass(frozen=True)
class KGASettings:
    """The settings of KGA.

    Attributes:
        alpha: Weight of what to keep.
        stop: Training ends when the gaps are apart by this share of what they were.
        helper_steps: Training steps per helper.
        helper_rate: Learning rate of the helpers.

    Raises:
        EditError: Values that make no sense.
    """

    alpha: float = 0.1
    stop: float = 0.1
    helper_steps: int = 30
    helper_rate: float = 5e-5

    def __post_init__(self) -> None:
        check_not_negative(self, "alpha")
        if not 0 <= self.stop < 1:
            raise EditError(f"stop = {self.stop}", "Give a share below 1; 0 for no early end.")
        check_helpers(self)


class KnowledgeGapAlignment(ByLoss):
    """KGA: ``L = |KL(f*‖A_f)(D_f) − KL(A_n‖A_D)(D_n)| + α KL(f*‖A_D)(D_r)``.

    Wang et al. 2023, arXiv 2305.06535. ``A_D`` is the model before; ``A_f`` is trained on what to
    forget and ``A_n`` on data the model never saw. ``f*`` shall know as much less of ``D_f`` than
    ``A_f`` as ``A_D`` knows less of ``D_n`` than ``A_n``. Published: α = 0.1 (their code's
    default; 0.3 for generation), learning rate 5e-5, batches of 16, up to 50 epochs, weight decay
    1e-4, as for response generation; an end when the first term is at 0.1 to 0.3 of its first
    value. Divergences are the paper's way round; their code takes those of ``f*`` the other way,
    and lowers the rate by the inverse square root of the step. Ours: both helpers start from the
    model before, since there may be no earlier checkpoint; their steps and rate; the gap on
    ``D_n`` is taken over all of it, once, so that ``A_n`` need not be held.
    """

    name = "kga"
    about = "the gap to a model that knows it becomes that of unseen data"
    paper = "Wang et al. 2023, arXiv 2305.06535"
    published = Training(epochs=50, learning_rate=5e-5, batch_size=16, weight_decay=1e-4)
    Settings = KGASettings
    references = 2
    needs_keep = True
    needs_unseen = True
    _step: Tensor | None = None
    bench = (
        BenchGrid("knowledge-gap alignment, unseen data of another world", rates=(3e-5, 1e-4)),
    )

    @classmethod
    def prepare(cls, work: Preparation) -> dict[str, Any]:
        """The helper models, and the gap."""
        work.helpers = 2
        schedule = work.settings.helper_steps, work.settings.helper_rate
        base = work.current_values()
        unseen = work.finetuned("helper of unseen data", work.unseen, *schedule)
        gap = work.divergence(unseen, base, work.unseen)
        del unseen
        helper = work.finetuned("helper of what to forget", work.forget, *schedule)
        return {"base": base, "helper": helper, "gap": gap}

    @override
    def loss(self, forget: BatchOutputs, keep: BatchOutputs | None) -> Tensor:
        from weightsurgery.learning.unlearners.batch_outputs import BatchTotals

        assert keep is not None
        divergence = self._from_helper(forget)
        gap: float = self.prepared["gap"]
        excess = (self.sum_over_processes(divergence) if self._step is None else self._step) - gap
        self._apart = abs(float(excess))
        # This part's share of |excess|, whose gradient takes the sign of the whole step's.
        share = BatchTotals.of(forget.inputs).tokens.to(divergence.dtype) / forget.whole.tokens
        apart = excess.sign() * (divergence - gap * share)
        before = self.reference_outputs("base", keep.inputs)
        retained = kl(keep.counted, before.counted, keep.whole.tokens)
        alpha: float = self.settings.alpha
        return apart + alpha * retained

    def _from_helper(self, forget: BatchOutputs) -> Tensor:
        """``KL(f*‖A_f)(D_f)``."""
        helper = self.reference_outputs("helper", forget.inputs)
        return kl(forget.counted, helper.counted, forget.whole.tokens)

    def before_step(self, forget: Sequence[Mapping[str, Tensor]], whole: BatchTotals) -> None:
        """See :class:`Unlearner`; the step's gap, if no single pass computes it."""
        from weightsurgery.learning.training import isolated  # which loads models

        self._step = None
        if self.trainer.args.gradient_accumulation_steps > 1:
            model: Any = self.trainer.model
            model.train()
            with torch.no_grad(), isolated():
                # One at a time: logits of all would take what accumulation is to save.
                parts = [
                    self._from_helper(
                        replace(self.trainer.model_outputs(model, batch), part_of=whole)
                    )
                    for batch in forget
                ]
            self._step = self.sum_over_processes(torch.stack(parts).sum())

    @override
    def after_step(self) -> bool:
        apart, first = self.mean_over_processes(self._apart), self._first
        if first is None:
            # Beside the losses, where a run that goes on after a kill finds it.
            self.trainer.state.log_history.append(
                {"apart": apart, "step": self.trainer.state.global_step}
            )
            return False
        return bool(apart <= self.settings.stop * first)

    @property
    def _first(self) -> float | None:
        return next(
            (row["apart"] for row in self.trainer.state.log_history if "apart" in row), None
        )

    @override
    def outcome(self) -> dict[str, Any]:
        distance = {"first": self._first, "last": getattr(self, "_apart", None)}
        return {"gap": self.prepared["gap"], "apart": distance}
