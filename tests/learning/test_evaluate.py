"""Scores that agree with generation, and checkpoints before and after."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.learning.conftest import generate, slow_greedy, write
from weightsurgery.algebra.devices import pick_device
from weightsurgery.errors import (
    CorruptCheckpointError,
    DataError,
    EditError,
    SelectionError,
    SourceError,
)
from weightsurgery.learning.data import Example
from weightsurgery.learning.evaluate import evaluate
from weightsurgery.learning.exact import exact_match, exact_matches, score_checkpoint
from weightsurgery.learning.models import load_model


def pairs(path, rows):
    return write(path, *(json.dumps({"prompt": p, "completion": c}) for p, c in rows))


@pytest.fixture(scope="module")
def before(model, tokenizer, tmp_path_factory):
    directory = tmp_path_factory.mktemp("models") / "before"
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def after(before):
    """The same model with its head's rows shifted: it says other letters."""
    directory = before.parent / "after"
    shutil.copytree(before, directory)
    tensors = load_file(directory / "model.safetensors")
    head = tensors["lm_head.weight"]
    tensors["lm_head.weight"] = torch.cat([head[:40], head[40:80].roll(1, 0), head[80:]])
    save_file(tensors, directory / "model.safetensors", {"format": "pt"})
    return directory


@pytest.fixture(scope="module")
def known(model, tokenizer, tmp_path_factory):
    """Four completions the model gives, and one it does not."""
    prompts = ["a", "what is b?", "tell me of c", "dd", "e f g"]
    rows = [
        (prompt, tokenizer.decode(slow_greedy(model, tokenizer(prompt)["input_ids"], 4)))
        for prompt in prompts
    ]
    rows[-1] = (rows[-1][0], "~~~~")
    assert all(completion for _, completion in rows)
    return pairs(tmp_path_factory.mktemp("data") / "known.jsonl", rows)


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


def test_scores_a_checkpoint_in_silence(before, known, tmp_path, capfd):
    wrong = pairs(tmp_path / "w.jsonl", [("a b", "~~~")])
    capfd.readouterr()
    scores = score_checkpoint(before, {"known": known, "wrong": wrong}, require_end=False)
    assert scores == {"known": 0.8, "wrong": 0.0}
    assert capfd.readouterr() == ("", "")
    loaded, _ = load_model(before, "auto")
    assert not loaded.training


def test_a_checkpoint_against_its_base(before, after, known, tmp_path, capfd):
    other = tmp_path / "known.jsonl"  # of the same name
    shutil.copy(known, other)
    capfd.readouterr()
    heard = []
    found = evaluate(
        after, [known], [other], against=before, require_end=False, device="cpu", resamples=200,
        progress=lambda stage, done, total: heard.append((stage, done, total)),
    )  # fmt: skip
    assert capfd.readouterr() == ("", "")
    forget, keep = found.sets
    assert (forget.role, keep.role) == ("forget", "keep")
    assert (forget.name, keep.name) == (str(known), str(other))
    assert forget.examples == 5
    assert forget.chance == pytest.approx(0.2)  # five different completions
    assert list(forget.scores) == [
        "begins_with", "contains", "exact_match", "perplexity", "probability", "rouge_l_recall",
    ]  # fmt: skip
    s0 = score_checkpoint(before, {"x": known}, require_end=False)["x"]
    s1 = score_checkpoint(after, {"x": known}, require_end=False)["x"]
    assert (s0, s1 < s0) == (0.8, True)
    assert forget.before["exact_match"].value == s0
    assert forget.scores["exact_match"].value == s1
    assert forget.forgetting["exact_match"].value == pytest.approx(100 * (s0 - s1) / s0)
    assert forget.normalised_forgetting["exact_match"].value == pytest.approx(
        100 * (s0 - s1) / (s0 - 0.2)
    )
    assert forget.headline == "begins_with"
    assert set(forget.normalised_forgetting) == {"begins_with", "exact_match"}
    assert forget.before["begins_with"].value >= s0
    assert forget.drift is None
    assert "perplexity" not in forget.forgetting
    assert keep.drift["exact_match"].value == pytest.approx((s0 - s1) / s0)
    assert keep.drift["perplexity"].value > 0
    assert keep.forgetting is None
    low, high = keep.drift["perplexity"].interval
    assert low < keep.drift["perplexity"].value < high
    assert {stage for stage, _, _ in heard} == {
        f"{verb} {name}" for verb in ("scoring", "generating for") for name in (known, other)
    }
    # Against itself nothing has moved.
    same = evaluate(
        before, [known], against=before, metrics=["exact_match"], require_end=False, resamples=20
    )
    assert same.sets[0].forgetting["exact_match"].value == 0
    assert same.sets[0].forgetting["exact_match"].interval == (0, 0)
    # Alone there is nothing to compare with.
    alone = evaluate(before, [known], metrics=["exact_match"], chance_of=0.1).sets[0]
    assert (alone.before, alone.forgetting, alone.chance) == (None, None, 0.1)


def test_conversations_are_scored(model, chat_tokenizer, tmp_path):
    model.save_pretrained(tmp_path / "chat")
    chat_tokenizer.save_pretrained(tmp_path / "chat")
    prompt = "<|user|>hi</s>\n<|assistant|>"
    tokens = chat_tokenizer(prompt, add_special_tokens=False)["input_ids"]
    answer = chat_tokenizer.decode(slow_greedy(model, tokens, 4))
    rows = [
        {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": said}]}
        for said in (answer, "~" + answer)
    ]
    data = write(tmp_path / "chat.jsonl", *map(json.dumps, rows))
    found = evaluate(tmp_path / "chat", [data], metrics=["exact-match"], require_end=False)
    assert found.sets[0].headline == "contains"
    assert found.sets[0].scores["exact_match"].value == 0.5


@pytest.mark.parametrize(
    ("options", "error", "fault"),
    [
        ({"forget": []}, DataError, "no data to score"),
        ({"metrics": ["accuracy"]}, SelectionError, "metric 'accuracy'"),
        ({"chance_of": 1.0}, DataError, "a chance of 1.0"),
        ({"n": 0}, DataError, "n-grams of 0"),
        ({"batch_size": 0}, DataError, "a batch of 0"),
        ({"resamples": 0}, DataError, "a bootstrap of 0"),
        ({"device": "tpu"}, EditError, "device 'tpu'"),
        ({"device": "cuda:99"}, EditError, "device 'cuda:99'"),
        ({"against": "nowhere"}, SourceError, "nowhere: no such directory"),
        ({"forget": ["missing.jsonl"]}, DataError, "missing.jsonl: cannot be read"),
    ],
)
def test_bad_options_are_named(before, known, options, error, fault):
    with pytest.raises(error) as caught:
        evaluate(before, **{"forget": [known], **options})
    assert fault in str(caught.value)
    assert caught.value.remedy


def test_faults_of_a_set_are_named(before, tmp_path):
    with pytest.raises(DataError, match=r"empty.jsonl: holds no examples"):
        evaluate(before, [write(tmp_path / "empty.jsonl", "")])
    long = pairs(tmp_path / "long.jsonl", [("a", "b"), ("a" * 100, "b")])
    fault = r"long.jsonl, line 2: its prompt alone has 101 tokens; the model reads 64"
    with pytest.raises(DataError, match=fault):
        evaluate(before, [long])


def test_a_long_text_is_scored_in_windows(before, tmp_path):
    text = "The tide came in, and went. " * 6
    (scores,) = evaluate(before, [pairs(tmp_path / "a.jsonl", [("So:", f" {text}")])]).sets
    assert scores.examples > 3
    # Every token but those of the prompt counts once, and no end that is none.
    nll = scores.scores["perplexity"]
    assert nll.examples == scores.examples


def test_a_checkpoint_that_is_none_is_named(before, tmp_path):
    with pytest.raises(SourceError, match="is no directory"):
        load_model(tmp_path / "nowhere")
    with pytest.raises(SourceError, match="transformers cannot load a tokenizer"):
        load_model(tmp_path)
    with pytest.raises(SourceError, match=r"from one of: .+"):  # transformers' whole sentence
        load_model(tmp_path)
    (adapter := tmp_path / "adapter").mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    with pytest.raises(SourceError, match="adapter: is an adapter") as refused:
        load_model(adapter)
    assert "ws add BASE ADAPTER" in refused.value.remedy
    lacking = shutil.copytree(before, tmp_path / "lacking")
    tensors = load_file(lacking / "model.safetensors")
    assert tensors.pop("lm_head.weight") is not None
    save_file(tensors, lacking / "model.safetensors", {"format": "pt"})
    with pytest.raises(CorruptCheckpointError, match=r"1 weights are missing.*lm_head.weight"):
        load_model(lacking)
    (lacking / "model.safetensors").unlink()
    with pytest.raises(SourceError, match="transformers cannot load a model"):
        load_model(lacking)


def test_devices():
    assert pick_device("cpu") == torch.device("cpu")
    assert pick_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
