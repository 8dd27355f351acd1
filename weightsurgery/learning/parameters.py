"""Names of weights in transformers and in the checkpoint.

They differ where a model in memory stacks or renames what is stored apart, as mixtures of experts
do; the mapping is transformers' own, the one ``save_pretrained`` writes by.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedModel,
)
from transformers.core_model_loading import revert_weight_conversion

from weightsurgery.algebra.lowrank import LowRank
from weightsurgery.checkpoint.layout import TensorEntry
from weightsurgery.checkpoint.reader import Checkpoint
from weightsurgery.checkpoint.tied import tied_copies
from weightsurgery.errors import (
    CheckpointError,
    SelectionError,
    UnsupportedCheckpointError,
)
from weightsurgery.learning.models import quiet, refuse_codes
from weightsurgery.learning.sharding import loading_options, own_sharding

__all__ = [
    "entries_of",
    "load_float32",
    "parameters_of",
    "random_model",
    "save_tensors",
    "sole_name",
]

_CODES = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}


def load_float32(checkpoint: Checkpoint, device: torch.device | None = None) -> PreTrainedModel:
    """The causal language model of a checkpoint, in float32 so that small changes survive.

    Args:
        checkpoint: Where from.
        device: Given, the model is shared among processes that were launched for that; see
            :mod:`weightsurgery.learning.sharding`. Others are whole, on the CPU.

    Raises:
        EditError: It is to be sharded in a way that is not done.
        UnsupportedCheckpointError: transformers makes no causal language model of it, or would
            take float8 codes for its weights.
        CheckpointError: It lacks weights of that model.
    """
    refuse_codes(checkpoint.path)
    options = {} if device is None else loading_options(device)
    with quiet(), own_sharding():
        try:
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                checkpoint.path,
                dtype=torch.float32,
                output_loading_info=True,
                trust_remote_code=False,  # else it prompts, and takes a "y" off any standard input
                **options,
            )
        except (ValueError, KeyError, OSError) as error:
            raise _no_model(checkpoint, error) from error
    model: PreTrainedModel
    model, info = loaded
    lacking = sorted(info["missing_keys"]) + sorted(str(each) for each in info["mismatched_keys"])
    if lacking:
        raise CheckpointError(
            f"{checkpoint.source.name}: lacks {len(lacking)} weights of its model,"
            f" {lacking[0]!r} for one",
            "transformers would draw them at random: complete the checkpoint first.",
        )
    return model


def random_model(checkpoint: Checkpoint, seed: int) -> PreTrainedModel:
    """A model of the checkpoint's shape at its own random initialisation, float32."""
    torch.manual_seed(seed)
    with quiet():
        try:
            config = AutoConfig.from_pretrained(checkpoint.path, trust_remote_code=False)
            model: PreTrainedModel = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
                config, dtype=torch.float32, trust_remote_code=False
            )
        except (ValueError, KeyError, OSError) as error:
            raise _no_model(checkpoint, error) from error
    return model


def _no_model(checkpoint: Checkpoint, error: Exception) -> UnsupportedCheckpointError:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return UnsupportedCheckpointError(
        f"{checkpoint.source.name}: transformers makes no causal language model of it: {reason}",
        "Fine-tune it with its own code, and take the vector with 'ws diff -o'.",
    )


def entries_of(model: PreTrainedModel) -> dict[str, TensorEntry]:
    """A model's parameters as if they were stored under their names in memory."""
    return {
        name: TensorEntry(name, _CODES.get(p.dtype, "U8"), tuple(p.shape), "", 0, p.nbytes)
        for name, p in model.named_parameters()
    }


def stored_names(model: PreTrainedModel, name: str) -> tuple[str, ...]:
    """Names under which a parameter is stored."""
    parameter = model.get_parameter(name)
    shape = torch.empty(parameter.shape, dtype=parameter.dtype, device="meta")
    return tuple(revert_weight_conversion(model, {name: shape}))


def parameters_of(
    model: PreTrainedModel, checkpoint: Checkpoint, selected: Collection[str]
) -> dict[str, tuple[str, ...]]:
    """The parameters that selected tensors of a checkpoint become.

    Args:
        model: Loaded from the checkpoint.
        checkpoint: Where the tensors are stored.
        selected: Their names.

    Returns:
        Parameter → the tensors it is stored as, in the model's order.

    Raises:
        SelectionError: Some tensors of one parameter are selected and others are not.
        UnsupportedCheckpointError: A selected tensor becomes no parameter.
    """
    copies = tied_copies(checkpoint)
    wanted = {copies.get(name, name) for name in selected}
    chosen: dict[str, tuple[str, ...]] = {}
    for name, _ in model.named_parameters():
        stored = stored_names(model, name)
        inside = [each for each in stored if each in wanted]
        if not inside:
            continue
        if len(inside) < len(stored):
            outside = next(each for each in stored if each not in wanted)
            raise SelectionError(
                f"{inside[0]!r} is selected and {outside!r} is not, but in memory they are one"
                f" tensor, {name!r}",
                "Select both or neither with --targets, --include and --exclude.",
            )
        chosen[name] = stored
    lost = wanted - {each for stored in chosen.values() for each in stored}
    if lost:
        first = min(lost)
        raise UnsupportedCheckpointError(
            f"{checkpoint.source.name}: transformers makes no parameter of tensor {first!r}",
            f"Leave it out with --exclude '{first}'.",
        )
    return chosen


def sole_name(checkpoint: Checkpoint, stored: tuple[str, ...], factors: LowRank) -> str:
    """The tensor that an adapted parameter is stored as.

    Raises:
        UnsupportedCheckpointError: It is stored in another shape or in pieces, for which the
            factors do not hold.
    """
    if len(stored) == 1 and checkpoint.entry(stored[0]).shape == factors.shape:
        return stored[0]
    raise UnsupportedCheckpointError(
        f"{checkpoint.source.name}: {stored[0]!r} is another matrix in memory than on disk,"
        " so an adapter's factors do not fit it",
        "Train it in full (without --lora-rank), or leave it out with --exclude.",
    )


def save_tensors(
    model: PreTrainedModel, tensors: Mapping[str, torch.Tensor], directory: str | os.PathLike[str]
) -> Checkpoint:
    """Save some parameters under the names they are stored by.

    Args:
        model: What knows the names.
        tensors: Values by parameter.
        directory: Made if needed.

    Returns:
        The directory as a checkpoint, of these tensors alone.
    """
    # Of a model that says it is sharded, all would be put together and written.
    sharded = model.config.__dict__.pop("distributed_config", None)
    try:
        with quiet():
            model.save_pretrained(Path(directory), state_dict=dict(tensors))
    finally:
        if sharded is not None:
            model.config.distributed_config = sharded
    return Checkpoint.open(directory)
