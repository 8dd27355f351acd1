"""The plain training loop: all weights, on all examples, at a warmed-up and falling rate."""

import math
import random
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import numpy
import torch
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from weightsurgery.learning.data import Collator, Example, encode_all, padding_token
from weightsurgery.learning.models import quiet
from weightsurgery.learning.placement import (
    check_steps,
    gpus_in_use,
    on_device,
    pinned,
    repeatable,
    underway,
)

__all__ = ["Schedule", "fit", "isolated"]


@dataclass(frozen=True)
class Schedule:
    """Learning-rate schedule and length of a training.

    Attributes:
        batch: Examples per step.
        learning_rate: Peak of AdamW's learning rate.
        final: Share of the peak at which the cosine ends and then stays.
        warmup: Steps of linear warm-up.
        weight_decay: AdamW weight decay.
        steps: Steps over which the learning rate falls.
        step_cap: Steps at which training ends.
    """

    batch: int
    learning_rate: float
    final: float
    warmup: int
    weight_decay: float
    steps: int
    step_cap: int

    def factor(self, step: int) -> float:
        """The learning rate after `step` finished steps, as a share of the peak."""
        warm = min(1.0, (step + 1) / self.warmup) if self.warmup else 1.0
        fall = 0.5 + 0.5 * math.cos(math.pi * min(1.0, step / self.steps))
        return warm * (self.final + (1.0 - self.final) * fall)


@contextmanager
def isolated(seed: int, threads: int) -> Iterator[None]:
    """Random numbers from `seed` and `threads` torch threads inside; as they were, after.

    Args:
        seed: Seeds torch, numpy and `random`.
        threads: Torch threads; the weights that training ends with depend on it.
    """
    python_state, numpy_state = random.getstate(), numpy.random.get_state()
    threads_before = torch.get_num_threads()
    try:
        with torch.random.fork_rng(devices=gpus_in_use()):
            torch.set_num_threads(threads)
            torch.manual_seed(seed)
            numpy.random.seed(seed % 2**32)
            random.seed(seed)
            yield
    finally:
        torch.set_num_threads(threads_before)
        random.setstate(python_state)
        numpy.random.set_state(numpy_state)


class _AfterStep(TrainerCallback):
    """Ends training when a callback, called after every step, says that it is done."""

    def __init__(self, done: Callable[[int], bool]) -> None:
        self.done, self.ended = done, False

    def on_step_end(self, args, state, control, **kwargs):  # type: ignore[no-untyped-def]
        """Called by Trainer after each step."""
        if self.done(state.global_step):
            control.should_training_stop = self.ended = True
        return control


def fit(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    schedule: Schedule,
    seed: int,
    done: Callable[[int], bool],
) -> int:
    """Trains all weights on the examples' completions, printing nothing.

    Args:
        model: Trained in place, where it is; left in evaluation mode.
        tokenizer: Its tokenizer.
        examples: What to learn; their order is drawn from `seed`.
        schedule: Learning rate and length.
        seed: Of everything random in the run.
        done: Called with the number of finished steps after each; true ends the training.

    Returns:
        Steps taken, at most `schedule.step_cap`.

    Raises:
        EditError: Fewer were taken, although it was not done.
    """
    with on_device(model.device):
        steps = repeatable(
            model.device, partial(_fit, model, tokenizer, examples, schedule, seed, done)
        )
    model.eval()  # type: ignore[no-untyped-call]
    return steps


def _fit(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    schedule: Schedule,
    seed: int,
    done: Callable[[int], bool],
) -> int:
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=schedule.learning_rate,
        betas=(0.9, 0.95),
        weight_decay=schedule.weight_decay,
        fused=True,
    )
    with quiet(), tempfile.TemporaryDirectory() as scratch:
        arguments = TrainingArguments(
            output_dir=scratch,
            max_steps=schedule.step_cap,
            per_device_train_batch_size=min(schedule.batch, len(examples)),
            dataloader_drop_last=True,
            max_grad_norm=1.0,
            seed=seed,
            data_seed=seed,
            use_cpu=model.device.type == "cpu",
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
            remove_unused_columns=False,
        )
        after = _AfterStep(done)
        trainer = Trainer(
            model=model,
            args=pinned(arguments, model.device),
            data_collator=Collator(padding_token(tokenizer)),
            train_dataset=encode_all(tokenizer, examples),
            callbacks=[after],
            optimizers=(optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, schedule.factor)),
        )
        trainer.remove_callback(PrinterCallback)
        try:
            trainer.train()
        except RuntimeError as error:
            underway(error, trainer.state.global_step)
            raise
        steps = trainer.state.global_step
    if not after.ended:
        check_steps(steps, schedule.step_cap, "fine-tuning")
    return steps
