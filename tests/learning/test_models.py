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
from weightsurgery.learning.models import halved, in_halves, load_model, quiet
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


def test_halved_weights_say_the_same_and_are_whole_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    model: Any = tiny("llama")
    model.requires_grad_(False)
    layer = model.model.layers[0].mlp.up_proj
    layer.weight.requires_grad_(True)
    given, before = torch.arange(24)[None], model.model.layers[1].mlp.up_proj.weight.data
    with in_halves(model):
        wanted = model(given).logits
    assert not torch.equal(wanted, model(given).logits)
    with halved(model):
        assert model.model.layers[1].mlp.up_proj.weight.dtype == torch.bfloat16
        # What is trained stays, and the head, whose logits are float32.
        assert layer.weight.dtype == model.lm_head.weight.dtype == torch.float32
        with in_halves(model):
            assert torch.equal(wanted, model(given).logits)
    assert model.model.layers[1].mlp.up_proj.weight.data_ptr() == before.data_ptr()
    assert {each.dtype for each in model.parameters()} == {torch.float32}
