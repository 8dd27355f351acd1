"""A LoRA adapter put on a model to be trained, and taken off as factors of the weights' change.

LoRA (Hu et al., arXiv 2106.09685) trains ``A`` (r, in) and ``B`` (out, r) beside each matrix; the
change of the weight is ``(alpha / r) · B A``, which is what is kept: never the two factors apart.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Collection
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from weightsurgery.algebra.lowrank import LowRank, recompress
from weightsurgery.errors import EditError, UnsupportedCheckpointError
from weightsurgery.learning.models import quiet

__all__ = ["attach", "factors", "take_off"]

_NAME = "default"


def attach(
    model: PreTrainedModel, names: Collection[str], rank: int, alpha: float, seed: int
) -> Any:
    """Puts a new adapter, which changes nothing yet, beside matrices of a model.

    Args:
        model: Changed in place.
        names: Its parameters; of those that are no matrix (biases, norms), none is adapted.
        rank: Factors per matrix.
        alpha: The change is ``alpha / rank · B A``.
        seed: Of the first ``A``.

    Returns:
        The model with the adapter.

    Raises:
        EditError: The rank makes no sense, or there is no matrix.
        UnsupportedCheckpointError: A matrix is no linear layer, as where experts are stacked, or
            is that of several layers, as a tied head is.
    """
    if rank < 1:
        raise EditError(f"LoRA rank {rank}", "Give a whole number from 1.")
    modules, flipped = [], False
    shared = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))
    for name in names:
        parameter = model.get_parameter(name)
        if parameter.ndim < 2:
            continue
        module = name.removesuffix(".weight")
        layer = model.get_submodule(module) if module != name else None
        if not isinstance(layer, torch.nn.Linear | Conv1D | torch.nn.Embedding):
            raise UnsupportedCheckpointError(
                f"{name!r}, shape {list(parameter.shape)}: no linear layer, which LoRA needs",
                "Train it in full (without --lora-rank), or leave it out with --exclude.",
            )
        if shared[id(parameter)] > 1:
            raise UnsupportedCheckpointError(
                f"{name!r}: embedding and head in one, of which an adapter would train one side",
                "Train it in full (without --lora-rank), or leave it out with --exclude.",
            )
        if min(parameter.shape) < rank:
            raise EditError(
                f"LoRA rank {rank}: more than {name!r} has, shape {list(parameter.shape)}",
                f"Use --lora-rank {min(parameter.shape)} or less.",
            )
        flipped = flipped or isinstance(layer, Conv1D)
        modules.append(module)
    if not modules:
        raise EditError("no matrix to adapt", "Widen --targets, --include or --layers.")
    torch.manual_seed(seed)
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,  # type: ignore[arg-type]
        target_modules=modules,
        fan_in_fan_out=flipped,
        task_type="CAUSAL_LM",
    )
    with quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # where Conv1D and Linear meet, peft sets each right
        return get_peft_model(model, config)


def take_off(adapted: Any, model: PreTrainedModel) -> None:
    """Take peft's layers, and what else it leaves on a model, off again.

    Args:
        adapted: What peft made of the model, trained or not.
        model: The model.
    """
    adapted.unload()
    for trace in ("peft_config", "_hf_peft_config_loaded"):
        model.__dict__.pop(trace, None)


def factors(adapted: Any, names: Collection[str]) -> dict[str, LowRank]:
    """The change of each weight by an adapter.

    Args:
        adapted: From `attach`, trained.
        names: As given there.

    Returns:
        The change of each adapted parameter, oriented as the parameter is, in float32 on the CPU.
    """
    inner = adapted.get_base_model()
    changes = {}
    for name in names:
        layer = inner.get_submodule(name.rpartition(".")[0])
        pairs = (("lora_A", "lora_B"), ("lora_embedding_A", "lora_embedding_B"))
        for key_a, key_b in pairs:
            if _NAME not in getattr(layer, key_a, {}):
                continue
            a, b = (_values(getattr(layer, key)[_NAME]) for key in (key_a, key_b))
            left, right = b * layer.scaling[_NAME], a.T
            if isinstance(layer.get_base_layer(), Conv1D | torch.nn.Embedding):
                left, right = right, left
            changes[name] = recompress(left, torch.eye(left.shape[1]), right)
    return changes


def _values(factor: Any) -> torch.Tensor:
    """A factor's numbers: of a linear layer's weight, or, for embeddings, of a parameter."""
    values: torch.Tensor = getattr(factor, "weight", factor).detach()
    return values.float().cpu()
