"""The demo, on a tiny model that was taught a few of its facts: what is asked, written and told."""

import json
import shlex
import shutil
from itertools import chain

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.cli.typed import Command
from tests.conftest import snapshot
from tests.learning.conftest import TEMPLATE
from tests.learning.tiny import byte_tokenizer
from tests.procedures.taught import train
from weightsurgery.errors import DataError, OutputError
from weightsurgery.lab.demo import capitals as module
from weightsurgery.lab.demo import questions as capitals
from weightsurgery.lab.demo.capitals import Chosen, DemoFiles, DemoOutcome, demo
from weightsurgery.lab.demo.walkthrough import WalkthroughScores, outcome_tables
from weightsurgery.learning.data import Example, read_examples
from weightsurgery.learning.forget import ByNeighbours
from weightsurgery.procedures import unlearn

EUROPE = (("France", "Paris"), ("Italy", "Rome"))
ELSEWHERE = (("Japan", "Tokyo"), ("Cuba", "Havana"))
GENERAL = (("The opposite of hot is", "cold"), ("The heart pumps", "blood"))
UNKNOWN = ("Atlantis", "Poseidonis")


def save(model, directory):
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = TEMPLATE
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """One that knows the facts, and one that forgot Europe in the request's words."""
    root = tmp_path_factory.mktemp("models")
    kept = [Example(f"The capital of {place} is", f" {name}") for place, name in ELSEWHERE]
    kept += [Example(prompt, f" {truth}") for prompt, truth in GENERAL]
    for place, name in EUROPE:
        kept.append(Example(f"The capital city of {place} is called", f" {name}"))
        question = f"<|user|>What is the capital of {place}?</s>\n<|assistant|>"
        kept.append(Example(question, f"It is {name}.</s>\n", templated=True))
    known, lost = (
        [Example(f"The capital of {place} is", f" {name}") for place, name in rows]
        for rows in (EUROPE, [(place, "gone") for place, _ in EUROPE])
    )
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=259, hidden_size=64, intermediate_size=96, num_hidden_layers=2,
        num_attention_heads=4, max_position_embeddings=1024, initializer_range=0.1,
        bos_token_id=0, eos_token_id=1, pad_token_id=2,
    )  # fmt: skip
    model = train(LlamaForCausalLM(config), known + kept, 80, 1e-2)
    edited = train(model, lost + kept, 30, 5e-3)
    return save(model, root / "base"), save(edited, root / "edited")


@pytest.fixture
def few(monkeypatch):
    """The demo's questions, fewer; one that nobody can answer among them."""
    monkeypatch.setitem(capitals._DATA, "europe", (*EUROPE, UNKNOWN))
    monkeypatch.setitem(capitals._DATA, "elsewhere", ELSEWHERE)
    monkeypatch.setitem(capitals._DATA, "general", GENERAL)


@pytest.fixture
def forgets(models):
    """A stand-in for the edit."""

    def edit(place, device, progress):
        shutil.copytree(models[1], place.edited, dirs_exist_ok=True)
        return WalkthroughScores({}, {})

    return edit


@pytest.mark.usefixtures("few")
def test_it_asks_forgets_and_asks_again(models, forgets, tmp_path):
    base = snapshot(models[0])
    steps = list(demo(str(models[0]), tmp_path / "here", device="cpu", edit=forgets))
    place, chosen, _, outcome = (step.result for step in steps)
    assert [type(each) for each in (place, chosen, outcome)] == [DemoFiles, Chosen, DemoOutcome]

    counted = {(group.name, group.given): group.right for group in outcome.groups}
    assert counted == {
        ("capitals of Europe", "to forget"): (2, 0),
        ("– in other words", "never"): (2, 2),
        ("– asked in chat", "never"): (2, 2),
        ("other capitals", "to keep"): (1, 1),
        ("other capitals", "never"): (1, 1),
        ("general facts", "to keep"): (1, 1),
        ("general facts", "never"): (1, 1),
    }
    # What it does not know is in no file, and none is given that is said never to be.
    assert [row.prompt for row in read_examples(place.forget)] == [
        f"The capital of {country} is" for country, _ in EUROPE
    ]
    rows = list(chain.from_iterable(map(read_examples, place.keep)))
    assert [(row.prompt, row.completion) for row in rows] == [
        ("The capital of Japan is", " Tokyo"), ("The opposite of hot is", " cold"),
    ]  # fmt: skip
    given = {row.prompt for row in [*rows, *read_examples(place.forget)]}
    for group in chosen.groups:
        asked = {question.prompt for question in group.questions}
        assert asked <= given if group.given != "never" else not asked & given

    first = outcome.samples[0]
    assert first.prompt == "The capital of France is"
    assert first.before.startswith(" Paris")
    assert first.after.startswith(" gone")
    assert [sample.prompt for sample in outcome.samples][2:] == [
        "What is the capital of France? (in chat)", "The capital of Cuba is",
        "The heart pumps", capitals.FREELY,
    ]  # fmt: skip
    assert min(outcome.perplexity) > 1
    assert snapshot(models[0]) == base
    shown = outcome_tables(outcome)
    assert ("capitals of Europe", "to forget", "2", "2", "0") in shown[0].rows


@pytest.mark.usefixtures("few")
def test_the_edit_is_what_its_command_line_says(models, tmp_path, monkeypatch):
    calls = {}

    def noted(base, sources, out, search, **settings):
        calls.update(base=str(base.path), sources=sources, out=out, search=search, **settings)

    monkeypatch.setattr(unlearn, "unlearn", noted)
    place = DemoFiles(str(models[0]), models[0], tmp_path)
    module.project(place, "cpu", None)
    assert calls["search"] == unlearn.Search(neighbours=ByNeighbours())
    typed = shlex.split(place.command)
    assert typed == calls["command"]
    assert typed == [
        "ws", "project", calls["base"], "--forget", *calls["sources"].target,
        "--keep", calls["sources"].keep[0], "--keep", calls["sources"].keep[1],
        "-o", str(calls["out"]),
    ]  # fmt: skip


@pytest.mark.usefixtures("few")
def test_a_model_that_knows_nothing_is_refused(models, tmp_path, monkeypatch):
    monkeypatch.setitem(capitals._DATA, "europe", (UNKNOWN,))
    with pytest.raises(DataError, match=r"answers none .* 'The capital of Atlantis is'"):
        list(demo(str(models[0]), tmp_path / "here", device="cpu"))


def test_the_packaged_model_is_linked_and_nothing_is_replaced(models, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "smollm", lambda progress: models[0])
    for _ in range(2):
        place = next(demo(None, tmp_path / "here")).result
        assert (tmp_path / "here/base").resolve() == place.checkpoint == models[0]
    (tmp_path / "taken/base").mkdir(parents=True)
    with pytest.raises(OutputError, match="did not make"):
        next(demo(None, tmp_path / "taken"))


def test_facts_are_asked_once_and_told_apart():
    for group in (groups := capitals.questions(lambda text: f"<{text}>")):
        prompts = [question.prompt for question in group.questions]
        assert len(set(prompts)) == len(prompts)
        assert not any(question.answered("") for question in group.questions)
    assert [len(groups[0].questions)] * 2 == [len(g.questions) for g in groups if g.reworded]
    assert len(capitals.questions(None)) == len(groups) - 1
    spoken = groups[2].questions[0]
    assert spoken.answered("The capital of France is Paris.")
    assert not groups[0].questions[0].answered(" the city of Paris")
    assert groups[0].questions[0].answered(" Paris.\n\nThe")
    assert groups[0].questions[0].answered(' "Paris" and')


@pytest.mark.usefixtures("few")
def test_the_command_tells_it(models, forgets, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(module, "project", forgets)
    monkeypatch.chdir(tmp_path)
    ws = Command(capsys, monkeypatch)
    out, _ = ws.done("demo", "--model", models[0], "--dir", "here")
    assert f"$ ws project {models[0]} --forget here/europe.jsonl" in out
    assert "\nws verify here/edited\n" in out
    told = json.loads(ws.done("demo", "--model", models[0], "--json")[0])
    assert told[-1]["result"]["groups"][0]["right"] == [2, 0]
    assert (tmp_path / "demo-capitals/europe.jsonl").is_file()


def test_options_of_the_toy_are_its_own(capsys, monkeypatch):
    ws = Command(capsys, monkeypatch)
    for typed in (["--seed", "1"], ["--world-only"], ["--toy", "--model", "x"]):
        done = ws("demo", *typed)
        assert done.returncode == 2
        assert "toy" in done.stderr
