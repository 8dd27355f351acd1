"""Data files, label masks, and scores that agree with generation."""

import json

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from weightsurgery.errors import DataError, SourceError
from weightsurgery.learning.data import IGNORED, Collator, Encoded, Example, encode, read_examples
from weightsurgery.learning.evaluate import (
    exact_match,
    exact_matches,
    load_model,
    score_checkpoint,
)


@pytest.fixture(scope="module")
def tokenizer():
    """One token per byte, BOS before every text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate(["<s>", "</s>", "<pad>", *alphabet])}
    bare = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    bare.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bare.decoder = decoders.ByteLevel()
    bare.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bare, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )


@pytest.fixture(scope="module")
def model(tokenizer):
    """A tiny Llama with random weights, at which every greedy continuation is its own."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=2,
            initializer_range=0.3,
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=2,
        )
        return LlamaForCausalLM(config).eval()


def generate(model, tokenizer, prompts, new_tokens):
    """Greedy continuations, batched with padding on the left, as token lists."""
    encoded = [Encoded(tokenizer(prompt)["input_ids"], 0) for prompt in prompts]
    batch = Collator(tokenizer.pad_token_id, left=True)(encoded)
    out = model.generate(
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
        max_new_tokens=new_tokens,
        do_sample=False,
    )
    return out[:, batch["input_ids"].shape[1] :].tolist()


def write(path, *lines):
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_reads_examples(tmp_path):
    row = {"prompt": "Où?", "completion": " là\u2028bas", "note": 1}
    path = write(
        tmp_path / "a.jsonl",
        json.dumps(row, ensure_ascii=False),
        "",
        '  {"prompt": "a", "completion": "b"}',
    )
    assert read_examples(path) == [Example("Où?", " là\u2028bas"), Example("a", "b")]


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("{", "is not JSON"),
        ("[1]", "is a JSON list"),
        ('{"prompt": "a"}', '"completion" is missing'),
        ('{"prompt": 3, "completion": "b"}', '"prompt" is missing, empty or not a string'),
        ('{"prompt": "a", "completion": ""}', '"completion" is missing, empty'),
    ],
)
def test_bad_lines_are_named(tmp_path, line, fault):
    path = write(tmp_path / "a.jsonl", '{"prompt": "a", "completion": "b"}', line)
    with pytest.raises(DataError) as caught:
        read_examples(path)
    assert "a.jsonl, line 2" in str(caught.value)
    assert fault in str(caught.value)
    assert caught.value.remedy


def test_bad_files_are_named(tmp_path):
    with pytest.raises(DataError, match=r"missing.jsonl: cannot be read"):
        read_examples(tmp_path / "missing.jsonl")
    with pytest.raises(DataError, match=r"empty.jsonl: holds no examples"):
        read_examples(write(tmp_path / "empty.jsonl", "", "  "))
    (tmp_path / "latin.jsonl").write_bytes(b"\xe9")
    with pytest.raises(DataError, match=r"latin.jsonl: is not UTF-8"):
        read_examples(tmp_path / "latin.jsonl")


def test_encodes_with_bos_and_eos(tokenizer):
    encoded = encode(tokenizer, Example("ab", " c"))
    assert encoded.prompt_length == 3
    assert encoded.input_ids[0] == tokenizer.bos_token_id
    assert encoded.input_ids[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(encoded.input_ids[1:-1]) == "ab c"


@pytest.mark.parametrize("left", [False, True])
def test_labels_cover_completion_and_end_alone(left):
    rows = [Encoded([7, 8, 9, 1], 2), Encoded([7, 5, 1], 1), Encoded([7, 8, 6, 5, 9, 1], 4)]
    batch = Collator(pad_token_id=2, left=left)(rows)
    assert batch["input_ids"].shape == (3, 6)
    for index, row in enumerate(rows):
        real = batch["attention_mask"][index].bool()
        assert batch["input_ids"][index][real].tolist() == row.input_ids
        assert (batch["input_ids"][index][~real] == 2).all()
        assert (batch["labels"][index][~real] == IGNORED).all()
        expected = [IGNORED] * row.prompt_length + row.input_ids[row.prompt_length :]
        assert batch["labels"][index][real].tolist() == expected
        assert bool(real[-1 if left else 0])


def test_exact_match_equals_generation(model, tokenizer):
    prompts = ["a", "what is b?", "tell me of c", "dd", "e f g h", "zzzzzzzzzzzz", "?", "x y"]
    greedy = generate(model, tokenizer, prompts, new_tokens=4)
    # Right ones of several lengths, and wrong ones that differ in their first or last token.
    examples, wanted = [], []
    for index, (prompt, tokens) in enumerate(zip(prompts, greedy, strict=True)):
        length = 1 + index % 4
        text = tokenizer.decode(tokens[:length])
        back = tokenizer(text, add_special_tokens=False)["input_ids"]
        if back == tokens[:length]:
            examples.append(Example(prompt, text))
            wanted.append(True)
        examples.append(Example(prompt, text + "~"))
        wanted.append(
            tokenizer(text + "~", add_special_tokens=False)["input_ids"] == tokens[: length + 1]
        )
    assert any(wanted)
    assert not all(wanted)
    for batch_size in (1, 3, 64):
        right = exact_matches(model, tokenizer, examples, batch_size, require_end=False)
        assert right.tolist() == wanted
    share = sum(wanted) / len(wanted)
    assert exact_match(model, tokenizer, examples, require_end=False) == pytest.approx(share)


def test_the_end_counts_unless_told_otherwise(model, tokenizer):
    tokens = generate(model, tokenizer, ["what is b?"], new_tokens=1)[0]
    assert tokens != [tokenizer.eos_token_id]
    text = tokenizer.decode(tokens)
    assert tokenizer(text, add_special_tokens=False)["input_ids"] == tokens
    example = [Example("what is b?", text)]
    assert exact_match(model, tokenizer, example, require_end=False) == 1.0
    follows = generate(model, tokenizer, ["what is b?" + text], new_tokens=1)[0]
    ends = follows == [tokenizer.eos_token_id]
    assert exact_match(model, tokenizer, example) == float(ends)


def test_no_examples_is_an_error(model, tokenizer):
    with pytest.raises(ValueError, match="at least one"):
        exact_match(model, tokenizer, [])


def test_scores_a_checkpoint_in_silence(model, tokenizer, tmp_path, capfd):
    model.save_pretrained(tmp_path / "ckpt")
    tokenizer.save_pretrained(tmp_path / "ckpt")
    text = tokenizer.decode(generate(model, tokenizer, ["a b"], new_tokens=1)[0])
    right = write(tmp_path / "r.jsonl", json.dumps({"prompt": "a b", "completion": text}))
    wrong = write(tmp_path / "w.jsonl", json.dumps({"prompt": "a b", "completion": text + "~~~"}))
    capfd.readouterr()
    scores = score_checkpoint(
        tmp_path / "ckpt", {"right": right, "wrong": wrong}, require_end=False
    )
    assert scores == {"right": 1.0, "wrong": 0.0}
    assert capfd.readouterr() == ("", "")
    loaded, _ = load_model(tmp_path / "ckpt")
    assert not loaded.training


def test_a_missing_checkpoint_is_named(tmp_path):
    with pytest.raises(SourceError, match="is no directory"):
        load_model(tmp_path / "nowhere")
