"""What docs/formats.md says of --json is what commands print."""

import re
from dataclasses import fields
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs/formats.md"
NAME = re.compile(r"`(\w+)`(\??)")


def table() -> dict[str, tuple[set[str], set[str]]]:
    """By the first cell: the names that are always there, and those that may be."""
    text = PAGE.read_text().partition("## What --json prints")[2]
    found = {}
    for what, names in re.findall(r"^\| (.+?) \| (.+) \|$", text, re.M)[1:]:
        pairs = NAME.findall(names)
        found[what] = (
            {name for name, maybe in pairs if not maybe},
            {name for name, maybe in pairs if maybe},
        )
    return found


ROWS = table()
RECORD = next(what for what in ROWS if what.startswith("`ws negate`") and "dry" not in what)
DRY = next(what for what in ROWS if what.startswith("`ws negate`") and "dry" in what)
DIFF = "`ws diff`, `ws subspace`"
ADAPTER = next(what for what in ROWS if "--as adapter" in what)


def agree(what: str, names) -> None:
    always, maybe = ROWS[what]
    assert always <= set(names) <= always | maybe, what


def test_every_command_has_its_row():
    from tests.cli.test_helped import COMMANDS

    said = " ".join(ROWS) + PAGE.read_text().rpartition("\n`ws unlearn --list`")[2]
    for name, *_ in COMMANDS:
        assert f"ws {name}" in said or name in ("bench", "demo"), name
    assert len(ROWS) >= 15


@pytest.mark.parametrize(("what", "words"), [
    ("`ws inspect`", ["inspect", "BASE"]),
    (DIFF, ["diff", "BASE", "TUNED"]),
    (DIFF, ["subspace", "BASE", "TUNED", "-o", "OUT", "--rank", "2"]),
    (f"{DIFF} with `--dry-run`", ["diff", "BASE", "TUNED", "--dry-run"]),
    ("`ws overlap`", ["overlap", "BASE", "TUNED", "TUNED"]),
    (RECORD, ["negate", "BASE", "TUNED", "-o", "OUT"]),
    (RECORD, ["project", "BASE", "--forget", "TUNED", "--keep", "KEEP", "-o", "OUT"]),
    (RECORD, ["export", "BASE", "TUNED", "-o", "OUT", "--rank", "2", "--targets", "mlp"]),
    (DRY, ["add", "BASE", "TUNED", "-o", "OUT", "--dry-run"]),
    (ADAPTER, ["negate", "BASE", "TUNED", "-o", "OUT", "--as", "adapter", "--rank", "2",
               "--targets", "mlp", "--dry-run"]),
    (ADAPTER, ["export", "BASE", "TUNED", "-o", "OUT", "--rank", "2", "--targets", "mlp",
               "--dry-run"]),
    ("`ws doctor`", ["doctor"]),
])  # fmt: skip
def test_documents_have_the_names_of_the_page(ws, llama, tmp_path, what, words):
    places = {"BASE": llama.base, "TUNED": llama.forget, "KEEP": llama.keep, "OUT": tmp_path / "o"}
    agree(what, ws.document(*(places.get(word, word) for word in words)))
    if (tmp_path / "o").exists() and words[0] == "negate":
        agree("`ws verify`", ws.document("verify", tmp_path / "o"))


def test_classes_have_the_names_of_the_page():
    """Of what takes a model to print, by what is printed."""
    from weightsurgery.learning.evaluate import Evaluation
    from weightsurgery.procedures.attacked import Attack
    from weightsurgery.procedures.choice import Sweep

    def names(kind):
        return {each.name for each in fields(kind)}

    agree("`ws attack`", names(Attack))
    agree("`ws sweep`", names(Sweep) | {"base", "command"})
    agree("`ws evaluate`", names(Evaluation) | {"content", "tasks"})
