"""An unlearner: a loss of the outputs on data to forget and data to keep, and when to end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from weightsurgery.learning.settings import Training
from weightsurgery.learning.unlearners.settings import NoSettings

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from weightsurgery.learning.training import EncodedRows
    from weightsurgery.learning.unlearners.batch_outputs import BatchOutputs, BatchTotals
    from weightsurgery.learning.unlearners.work import Preparation

__all__ = ["Unlearner"]


class Unlearner:
    """A loss of a batch to forget and, where there is one, a batch to keep.

    Frozen references (the model before, and helpers) are held as their values of the trained
    parameters alone, on the device: one copy of these per model, and the rest is shared with the
    model that is trained. Each costs a forward pass per step.

    Args:
        settings: The method's own; None for its defaults.
        prepared: From :meth:`prepare`.

    Attributes:
        paper: Where the method comes from.
        published: Settings of the paper's training, as far as known; the rest are ours.
        Settings: The method's settings, a dataclass; its defaults are the paper's where the class
            says so.
        needs_keep: Whether it works on data to keep.
        needs_unseen: Whether it measures by data the model never saw.
        adapter_rank: Rank of the adapter, for a method that is one.
        needs_hidden_states: Whether the loss is of hidden states.
        references: How many frozen references at most.
        trainer: The :class:`~weightsurgery.learning.unlearners.trainer.UnlearningTrainer` that it
            is trained by.
    """

    paper: ClassVar[str] = ""
    published: ClassVar[Training] = Training()
    Settings: ClassVar[type] = NoSettings
    needs_keep: ClassVar[bool] = False
    needs_unseen: ClassVar[bool] = False
    adapter_rank: ClassVar[int | None] = None
    needs_hidden_states: ClassVar[bool] = False
    references: ClassVar[int] = 0
    trainer: Any = None

    def __init__(self, settings: Any = None, prepared: Mapping[str, Any] | None = None) -> None:
        self.settings = self.Settings() if settings is None else settings
        self.prepared = dict(prepared or {})

    @classmethod
    def keeps(cls, settings: Any) -> bool:
        """Whether it works on data to keep, with these settings."""
        return cls.needs_keep

    @classmethod
    def parameters(
        cls, model: PreTrainedModel, names: Sequence[str], settings: Any, chosen: bool
    ) -> list[str]:
        """Which of the selected parameters are trained; all unless a method says otherwise."""
        return list(names)

    @classmethod
    def prepare(cls, work: Preparation) -> dict[str, Any]:
        """Prepares what the training needs: frozen references, thresholds."""
        return {}

    @classmethod
    def rows(cls, work: Preparation, prepared: Mapping[str, Any]) -> EncodedRows:
        """The rows to train on; the examples to forget unless a method says otherwise."""
        from weightsurgery.learning.training import EncodedRows  # which loads models

        return EncodedRows(work.rows(work.forget), work.collate)

    def loss(self, forget: BatchOutputs, keep: BatchOutputs | None) -> Tensor:
        """The loss of a step; float32."""
        raise NotImplementedError

    def after_step(self) -> bool:
        """Whether to end; called after every step."""
        return False

    def after_epoch(self) -> bool:
        """Whether to end; called after every pass over the data to forget."""
        return False

    def outcome(self) -> dict[str, Any]:
        """Figures of the training for the record."""
        return {}

    def before_step(self, forget: Sequence[Mapping[str, Tensor]], whole: BatchTotals) -> None:
        """Called before every step with this process's batches to forget, one per micro-step.

        Args:
            forget: The batches.
            whole: What they are parts of, the other processes' included.
        """

    def reference_outputs(self, which: str, batch: Mapping[str, Tensor]) -> BatchOutputs:
        """Outputs of one of the prepared frozen references for a batch, in evaluation mode."""
        outputs: BatchOutputs = self.trainer.reference_outputs(self.prepared[which], batch)
        return outputs

    def sum_over_processes(self, value: Tensor) -> Tensor:
        """The sum of a tensor over all processes."""
        total: Tensor = self.trainer.sum_over_processes(value)
        return total

    def mean_over_processes(self, value: float) -> float:
        """The mean of a number over all processes, so that they end together."""
        return float(self.trainer.mean_over_processes(value))

    def release(self) -> None:
        """Let go of the models and the trainer."""
        self.prepared.clear()
        self.trainer = None
