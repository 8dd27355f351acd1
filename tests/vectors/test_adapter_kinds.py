"""Adapters of more than ``B A``, of other ranks and other layouts, beside peft's own merge."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from peft.utils.other import get_pattern_key
from safetensors.torch import load_file, save_file
from transformers import MixtralConfig, MixtralForCausalLM

from tests.conftest import read_tensors, same_bytes, write_checkpoint
from tests.vectors.test_adapters import gpt2, llama
from weightsurgery import Add, Negate, apply, open_vector
from weightsurgery.checkpoint.reader import Checkpoint
from weightsurgery.errors import MismatchError, SourceError, VectorError
from weightsurgery.vectors.adapters import AdapterChange
from weightsurgery.vectors.patterns import ModulePattern

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning:transformers.*"),
]


def filled(model: Any, config: LoraConfig, root: Path) -> Any:
    """Base and adapter on disk; every number that was trained is off by a random one."""
    model.save_pretrained(root / "base")
    wrapped = get_peft_model(model, config)
    with torch.no_grad():
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                parameter.add_(0.2 * torch.randn_like(parameter))
    wrapped.save_pretrained(root / "adapter")
    return wrapped


def notes_of(root: Path) -> str:
    base = Checkpoint.open(root / "base")
    change = open_vector(base, [str(root / "adapter")]).terms[0][1]
    assert isinstance(change, AdapterChange)
    return "\n".join(change.notes)


def check_merge(root: Path, wrapped: Any, changed: str) -> None:
    """Adding is peft's merge, where it merges; what is not adapted keeps its bytes.

    Args:
        root: Of base and adapter.
        wrapped: The model beside its adapter.
        changed: A pattern of the tensors that must change.
    """
    base = Checkpoint.open(root / "base")
    vector = open_vector(base, [str(root / "adapter")])
    apply(Add(vector), base, root / "out")
    merged = wrapped.merge_and_unload().state_dict()
    before, after = read_tensors(root / "base"), read_tensors(root / "out")
    moved = {name for name in before if not same_bytes(before[name], after[name])}
    assert moved == {name for name in before if re.search(changed, name)}
    for name, tensor in after.items():
        torch.testing.assert_close(tensor, merged[name], rtol=0, atol=5e-6, msg=name)


LINEAR = {"r": 4, "target_modules": ["q_proj", "down_proj"]}
MORE: dict[str, tuple[Any, dict[str, Any], str]] = {
    "dora": (llama, {**LINEAR, "use_dora": True}, "q_proj|down_proj"),
    "dora with a scale": (
        llama,
        {**LINEAR, "use_dora": True, "use_rslora": True, "lora_alpha": 3},
        "q_proj|down_proj",
    ),
    "modules to save": (
        llama,
        {**LINEAR, "modules_to_save": ["lm_head", "norm"]},
        r"q_proj|down_proj|lm_head|norm",
    ),
    "embedding to save": (llama, {**LINEAR, "modules_to_save": ["embed_tokens"]}, "q_p|down|embed"),
    "a tied embedding and head to save": (
        lambda: llama(tie=True),
        {**LINEAR, "modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
        "q_proj|down_proj|embed",
    ),
    "all biases": (gpt2, {"r": 4, "target_modules": ["c_attn"], "bias": "all"}, r"c_attn|\.bias"),
    "their biases": (gpt2, {"r": 4, "target_modules": ["c_attn"], "bias": "lora_only"}, "c_attn"),
    "a bias of B": (
        gpt2,
        {"r": 4, "target_modules": ["c_attn"], "lora_bias": True, "fan_in_fan_out": True},
        "c_attn",
    ),
    "tokens": (llama, {**LINEAR, "trainable_token_indices": [7, 2, 30]}, "q_proj|down_proj|embed"),
    "tokens of a head": (
        llama,
        {**LINEAR, "trainable_token_indices": {"lm_head": [5, 1], "embed_tokens": [2]}},
        "q_proj|down_proj|embed|lm_head",
    ),
    "tokens, tied": (
        lambda: llama(tie=True),
        {**LINEAR, "trainable_token_indices": [7, 2, 30]},
        "q_proj|down_proj|embed",
    ),
}


@pytest.mark.parametrize("kind", MORE)
def test_adding_is_pefts_merge(kind: str, tmp_path: Path) -> None:
    build, settings, changed = MORE[kind]
    model = build()
    wrapped = filled(model, LoraConfig(**settings), tmp_path)
    check_merge(tmp_path, wrapped, changed)


def test_tokens_are_rows_and_the_others_keep_their_bytes(tmp_path: Path) -> None:
    config = LoraConfig(**LINEAR, trainable_token_indices=[7, 2, 30])
    filled(llama(), config, tmp_path)
    base = Checkpoint.open(tmp_path / "base")
    apply(Negate(open_vector(base, [str(tmp_path / "adapter")])), base, tmp_path / "out")
    name = "model.embed_tokens.weight"
    before, after = read_tensors(tmp_path / "base")[name], read_tensors(tmp_path / "out")[name]
    rows = (before != after).any(1).nonzero().reshape(-1).tolist()
    assert rows == [2, 7, 30]
    assert f"{name}: 3 rows are replaced" in notes_of(tmp_path)
    record = json.loads((tmp_path / "out" / "weightsurgery.json").read_text())
    assert any("3 rows" in note for note in record["inputs"]["vector"]["notes"])


def test_tokens_that_the_config_does_not_name_are_refused(tmp_path: Path) -> None:
    filled(llama(), LoraConfig(**LINEAR, trainable_token_indices=[7, 2]), tmp_path)
    for indices in ([7], [7, 7], [7, 99], [7, -1], None, {"lm_head": [7, 2]}):
        resettle(tmp_path, trainable_token_indices=indices)
        with pytest.raises(VectorError, match="trainable_token_indices does not name"):
            notes_of(tmp_path)


def resettle(root: Path, **settings: Any) -> None:
    path = root / "adapter" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


def rewrite(root: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    path = root / "adapter" / "adapter_model.safetensors"
    save_file({k: v.contiguous() for k, v in tensors.items()}, path)


# --- ranks ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("use_rslora", [False, True])
def test_factors_of_another_rank_than_the_configs_are_refused(
    use_rslora: bool, tmp_path: Path
) -> None:
    config = LoraConfig(**LINEAR, rank_pattern={"q_proj": 2}, use_rslora=use_rslora)
    filled(llama(), config, tmp_path)
    notes_of(tmp_path)
    resettle(tmp_path, rank_pattern={})
    with pytest.raises(VectorError, match=r"q_proj' are of rank 2.* says 4") as caught:
        notes_of(tmp_path)
    assert "rank_pattern" in caught.value.remedy
    resettle(tmp_path, rank_pattern={"layers.0.self_attn.q_proj": 2, "q_pro.": 2})
    notes_of(tmp_path)


PARTS = ["q_proj", "layers.1", "self_attn", r"layers\.\d", "^model", ".*", "(q|k)_proj", "_proj"]


@given(st.lists(st.lists(st.sampled_from(PARTS), min_size=1, max_size=3), max_size=4))
def test_the_first_pattern_that_matches_counts_as_in_peft(parts: list[list[str]]) -> None:
    module = "model.layers.1.self_attn.q_proj"
    patterns = [".".join(each) for each in parts]
    ours = next((p for p in patterns if ModulePattern(p, "adapter").matches(module)), module)
    assert ours == get_pattern_key(patterns, module)


# --- weights that are not there -------------------------------------------------------------------


@pytest.mark.parametrize("empty", ["none", "zero", "one of them"])
def test_weights_that_were_partitioned_are_named_so(empty: str, tmp_path: Path) -> None:
    filled(llama(), LoraConfig(**LINEAR), tmp_path)
    tensors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    names = list(tensors)
    lost = {"none": [], "zero": names, "one of them": names[2:3]}[empty]
    rewrite(
        tmp_path,
        {} if empty == "none" else {n: t[:0, 0] if n in lost else t for n, t in tensors.items()},
    )
    with pytest.raises(VectorError, match=r"partitioned.*ZeRO-3") as caught:
        notes_of(tmp_path)
    assert "zero_to_fp32" in caught.value.remedy


# --- embeddings in the adapter --------------------------------------------------------------------

EMBEDDING = "model.embed_tokens.weight"


def with_rows(root: Path, rows: torch.Tensor) -> None:
    tensors = load_file(root / "adapter" / "adapter_model.safetensors")
    rewrite(root, tensors | {f"base_model.model.{EMBEDDING}": rows})


@pytest.mark.parametrize("count", [40, 37])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_that_are_the_bases_own_change_nothing(
    count: int, dtype: torch.dtype, tmp_path: Path
) -> None:
    filled(llama(), LoraConfig(**LINEAR), tmp_path)
    rows = read_tensors(tmp_path / "base")[EMBEDDING][:count].to(dtype)
    with_rows(tmp_path, rows)
    base = Checkpoint.open(tmp_path / "base")
    vector = open_vector(base, [str(tmp_path / "adapter")])
    assert vector.at(EMBEDDING) is None
    assert f"its {count} rows in the adapter are the base's own" in notes_of(tmp_path)
    rows[[5, 11]] += 0.25
    with_rows(tmp_path, rows)
    assert f"2 rows are replaced by the adapter's, which holds {count} of it: 5, 11" in notes_of(
        tmp_path
    )
    apply(Add(open_vector(base, [str(tmp_path / "adapter")])), base, tmp_path / "out")
    before, after = (read_tensors(tmp_path / each)[EMBEDDING] for each in ("base", "out"))
    torch.testing.assert_close(after[[5, 11]], rows[[5, 11]].float(), rtol=0, atol=1e-6)
    before[[5, 11]] = after[[5, 11]]
    assert same_bytes(before, after)


def test_an_extended_vocabulary_says_what_to_do(tmp_path: Path) -> None:
    filled(llama(), LoraConfig(**LINEAR), tmp_path)
    rows = read_tensors(tmp_path / "base")[EMBEDDING]
    with_rows(tmp_path, torch.cat([rows, rows[:3]]))
    with pytest.raises(MismatchError, match="extended by 3 tokens") as caught:
        notes_of(tmp_path)
    assert "resize_token_embeddings(43)" in caught.value.remedy


def test_one_side_of_a_tied_matrix_is_refused(tmp_path: Path) -> None:
    filled(llama(tie=True), LoraConfig(**LINEAR), tmp_path)
    rows = read_tensors(tmp_path / "base")[EMBEDDING]
    with_rows(tmp_path, rows)
    notes_of(tmp_path)
    with_rows(tmp_path, rows + 0.1)
    with pytest.raises(VectorError, match="ties its head to its embedding"):
        notes_of(tmp_path)


def test_a_bias_of_b_needs_one_of_the_bases(tmp_path: Path) -> None:
    filled(llama(), LoraConfig(**LINEAR), tmp_path)
    tensors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    key = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.bias"
    rewrite(tmp_path, tensors | {key: torch.ones(24)})
    with pytest.raises(VectorError, match=r"lora_bias is set, and .*base has no bias"):
        notes_of(tmp_path)


def test_a_tensor_that_the_base_does_not_have_is_refused(tmp_path: Path) -> None:
    filled(llama(), LoraConfig(**LINEAR), tmp_path)
    tensors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    rewrite(tmp_path, tensors | {"base_model.model.score.weight": torch.ones(2, 24)})
    with pytest.raises(VectorError, match=r"score\.weight' is no LoRA factor, and .*base has no"):
        notes_of(tmp_path)


# --- layouts of others ----------------------------------------------------------------------------


def as_mlx(root: Path, scale: float) -> None:
    """peft's adapter as MLX-LM would have it."""
    folder = root / "adapter"
    factors = load_file(folder / "adapter_model.safetensors")
    kinds = {
        ".lora_A.weight": ".lora_a",
        ".lora_B.weight": ".lora_b",
        ".lora_magnitude_vector": ".m",
    }
    tensors = {}
    for key, tensor in factors.items():
        ending = next(each for each in kinds if key.endswith(each))
        name = key.removeprefix("base_model.model.").removesuffix(ending) + kinds[ending]
        tensors[name] = tensor.T.contiguous() if tensor.ndim == 2 else tensor
    rank = min(next(t for k, t in tensors.items() if k.endswith(".lora_a")).shape)
    kind = "dora" if any(key.endswith(".m") for key in tensors) else "lora"
    for path in folder.iterdir():
        path.unlink()
    save_file(tensors, folder / "adapters.safetensors", {"format": "mlx"})
    save_file(tensors, folder / "0000100_adapters.safetensors", {"format": "mlx"})
    config = {
        "fine_tune_type": kind,
        "num_layers": 2,
        "lora_parameters": {"rank": rank, "scale": scale, "dropout": 0.0},
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("rank", [4, 24], ids=["", "square"])
@pytest.mark.parametrize("dora", [False, True])
def test_an_adapter_of_mlx_lm_is_pefts_turned(rank: int, dora: bool, tmp_path: Path) -> None:
    config = LoraConfig(
        r=rank, lora_alpha=3 * rank, target_modules=["q_proj", "down_proj"], use_dora=dora
    )
    wrapped = filled(llama(), config, tmp_path)
    as_mlx(tmp_path, 3.0)
    assert "MLX-LM" in notes_of(tmp_path)
    check_merge(tmp_path, wrapped, "q_proj|down_proj")


def test_what_is_not_read_of_mlx_lm_is_named(tmp_path: Path) -> None:
    filled(llama(), LoraConfig(**LINEAR), tmp_path)
    as_mlx(tmp_path, 2.0)
    resettle(tmp_path, fine_tune_type="full")
    with pytest.raises(VectorError, match=r"MLX-LM adapter of fine_tune_type 'full'") as caught:
        notes_of(tmp_path)
    assert "mlx_lm.fuse" in caught.value.remedy
    resettle(tmp_path, fine_tune_type="lora", lora_parameters={"rank": 5, "scale": 2.0})
    with pytest.raises(VectorError, match=r"of rank 4.* says 5"):
        notes_of(tmp_path)


def test_kohyas_names_without_dots_find_their_modules(tmp_path: Path) -> None:
    wrapped = filled(llama(), LoraConfig(r=4, lora_alpha=6, target_modules=["q_proj"]), tmp_path)
    folder = tmp_path / "adapter"
    tensors = {}
    for key, tensor in load_file(folder / "adapter_model.safetensors").items():
        module, _, factor = key.removeprefix("base_model.model.").partition(".lora_")
        flat = f"lora_te_{module.replace('.', '_')}"
        tensors[f"{flat}.lora_{'down' if factor[0] == 'A' else 'up'}.weight"] = tensor
        tensors[f"{flat}.alpha"] = torch.tensor(6.0)
    for path in folder.iterdir():
        path.unlink()
    save_file(tensors, folder / "style.safetensors")
    assert "kohya" in notes_of(tmp_path)
    check_merge(tmp_path, wrapped, "q_proj")


# --- folders --------------------------------------------------------------------------------------


def test_a_model_and_an_adapter_in_one_folder_are_refused(tmp_path: Path) -> None:
    filled(llama(), LoraConfig(**LINEAR), tmp_path)
    llama().save_pretrained(tmp_path / "adapter")
    with pytest.raises(SourceError, match=r"full model \(model\.safetensors\) and an adapter"):
        notes_of(tmp_path)
    # A config left behind by an adapter that was merged is none.
    (tmp_path / "adapter" / "adapter_model.safetensors").unlink()
    base = Checkpoint.open(tmp_path / "base")
    found = open_vector(base, [str(tmp_path / "adapter")])
    assert not isinstance(found.terms[0][1], AdapterChange)


def test_factors_without_a_config_are_named_so(tmp_path: Path) -> None:
    filled(llama(), LoraConfig(**LINEAR), tmp_path)
    (tmp_path / "adapter" / "adapter_config.json").unlink()
    with pytest.raises(VectorError, match=r"LoRA factors, and no adapter_config\.json"):
        notes_of(tmp_path)


def test_other_adapters_in_folders_inside_are_told_of(tmp_path: Path) -> None:
    wrapped = filled(llama(), LoraConfig(**LINEAR), tmp_path)
    wrapped.add_adapter("poet", LoraConfig(r=2, target_modules=["v_proj"]))
    wrapped.save_pretrained(tmp_path / "adapter")
    assert "the adapter in the folder itself was read, not poet" in notes_of(tmp_path)


def test_several_adapters_in_one_file_are_refused(tmp_path: Path) -> None:
    filled(llama(), LoraConfig(**LINEAR), tmp_path)
    tensors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    named = {k.replace(".weight", ".poet.weight"): t for k, t in tensors.items()}
    rewrite(tmp_path, named)
    assert notes_of(tmp_path) == ""  # one, by a name of its own
    rewrite(tmp_path, named | {k.replace("poet", "x"): t.clone() for k, t in named.items()})
    with pytest.raises(VectorError, match=r"several adapters in one file: poet, x"):
        notes_of(tmp_path)


# --- experts in one tensor ------------------------------------------------------------------------


def mixtral(width: int = 12) -> Any:
    torch.manual_seed(5)
    return MixtralForCausalLM(
        MixtralConfig(
            vocab_size=40, hidden_size=16, intermediate_size=width, num_hidden_layers=2,
            num_attention_heads=2, num_key_value_heads=1, num_local_experts=4,
        )
    )  # fmt: skip


EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]


def experts_apart(fused: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """One by one, as most checkpoints have them."""
    found = {}
    for name, tensor in fused.items():
        holder, _, parameter = name.rpartition(".")
        if not holder.endswith("experts"):
            found[name] = tensor
            continue
        for number, matrix in enumerate(tensor):
            parts = {"down_proj": matrix}
            if parameter == "gate_up_proj":
                parts = dict(zip(("gate_proj", "up_proj"), matrix.chunk(2), strict=True))
            for part, rows in parts.items():
                found[f"{holder}.{number}.{part}.weight"] = rows
    return found


def mixtrals(names: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """As transformers saves it."""
    parts = {"gate_proj": "w1", "down_proj": "w2", "up_proj": "w3"}
    return {
        re.sub(r"(?<=\d\.)\w+_proj(?=\.weight)", lambda found: parts[found[0]], name)
        .replace(".mlp.", ".block_sparse_moe."): tensor
        for name, tensor in names.items()
    }  # fmt: skip


@pytest.mark.parametrize("layout", ["0.18", "now"])
@pytest.mark.parametrize("stored", ["in one tensor", "one by one", "as Mixtral's"])
@pytest.mark.parametrize("width", [12, 8, 16], ids=["", "gate and up square", "down square"])
def test_stacked_experts_are_pefts_sum(
    layout: str, stored: str, width: int, tmp_path: Path
) -> None:
    model = mixtral(width)
    fused = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    config = LoraConfig(
        r=2, lora_alpha=3, target_modules=["q_proj"], target_parameters=EXPERTS,
        rank_pattern={"experts.down_proj": 3},
    )  # fmt: skip
    wrapped = filled(model, config, tmp_path)
    merged = {k: t.clone() for k, t in wrapped.merge_and_unload().state_dict().items()}
    if layout == "0.18":  # A by the first axis, B by the last: another sum, made here
        tensors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
        for key in [key for key in tensors if "experts" in key and "lora_A" in key]:
            twin = key.replace("lora_A", "lora_B")
            tensors[key], tensors[twin] = swapped(tensors[key], tensors[twin], 4)
        rewrite(tmp_path, tensors)
        resettle(tmp_path, peft_version="0.18.1")
    apart = stored != "in one tensor"
    before, wanted = (experts_apart(each) if apart else each for each in (fused, merged))
    if stored == "as Mixtral's":
        before, wanted = (mixtrals(each) for each in (before, wanted))
        assert set(before) == set(read_tensors(tmp_path / "base"))
    settings = json.loads((tmp_path / "base" / "config.json").read_text())
    for path in (tmp_path / "base").iterdir():
        path.unlink()
    write_checkpoint(tmp_path / "base", before, config=settings)
    base = Checkpoint.open(tmp_path / "base")
    apply(Add(open_vector(base, [str(tmp_path / "adapter")])), base, tmp_path / "out")
    after = read_tensors(tmp_path / "out")
    moved = {name for name in after if not same_bytes(after[name], before[name])}
    assert moved == {name for name in after if "experts" in name or "q_proj" in name}
    for name, tensor in after.items():
        torch.testing.assert_close(tensor, wanted[name], rtol=0, atol=5e-6)
    assert "target_parameters" in notes_of(tmp_path)


def swapped(a: torch.Tensor, b: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The factors of the transposed change, in peft's order of experts and ranks."""
    rank = a.shape[0] // count
    stack = a.reshape(count, rank, -1)  # (E, r, i)
    outer = b.reshape(b.shape[0], rank, count)  # (o, r, E)
    new_a = outer.permute(2, 1, 0).reshape(count * rank, -1)
    new_b = stack.permute(2, 1, 0).reshape(stack.shape[2], rank * count)
    return new_a, new_b


def test_square_experts_of_no_version_are_refused(tmp_path: Path) -> None:
    config = LoraConfig(r=2, target_modules=["q_proj"], target_parameters=EXPERTS[1:])
    filled(mixtral(16), config, tmp_path)
    resettle(tmp_path, peft_version=None)
    with pytest.raises(VectorError, match="both ways round"):
        notes_of(tmp_path)
