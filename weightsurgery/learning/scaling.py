"""(IA)³: scaling vectors trained beside a model's keys, values and MLPs, folded into its weights.

Liu et al. 2022 (arXiv 2205.05638) multiply keys, values and the inside of each MLP by learned
vectors ``l``, all ones at the start. A vector on a layer's outputs scales rows of its weight, and
its bias; one on its inputs scales columns. Folded in, the change is ordinary: ``(l − 1) ∘ W``.

CPEM (Zhang et al. 2023, arXiv 2306.14870) negates such a module by ``l → (1 + s) − s·l``. Its
folded change is ``((1 + s) − s·l − 1) ∘ W = −s (l − 1) ∘ W``: plain negation of the folded one.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from peft import IA3Config, get_peft_model
from peft.tuners.ia3 import IA3Layer
from peft.utils import (
    TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING,
    TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING,
)
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D

from weightsurgery.checkpoint.selection import Selection
from weightsurgery.errors import EditError, SelectionError, UnsupportedCheckpointError
from weightsurgery.learning.adapter import take_off
from weightsurgery.learning.data import Collator, Example, padding_token
from weightsurgery.learning.method import Stage
from weightsurgery.learning.models import quiet
from weightsurgery.learning.parameters import entries_of
from weightsurgery.learning.settings import Training
from weightsurgery.learning.sharding import whole
from weightsurgery.learning.stages import encode_rows, run_stages
from weightsurgery.learning.training import EncodedRows, isolated
from weightsurgery.learning.values import restored
from weightsurgery.progress import Progress

__all__ = ["attached", "folded", "train_scaling"]

_NAME = "default"


def train_scaling(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    training: Training,
    *,
    selection: Selection | None = None,
    progress: Progress | None = None,
) -> dict[str, torch.Tensor]:
    """Trains scaling vectors on data, and returns what they change; the model is as before.

    Args:
        model: Float32; it is trained where it is, and freed of its vectors, also after an error.
        tokenizer: Its tokenizer.
        examples: What to learn, at least one.
        training: How; the vectors take a larger learning rate than weights.
        selection: Which layers, by the names of their weights; by default all linear ones. Of
            them those that (IA)³ scales are taken.
        progress: Called as ``progress(text, done, total)`` in steps.

    Returns:
        Parameter → its change, float32 on the CPU; biases of scaled outputs too.

    Raises:
        EditError: No examples, or weights that are not float32.
        UnsupportedCheckpointError: peft does not know which layers of this model (IA)³ scales.
        SelectionError: None of them is selected.
        NonFiniteError: The loss, or a vector, is NaN or infinite.
    """
    if not examples:
        raise EditError("no examples to learn from", "Give at least one.")
    chosen = list((selection or Selection("all-linear")).resolve(entries_of(model)))
    with isolated(), quiet(), attached(model, chosen) as adapted:
        collate = Collator(padding_token(tokenizer))
        rows = EncodedRows(encode_rows(model, tokenizer, examples, training.max_length), collate)
        vectors = [name for name, each in adapted.named_parameters() if each.requires_grad]
        run_stages(
            adapted,
            [Stage("scaling vectors", tuple(vectors))],
            rows,
            training,
            device=model.device,
            progress=progress,
        )
        return folded(adapted)


@contextmanager
def attached(model: PreTrainedModel, names: Sequence[str]) -> Iterator[Any]:
    """The model with scaling vectors of ones to train, which are taken off at the end.

    Args:
        model: Its layers are wrapped in place.
        names: Weights whose layers may be scaled.

    Raises:
        EditError: Weights that are not float32.
        UnsupportedCheckpointError: peft does not know which layers of this model (IA)³ scales.
        SelectionError: None of them is selected.
    """
    kind = model.config.model_type
    endings = TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING.get(kind)
    if not endings:
        raise UnsupportedCheckpointError(
            f"model type {kind!r}: peft does not know which of its layers (IA)³ scales",
            "Use a LoRA adapter or plain negation instead.",
        )
    modules = [name.removesuffix(".weight") for name in names]
    targets = [each for each in modules if each.endswith(tuple(f".{end}" for end in endings))]
    if not targets:
        raise SelectionError(
            f"no selected layer is one that (IA)³ scales: {', '.join(endings)}",
            "Widen --targets, --include or --layers.",
        )
    for name in targets:
        dtype = model.get_parameter(f"{name}.weight").dtype
        if dtype != torch.float32:
            raise EditError(f"'{name}.weight' is {dtype}", "Load the model in float32.")
    inner = tuple(
        f".{end}" for end in TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING.get(kind, [])
    )
    config = IA3Config(
        target_modules=targets,
        feedforward_modules=[each for each in targets if each.endswith(inner)],
        fan_in_fan_out=any(isinstance(model.get_submodule(each), Conv1D) for each in targets),
        task_type="CAUSAL_LM",
    )
    with restored(model):
        with quiet(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # peft asks transformers by an old name
            adapted = get_peft_model(model, config)
        try:
            yield adapted
        finally:
            take_off(adapted, model)


@torch.no_grad()
def folded(adapted: Any) -> dict[str, torch.Tensor]:
    """The change that scaling vectors are, ``(l − 1) ∘ W``.

    Args:
        adapted: From :func:`attached`.

    Returns:
        By parameter of the model without vectors: weights, and biases of scaled outputs; float32
        on the CPU.
    """
    changes = {}
    for name, layer in adapted.get_base_model().named_modules():
        if not isinstance(layer, IA3Layer):
            continue
        base: Any = layer.get_base_layer()
        less_one = layer.ia3_l[_NAME].detach().flatten() - 1
        # Rows are outputs in a linear layer, and inputs in GPT-2's Conv1D.
        by_rows = layer.is_feedforward == isinstance(base, Conv1D)
        factor = less_one[:, None] if by_rows else less_one[None, :]
        changes[f"{name}.weight"] = (factor * whole(base.weight)).cpu()
        if not layer.is_feedforward and base.bias is not None:
            changes[f"{name}.bias"] = (less_one * whole(base.bias)).cpu()
    return changes
