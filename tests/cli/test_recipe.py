"""`ws run` as a user meets it: the same bytes again, or an error before anything is written."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import pytest
import torch
import typer
import yaml
from datasets import Dataset

import weightsurgery as library
from tests.cli.typed import Command, two_lines
from tests.cli.typed import ws as shell
from tests.conftest import Trio, snapshot
from tests.hub.standin import HubClient, StandIn
from tests.learning.conftest import byte_tokenizer, tiny_model, write
from weightsurgery.checkpoint.digests import content_sha256
from weightsurgery.cli.main import app
from weightsurgery.cli.recipe import writing
from weightsurgery.surgery.apply import AdapterStorage, apply
from weightsurgery.vectors.sources import open_keep
from weightsurgery.vectors.statistics import MappedStatistics


@pytest.fixture(scope="module")
def places(llama: Trio, tmp_path_factory) -> Path:
    """Base and vectors under short names, with statistics of inputs to keep."""
    root = tmp_path_factory.mktemp("recipes")
    for name in ("base", "forget", "keep"):
        (root / name).symlink_to(getattr(llama, name))
    done = shell("subspace", "base", "forget", "-o", "subspace", "--rank", "4", cwd=root)
    assert done.returncode == 0, done.stderr
    return root


@pytest.fixture
def here(places, tmp_path, monkeypatch) -> Path:
    """A directory that sees them all by relative paths."""
    for each in places.iterdir():
        (tmp_path / each.name).symlink_to(each.resolve())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def written(directory: str) -> tuple[dict[str, bytes], dict]:
    """All files but the record, and the record."""
    files = snapshot(Path(directory))
    return files, json.loads(files.pop("weightsurgery.json"))


EDITS = {
    "negate": ["negate", "base", "forget", "--scale", "0.7"],
    "add": ["add", "base", "forget:0.5", "keep:-0.25"],
    "layer scale": ["negate", "base", "forget", "--layer-scale", "0=0.5",
                    "--layer-scale", "*.mlp.*=0", "--scale=-2"],
    "include": ["add", "base", "forget", "--include", "*q_proj*", "--include", "*mlp*",
                "--exclude", "*down*", "--layers", "1-"],
    "dtype": ["negate", "base", "forget", "--dtype", "float32", "--targets", "mlp"],
    "stochastic": ["negate", "base", "forget", "--rounding", "stochastic", "--seed", "5"],
    "factors": ["add", "base", "subspace", "--scale", "1e-1"],
    "project": ["project", "base", "--forget", "forget", "--keep", "keep", "--rank", "6",
                "--side", "both", "--keep-rank", "3", "--scale", "2"],
    "energy": ["learn", "base", "--task", "forget", "--keep", "keep", "--energy", "0.8"],
    "auto": ["project", "base", "--forget", "forget", "--keep", "keep", "--rank", "auto"],
    "adapter": ["negate", "base", "forget", "--as", "adapter", "--rank", "3", "--targets", "mlp"],
    "project adapter": ["project", "base", "--forget", "forget", "--keep", "keep", "--as",
                        "adapter", "--rank", "4"],
    "soft": ["project", "base", "--forget", "forget", "--keep", "keep", "--keep", "subspace",
             "--rank", "6", "--side", "soft", "--epsilon", "0.03", "--scale", "2"],
    "soft adapter": ["learn", "base", "--task", "forget", "--keep", "keep", "--side", "soft",
                     "--as", "adapter", "--rank", "4"],
    "diff": ["diff", "base", "forget", "--targets", "attention"],
    "diff factors": ["diff", "base", "forget", "--rank", "2", "--workers", "1"],
    "subspace": ["subspace", "base", "forget", "--energy", "0.5"],
    "export": ["export", "base", "forget", "--rank", "3", "--targets", "all-linear",
               "--scale", "-1", "--dtype", "float32"],
}  # fmt: skip


@pytest.mark.parametrize("arguments", EDITS.values(), ids=EDITS)
def test_an_output_is_made_again(ws, here, arguments):
    """The recipe of an output gives the same bytes, and its own recipe is the same one."""
    ws.done(*arguments, "-o", "first")
    recipe, _ = ws.done("run", "--from", "first")
    Path("r.yaml").write_text(recipe)
    assert not Path("again").exists()
    _, said = ws.done("run", "r.yaml", "-o", "again")
    assert "input files are as the recipe has them" in said
    assert "files came out as the recipe has them" in said
    (files, first), (others, again) = written("first"), written("again")
    assert files == others
    assert any(name.endswith(".safetensors") for name in files)
    assert {**first, "command": None} == {**again, "command": None}
    # Another edit of these inputs has other bytes: the test would see one.
    if "--scale" in arguments:
        text = recipe[: recipe.index("result:")].replace("\nscale:", "\nscale: 3  #")
        Path("other.yaml").write_text(text)
        ws.done("run", "other.yaml", "-o", "other")
        assert written("other")[0] != files
    # What was not given is written out: the recipe of what it made says as much.
    from_again = yaml.safe_load(ws.done("run", "--from", "again", "-o", "first")[0])
    assert from_again == yaml.safe_load(recipe)


SPOKEN = {
    "negate": (
        ["negate", "base", "forget", "-o", "out", "--scale", "0.7", "--layer-scale", "0=0.5",
         "--rounding", "stochastic", "--seed", "3", "--allow-unrelated"],
        "{command: negate, base: base, vectors: [forget], out: out, scale: 0.7, layer-scale:"
        " [0=0.5], rounding: stochastic, seed: 3, allow-unrelated: true, targets: null}",
    ),
    "project": (
        ["project", "base", "--forget", "forget", "--keep", "keep", "-o", "out", "--rank", "4"],
        "{command: project, base: base, forget: forget, keep: [keep], out: out, rank: 4,"
        " side: right, scale: 1}",
    ),
    "diff": (
        ["diff", "base", "forget", "-o", "out"],
        "{command: diff, finetuned: forget, base: base, out: out}",
    ),
    "export": (
        ["export", "base", "subspace", "-o", "out", "--scale", "-1"],
        "{command: export, base: base, vectors: [subspace], out: out, scale: -1.0}",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("arguments", "recipe"), SPOKEN.values(), ids=SPOKEN)
@pytest.mark.parametrize("flags", [[], ["--json", "--overwrite"]])
def test_an_output_does_not_tell_who_typed_it(ws, here, arguments, recipe, flags):
    """A recipe and the command line that says the same: the same record, byte for byte."""
    printed = ws.done(*arguments, *sorted(flags, reverse=True))[0]
    direct = snapshot(here / "out")
    (here / "out").rename(here / "direct")
    Path("r.yaml").write_text(recipe.replace("{", "{weightsurgery: 1, ", 1))
    again, said = ws.done("run", "r.yaml", *flags)
    assert snapshot(here / "out") == direct
    assert again == printed
    assert f"ws {' '.join(arguments[:3])}" in said


def test_options_of_run(ws, here):
    Path("r.yaml").write_text(
        "{weightsurgery: 1, command: negate, base: base, vectors: [forget], out: out}"
    )
    _, said = ws.done("run", "r.yaml", "--dry-run")
    assert "The same as:  ws negate base forget -o out --dry-run" in said
    assert not Path("out").exists()
    out, said = ws.done("run", "r.yaml", "-q", "-o", "elsewhere", "--device", "cpu",
                        "--workers", "1")  # fmt: skip
    assert said == ""
    assert "edit check" in out
    assert not Path("out").exists()
    command = json.loads(Path("elsewhere/weightsurgery.json").read_text())["command"]
    assert command == [
        "ws", "negate", "base", "forget", "-o", "elsewhere", "--device", "cpu", "--workers", "1",
        "-q",
    ]  # fmt: skip
    what, remedy = ws.refused("run", "r.yaml", "-o", "elsewhere", "-q")
    assert "exists" in what
    assert "--overwrite" in remedy
    assert ws.document("run", "r.yaml", "-o", "elsewhere", "--overwrite")["kind"] == "checkpoint"


def test_json_is_a_recipe_too(ws, here):
    ws.done("negate", "base", "forget", "-o", "first")
    printed = ws.done("run", "--from", "first", "--json")[0]
    assert json.loads(printed) == yaml.safe_load(ws.done("run", "--from", "first")[0])
    Path("r.json").write_text(printed)
    ws.done("run", "r.json", "-o", "again")
    assert written("first")[0] == written("again")[0]


def test_a_recipe_goes_through_a_pipe(here):
    assert shell("negate", "base", "forget", "-o", "first", cwd=here).returncode == 0
    recipe = shell("run", "--from", "first", cwd=here)
    assert recipe.stderr == ""
    done = shell("run", "-", "-o", "again", cwd=here, input=recipe.stdout)
    assert done.returncode == 0, done.stderr
    assert written("first")[0] == written("again")[0]


def test_changed_inputs_are_named_and_nothing_is_written(ws, here, llama):
    """An input that changed since is found by its SHA-256, before the edit begins."""
    ws.done("negate", "base", "forget", "-o", "first")
    recipe, _ = ws.done("run", "--from", "first")
    Path("r.yaml").write_text(recipe.replace("- forget", "- keep"))
    before = sorted(os.listdir())
    what, remedy = two_lines_of(ws, "run", "r.yaml", "-o", "again")
    assert "r.yaml, line" in what
    assert "vectors:" in what
    assert "keep" in what
    assert "revision" in remedy
    assert "remove 'vectors' from 'inputs'" in remedy
    assert sorted(os.listdir()) == before
    # Without the list it is another edit, and its result is not the recorded one.
    text = recipe.replace("- forget", "- keep")
    Path("r.yaml").write_text(text[: text.index("inputs:")] + text[text.index("made-with:") :])
    what, remedy = two_lines_of(ws, "run", "r.yaml", "-o", "again")
    assert "again: was written, but" in what
    assert "remove 'result'" in remedy
    assert library.verify("again")


def two_lines_of(ws: Command, *arguments) -> tuple[str, str]:
    """The error's two lines, below notices."""
    code, _, said = ws.run(*arguments)
    assert code == 1
    lines = said.strip().splitlines()
    (start,) = (n for n, line in enumerate(lines) if line.startswith("error:"))
    assert len(lines) == start + 2
    return lines[start], lines[start + 1]


def test_errors_name_file_and_line(ws, here):
    Path("r.yaml").write_text(
        "weightsurgery: 1\ncommand: negate\nbase: base\nvectors: [forget]\nout: out\nscael: 1\n"
    )
    what, remedy = ws.refused("run", "r.yaml")
    assert what == "error: r.yaml, line 6, column 1: 'ws negate' takes no 'scael'"
    assert remedy == "Did you mean 'scale'?"
    what, _ = ws.refused("run", "nowhere.yaml")
    assert "nowhere.yaml" in what
    what, remedy = ws.refused("run", "--from", "base")
    assert "no weightsurgery.json" in what
    for usage in ([], ["r.yaml", "--from", "base"], ["--from", "base", "--overwrite"]):
        assert ws.run("run", *usage)[0] == 2


def test_a_strangers_recipe_does_no_more_than_an_edit(ws, here):
    """It replaces nothing, writes no page, and starts no other program."""
    home = here / "home"
    home.mkdir()
    (home / "page").write_text("mine")
    head = "weightsurgery: 1\ncommand: diff\nbase: base\nfinetuned: forget\nout: out\n"
    for line in ("overwrite: true", f"html: {home}/page", "json: true", "workers: 3"):
        Path("r.yaml").write_text(head + line + "\n")
        what, _ = ws.refused("run", "r.yaml")
        assert f"line 6, column 1: {line.split(':')[0]!r} is no part of an edit" in what
    for command in ("push", "evaluate", "bench", "run", "demo", "sweep", "verify"):
        Path("r.yaml").write_text(f"weightsurgery: 1\ncommand: {command}\nout: x\n")
        what, _ = ws.refused("run", "r.yaml")
        assert f"line 2, column 10: no command {command!r} that writes an output" in what
    (here / "--help").symlink_to(here / "forget")
    Path("r.yaml").write_text(head.replace("forget", "--help").replace("out: out", "out: '$(id)'"))
    ws.done("run", "r.yaml")
    assert library.verify("$(id)")
    command = json.loads(Path("$(id)/weightsurgery.json").read_text())["command"]
    assert command == ["ws", "diff", "-o", "$(id)", "--", "base", "--help"]
    assert (home / "page").read_text() == "mine"


def test_a_tilde_is_home(ws, here, monkeypatch):
    monkeypatch.setenv("HOME", str(here / "home"))
    (here / "home").mkdir()
    (here / "forget").rename(here / "home" / "forget")
    Path("r.yaml").write_text(
        "{weightsurgery: 1, command: negate, base: base, vectors: [~/forget], out: out}"
    )
    ws.done("run", "r.yaml")
    assert library.verify(here / "out")


ELSEWHERE = [
    "~/out",
    "~",
    "~root/x",
    "../x",
    "./../x",
    "a/../../x",
    "/tmp/x",
    ".",
    "./",
    "link/x",
    "link",
    ".config/autostart",
    "x/.hidden",
    ".local/lib/python3.11/site-packages",
    "./.x",
    "a/./../b",
]


@pytest.mark.parametrize("out", ELSEWHERE)
def test_a_recipe_alone_writes_below_the_current_directory(ws, here, tmp_path_factory, out):
    """A stranger's could leave there what is run later; the user may name any place."""
    outside = tmp_path_factory.mktemp("outside")
    (here / "link").symlink_to(outside)
    head = "weightsurgery: 1\ncommand: negate\nbase: base\nvectors: [forget]\n"
    Path("r.yaml").write_text(f"{head}out: {out!r}\n")
    before = sorted(here.iterdir()), sorted(here.parent.iterdir())
    for flags in ([], ["--dry-run"], ["--overwrite"]):
        what, remedy = ws.refused("run", "r.yaml", *flags)
        assert "line 5" in what
        assert repr(out) in what
        assert "-o" in remedy
    assert (sorted(here.iterdir()), sorted(here.parent.iterdir())) == before
    assert list(outside.iterdir()) == []
    ws.done("run", "r.yaml", "-o", outside / "x", "--dry-run")


def test_nor_does_it_save_a_vector_elsewhere(ws, here):
    head = "weightsurgery: 1\ncommand: project\nbase: base\nforget: forget\nkeep: [keep]\n"
    Path("r.yaml").write_text(f"{head}out: out\nvector: ../x\n")
    what, remedy = ws.refused("run", "r.yaml", "-o", "out")
    assert "line 7" in what
    assert "-o" not in remedy


def test_a_recipe_brings_no_code(ws, here):
    base = shutil.copytree(here / "base", here / "coded")
    (base / "usercustomize.py").write_text("")
    (base / "modeling_x.py").write_text("")
    config = json.loads((base / "config.json").read_text())
    config["auto_map"] = {"AutoModel": "modeling_x.Model"}
    (base / "config.json").write_text(json.dumps(config))
    head = "weightsurgery: 1\ncommand: negate\nbase: coded\nvectors: [forget]\nout: out\n"
    Path("r.yaml").write_text(f"{head}with-code: true\n")
    assert "has no place in a recipe" in ws.refused("run", "r.yaml")[0]
    Path("r.yaml").write_text(head)
    ws.done("run", "r.yaml", "-o", "without")
    assert not list(Path("without").glob("*.py"))
    ws.done("run", "r.yaml", "-o", "with", "--with-code")
    assert [each.name for each in Path("with").glob("*.py")] == ["modeling_x.py"]


def called(here: Path, edit: str, out: str) -> None:
    """An edit called from Python, without a command line."""
    with library.Checkpoint.open("base") as base:
        forget = library.open_vector(base, ["forget"])
        keep = library.open_vector(base, ["keep"])
        made = {
            "negate": lambda: library.Negate(0.5 * forget, 1.5),
            "add": lambda: library.Add(forget + -0.25 * keep),
            "project": lambda: library.Project(forget, (keep,), rank=library.Rank(5), side="both"),
            "energy": lambda: library.Project(forget, (keep,), rank=library.Energy(0.7), seed=4),
            "learn": lambda: library.Learn(keep, (forget,), rank=library.DonohoGavish(), scale=3),
        }[edit]()
        plain = edit in ("negate", "add")
        library.apply(
            made,
            base,
            out,
            selection=library.Selection("mlp", layers="1", scales=(("1", 0.5),)) if plain else None,
            storage=library.Storage("float32" if plain else None, seed=0 if plain else made.seed),
        )


@pytest.mark.parametrize("edit", ["negate", "add", "project", "energy", "learn"])
def test_what_was_called_from_python_is_made_again(ws, here, edit):
    called(here, edit, "first")
    assert json.loads(Path("first/weightsurgery.json").read_text())["command"] == []
    recipe, _ = ws.done("run", "--from", "first")
    Path("r.yaml").write_text(recipe)
    assert yaml.safe_load(recipe)["out"] == "first"
    ws.done("run", "r.yaml", "-o", "again")
    (files, first), (others, again) = written("first"), written("again")
    assert files == others
    for each in (first, again):
        del each["command"]
    assert first == again


def test_an_adapter_called_from_python_is_made_again(ws, here):
    with library.Checkpoint.open("base") as base:
        edit = library.Negate(library.open_vector(base, ["forget"]), 2.0)
        storage = AdapterStorage("float32", rule=library.Rank(3))
        apply(edit, base, "first", selection=library.Selection("all-linear"), storage=storage)
    recipe, _ = ws.done("run", "--from", "first")
    assert yaml.safe_load(recipe)["as"] == "adapter"
    Path("r.yaml").write_text(recipe)
    ws.done("run", "r.yaml", "-o", "again")
    assert written("first")[0] == written("again")[0]


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda f, k, s: library.Project(f, (f + k,), rank=library.Rank(2)), "keep1 is a sum"),
        (lambda f, k, s: library.Project(f, (), rank=library.Rank(2), keep_inputs=(s,)),
         "was made in memory"),
        (lambda f, k, s: library.Project(f, (k,), rank=library.Rank(2),
                                         keep_rank=library.Energy(0.5)), "energy 0.5"),
    ],
)  # fmt: skip
def test_what_no_command_line_says_is_refused(ws, here, make, why):
    with library.Checkpoint.open("base") as base:
        vectors = [library.open_vector(base, [name]) for name in ("forget", "keep")]
        names = [name for name, entry in base.entries.items() if "q_proj" in name]
        grams = {name: torch.eye(base.entry(name).shape[1]) for name in names}
        selection = library.Selection("all-linear", include=("*q_proj*",))
        edit = make(*vectors, MappedStatistics(grams))
        library.apply(edit, base, "first", selection=selection)
    what, remedy = ws.refused("run", "--from", "first")
    assert "none says the same" in what
    assert why in what
    assert "Python" in remedy


@pytest.fixture
def taught(tmp_path, monkeypatch) -> Path:
    """A model that runs, two fine-tunes of it, and data."""
    monkeypatch.chdir(tmp_path)
    tokenizer = byte_tokenizer()
    for name, seed in (("base", 0), ("forget", 1), ("keep", 2)):
        model = tiny_model(tokenizer)
        torch.manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.01 * bool(seed) * torch.randn_like(parameter))
        model.save_pretrained(name)
        tokenizer.save_pretrained(name)
    for name, prompt, completion in (
        ("facts.jsonl", "the sky is", " blue"),
        ("kept.jsonl", "a cat is", " soft"),
        ("other.jsonl", "a dog is", " loud"),
    ):
        write(Path(name), json.dumps({"prompt": prompt, "completion": completion}))
    return tmp_path


def test_kept_statistics_come_with_the_recipe(ws, taught):
    """Statistics beside vectors, weighted, and with the SHA-256 of all they are made of."""
    ws.done("identify", "base", "facts.jsonl", "-o", "stats", "--mode", "activations")
    ws.done("project", "base", "--forget", "forget", "--keep", "stats:2", "--keep", "keep",
            "--rank", "4", "--epsilon", "0.1", "-o", "first")  # fmt: skip
    for out in ("stats", "first"):
        recipe, said = ws.done("run", "--from", out)
        assert said == ""
        Path("r.yaml").write_text(recipe)
        ws.done("run", "r.yaml", "-o", f"{out}-again")
        assert written(out)[0] == written(f"{out}-again")[0]
    inputs = yaml.safe_load(recipe)["inputs"]
    assert [sorted(each)[-1] for each in inputs["keep"]] == [
        "weightsurgery.json",
        "model.safetensors",
    ]
    assert "model.safetensors" in inputs["forget"][0]
    with library.Checkpoint.open("base") as base:
        kept = open_keep(base, ["stats:2"]).inputs
        edit = library.Project(
            library.open_vector(base, ["forget"]), keep_inputs=kept, keep=(), rank=library.Rank(4)
        )
        library.apply(edit, base, "called")
    recipe, _ = ws.done("run", "--from", "called")
    assert yaml.safe_load(recipe)["keep"] == ["stats:2"]
    Path("r.yaml").write_text(recipe)
    ws.done("run", "r.yaml", "-o", "called-again")
    assert written("called")[0] == written("called-again")[0]


@pytest.mark.parametrize(
    "arguments",
    [
        ["project", "base", "--forget", "facts.jsonl", "--keep", "kept.jsonl", "--steps", "2",
         "--prompts", "20", "--lr", "0.1", "--objective", "strangers", "--allow-harm"],
        ["identify", "base", "facts.jsonl", "--epochs", "1", "--trainer-arg", "max_grad_norm=0.5",
         "--keep", "kept.jsonl", "--keep", "other.jsonl"],
    ],
    ids=lambda arguments: arguments[0],
)  # fmt: skip
def test_what_was_trained_is_trained_again(ws, taught, arguments):
    ws.done(*arguments, "-o", "first", "--device", "cpu")
    recipe, _ = ws.done("run", "--from", "first")
    if arguments[0] == "project":  # the vector beside it is of the same recipe, but no result
        beside, said = ws.done("run", "--from", "first.vector")
        assert "saved beside an edit" in said
        edit = [recipe[: recipe.index("# To check")], beside[: beside.index("# To check")]]
        assert edit[0].splitlines()[1:] == edit[1].splitlines()[1:]
        assert "result:" not in beside
    Path("r.yaml").write_text(recipe)
    _, said = ws.done("run", "r.yaml", "-o", "again")
    assert "files came out as the recipe has them" in said
    assert written("first")[0] == written("again")[0]
    kept = yaml.safe_load(recipe)["inputs"]["keep"]
    assert [list(each) for each in kept] == [["kept.jsonl"], ["other.jsonl"]][: len(kept)]
    path = Path("facts.jsonl")
    path.write_text(path.read_text().replace("blue", "grey"))
    what, _ = two_lines_of(ws, "run", "r.yaml", "-o", "third")
    assert "facts.jsonl has SHA-256" in what
    assert not Path("third").exists()


def test_a_record_and_a_recipe_with_a_former_name_are_read(ws, taught):
    """``--precision`` was ``--dtype``, in records of trainings and in recipes."""
    words = ["identify", "base", "facts.jsonl", "--steps", "2", "--device", "cpu"]
    ws.done(*words, "-o", "first", "--precision", "bfloat16")
    recipe = yaml.safe_load(ws.done("run", "--from", "first")[0])
    assert recipe["precision"] == "bfloat16"
    assert "dtype" not in recipe
    record = json.loads(Path("first/weightsurgery.json").read_text())
    training = record["parameters"]["training"]
    training["dtype"] = training.pop("precision")
    untyped = {key: each for key, each in recipe.items() if key != "precision"}
    for said in (["--dtype", "bfloat16"], []):  # typed, and settled in Python
        record["command"] = ["ws", *words, "-o", "first", *said]
        Path("first/weightsurgery.json").write_text(json.dumps(record))
        older = yaml.safe_load(ws.done("run", "--from", "first")[0])
        spoken = {"dtype": "bfloat16"} if said else {}
        assert older == {**untyped, **spoken, "precision": "bfloat16"}
    before = written("first")[0]
    for number, (said, same) in enumerate(
        [({"dtype": "bfloat16"}, True), ({**spoken, "precision": "bfloat16"}, True), ({}, False)]
    ):
        plain = {key: each for key, each in untyped.items() if key != "result"}
        Path("r.json").write_text(json.dumps({**plain, **said}))
        ws.done("run", "r.json", "-o", f"again{number}")
        assert (written(f"again{number}")[0] == before) is same


@pytest.mark.parametrize(
    "arguments",
    [
        ["identify", "base", "facts.jsonl"],
        [
            "project",
            "base",
            "--forget",
            "facts.jsonl",
            "--prompts",
            "20",
            "--objective",
            "strangers",
            "--allow-harm",
        ],
        ["unlearn", "base", "--method", "gradient-difference", "--forget", "facts.jsonl"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_data_of_one_name_are_told_apart(ws, taught, arguments):
    """Files in directories of their own, and where those are taken a saved data set."""
    places = ["a/keep.jsonl", "b/keep.jsonl"]
    for place, name in zip(places, ("kept", "other"), strict=True):
        Path(place).parent.mkdir()
        Path(f"{name}.jsonl").rename(place)
    if arguments[0] == "identify":
        row = {"prompt": "a fish is", "completion": " wet"}
        Dataset.from_list([row, row]).save_to_disk("c/saved")
        places.append("c/saved")
    keeps = [word for place in places for word in ("--keep", place)]
    ws.done(*arguments, *keeps, "-o", "first", "--device", "cpu", "--steps", "2")
    recipe, said = ws.done("run", "--from", "first")
    assert "will not be checked" not in said
    Path("r.yaml").write_text(recipe)
    read = [files(Path(place)) for place in places]
    wanted = [{each.name: content_sha256(each) for each in paths} for paths in read]
    assert yaml.safe_load(recipe)["inputs"]["keep"] == wanted
    ws.done("run", "r.yaml", "-o", "again")
    assert written("first")[0] == written("again")[0]
    for path in (paths[-1] for paths in read):
        before = path.read_bytes()
        path.write_bytes(before + b"\n")
        what, _ = two_lines_of(ws, "run", "r.yaml", "-o", "third")
        assert f"{path} has SHA-256" in what
        path.write_bytes(before)
    assert not Path("third").exists()


def files(data: Path) -> list[Path]:
    return sorted(data.iterdir()) if data.is_dir() else [data]


def test_names_on_the_hub_are_pinned(llama, tmp_path):
    """The recipe goes on to mean what was read, when the repository has moved on."""
    with StandIn() as server:
        hub = HubClient(server, tmp_path)
        for name in ("base", "forget"):
            files = {each.name: each for each in getattr(llama, name).iterdir()}
            repo = server.add(f"org/{name}", files)
        read = repo.head()

        def done(*arguments: str) -> str:
            ended = hub.ws(*arguments)
            assert ended.returncode == 0, ended.stderr
            return ended.stdout

        done("negate", "org/base", "org/forget@main:0.5", "-o", "first")
        repo.commit(dict.fromkeys(files) | {
            each.name: each.read_bytes() for each in llama.keep.iterdir()
        })  # fmt: skip
        assert repo.head() != read
        recipe = done("run", "--from", "first")
        assert yaml.safe_load(recipe)["vectors"] == [f"org/forget@{read}:0.5"]
        (tmp_path / "r.yaml").write_text(recipe)
        done("run", "r.yaml", "-o", "again")
        done("negate", "org/base", "org/forget@main:0.5", "-o", "moved-on")
    first, again, other = (snapshot(tmp_path / name) for name in ("first", "again", "moved-on"))
    shards = [name for name in first if name.endswith(".safetensors")]
    assert shards
    assert all(first[name] == again[name] for name in shards)
    assert any(first[name] != other[name] for name in shards)


def test_every_command_that_writes_a_record_is_there():
    """And no other; all their options are known by the names the command line has."""
    group = typer.main.get_command(app)
    found = writing(group)
    assert {"negate", "add", "project", "learn", "diff", "subspace", "identify", "export"} <= set(
        found
    )
    assert not {"run", "verify", "inspect", "evaluate", "sweep", "bench", "demo"} & set(found)
    for name, command in found.items():
        given = {each.name: each for each in command.fields}
        assert {"dry_run", "json", "quiet", "device"} <= set(given)
        assert given["out"].short == "o"
        assert given["overwrite"].in_recipes is False
        assert command.name == name
        # As typer itself has it.
        for each in group.commands[name].params:
            if each.name != "help":
                field = given.pop(each.name)
                options = {f"--{key}" for key in field.keys} | ({f"-{field.short}"} - {"-"})
                assert field.argument or options == set(each.opts), (name, field)
                assert {f"--{field.off}"} - {"--"} == set(each.secondary_opts)
                assert field.required == each.required
                assert field.argument == (each.param_type_name == "argument")
                assert field.multiple == (
                    each.nargs == -1 or bool(getattr(each, "multiple", False))
                )
        assert not given


def test_a_notice_ranks_other_versions(ws, here):
    ws.done("negate", "base", "forget", "-o", "first")
    path = Path("first/weightsurgery.json")
    text = json.loads(path.read_text())
    text["versions"] |= {"safetensors": "0.0.1", "torch": "1.0.0"}
    path.write_text(json.dumps(text))
    recipe, said = ws.done("run", "--from", "first")
    first, second = said.strip().splitlines()
    assert "torch 1.0.0" in first
    assert "bits may differ" in first
    assert "safetensors 0.0.1" in second
    assert "should not" in second
    Path("r.yaml").write_text(recipe)
    assert "torch 1.0.0" in ws.done("run", "r.yaml", "-o", "again")[1]
    assert ws.done("run", "r.yaml", "-o", "once-more", "-q")[1] == ""


def test_help_is_quick_and_imports_nothing_heavy():
    import subprocess

    code = (
        "import sys; sys.argv = ['ws', 'run', '--help']\n"
        "from weightsurgery.cli.main import main\n"
        "try: main()\nexcept SystemExit: pass\n"
        "print(sorted({'torch', 'numpy', 'yaml'} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )  # fmt: skip
    assert "Example:  ws run" in done.stdout
    assert done.stderr.strip() == "[]"
    assert two_lines(shell("run", "/nowhere"))
