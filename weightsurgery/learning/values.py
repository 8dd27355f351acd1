"""Values of a model's parameters: taken, given back, and what changed."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from transformers import PreTrainedModel

from weightsurgery.learning.sharding import assign, is_sharded, pieces_of, resharded, whole

__all__ = ["change_since", "held_values", "set_values", "values_of"]


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
