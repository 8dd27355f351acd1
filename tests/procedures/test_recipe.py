"""Recipes as documents: what is read, what is refused and where, and there and back."""

from __future__ import annotations

import json
import os
import time
from itertools import pairwise
from typing import Annotated

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st

from weightsurgery.checkpoint.record import EditRecord, versions
from weightsurgery.cli.main import app
from weightsurgery.cli.recipe import writing
from weightsurgery.errors import RecipeError, VerificationError
from weightsurgery.procedures.recipe.checks import check_inputs, check_result, differences
from weightsurgery.procedures.recipe.document import LARGEST_BYTES, parse, read_text
from weightsurgery.procedures.recipe.from_record import Written, recipe_data, recipe_of, recipe_text
from weightsurgery.procedures.recipe.recipe import read_recipe
from weightsurgery.procedures.recipe.settings import settings

ws = typer.Typer()
ws.callback()(lambda: None)


@ws.command()
def negate(
    base: Annotated[str, typer.Argument()],
    vectors: Annotated[list[str], typer.Argument()],
    out: Annotated[str, typer.Option("--out", "-o")],
    scale: Annotated[float, typer.Option()] = 1.0,
    seed: Annotated[int, typer.Option()] = 0,
    rank: Annotated[str | None, typer.Option()] = None,
    layer_scale: Annotated[list[str] | None, typer.Option()] = None,
    target: Annotated[str | None, typer.Option("--validation-forget", "--validation-task")] = None,
    trainer_arg: Annotated[list[str] | None, typer.Option()] = None,
    allow_unrelated: Annotated[bool, typer.Option("--allow-unrelated")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q")] = False,
    remote: Annotated[bool | None, typer.Option("--remote/--no-remote")] = None,
) -> None: ...


NEGATE = writing(typer.main.get_command(ws))["negate"]
COMMANDS = {"negate": NEGATE}

HEAD = "weightsurgery: 1\ncommand: negate\n"
WHOLE = HEAD + "base: ./base\nvectors: [./ft]\nout: ./edited\n"
DIGEST = "0123456789abcdef" * 4


def read(text: str):
    return read_recipe(text, "r.yaml", COMMANDS)


def test_a_recipe_is_read():
    text = (
        WHOLE
        + "scale: 1e-3\nrank: 64\nlayer-scale: [0-7=0.5, '*.mlp.*=0']\nallow-unrelated: true\n"
    )
    assert read(text).values == {
        "base": "./base", "vectors": ["./ft"], "out": "./edited", "scale": 0.001, "rank": "64",
        "layer_scale": ["0-7=0.5", "*.mlp.*=0"], "allow_unrelated": True,
    }  # fmt: skip
    assert read(WHOLE + "rank: null\n").values == read(WHOLE).values


@pytest.mark.parametrize(
    ("text", "value"),
    [("2", 2.0), ("-0.5", -0.5), ("1e-3", 1e-3), ("1.5E+2", 150.0), (".5", 0.5), ("+3.", 3.0)],
)
def test_numbers_are_numbers(text, value):
    """YAML 1.1 reads some of these as text."""
    assert read(f"{WHOLE}scale: {text}\n").values["scale"] == value


@pytest.mark.parametrize("word", ["no", "on", "1:30", "2020-01-01", "0x1F", "0o7", "1_000", "64"])
def test_words_are_words(word):
    """YAML 1.1 would read each of these as something else."""
    assert read(f"{WHOLE}rank: {word}\n").values["rank"] == word


@pytest.mark.parametrize(
    ("text", "where", "what", "remedy"),
    [
        # The document.
        ("", "r.yaml", "empty", "KEY: VALUE"),
        ("# nothing\n", "r.yaml", "empty", "KEY: VALUE"),
        ("- a\n- b\n", "line 1,", "no mapping", "KEY: VALUE"),
        ("just words", "line 1,", "no mapping", "KEY: VALUE"),
        (WHOLE + "scale: [1, 2\nrank: 3", "line 7,", "not YAML", "Correct"),
        (WHOLE + "\tscale: 1", "line 6,", "not YAML", "Correct"),
        (WHOLE + "rank: 'open\n", "line 7,", "not YAML", "Correct"),
        (WHOLE + "---\n" + WHOLE, "line 6,", "second document", "file of its own"),
        (WHOLE + "scale: 1\nscale: 2\n", "line 7,", "'scale' again, as in line 6", "one of them"),
        (WHOLE + "rank: &a 3\n", "line 6,", "anchor", "without"),
        (WHOLE + "rank: *a\n", "line 6,", "alias", "out"),
        (WHOLE + "rank: !!python/object/apply:os.getcwd []\n", "line 6,", "tag", "without"),
        (WHOLE + "rank: !!str 3\n", "line 6,", "tag", "without"),
        (WHOLE + "? [a, b]\n: 1\n", "line 6,", "no word", "KEY: VALUE"),
        (WHOLE + "rank: " + "[" * 500000, "line 6,", "too deeply", "--help"),
        (WHOLE + "<<: {scale: 3}\n", "line 6,", "takes no '<<'", "It takes"),
        (WHOLE + "rank: \x07", "line 6", "control character", "plain text"),
        # Version and command.
        ("command: negate\n", "r.yaml", "no line 'weightsurgery'", "weightsurgery: 1"),
        (WHOLE.replace(": 1", ": 2"), "line 1,", "format 2", "Update"),
        (WHOLE.replace(": 1", ": 0"), "line 1,", "no version", "weightsurgery: 1"),
        (WHOLE.replace(": 1", ": '1'"), "line 1,", "no version", "weightsurgery: 1"),
        (WHOLE.replace(": 1", ": [1]"), "line 1,", "no version", "weightsurgery: 1"),
        ("weightsurgery: 1\n", "r.yaml", "no line 'command'", "negate"),
        (WHOLE.replace("negate", "inspect"), "line 2,", "'inspect'", "Choose one of: negate"),
        (WHOLE.replace("negate", "[negate]"), "line 2,", "no command", "negate"),
        # Keys.
        (WHOLE + "scael: 1\n", "line 6, column 1", "takes no 'scael'", "Did you mean 'scale'?"),
        (WHOLE + "layer_scale: [0=1]\n", "line 6,", "layer_scale", "'layer-scale'?"),
        (WHOLE + "nonsense: 1\n", "line 6,", "takes no 'nonsense'", "It takes: base, vectors"),
        (WHOLE + "overwrite: true\n", "line 6,", "'overwrite' is no part", "ws run"),
        (WHOLE + "validation-task: a\nvalidation-forget: b\n", "line 7,", "another name", "one"),
        (HEAD + "vectors: [a]\nout: b\n", "r.yaml", "needs 'base'", "base: ..."),
        (HEAD + "base: a\nout: b\n", "r.yaml", "needs 'vectors'", "vectors: [...]"),
        (HEAD + "base: a\nvectors: [b]\n", "r.yaml", "needs 'out'", "out: ..."),
        # Values.
        (WHOLE + "scale: .nan\n", "line 6, column 8", "'.nan' is not a number", "number"),
        (WHOLE + "scale: nan\n", "line 6,", "'nan' is not a number", "number"),
        (WHOLE + "scale: .inf\n", "line 6,", "'.inf' is not a number", "number"),
        (WHOLE + "scale: 1e999\n", "line 6,", "too large", "number"),
        (WHOLE + "scale: '2.0'\n", "line 6,", "in quotes", "without quotes"),
        (WHOLE + "scale: two\n", "line 6,", "'two' is not a number", "number"),
        (WHOLE + "scale: 1_000\n", "line 6,", "not a number", "number"),
        (WHOLE + "scale: 0x10\n", "line 6,", "not a number", "number"),
        (WHOLE + "scale: true\n", "line 6,", "not a number", "number"),
        (WHOLE + "scale:\n", "line 6,", "nothing", "a number"),
        (WHOLE + "scale: [1]\n", "line 6,", "a list", "a number"),
        (WHOLE + "seed: 1.5\n", "line 6,", "not a whole number", "whole"),
        (WHOLE + "seed: 1e3\n", "line 6,", "not a whole number", "whole"),
        (WHOLE + "seed: 010\n", "line 6,", "not a whole number", "whole"),
        (WHOLE + f"seed: {'9' * 5000}\n", "line 6,", "not a whole number", "whole"),
        (WHOLE + "allow-unrelated: yes\n", "line 6,", "neither true nor false", "true or false"),
        (WHOLE + "allow-unrelated: 1\n", "line 6,", "neither true nor false", "true or false"),
        (WHOLE + "allow-unrelated: 'true'\n", "line 6,", "neither true", "true or false"),
        (WHOLE + "rank: true\n", "line 6,", "no text", "quotes"),
        (WHOLE + "rank: ''\n", "line 6,", "empty", "a text"),
        (WHOLE + "rank: {a: b}\n", "line 6,", "a mapping", "a text"),
        (WHOLE + "layer-scale: [[0=1]]\n", "line 6, column 15", "a list", "each item a text"),
        (WHOLE + "layer-scale: [~]\n", "line 6,", "~ is no text", "quotes"),
        (HEAD + "base: a\nvectors: []\nout: b\n", "line 4,", "an empty list", "at least one"),
        (HEAD + "base: a\nvectors: [b]\nout:\n", "line 5,", "nothing", "a text"),
        (WHOLE + 'rank: "a\\0b"\n', "line 6,", "no file name", "a text"),
        (WHOLE + 'rank: "\\ud800"\n', "line 6,", "no file name", "a text"),
        (WHOLE + "trainer-arg: [deepspeed=x.json]\n", "line 6,", "deepspeed", "lr_scheduler_type"),
        # What is to be checked.
        (WHOLE + "inputs: [a]\n", "line 6,", "no mapping", "KEY"),
        (WHOLE + f"inputs: {{keep: {{a: {DIGEST}}}}}\n", "line 6,", "no 'keep'", "leave out"),
        (WHOLE + "inputs: {base: {a: 12}}\n", "line 6,", "no SHA-256", "64 digits"),
        (WHOLE + "inputs: {base: x}\n", "line 6,", "no files", "SHA256"),
        (WHOLE + f"inputs: {{base: {{../a: {DIGEST}}}}}\n", "line 6,", "elsewhere", "file"),
        (WHOLE + f"inputs: {{base: {{/a: {DIGEST}}}}}\n", "line 6,", "elsewhere", "file"),
        (WHOLE + "inputs: {vectors: [{}, {}]}\n", "line 6,", "2 of 1 of 'vectors'", "order"),
        (WHOLE + "made-with: 3\n", "line 6,", "no mapping", "VERSION"),
        (WHOLE + "made-with: {numpy: 3}\n", "line 6,", "'numpy'", "torch"),
        (WHOLE + "result: {a: b}\n", "line 6,", "no SHA-256", "64 digits"),
    ],
    ids=lambda value: value[-40:] if isinstance(value, str) else None,
)  # fmt: skip
def test_what_is_wrong_and_where(text, where, what, remedy):
    read(WHOLE)  # the rest of it is right
    began = time.monotonic()
    with pytest.raises(RecipeError) as caught:
        read(text)
    assert time.monotonic() - began < 5
    assert caught.value.what.startswith("r.yaml")
    assert where in caught.value.what
    assert what in caught.value.what
    assert remedy in caught.value.remedy
    assert "\n" not in caught.value.what + caught.value.remedy


def test_a_bomb_of_aliases_is_refused_at_its_first():
    bomb = "a: &a [x,x,x,x,x,x,x,x,x]\n"
    bomb += "".join(f"{b}: &{b} [{','.join(['*' + a] * 9)}]\n" for a, b in pairwise("abcdefghi"))
    with pytest.raises(RecipeError, match="line 1, column 4: an anchor"):
        parse(bomb, "r.yaml")


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (lambda path: path.mkdir(), "Is a directory"),
        (lambda path: None, "No such file"),
        (lambda path: path.write_bytes(os.urandom(64) + b"\xff\xfe"), "not UTF-8"),
        (lambda path: path.write_bytes("weightsurgery: 1".encode("utf-16")), "not UTF-8"),
        (lambda path: path.symlink_to(path), "symbolic links"),
        (lambda path: path.symlink_to("/dev/zero"), f"longer than {LARGEST_BYTES >> 10} KiB"),
        (lambda path: os.truncate(os.open(path, os.O_CREAT | os.O_WRONLY), 1 << 30), "longer than"),
    ],
)
def test_files_that_are_no_recipe(tmp_path, make, what):
    path = tmp_path / "r.yaml"
    make(path)
    with pytest.raises(RecipeError) as caught:
        read_text(str(path))
    assert what in caught.value.what
    assert caught.value.what.startswith(str(path))
    assert caught.value.remedy


def test_a_byte_order_mark_is_no_key(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text("\ufeff" + WHOLE, encoding="utf-8")
    assert read(read_text(str(path))).values["base"] == "./base"
    path.write_bytes(WHOLE.encode() + b"rank: 1\nlayers: \xff\n")
    with pytest.raises(RecipeError, match="line 7: not UTF-8"):
        read_text(str(path))


# Names a user may give: no controls, which YAML cannot hold as they are, and no NUL.
NAMES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1)
NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
VALUES = st.fixed_dictionaries(
    {"base": NAMES, "vectors": st.lists(NAMES, min_size=1), "out": NAMES},
    optional={
        "scale": NUMBERS.filter(lambda x: x != 1),
        "seed": st.integers(-(2**80), 2**80).filter(bool),
        "rank": NAMES,
        "layer_scale": st.lists(NAMES, min_size=1),
        "target": NAMES,
        "allow_unrelated": st.just(True),
    },
)


@given(VALUES, st.sampled_from([recipe_text, lambda written, _: json.dumps(recipe_data(written))]))
def test_what_is_written_is_read_back(values, written):
    """Any values, as YAML and as JSON: nothing is taken for a number, a date or a no."""
    recipe = Written(NEGATE, values, {}, {}, {}, {})
    assert read(written(recipe, "./any\nwhere")).values == values


@given(VALUES)
def test_the_command_line_says_the_same(values):
    """And no value of a recipe passes for an option: not even ``--overwrite`` as a base."""
    words = NEGATE.line(values)
    assert words[:2] == ["ws", "negate"]
    assert NEGATE.parsed(words[2:]) == values


def test_a_value_is_no_option():
    line = NEGATE.line({"base": "--overwrite", "vectors": ["-q"], "out": "--", "scale": -1.0})
    assert line == ["ws", "negate", "-o", "--", "--scale", "-1", "--", "--overwrite", "-q"]


def test_a_command_line_is_read_as_the_shell_has_it():
    line = "base ft:0.5 --scale=0.7 -qoout --layer-scale 0=1 --layer-scale 1=2 --no-remote"
    assert NEGATE.parsed(line.split()) == {
        "base": "base", "vectors": ["ft:0.5"], "scale": 0.7, "quiet": True, "out": "out",
        "layer_scale": ["0=1", "1=2"], "remote": False,
    }  # fmt: skip
    for wrong in ("base ft --nothing", "base ft -x", "base ft --scale", "base ft --scale two",
                  "base ft --scale nan", "base ft --overwrite=yes"):  # fmt: skip
        with pytest.raises(RecipeError):
            NEGATE.parsed(wrong.split())


def record(**changes) -> EditRecord:
    facts = {
        "kind": "checkpoint",
        "command": ["ws", "negate", "org/base", "org/ft@main:0.5", "-o", "out", "-q"],
        "parameters": {"edit": "negate", "scale": 0.75, "device": "cuda",
                       "selection": {"targets": "mlp"}, "storage": {"rounding": "nearest"}},
        "inputs": {
            "base": {"name": "org/base", "revision": "a" * 40, "files": {"b": DIGEST}},
            "vector": {"name": "org/ft@main", "revision": "c" * 40, "files": {"v": DIGEST}},
        },
        "files": {"model.safetensors": {"sha256": DIGEST, "bytes": 3}},
    }  # fmt: skip
    return EditRecord(**(facts | changes))


def test_hub_names_are_pinned_and_defaults_are_those_of_the_record():
    """Another version's default of --scale would be another edit: the record knows it was 0.75."""
    found = recipe_of(record(), "out", COMMANDS)
    assert found.given == {
        "base": f"org/base@{'a' * 40}", "vectors": [f"org/ft@{'c' * 40}:0.5"], "out": "out"
    }  # fmt: skip
    assert found.settled["scale"] == 0.75
    assert "quiet" not in found.given | found.settled
    assert found.inputs == {"base": [{"b": DIGEST}], "vectors": [{"v": DIGEST}]}
    assert found.result == {"model.safetensors": DIGEST}
    assert found.made_with == {"device": "cuda", **versions()}
    assert recipe_of(record(), "out", COMMANDS, out="new").given["out"] == "new"


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"command": ["ws", "inspect", "x"]}, "'ws inspect'"),
        ({"command": ["ws"]}, "no command line"),
        ({"command": ["ws", 3]}, "no command line"),
        ({"command": ["ws", "negate", "--help"]}, "no option --help"),
        ({"command": ["ws", "negate", "base"]}, "lacks 'vectors'"),
        ({"command": [], "parameters": {}}, "'checkpoint'"),
        ({"command": [], "parameters": {"edit": "project"}}, "'project'"),
        ({"command": [], "parameters": {"edit": "negate", "data": {}}}, "data sets"),
        ({"command": [], "inputs": {"base": 3}}, "damaged"),
        ({"parameters": {"selection": 3}}, "damaged"),
        ({"inputs": {"base": 3}}, "damaged"),
    ],
)
def test_records_that_are_no_recipe(changes, what):
    recipe_of(record(), "out", COMMANDS)
    with pytest.raises(RecipeError) as caught:
        recipe_of(record(**changes), "out", COMMANDS)
    assert caught.value.what.startswith("out: its record")
    assert what in caught.value.what
    assert caught.value.remedy


@pytest.mark.parametrize("called", ["precision", "dtype"])
def test_the_precision_of_a_training_is_read_by_its_former_name_too(called):
    """And is not taken for the dtype in which the checkpoint was stored."""
    unlearn = writing(typer.main.get_command(app))["unlearn"]
    parameters = {
        "edit": "unlearn", "settings": {}, "lora_rank": None, "chosen": True,
        "storage": {"dtype": "float16"}, "training": {called: "bfloat16", "steps": 2},
    }  # fmt: skip
    found = settings(EditRecord(kind="checkpoint", parameters=parameters), unlearn, {})
    assert (found["precision"], found["dtype"], found["steps"]) == ("bfloat16", "float16", 2)


def test_differences_that_may_change_bits_come_first():
    assert differences(versions()) == []
    found = differences({"safetensors": "0.0.1", "torch": "1.0", "device": "cuda"}, "cpu")
    assert [("may" in line, line.split()[4]) for line in found] == [
        (True, "torch"), (True, "cuda,"), (False, "safetensors"),
    ]  # fmt: skip
    assert differences({"device": "cpu"}, "auto") == []
    assert "cuda" in differences({"device": "cpu"}, "cuda:1")[0]


def test_inputs_are_compared_before_anything_is_written(tmp_path):
    import hashlib

    base, data = tmp_path / "base", tmp_path / "facts.jsonl"
    base.mkdir()
    (base / "model.safetensors").write_bytes(b"weights")
    data.write_bytes(b"facts")
    digests = {text: hashlib.sha256(text.encode()).hexdigest() for text in ("weights", "facts")}
    text = HEAD + f"base: {base}\nvectors: ['{data}:1.5', b]\nout: {tmp_path}/out\n"
    text += f"inputs:\n  base: {{model.safetensors: {digests['weights']}}}\n"
    text += f"  vectors: [{{facts.jsonl: {digests['facts']}}}, {{}}]\n"
    seen: list[int] = []
    assert check_inputs(read(text), lambda stage, done, total: seen.append(total - done)) == 2
    assert seen == [5, 0]
    data.write_bytes(b"other")
    with pytest.raises(RecipeError, match=r"line 6.*vectors: .*facts\.jsonl has SHA-256") as caught:
        check_inputs(read(text))
    assert "revision" in caught.value.remedy
    assert "remove 'vectors' from 'inputs'" in caught.value.remedy
    (base / "model.safetensors").unlink()
    with pytest.raises(RecipeError, match=r"has no file model\.safetensors"):
        check_inputs(read(text))


def test_a_result_is_compared_with_the_record(tmp_path):
    (tmp_path / "weightsurgery.json").write_text(record().to_json())
    text = WHOLE + f"result: {{model.safetensors: {DIGEST}}}\n"
    assert check_result(read(WHOLE), str(tmp_path)) == 0
    assert check_result(read(text), str(tmp_path)) == 1
    for other in (text.replace("0123", "3210"), text.replace("model", "other")):
        with pytest.raises(VerificationError, match="was written, but"):
            check_result(read(other), str(tmp_path))
