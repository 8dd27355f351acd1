"""What a command says of itself, at the width of a small terminal and of a large one."""

import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import typer.main

from tests.cli.typed import WS
from weightsurgery.cli.main import app
from weightsurgery.errors import DataError, SelectionError

GROUP = typer.main.get_command(app)
COMMANDS = {
    (name, *rest): command
    for name, each in GROUP.commands.items()
    for rest, command in (
        [((inner,), one) for inner, one in each.commands.items()]
        if hasattr(each, "commands")
        else [((), each)]
    )
}
SCREEN = 40  # lines


def plain(text: str) -> str:
    """Without the frames of panels, in one line."""
    return re.sub(r"[│╭╮╰╯─\s]+", " ", text)


def names(command, rare: bool) -> set[str]:
    return {
        each.opts[0]
        for each in command.params
        if each.opts[0].startswith("--") and not each.hidden
        and (bool(each.rich_help_panel) and not each.required) == rare
    }  # fmt: skip


@pytest.mark.parametrize("columns", [80, 140])
@pytest.mark.parametrize("words", [(), ("attack",), *COMMANDS], ids=" ".join)
def test_help_is_one_screen(ws, monkeypatch, words, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    short, _ = ws.done(*words, "--help")
    assert len(short.splitlines()) <= SCREEN
    assert max(map(len, short.splitlines())) <= columns
    if words not in COMMANDS:
        for name in GROUP.commands if not words else GROUP.commands["attack"].commands:
            assert re.search(rf"^│ {name} ", short, re.M)
        assert "--version" in ws.done("--help-all")[0]
        return
    command = COMMANDS[words]
    whole, _ = ws.done(*words, "--help-all")
    rare = names(command, rare=True)
    assert all(f"{name} " in plain(short) for name in names(command, rare=False))
    # Names may be cut at the hyphens of a narrow column; whole they stand in the long help.
    assert not [name for name in rare if re.search(rf"│ {name} ", short)]
    assert all(name in plain(whole) for name in rare | names(command, rare=False))
    assert (f"{len(rare)} more with 'ws {' '.join(words)} --help-all'" in plain(short)) == bool(
        rare
    )
    # What was shortened for one is whole for the next.
    assert ws.done(*words, "--help")[0] == short


def examples() -> list[tuple[str, str]]:
    found = []
    for words, command in COMMANDS.items():
        lines = re.findall(r"^Example:  (ws (?:.*\\\n)*.*)", command.help, re.M)
        assert lines, words
        found += [(words, line) for line in lines]
    return found


@pytest.mark.parametrize(("words", "line"), examples(), ids=lambda each: str(each)[:40])
def test_examples_can_be_pasted(ws, monkeypatch, words, line):
    """They stand whole in 80 columns, and are command lines of their command."""
    monkeypatch.setenv("COLUMNS", "80")
    shown, _ = ws.done(*words, "--help")
    for part in line.split("\\\n"):
        assert part.strip() in shown
    typed = shlex.split(line.replace("\\\n", " ").partition(" > ")[0])
    assert typed[: 1 + len(words)] == ["ws", *words]
    with COMMANDS[words].make_context(words[-1], typed[1 + len(words) :]) as context:
        assert context.params
    with pytest.raises(typer.TyperException):
        COMMANDS[words].make_context(words[-1], [*typed[1 + len(words) :], "--nonsense"])


@pytest.mark.parametrize(("words", "meant"), [
    (["project", "--forgt", "x"], "Did you mean --forget?"),
    (["negate", "b", "v", "--out-dir", "x"], "No such option: --out-dir"),
    (["evaluate", "m", "--againts", "b"], "Did you mean --against?"),
    (["projct"], "Did you mean 'project'?"),
    (["attack", "relarn"], "Did you mean 'relearn'?"),
])  # fmt: skip
def test_a_mistyped_word_is_asked_about(ws, words, meant):
    code, out, err = ws.run(*words)
    assert (code, out) == (2, "")
    assert meant in plain(err)
    assert plain(err).count("Did you mean") <= 1


@pytest.mark.parametrize("quiet", [False, True])
def test_no_color_is_obeyed(monkeypatch, quiet):
    """In help too, which the library draws: colours are codes 30 to 49 and 90 to 107."""
    from tests.cli.typed import ws

    environment = {"TERM": "xterm-256color", "FORCE_COLOR": "1", "COLUMNS": "80"}
    for name, value in {**environment, **({"NO_COLOR": "1"} if quiet else {})}.items():
        monkeypatch.setenv(name, value)
    coloured = re.compile(r"\x1b\[(?:\d+;)*(?:3\d|4\d|9\d|10\d)(?:;\d+)*m")
    shown = ws("negate", "--help").stdout + ws("inspect", "./nowhere").stderr
    assert bool(coloured.search(shown)) == (not quiet)


@pytest.mark.parametrize(("more", "meant"), [
    (["--targets", "mpl"], "Did you mean 'mlp'? Choose one of: all,"),
    (["--side", "Rigth", "--keep"], "Did you mean 'right'?"),
    (["--dtype", "bfloat_16"], "Did you mean 'bfloat16'?"),
    (["--include", "mlp"], "Did you mean '*mlp*'?"),
    (["--include", "*.mpl.*"], "Did you mean '*.mlp.*'?"),
    (["--exclude", "model.layer.0.*"], "Did you mean 'model.layers.0.*'?"),
    (["--layer-scale", "*.q_prj.*=0"], "Did you mean '*.q_proj.*'?"),
])  # fmt: skip
def test_a_mistyped_value_is_asked_about(ws, llama, tmp_path, more, meant):
    command = ["negate", llama.base, llama.forget]
    if "--side" in more:
        command = ["project", llama.base, "--forget", llama.forget]
        more = [*more, llama.keep]
    _, remedy = ws.refused(*command, "-o", tmp_path / "out", *more)
    assert meant in remedy
    if "*" in meant:  # what is asked matches something
        near = meant.split("'")[1]
        more = [word.replace(word.split("=")[0], near) if "." in word or word == "mlp" else word
                for word in more]  # fmt: skip
        ws.done(*command, "-o", tmp_path / "out", *more)


def test_a_name_that_is_near_to_nothing_gets_the_list_alone(ws, llama, tmp_path):
    command = ["negate", llama.base, llama.forget, "-o", tmp_path / "out"]
    for more in (["--targets", "zzz"], ["--include", "zzz"]):
        assert "Did you mean" not in ws.refused(*command, *more)[1]
    assert "'npo'" in ws.refused("unlearn", llama.base, "--method", "nppo", "--forget", "x.jsonl",
                                 "-o", tmp_path / "out")[1]  # fmt: skip


@pytest.mark.parametrize(("row", "meant"), [
    ({"promt": "a", "completion": "b"}, "Did you mean 'prompt' by 'promt'?"),
    ({"Question": "a", "answer": "b"}, "Did you mean 'question' by 'Question'?"),
    ({"mesages": []}, "Did you mean 'messages' by 'mesages'?"),
    ({"zebra": "a"}, "Name them prompt and completion"),
])  # fmt: skip
def test_a_mistyped_column_is_asked_about(row, meant):
    from weightsurgery.learning.columns import layout_of

    with pytest.raises(DataError) as caught:
        layout_of("a.jsonl, line 1", row).example("a.jsonl, line 1", row)
    assert caught.value.remedy.startswith(meant)


def completed(words, option: str) -> list[str]:
    """What the shell is offered for the value of an option."""
    command = COMMANDS[words]
    (found,) = [each for each in command.params if option in each.opts]
    with command.make_context("ws", [], resilient_parsing=True) as context:
        return [each.value for each in found.shell_complete(context, "")]


def test_what_the_shell_completes_is_what_there_is():
    from weightsurgery.checkpoint.selection import TARGETS
    from weightsurgery.learning.attacks import ROUNDINGS
    from weightsurgery.learning.method import MODES
    from weightsurgery.learning.metric_names import DEFAULT, METRICS
    from weightsurgery.surgery.as_checkpoint import _STORED_AS
    from weightsurgery.unlearning.methods import METHODS

    assert completed(("negate",), "--targets") == [*TARGETS]
    assert completed(("unlearn",), "--method") == [*METHODS]
    assert completed(("identify",), "--mode") == [*MODES, "activations"]
    assert completed(("negate",), "--dtype") == [*_STORED_AS]
    assert set(completed(("attack", "quantize"), "--method")) == {*ROUNDINGS}
    metrics = completed(("evaluate",), "--metric")
    assert metrics[: len(DEFAULT)] == [*DEFAULT]
    choices = {each.choice for each in METRICS.values()}
    assert set(metrics) == {"all", "rouge_l_recall", "tofu", *choices}
    assert set(completed(("sweep",), "--metric")) == {k for k, v in METRICS.items() if v.share}
    # Whatever is offered for a name of a choice stands in its help.
    for words, command in COMMANDS.items():
        for each in command.params:
            if each.param_type_name == "option":
                offered = completed(words, each.opts[0])
                assert all(name in each.help for name in offered), (words, each.opts)


def test_an_attack_is_offered_the_metrics_that_it_accepts():
    from weightsurgery.learning.metric_names import choose

    with pytest.raises(SelectionError):
        choose(["tofu"])
    for kind in ("relearn", "quantize"):
        (option,) = [each for each in COMMANDS["attack", kind].params if each.name == "metric"]
        assert "tofu" not in option.help
        offered = completed(("attack", kind), "--metric")
        assert len(offered) >= 10
        assert all(choose([each]) for each in offered)


def test_bash_completes(tmp_path):
    """By the lines that --show-completion prints, in a real shell."""
    script = """
eval "$(ws --show-completion bash)"
try() { COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _ws_completion ws; echo "${COMPREPLY[*]}"; }
try ws unlearn m --method eu
try ws negate --targets a
try ws neg
try ws project --forg
"""
    path = os.pathsep.join([str(Path(WS).parent), os.environ["PATH"]])
    done = subprocess.run(
        ["bash", "--norc", "-c", script], env={**os.environ, "PATH": path, "SHELL": "/bin/bash"},
        capture_output=True, text=True, check=True, cwd=tmp_path,
    )  # fmt: skip
    assert done.stdout.splitlines() == ["eul", "all all-linear attention", "negate", "--forget"]
