"""Synthetic Llama checkpoints of several sizes: a base and two fine-tunes of it.

Every matrix of the base and every low-rank change is drawn by itself. The noise of the fine-tunes
is cut from one block of random numbers at random places, which is three times as fast and leaves
it as full of rank. Rows go to disk as they are drawn: the memory needed does not grow with the
model. The same seed gives the same files on one machine.

    python scripts/speed/checkpoints.py --billions 1 --dir /tmp/checkpoints
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

TUNES = ("forget", "keep")
SHARD_BYTES = 750_000_000
RANK = 8
BLOCK = 1 << 20  # elements drawn at a time
NOISE = 1 << 24  # elements of the block that noise is cut from


@dataclass(frozen=True)
class Shape:
    """A Llama's size: hidden size, MLP width, layers, vocabulary, width of a head."""

    hidden: int
    mlp: int
    layers: int
    vocabulary: int
    head: int

    @property
    def config(self) -> dict[str, Any]:
        """What transformers needs to load it."""
        heads = self.hidden // self.head
        return {
            "architectures": ["LlamaForCausalLM"],
            "attention_bias": False,
            "attention_dropout": 0.0,
            "bos_token_id": 1,
            "dtype": "bfloat16",
            "eos_token_id": 2,
            "head_dim": self.head,
            "hidden_act": "silu",
            "hidden_size": self.hidden,
            "initializer_range": 0.02,
            "intermediate_size": self.mlp,
            "max_position_embeddings": 8192,
            "mlp_bias": False,
            "model_type": "llama",
            "num_attention_heads": heads,
            "num_hidden_layers": self.layers,
            "num_key_value_heads": heads // 4,
            "rms_norm_eps": 1e-5,
            "rope_parameters": {"rope_theta": 500000.0, "rope_type": "default"},
            "tie_word_embeddings": True,
            "use_cache": True,
            "vocab_size": self.vocabulary,
        }

    def tensors(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Names and shapes, in the order of the files."""
        yield "model.embed_tokens.weight", (self.vocabulary, self.hidden)
        for layer in range(self.layers):
            at = f"model.layers.{layer}"
            yield f"{at}.input_layernorm.weight", (self.hidden,)
            yield f"{at}.mlp.down_proj.weight", (self.hidden, self.mlp)
            yield f"{at}.mlp.gate_proj.weight", (self.mlp, self.hidden)
            yield f"{at}.mlp.up_proj.weight", (self.mlp, self.hidden)
            yield f"{at}.post_attention_layernorm.weight", (self.hidden,)
            yield f"{at}.self_attn.k_proj.weight", (self.hidden // 4, self.hidden)
            yield f"{at}.self_attn.o_proj.weight", (self.hidden, self.hidden)
            yield f"{at}.self_attn.q_proj.weight", (self.hidden, self.hidden)
            yield f"{at}.self_attn.v_proj.weight", (self.hidden // 4, self.hidden)
        yield "model.norm.weight", (self.hidden,)


# By billions of parameters: 0.10, 0.19, 1.24 (the shape of Llama 3.2 1B) and 3.17.
SHAPES = {
    "0.1": Shape(768, 2048, 12, 32000, 64),
    "0.2": Shape(1024, 2816, 14, 32000, 64),
    "1": Shape(2048, 8192, 16, 128256, 64),
    "3": Shape(3072, 8192, 28, 128256, 128),
}


def make(root: Path, billions: str, seed: int = 0) -> None:
    """Write ``base``, ``forget`` and ``keep`` under ``root``, unless they are there already."""
    shape = SHAPES[billions]
    configs = {root / name / "config.json": shape.config for name in ("base", *TUNES)}
    if all(path.is_file() and json.loads(path.read_text()) == c for path, c in configs.items()):
        return
    jobs: list[tuple[int, int, tuple[int, ...], list[int]]] = []
    files: list[int] = []
    shards = _shards(list(shape.tensors()))
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        weight_map |= dict.fromkeys(shard, name)
        header, at = _header(shard)
        targets = [_open(root / checkpoint, name, header, at) for checkpoint in ("base", *TUNES)]
        files += targets
        at = len(header)
        for size in shard.values():
            jobs.append((len(jobs), at, size, targets))
            at += 2 * _count(size)
    total = sum(2 * _count(size) for _, size in shape.tensors())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    _draw_all(jobs, seed)
    for file in files:
        os.close(file)
    for path, config in configs.items():
        _write_json(path.with_name("model.safetensors.index.json"), index)
        _tokenizer(path.parent)
        _write_json(path, config)  # last: its presence says that the rest is whole


def _count(size: tuple[int, ...]) -> int:
    return size[0] * (size[1] if len(size) > 1 else 1)


def _shards(tensors: list[tuple[str, tuple[int, ...]]]) -> list[dict[str, tuple[int, ...]]]:
    """Tensors by file, in order; small models too have two files at least."""
    limit = min(SHARD_BYTES, sum(_count(size) for _, size in tensors) * 6 // 5)
    shards: list[dict[str, tuple[int, ...]]] = [{}]
    held = 0
    for name, size in tensors:
        if shards[-1] and held + 2 * _count(size) > limit:
            shards.append({})
            held = 0
        shards[-1][name] = size
        held += 2 * _count(size)
    return shards


def _header(shard: dict[str, tuple[int, ...]]) -> tuple[bytes, int]:
    """The bytes before the weights, and the size of the file."""
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, size in shard.items():
        end = at + 2 * _count(size)
        entries[name] = {"dtype": "BF16", "shape": list(size), "data_offsets": [at, end]}
        at = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, 8 + len(text) + at


def _open(folder: Path, name: str, header: bytes, size: int) -> int:
    folder.mkdir(parents=True, exist_ok=True)
    file = os.open(folder / name, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
    os.posix_fallocate(file, 0, size)
    os.pwrite(file, header, 0)
    return file


def _draw_all(jobs: list[tuple[int, int, tuple[int, ...], list[int]]], seed: int) -> None:
    noise = torch.empty(NOISE).normal_(0, 2e-4, generator=_generator(seed, 0))
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # threads take tensors instead, the largest first
    jobs.sort(key=lambda job: -_count(job[2]))
    try:
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            list(pool.map(lambda job: _draw(noise, _generator(seed, 1 + job[0]), *job[1:]), jobs))
    finally:
        torch.set_num_threads(before)


def _generator(seed: int, number: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed * 1_000_003 + number)


def _draw(
    noise: torch.Tensor,
    generator: torch.Generator,
    at: int,
    size: tuple[int, ...],
    files: list[int],
) -> None:
    """Draw one tensor of the base and its fine-tunes, and write them row block by row block."""
    columns = size[1] if len(size) > 1 else 1
    matrix = len(size) > 1
    rights = [torch.randn(RANK, columns, generator=generator) for _ in TUNES]
    step = max(1, BLOCK // columns)
    for start in range(0, size[0], step):
        rows = min(step, size[0] - start)
        weight = torch.empty(rows, columns).normal_(
            0.0 if matrix else 1.0, 0.02, generator=generator
        )
        _put(files[0], weight, at)
        for file, right in zip(files[1:], rights, strict=True):
            place = int(torch.randint(NOISE - rows * columns, (), generator=generator))
            finetuned = weight + noise[place : place + rows * columns].view(rows, columns)
            if matrix:
                left = torch.randn(rows, RANK, generator=generator)
                finetuned.addmm_(left, right, alpha=5e-4)
            _put(file, finetuned, at)
        at += 2 * rows * columns


def _put(file: int, values: torch.Tensor, at: int) -> None:
    data = values.bfloat16().view(torch.uint8).numpy().reshape(-1).data
    if os.pwrite(file, data, at) != len(data):
        raise OSError("short write")


def _tokenizer(folder: Path) -> None:
    """The least that transformers takes for a tokenizer: three words, split at spaces."""
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2}
    tokenizer = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [],
        "normalizer": None, "pre_tokenizer": {"type": "WhitespaceSplit"}, "post_processor": None,
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "<unk>"},
    }  # fmt: skip
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 8192,
        "unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>",
    }  # fmt: skip
    _write_json(folder / "tokenizer.json", tokenizer)
    _write_json(folder / "tokenizer_config.json", settings)


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--billions", choices=SHAPES, default="1")
    parser.add_argument("--dir", type=Path, required=True, help="where base, forget and keep go")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    begun = time.monotonic()
    make(arguments.dir, arguments.billions, arguments.seed)
    print(f"{arguments.dir}: {time.monotonic() - begun:.1f} s")


if __name__ == "__main__":
    main()
