"""Strangers' text on the terminal: shown letter by letter, never obeyed."""

import json
import unicodedata
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file

from tests.conftest import write_checkpoint
from weightsurgery.cli import console
from weightsurgery.cli.options import Show
from weightsurgery.report.tables import Table
from weightsurgery.report.visible import visible, visible_json

NASTY = {
    "\x1b[31m": "\\x1b[31m",
    "\x1b]0;title\x07": "\\x1b]0;title\\x07",
    "\x1b]52;c;aGk=\x1b\\": "\\x1b]52;c;aGk=\\x1b\\",
    "\x9b2J": "\\x9b2J",
    "\x9d8;;http://x\x9c": "\\x9d8;;http://x\\x9c",
    "a\rb\x08c\x7f": "a\\rb\\x08c\\x7f",
    "\u202egnp.exe": "\\u202egnp.exe",
    "\u2066x\u2069": "\\u2066x\\u2069",
    "a\u200bb\ufeff": "a\\u200bb\\ufeff",
    "\U000e0041": "\\U000e0041",
    "\u2028x": "\\u2028x",
    "[/zz] [link=http://x]y[/] [bold]": "[/zz] [link=http://x]y[/] [bold]",
    "a\\[/zz]": "a\\[/zz]",
    "\\[link=http://x]y": "\\[link=http://x]y",
    ":warning: ‖T‖ λ 中": ":warning: ‖T‖ λ 中",
    "a\tb": "a\\tb",
}
TEXT = "".join(NASTY)


def safe(text: str) -> None:
    for letter in text:
        assert letter == "\n" or unicodedata.category(letter) not in ("Cc", "Cf", "Zl", "Zp")


@pytest.mark.parametrize("text", NASTY)
def test_text_is_shown_as_it_is(capsys, text):
    quiet = Show(None)
    console.show(text, Table(text, (f"{text}h", "x"), [(text, "1")], text))
    console.notice(text, quiet)
    console.error(text, text)
    said = capsys.readouterr()
    safe(said.out + said.err)
    assert said.out.count(NASTY[text]) == 5
    assert said.err.count(NASTY[text]) == 3
    assert len(said.err.splitlines()) == 3


def test_a_newline_makes_no_line_of_its_own(capsys):
    console.notice("a\nerror: b", Show(None))
    console.error("a\nb", "c\nd")
    assert capsys.readouterr().err == "a\\nerror: b\nerror: a\\nb\nc\\nd\n"


@pytest.mark.parametrize("width", [80, 140])
def test_a_table_of_scores_fits_a_terminal(monkeypatch, capsys, width):
    monkeypatch.setattr(console._out, "width", width)
    columns = ("set", "", "metric", "before", "after", "beyond", "95 % interval")
    row = ("painters.unseen", "keep, 24 examples", "begins with the truth",
           "100.0 %", "100.0 %", "+3.1", "+0.0 – +100.0 %")  # fmt: skip
    assert sum(map(len, row)) + 2 * len(row) > 80
    console.show(Table("Scores", columns, [row], "", frozenset({0, 1, 2})))
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= width
    assert all(any(figure in line for line in lines) for figure in (*row[3:], "95 %"))
    # Where there is room nothing is folded.
    assert any(row[2] in line and row[0] in line for line in lines) == (width == 140)


@pytest.mark.parametrize("drawn", [False, True])
def test_a_terminal_breaks_between_words_and_never_a_command(monkeypatch, capsys, drawn):
    command = f"ws verify {'long/' * 12}name --and more-of-it"
    sentence = "What is said here goes on for longer than the line of a terminal that is 80 wide"
    monkeypatch.setattr(console.sys.stderr, "isatty", lambda: drawn)
    monkeypatch.setenv("COLUMNS", "80")
    console.notice(f"{sentence}; check it with:  {command}", Show(None))
    console.error(sentence, f"{sentence}.")
    lines = capsys.readouterr().err.splitlines()
    if not drawn:  # who reads a log gets each as one line
        assert [len(each) > 80 for each in lines] == [True, True, True]
        return
    assert lines.pop(2) == f"  {command}"
    assert all(len(each) <= 80 for each in lines)
    told = "What", "wide; check it with:", "error: What", "80 wide", "What", "wide."
    assert [
        line.startswith(a) or line.endswith(a) for line, a in zip(lines, told, strict=True)
    ] == [True] * 6


def test_documents_mean_what_they_meant(capsys):
    console.document({TEXT: [TEXT]})
    out = capsys.readouterr().out
    safe(out)
    assert json.loads(out) == {TEXT: [TEXT]}
    assert visible_json("‖T‖") == "‖T‖"
    assert visible("‖T‖ – λ") == "‖T‖ – λ"


def test_a_bar_s_stage_is_text(monkeypatch, capsys):
    monkeypatch.setattr(console._err, "_force_terminal", True)
    monkeypatch.setattr(console.sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    with console.progress(Show(None), "files") as bar:
        bar._begun -= 10
        bar("[/zz]\x1b]0;x\x07", 1, 2)
        bar("[/zz]\x9b", 2, 2)
    assert "]0;x" not in capsys.readouterr().err.replace("\\x1b]0;x", "")


def terminal(monkeypatch) -> None:
    """What bars take for one."""
    monkeypatch.setattr(console._err, "_force_terminal", True)
    monkeypatch.setattr(console._err, "is_interactive", True)  # else nothing is drawn
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr(console.sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")


def clocked(bar, now: list[float]) -> None:
    """A bar that goes by a clock of ours."""
    bar._bar.get_time = lambda: now[0]
    bar._bar.tasks[0]._get_time = bar._bar.get_time
    bar._bar.reset(bar._task)


def test_a_bar_of_counts_tells_its_rate(monkeypatch, capsys):
    terminal(monkeypatch)
    now = [0.0]
    with console.progress(Show(None), "steps") as bar:
        bar._begun -= 10
        bar("training", 0, 100)
        clocked(bar, now)
        for done in range(1, 9):
            now[0] += 0.5
            bar("training", done, 100)
        bar._bar.refresh()
        assert "2.0/s" in capsys.readouterr().err
        # What comes next has a pace of its own.
        bar("scoring", 0, 100)
        assert bar._bar.tasks[0].speed is None
        now[0] += 20
        bar("scoring", 1, 100)
        now[0] += 20
        bar("scoring", 2, 100)
        bar._bar.refresh()
        assert "20 s each" in capsys.readouterr().err


def test_a_stranger_s_checkpoint_is_looked_at(ws, tmp_path):
    names = [f"layers.{number}.{text}.weight" for number, text in enumerate(NASTY)]
    base = write_checkpoint(tmp_path / "base", {name: torch.eye(4) for name in names})
    config = {"architectures": [TEXT], "model_type": TEXT}
    (base / "config.json").write_text(json.dumps(config))
    for arguments in (["inspect"], ["inspect", "-v"], ["inspect", "--json"]):
        done = ws.done(arguments[0], base, *arguments[1:])
        safe("".join(done))
    (base / "model.safetensors").rename(base / "\x1b]0;x\x07.safetensors")
    safe("".join(ws.done("inspect", base, "-v")))
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    save_file({"x": torch.eye(2)}, adapter / "adapter_model.safetensors")
    (adapter / "adapter_config.json").write_text(json.dumps({"peft_type": TEXT}))
    what, _ = ws.refused("negate", base, adapter, "-o", tmp_path / "out")
    safe(what)


def test_a_recipe_of_strange_names_is_a_recipe(ws, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = "\u202egnp\x1b[31m"
    write_checkpoint(tmp_path / "base", {"w": torch.eye(4)})
    write_checkpoint(tmp_path / name, {"w": 2 * torch.eye(4)})
    ws.done("negate", "base", name, "-o", "out")
    recipe, _ = ws.done("run", "--from", "out")
    safe(recipe)
    assert yaml.safe_load(recipe)["vectors"] == [name]
    Path("r.yaml").write_text(recipe)
    ws.done("run", "r.yaml", "-o", "again")


@pytest.mark.parametrize(("unit", "rate"), [("bytes", "60.0 MB/s"), ("steps", "59,988,002/s")])
def test_threads_that_end_together_make_no_rate(monkeypatch, capsys, unit, rate):
    terminal(monkeypatch)
    now = [0.0]
    with console.progress(Show(None), unit) as bar:
        bar._begun -= 10
        bar("negate", 0, 10**9)
        clocked(bar, now)
        for done in (1, 2):  # both within a millisecond: 50 GB/s
            now[0] += 0.001
            bar("negate", done * 50 * 10**6, 10**9)
        bar._bar.refresh()
        assert "/s" not in capsys.readouterr().err
        for done in range(3, 8):
            now[0] += 1
            bar("negate", done * 50 * 10**6, 10**9)
        bar._bar.refresh()
        shown = capsys.readouterr().err
        assert rate in shown
        assert "0:00:1" in shown
