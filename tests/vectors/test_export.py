from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import AutoPeftModelForCausalLM, LoraConfig, PeftModel
from peft.tuners.tuners_utils import check_target_module_exists
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, MixtralConfig, MixtralForCausalLM

from tests.conftest import exact, left_behind, read_tensors, snapshot, write_checkpoint
from tests.vectors.test_adapters import gpt2, llama, trained
from weightsurgery import Add, Checkpoint, Negate, Selection, TaskVector, apply, open_vector, verify
from weightsurgery.algebra.lowrank import Energy, LowRank, Rank
from weightsurgery.checkpoint.naming import is_transposed
from weightsurgery.errors import (
    EditError,
    LineageError,
    MismatchError,
    NonFiniteError,
    OutputError,
    SelectionError,
    UnsupportedCheckpointError,
    VectorError,
)
from weightsurgery.surgery.compare import diff
from weightsurgery.vectors.adapter_config import target_modules
from weightsurgery.vectors.deltas import SumDelta
from weightsurgery.vectors.export import export_adapter
from weightsurgery.vectors.lora import LoraLayer, LoraLayers
from weightsurgery.vectors.task_vector import MappedChange

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning:transformers.*"),
]

TOKENS = torch.tensor([[1, 7, 3, 30, 2, 9], [5, 5, 0, 21, 39, 4]])


def factors(shape: tuple[int, ...], rank: int, seed: int) -> LowRank:
    """Random factors, large enough to change a tiny model's logits."""
    generator = torch.Generator().manual_seed(seed)
    u, v = (torch.linalg.qr(torch.randn(n, rank, generator=generator))[0] for n in shape)
    return LowRank(u, torch.linspace(0.6, 0.2, rank), v)


def low_rank(base: Checkpoint, keep: Callable[[str], bool], ranks: Callable[[str], int]) -> Any:
    """A vector of factors for the matrices that are chosen."""
    chosen = [entry for entry in base.entries.values() if len(entry.shape) == 2]
    return TaskVector.of(
        MappedChange(
            {
                entry.name: factors(entry.shape, ranks(entry.name), seed)
                for seed, entry in enumerate(chosen)
                if keep(entry.name)
            }
        )
    )


def logits(model: Any) -> torch.Tensor:
    model.eval()
    with torch.no_grad():
        return model(TOKENS).logits


def loaded(path: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)


def adapted(model: Any) -> set[str]:
    """Names of the modules that peft put something beside."""
    return {
        name.removeprefix("base_model.model.")
        for name, module in model.named_modules()
        if getattr(module, "r", None)
    }


def saved(model: Any, root: Path) -> Checkpoint:
    model.save_pretrained(root / "base", max_shard_size="15KB")
    return Checkpoint.open(root / "base")


def is_layer(name: str) -> bool:
    return "layers" in name or ".h." in name


CASES: dict[str, tuple[Callable[[], Any], Callable[[str], bool], Callable[[str], int]]] = {
    "all": (llama, lambda name: True, lambda name: 4),
    "tied, all linear": (lambda: llama(tie=True), is_layer, lambda name: 4),
    "one layer": (llama, lambda name: ".1." in name, lambda name: 3),
    "ranks differ": (llama, lambda name: True, lambda name: 2 + 3 * ("k_proj" in name)),
    "rank by layer": (llama, is_layer, lambda name: 2 + (".1." in name)),
    "conv1d": (gpt2, is_layer, lambda name: 4),
    "conv1d, embedding and head": (
        lambda: gpt2(tie=False),
        lambda name: "wpe" not in name,
        lambda name: 2 + ("c_fc" in name) + 2 * ("lm_head" in name),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_base_and_adapter_have_the_logits_of_base_and_vector(case: str, tmp_path: Path) -> None:
    build, keep, ranks = CASES[case]
    base = saved(build(), tmp_path)
    vector = low_rank(base, keep, ranks)
    record = export_adapter(base, vector, tmp_path / "adapter", dtype="float32")
    apply(Add(vector), base, tmp_path / "added")

    before, wanted = logits(loaded(tmp_path / "base")), logits(loaded(tmp_path / "added"))
    assert (wanted - before).abs().max() > 0.1
    model = PeftModel.from_pretrained(loaded(tmp_path / "base"), tmp_path / "adapter")
    chosen = {name for name in base.entries if keep(name) and len(base.entry(name).shape) == 2}
    assert set(record.tensors) == chosen
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["fan_in_fan_out"] == any(is_transposed(name, base.config) for name in chosen)
    assert adapted(model) == {name.removesuffix(".weight") for name in chosen}
    # Float32 in another order: a few of its eps at the size of the logits, which are below 3.
    torch.testing.assert_close(logits(model), wanted, rtol=0, atol=2e-6)
    with model.disable_adapter():
        assert torch.equal(logits(model), before)
    torch.testing.assert_close(logits(model.merge_and_unload()), wanted, rtol=0, atol=2e-6)


SIDES = {"embedding": ["embed"], "head": ["lm_head"], "both": ["embed", "lm_head"]}


@pytest.mark.parametrize("ensure", [False, True], ids=["", "ensured"])
@pytest.mark.parametrize("sides", SIDES)
def test_no_adapter_of_a_tied_matrix_is_right_merged_and_not(
    sides: str, ensure: bool, tmp_path: Path
) -> None:
    """Why it is refused: were this peft able to, it would be written."""
    base = saved(llama(tie=True), tmp_path)
    embedding, change = "model.embed_tokens.weight", factors((40, 24), 3, 0)
    vector = TaskVector.of(MappedChange({embedding: change}))
    apply(Add(vector), base, tmp_path / "added")
    before, wanted = logits(loaded(tmp_path / "base")), logits(loaded(tmp_path / "added"))
    assert (wanted - before).abs().max() > 0.1
    with pytest.raises(VectorError, match=r"embed_tokens.weight': embedding and head in one"):
        export_adapter(base, vector, tmp_path / "refused")
    # The same matrix twice, which a LoRA holds: the adapter is right there, merged and not.
    tensors = read_tensors(tmp_path / "base")
    tensors["lm_head.weight"] = tensors[embedding].clone()
    config = {**base.config, "tie_word_embeddings": False}
    apart = Checkpoint.open(write_checkpoint(tmp_path / "apart", tensors, config=config))
    twice = TaskVector.of(MappedChange({embedding: change, "lm_head.weight": change}))
    written = tmp_path / "adapter"
    export_adapter(apart, twice, written, dtype="float32")
    both = PeftModel.from_pretrained(loaded(tmp_path / "apart"), written)
    torch.testing.assert_close(logits(both), wanted, rtol=0, atol=3e-6)
    torch.testing.assert_close(logits(both.merge_and_unload()), wanted, rtol=0, atol=3e-6)
    # Beside the tied base, whatever sides it has, it is not.
    selection = Selection(include=tuple(f"*{side}*" for side in SIDES[sides]))
    export_adapter(apart, twice, written, selection=selection, dtype="float32", overwrite=True)
    path = written / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "ensure_weight_tying": ensure}))
    model = PeftModel.from_pretrained(loaded(tmp_path / "base"), written)
    beside = (logits(model) - wanted).abs().max()
    merged = (logits(model.merge_and_unload()) - wanted).abs().max()
    assert min(beside, merged) < 3e-6
    assert max(beside, merged) > 0.1


def test_config_is_what_peft_reads(tmp_path: Path) -> None:
    base = saved(llama(), tmp_path)
    vector = low_rank(base, is_layer, lambda name: 2 + (name.endswith("1.mlp.up_proj.weight")))
    export_adapter(base, vector, tmp_path / "adapter")
    config = LoraConfig.from_pretrained(tmp_path / "adapter")
    assert (config.r, config.lora_alpha, config.task_type) == (3, 3, "CAUSAL_LM")
    assert len(config.rank_pattern) == 13  # of 14 matrices
    assert config.rank_pattern == config.alpha_pattern
    assert config.target_modules == {
        *("q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "gate_proj", "down_proj")
    }
    assert config.base_model_name_or_path == str((tmp_path / "base").resolve())
    assert not config.fan_in_fan_out
    assert config.inference_mode
    model = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter")  # finds its base
    assert len(adapted(model)) == 14
    layer = model.base_model.model.model.layers[0].mlp.up_proj
    assert (layer.r, layer.scaling) == ({"default": 2}, {"default": 1.0})


def test_halves_are_balanced(tmp_path: Path) -> None:
    base = saved(llama(), tmp_path)
    vector = low_rank(base, is_layer, lambda name: 4)
    export_adapter(base, vector, tmp_path / "adapter", dtype="float32")
    halves = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    for key, a in halves.items():
        if "lora_A" in key:
            b = halves[key.replace("lora_A", "lora_B")]
            root = torch.linspace(0.6, 0.2, 4).sqrt()
            torch.testing.assert_close(a.norm(dim=1), root)
            torch.testing.assert_close(b.norm(dim=0), root)


def test_names_saved_without_their_prefix_get_it_back(tmp_path: Path) -> None:
    """As GPT-2 lies on the Hub: saved from the model without head, loaded with it."""
    model = gpt2()
    tensors = {name.removeprefix("transformer."): t for name, t in model.state_dict().items()}
    del tensors["lm_head.weight"]
    config = {**model.config.to_dict(), "architectures": ["GPT2LMHeadModel"]}
    write_checkpoint(tmp_path / "base", tensors, config=config)
    base = Checkpoint.open(tmp_path / "base")
    vector = low_rank(base, lambda name: "c_attn" in name, lambda name: 2)
    export_adapter(base, vector, tmp_path / "adapter", dtype="float32")
    apply(Add(vector), base, tmp_path / "added")
    wanted = logits(loaded(tmp_path / "added"))
    model = PeftModel.from_pretrained(loaded(tmp_path / "base"), tmp_path / "adapter")
    assert adapted(model) == {f"transformer.h.{i}.attn.c_attn" for i in range(2)}
    torch.testing.assert_close(logits(model), wanted, rtol=0, atol=2e-6)
    again = open_vector(base, [str(tmp_path / "adapter")])  # and is found again without
    assert again.at("h.0.attn.c_attn.weight") is not None


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_rounding_is_bounded_and_reported(dtype: str, tmp_path: Path) -> None:
    base = saved(llama(), tmp_path)
    vector = low_rank(base, is_layer, lambda name: 4)
    record = export_adapter(base, vector, tmp_path / "adapter", dtype=dtype)
    unit = {"bfloat16": 2.0**-8, "float16": 2.0**-11}[dtype]
    halves = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert {str(half.dtype) for half in halves.values()} == {f"torch.{dtype}"}
    for name in record.tensors:
        stem = f"base_model.model.{name.removesuffix('weight')}"
        a, b = exact(halves[f"{stem}lora_A.weight"]), exact(halves[f"{stem}lora_B.weight"])
        delta = vector.at(name)
        assert delta is not None
        meant = exact(delta.matrix(lambda i, j: torch.empty(0), base.entry(name).shape))
        # Each factor is off by at most one unit of itself, and the halves by u / (1 - u).
        bound = ((1 + unit / (1 - unit)) ** 2 - 1) * (abs(b) @ abs(a)) + 1e-6
        assert (abs(b @ a - meant) <= bound).all()
        missed = np.linalg.norm(b @ a - meant) / np.linalg.norm(meant)
        assert record.tensors[name]["rounding"] == pytest.approx(missed, rel=1e-3)
        assert 0 < missed < unit
    apply(Add(vector), base, tmp_path / "added")
    before, wanted = logits(loaded(tmp_path / "base")), logits(loaded(tmp_path / "added"))
    model = PeftModel.from_pretrained(loaded(tmp_path / "base"), tmp_path / "adapter")
    # Every change is off by less than a unit of its size; two layers and their nonlinearities
    # do not amplify that by more than four.
    effect = (wanted - before).norm()
    for found in (logits(model), logits(model.merge_and_unload())):
        assert (found - wanted).norm() < 4 * unit * effect


def test_a_bfloat16_model_rounds_no_worse_than_its_dtype(tmp_path: Path) -> None:
    base = saved(llama().to(torch.bfloat16), tmp_path)
    vector = low_rank(base, is_layer, lambda name: 4)
    record = export_adapter(base, vector, tmp_path / "adapter")
    apply(Add(vector), base, tmp_path / "added")
    models = [AutoModelForCausalLM.from_pretrained(tmp_path / n) for n in ("base", "base", "added")]
    assert {model.dtype for model in models} == {torch.bfloat16}
    before, wanted = logits(models[0]).float(), logits(models[2]).float()
    model = PeftModel.from_pretrained(models[1], tmp_path / "adapter")
    unmerged = logits(model).float()
    merged_model = model.merge_and_unload()
    merged, added = merged_model.state_dict(), read_tensors(tmp_path / "added")
    halves = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    unit = 2.0**-8
    for name in record.tensors:
        stem = f"base_model.model.{name.removesuffix('weight')}"
        a, b = (abs(exact(halves[f"{stem}lora_{half}.weight"])) for half in "AB")
        # One rounding of each sum; of the change, one of each half and, in peft, of the product.
        sums = abs(exact(added[name])) + abs(exact(merged[name]))
        bound = unit * sums + 3.1 * unit * (b @ a)
        assert (abs(exact(added[name]) - exact(merged[name])) <= bound).all()
    # Fourteen matrices and their activations, each rounded by itself: √28 units of the logits.
    error = 28**0.5 * unit * wanted.norm()
    assert (wanted - before).norm() > 10 * error
    assert (unmerged - wanted).norm() < error
    assert (logits(merged_model).float() - wanted).norm() < error


def test_scale_minus_one_negates(tmp_path: Path) -> None:
    base = saved(gpt2(), tmp_path)
    vector = low_rank(base, is_layer, lambda name: 3)
    export_adapter(base, -vector, tmp_path / "adapter", dtype="float32")
    apply(Negate(vector), base, tmp_path / "negated")
    model = PeftModel.from_pretrained(loaded(tmp_path / "base"), tmp_path / "adapter")
    wanted = logits(loaded(tmp_path / "negated"))
    assert (wanted - logits(loaded(tmp_path / "base"))).abs().max() > 0.1
    torch.testing.assert_close(logits(model), wanted, rtol=0, atol=2e-6)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("build", [llama, lambda: gpt2(tie=False)], ids=["llama", "gpt2"])
def test_adding_the_adapter_is_adding_the_vector(
    build: Callable[[], Any], dtype: str, tmp_path: Path
) -> None:
    base = saved(build(), tmp_path)
    vector = low_rank(base, lambda name: "wpe" not in name, lambda name: 2 + ("fc" in name))
    export_adapter(base, vector, tmp_path / "adapter", dtype=dtype)
    apply(Add(vector), base, tmp_path / "first")
    again = open_vector(base, [str(tmp_path / "adapter")])
    apply(Add(again), base, tmp_path / "second")
    first, second = read_tensors(tmp_path / "first"), read_tensors(tmp_path / "second")
    before = read_tensors(tmp_path / "base")
    for name, tensor in first.items():
        change = (tensor - before[name]).norm()
        assert (second[name] - tensor).norm() <= (2e-6 if dtype == "float32" else 2**-8) * change


def numbers(shapes: list[tuple[int, int]], rank: int) -> int:
    """Numbers of an adapter: (r, in) and (out, r) for each matrix."""
    return sum(rank * (out + inside) for out, inside in shapes)


def test_size_is_that_of_the_factors(tmp_path: Path) -> None:
    base = saved(llama(), tmp_path)
    vector = low_rank(base, is_layer, lambda name: 4)
    record = export_adapter(base, vector, tmp_path / "adapter")
    shapes = [base.entry(name).shape for name in record.tensors]
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    header = 8 + int.from_bytes(path.read_bytes()[:8], "little")
    assert (
        path.stat().st_size - header == 2 * numbers(shapes, 4) == 2 * record.summary["parameters"]
    )

    hidden, keys, inner = 2048, 512, 8192  # Llama-3.2-1B
    layer = [(hidden, hidden), (keys, hidden), (keys, hidden), (hidden, hidden)]
    layer += [(inner, hidden), (inner, hidden), (hidden, inner)]
    per_matrix = header / len(shapes)  # of which names are most, and they are as long there
    assert 2 * numbers(layer * 16, 32) + 2 * per_matrix * len(layer) * 16 < 50e6


# --- factors stay factors -----------------------------------------------------------------------


def test_a_lower_rank_is_the_best_one_and_made_from_factors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained(llama(), LoraConfig(r=6, target_modules=["q_proj", "down_proj"]), tmp_path)
    base = Checkpoint.open(tmp_path / "base")
    name = "model.layers.1.mlp.down_proj.weight"
    halves = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    stem = f"base_model.model.{name.removesuffix('weight')}"
    a, b = exact(halves[f"{stem}lora_A.weight"]), exact(halves[f"{stem}lora_B.weight"])
    u, s, vt = np.linalg.svd(8 / 6 * (b @ a))

    def refuse(*_: object) -> None:
        raise AssertionError

    vector = open_vector(base, [str(tmp_path / "adapter")])
    monkeypatch.setattr(SumDelta, "matrix", refuse)
    monkeypatch.setattr(base, "rows", refuse)
    monkeypatch.setattr(base, "tensor", refuse)
    record = export_adapter(base, vector, tmp_path / "less", rule=Rank(2), dtype="float32")
    halves = load_file(tmp_path / "less" / "adapter_model.safetensors")
    product = exact(halves[f"{stem}lora_B.weight"]) @ exact(halves[f"{stem}lora_A.weight"])
    np.testing.assert_allclose(product, u[:, :2] * s[:2] @ vt[:2], atol=1e-6 * s[0])
    lost = (s[2:] ** 2).sum() / (s**2).sum()
    assert record.tensors[name]["lost"] == pytest.approx(lost, rel=1e-5)
    assert record.tensors[name]["norm"] == pytest.approx(np.linalg.norm(s), rel=1e-6)
    assert record.inputs["base"]["files"].keys() == {"config.json"}  # nothing else mattered


def test_more_factors_than_the_matrix_has_rank(tmp_path: Path) -> None:
    base = saved(llama(), tmp_path)
    rank_8 = low_rank(base, lambda name: "k_proj" in name, lambda name: 8)
    rank_9 = low_rank(base, lambda name: "k_proj" in name, lambda name: 9)
    vector = rank_8 + 0.5 * rank_9  # 17 factors of a matrix of 12 rows
    record = export_adapter(base, vector, tmp_path / "adapter", dtype="float32")
    assert {facts["rank"] for facts in record.tensors.values()} == {12}
    assert record.summary["lost"] < 1e-6
    again = open_vector(base, [str(tmp_path / "adapter")])
    shape = (12, 24)
    for name in record.tensors:
        first, second = (
            each.matrix(lambda i, j: torch.empty(0), shape)
            for each in (vector.at(name), again.at(name))
            if each is not None
        )
        torch.testing.assert_close(first, second, rtol=0, atol=1e-6)


# --- dense changes ------------------------------------------------------------------------------


def finetuned(base: Checkpoint, root: Path, norms: bool) -> Path:
    generator = torch.Generator().manual_seed(5)
    tensors = {
        name: tensor
        if tensor.ndim < 2 and not norms
        else tensor + 0.005 * torch.randn(tensor.shape, generator=generator)
        for name, tensor in read_tensors(base.path).items()
    }
    return write_checkpoint(root / "finetuned", tensors, config=base.config)


def test_dense_changes_are_refused_by_name(tmp_path: Path) -> None:
    base = saved(llama(), tmp_path)
    vector = open_vector(base, [str(finetuned(base, tmp_path, norms=True))])
    with pytest.raises(VectorError) as caught:
        export_adapter(base, vector, tmp_path / "adapter")
    message = str(caught.value)
    assert "and 15 more: a dense change" in message
    assert "norm.weight' and 4 more: no matrix" in message
    assert "--rank K" in message
    assert "ws subspace" in message
    assert "--targets all-linear" in message
    assert left_behind(tmp_path / "adapter") == []


@pytest.mark.parametrize("rule", [Rank(5), Energy(0.9)], ids=str)
def test_truncating_reports_what_is_lost(rule: Any, tmp_path: Path) -> None:
    base = saved(gpt2(), tmp_path)
    path = finetuned(base, tmp_path, norms=True)
    vector = open_vector(base, [str(path)])
    record = export_adapter(
        base, vector, tmp_path / "adapter",
        selection=Selection("all-linear"), rule=rule, dtype="float32",
    )  # fmt: skip
    before, after = read_tensors(tmp_path / "base"), read_tensors(path)
    halves = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    wholes, losses = [], []
    for name, facts in record.tensors.items():
        change = exact(after[name]) - exact(before[name])
        s = np.linalg.svd(change, compute_uv=False)
        losses.append((s[facts["rank"] :] ** 2).sum())
        wholes.append((s**2).sum())
        assert facts["lost"] == pytest.approx(losses[-1] / wholes[-1], rel=1e-4)
        assert facts["lost"] > 0.02
        stem = f"base_model.model.{name.removesuffix('weight')}"
        product = exact(halves[f"{stem}lora_B.weight"]) @ exact(halves[f"{stem}lora_A.weight"])
        missed = change - (product.T if is_transposed(name, base.config) else product)
        assert (missed**2).sum() == pytest.approx(losses[-1], rel=1e-4)
    assert record.summary["lost"] == pytest.approx(sum(losses) / sum(wholes), rel=1e-4)
    if rule == Rank(5):
        assert {facts["rank"] for facts in record.tensors.values()} == {5}
    else:
        assert record.summary["lost"] <= 0.1
    assert set(record.summary["left_out"]) == set(before) - set(record.tensors)
    assert len(record.inputs["base"]["files"]) > 1  # its weights mattered here


def test_dense_tensors_that_do_not_change_need_no_adapter(tmp_path: Path) -> None:
    """What 'ws diff --rank' saves: factors of matrices, and zeros for norms that were frozen."""
    base = saved(llama(), tmp_path)
    vector = open_vector(base, [str(finetuned(base, tmp_path, norms=False))])
    diff(base, vector, rule=Rank(3), save_to=tmp_path / "saved")
    found = open_vector(base, [str(tmp_path / "saved")])
    record = export_adapter(base, found, tmp_path / "adapter")
    assert len(record.tensors) == 16
    assert len(record.summary["unchanged"]) == 5
    assert all("norm" in name for name in record.summary["unchanged"])
    assert record.summary["left_out"] == []
    assert {facts["rank"] for facts in record.tensors.values()} == {3}


# --- what no LoRA holds -------------------------------------------------------------------------


def made_of(root: Path, shapes: dict[str, tuple[int, ...]], **config: Any) -> Checkpoint:
    tensors = {name: torch.randn(shape) for name, shape in shapes.items()}
    return Checkpoint.open(write_checkpoint(root / "made", tensors, config=config))


UP = "model.layers.0.mlp.up_proj.weight"
EXPERT = "model.layers.1.mlp.experts"
MIXER = "backbone.layers.0.mixer"
REFUSED = {
    "norm": ("model.layers.0.input_layernorm.weight", (8,), "no matrix", "all-linear"),
    "bias": ("model.layers.0.self_attn.q_proj.bias", (8,), "no matrix", "all-linear"),
    "fused experts": (f"{EXPERT}.gate_up_proj", (4, 8, 8), "mixture of experts", "attn"),
    "an expert": (f"{EXPERT}.0.up_proj.weight", (8, 8), "mixture of experts", "attn"),
    "granite experts": ("model.layers.0.block_sparse_moe.input_linear.weight", (4, 8, 8),
                        "mixture of experts", "attn"),
    "a kernel": ("model.layers.0.short_conv.weight", (8, 1, 4), "neither a linear", "exclude"),
    "a loose matrix": ("model.layers.0.self_attn.memory", (8, 8), "neither a linear", "exclude"),
    "positions": ("transformer.wpe.weight", (8, 8), "neither a linear", "all-linear"),
    "a tied embedding": ("model.embed_tokens.weight", (12, 8), "one side", "all-linear"),
    "an odd head": ("embed_out.weight", (12, 8), "not called lm_head", "all-linear"),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_what_no_lora_holds_is_refused_by_name(kind: str, tmp_path: Path) -> None:
    name, shape, reason, remedy = REFUSED[kind]
    base = made_of(tmp_path, {"model.layers.0.self_attn.q_proj.weight": (8, 8), name: shape})
    change = TaskVector.of(
        MappedChange(
            {
                "model.layers.0.self_attn.q_proj.weight": factors((8, 8), 2, 0),
                name: factors(shape, 2, 1) if len(shape) == 2 else torch.ones(shape),
            }
        )
    )
    with pytest.raises(VectorError, match=reason) as caught:
        export_adapter(base, change, tmp_path / "adapter")
    assert repr(name) in caught.value.what
    assert remedy in caught.value.remedy
    assert "ws add" in caught.value.remedy
    assert left_behind(tmp_path / "adapter") == []
    # As the remedy says:
    selection = Selection(exclude=(name,))
    record = export_adapter(base, change, tmp_path / "adapter", selection=selection)
    assert record.summary["left_out"] == [name]


def test_routers_and_state_space_mixers_are_refused(tmp_path: Path) -> None:
    """What memory renames with the experts, and what reads weights past their layers."""
    shapes = {
        UP: (8, 8),
        f"{EXPERT}.0.up_proj.weight": (8, 8),
        "model.layers.1.mlp.gate.weight": (4, 8),
        "model.layers.1.self_attn.q_proj.weight": (8, 8),
        f"{MIXER}.A_log": (8, 4),
        f"{MIXER}.in_proj.weight": (8, 8),
    }
    layers = LoraLayers(made_of(tmp_path, shapes))
    assert [name for name in shapes if isinstance(layers.find(name), LoraLayer)] == [
        "model.layers.1.self_attn.q_proj.weight"
    ]


def test_attention_of_a_mixture_of_experts(tmp_path: Path) -> None:
    config = MixtralConfig(
        vocab_size=40, hidden_size=24, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, num_local_experts=4,
    )  # fmt: skip
    base = saved(MixtralForCausalLM(config), tmp_path)
    vector = low_rank(base, lambda name: "self_attn" in name, lambda name: 2)
    export_adapter(base, vector, tmp_path / "adapter", dtype="float32")
    apply(Add(vector), base, tmp_path / "added")
    wanted = logits(loaded(tmp_path / "added"))
    assert (wanted - logits(loaded(tmp_path / "base"))).abs().max() > 0.01
    model = PeftModel.from_pretrained(loaded(tmp_path / "base"), tmp_path / "adapter")
    torch.testing.assert_close(logits(model), wanted, rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    ("config", "name", "reason"),
    [
        ({"text_config": {"model_type": "llama"}}, UP, "several parts"),
        ({"architectures": ["LlamaForCausalLM"]}, UP.removeprefix("model."), "without the part"),
    ],
)
def test_other_names_in_memory_are_refused(
    config: dict[str, Any], name: str, reason: str, tmp_path: Path
) -> None:
    base = made_of(tmp_path, {name: (8, 8)}, **config)
    vector = low_rank(base, lambda name: True, lambda name: 2)
    with pytest.raises(UnsupportedCheckpointError, match=reason):
        export_adapter(base, vector, tmp_path / "adapter")


MODULES = st.lists(
    st.lists(st.sampled_from("abc"), min_size=1, max_size=4).map(".".join), min_size=1, max_size=8
)


@given(MODULES, MODULES)
def test_peft_adapts_the_targets_and_nothing_else(targets: list[str], others: list[str]) -> None:
    found = target_modules(targets, others)
    config = LoraConfig(target_modules=found)
    for module in {*targets, *others}:
        assert bool(check_target_module_exists(config, module)) == (module in targets)


def test_targets_are_short_where_that_is_exact() -> None:
    modules = [f"model.layers.{i}.self_attn.{q}_proj" for i in range(2) for q in "qkv"]
    queries = [name for name in modules if "q_proj" in name]
    assert target_modules(queries, modules) == ["q_proj"]
    assert target_modules([*queries, modules[1]], modules) == [
        "model.layers.0.self_attn.k_proj",
        "q_proj",
    ]
    assert target_modules(["layers.0.q"], ["layers.0.q", "encoder.layers.0.q"]) == "layers\\.0\\.q"


# --- hostile input ------------------------------------------------------------------------------


@pytest.fixture
def plain(tmp_path: Path) -> tuple[Checkpoint, TaskVector, Path]:
    base = saved(llama(), tmp_path)
    vector = low_rank(base, is_layer, lambda name: 4)
    export_adapter(base, vector, tmp_path / "fine")
    return base, vector, tmp_path / "adapter"


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("part", ["U", "S", "V"])
def test_nan_names_the_tensor_and_leaves_nothing(plain: Any, part: str, value: float) -> None:
    base, vector, out = plain
    deltas = vector.terms[0][1].deltas
    getattr(deltas["model.layers.1.mlp.up_proj.weight"], part).select(-1, 1).fill_(value)
    with pytest.raises(NonFiniteError, match=r"layers\.1\.mlp\.up_proj"):
        export_adapter(base, vector, out)
    assert left_behind(out) == []


def test_what_float16_cannot_hold_is_refused(plain: Any) -> None:
    base, vector, out = plain
    with pytest.raises(NonFiniteError, match="too large for float16"):
        export_adapter(base, 1e12 * vector, out, dtype="float16")
    assert left_behind(out) == []
    export_adapter(base, 1e12 * vector, out)


@pytest.mark.parametrize(
    ("scale", "options", "error", "message"),
    [
        (0.0, {}, EditError, "none of the selected"),
        (math.nan, {}, EditError, "scale nan"),
        (1e40, {}, EditError, r"scale 1e\+40"),
        (1.0, {"dtype": "int8"}, EditError, "int8"),
        (1.0, {"selection": Selection(include=("nothing*",))}, SelectionError, "nothing"),
        (1.0, {"selection": Selection("embeddings")}, EditError, "none of the selected"),
        (1.0, {"selection": Selection(scales=(("*", 0.0),))}, EditError, "none of the selected"),
    ],
)
def test_settings_without_sense_are_refused(
    plain: Any, scale: float, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    base, vector, out = plain
    with pytest.raises(error, match=message):
        export_adapter(base, scale * vector, out, **options)
    assert left_behind(out) == []


def test_scales_of_a_selection_count(plain: Any) -> None:
    base, vector, out = plain
    half = Selection(scales=(("*", 1.0), ("1", -0.5)))
    record = export_adapter(base, vector, out, selection=half)
    whole = export_adapter(base, vector, out.with_name("whole"))
    for name, facts in record.tensors.items():
        factor = 0.5 if ".1." in name else 1.0
        assert facts["norm"] == pytest.approx(factor * whole.tensors[name]["norm"])


def test_nothing_is_overwritten_unasked(plain: Any) -> None:
    base, vector, out = plain
    first = export_adapter(base, vector, out)
    before = snapshot(out)
    with pytest.raises(OutputError, match="exists"):
        export_adapter(base, vector, out, dtype="float32")
    assert snapshot(out) == before
    second = export_adapter(base, vector, out, overwrite=True)
    assert second == first
    assert snapshot(out) == before  # the same command writes the same bytes
    for place in (base.path, base.path / "below"):
        with pytest.raises(OutputError, match="input"):
            export_adapter(base, vector, place, overwrite=True)
    out.with_name("foreign").mkdir()
    (out.with_name("foreign") / "file").touch()
    with pytest.raises(OutputError, match="not written by ws"):
        export_adapter(base, vector, out.with_name("foreign"), overwrite=True)


def test_what_a_kill_left_behind_is_cleared_away(plain: Any) -> None:
    base, vector, out = plain
    partial = out.parent / ".adapter.ws-partial"
    (partial / "files").mkdir(parents=True)
    (partial / "factors").write_bytes(b"of another run")
    (partial / "journal.jsonl").write_text('{"identity": "adapter 1 2"}\n')
    export_adapter(base, vector, out)
    assert snapshot(out) == snapshot(out.with_name("fine"))
    assert left_behind(out) == ["adapter"]


def test_an_adapter_can_be_verified(plain: Any) -> None:
    base, vector, out = plain
    export_adapter(base, vector, out, command=["ws", "export"])
    record = verify(out)
    assert record.kind == "adapter"
    assert set(record.files) == {"adapter_config.json", "adapter_model.safetensors"}
    assert record.command == ["ws", "export"]


def test_another_base_is_refused(plain: Any, tmp_path: Path) -> None:
    base, vector, out = plain
    diff(base, vector, rule=Rank(4), save_to=tmp_path / "saved", matrices_only=True)
    llama(hidden=32).save_pretrained(tmp_path / "wider")
    wider = Checkpoint.open(tmp_path / "wider")
    with pytest.raises(MismatchError, match="shape"):
        open_vector(wider, [str(tmp_path / "saved")])
    tensors = {name: torch.randn(t.shape) for name, t in read_tensors(base.path).items()}
    write_checkpoint(tmp_path / "stranger", tensors, config=base.config)
    stranger = Checkpoint.open(tmp_path / "stranger")
    found = open_vector(stranger, [str(tmp_path / "saved")])
    with pytest.raises(LineageError, match="not derived"):
        export_adapter(stranger, found, out)
    assert left_behind(out) == []
    record = export_adapter(stranger, found, out, allow_unrelated=True)
    assert record.lineage[0]["verdict"] == "unrelated"


def test_an_exported_adapter_knows_its_base(plain: Any, tmp_path: Path) -> None:
    base, vector, out = plain
    export_adapter(base, vector, out)
    assert json.loads((out / "adapter_config.json").read_text())["base_model_name_or_path"]
    again = export_adapter(base, open_vector(base, [str(out)]), tmp_path / "again")
    assert again.lineage[0]["verdict"] == "related"
