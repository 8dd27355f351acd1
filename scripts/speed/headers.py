"""Checkpoints of DeepSeek-V3's shape that are headers alone.

A base in bfloat16, a fine-tune of it, the same in float8 with scales, and a saved vector and an
adapter of rank 16 of all its linear layers: 61 layers, 58 of them with 256 experts and a shared
one, in 163 files. The files are as long as real ones, and empty: they take as much disk as their
headers. Their weights read as zeros.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from weightsurgery.checkpoint.layout import BITS, encode_header
from weightsurgery.checkpoint.reader import Checkpoint
from weightsurgery.checkpoint.record import EditRecord
from weightsurgery.vectors.lineage import samples_of

LAYERS, DENSE, FILES = 61, 3, 163
HIDDEN, MLP, EXPERT, EXPERTS, VOCABULARY = 7168, 18432, 2048, 256, 129280
HEADS, NOPE, ROPE, VALUE, QUERIES, KEYS = 128, 128, 64, 128, 1536, 512
RANK, BLOCK = 16, 128

Tensor = tuple[str, str, tuple[int, ...]]


def tensors(layers: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes, in the order of the files."""
    yield "model.embed_tokens.weight", (VOCABULARY, HIDDEN)
    for layer in range(layers):
        at = f"model.layers.{layer}"
        attention = {
            "q_a_proj": (QUERIES, HIDDEN),
            "q_b_proj": (HEADS * (NOPE + ROPE), QUERIES),
            "kv_a_proj_with_mqa": (KEYS + ROPE, HIDDEN),
            "kv_b_proj": (HEADS * (NOPE + VALUE), KEYS),
            "o_proj": (HIDDEN, HEADS * VALUE),
        }
        yield f"{at}.input_layernorm.weight", (HIDDEN,)
        yield f"{at}.self_attn.q_a_layernorm.weight", (QUERIES,)
        yield f"{at}.self_attn.kv_a_layernorm.weight", (KEYS,)
        for name, size in attention.items():
            yield f"{at}.self_attn.{name}.weight", size
        yield f"{at}.post_attention_layernorm.weight", (HIDDEN,)
        if layer < DENSE:
            yield from _mlp(f"{at}.mlp", MLP)
            continue
        yield f"{at}.mlp.gate.weight", (EXPERTS, HIDDEN)
        yield f"{at}.mlp.gate.e_score_correction_bias", (EXPERTS,)
        for expert in range(EXPERTS):
            yield from _mlp(f"{at}.mlp.experts.{expert}", EXPERT)
        yield from _mlp(f"{at}.mlp.shared_experts", EXPERT)
    yield "model.norm.weight", (HIDDEN,)
    yield "lm_head.weight", (VOCABULARY, HIDDEN)


def _mlp(at: str, width: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{at}.gate_proj.weight", (width, HIDDEN)
    yield f"{at}.up_proj.weight", (width, HIDDEN)
    yield f"{at}.down_proj.weight", (HIDDEN, width)


def is_linear(name: str) -> bool:
    return "_proj" in name


def stored(layers: int, float8: bool) -> Iterator[Tensor]:
    """With dtypes; in float8 each linear layer has a scale for each block of its weight."""
    for name, size in tensors(layers):
        if float8 and is_linear(name):
            yield name, "F8_E4M3", size
            yield f"{name}_scale_inv", "F32", tuple(-(-each // BLOCK) for each in size)
        else:
            yield name, "F32" if name.endswith("_bias") else "BF16", size


def factors(layers: int) -> Iterator[Tensor]:
    """A saved vector."""
    for name, size in tensors(layers):
        if is_linear(name):
            yield f"{name}::U", "F32", (size[0], RANK)
            yield f"{name}::S", "F32", (RANK,)
            yield f"{name}::V", "F32", (size[1], RANK)


def adapter(layers: int) -> Iterator[Tensor]:
    """What peft writes."""
    for name, size in tensors(layers):
        if is_linear(name):
            module = f"base_model.model.{name.removesuffix('.weight')}"
            yield f"{module}.lora_A.weight", "F32", (RANK, size[1])
            yield f"{module}.lora_B.weight", "F32", (size[0], RANK)


def config(layers: int, float8: bool) -> dict[str, Any]:
    """What DeepSeek-V3's says of the shape."""
    quantised = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [BLOCK, BLOCK]}
    return {
        "architectures": ["DeepseekV3ForCausalLM"],
        "first_k_dense_replace": DENSE,
        "hidden_size": HIDDEN,
        "intermediate_size": MLP,
        "kv_lora_rank": KEYS,
        "model_type": "deepseek_v3",
        "moe_intermediate_size": EXPERT,
        "n_routed_experts": EXPERTS,
        "n_shared_experts": 1,
        "num_attention_heads": HEADS,
        "num_hidden_layers": layers,
        "num_key_value_heads": HEADS,
        "q_lora_rank": QUERIES,
        "qk_nope_head_dim": NOPE,
        "qk_rope_head_dim": ROPE,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "v_head_dim": VALUE,
        "vocab_size": VOCABULARY,
        **({"quantization_config": quantised} if float8 else {}),
    }


def write(folder: Path, of: Iterable[Tensor], files: int, stem: str) -> None:
    """Files of about the same size, with an index; their weights are holes."""
    folder.mkdir(parents=True)
    found = [(each, math.prod(each[2]) * BITS[each[1]] // 8) for each in of]
    total, at = sum(size for _, size in found), 0
    shards: list[list[Tensor]] = [[] for _ in range(files)]
    for each, size in found:
        shards[at * files // total].append(each)
        at += size
    weight_map: dict[str, str] = {}
    shards = [shard for shard in shards if shard]
    for number, shard in enumerate(shards, 1):
        name = f"{stem}-{number:05d}-of-{len(shards):05d}.safetensors"
        header = encode_header(shard, {"format": "pt"})
        size = sum(math.prod(shape) * BITS[dtype] // 8 for _, dtype, shape in shard)
        with (folder / name).open("xb") as file:
            file.write(header)
            file.truncate(len(header) + size)
        weight_map |= dict.fromkeys((each[0] for each in shard), name)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(index))


def make(root: Path, part: int) -> None:
    """All inputs with one part in so many of the layers, unless they are there."""
    if (root / "adapter").is_dir():
        return
    layers, files = LAYERS // part, max(1, FILES // part)
    for name, float8 in (("base", False), ("tuned", False), ("float8", True)):
        write(root / name, stored(layers, float8), files, "model")
        (root / name / "config.json").write_text(json.dumps(config(layers, float8)))
    write(root / "factors", factors(layers), files, "vector")
    with Checkpoint.open(root / "base") as base:
        record = EditRecord("task-vector", parameters={"base_samples": samples_of(base)})
    (root / "factors/weightsurgery.json").write_text(record.to_json())
    write(root / "adapter", adapter(layers), 1, "adapter_model")
    (file,) = (root / "adapter").glob("*.safetensors")
    file.rename(root / "adapter/adapter_model.safetensors")
    (root / "adapter/adapter_model.safetensors.index.json").unlink()
    modules = sorted({name.split(".")[-2] for name, _ in tensors(layers) if is_linear(name)})
    settings = {
        "peft_type": "LORA", "r": RANK, "lora_alpha": RANK, "target_modules": modules,
        "base_model_name_or_path": None, "bias": "none", "task_type": "CAUSAL_LM",
    }  # fmt: skip
    (root / "adapter/adapter_config.json").write_text(json.dumps(settings))
