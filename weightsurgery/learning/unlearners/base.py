"""What all unlearners share: one forward pass of both batches, models held still, when to stop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.func import functional_call
from transformers import PreTrainedModel, TrainerCallback

from weightsurgery.errors import EditError
from weightsurgery.learning.data import IGNORED
from weightsurgery.learning.settings import Training
from weightsurgery.learning.training import StageTrainer
from weightsurgery.learning.unlearners.losses import completion_nll
from weightsurgery.learning.unlearners.work import Work

__all__ = ["NoSettings", "Said", "Unlearner"]


@dataclass(frozen=True)
class NoSettings:
    """For methods without a setting of their own."""


@dataclass(frozen=True)
class Said:
    """What a model said to a batch.

    Attributes:
        inputs: The batch: tokens, attention mask and labels, each (rows, tokens).
        logits: Shape (rows, tokens, vocabulary).
        hidden: What each layer was given and the last one gave, each (rows, tokens, hidden), where
            that was asked for.
    """

    inputs: Mapping[str, Tensor]
    logits: Tensor
    hidden: tuple[Tensor, ...] = ()

    @property
    def counted(self) -> Tensor:
        """Logits whose next token belongs to a completion, shape (positions, vocabulary)."""
        return self.logits[:, :-1][self.inputs["labels"][:, 1:] != IGNORED]

    @property
    def nll(self) -> tuple[Tensor, Tensor]:
        """Negative log-likelihood of each completion and its number of tokens, each (rows,)."""
        return completion_nll(self.logits, self.inputs["labels"])

    @property
    def cross_entropy(self) -> Tensor:
        """The mean over all tokens of all completions."""
        nll, tokens = self.nll
        return nll.sum() / tokens.sum()

    def states(self, layer: int) -> Tensor:
        """What a layer gave at every token, shape (positions, hidden)."""
        return self.hidden[layer + 1][self.inputs["attention_mask"].bool()]


class Unlearner(StageTrainer):
    """A Trainer whose loss is of a batch to forget and, where there is one, a batch to keep.

    Models that stand still (the one before, and helpers) are held as their values of the trained
    parameters alone, on the device: one copy of these per model, and the rest is shared with the
    model that is trained. Each costs a forward pass per step.

    Attributes:
        paper: Where the method comes from.
        published: How the paper trains, as far as it was found; the rest is ours.
        Settings: The method's own settings, a dataclass; its defaults are the paper's where the
            class says so.
        needs_keep: Whether it works on data to keep.
        needs_unseen: Whether it measures by data the model never saw.
        adapter_rank: Rank of the adapter, for a method that is one.
        asks_hidden: Whether the loss is of hidden states.
        models: How many models stand still at most.
    """

    paper: ClassVar[str] = ""
    published: ClassVar[Training] = Training()
    Settings: ClassVar[type] = NoSettings
    needs_keep: ClassVar[bool] = False
    needs_unseen: ClassVar[bool] = False
    adapter_rank: ClassVar[int | None] = None
    asks_hidden: ClassVar[bool] = False
    models: ClassVar[int] = 0

    def __init__(  # type: ignore[no-untyped-def]
        self, *args, settings: Any = None, prepared: Mapping[str, Any] | None = None, **kwargs
    ) -> None:
        super().__init__(*args, **kwargs)
        if self.is_fsdp_enabled:
            raise EditError(
                "unlearning under FSDP: sharded weights cannot stand in for those before",
                "Use plain torchrun or accelerate launch, with --lora-rank if memory is short.",
            )
        # Losses here are means of their own; Trainer then divides by the accumulation.
        self.model_accepts_loss_kwargs = False
        self.settings = self.Settings() if settings is None else settings
        self.prepared = dict(prepared or {})
        self.add_callback(_Stop(self))

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
    def prepare(cls, work: Work) -> dict[str, Any]:
        """What is needed before the training: models that stand still, thresholds."""
        return {}

    def loss(self, forget: Said, keep: Said | None) -> Tensor:
        """The loss of a step; float32."""
        raise NotImplementedError

    def after_step(self) -> bool:
        """Whether to end, asked after every step."""
        return False

    def after_epoch(self) -> bool:
        """Whether to end, asked after every pass over the data to forget."""
        return False

    def outcome(self) -> dict[str, Any]:
        """What the record should say of the training."""
        return {}

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):  # type: ignore[no-untyped-def]
        """See Trainer."""
        keep = None if self.retain is None else self._keep_batch()
        # One pass for both: data-parallel training allows no more than one before a backward pass.
        batch = inputs if keep is None else self._joined(inputs, keep)
        said = self._ask(model, batch)
        count = inputs["input_ids"].shape[0]
        forgotten = _part(said, inputs, slice(0, count))
        kept = None if keep is None else _part(said, keep, slice(count, None))
        loss = self.loss(forgotten, kept)
        return (loss, {"logits": said.logits}) if return_outputs else loss

    def _keep_batch(self) -> dict[str, Tensor]:
        assert self.retain is not None
        step, micro = self.state.global_step, 0
        if self._micro[0] == step:
            micro = self._micro[1] + 1
        self._micro = (step, micro)
        batch = self.retain.batch((step, micro, self.args.process_index))
        found: dict[str, Tensor] = self._prepare_inputs(batch)
        return found

    def _joined(self, inputs: Mapping[str, Any], keep: Mapping[str, Tensor]) -> dict[str, Any]:
        assert self.retain is not None
        return self.retain.join(inputs, keep)

    def _ask(self, model: Any, batch: Mapping[str, Tensor]) -> Said:
        out = model(**_asked(batch, self.asks_hidden))
        return Said(batch, out.logits, tuple(out.hidden_states or ()) if self.asks_hidden else ())

    @torch.no_grad()
    def said_by(self, which: str, batch: Mapping[str, Tensor]) -> Said:
        """What a model that stands still says to a batch, in evaluation mode."""
        model: Any = self.model
        model.eval()
        try:
            out = functional_call(model, self.prepared[which], (), _asked(batch, self.asks_hidden))
        finally:
            model.train()
        return Said(batch, out.logits, tuple(out.hidden_states or ()) if self.asks_hidden else ())

    def agreed(self, value: float) -> float:
        """The mean of a number over all processes, so that they end together."""
        mine = torch.tensor(value, dtype=torch.float64, device=self.args.device)
        return float(self.accelerator.reduce(mine, "mean"))


def _asked(batch: Mapping[str, Tensor], hidden: bool) -> dict[str, Any]:
    """A batch as a model takes it: without labels, or it would work out a loss of its own."""
    inputs: dict[str, Any] = {name: batch[name] for name in ("input_ids", "attention_mask")}
    return {**inputs, "use_cache": False, "output_hidden_states": hidden}


def _part(said: Said, inputs: Mapping[str, Tensor], rows: slice) -> Said:
    """Of what was said to a joined batch, what belongs to one of the two, padded as that was."""
    width = inputs["input_ids"].shape[1]
    hidden = tuple(each[rows, :width] for each in said.hidden)
    return Said(inputs, said.logits[rows, :width], hidden)


class _Stop(TrainerCallback):
    """Ends training when a method says so."""

    def __init__(self, trainer: Unlearner) -> None:
        self.trainer = trainer

    def on_step_end(self, args, state, control, **kwargs):  # type: ignore[no-untyped-def]
        """Called by Trainer after each step."""
        if self.trainer.after_step():
            control.should_training_stop = True

    def on_epoch_end(self, args, state, control, **kwargs):  # type: ignore[no-untyped-def]
        """Called by Trainer after each pass over the data."""
        if self.trainer.after_epoch():
            control.should_training_stop = True
