"""`ws attack` as a user meets it."""

import json

import pytest
import torch

from tests.cli.typed import two_lines
from tests.conftest import snapshot
from tests.learning.tiny import FACTS, OTHER, byte_tokenizer, save, tiny, write
from tests.scoring.conftest import tofu_world  # noqa: F401 : a fixture
from weightsurgery.learning.attacks import relearn


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A model that knows facts, one at random, and data."""
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("place")
    model = tiny("llama")
    relearn(model, byte_tokenizer(), FACTS, steps=80, learning_rate=1e-2)
    save(model, root / "knows", torch.bfloat16)
    save(tiny("llama"), root / "random")
    write(root / "facts.jsonl", FACTS)
    write(root / "other.jsonl", OTHER)
    return root


def test_relearning_in_json_and_as_a_table(ws, place):
    command = [
        "attack", "relearn", place / "random", "--forget", place / "facts.jsonl", "--keep",
        place / "other.jsonl", "--against", place / "knows", "--steps", "60", "--learning-rate",
        "1e-2", "--fraction", "0.25", "--metric", "exact_match", "--metric", "perplexity",
    ]  # fmt: skip
    before = snapshot(place)
    done = ws(*command, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert found["kind"] == "relearn"
    assert (found["checkpoint"], found["against"]) == (str(place / "random"), str(place / "knows"))
    assert found["settings"]["steps"] == 60
    assert len(found["trained_on"]["facts"]) == 2
    trained, held, keep = found["sets"]
    assert (trained["part"], held["part"], keep["part"]) == ("trained on", "held out", "")
    assert trained["checkpoint"]["before"]["exact_match"]["value"] == 0
    assert trained["checkpoint"]["after"]["relearned"]["exact_match"]["value"] == 1
    assert trained["checkpoint"]["change"]["relearned"]["exact_match"]["value"] == 1
    assert set(trained["checkpoint"]["change"]["relearned"]) == {"exact_match"}
    assert held["control"]["before"]["exact_match"]["value"] == 1
    assert held["checkpoint"]["after"]["relearned"]["exact_match"]["value"] == 0

    done = ws(*command, "-q")
    assert (done.returncode, done.stderr) == (0, "")
    for text in ("forget, trained on", "forget, held out", "+100.0", "Trained on 2 examples",
                 "60 steps of 2 at 0.01", "The control, ", "Beyond:"):  # fmt: skip
        assert text in done.stdout, text
    assert snapshot(place) == before


def test_rounding_in_json_and_as_a_table(ws, place):
    command = [
        "attack", "quantize", place / "knows", "--forget", place / "facts.jsonl", "--metric",
        "exact_match",
    ]  # fmt: skip
    before = snapshot(place)
    document = json.loads(ws(*command, "--json").stdout)
    assert document["attacks"] == ["nf4"]
    assert document["layers"] == 14
    assert document["sets"][0]["control"] is None
    assert document["sets"][0]["checkpoint"]["before"]["exact_match"]["value"] == 1
    done = ws(*command, "--method", "int8", "--method", "int4")
    assert done.returncode == 0, done.stderr
    assert "100.0 %" in done.stdout
    assert "14 linear layers" in done.stdout
    assert "control" not in done.stdout
    for name in ("int8", "int4"):
        assert f"rounding ({name})" in done.stdout
    assert snapshot(place) == before


def test_forget_quality_in_every_state(ws, tofu_world, tmp_path):  # noqa: F811
    root = tofu_world
    asked = ["--forget", root / "forget.jsonl", "--metric", "nll", "--reference"]
    yardstick = ["--metric", "tofu", *asked[:2], "--keep", root / "keep.jsonl", "--reference"]

    def evaluated(name):
        done = ws("evaluate", root / name, *yardstick, root / "retrained", "--json", "-q")
        (tmp_path / f"{name}.json").write_text(done.stdout)
        return json.loads(done.stdout)["tofu"]["forget_quality"]

    taught, retrained = evaluated("taught"), evaluated("retrained")
    assert taught < 0.05
    assert retrained == 1
    rounding = ["attack", "quantize", root / "taught", "--against", root / "retrained", *asked]
    found = json.loads(ws(*rounding, tmp_path / "retrained.json", "--json", "-q").stdout)
    assert found["reference"] == str(tmp_path / "retrained.json")
    assert found["forget_quality"]["checkpoint"]["before"] == pytest.approx(taught)
    assert found["forget_quality"]["checkpoint"]["nf4"] < 0.05
    assert found["forget_quality"]["control"]["before"] == retrained
    # Who is taught the very rows is told from one who never saw them: step by step.
    relearning = ["attack", "relearn", root / "retrained", *asked, root / "retrained", "--train",
                  root / "forget.jsonl", "--steps", "60", "--learning-rate", "1e-2", "--look",
                  "1"]  # fmt: skip
    found = json.loads(ws(*relearning, "--json", "-q").stdout)
    (states,) = found["forget_quality"].values()
    assert list(states) == ["before", "step 1", "relearned"]
    assert states["before"] == 1
    assert states["relearned"] < 0.05
    text = ws(*relearning, "-q").stdout
    assert "Forget quality against" in text
    assert f"{states['relearned']:.4g}" in text
    assert "they are those of" in text


def test_a_yardstick_needs_its_rows(ws, place, tofu_world, tmp_path):  # noqa: F811
    root = tofu_world
    command = ["attack", "relearn", root / "taught", "-q", "--reference", root / "retrained"]
    what, remedy = two_lines(ws(*command, "--forget", place / "facts.jsonl"))
    assert "example 1: no wrong answers" in what
    assert "perturbed_answer" in remedy
    (tmp_path / "none.json").write_text("{}")
    what, _ = two_lines(
        ws(*command[:-1], tmp_path / "none.json", "--forget", root / "forget.jsonl")
    )
    assert "none.json: no reference" in what
    what, _ = two_lines(ws(*command, "--forget", root / "forget.jsonl", "--look", "41"))
    assert "a look after step 41 of 40" in what


def test_errors_are_two_lines(ws, place):
    facts, model = place / "facts.jsonl", place / "knows"
    for kind in ("relearn", "quantize"):
        assert "no data to score" in two_lines(ws("attack", kind, model))[0]
        what, _ = two_lines(ws("attack", kind, place / "nowhere", "--forget", facts))
        assert "nowhere: no such directory" in what
        what, _ = two_lines(
            ws("attack", kind, model, "--forget", facts, "--against", place / "nowhere")
        )
        assert "nowhere" in what
    what, remedy = two_lines(ws("attack", "quantize", model, "--forget", facts, "--method", "int3"))
    assert "int3" in what
    assert "nf4" in remedy
    what, _ = two_lines(ws("attack", "relearn", model, "--forget", facts, "--fraction", "1"))
    assert "a part of 1" in what
    what, _ = two_lines(ws("attack", "relearn", model, "--forget", facts, "--steps", "0"))
    assert "0 steps" in what
    # An option of the other attack is no option of this one.
    assert ws("attack", "quantize", model, "--forget", facts, "--steps", "3").returncode == 2
