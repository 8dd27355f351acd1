"""`ws evaluate` as a user meets it."""

import json
import shutil
from itertools import permutations

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.cli.typed import two_lines
from tests.conftest import snapshot
from tests.learning.conftest import slow_greedy, write


@pytest.fixture(scope="module")
def world(other_head):
    """A checkpoint, one with another head, and completions the former gives."""
    root, tokenizer, model = other_head
    rows = []
    for prompt in ("a", "what is b?", "tell me of c", "dd"):
        own = slow_greedy(model, tokenizer(prompt)["input_ids"], 3)
        rows.append({"prompt": prompt, "completion": tokenizer.decode(own)})
    write(root / "facts.jsonl", *map(json.dumps, rows))
    return root


def test_what_was_made_of_a_file_is_said_once(ws, world):
    rows = [{"question": "a", "answer": "b"}, {"question": "c", "answer": "d " * 99}]
    write(world / "asked.jsonl", *map(json.dumps, rows))
    command = ["evaluate", world / "edited", "--against", world / "base", "--metric", "nll",
               "--forget", world / "asked.jsonl"]  # fmt: skip
    done = ws(*command, "--json")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("'question' is the prompt, 'answer' the completion") == 1
    assert done.stderr.count("1 longer than the 64 tokens that the model reads at once") == 1
    (scored,) = json.loads(done.stdout)["sets"]
    assert f"split into {scored['examples'] - 1} windows" in done.stderr
    quiet = ws(*command, "--json", "--quiet")
    assert (quiet.stderr, quiet.stdout) == ("", done.stdout)


def test_tables_and_json_say_the_same(ws, world):
    command = [
        "evaluate", world / "edited", "--against", world / "base", "--any-end", "--metric",
        "exact_match", "--metric", "el", "--forget", world / "facts.jsonl", "--keep",
        world / "facts.jsonl",
    ]  # fmt: skip
    done = ws(*command, "--json")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    document = json.loads(done.stdout)
    forget, keep = document["sets"]
    assert forget["before"]["exact_match"]["value"] == 1
    assert forget["scores"]["exact_match"]["value"] == 0
    assert forget["forgetting"]["exact_match"]["value"] == 100
    assert forget["normalised_forgetting"]["exact_match"]["value"] == pytest.approx(100 / 0.75)
    assert keep["drift"]["exact_match"]["value"] == 1
    assert forget["scores"]["el"]["value"] is None
    assert "no EL_10" in forget["scores"]["el"]["why"]
    assert document["tasks"] == []

    done = ws(*command)
    assert done.returncode == 0, done.stderr
    for text in ("100.0 %", "133.3 %", "forgotten over chance", "drift", "no EL_10", "25.0 %"):
        assert text in done.stdout
    short = ws(*command, "--el-n", "2", "--json")
    assert json.loads(short.stdout)["sets"][0]["before"]["el"]["value"] == 1


def test_the_document_says_which_bytes_were_scored(ws, world, tmp_path, monkeypatch):
    command = ["evaluate", tmp_path / "out", "--forget", world / "facts.jsonl", "--json"]
    assert ws("negate", world / "base", world / "edited", "-o", tmp_path / "out").returncode == 0
    done = ws(*command)
    recorded = json.loads((tmp_path / "out/weightsurgery.json").read_text())["files"]
    assert json.loads(done.stdout)["content"] == {n: f["sha256"] for n, f in recorded.items()}
    base = ws("evaluate", world / "base", "--forget", world / "facts.jsonl", "--json")
    assert json.loads(base.stdout)["content"] is None  # it has no record

    from weightsurgery.learning import evaluate as module

    load = module.load_model

    def swapped(*arguments, **named):
        """As it is loaded, somebody puts other weights there."""
        found = load(*arguments, **named)
        shutil.copy(world / "edited/model.safetensors", tmp_path / "out")
        return found

    monkeypatch.setattr(module, "load_model", swapped)
    assert json.loads(ws(*command).stdout)["content"] is None


def test_errors_are_two_lines(ws, world):
    facts, base = world / "facts.jsonl", world / "base"
    assert "no data to score" in two_lines(ws("evaluate", base))[0]
    assert "cannot load a tokenizer" in two_lines(ws("evaluate", world, "--forget", facts))[0]
    what, remedy = two_lines(ws("evaluate", world / "nowhere", "--forget", facts))
    assert "nowhere: no such directory" in what
    what, remedy = two_lines(ws("evaluate", base, "--keep", world / "no.jsonl"))
    assert "no.jsonl: cannot be read" in what
    what, remedy = two_lines(ws("evaluate", base, "--keep", facts, "--metric", "bleu"))
    assert "'bleu'" in what
    assert "rouge_l" in remedy
    what, remedy = two_lines(
        ws("evaluate", base, "--forget", facts, "--metric", "tofu", "--device-map", "auto")
    )
    assert "--device-map with --metric tofu" in what
    spread = ("evaluate", base, "--forget", facts, "--device-map")
    assert "device map 'wide'" in two_lines(ws(*spread, "wide"))[0]
    assert ws(*spread, "auto", "-q").returncode == 0
    what, remedy = two_lines(ws("evaluate", base, "--tasks", "hellaswag"))
    assert "lm-eval:NAME" in remedy


def test_a_model_of_nan_is_an_error(ws, world, tmp_path):
    broken = shutil.copytree(world / "base", tmp_path / "broken")
    tensors = load_file(broken / "model.safetensors")
    tensors["model.norm.weight"] = torch.full_like(tensors["model.norm.weight"], float("nan"))
    save_file(tensors, broken / "model.safetensors", {"format": "pt"})
    facts = world / "facts.jsonl"
    assert ws("evaluate", world / "base", "--forget", facts, "-q").returncode == 0
    what, _ = two_lines(ws("evaluate", broken, "--forget", facts))
    assert "facts" in what
    assert "NaN" in what


@pytest.fixture
def asked(tmp_path):
    """Something to forget and to keep, short enough for contexts."""
    for name, rows in (("going", "ab"), ("staying", "cde")):
        pairs = [{"prompt": f"{x}?", "completion": f" {x}"} for x in rows]
        write(tmp_path / f"{name}.jsonl", *map(json.dumps, pairs))
    return tmp_path


def test_in_context_the_weights_stay_and_the_table_says_so(ws, world, asked, monkeypatch):
    import weightsurgery.learning.evaluate as module

    prompts, plain = [], module.score

    def spy(model, tokenizer, examples, **settings):
        prompts.append([each.prompt for each in examples])
        return plain(model, tokenizer, examples, **settings)

    monkeypatch.setattr(module, "score", spy)
    command = [
        "evaluate", world / "base", "--forget", asked / "going.jsonl", "--keep",
        asked / "staying.jsonl", "--metric", "nll",
    ]  # fmt: skip
    before = snapshot(world)
    assert json.loads(ws(*command, "--json").stdout)["contexts"] is None
    assert prompts == [["a?", "b?"], ["c?", "d?", "e?"]]
    assert "in-context" not in ws(*command).stdout
    prompts.clear()
    command += ["--in-context", "icul", "--shots", "2", "--against", world / "base"]
    done = ws(*command, "--json")
    assert done.returncode == 0, done.stderr
    going, staying, *compared = prompts
    assert set(going) <= {
        f"{x}? {y}\n{first}\n{second}\n{x}?"
        for x, y in ("ab", "ba")
        for first, second in permutations(("c? c", "d? d", "e? e"), 2)
    }
    assert [each.split("\n")[-1] for each in (*going, *staying)] == [*map("{}?".format, "abcde")]
    # What it is compared with is asked plainly.
    assert compared == [["a?", "b?"], ["c?", "d?", "e?"]]
    document = json.loads(done.stdout)
    assert document["contexts"] == {"method": "icul", "shots": 2, "weights": "unchanged"}
    forget = document["sets"][0]
    assert forget["before"]["nll"]["value"] != forget["scores"]["nll"]["value"]
    done = ws(*command)
    assert "(icul, in-context, weights unchanged)" in done.stdout
    assert "was asked plainly" in " ".join(done.stdout.split())
    assert snapshot(world) == before


def test_contexts_that_cannot_be_are_errors(ws, world, asked):
    command = ["evaluate", world / "base", "--forget", asked / "going.jsonl"]
    assert "'other'" in two_lines(ws(*command, "--in-context", "other"))[0]
    assert "without a context" in two_lines(ws(*command, "--shots", "1"))[0]
    what, remedy = two_lines(ws(*command, "--in-context", "icul", "--shots", "2"))
    assert "1 examples for the 2" in what
    assert "more data to keep" in remedy
    what, _ = two_lines(ws(*command, "--in-context", "icul", "--tasks", "lm-eval:hellaswag"))
    assert "--tasks" in what
