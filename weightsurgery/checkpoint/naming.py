"""What a tensor's name says: its kind, its layer, its twin.

No model class is needed for weight arithmetic, but people select by kind ("attention", layers
8-15) and some names stand for the same memory. The patterns cover the naming of the decoder,
encoder and mixture-of-experts families in common use; a name that none of them knows is of kind
"other", and is still edited when all tensors are meant.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["KINDS", "is_transposed", "kind_of", "layer_of", "twin_candidates"]

KINDS = ("attention", "mlp", "embeddings", "head", "norm", "other")

_EMBEDDINGS = re.compile(
    r"(^|\.)(embed_tokens|wte|wpe|word_embeddings|position_embeddings|token_type_embeddings|"
    r"tok_embeddings|embed_in|embed_positions|shared|embeddings)(\.weight)?$"
)
_HEAD = re.compile(
    r"(^|\.)(lm_head|embed_out)\.weight$|^(model\.)?output\.weight$|^cls\.predictions\.decoder\."
)
_NORM = re.compile(r"(norm|(^|[._])ln)(_?\d+|_?[a-z]+)?\.(weight|bias)$|layer_?norm", re.I)
_ATTENTION = re.compile(
    r"(^|[._])(attn|attention|self_attn|self_attention|q_proj|k_proj|v_proj|o_proj|qkv|qkv_proj|"
    r"query_key_value|query|key|value|wq|wk|wv|wo|SelfAttention|EncDecAttention)\b"
)
_MLP = re.compile(
    r"(^|[._])(mlp|ffn|feed_forward|gate_proj|up_proj|down_proj|fc1|fc2|c_fc|dense_h_to_4h|"
    r"dense_4h_to_h|intermediate|experts|block_sparse_moe|DenseReluDense|shared_expert|moe)\b"
)
_BERT_OUTPUT = re.compile(r"layer\.\d+\.output\.dense\.")
_LAYER = re.compile(r"(^|\.)(layers|layer|h|blocks|block)\.(\d+)(\.|$)")

# Models whose linear layers are stored (in, out): transformers' Conv1D.
_CONV1D_MODELS = frozenset({"gpt2", "openai-gpt", "imagegpt", "decision_transformer", "clvp"})
_CONV1D = re.compile(r"\.(c_attn|c_proj|c_fc|q_attn)\.weight$")


def kind_of(name: str) -> str:
    """One of :data:`KINDS`."""
    if _NORM.search(name):
        return "norm"
    if _HEAD.search(name):
        return "head"
    if _EMBEDDINGS.search(name):
        return "embeddings"
    if _ATTENTION.search(name):
        return "attention"
    if _MLP.search(name) or _BERT_OUTPUT.search(name):
        return "mlp"
    return "other"


def layer_of(name: str) -> int | None:
    """Number of the layer a tensor belongs to, from 0; None outside the layers."""
    match = _LAYER.search(name)
    return int(match.group(3)) if match else None


def is_transposed(name: str, config: Mapping[str, Any]) -> bool:
    """Whether a matrix is stored (in, out) instead of (out, in), as GPT-2's Conv1D is."""
    return config.get("model_type") in _CONV1D_MODELS and bool(_CONV1D.search(name))


def twin_candidates(name: str, names: Sequence[str]) -> list[str]:
    """Names that may share memory with a tensor: output head and input embedding.

    Args:
        name: A tensor's name.
        names: All names to look among.

    Returns:
        Embeddings for a head, heads for a token embedding, otherwise nothing.
    """
    kind = kind_of(name)
    if kind not in ("head", "embeddings") or "position" in name or "token_type" in name:
        return []
    other = "embeddings" if kind == "head" else "head"
    return [
        each
        for each in names
        if kind_of(each) == other
        and "position" not in each
        and "token_type" not in each
        and each.endswith("weight")
        and not re.search(r"\.wpe\.", each)
    ]
