"""Does it stay forgotten? What relearning a part and rounding the weights bring back.

Relearning: Łucki et al., arXiv 2410.08827, train an unlearned model on some of the facts and ask
for the others. Quantisation: Zhang et al., arXiv 2410.16454, round its weights to 4 or 8 bits,
which undoes changes that are smaller than a step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from types import MappingProxyType

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D

from weightsurgery.algebra.quantise import int_rtn, nf4_rtn
from weightsurgery.errors import EditError
from weightsurgery.learning.data import Example
from weightsurgery.learning.fitting import Schedule, fit, isolated

__all__ = ["ROUNDINGS", "quantised", "relearn"]

ROUNDINGS: Mapping[str, Callable[[Tensor], Tensor]] = MappingProxyType(
    {
        "int8": partial(int_rtn, bits=8),
        "int4": partial(int_rtn, bits=4),
        "int4-asymmetric": partial(int_rtn, bits=4, symmetric=False),
        "nf4": nf4_rtn,
    }
)
"""The methods of `quantised`: groups and blocks of 64."""


def relearn(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    steps: int = 40,
    learning_rate: float = 5e-4,
    batch_size: int = 64,
    seed: int = 0,
) -> None:
    """Trains all weights on some of what was forgotten; score the rest before and after.

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

    Raises:
        EditError: A setting below its range, no examples, or weights in a smaller dtype, in which
            most steps would round to nothing and the attack would look weaker than it is.
    """
    if not examples:
        raise EditError("relearning from no examples", "Give at least one.")
    if min(steps, batch_size) < 1 or not learning_rate > 0:
        raise EditError(
            f"relearning for {steps} steps of {batch_size} examples at {learning_rate:g}",
            "All three must be positive.",
        )
    narrow = {str(each.dtype) for each in model.parameters() if each.dtype != torch.float32}
    if narrow:
        raise EditError(
            f"relearning in {', '.join(sorted(narrow))} would lose most steps to rounding",
            "Load the model in float32, or call model.float() first.",
        )
    schedule = Schedule(batch_size, learning_rate, 1.0, min(5, steps), 0.0, steps, steps)
    with isolated(seed, torch.get_num_threads()):
        fit(model, tokenizer, examples, schedule, seed, lambda step: False)


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
    """
    if method not in ROUNDINGS:
        raise EditError(f"quantisation {method}", f"Choose from {', '.join(ROUNDINGS)}.")
    layers = _linear(model)
    if not layers:
        raise EditError(
            f"{type(model).__name__} has no linear layers to quantise",
            "Give a model whose layers are nn.Linear or Conv1D.",
        )
    # The tensors themselves are put aside, so that nothing needs copying back.
    kept = {name: layer.weight.data for name, layer in layers.items()}
    try:
        for layer in layers.values():
            layer.weight.data = _rounded(layer, ROUNDINGS[method])
        yield list(layers)
    finally:
        for name, layer in layers.items():
            layer.weight.data = kept[name]


def _linear(model: PreTrainedModel) -> dict[str, nn.Linear | Conv1D]:
    """The linear layers but the output's, and none that shares a weight with one before it."""
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    taken = set() if head is None else {id(head.weight)}
    found: dict[str, nn.Linear | Conv1D] = {}
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Linear | Conv1D) and id(layer.weight) not in taken:
            taken.add(id(layer.weight))
            found[name] = layer
    return found


def _rounded(layer: nn.Linear | Conv1D, rounding: Callable[[Tensor], Tensor]) -> Tensor:
    weight = layer.weight.data
    # Conv1D keeps (in, out); groups run along the inputs.
    rows = weight.T if isinstance(layer, Conv1D) else weight
    rounded = rounding(rows).to(weight.dtype)
    return rounded.T.contiguous() if isinstance(layer, Conv1D) else rounded
