"""Architectures as transformers has them, so small that a model of each is made in a moment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["ARCHITECTURES", "Architecture"]


@dataclass(frozen=True)
class Architecture:
    """A model to be made of its config.

    Attributes:
        title: What it is called.
        made_by: The class of transformers that makes it.
        kind: Its ``model_type``.
        settings: Of its config.
        experts_in_out: Whether its experts are stored (in, out).
    """

    title: str
    made_by: str
    kind: str
    settings: Mapping[str, Any] = field(repr=False)
    experts_in_out: bool = False


_IDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
_TEXT = {"hidden_size": 16, "intermediate_size": 24, "vocab_size": 40, "num_hidden_layers": 2,
         "num_attention_heads": 2, "num_key_value_heads": 1, **_IDS}  # fmt: skip
_HEADS = {**_TEXT, "head_dim": 8}
_EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2}
_ENCODER = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
            "num_attention_heads": 2}  # fmt: skip
_IMAGE = {**_ENCODER, "image_size": 8, "patch_size": 4}
_LATENT = {"n_routed_experts": 4, "n_shared_experts": 1, "moe_intermediate_size": 12,
           "first_k_dense_replace": 1, "q_lora_rank": 12, "kv_lora_rank": 8,
           "qk_nope_head_dim": 4, "qk_rope_head_dim": 4, "v_head_dim": 6, "n_group": 2,
           "topk_group": 1, "num_experts_per_tok": 2, "num_key_value_heads": 2}  # fmt: skip

ARCHITECTURES: tuple[Architecture, ...] = (
    Architecture("Llama", "LlamaForCausalLM", "llama", _TEXT),
    Architecture("Qwen3", "Qwen3ForCausalLM", "qwen3", {**_HEADS, "tie_word_embeddings": True}),
    Architecture("Qwen3-MoE", "Qwen3MoeForCausalLM", "qwen3_moe",
                 {**_HEADS, **_EXPERTS, "moe_intermediate_size": 12}),
    Architecture("Gemma 3", "Gemma3ForCausalLM", "gemma3_text", _HEADS),
    Architecture("Gemma 3, multimodal", "Gemma3ForConditionalGeneration", "gemma3",
                 {"text_config": _HEADS, "vision_config": _IMAGE, "mm_tokens_per_image": 4}),
    Architecture("Mistral", "MistralForCausalLM", "mistral", _HEADS),
    Architecture("Mixtral", "MixtralForCausalLM", "mixtral", {**_HEADS, **_EXPERTS}),
    Architecture("GPT-2", "GPT2LMHeadModel", "gpt2",
                 {"n_embd": 16, "n_layer": 2, "n_head": 2, "vocab_size": 40, "n_positions": 32,
                  **_IDS}),
    Architecture("GPT-NeoX", "GPTNeoXForCausalLM", "gpt_neox", _TEXT),
    Architecture("Phi", "PhiForCausalLM", "phi", {**_TEXT, "num_key_value_heads": 2}),
    Architecture("OLMo", "OlmoForCausalLM", "olmo", _TEXT),
    Architecture("DeepSeek-V3", "DeepseekV3ForCausalLM", "deepseek_v3", {**_TEXT, **_LATENT}),
    Architecture("gpt-oss", "GptOssForCausalLM", "gpt_oss", {**_HEADS, **_EXPERTS},
                 experts_in_out=True),
    Architecture("Mamba", "MambaForCausalLM", "mamba",
                 {"hidden_size": 16, "state_size": 4, "num_hidden_layers": 2, "vocab_size": 40,
                  "time_step_rank": 4, **_IDS}),
    Architecture("T5", "T5ForConditionalGeneration", "t5",
                 {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2,
                  "vocab_size": 40, "decoder_start_token_id": 0, "pad_token_id": 0,
                  "eos_token_id": 1}),
    Architecture("BERT", "BertForMaskedLM", "bert",
                 {**_ENCODER, "vocab_size": 40, "max_position_embeddings": 32}),
    Architecture("ViT", "ViTForImageClassification", "vit", {**_IMAGE, "num_labels": 3}),
    Architecture("CLIP", "CLIPModel", "clip",
                 {"text_config": {**_ENCODER, "vocab_size": 40, "max_position_embeddings": 16,
                                  **_IDS},
                  "vision_config": _IMAGE, "projection_dim": 12}),
    Architecture("Whisper", "WhisperForConditionalGeneration", "whisper",
                 {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1,
                  "encoder_attention_heads": 2, "decoder_attention_heads": 2,
                  "encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "vocab_size": 40,
                  "num_mel_bins": 8, "max_source_positions": 16, "max_target_positions": 16,
                  "decoder_start_token_id": 1, **_IDS}),
)  # fmt: skip
