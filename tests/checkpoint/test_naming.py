"""Names of real models, as their published files spell them."""

import pytest

from weightsurgery.checkpoint.naming import (
    KINDS,
    is_transposed,
    kind_of,
    layer_of,
    twin_candidates,
)

# model -> kind -> names; "#" stands for the layer's number
MODELS = {
    "Llama": {
        "embeddings": "model.embed_tokens.weight",
        "attention": "model.layers.#.self_attn.q_proj.weight "
        "model.layers.#.self_attn.o_proj.weight "
        "model.layers.#.self_attn.k_proj.weight model.layers.#.self_attn.v_proj.bias",
        "mlp": "model.layers.#.mlp.gate_proj.weight model.layers.#.mlp.up_proj.weight "
        "model.layers.#.mlp.down_proj.weight",
        "norm": "model.layers.#.input_layernorm.weight "
        "model.layers.#.post_attention_layernorm.weight model.norm.weight",
        "head": "lm_head.weight",
        "other": "model.layers.#.rotary_emb.inv_freq model.rotary_emb.inv_freq",
    },
    "Llama, as Meta names it": {
        "embeddings": "tok_embeddings.weight",
        "attention": "layers.#.attention.wq.weight layers.#.attention.wo.weight",
        "mlp": "layers.#.feed_forward.w1.weight layers.#.feed_forward.w2.weight",
        "norm": "layers.#.attention_norm.weight layers.#.ffn_norm.weight norm.weight",
        "head": "output.weight",
    },
    "Mixtral": {
        "mlp": "model.layers.#.block_sparse_moe.gate.weight "
        "model.layers.#.block_sparse_moe.experts.0.w1.weight "
        "model.layers.#.block_sparse_moe.experts.7.w2.weight",
        "attention": "model.layers.#.self_attn.q_proj.weight",
    },
    "Qwen3-MoE": {
        "mlp": "model.layers.#.mlp.gate.weight model.layers.#.mlp.experts.12.gate_proj.weight "
        "model.layers.#.mlp.shared_expert.up_proj.weight "
        "model.layers.#.mlp.shared_expert_gate.weight",
        "norm": "model.layers.#.self_attn.q_norm.weight model.layers.#.self_attn.k_norm.weight",
        "attention": "model.layers.#.linear_attn.in_proj_qkvz.weight",
    },
    "DeepSeek-V3": {
        "attention": "model.layers.#.self_attn.kv_a_proj_with_mqa.weight "
        "model.layers.#.self_attn.q_b_proj.weight",
        "norm": "model.layers.#.self_attn.kv_a_layernorm.weight model.layers.#.enorm.weight "
        "model.layers.#.shared_head.norm.weight",
        "mlp": "model.layers.#.mlp.shared_experts.down_proj.weight "
        "model.layers.#.mlp.gate.e_score_correction_bias",
        "head": "model.layers.#.shared_head.head.weight",
        "embeddings": "model.layers.#.embed_tokens.weight",
        "other": "model.layers.#.eh_proj.weight",
    },
    "GPT-2": {
        "embeddings": "wte.weight wpe.weight transformer.wte.weight transformer.wpe.weight",
        "attention": "h.#.attn.c_attn.weight h.#.attn.c_proj.weight h.#.attn.bias "
        "transformer.h.#.attn.c_attn.bias h.#.crossattention.c_proj.weight",
        "mlp": "h.#.mlp.c_fc.weight h.#.mlp.c_proj.weight",
        "norm": "h.#.ln_1.weight h.#.ln_2.bias ln_f.weight transformer.ln_f.bias "
        "h.#.ln_cross_attn.weight",
        "head": "lm_head.weight",
    },
    "BERT": {
        "embeddings": "bert.embeddings.word_embeddings.weight "
        "embeddings.position_embeddings.weight embeddings.token_type_embeddings.weight",
        "attention": "bert.encoder.layer.#.attention.self.query.weight "
        "encoder.layer.#.attention.self.key.bias encoder.layer.#.attention.output.dense.weight",
        "mlp": "encoder.layer.#.intermediate.dense.weight encoder.layer.#.output.dense.weight "
        "encoder.layer.#.output.dense.bias",
        "norm": "embeddings.LayerNorm.weight encoder.layer.#.attention.output.LayerNorm.weight "
        "encoder.layer.#.output.LayerNorm.bias cls.predictions.transform.LayerNorm.weight "
        "bert.encoder.layer.#.output.LayerNorm.gamma",
        "head": "cls.predictions.decoder.weight cls.predictions.decoder.bias cls.predictions.bias",
        "other": "pooler.dense.weight embeddings.position_ids classifier.weight "
        "cls.predictions.transform.dense.weight cls.seq_relationship.weight",
    },
    "RoBERTa": {
        "head": "lm_head.decoder.weight lm_head.bias",
        "norm": "lm_head.layer_norm.weight",
        "other": "lm_head.dense.weight",
    },
    "GPT-NeoX": {
        "embeddings": "gpt_neox.embed_in.weight",
        "attention": "gpt_neox.layers.#.attention.query_key_value.weight "
        "gpt_neox.layers.#.attention.dense.weight gpt_neox.layers.#.attention.masked_bias",
        "mlp": "gpt_neox.layers.#.mlp.dense_h_to_4h.weight "
        "gpt_neox.layers.#.mlp.dense_4h_to_h.bias",
        "norm": "gpt_neox.layers.#.input_layernorm.weight gpt_neox.final_layer_norm.weight",
        "head": "embed_out.weight",
    },
    "T5": {
        "embeddings": "shared.weight encoder.embed_tokens.weight decoder.embed_tokens.weight "
        "encoder.block.#.layer.0.SelfAttention.relative_attention_bias.weight",
        "attention": "encoder.block.#.layer.0.SelfAttention.q.weight "
        "decoder.block.#.layer.1.EncDecAttention.o.weight",
        "mlp": "encoder.block.#.layer.1.DenseReluDense.wi_0.weight "
        "decoder.block.#.layer.2.DenseReluDense.wo.weight",
        "norm": "encoder.block.#.layer.0.layer_norm.weight encoder.final_layer_norm.weight",
        "head": "lm_head.weight",
    },
    "Mamba": {
        "embeddings": "backbone.embeddings.weight",
        "norm": "backbone.layers.#.norm.weight backbone.norm_f.weight",
        "head": "lm_head.weight",
        "other": "backbone.layers.#.mixer.A_log backbone.layers.#.mixer.in_proj.weight "
        "backbone.layers.#.mixer.conv1d.weight backbone.layers.#.mixer.dt_proj.bias",
    },
    "OPT": {
        "embeddings": "model.decoder.embed_tokens.weight model.decoder.embed_positions.weight",
        "attention": "model.decoder.layers.#.self_attn.out_proj.weight",
        "mlp": "model.decoder.layers.#.fc1.weight model.decoder.layers.#.fc2.bias",
        "norm": "model.decoder.layers.#.self_attn_layer_norm.weight",
    },
    "Falcon and Bloom": {
        "embeddings": "transformer.word_embeddings.weight",
        "norm": "transformer.h.#.ln_attn.weight transformer.h.#.ln_mlp.weight "
        "transformer.word_embeddings_layernorm.weight",
        "attention": "transformer.h.#.self_attention.dense.weight",
        "mlp": "transformer.h.#.mlp.dense_4h_to_h.weight",
    },
    "gpt-oss": {
        "attention": "model.layers.#.self_attn.sinks",
        "mlp": "model.layers.#.mlp.router.weight model.layers.#.mlp.experts.gate_up_proj",
    },
    "RWKV": {
        "embeddings": "emb.weight",
        "norm": "blocks.#.ln1.weight blocks.#.ln0.bias ln_out.weight",
        "mlp": "blocks.#.ffn.key.weight blocks.#.feed_forward.value.weight",
        "attention": "blocks.#.attention.key.weight",
        "head": "head.weight",
    },
    "CLIP, DistilBERT, Whisper": {
        "embeddings": "text_model.embeddings.token_embedding.weight "
        "vision_model.embeddings.position_embedding.weight",
        "norm": "vision_model.pre_layrnorm.weight "
        "distilbert.transformer.layer.#.sa_layer_norm.weight "
        "vision_model.encoder.layers.#.layer_norm1.weight model.decoder.layernorm_embedding.weight",
        "attention": "distilbert.transformer.layer.#.attention.q_lin.weight "
        "model.decoder.layers.#.encoder_attn.k_proj.weight",
        "mlp": "distilbert.transformer.layer.#.ffn.lin1.weight",
        "head": "proj_out.weight",
    },
}
CASES = [
    (model, kind, name)
    for model, kinds in MODELS.items()
    for kind, names in kinds.items()
    for name in names.split()
]


@pytest.mark.parametrize(("model", "kind", "name"), CASES, ids=lambda x: x)
def test_kind_and_layer(model, kind, name):
    assert kind in KINDS
    assert kind_of(name.replace("#", "11")) == kind
    assert layer_of(name.replace("#", "11")) == (11 if "#" in name else None)
    assert layer_of(name.replace("#", "0")) == (0 if "#" in name else None)


@pytest.mark.parametrize(
    "name", ["linear.weight", "normal_proj.weight", "plain", "", "learned.bias", "x.0"]
)
def test_unknown_names_are_other(name):
    assert kind_of(name) == "other"
    assert layer_of(name) is None


def test_numbers_of_experts_are_no_layers():
    assert layer_of("model.experts.3.w1.weight") is None
    assert layer_of("model.layers.2.experts.3.w1.weight") == 2
    assert layer_of("decoder.block.4.layer.1.x.weight") == 4
    assert layer_of("model.mylayers.4.x") is None


def names_of(model: str) -> list[str]:
    return [name.replace("#", "0") for each, _, name in CASES if each == model]


@pytest.mark.parametrize(
    ("model", "head", "embeddings"),
    [
        ("Llama", "lm_head.weight", ["model.embed_tokens.weight"]),
        ("Llama, as Meta names it", "output.weight", ["tok_embeddings.weight"]),
        ("GPT-2", "lm_head.weight", ["wte.weight", "transformer.wte.weight"]),
        ("BERT", "cls.predictions.decoder.weight", ["bert.embeddings.word_embeddings.weight"]),
        ("GPT-NeoX", "embed_out.weight", ["gpt_neox.embed_in.weight"]),
        ("Mamba", "lm_head.weight", ["backbone.embeddings.weight"]),
        (
            "T5",
            "lm_head.weight",
            ["shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight"],
        ),
        ("RWKV", "head.weight", ["emb.weight"]),
    ],
)
def test_twins(model, head, embeddings):
    names = names_of(model)
    assert head in names
    assert twin_candidates(head, names) == embeddings
    for name in names:
        expected = embeddings if name == head else [head] if name in embeddings else []
        assert twin_candidates(name, names) == expected, name


def test_twins_of_a_model_with_a_second_embedding_in_its_layers():
    """Multi-token prediction repeats embedding and head inside its layer."""
    names = [*names_of("DeepSeek-V3"), "model.embed_tokens.weight", "lm_head.weight"]
    assert twin_candidates("lm_head.weight", names) == ["model.embed_tokens.weight"]
    assert twin_candidates("model.layers.0.shared_head.head.weight", names) == []
    assert twin_candidates("lm_head.weight", []) == []


@pytest.mark.parametrize(
    "name", ["h.0.attn.c_attn.weight", "h.0.mlp.c_fc.weight", "h.0.attn.c_proj.weight"]
)
def test_conv1d_is_stored_transposed(name):
    assert is_transposed(name, {"model_type": "gpt2"})
    assert not is_transposed(name, {"model_type": "gpt_bigcode"})
    assert not is_transposed(name, {})
    assert not is_transposed(name.replace("weight", "bias"), {"model_type": "gpt2"})
    assert not is_transposed("wte.weight", {"model_type": "gpt2"})
