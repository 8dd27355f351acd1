"""Several adapters are added in product space: ``Σ cᵢ sᵢ Bᵢ Aᵢ``, never ``(Σ cᵢ Bᵢ)(Σ Aᵢ)``."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tests.conftest import exact, left_behind, read_tensors
from tests.vectors.test_adapters import gpt2, llama, trained
from weightsurgery import Add, Checkpoint, apply, open_vector
from weightsurgery.checkpoint.naming import is_transposed
from weightsurgery.errors import EditError
from weightsurgery.vectors.export import export_adapter

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning:transformers.*"),
]

Q0, Q1 = (f"model.layers.{number}.self_attn.q_proj.weight" for number in (0, 1))
# Two adapters with other ranks, scalings and modules, which share q_proj.
FIRST = {"r": 4, "lora_alpha": 12, "target_modules": ["q_proj", "k_proj"]}
SECOND = {
    "r": 3,
    "use_rslora": True,
    "alpha_pattern": {"layers.1.self_attn.q_proj": 5},
    "target_modules": ["q_proj", "down_proj"],
}


@pytest.fixture
def two(tmp_path: Path) -> tuple[Checkpoint, Path, Path]:
    """A base and two adapters of it."""
    trained(llama(), LoraConfig(**FIRST), tmp_path)
    (tmp_path / "adapter").rename(tmp_path / "first")
    torch.manual_seed(9)
    trained(llama(), LoraConfig(**SECOND), tmp_path)
    (tmp_path / "adapter").rename(tmp_path / "second")
    return Checkpoint.open(tmp_path / "base"), tmp_path / "first", tmp_path / "second"


def halves(adapter: Path, name: str) -> tuple[np.ndarray, np.ndarray] | None:
    """``A`` and ``B`` of a linear layer, in float64."""
    tensors = load_file(adapter / "adapter_model.safetensors")
    stem = f"base_model.model.{name.removesuffix('weight')}lora_"
    if f"{stem}A.weight" not in tensors:
        return None
    return exact(tensors[f"{stem}A.weight"]), exact(tensors[f"{stem}B.weight"])


def product(adapter: Path, name: str, scaling: float = 1.0) -> np.ndarray | float:
    found = halves(adapter, name)
    return 0.0 if found is None else scaling * (found[1] @ found[0])


def scaling_of(adapter: Path, name: str) -> float:
    """``alpha / r``, and ``alpha / √r`` of the second, as its config has them."""
    if adapter.name == "first":
        return 12 / 4
    return (5 if name == Q1 else 8) / math.sqrt(3)


def wanted(two: Any, name: str, one: float, other: float) -> np.ndarray | float:
    _, first, second = two
    return one * product(first, name, scaling_of(first, name)) + other * product(
        second, name, scaling_of(second, name)
    )


def test_adding_two_adapters_adds_their_products(two: Any, tmp_path: Path) -> None:
    base, first, second = two
    vector = open_vector(base, [f"{first}:0.5", f"{second}:-0.3"])
    apply(Add(vector), base, tmp_path / "out")
    before, after = read_tensors(base.path), read_tensors(tmp_path / "out")
    moved = 0
    for name, tensor in after.items():
        change = exact(tensor) - exact(before[name])
        meant = wanted(two, name, 0.5, -0.3)
        # The sum is stored in float32: one rounding of numbers up to ten.
        assert abs(change - meant).max() < 2e-6
        moved += int(abs(change).max() > 0.05)
    assert moved == 6


def test_one_adapter_holds_the_sum(two: Any, tmp_path: Path) -> None:
    base, first, second = two
    vector = open_vector(base, [f"{first}:0.5", str(second)])
    record = export_adapter(base, vector, tmp_path / "sum", dtype="float32")
    assert len(record.tensors) == 6
    for name, facts in record.tensors.items():
        meant = wanted(two, name, 0.5, 1.0)
        size = np.linalg.norm(meant)
        assert np.linalg.norm(product(tmp_path / "sum", name) - meant) < 5e-7 * size
        assert facts["norm"] == pytest.approx(size, rel=1e-6)
        assert facts["rank"] == {"q_proj": 7, "k_proj": 4, "down_proj": 3}[name.split(".")[-2]]
    # Adding the halves of each, cut to one rank, is something else.
    one, other = halves(first, Q0), halves(second, Q0)
    assert one is not None
    assert other is not None
    a, b = one[0][:3] + other[0], 0.5 * one[1][:, :3] + other[1]
    meant = wanted(two, Q0, 0.5, 1.0)
    assert np.linalg.norm(b @ a - meant) > 0.5 * np.linalg.norm(meant)


def test_bfloat16_rounds_the_sum_and_says_so(two: Any, tmp_path: Path) -> None:
    base, first, second = two
    vector = open_vector(base, [f"{first}:0.5", str(second)])
    record = export_adapter(base, vector, tmp_path / "sum")
    for name, facts in record.tensors.items():
        meant = wanted(two, name, 0.5, 1.0)
        missed = np.linalg.norm(product(tmp_path / "sum", name) - meant) / np.linalg.norm(meant)
        assert 1e-4 < missed < 2.0**-8
        assert facts["rounding"] == pytest.approx(missed, rel=1e-3)


@pytest.mark.parametrize("half", ["A", "B"])
def test_the_rank_of_a_sum_is_the_least(half: str, two: Any, tmp_path: Path) -> None:
    """Adapters that share a half, as when one was frozen, add up to the rank of one."""
    base, first, _ = two
    other = tmp_path / "other"
    other.mkdir()
    (other / "adapter_config.json").write_bytes((first / "adapter_config.json").read_bytes())
    tensors = load_file(first / "adapter_model.safetensors")
    for key, tensor in tensors.items():
        if f"lora_{half}" not in key:
            tensor.copy_(torch.randn(tensor.shape))
    save_file(tensors, other / "adapter_model.safetensors")
    record = export_adapter(
        base, open_vector(base, [str(first), f"{other}:0.7"]), tmp_path / "sum", dtype="float32"
    )
    assert {facts["rank"] for facts in record.tensors.values()} == {4}  # not 8
    for name in record.tensors:
        meant = 3 * (product(first, name) + 0.7 * product(other, name))
        assert np.linalg.matrix_rank(meant) == 4
        error = np.linalg.norm(product(tmp_path / "sum", name) - meant)
        assert error < 5e-7 * np.linalg.norm(meant)


def test_an_adapter_less_itself_is_none(two: Any, tmp_path: Path) -> None:
    base, first, second = two
    twice = [str(first), f"{first}:-0.5"]
    record = export_adapter(base, open_vector(base, twice), tmp_path / "half", dtype="float32")
    assert {facts["rank"] for facts in record.tensors.values()} == {4}
    with pytest.raises(EditError, match="none of the selected"):
        export_adapter(base, open_vector(base, [str(first), f"{first}:-1"]), tmp_path / "out")
    assert left_behind(tmp_path / "out") == []
    vector = open_vector(base, [str(first), f"{first}:-1", str(second)])
    record = export_adapter(base, vector, tmp_path / "second-alone", dtype="float32")
    assert {facts["rank"] for facts in record.tensors.values()} == {3}
    assert all("k_proj" in name for name in record.summary["unchanged"])


def delta_of(model: Any, name: str, adapter: str) -> np.ndarray:
    module = model.base_model.model.get_submodule(name.removesuffix(".weight"))
    return exact(module.get_delta_weight(adapter).detach())


@pytest.mark.parametrize("combination", ["svd", "cat"])
def test_the_sum_is_pefts_own(combination: str, two: Any, tmp_path: Path) -> None:
    base, first, second = two
    vector = open_vector(base, [f"{first}:0.5", f"{second}:2"])
    export_adapter(base, vector, tmp_path / "sum", dtype="float32")
    model = AutoModelForCausalLM.from_pretrained(base.path, dtype=torch.float32)
    wrapped = PeftModel.from_pretrained(model, first, adapter_name="first")
    wrapped.load_adapter(second, adapter_name="second")
    wrapped.load_adapter(tmp_path / "sum", adapter_name="ours")
    options = {"svd_rank": 7} if combination == "svd" else {}
    wrapped.add_weighted_adapter(
        ["first", "second"], [0.5, 2.0], "theirs", combination_type=combination, **options
    )
    for name in (Q0, Q1):
        theirs, ours = delta_of(wrapped, name, "theirs"), delta_of(wrapped, name, "ours")
        assert np.linalg.norm(theirs) > 0.5
        assert np.linalg.norm(ours - theirs) < 3e-6 * np.linalg.norm(theirs)


def test_two_adapters_of_conv1d_and_embedding(tmp_path: Path) -> None:
    """What is stored (in, out) is summed in its own orientation: the merge of peft's merge."""
    for name, targets in (("first", ["c_attn", "wte"]), ("second", ["c_attn", "c_fc"])):
        torch.manual_seed(len(name))
        trained(gpt2(tie=False), LoraConfig(r=3, target_modules=targets), tmp_path)
        (tmp_path / "adapter").rename(tmp_path / name)
    base = Checkpoint.open(tmp_path / "base")
    both = [str(tmp_path / "first"), str(tmp_path / "second")]
    export_adapter(base, open_vector(base, both), tmp_path / "sum", dtype="float32")
    model: Any = gpt2(tie=False)
    for path in both:
        model = PeftModel.from_pretrained(model, path).merge_and_unload()
    merged = model.state_dict()
    ours = PeftModel.from_pretrained(gpt2(tie=False), tmp_path / "sum").merge_and_unload()
    before, found = read_tensors(base.path), ours.state_dict()
    moved = 0
    for name in before:
        moved += int((merged[name] - before[name]).abs().max() > 0.05)
        torch.testing.assert_close(found[name], merged[name], rtol=0, atol=3e-6)
    assert moved == 5
    assert is_transposed("transformer.h.0.attn.c_attn.weight", base.config)
