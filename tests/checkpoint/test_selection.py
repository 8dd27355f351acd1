from __future__ import annotations

from typing import Any

import pytest
import torch

from weightsurgery.checkpoint.layout import TensorEntry
from weightsurgery.checkpoint.selection import TARGETS, Selection, parse_layers
from weightsurgery.errors import SelectionError

LLAMA = """
model.embed_tokens.weight 32,16
model.layers.{i}.self_attn.q_proj.weight 16,16 attention
model.layers.{i}.self_attn.k_proj.weight 8,16 attention
model.layers.{i}.self_attn.v_proj.weight 8,16 attention
model.layers.{i}.self_attn.o_proj.weight 16,16 attention
model.layers.{i}.self_attn.q_norm.weight 16
model.layers.{i}.mlp.gate_proj.weight 64,16 mlp
model.layers.{i}.mlp.up_proj.weight 64,16 mlp
model.layers.{i}.mlp.down_proj.weight 16,64 mlp-out
model.layers.{i}.input_layernorm.weight 16
model.layers.{i}.post_attention_layernorm.weight 16
model.norm.weight 16
lm_head.weight 32,16 embeddings
"""
GPT2 = """
transformer.wte.weight 32,16
transformer.wpe.weight 8,16
transformer.h.{i}.ln_1.weight 16
transformer.h.{i}.ln_1.bias 16
transformer.h.{i}.attn.c_attn.weight 16,48 attention
transformer.h.{i}.attn.c_attn.bias 48 attention-bias
transformer.h.{i}.attn.c_proj.weight 16,16 attention
transformer.h.{i}.attn.c_proj.bias 16 attention-bias
transformer.h.{i}.ln_2.weight 16
transformer.h.{i}.mlp.c_fc.weight 16,64 mlp
transformer.h.{i}.mlp.c_fc.bias 64 mlp-bias
transformer.h.{i}.mlp.c_proj.weight 64,16 mlp-out
transformer.ln_f.weight 16
"""
BERT = """
bert.embeddings.word_embeddings.weight 32,16
bert.embeddings.position_embeddings.weight 8,16
bert.embeddings.token_type_embeddings.weight 2,16
bert.embeddings.LayerNorm.weight 16
bert.encoder.layer.{i}.attention.self.query.weight 16,16 attention
bert.encoder.layer.{i}.attention.self.query.bias 16 attention-bias
bert.encoder.layer.{i}.attention.self.key.weight 16,16 attention
bert.encoder.layer.{i}.attention.self.value.weight 16,16 attention
bert.encoder.layer.{i}.attention.output.dense.weight 16,16 attention
bert.encoder.layer.{i}.attention.output.LayerNorm.weight 16
bert.encoder.layer.{i}.intermediate.dense.weight 64,16 mlp
bert.encoder.layer.{i}.output.dense.weight 16,64 mlp-out
bert.encoder.layer.{i}.output.LayerNorm.weight 16
bert.pooler.dense.weight 16,16 other
cls.predictions.transform.dense.weight 16,16 other
cls.predictions.transform.LayerNorm.weight 16
cls.predictions.decoder.weight 32,16 embeddings
"""
MIXTRAL = """
model.embed_tokens.weight 32,16
model.layers.{i}.self_attn.q_proj.weight 16,16 attention
model.layers.{i}.self_attn.o_proj.weight 16,16 attention
model.layers.{i}.block_sparse_moe.gate.weight 4,16 mlp
model.layers.{i}.block_sparse_moe.experts.0.w1.weight 64,16 mlp
model.layers.{i}.block_sparse_moe.experts.3.w2.weight 16,64 mlp-out
model.layers.{i}.mlp.experts.gate_up_proj 4,128,16 mlp
model.layers.{i}.input_layernorm.weight 16
model.norm.weight 16
lm_head.weight 32,16 embeddings
"""
NEOX = """
gpt_neox.embed_in.weight 32,16
gpt_neox.layers.{i}.input_layernorm.weight 16
gpt_neox.layers.{i}.post_attention_layernorm.bias 16
gpt_neox.layers.{i}.attention.query_key_value.weight 48,16 attention
gpt_neox.layers.{i}.attention.query_key_value.bias 48 attention-bias
gpt_neox.layers.{i}.attention.dense.weight 16,16 attention
gpt_neox.layers.{i}.mlp.dense_h_to_4h.weight 64,16 mlp
gpt_neox.layers.{i}.mlp.dense_4h_to_h.weight 16,64 mlp-out
gpt_neox.final_layer_norm.weight 16
embed_out.weight 32,16 embeddings
"""
T5 = """
shared.weight 32,16
encoder.block.{i}.layer.0.SelfAttention.q.weight 16,16 attention
encoder.block.{i}.layer.0.SelfAttention.o.weight 16,16 attention
encoder.block.{i}.layer.0.layer_norm.weight 16
encoder.block.{i}.layer.1.DenseReluDense.wi_0.weight 64,16 mlp
encoder.block.{i}.layer.1.DenseReluDense.wo.weight 16,64 mlp-out
decoder.block.{i}.layer.1.EncDecAttention.k.weight 16,16 attention
decoder.block.{i}.layer.2.DenseReluDense.wi.weight 64,16 mlp
decoder.final_layer_norm.weight 16
lm_head.weight 32,16 embeddings
"""
FAMILIES = {
    "llama": LLAMA,
    "gpt2": GPT2,
    "bert": BERT,
    "mixtral": MIXTRAL,
    "neox": NEOX,
    "t5": T5,
}
LAYERS = 12


def entry(name: str, shape: tuple[int, ...], dtype: str = "BF16") -> TensorEntry:
    return TensorEntry(name, dtype, shape, "model.safetensors", 0, 0)


def family(text: str) -> tuple[dict[str, TensorEntry], dict[str, str]]:
    """Entries of a model of twelve layers, and the kind each line states."""
    entries, kinds = {}, {}
    for line in text.strip().splitlines():
        name, shape, *kind = line.split()
        for i in range(LAYERS) if "{i}" in name else [0]:
            full = name.format(i=i)
            entries[full] = entry(full, tuple(map(int, shape.split(","))))
            kinds[full] = kind[0] if kind else ("" if "," not in shape else "embeddings")
    return entries, kinds


def chosen(entries: dict[str, TensorEntry], **settings: Any) -> set[str]:
    return set(Selection(**settings).resolve(entries))


@pytest.mark.parametrize("name", FAMILIES)
def test_kinds_over_the_names_of_a_family(name: str) -> None:
    entries, kinds = family(FAMILIES[name])

    def of(*wanted: str) -> set[str]:
        return {each for each, kind in kinds.items() if kind in wanted}

    assert of("mlp-out")
    kinds_of_mlp = ("mlp", "mlp-out")
    assert chosen(entries, targets="all") == set(entries)
    assert chosen(entries, targets="all-linear") == of("attention", *kinds_of_mlp, "other")
    assert chosen(entries, targets="attention") == of("attention", "attention-bias")
    assert chosen(entries, targets="mlp") == of(*kinds_of_mlp, "mlp-bias")
    assert chosen(entries, targets="mlp-out") == of("mlp-out")
    assert chosen(entries, targets="embeddings") == of("embeddings")


def linear_weights(model: torch.nn.Module) -> set[str]:
    from transformers.pytorch_utils import Conv1D

    head = model.get_output_embeddings()  # type: ignore[operator]
    return {
        f"{name}.weight"
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear | Conv1D) and module is not head
    }


@pytest.mark.parametrize("name", ["Llama", "GPT2", "Bert", "GPTNeoX", "T5", "Qwen3", "OPT", "Phi"])
def test_all_linear_is_every_linear_module_but_the_head(name: str) -> None:
    import transformers

    small: dict[str, Any] = {"vocab_size": 32, "num_hidden_layers": 2, "num_layers": 2}
    config = getattr(transformers, f"{name}Config")(**small)
    suffixes = ["ForCausalLM", "LMHeadModel", "ForConditionalGeneration"]
    suffixes = ["ForMaskedLM"] if name == "Bert" else suffixes
    kind = next(filter(None, (getattr(transformers, f"{name}{s}", None) for s in suffixes)))
    with torch.device("meta"):
        model = kind(config)
    entries = {n: entry(n, tuple(t.shape)) for n, t in model.state_dict().items()}
    wanted = linear_weights(model)
    assert len(wanted) > 4
    assert chosen(entries, targets="all-linear") == wanted


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("0", {0}),
        ("3-5", {3, 4, 5}),
        ("0-1,8,10-", {0, 1, 8, 10, 11}),
        ("-2", {0, 1, 2}),
        (" 1 , 11 ", {1, 11}),
        ("1,1-2", {1, 2}),
    ],
)
@pytest.mark.parametrize("name", FAMILIES)
def test_layer_ranges(name: str, text: str, wanted: set[int]) -> None:
    entries, _ = family(FAMILIES[name])
    found = chosen(entries, layers=text)
    lines = FAMILIES[name].strip().splitlines()
    patterns = [line.split()[0] for line in lines if "{i}" in line]
    assert found == {pattern.format(i=i) for pattern in patterns for i in wanted}


@pytest.mark.parametrize("text", ["", "a", "3-1", "1,,2", "-", "1-2-3", "1.5"])
def test_senseless_layers_are_refused(text: str) -> None:
    with pytest.raises(SelectionError, match="layers"):
        parse_layers(text)


def test_globs_include_and_exclude() -> None:
    entries, _ = family(LLAMA)
    q = {f"model.layers.{i}.self_attn.q_proj.weight" for i in range(LAYERS)}
    first = "model.layers.0.self_attn.q_proj.weight"
    assert chosen(entries, include=("*q_proj*",)) == q
    assert chosen(entries, include=("*q_proj*",), exclude=("*.0.*",)) == q - {first}
    assert chosen(entries, include=("*q_proj*", "lm_head*")) == q | {"lm_head.weight"}
    assert chosen(entries, targets="mlp", include=("*.1.*",), exclude=("*down*", "*up*")) == {
        "model.layers.1.mlp.gate_proj.weight"
    }
    assert "lm_head.weight" not in chosen(entries, exclude=("lm_head.weight",))
    assert chosen(entries, include=("model.layers.[01].*q_proj*",), layers="1-") == {
        "model.layers.1.self_attn.q_proj.weight"
    }


@pytest.mark.parametrize("role", ["include", "exclude"])
def test_a_pattern_that_matches_nothing_is_an_error(role: str) -> None:
    entries, _ = family(LLAMA)
    with pytest.raises(SelectionError, match=r"\*\.typo\.\*"):
        chosen(entries, **{role: ("lm_head*", "*.typo.*")})
    with pytest.raises(SelectionError, match="Q_PROJ"):  # case counts
        chosen(entries, **{role: ("*Q_PROJ*",)})


def test_nothing_selected_is_an_error() -> None:
    entries, _ = family(LLAMA)
    with pytest.raises(SelectionError, match="no tensor is selected"):
        chosen(entries, targets="mlp", include=("*q_proj*",))
    with pytest.raises(SelectionError, match="no tensor is selected"):
        chosen(entries, layers="12-")


def test_mlps_whose_ends_no_name_tells_are_taken_whole() -> None:
    entries, _ = family("model.layers.{i}.ffn.first.weight 8,4 mlp\nmodel.norm.weight 4 norm")
    assert chosen(entries, targets="mlp-out") == chosen(entries, targets="mlp") != set()


def test_unknown_targets_are_refused() -> None:
    assert set(TARGETS) == {"all", "all-linear", "attention", "mlp", "mlp-out", "embeddings"}
    with pytest.raises(SelectionError, match="linear"):
        Selection("linear")


@pytest.mark.parametrize("dtype", ["I64", "I8", "U8", "BOOL", "C64"])
def test_indices_and_masks_are_never_selected(dtype: str) -> None:
    entries = {"w": entry("w", (4, 4)), "ids": entry("ids", (4, 4), dtype)}
    assert chosen(entries) == {"w"}
    with pytest.raises(SelectionError, match="no tensor is selected"):
        chosen(entries, include=("ids",))


def test_order_is_the_checkpoints() -> None:
    entries, _ = family(LLAMA)
    backwards = dict(reversed(entries.items()))
    assert list(Selection().resolve(backwards)) == list(backwards)


def test_scales_by_layer_and_by_name_the_last_match_counts() -> None:
    entries, _ = family(LLAMA)
    scales = (("0-3", 0.5), ("2", 2.0), ("*down_proj*", 0.0), ("lm_head.weight", -1.0))
    found = Selection(scales=scales).resolve(entries)
    assert found["model.layers.0.mlp.up_proj.weight"] == 0.5
    assert found["model.layers.2.mlp.up_proj.weight"] == 2.0
    assert found["model.layers.2.mlp.down_proj.weight"] == 0.0
    assert found["model.layers.4.mlp.up_proj.weight"] == 1.0
    assert found["model.embed_tokens.weight"] == 1.0
    assert found["lm_head.weight"] == -1.0
    several = Selection(scales=(("1,3-4", 7.0),)).resolve(entries)
    with_seven = {name.split(".")[2] for name, scale in several.items() if scale == 7}
    assert with_seven == {"1", "3", "4"}


@pytest.mark.parametrize("pattern", ["*.mpl.*", "40-50"])
def test_a_scale_for_nothing_is_an_error(pattern: str) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    entries = {name: TensorEntry(name, "F32", (4, 4), "x.safetensors", 0, 64)}
    assert Selection(scales=(("*.mlp.*", 0.5), ("1-3", 0.25))).resolve(entries) == {name: 0.25}
    with pytest.raises(SelectionError, match="scale of its own"):
        Selection(scales=((pattern, 0.5),)).resolve(entries)
