"""``ws project`` from data by its default, forgetting by neighbours, as a user types it."""

import json
import shutil
from dataclasses import fields, replace
from pathlib import Path
from typing import get_type_hints

import pytest
import torch
import yaml

from tests.conftest import snapshot
from tests.learning.known import FORGET, REST, untaught
from tests.learning.tiny import byte_tokenizer, write
from weightsurgery.algebra.lowrank import Rank
from weightsurgery.checkpoint.record import read_record
from weightsurgery.errors import EditError
from weightsurgery.learning.guard import added
from weightsurgery.report.card import Base, Place, card_section

BRIEF = ["--steps", "2", "--batch", "4", "--neighbours", "5", "--wordings", "0", "--draws", "3",
         "--lora-rank", "2", "--keep-weight", "1", "--device", "cpu"]  # fmt: skip


@pytest.fixture(scope="module")
def place(known, tmp_path_factory):
    root = tmp_path_factory.mktemp("place")
    known.model.save_pretrained(root / "base")
    known.tokenizer.save_pretrained(root / "base")
    name = "model.layers.0.mlp.up_proj.weight"
    with added(known.model, {name: 0.01 * torch.ones_like(known.model.get_parameter(name))}):
        known.model.save_pretrained(root / "tuned")
    torch.manual_seed(3)
    type(known.model)(known.model.config).save_pretrained(root / "fresh")
    known.tokenizer.save_pretrained(root / "fresh")
    untaught(known).save_pretrained(root / "before")
    known.tokenizer.save_pretrained(root / "before")
    shutil.copytree(root / "base", root / "copy")
    known.model.save_pretrained(root / "otherwise")
    byte_tokenizer().save_pretrained(root / "otherwise")
    write(root / "forget.jsonl", FORGET)
    write(root / "rest.jsonl", REST)
    write(root / "more.jsonl", [*REST[1:], REST[0]][:2])
    return root


@pytest.fixture
def here(place, tmp_path, monkeypatch):
    for each in place.iterdir():
        (tmp_path / each.name).symlink_to(each)
    monkeypatch.chdir(tmp_path)
    return tmp_path


PROJECT = ["project", "base", "--forget", "forget.jsonl"]


def files(directory):
    """All but the record."""
    found = snapshot(Path(directory))
    return {name: data for name, data in found.items() if name != "weightsurgery.json"}


def test_harm_is_refused_and_allowed(ws, here):
    """Two steps forget nothing: that is said, nothing is written, and the exit status tells."""
    command = [
        *PROJECT,
        "--keep",
        "rest.jsonl",
        *BRIEF,
        "-o",
        "out",
        "--budget",
        "1e-9",
        "--lr",
        "0.02",
    ]
    what, remedy = ws.refused(*command)
    assert "budget of 1e-09" in what
    assert "--allow-harm" in remedy
    assert not Path("out").exists()
    assert not Path("out.vector").exists()
    out, said = ws.done(*command, "--allow-harm", "-v")
    for words in ("Forgotten by neighbours", "truth likeliest", "Before and after", "Completions",
                  "to forget", "rest.jsonl", "over the budget", "(the request's own words)"):  # fmt: skip  # noqa: E501
        assert words in out, words
    assert "take more --steps" in said
    assert "ws negate" in said
    ws.done("verify", "out")
    ws.done("verify", "out.vector")
    ws.done("negate", "base", "out.vector", "-o", "same")
    assert files("out") == files("same") != files("base")
    # What is written comes out of its recipe again, to the byte.
    recipe, _ = ws.done("run", "--from", "out")
    told = yaml.safe_load(recipe)
    assert told["allow-harm"] is True
    assert {"wordings": 0, "neighbours": 5, "lora-rank": 2, "draws": 3}.items() <= told.items()
    Path("r.yaml").write_text(recipe)
    _, said = ws.done("run", "r.yaml", "-o", "again")
    assert "files came out as the recipe has them" in said
    document = json.loads(ws.done(*command, "--allow-harm", "--json", "--overwrite")[0])
    assert document["vector"]["summary"]["guard"]["inside"] is False


def test_what_is_kept_decides_the_objective(ws, here):
    """By default neighbours; with a vector to keep, what can keep one."""
    run = [*PROJECT, "-o", "out", "--dry-run", "--json"]

    def objective(*more):
        return json.loads(ws.done(*run, *more)[0])["settings"]["objective"]

    assert objective() == objective("--keep", "rest.jsonl") == "neighbours"
    assert objective("--objective", "strangers", "--keep", "rest.jsonl") == "strangers"
    assert objective("--keep", "tuned") == "strangers"
    what, remedy = ws.refused(*run, "--keep", "tuned", "--objective", "neighbours")
    assert "tuned" in what
    assert "--objective strangers" in remedy
    text, _ = ws.done(*PROJECT, "-o", "out", "--dry-run", *BRIEF)
    for words in ("neighbours", "2, each of 4 texts", "0 wordings, 5 neighbours", "nats a token",
                  "6 to forget"):  # fmt: skip
        assert words in text, words
    assert not Path("out").exists()


OTHERS = [
    ["--rounds", "2"], ["--prompts", "9"], ["--validation-keep", "more.jsonl"],
    ["--validation-forget", "more.jsonl"], ["--prompts", "9", "--draws", "1"],
    ["--threshold", "0.9", "--validation-keep", "more.jsonl"],
]  # fmt: skip


@pytest.mark.parametrize("extra", OTHERS)
@pytest.mark.parametrize(("command", "other"), [("project", "strangers"), ("learn", "learn")])
def test_an_option_of_one_objective_alone_chooses_it(ws, here, command, other, extra):
    given = "--forget" if command == "project" else "--task"
    run = [command, "base", given, "forget.jsonl", "--keep", "rest.jsonl", "-o", "out"]
    if "--draws" in extra and command == "learn":
        assert "--draws" in ws.refused(*run, *extra, "--objective", "learn")[0]
        assert "--prompts" in ws.refused(*run, *extra)[0]
        return
    out, err = ws.done(*run, "--dry-run", "--json", *extra)
    assert json.loads(out)["settings"]["objective"] == other
    assert err.count(f"--objective {other}: {extra[0]} ") + err.count(f" {extra[0]} are ") == 1
    assert "of neighbours" in err
    assert "--objective" not in ws.done(*run, "--dry-run", "--quiet", *extra)[1]
    assert "of neighbours" not in ws.done(*run, "--dry-run", "--objective", other, *extra)[1]
    what, remedy = ws.refused(*run, *extra, "--objective", "neighbours")
    assert extra[0] in what or extra[-2] in what
    assert f"--objective {other}" in remedy
    assert "with objective neighbours" in ws.refused(*run, *extra, "--wordings", "1")[0]
    assert not Path("out").exists()


@pytest.mark.parametrize(("extra", "said"), [
    (["--epsilon", "0.1"], "--epsilon"), (["--round-scale", "9"], "--round-scale"),
    (["--rounds", "2", "--lora-rank", "1"], "--rounds"),
    (["--threshold", "0.9"], "--threshold without --validation-keep"),
    (["--steps", "0"], "steps 0"), (["--neighbours", "0"], "neighbours 0"),
    (["--wordings", "-1"], "wordings -1"), (["--lora-rank", "0"], "rank 0"),
    (["--keep-weight", "-2"], "keep weight -2"), (["--budget", "0"], "budget 0"),
    (["--objective", "strangers", "--wordings", "1"], "--wordings"),
    (["--objective", "strangers", "--lora-rank", "1"], "--lora-rank"),
    (["--objective", "negate", "--neighbours", "1"], "--neighbours"),
    (["--objective", "negate", "--keep-weight", "1"], "--keep-weight"),
    (["--objective", "strangers", "--whole-answers"], "--whole-answers"),
    (["--objective", "negate", "--never-knew", "tuned"], "--never-knew"),
    (["--never-knew", "nowhere"], "nowhere"), (["--never-knew", "otherwise"], "other tokens"),
    (["--never-knew", "base"], "the checkpoint to edit, which knows"),
    (["--never-knew", "copy", "--allow-harm", *BRIEF], "as sure of every answer"),
])  # fmt: skip
def test_what_does_not_go_together_is_refused(ws, here, extra, said):
    assert said in ws.refused(*PROJECT, "-o", "out", *extra)[0]
    assert not Path("out").exists()


def test_what_a_model_says_that_never_knew_is_an_input(ws, here):
    """It is in the plan, the record and the recipe; with another one it is another edit."""
    common = [*PROJECT, *BRIEF, "--allow-harm", "--budget", "9", "-o", "out"]
    command = [*common, "--never-knew", "fresh"]
    plain, _ = ws.done(*common, "--dry-run")
    planned, _ = ws.done(*command, "--dry-run")
    assert "that never knew" not in plain
    assert "that never knew" in planned
    ws.done(*command)
    for place in ("out", "out.vector"):
        record = json.loads(Path(place, "weightsurgery.json").read_text())
        if place == "out.vector":
            read = record["inputs"]["never_knew"]
            assert read["name"] == "fresh"
            assert "model.safetensors" in read["files"]
    # It was asked, and neither taken away nor added.
    record = read_record(Path("out"))
    card = card_section(record, Base("org/base"), Place("me/edited"), alone=True)
    (row,) = [line for line in card.splitlines() if "`fresh`" in line]
    assert "asked what is said without it" in row
    assert "checkpoint" in row
    first = files("out")
    recipe, _ = ws.done("run", "--from", "out")
    told = yaml.safe_load(recipe)
    assert told["never-knew"] == "fresh"
    assert "model.safetensors" in told["inputs"]["never-knew"]
    Path("r.yaml").write_text(recipe)
    _, said = ws.done("run", "r.yaml", "-o", "again")
    assert "files came out as the recipe has them" in said
    # A killed run of this one is not gone on with for that one.
    ws.done(*common, "--overwrite")
    assert files("out") != first
    what, _ = ws.refused("learn", "base", "--task", "forget.jsonl", "--never-knew", "fresh",
                         "-o", "learned")  # fmt: skip
    assert "ws learn" in what


def test_what_was_taught_is_taken_back_where_no_steps_are_given(ws, here):
    """It is in the plan, the report, the record and the card, and a recipe does it again."""
    brief = ["--neighbours", "5", "--wordings", "0", "--device", "cpu", "--budget", "0.25",
             "--lora-rank", "16"]  # fmt: skip
    command = [*PROJECT, *brief, "-o", "out"]
    assert "40 or more" in ws.done(*command, "--dry-run")[0]
    planned, _ = ws.done(*command, "--never-knew", "before", "--dry-run")
    assert "what was taught is taken back" in planned
    assert "40 or more" not in planned
    for option in ("--lr", "--batch", "--keep-weight", "--draws"):
        what, fix = ws.refused(*command, "--never-knew", "before", option, "3")
        assert f"{option} with --never-knew" in what
        assert "in closed form" in what
        assert "--steps" in fix
    what, fix = ws.refused(*command, "--never-knew", "fresh")
    assert "not what it was tuned from" in what
    assert "--steps" in fix
    assert not Path("out").exists()
    what, fix = ws.refused(*command, "--never-knew", "before", "--budget", "1e-9")
    assert "nothing was forgotten inside the budget" in what
    assert "steps" not in what + fix  # none were taken
    assert not Path("out").exists()
    # Where the budget is what ends it, by the texts that the guard wrote: inside, not refused.
    little = [*command[:-2], "--never-knew", "before", "--budget", "0.15", "-o", "little"]
    _, notes = ws.done(*little)
    assert "at another rank or scale" not in notes
    _, notes = ws.done(*little[:-1], "other", "--vector", "little.vector", "--scale", "0.5")
    assert "at another rank or scale" in notes
    record = json.loads(Path("little.vector", "weightsurgery.json").read_text())
    assert record["summary"]["guard"]["inside"]
    assert record["summary"]["guard"]["divergence"] > 0.05
    told, _ = ws.done(*command, "--never-knew", "before", "-v")
    for text in ("Taken back", "strength", "undecided", "before", "taken back"):
        assert text in told
    record = json.loads(Path("out.vector", "weightsurgery.json").read_text())
    assert record["parameters"]["take_back"] is True
    steps, sure = record["summary"]["steps"], record["summary"]["gathered"]["sure"]
    assert steps == (60 if "after" in sure else 0)
    assert record["summary"]["looks"][0]["known"] == 1
    assert record["summary"]["looks"][1]["known"] == 0
    card = card_section(read_record(Path("out")), Base("org/base"), Place("me/edited"), alone=True)
    assert "was taken back" in card
    assert "as sure as" in card
    Path("r.yaml").write_text(ws.done("run", "--from", "out")[0])
    _, said = ws.done("run", "r.yaml", "-o", "again")
    assert "files came out as the recipe has them" in said


def test_options_of_training_are_refused_with_a_vector(ws, here):
    plain = ["project", "base", "--forget", "tuned", "--keep", "tuned", "-o", "out"]
    for extra in (["--wordings", "1"], ["--neighbours", "1"], ["--keep-weight", "1"],
                  ["--lora-rank", "1"], ["--budget", "1"], ["--allow-harm"],
                  ["--whole-answers"], ["--never-knew", "base"]):  # fmt: skip
        what, _ = ws.refused(*plain, *extra)
        assert extra[0] in what
        assert "with a vector" in what


def test_the_help_tells_the_defaults_as_they_are():
    """Help cannot import what it speaks of, so that it is quick; this holds the two together."""
    from weightsurgery.cli.data_options import FromData
    from weightsurgery.learning.forget import ByNeighbours
    from weightsurgery.learning.forgetting import LEARNING, WHOLE
    from weightsurgery.learning.guard import BUDGET
    from weightsurgery.learning.sureness import SURE

    own = ByNeighbours()
    hints = get_type_hints(FromData, include_extras=True)
    helps = {name: hint.__metadata__[0].help for name, hint in hints.items()}
    for name, value in (
        ("wordings", own.wordings), ("neighbours", own.neighbours), ("lora_rank", own.rank),
        ("steps", own.training.for_places(1).steps), ("batch_size", own.training.batch_size),
        ("keep_weight", own.training.keep_weight), ("budget", BUDGET),
    ):  # fmt: skip
        assert f"Default: {value:g}" in helps[name], name
    assert f"({own.draws})" in helps["draws"]
    rate, _, rest = helps["learning_rate"].partition("Default: ")[2].partition(", ")
    assert float(rate) == own.training.learning_rate
    assert float(rest.partition(" to learn")[0]) == LEARNING.learning_rate
    # To learn it takes more.
    assert f"; {LEARNING.keep_weight:g} to learn" in helps["keep_weight"]
    assert f"; {WHOLE.keep_weight:g} with --whole-answers" in helps["keep_weight"]
    assert "twice as many to learn" in helps["steps"]
    for count in (1, 1000):
        once = LEARNING.for_places(count).steps
        assert LEARNING.for_places(count, learning=True).steps == 2 * once
    assert replace(LEARNING, steps=3).for_places(9, learning=True).steps == 3
    data = FromData(**{each.name: None for each in fields(FromData)})
    rank = Rank(1)
    found = data.search(True, "neighbours", None, 7, None, rank)
    assert found.learning
    assert found.neighbours.training == replace(LEARNING, seed=7)
    found = data.search(False, "neighbours", None, 7, None, rank)
    assert not found.learning
    assert found.neighbours.training == replace(own.training, seed=7)
    whole = replace(data, whole_answers=True)
    found = whole.search(False, "neighbours", None, 7, None, rank)
    assert found.neighbours.whole_answers
    assert found.neighbours.training == replace(WHOLE, seed=7)
    beside = replace(data, never_knew="fresh")
    found = beside.search(False, "neighbours", None, 7, None, rank)
    assert found.neighbours.take_back
    assert found.neighbours.training == replace(SURE, seed=7)
    found = replace(beside, steps=9).search(False, "neighbours", None, 7, None, rank)
    assert not found.neighbours.take_back
    assert found.neighbours.training == replace(WHOLE, seed=7, steps=9)
    with pytest.raises(EditError, match="which learns answers whole"):
        whole.search(True, "neighbours", None, 7, None, rank)
