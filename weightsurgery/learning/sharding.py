"""A model in pieces, one for each process: FSDP2, where ``accelerate launch`` asks for it.

accelerate hands a whole model to ``fully_shard``, and on CPUs trains without it. Here the model is
sharded as it is read, by transformers' own plan for its layers: a process reads its rows of each
matrix from disk, and never holds more than those and the layer that is being computed. An adapter
is whole in every process, and its gradients are averaged. What the launcher's configuration says
of wrapping and loading is not needed then.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.func import functional_call
from transformers.distributed.configuration_utils import DistributedConfig

from weightsurgery.errors import EditError
from weightsurgery.learning.placement import distributed

__all__ = [
    "assign",
    "by_rows",
    "called_with",
    "from_rows",
    "give_up",
    "is_sharded",
    "loading_options",
    "own_sharding",
    "piece",
    "piece_for",
    "pieces_of",
    "require_gradients",
    "resharded",
    "scattered",
    "sharding",
    "total",
    "unrecorded",
    "whole",
]

_ASKED = "ACCELERATE_USE_FSDP"
# Each process but the first would take empty weights for those of the checkpoint.
_EMPTY = "FSDP_CPU_RAM_EFFICIENT_LOADING"

_hidden = ContextVar("_hidden", default=False)


def sharding() -> bool:
    """Whether this process is one of several that were launched to shard their model."""
    return distributed() and (_hidden.get() or os.environ.get(_ASKED, "false").lower() == "true")


def loading_options(device: torch.device) -> dict[str, Any]:
    """What ``from_pretrained`` takes to shard a model as it is read; nothing where it need not.

    Args:
        device: Where it was asked to be.

    Raises:
        EditError: The launcher asks for what is not done here.
    """
    if not sharding():
        return {}
    if os.environ.get("FSDP_VERSION", "1") != "2":
        raise EditError("FSDP version 1", "Set fsdp_version: 2 in accelerate's configuration.")
    if os.environ.get("FSDP_ACTIVATION_CHECKPOINTING", "false").lower() == "true":
        raise EditError(
            "activation checkpointing by FSDP, which renames weights",
            "Leave it out of accelerate's configuration; pass --gradient-checkpointing.",
        )
    if os.environ.get("FSDP_OFFLOAD_PARAMS", "false").lower() == "true":
        raise EditError(
            "FSDP with weights on the processor, which is not done here",
            "Leave out fsdp_offload_params, and take more GPUs.",
        )
    mesh = torch.accelerator.current_accelerator() or torch.device("cpu")
    if device.type != mesh.type:
        raise EditError(
            f"device {device.type!r} under FSDP, which takes this machine's {mesh.type!r}",
            "Leave out --device; CUDA_VISIBLE_DEVICES= hides GPUs.",
        )
    return {"distributed_config": DistributedConfig(fsdp_size=int(os.environ["WORLD_SIZE"]))}


@contextmanager
def own_sharding() -> Iterator[None]:
    """Inside, neither accelerate nor transformers sees that the launcher asked for FSDP."""
    before = {name: os.environ[name] for name in (_ASKED, _EMPTY) if name in os.environ}
    token = _hidden.set(sharding())
    os.environ.update(dict.fromkeys(before, "false"))
    try:
        yield
    finally:
        os.environ.update(before)
        _hidden.reset(token)


def is_sharded(model: Any) -> bool:
    """Whether a model, perhaps with an adapter, is in pieces."""
    return bool(getattr(model, "is_distributed_loading_by_transformers", False))


def whole(value: Tensor) -> Tensor:
    """A tensor put together from its pieces, for which all processes must ask; others as is."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def piece(value: Tensor) -> Tensor:
    """What this process holds of a tensor."""
    return value.to_local() if isinstance(value, DTensor) else value


def _groups(model: nn.Module) -> list[FSDPModule]:
    return [module for module in model.modules() if isinstance(module, FSDPModule)]


def resharded(model: nn.Module) -> None:
    """Let go of what passes have put together: until then, parameters are copies of the pieces."""
    for group in _groups(model):
        group.reshard()


def give_up(model: nn.Module) -> None:
    """Let a sharded model forget a forward pass that was broken off."""
    groups = _groups(model)
    if groups:
        groups[0].reset_iter_state()


def by_rows(matrix: Tensor, transposed: bool) -> Tensor:
    """A matrix's rows, of one in pieces those of this process.

    Args:
        matrix: Whole, or shared by its first axis.
        transposed: Of its transpose; pieces of one are put together for that.
    """
    if not transposed:
        return piece(matrix)
    if not isinstance(matrix, DTensor):
        return matrix.T
    mesh, flipped = matrix.device_mesh, matrix.full_tensor().T.contiguous()
    return piece(distribute_tensor(flipped, mesh, [Shard(0)], src_data_rank=None))


def from_rows(rows: Tensor, like: Tensor, transposed: bool) -> Tensor:
    """The matrix of :func:`by_rows` again, in pieces as another one is."""
    if not isinstance(like, DTensor):
        return rows.T if transposed else rows
    shape = like.shape[::-1] if transposed else like.shape
    stride = (shape[1], 1)
    shared = DTensor.from_local(
        rows, like.device_mesh, [Shard(0)], run_check=False, shape=shape, stride=stride
    )
    return piece_for(like, shared.full_tensor().T.contiguous()) if transposed else shared


def scattered(model: nn.Module, value: Tensor) -> Tensor:
    """A value of process 0, shared by its first axis among the processes of a sharded model."""
    resharded(model)
    mesh = cast(DTensor, next(model.parameters())).device_mesh
    return distribute_tensor(value, mesh, [Shard(0)])


def total(value: Tensor) -> Tensor:
    """The sum of all entries, in all processes."""
    return whole(value.sum())


def pieces_of(model: nn.Module, names: Collection[str]) -> dict[str, Tensor]:
    """Copies of some parameters as this process holds them, where they are."""
    resharded(model)
    return {name: model.get_parameter(name).detach().clone() for name in names}


def piece_for(parameter: Tensor, value: Tensor) -> Tensor:
    """Of a value that every process has all of, what belongs to its piece of a parameter."""
    if not isinstance(parameter, DTensor) or isinstance(value, DTensor):
        return value
    mesh, placements = parameter.device_mesh, parameter.placements
    return distribute_tensor(value.to(parameter.device), mesh, placements, src_data_rank=None)


@torch.no_grad()
def assign(parameter: Tensor, value: Tensor) -> None:
    """Give a parameter a value, whole or in pieces like its own, in place."""
    parameter.copy_(piece_for(parameter, value))


def require_gradients(model: nn.Module, names: Collection[str]) -> None:
    """Train some parameters, and freeze the others."""
    resharded(model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in names)
    for module in _groups(model):
        # What is put together for a pass remembers what was trained in the first one.
        for group in cast(Any, module)._get_fsdp_state()._fsdp_param_groups:
            for each in group.fsdp_params:
                if hasattr(each, "_unsharded_param"):
                    each._unsharded_param.requires_grad_(each.sharded_param.requires_grad)


def called_with(model: Any, values: Mapping[str, Tensor], inputs: Mapping[str, Any]) -> Any:
    """A model's outputs, without gradients, if some of its parameters had other values.

    Args:
        model: As before afterwards, to the bit; the graph of a pass before it stays whole.
        values: From :func:`pieces_of`.
        inputs: Of the model.
    """
    with torch.no_grad():
        if not any(isinstance(value, DTensor) for value in values.values()):
            return functional_call(model, dict(values), (), dict(inputs))
        before = pieces_of(model, values)
        try:
            for name, value in values.items():
                model.get_parameter(name).copy_(value)
            return model(**inputs)
        finally:
            resharded(model)
            for name, value in before.items():
                model.get_parameter(name).copy_(value)


def unrecorded() -> torch.inference_mode:
    """``torch.inference_mode``; where models are sharded ``torch.no_grad``.

    What is put together in the former could not be trained with later.
    """
    if sharding():
        return cast(torch.inference_mode, torch.no_grad())
    return torch.inference_mode()
