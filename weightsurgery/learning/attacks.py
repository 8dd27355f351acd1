"""Does it stay forgotten? What relearning a part and rounding the weights bring back.

Relearning: Łucki et al., arXiv 2410.08827, train an unlearned model on some of the facts and ask
for the others. Quantisation: Zhang et al., arXiv 2410.16454, round its weights to 4 or 8 bits,
which undoes changes that are smaller than a step.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D

from weightsurgery.algebra.quantise import int_rtn, nf4_rtn
from weightsurgery.errors import EditError, NonFiniteError, WeightSurgeryError
from weightsurgery.learning.data import Example
from weightsurgery.learning.fitting import Schedule, fit, isolated
from weightsurgery.learning.models import refuse_offloaded
from weightsurgery.progress import Progress
from weightsurgery.suggestions import one_of

__all__ = ["ROUNDINGS", "check_relearning", "check_rounding", "quantised", "relearn"]


def _bitsandbytes() -> Any:
    # It tells of faster kernels that it could fetch, on loading.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    try:
        return importlib.import_module("bitsandbytes.functional")
    except ImportError as error:
        raise WeightSurgeryError(
            f"bitsandbytes cannot be loaded: {error}",
            "Install it with:  pip install bitsandbytes    or take nf4, which needs no library.",
        ) from error


def _by_bitsandbytes(weight: Tensor) -> Tensor:
    """NF4 by bitsandbytes, blocks of 64, without its second rounding of the scales."""
    library = _bitsandbytes()
    # Of one row: its kernel for processors takes the scales of other blocks where a row is no
    # whole number of blocks (0.50.2).
    row = weight.detach().float().contiguous().view(1, -1)
    if not bool(row.isfinite().all()):
        raise NonFiniteError(
            "NaN or infinity in a weight to quantise", "Quantise a checkpoint that is whole."
        )
    rounded: Tensor = library.dequantize_4bit(
        *library.quantize_4bit(row, blocksize=64, quant_type="nf4")
    )
    return rounded.view(weight.shape)


ROUNDINGS: Mapping[str, Callable[[Tensor], Tensor]] = MappingProxyType(
    {
        "int8": partial(int_rtn, bits=8),
        "int4": partial(int_rtn, bits=4),
        "int4-asymmetric": partial(int_rtn, bits=4, symmetric=False),
        "nf4": nf4_rtn,
        "nf4-bitsandbytes": _by_bitsandbytes,
    }
)
"""The methods of `quantised`: groups and blocks of 64. The last needs bitsandbytes."""


def check_relearning(steps: int, learning_rate: float, batch_size: int) -> None:
    """Refuses settings that train nothing, before a model is loaded for it.

    Raises:
        EditError: One is below its range.
    """
    if min(steps, batch_size) < 1 or not learning_rate > 0:
        raise EditError(
            f"relearning for {steps} steps of {batch_size} examples at {learning_rate:g}",
            "All three must be positive.",
        )


def relearn(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    steps: int = 40,
    learning_rate: float = 5e-4,
    batch_size: int = 64,
    seed: int = 0,
    progress: Progress | None = None,
    look: Callable[[int], None] | None = None,
) -> None:
    """Trains all weights on a part of what was forgotten; score the rest before and after.

    AdamW without weight decay, at a constant learning rate after a warm-up of at most 5 steps.
    Random numbers elsewhere do not notice.

    Args:
        model: Trained in place, in float32; left in evaluation mode. Load it for this alone.
        tokenizer: Its tokenizer.
        examples: What the attacker has, at least one.
        steps: Optimiser steps.
        learning_rate: AdamW's.
        batch_size: Examples per step; all of them if there are fewer.
        seed: Of their order.
        progress: Told of every step.
        look: Called with the number of finished steps after each. It may put the model into
            evaluation mode, and must change nothing else.

    Raises:
        EditError: A setting below its range, no examples, or weights in a smaller dtype, in which
            most steps would round to nothing and the attack would look weaker than it is.
    """

    def done(step: int) -> bool:
        if progress is not None:
            progress("relearning", step, steps)
        if look is not None:
            look(step)
            model.train()
        return False

    if not examples:
        raise EditError("relearning from no examples", "Give at least one.")
    check_relearning(steps, learning_rate, batch_size)
    narrow = {str(each.dtype) for each in model.parameters() if each.dtype != torch.float32}
    if narrow:
        raise EditError(
            f"relearning in {', '.join(sorted(narrow))} would lose most steps to rounding",
            "Load the model in float32, or call model.float() first.",
        )
    schedule = Schedule(batch_size, learning_rate, 1.0, min(5, steps), 0.0, steps, steps)
    with isolated(seed, torch.get_num_threads()):
        fit(model, tokenizer, examples, schedule, seed, done)


def check_rounding(method: str) -> None:
    """Refuses what cannot be done, before a model is loaded for it.

    Raises:
        EditError: No such method.
        WeightSurgeryError: A library that it needs is not installed.
    """
    if method not in ROUNDINGS:
        raise EditError(f"quantisation {method}", one_of(method, ROUNDINGS))
    if ROUNDINGS[method] is _by_bitsandbytes:
        _bitsandbytes()


@contextmanager
def quantised(model: PreTrainedModel, method: str) -> Iterator[list[str]]:
    """Rounds the weights of the linear layers inside; every bit is as it was, after.

    All but the layer that makes logits are rounded, as bitsandbytes does by default. Experts that
    are slices of one parameter are no linear layers, and stay.

    Args:
        model: Its weights get the rounded values in their own dtype.
        method: One of `ROUNDINGS`.

    Yields:
        The names of the layers whose weights are rounded.

    Raises:
        EditError: No such method, or no linear layer.
        NonFiniteError: A weight has NaN or infinities.
        WeightSurgeryError: A library that the method needs is not installed.
    """
    check_rounding(method)
    refuse_offloaded(model, "quantising weights")
    layers = _linear(model)
    if not layers:
        raise EditError(
            f"{type(model).__name__} has no linear layers to quantise",
            "Give a model whose layers are nn.Linear or Conv1D.",
        )
    # The tensors themselves are put aside, so that nothing needs copying back.
    originals = {name: layer.weight.data for name, layer in layers.items()}
    try:
        for layer in layers.values():
            layer.weight.data = _rounded(layer, ROUNDINGS[method])
        yield list(layers)
    finally:
        for name, layer in layers.items():
            layer.weight.data = originals[name]


def _linear(model: PreTrainedModel) -> dict[str, nn.Linear | Conv1D]:
    """The linear layers but the output's, and none that shares a weight with one before it."""
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    taken = set() if head is None else {id(head.weight)}
    layers: dict[str, nn.Linear | Conv1D] = {}
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Linear | Conv1D) and id(layer.weight) not in taken:
            taken.add(id(layer.weight))
            layers[name] = layer
    return layers


def _rounded(layer: nn.Linear | Conv1D, rounding: Callable[[Tensor], Tensor]) -> Tensor:
    weight = layer.weight.data
    # Conv1D keeps (in, out); groups run along the inputs.
    rows = weight.T if isinstance(layer, Conv1D) else weight
    rounded = rounding(rows).to(weight.dtype)
    return rounded.T.contiguous() if isinstance(layer, Conv1D) else rounded
