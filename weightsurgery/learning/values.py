"""Values of a model's parameters: taken, given back, and what changed."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager

import torch
from transformers import PreTrainedModel

from weightsurgery.errors import EditError
from weightsurgery.learning.sharding import assign, is_sharded, pieces_of, resharded, whole

__all__ = [
    "change_since",
    "held_values",
    "require_float32",
    "restored",
    "set_values",
    "values_of",
]


def values_of(
    model: PreTrainedModel, names: Collection[str], kept: bool = True
) -> dict[str, torch.Tensor]:
    """Copies of some parameters, whole, on the CPU; of a sharded model all processes must ask.

    Args:
        model: Its parameters are left as they are.
        names: Which.
        kept: Whether this process wants them, and does not ask for the others' sake alone.
    """
    resharded(model)
    values = {}
    for name in names:
        value = whole(model.get_parameter(name).detach())
        if kept:
            values[name] = value.to("cpu", copy=True).contiguous()
    return values


def held_values(model: PreTrainedModel, names: Collection[str]) -> dict[str, torch.Tensor]:
    """Copies of some parameters, on the CPU, or of a sharded model its pieces, where they are."""
    return (pieces_of if is_sharded(model) else values_of)(model, names)


@torch.no_grad()
def change_since(
    model: PreTrainedModel, before: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """What became of parameters since :func:`held_values`, held as those are."""
    after = held_values(model, before)
    return {name: after[name].sub_(value) for name, value in before.items()}


def set_values(model: PreTrainedModel, values: Mapping[str, torch.Tensor]) -> None:
    """Give parameters these values, in place."""
    resharded(model)
    for name, value in values.items():
        assign(model.get_parameter(name), value)


@contextmanager
def restored(
    model: PreTrainedModel, names: Collection[str] = ()
) -> Iterator[dict[str, torch.Tensor]]:
    """A context in which a model is trained; in the end it is as before, also after an error.

    Args:
        model: Its mode and what of it takes gradients are put back.
        names: Parameters whose values are put back too.

    Yields:
        These values, as of :func:`held_values`.
    """
    before = held_values(model, names)
    training = model.training
    takes_gradients = {name: each.requires_grad for name, each in model.named_parameters()}
    try:
        yield before
    finally:
        set_values(model, before)
        model.train(training)
        for name, parameter in model.named_parameters():
            # Interrupted while an adapter goes in, it has names that were not there before.
            parameter.requires_grad_(takes_gradients.get(name, parameter.requires_grad))


def require_float32(model: PreTrainedModel, names: Collection[str]) -> None:
    """Refuse to train other weights.

    Raises:
        EditError: A parameter is not float32.
    """
    for name in names:
        if (dtype := model.get_parameter(name).dtype) != torch.float32:
            raise EditError(
                f"{name!r} is {dtype}: small steps would be rounded away",
                "Load the model in float32.",
            )
