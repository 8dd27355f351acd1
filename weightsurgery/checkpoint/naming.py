"""What a tensor's name says: its kind, its layer, its twin.

No model class is needed for weight arithmetic, but people select by kind ("attention", layers
8-15) and some names stand for the same memory. The patterns cover the naming of the decoder,
encoder and mixture-of-experts families in common use; a name that none of them knows is of kind
"other", and is still edited when all tensors are meant.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

__all__ = ["KINDS", "is_mlp_output", "is_transposed", "kind_of", "layer_of", "twin_candidates"]

KINDS = ("attention", "mlp", "embeddings", "head", "norm", "other")

_NORM = re.compile(r"norm(\d+|s|_\w+)?$|^ln(\d+|_\w+|f)?$|_ln$|^bn\d*$", re.I)
_TOKENS = re.compile(
    r"(^|\.)(embed_tokens|wte|word_embeddings?|tok_embeddings|token_embedding|embed_in|shared|"
    r"embeddings?|emb)(\.weight)?$"
)
_OTHER_EMBEDDINGS = re.compile(
    r"(^|\.)(wpe|position_embeddings?|token_type_embeddings|embed_positions|embed_tokens_per_layer|"
    r"relative_attention_bias)(\.weight)?$"
)
_HEAD = re.compile(
    r"(^|\.)(lm_head(\.decoder)?|embed_out|output_layer|shared_head\.head)\.(weight|bias)$|"
    r"^((model\.)?output|proj_out|head)\.weight$|^cls\.predictions\.(decoder\.|bias$)"
)
_ATTENTION_BLOCK = re.compile(
    r"(^|[._])((self_|cross|cross_)?(attn|attention)|attentions|SelfAttention|EncDecAttention)\b"
)
_MLP_BLOCK = re.compile(
    r"(^|[._])(mlp|ffn|feed_forward|ffn_output|intermediate|experts|block_sparse_moe|moe|"
    r"DenseReluDense|shared_expert)\b|layer\.\d+\.output\.dense\."
)
_ATTENTION = re.compile(
    r"(^|[._])(q_proj|k_proj|v_proj|o_proj|qkv|qkv_proj|query_key_value|query|key|value|"
    r"wq|wk|wv|wo)\b"
)
_MLP = re.compile(
    r"(^|[._])(gate_proj|up_proj|down_proj|fc1|fc2|c_fc|dense_h_to_4h|dense_4h_to_h)\b"
)
# What a feed-forward network ends with, as the model families name it.
_MLP_OUT = re.compile(
    r"(^|\.)(down_proj|c_proj|fc_out|fc2|w2|wo|dense_4h_to_h|lin2|output\.dense|linear_2|w_out)"
    r"(\.weight)?$"
)
_LAYER = re.compile(r"(^|\.)(layers|layer|h|blocks|block)\.([0-9]{1,6})(\.|$)")

# Models whose linear layers are stored (in, out): transformers' Conv1D.
_CONV1D_MODELS = frozenset({"gpt2", "openai-gpt", "imagegpt", "decision_transformer", "clvp"})
_CONV1D = re.compile(r"\.(c_attn|c_proj|c_fc|q_attn)\.weight$")
# Gemma's projection of images is no layer but a parameter, multiplied from the right.
_FROM_THE_RIGHT = re.compile(r"(^|\.)mm_input_projection_weight$")


@lru_cache(1 << 16)
def kind_of(name: str) -> str:
    """One of :data:`KINDS`."""
    parts = [part for part in name.split(".") if not part.isdigit()]
    if any(_NORM.search(part) for part in parts[-2:]):
        return "norm"
    if _HEAD.search(name):
        return "head"
    if _TOKENS.search(name) or _OTHER_EMBEDDINGS.search(name):
        return "embeddings"
    for pattern, kind in (
        (_ATTENTION_BLOCK, "attention"),  # the block a matrix is in says more than its own name
        (_MLP_BLOCK, "mlp"),
        (_ATTENTION, "attention"),
        (_MLP, "mlp"),
    ):
        if pattern.search(name):
            return kind
    return "other"


@lru_cache(1 << 16)
def is_mlp_output(name: str) -> bool:
    """Whether a tensor is the matrix with which a feed-forward network ends."""
    return kind_of(name) == "mlp" and bool(_MLP_OUT.search(name))


@lru_cache(1 << 16)
def layer_of(name: str) -> int | None:
    """Number of the layer a tensor belongs to, from 0; None outside the layers."""
    match = _LAYER.search(name)
    return int(match.group(3)) if match else None


def is_transposed(name: str, config: Mapping[str, Any]) -> bool:
    """Whether a matrix is stored (in, out) instead of (out, in), as GPT-2's Conv1D is."""
    if _FROM_THE_RIGHT.search(name):
        return True
    return str(config.get("model_type")) in _CONV1D_MODELS and bool(_CONV1D.search(name))


def twin_candidates(name: str, names: Sequence[str]) -> list[str]:
    """Names that may share memory with a tensor: output head and input embedding.

    Args:
        name: A tensor's name.
        names: All names to look among.

    Returns:
        Embeddings for a head, heads for a token embedding, otherwise nothing.
    """
    kind = _side(name)
    if kind is None:
        return []
    return [other for other in names if _side(other) not in (kind, None)]


@lru_cache(1 << 16)
def _side(name: str) -> str | None:
    """Which end of the model a tied matrix is at: tokens in, tokens out, or neither."""
    if layer_of(name) is not None or not name.endswith("weight"):
        return None
    kind = kind_of(name)
    if kind == "embeddings":
        return kind if _TOKENS.search(name) else None
    return kind if kind == "head" else None
