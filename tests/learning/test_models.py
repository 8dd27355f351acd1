"""Models that are loaded as what they are, or refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tests.learning.tiny import byte_tokenizer, tiny
from weightsurgery.checkpoint.reader import Checkpoint
from weightsurgery.errors import UnsupportedCheckpointError
from weightsurgery.learning.models import load_model, quiet
from weightsurgery.learning.parameters import load_float32


def model_of_codes(root: Path, scaled: bool = True) -> Path:
    """A Llama whose linear layers are float8 codes with a scale each, or without."""
    tiny("llama").save_pretrained(root)
    byte_tokenizer().save_pretrained(root)
    tensors = load_file(root / "model.safetensors")
    for name in [each for each in tensors if "proj" in each]:
        scale = tensors[name].abs().max() / 448
        tensors[name] = (tensors[name] / scale).to(torch.float8_e4m3fn)
        if scaled:
            tensors[name.replace("weight", "scale_weight")] = scale
    save_file(tensors, root / "model.safetensors", {"format": "pt"})
    return root


@pytest.mark.parametrize("scaled", [True, False])
def test_codes_are_not_loaded_as_weights(scaled: bool, tmp_path: Path) -> None:
    root = model_of_codes(tmp_path / "model", scaled)
    with quiet():  # what transformers alone makes of it: weights of up to 448
        loaded: Any = AutoModelForCausalLM.from_pretrained(root, dtype=torch.float32)
    assert float(loaded.model.layers[0].mlp.up_proj.weight.abs().max()) > 100
    for load in (lambda: load_model(root), lambda: load_float32(Checkpoint.open(root))):
        with pytest.raises(UnsupportedCheckpointError, match="fp8") as caught:
            load()
        assert "--scale 0 --dequantize" in caught.value.remedy


def test_what_is_no_code_is_loaded(tmp_path: Path) -> None:
    root = tmp_path / "model"
    tiny("llama").save_pretrained(root)
    byte_tokenizer().save_pretrained(root)
    model, _ = load_model(root)
    assert float(model.model.layers[0].mlp.up_proj.weight.abs().max()) < 1
    config = json.loads((root / "config.json").read_text())
    assert "quantization_config" not in config
