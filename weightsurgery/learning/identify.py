"""Subspace identification: the task vector of a data set, layer by layer.

The first step of UNLEARN (Lizzo & Heck, arXiv 2408.04140). The paper gives neither equations nor
code, so this is a reconstruction, with three readings of it as modes:

``delta``
    Start from the checkpoint's weights ``W``. For each layer in turn, train that layer's selected
    weights alone, the layers before it as trained, all else frozen: ``T_l = W_l' − W_l``.
``literal``
    What the paper's figure literally says: draw every weight at random by the model's own
    initialisation, freeze, then train layer after layer; ``T_l = W_l' − init_l``.
``joint``
    All selected weights at once, in full or as a LoRA adapter: an ordinary fine-tune, the baseline
    that layer-wise training is to be held against.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from weightsurgery.algebra.lowrank import LowRank
from weightsurgery.checkpoint.selection import Selection
from weightsurgery.errors import EditError
from weightsurgery.learning.data import Collator, Example, padding_token
from weightsurgery.learning.method import IdentifyMode, Stage, stages_of
from weightsurgery.learning.models import quiet
from weightsurgery.learning.parameters import entries_of
from weightsurgery.learning.retain import Retain
from weightsurgery.learning.settings import Training
from weightsurgery.learning.sharding import whole
from weightsurgery.learning.stages import encode_rows, is_main, run_stages
from weightsurgery.learning.training import EncodedRows, Trained, isolated
from weightsurgery.learning.values import change_since, require_float32, restored
from weightsurgery.progress import Progress

__all__ = ["ALL_LINEAR", "DELTA", "JOINT", "adapted", "as_rows", "is_main", "train", "train_vector"]

DELTA, JOINT = IdentifyMode("delta"), IdentifyMode("joint")
ALL_LINEAR = Selection("all-linear")


def train_vector(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    training: Training,
    method: IdentifyMode = JOINT,
    *,
    selection: Selection = ALL_LINEAR,
    keep: Sequence[Example] = (),
    validation: Sequence[Example] = (),
    progress: Progress | None = None,
) -> dict[str, torch.Tensor]:
    """Trains a model in memory, and returns what changed; the model is as before, to the bit.

    Args:
        model: Float32; it is trained where it is, and restored, also after an error.
        tokenizer: Its tokenizer.
        examples: What to learn, at least one.
        training: How to train.
        method: Which weights at a time; modes ``delta`` and ``joint``.
        selection: Which weights, by their names in memory.
        keep: Examples on which the model is held to what it was.
        validation: What the loss is watched on.
        progress: Called as ``progress(text, done, total)`` in steps.

    Returns:
        Parameter → its change, float32 on the CPU, of the parameter's shape. The change of an
        adapter is multiplied out, and that of weights without gradients is zero.

    Raises:
        EditError: The weights to train are not float32, or the settings make no sense.
        DataError: There are no examples, or ones that the model cannot take.
        SelectionError: Nothing is selected.
        NonFiniteError: The loss, or a trained weight, is NaN or infinite.
    """
    if method.mode == "literal":
        raise EditError("mode literal in memory: it needs a model of its own", "Use identify().")
    names = list(selection.resolve(entries_of(model)))
    require_float32(model, names)
    device = model.device
    with restored(model, names) as before:
        with isolated(), quiet():
            rows, retain = as_rows(model, tokenizer, examples, keep, validation, training, method)
            _, factors = train(model, names, rows, training, method, device, retain, None, progress)
        if factors is None:
            return {name: whole(each).cpu() for name, each in change_since(model, before).items()}
        return {name: each.matrix() for name, each in factors.items()}


def as_rows(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    keep: Sequence[Example],
    validation: Sequence[Example],
    training: Training,
    method: IdentifyMode,
) -> tuple[EncodedRows, Retain | None]:
    """The data as tokens, and what holds the model to its base where there is data to keep.

    Raises:
        EditError: No examples, or data to keep in mode literal.
        DataError: Examples that the model cannot take.
    """
    if not examples:
        raise EditError("no examples to learn from", "Give at least one.")
    if method.mode == "literal" and keep:
        raise EditError(
            "keep data in mode literal: a model of random weights has nothing to keep",
            "Use --mode delta or joint.",
        )
    collate = Collator(padding_token(tokenizer))
    cut = training.max_length
    rows = EncodedRows(
        encode_rows(model, tokenizer, examples, cut),
        collate,
        encode_rows(model, tokenizer, validation, cut),
    )
    if not keep:
        return rows, None
    keep_rows = encode_rows(model, tokenizer, keep, cut)
    return rows, Retain(keep_rows, collate, method.keep_weight, training.batch_size, training.seed)


def train(
    model: PreTrainedModel,
    names: Sequence[str],
    rows: EncodedRows,
    training: Training,
    method: IdentifyMode,
    device: torch.device,
    retain: Retain | None,
    workspace: Path | None,
    progress: Progress | None,
) -> tuple[list[Trained], dict[str, LowRank] | None]:
    """Trains; for an adapter also takes it off again and returns its factors."""
    if method.lora_rank is None:
        stages = stages_of(list(names), method)
        return run_stages(
            model, stages, rows, training,
            device=device, retain=retain, workspace=workspace, progress=progress,
        ), None  # fmt: skip
    rank = method.lora_rank
    alpha = method.lora_alpha or rank
    with adapted(model, names, rank, alpha, training.seed) as at_work:
        if retain is not None:
            retain.originals = None  # the base is the model without its adapter
        within = tuple(n for n, each in at_work.named_parameters() if each.requires_grad)
        trained = run_stages(
            at_work, [Stage("all layers", within)], rows, training,
            device=device, retain=retain, workspace=workspace, progress=progress,
        )  # fmt: skip
        from weightsurgery.learning.adapter import factors

        return trained, factors(at_work, names)


@contextmanager
def adapted(
    model: PreTrainedModel, names: Sequence[str], rank: int, alpha: float, seed: int
) -> Iterator[Any]:
    """The model with a new adapter, which is taken off at the end.

    Args:
        model: Changed in place, and as before in the end.
        names: The parameters that are adapted.
        rank: Factors per matrix.
        alpha: The change is ``alpha / rank · B A``.
        seed: Of the first ``A``.
    """
    from weightsurgery.learning.adapter import attach, take_off  # peft takes seconds to import

    with_adapter = attach(model, names, rank, alpha, seed)
    try:
        yield with_adapter
    finally:
        take_off(with_adapter, model)
