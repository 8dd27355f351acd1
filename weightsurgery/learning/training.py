"""Training some of a model's weights with transformers' Trainer, and stopping cleanly."""

from __future__ import annotations

import gc
import random
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy
import torch
from transformers import (
    EarlyStoppingCallback,
    PreTrainedModel,
    PrinterCallback,
    TrainerCallback,
    TrainingArguments,
)

from weightsurgery.errors import EditError, NonFiniteError
from weightsurgery.learning.data import Collator, Encoded
from weightsurgery.learning.method import Stage
from weightsurgery.learning.placement import (
    check_steps,
    gpus_in_use,
    narrow,
    on_device,
    pinned,
    repeatable,
    underway,
)
from weightsurgery.learning.points import last_point
from weightsurgery.learning.retain import Retain
from weightsurgery.learning.settings import Training
from weightsurgery.learning.sharding import (
    is_sharded,
    own_sharding,
    piece,
    require_gradients,
    resharded,
    sharding,
)
from weightsurgery.learning.trainer import StageTrainer, Steps, Until
from weightsurgery.progress import Progress

__all__ = ["EncodedRows", "Trained", "isolated", "train_stage"]


@dataclass(frozen=True)
class EncodedRows:
    """The data of a training, as tokens.

    Attributes:
        train: At least one example.
        collate: Makes batches.
        validation: What the loss is watched on; may be empty.
    """

    train: Sequence[Encoded]
    collate: Collator
    validation: Sequence[Encoded] = ()


@dataclass(frozen=True)
class Trained:
    """A trained stage's losses.

    Attributes:
        stage: Its name.
        steps: Steps taken.
        first_loss: Loss of the first batch, before any of this stage's steps.
        last_loss: Loss of the last batch.
        best_validation: Lowest validation loss, whose weights stay; None without validation.
    """

    stage: str
    steps: int
    first_loss: float
    last_loss: float
    best_validation: float | None = None


@contextmanager
def isolated() -> Iterator[None]:
    """Random numbers drawn inside, and seeds set there, do not show outside."""
    python_state, numpy_state = random.getstate(), numpy.random.get_state()
    try:
        with torch.random.fork_rng(devices=gpus_in_use()):
            yield
    finally:
        random.setstate(python_state)
        numpy.random.set_state(numpy_state)


def arguments(
    training: Training, rows: EncodedRows, directory: Path, device: torch.device, resumable: bool
) -> TrainingArguments:
    """The Trainer's arguments for one stage."""
    watched = bool(rows.validation)
    batch = min(training.batch_size, len(rows.train))
    built = TrainingArguments(
        output_dir=str(directory),
        max_steps=training.steps if training.steps is not None else -1,
        num_train_epochs=training.epochs,
        learning_rate=training.learning_rate,
        per_device_train_batch_size=batch,
        per_device_eval_batch_size=batch,
        gradient_accumulation_steps=training.accumulation,
        warmup_steps=training.warmup,
        weight_decay=training.weight_decay,
        seed=training.seed,
        data_seed=training.seed,
        bf16=training.precision == "bfloat16",
        fp16=training.precision == "float16",
        use_cpu=device.type == "cpu",
        save_strategy="steps" if resumable or watched else "no",
        save_steps=training.save_every,
        eval_strategy="steps" if watched else "no",
        eval_steps=training.save_every,
        load_best_model_at_end=watched,
        metric_for_best_model="eval_loss" if watched else None,
        greater_is_better=False if watched else None,
        restore_callback_states_from_checkpoint=watched and training.patience is not None,
        logging_strategy="steps",
        logging_steps=1,
        logging_nan_inf_filter=False,
        log_level="error",
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        label_names=["labels"],
        prediction_loss_only=True,
        **{"lr_scheduler_type": "constant_with_warmup", **training.extra},
    )
    return pinned(built, device)


def train_stage(
    model: PreTrainedModel,
    stage: Stage,
    rows: EncodedRows,
    training: Training,
    *,
    directory: Path | None = None,
    device: torch.device,
    retain: Retain | None = None,
    place: tuple[int, int] = (0, 1),
    progress: Progress | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    enough: Callable[[int], bool] | None = None,
    kind: Callable[..., StageTrainer] = StageTrainer,
) -> Trained:
    """Trains a stage's parameters in place, all others frozen.

    Gradients and optimiser state exist for these parameters alone, and are gone on return; so
    is everything else that Trainer put on the model.

    Args:
        model: With float32 weights; left in evaluation mode, all of it frozen.
        stage: What to train.
        rows: On what.
        training: How.
        directory: Where the Trainer keeps its checkpoints; one found there is continued. None
            for a run that need not survive a kill.
        device: Where to train.
        retain: A term that holds the model to its base on keep data.
        place: Number of the stage, from 0, and of stages, for ``progress``.
        progress: Called as ``progress(text, done, total)`` in steps.
        optimizer: Of the stage's parameters, instead of AdamW.
        enough: Asked after every step, with the number of steps taken, whether to end.
        kind: Makes the Trainer, which knows the loss.

    Returns:
        What came of it.

    Raises:
        NonFiniteError: The loss, or a trained weight, is NaN or infinite.
        OutputError: A checkpoint cannot be written.
        EditError: Fewer steps were taken than wanted, or the model is whole where it was to be
            sharded.
    """

    def once() -> Trained:
        return _train_stage(
            model, stage, rows, training, directory, device, retain, place, progress, optimizer,
            enough, kind,
        )  # fmt: skip

    with on_device(device):
        return repeatable(device, once)


def _train_stage(
    model: PreTrainedModel,
    stage: Stage,
    rows: EncodedRows,
    training: Training,
    directory: Path | None,
    device: torch.device,
    retain: Retain | None,
    place: tuple[int, int],
    progress: Progress | None,
    optimizer: torch.optim.Optimizer | None,
    enough: Callable[[int], bool] | None,
    kind: Callable[..., StageTrainer],
) -> Trained:
    _refuse_whole(model)
    wanted = set(stage.parameters)
    require_gradients(model, wanted)
    cached = model.config.use_cache
    _checkpoint_activations(model, training.gradient_checkpointing)
    scratch = tempfile.TemporaryDirectory() if directory is None else nullcontext(str(directory))
    with _young_garbage(), narrow(model, training.precision), own_sharding(), scratch as path:
        folder = Path(path)
        callbacks: list[TrainerCallback] = [Steps(stage.name, place, progress)]
        if training.patience is not None and rows.validation:
            callbacks.append(EarlyStoppingCallback(early_stopping_patience=training.patience))
        if enough is not None:
            callbacks.append(Until(enough))
        trainer = kind(
            model=model,
            args=arguments(training, rows, folder, device, resumable=directory is not None),
            data_collator=rows.collate,
            train_dataset=list(rows.train),
            eval_dataset=list(rows.validation) or None,
            callbacks=callbacks,
            optimizers=(optimizer, None),
        )
        trainer.retain = retain
        trainer.remove_callback(PrinterCallback)
        try:
            resume = last_point(folder)
            begun = 0 if resume is None else int(resume.name.removeprefix("checkpoint-"))
            try:
                trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
            except RuntimeError as error:
                underway(error, trainer.state.global_step - begun)
                raise
            endless = enough is None and training.patience is None and kind is StageTrainer
            least = trainer.state.max_steps if endless else 1  # others may end sooner
            check_steps(trainer.state.global_step, least, stage.name)
            trained = _outcome(trainer, stage)
        finally:
            _take_off(trainer, model, cached)
    for name, parameter in model.named_parameters():
        if name in wanted and not torch.isfinite(piece(parameter)).all():
            raise NonFiniteError(
                f"{stage.name}: {name!r} holds NaN or infinity after step {trained.steps}",
                "Lower the learning rate or raise --warmup.",
            )
    return trained


def _refuse_whole(model: PreTrainedModel) -> None:
    if sharding() and not is_sharded(model):
        raise EditError(
            "a whole model under FSDP, which shards models as they are read",
            "Load it with load_float32, or launch without FSDP.",
        )


def _outcome(trainer: StageTrainer, stage: Stage) -> Trained:
    losses = [float(row["loss"]) for row in trainer.state.log_history if "loss" in row]
    best = trainer.state.best_metric
    return Trained(
        stage.name,
        trainer.state.global_step,
        losses[0],
        losses[-1],
        None if best is None else float(best),
    )


def _checkpoint_activations(model: PreTrainedModel, wanted: bool) -> None:
    """Compute activations again in the backward pass, or hold them."""
    with warnings.catch_warnings():
        # The new name of this setting does not exist in all versions that serve.
        warnings.simplefilter("ignore", FutureWarning)
        if wanted:
            model.gradient_checkpointing_enable(  # type: ignore[no-untyped-call]
                {"use_reentrant": False}
            )
        elif model.is_gradient_checkpointing:
            model.gradient_checkpointing_disable()  # type: ignore[no-untyped-call]


@contextmanager
def _young_garbage() -> Iterator[None]:
    """Garbage collections inside, of which Trainer makes some, look at new objects alone.

    They take half a second each where transformers is loaded, longer than a small training.
    """
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _take_off(trainer: StageTrainer, model: PreTrainedModel, cached: bool) -> None:
    """Take gradients, optimiser, autocast and settings off the model again."""
    # Mixed precision wraps forward(); a second Trainer would wrap it once more.
    trainer.accelerator.unwrap_model(model, keep_fp32_wrapper=False)
    _checkpoint_activations(model, False)
    trainer.accelerator.free_memory()
    resharded(model)
    trainer.optimizer = trainer.lr_scheduler = None
    trainer.callback_handler.optimizer = trainer.callback_handler.lr_scheduler = None
    model.config.use_cache = cached
    for parameter in model.parameters():
        parameter.grad = None
        parameter.requires_grad_(False)
    model.eval()  # type: ignore[no-untyped-call]
