from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import (
    AdaLoraConfig,
    IA3Config,
    LoHaConfig,
    LoKrConfig,
    LoraConfig,
    OFTConfig,
    PeftType,
    PromptTuningConfig,
    VeraConfig,
    get_peft_model,
)
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

from tests.conftest import exact, left_behind, read_tensors, same_bytes
from weightsurgery import Add, Negate, apply, open_vector
from weightsurgery.checkpoint.reader import Checkpoint
from weightsurgery.errors import MismatchError, NonFiniteError, SourceError, VectorError
from weightsurgery.vectors.deltas import FactorDelta

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning:transformers.*"),
]


def llama(tie: bool = False, hidden: int = 24) -> Any:
    torch.manual_seed(3)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=40,
            hidden_size=hidden,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            tie_word_embeddings=tie,
        )
    )


def gpt2(tie: bool = True) -> Any:
    torch.manual_seed(4)
    config = GPT2Config(
        vocab_size=40,
        n_embd=24,
        n_layer=2,
        n_head=2,
        n_positions=16,
        bos_token_id=0,
        eos_token_id=0,
        tie_word_embeddings=tie,
    )
    return GPT2LMHeadModel(config)


def trained(model: Any, config: Any, root: Path, dtype: torch.dtype = torch.float32) -> Any:
    """Save the base, wrap it, fill the adapter with random numbers, save that."""
    model.to(dtype).save_pretrained(root / "base", max_shard_size="15KB")
    wrapped = get_peft_model(model, config)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_" in name:
                parameter.copy_(0.3 * torch.randn_like(parameter))
    wrapped.save_pretrained(root / "adapter")
    return wrapped


LINEAR = ["q_proj", "k_proj", "down_proj"]
VARIANTS: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "plain": (llama, {"r": 4, "lora_alpha": 12, "target_modules": LINEAR}),
    "rslora": (llama, {"r": 4, "target_modules": LINEAR, "use_rslora": True}),
    "rank pattern": (llama, {"r": 4, "target_modules": LINEAR, "rank_pattern": {"k_proj": 2}}),
    "alpha pattern": (
        llama,
        {
            "r": 4,
            "target_modules": LINEAR,
            "use_rslora": True,
            "rank_pattern": {"layers.1.self_attn.q_proj": 6, "^model.layers.0.mlp.down_proj": 3},
            "alpha_pattern": {"layers.1.self_attn.q_proj": 30, "q_proj": 3, "down_proj": 1},
        },
    ),
    "regular expressions": (
        llama,
        {
            "r": 4,
            "target_modules": r".*\.(q_proj|down_proj)",
            "use_rslora": True,
            "rank_pattern": {r"layers\.\d\.self_attn\.(q|k)_proj": 2, "q_proj": 5},
            # The first that matches counts, in the order peft saves them in: sorted.
            "alpha_pattern": {r"(layers\.1\.)?mlp\.down_proj": 1, r"layers\.0\..*": 3},
        },
    ),
    "orthogonal": (llama, {"r": 4, "target_modules": LINEAR, "init_lora_weights": "orthogonal"}),
    "mica": (llama, {"r": 4, "target_modules": LINEAR, "init_lora_weights": "mica"}),
    "some layers": (llama, {"r": 4, "target_modules": LINEAR, "layers_to_transform": [1]}),
    "all linear": (llama, {"r": 4, "target_modules": "all-linear"}),
    "embedding": (llama, {"r": 4, "target_modules": ["embed_tokens", "v_proj"]}),
    "head": (llama, {"r": 4, "target_modules": ["lm_head", "v_proj"]}),
    "conv1d": (gpt2, {"r": 4, "target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}),
    "conv1d not declared": (gpt2, {"r": 4, "target_modules": ["attn.c_proj", "c_fc"]}),
    "conv1d and embedding": (
        lambda: gpt2(tie=False),
        {"r": 4, "target_modules": ["c_attn", "wte"]},
    ),
    "conv1d and head": (
        lambda: gpt2(tie=False),
        {"r": 4, "target_modules": ["attn.c_proj", "lm_head"]},
    ),
}


def check_added(root: Path, wrapped: Any) -> None:
    """Adding the adapter gives the weights of peft's own merge."""
    base = Checkpoint.open(root / "base")
    vector = open_vector(base, [str(root / "adapter")])
    apply(Add(vector), base, root / "out")
    merged = wrapped.merge_and_unload().state_dict()
    before, after = read_tensors(root / "base"), read_tensors(root / "out")
    adapted = {name for name in before if vector.at(name) is not None}
    assert adapted
    assert adapted == {name for name in before if vector.rows_at(name) is not None}
    for name, tensor in after.items():
        if name in adapted:
            assert (before[name] - merged[name]).abs().max() > 0.05
            # Both multiply in float32, in another order: some of its eps at size one.
            torch.testing.assert_close(tensor, merged[name], rtol=0, atol=3e-6)
        else:
            assert same_bytes(tensor, merged[name])


@pytest.mark.parametrize("variant", VARIANTS)
def test_adding_an_adapter_is_pefts_merge(variant: str, tmp_path: Path) -> None:
    build, settings = VARIANTS[variant]
    check_added(tmp_path, trained(build(), LoraConfig(**settings), tmp_path))


def test_each_module_is_oriented_whatever_the_config_notes(tmp_path: Path) -> None:
    """Of a model with both kinds of module, peft notes the orientation of the one it met last."""
    build, settings = VARIANTS["conv1d and head"]
    wrapped = trained(build(), LoraConfig(**settings), tmp_path)
    path = tmp_path / "adapter" / "adapter_config.json"
    config = json.loads(path.read_text())
    assert config["fan_in_fan_out"] is False
    path.write_text(json.dumps({**config, "fan_in_fan_out": True}))
    check_added(tmp_path, wrapped)


def test_adding_to_bfloat16_rounds_once(tmp_path: Path) -> None:
    config = LoraConfig(r=4, target_modules=LINEAR)
    wrapped = trained(llama(), config, tmp_path, torch.bfloat16)
    base = Checkpoint.open(tmp_path / "base")
    apply(Add(open_vector(base, [str(tmp_path / "adapter")])), base, tmp_path / "out")
    before, after = read_tensors(tmp_path / "base"), read_tensors(tmp_path / "out")
    name = "model.layers.1.mlp.down_proj.weight"
    module = wrapped.base_model.model.model.layers[1].mlp.down_proj
    a, b = (exact(m["default"].weight.detach()) for m in (module.lora_A, module.lora_B))
    wanted = exact(before[name]) + 2.0 * (b @ a)
    assert not torch.equal(before[name], after[name])
    error = abs(exact(after[name]) - wanted)
    assert (error <= abs(wanted) * 2.0**-8 + 1e-6).all()  # half a bfloat16 step, float32 arithmetic


def test_add_then_negate_returns_to_the_base(tmp_path: Path) -> None:
    trained(llama(), LoraConfig(r=4, target_modules=LINEAR), tmp_path)
    base = Checkpoint.open(tmp_path / "base")
    adapter = [str(tmp_path / "adapter")]
    apply(Add(open_vector(base, adapter)), base, tmp_path / "added")
    added = Checkpoint.open(tmp_path / "added")
    apply(Negate(open_vector(added, adapter)), added, tmp_path / "back")
    start, middle, end = (read_tensors(tmp_path / n) for n in ("base", "added", "back"))
    name = "model.layers.0.self_attn.q_proj.weight"
    assert (start[name] - middle[name]).abs().max() > 0.05
    for name in start:
        torch.testing.assert_close(end[name], start[name], rtol=0, atol=1e-6)


def test_a_change_stays_in_factors(tmp_path: Path) -> None:
    trained(llama(), LoraConfig(r=4, target_modules=LINEAR), tmp_path)
    base = Checkpoint.open(tmp_path / "base")
    vector = open_vector(base, [str(tmp_path / "adapter"), f"{tmp_path / 'adapter'}:-0.5"])
    delta = vector.at("model.layers.0.self_attn.q_proj.weight")
    assert delta is not None
    assert all(isinstance(each, FactorDelta) for _, each in delta.terms)
    found = delta.factors()
    assert found is not None
    assert found.rank == 4  # not 8: the same factors twice


# --- refusals -----------------------------------------------------------------------------------

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "pissa": ({"init_lora_weights": "pissa"}, "pissa"),
    "olora": ({"init_lora_weights": "olora"}, "olora"),
    "replication": ({"layer_replication": [[0, 2], [0, 2]]}, "layer_replication"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_change_of_the_bases_weights_is_refused(kind: str, tmp_path: Path) -> None:
    settings, reason = REFUSED[kind]
    trained(llama(), LoraConfig(r=4, target_modules=["q_proj"], **settings), tmp_path)
    base = Checkpoint.open(tmp_path / "base")
    with pytest.raises(VectorError, match=reason):
        open_vector(base, [str(tmp_path / "adapter")])


def test_another_peft_type_is_refused(tmp_path: Path) -> None:
    config = IA3Config(target_modules=["q_proj"], feedforward_modules=[])
    trained(llama(), config, tmp_path)
    with pytest.raises(VectorError, match="IA3"):
        open_vector(Checkpoint.open(tmp_path / "base"), [str(tmp_path / "adapter")])


OTHERS: dict[str, Any] = {
    "LOHA": lambda: LoHaConfig(target_modules=["q_proj"]),
    "LOKR": lambda: LoKrConfig(target_modules=["q_proj"]),
    "VERA": lambda: VeraConfig(r=4, target_modules=["q_proj"]),
    "ADALORA": lambda: AdaLoraConfig(target_modules=["q_proj"], total_step=9),
    "OFT": lambda: OFTConfig(target_modules=["q_proj"], oft_block_size=4),
    "PROMPT_TUNING": lambda: PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM"),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_adapters_as_peft_saves_them_are_refused_by_name(kind: str, tmp_path: Path) -> None:
    trained(llama(), OTHERS[kind](), tmp_path)
    with pytest.raises(VectorError, match=f"a {kind} adapter") as caught:
        open_vector(Checkpoint.open(tmp_path / "base"), [str(tmp_path / "adapter")])
    assert "merged checkpoint" in caught.value.remedy or "No change" in caught.value.remedy


@pytest.mark.parametrize("kind", [each.value for each in PeftType if each != PeftType.LORA])
def test_every_type_that_is_no_lora_is_refused_by_name(kind: str, plain: Path) -> None:
    path = plain / "adapter" / "adapter_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "peft_type": kind}))
    with pytest.raises(VectorError, match=f"a {kind} adapter"):
        open_vector(Checkpoint.open(plain / "base"), [str(plain / "adapter")])


TOKENS = torch.tensor([[1, 7, 3, 30, 2, 9], [5, 5, 0, 21, 39, 4]])


def logits(model: Any) -> torch.Tensor:
    model.eval()
    with torch.no_grad():
        return model(TOKENS).logits


def untied(base: Path, out: Path) -> Path:
    """As the refusal says."""
    model = AutoModelForCausalLM.from_pretrained(base, tie_word_embeddings=False)
    model.lm_head.weight.data = model.get_input_embeddings().weight.data.clone()
    model.save_pretrained(out)
    return out


@pytest.mark.parametrize("ensure", [False, True], ids=["", "ensured"])
@pytest.mark.parametrize("sides", [["wte"], ["lm_head"], ["wte", "lm_head"]], ids="+".join)
@pytest.mark.parametrize("build", [gpt2, lambda: llama(tie=True)], ids=["gpt2", "llama"])
def test_one_side_of_a_tied_matrix_is_refused_with_the_way_out(
    build: Callable[[], Any], sides: list[str], ensure: bool, tmp_path: Path
) -> None:
    """Beside the base one side changes; in the one matrix there is, both would."""
    model = build()
    if "llama" in type(model).__name__.lower():
        sides = [each.replace("wte", "embed_tokens") for each in sides]
    config = LoraConfig(r=4, target_modules=sides, ensure_weight_tying=ensure)
    wrapped = trained(model, config, tmp_path)
    adapter = str(tmp_path / "adapter")
    beside = logits(wrapped)
    base = Checkpoint.open(tmp_path / "base")
    assert "lm_head.weight" not in base.entries
    with pytest.raises(VectorError, match=r"base ties its head to its embedding") as caught:
        open_vector(base, [adapter])
    halves = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    found = {key.partition(".lora_")[0].rpartition(".")[2] for key in halves if ".lora_" in key}
    assert any(f"{side}'" in caught.value.what for side in found)
    # The first way out: with a head of its own, the base becomes what it was beside the adapter.
    apart = Checkpoint.open(untied(tmp_path / "base", tmp_path / "apart"))
    apply(Add(open_vector(apart, [adapter])), apart, tmp_path / "out")
    made = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert (beside - logits(AutoModelForCausalLM.from_pretrained(apart.path))).abs().max() > 0.1
    torch.testing.assert_close(logits(made), beside, rtol=0, atol=1e-5)
    # The second, offered where one side alone is adapted: what peft merges.
    merged = wrapped.merge_and_unload()
    wanted = logits(merged)
    assert (wanted - beside).abs().max() > 0.1
    assert ("what peft merges" in caught.value.remedy) == (len(found) == 1)
    if len(found) == 1:
        merged.save_pretrained(tmp_path / "merged")
        apply(Add(open_vector(base, [str(tmp_path / "merged")])), base, tmp_path / "both")
        made = AutoModelForCausalLM.from_pretrained(tmp_path / "both")
        torch.testing.assert_close(logits(made), wanted, rtol=0, atol=1e-5)


def test_a_head_that_is_neither_stored_nor_tied(tmp_path: Path) -> None:
    trained(llama(tie=True), LoraConfig(r=4, target_modules=["lm_head"]), tmp_path)
    path = tmp_path / "base" / "config.json"
    config = {**json.loads(path.read_text()), "tie_word_embeddings": False}
    path.write_text(json.dumps(config))
    with pytest.raises(MismatchError, match=r"'lm_head', and .* no such module"):
        open_vector(Checkpoint.open(tmp_path / "base"), [str(tmp_path / "adapter")])


def test_merging_in_peft_is_the_way_out(tmp_path: Path) -> None:
    """What is refused says so: merge it, and take the merged checkpoint as the vector."""
    config = LoraConfig(r=4, target_modules=["c_attn"], use_dora=True, fan_in_fan_out=True)
    wrapped = trained(gpt2(), config, tmp_path)
    base = Checkpoint.open(tmp_path / "base")
    with pytest.raises(VectorError, match=r"use_dora.*\n.*[Mm]erge"):
        open_vector(base, [str(tmp_path / "adapter")])
    wrapped.merge_and_unload().save_pretrained(tmp_path / "merged")
    apply(
        Add(open_vector(base, [str(tmp_path / "merged")])),
        base,
        tmp_path / "out",
        allow_unrelated=True,
    )
    before, merged, found = (read_tensors(tmp_path / n) for n in ("base", "merged", "out"))
    assert any(not torch.equal(before[name], merged[name]) for name in before)
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, merged[name], rtol=0, atol=1e-6)


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    trained(llama(), LoraConfig(r=4, target_modules=["q_proj"]), tmp_path)
    open_vector(Checkpoint.open(tmp_path / "base"), [str(tmp_path / "adapter")])  # as it is: fine
    return tmp_path


def test_pickled_adapters_are_refused(plain: Path) -> None:
    weights = plain / "adapter" / "adapter_model.safetensors"
    torch.save(load_file(weights), plain / "adapter" / "adapter_model.bin")
    weights.unlink()
    with pytest.raises(VectorError, match=r"no adapter_model\.safetensors"):
        open_vector(Checkpoint.open(plain / "base"), [str(plain / "adapter")])


def rewrite(root: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    path = root / "adapter" / "adapter_model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def test_half_a_pair_is_refused(plain: Path) -> None:
    def drop(tensors: dict[str, torch.Tensor]) -> None:
        del tensors[next(key for key in tensors if "lora_A" in key)]

    rewrite(plain, drop)
    with pytest.raises(VectorError, match="only one of lora_A and lora_B"):
        open_vector(Checkpoint.open(plain / "base"), [str(plain / "adapter")])


def test_an_adapter_for_another_model_is_refused(plain: Path, tmp_path: Path) -> None:
    llama(hidden=32).save_pretrained(tmp_path / "wider")
    with pytest.raises(MismatchError, match=r"q_proj.*\[24, 24\].*\[32, 32\]"):
        open_vector(Checkpoint.open(tmp_path / "wider"), [str(plain / "adapter")])
    gpt2().save_pretrained(tmp_path / "gpt2")
    with pytest.raises(MismatchError, match="no such module"):
        open_vector(Checkpoint.open(tmp_path / "gpt2"), [str(plain / "adapter")])


def test_nan_in_an_adapter_names_the_tensor_and_leaves_nothing(plain: Path) -> None:
    def poison(tensors: dict[str, torch.Tensor]) -> None:
        tensors[next(key for key in tensors if "lora_B" in key)][1, 1] = float("nan")

    rewrite(plain, poison)
    base = Checkpoint.open(plain / "base")
    with pytest.raises(NonFiniteError, match=r"layers\.0\.self_attn\.q_proj\.weight.*adapter"):
        apply(Add(open_vector(base, [str(plain / "adapter")])), base, plain / "out")
    assert left_behind(plain / "out") == []


def test_a_config_that_is_no_json_is_refused(plain: Path) -> None:
    (plain / "adapter" / "adapter_config.json").write_text("{")
    with pytest.raises(VectorError, match="not valid JSON"):
        open_vector(Checkpoint.open(plain / "base"), [str(plain / "adapter")])


def test_record_names_adapter_and_its_base(plain: Path) -> None:
    base = Checkpoint.open(plain / "base")
    apply(Add(open_vector(base, [str(plain / "adapter")])), base, plain / "out")
    inputs = json.loads((plain / "out" / "weightsurgery.json").read_text())["inputs"]["vector"]
    assert inputs["kind"] == "peft-lora"
    assert set(inputs["files"]) == {"adapter_config.json", "adapter_model.safetensors"}


def test_a_folder_of_named_adapters_says_so(plain: Path) -> None:
    (plain / "many").mkdir()
    (plain / "adapter").rename(plain / "many" / "poet")
    base = Checkpoint.open(plain / "base")
    open_vector(base, [str(plain / "many" / "poet")])
    with pytest.raises(SourceError, match="poet") as caught:
        open_vector(base, [str(plain / "many")])
    assert caught.value.remedy.endswith("many/poet")
