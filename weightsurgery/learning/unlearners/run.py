"""Training a model in memory with an unlearner, and taking the change of its weights."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from weightsurgery.algebra.lowrank import LowRank
from weightsurgery.checkpoint.selection import Selection
from weightsurgery.errors import EditError
from weightsurgery.learning.data import Collator, Example, padding_token
from weightsurgery.learning.method import Stage
from weightsurgery.learning.models import PreTrainedModel, PreTrainedTokenizerBase, quiet
from weightsurgery.learning.parameters import entries_of
from weightsurgery.learning.retain import Retain
from weightsurgery.learning.settings import Training
from weightsurgery.learning.training import Trained, isolated, train_stage
from weightsurgery.learning.unlearners.base import Unlearner
from weightsurgery.learning.unlearners.trainer import UnlearningTrainer
from weightsurgery.learning.unlearners.work import Preparation
from weightsurgery.learning.values import change_since, require_float32, restored
from weightsurgery.progress import Progress

__all__ = ["Look", "UnlearnerResult", "train_unlearner"]

Change = dict[str, Tensor | LowRank]

Look = Callable[[int, Callable[[], Change]], bool]
"""Called after each step with the steps taken and what returns the change so far; true ends."""


@dataclass(frozen=True)
class UnlearnerResult:
    """The change of weights that an unlearner trained.

    Attributes:
        change: ``W' − W`` by parameter, on the CPU; an adapter's as factors.
        trained: Steps and losses.
        notes: Further figures for the record, by name.
    """

    change: Change
    trained: Trained
    notes: dict[str, Any] = field(default_factory=dict)


def train_unlearner(
    kind: type[Unlearner],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    forget: Sequence[Example],
    keep: Sequence[Example],
    training: Training,
    settings: Any,
    *,
    selection: Selection | None = None,
    unseen: Sequence[Example] = (),
    lora_rank: int | None = None,
    chosen: bool = False,
    look: Look | None = None,
    progress: Progress | None = None,
    workspace: Path | None = None,
) -> UnlearnerResult:
    """Trains, and restores the model to the bit, also after an error.

    Memory: the model, gradients and AdamW's moments of what is trained, its values before on the
    CPU, and a copy of the trained parameters for each frozen reference. Under torchrun or
    accelerate every process calls this.

    Args:
        kind: The method.
        model: Float32, on the device to work on.
        tokenizer: Its tokenizer.
        forget: What to forget; at least one.
        keep: What to keep.
        training: Settings of the training.
        settings: Of the method; see :func:`weightsurgery.learning.unlearners.settings.settings_of`.
        selection: Which parameters, by their names in memory; by default all linear layers.
        unseen: What the model never saw.
        lora_rank: Train an adapter of this rank instead of the weights.
        chosen: Whether the selection was made by hand; see :meth:`Unlearner.parameters`.
        look: See :data:`Look`.
        progress: Called as ``progress(text, done, total)`` in steps.
        workspace: Where the training saves its points, from which it goes on after a kill to the
            same result. None for nowhere.

    Raises:
        EditError: Data are missing, weights are not float32, or settings make no sense.
        DataError: Examples that the model cannot take.
        SelectionError: Nothing is selected.
        NonFiniteError: The loss or a weight is NaN or infinite, as gradient ascent ends if it
            goes on long enough.
    """
    keeps = kind.keeps(settings)
    _check(kind, forget, keep if keeps else None, unseen)
    names = list((selection or Selection("all-linear")).resolve(entries_of(model)))
    names = kind.parameters(model, names, settings, chosen)
    require_float32(model, names)
    rank = lora_rank if lora_rank is not None else kind.adapter_rank
    with (
        restored(model, names) as before,
        isolated(),
        quiet(),
        _lent(model, names, rank, training.seed) as (at_work, inside),
    ):
        work = Preparation(
            at_work, tokenizer, Stage(kind.__name__, inside), forget, keep, unseen, training,
            settings, model.device, Collator(padding_token(tokenizer)), progress=progress,
            workspace=workspace,
        )  # fmt: skip

        def change() -> Change:
            if rank is not None:
                from weightsurgery.learning.adapter import factors

                return {**factors(at_work, names)}
            return {**change_since(at_work, before)}

        trained, notes = _train(kind, work, keeps, look, change)
        return UnlearnerResult(change(), trained, notes)


def _check(
    kind: type[Unlearner],
    forget: Sequence[Example],
    keep: Sequence[Example] | None,
    unseen: Sequence[Example],
) -> None:
    if not forget:
        raise EditError("nothing to forget", "Give at least one example.")
    if keep is not None and not keep:
        raise EditError(
            f"{kind.__name__} without examples to keep, which its loss is made of", "Give some."
        )
    if kind.needs_unseen and not unseen:
        raise EditError(
            f"{kind.__name__} without examples the model never saw, which it measures by",
            "Give some of the same form as those to forget.",
        )


def _train(
    kind: type[Unlearner],
    work: Preparation,
    keeps: bool,
    look: Look | None,
    change: Callable[[], Change],
) -> tuple[Trained, dict[str, Any]]:
    prepared = kind.prepare(work)
    retain = None
    if keeps:
        training, processes = work.training, int(os.environ.get("WORLD_SIZE", "1"))
        step = training.batch_size * training.accumulation * processes
        retain = Retain(work.rows(work.keep), work.collate, 1.0, step, training.seed)
    unlearner = kind(work.settings, prepared)

    trained = train_stage(
        work.model,
        work.stage,
        kind.rows(work, prepared),
        work.training,
        directory=work.workspace and work.workspace / "training",
        device=work.device,
        retain=retain,
        place=(work.helpers, work.helpers + 1),
        progress=work.progress,
        enough=None if look is None else partial(_looked, look, change),
        kind=partial(UnlearningTrainer, unlearner),
    )
    notes = {**work.notes, **unlearner.outcome(), **asdict(trained)}
    unlearner.release()  # frozen references, before the next garbage collection
    return trained, notes


def _looked(look: Look, change: Callable[[], Change], step: int) -> bool:
    return look(step, change)


@contextmanager
def _lent(
    model: PreTrainedModel, names: Sequence[str], rank: int | None, seed: int
) -> Iterator[tuple[Any, tuple[str, ...]]]:
    """The model, or one with an adapter, and its parameters to train."""
    if rank is None:
        yield model, tuple(names)
        return
    from weightsurgery.learning.identify import adapted

    with adapted(model, names, rank, rank, seed) as with_adapter:
        trainable = (name for name, each in with_adapter.named_parameters() if each.requires_grad)
        yield with_adapter, tuple(trainable)
