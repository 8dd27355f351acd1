"""The TOFU study: what is dealt to whom, that steps survive a kill, what is chosen and printed."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from typer.main import get_command

from tests.cli.typed import Command
from tests.learning import tiny
from weightsurgery.cli.main import app

PLACE = Path(__file__).parents[2] / "scripts" / "reproduce"
sys.path.insert(0, str(PLACE))

import tofu_data  # noqa: E402
import tofu_steps  # noqa: E402
import tofu_study  # noqa: E402
import tofu_tables  # noqa: E402

TINY = replace(tofu_data.SMALL, world=3)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Rows of the columns that TOFU has, as many as there must be."""
    root = tmp_path_factory.mktemp("tofu")

    def rows(name, count, **more):
        lines = [
            json.dumps({"question": f"{name} {n}?", "answer": f"{name} {n}.", **more})
            for n in range(count)
        ]
        (root / f"{name}.jsonl").write_text("\n".join(lines) + "\n")

    wrong = {"paraphrased_answer": "so", "perturbed_answer": ["no", "not so"]}
    wrong["paraphrased_question"] = "in other words?"
    rows("forget01_perturbed", 40, **wrong)
    rows("retain_perturbed", 400, **wrong)
    for name in ("real_authors_perturbed", "world_facts_perturbed"):
        rows(name, 100, perturbed_answer=["no"])
    rows("holdout01", 40)
    rows("holdout05", 80)
    rows("forget05_perturbed", 200, **wrong)
    return root


@pytest.mark.parametrize("size", [tofu_data.FULL, tofu_data.SMALL])
def test_nothing_that_is_scored_was_given_or_has_chosen(files, size):
    dealt = tofu_data.deal(files, size)
    asked = {name: {row["question"] for row in rows} for name, rows in dealt.items()}
    assert len(asked["forget"]) == 20 * size.forget
    assert asked["taught"] == asked["forget"] | asked["retrained"]
    assert not asked["forget"] & asked["retrained"]
    assert asked["forget"] == asked["choose.forget"] | asked["score.forget"]
    assert not asked["choose.forget"] & asked["score.forget"]
    parts = [asked[name] for name in ("keep", "choose.keep", "score.keep")]
    assert set.union(*parts) <= asked["retrained"]
    assert list(map(len, parts)) == [10 * size.keep, size.judged, 2 * size.judged]
    assert len(set.union(*parts)) == sum(map(len, parts))
    for name in ("score.forget", "score.keep", "choose.forget", "choose.keep"):
        assert all(row["perturbed_answer"] and row["paraphrased_answer"] for row in dealt[name])
    assert all(set(row) == {"question", "answer"} for row in dealt["taught"])
    for name in ("holdout", "real_authors", "world_facts"):
        assert not asked[name] & asked["taught"]


def test_a_missing_or_short_file_is_named(files, tmp_path):
    with pytest.raises(SystemExit, match=r"forget01_perturbed\.jsonl: no such file"):
        tofu_data.deal(tmp_path, TINY)
    with pytest.raises(SystemExit, match="100 rows, and 141 are needed"):
        tofu_data.deal(files, replace(TINY, world=101))


def test_files_that_are_the_same_stay(files, tmp_path):
    dealt = tofu_data.deal(files, TINY)
    tofu_data.write(tmp_path, dealt)
    written = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert len(written) == len(dealt)
    tofu_data.write(tmp_path, {**dealt, "keep": dealt["keep"][:2]})
    again = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert {name for name in written if written[name] != again[name]} == {"keep.jsonl"}


@pytest.fixture
def runner(tmp_path, monkeypatch):
    """With a `ws` that writes what it is told to, and counts."""
    program = tmp_path / "ws.py"
    program.write_text(
        "import pathlib, signal, os, sys\n"
        "words = sys.argv[1:]\n"
        f"counted = pathlib.Path({str(tmp_path / 'counted')!r})\n"
        "counted.open('a').write(words[0] + '\\n')\n"
        "if words[0] == 'fail': sys.exit('what\\nremedy')\n"
        "if words[0] == 'die': os.kill(os.getpid(), signal.SIGKILL)\n"
        "if '--json' in words: print('{\"said\": \"' + words[0] + '\"}')\n"
        "if '-o' in words: pathlib.Path(words[words.index('-o') + 1]).mkdir(parents=True)\n"
    )
    monkeypatch.setattr(tofu_steps, "WS", (sys.executable, str(program)))
    found = tofu_steps.Runner(tmp_path / "work")
    found.counted = lambda: (tmp_path / "counted").read_text().split()
    return found


def test_a_step_is_done_once_and_anew_for_another_command(runner):
    out = runner.directory("model", "add", "x")
    assert out.is_dir()
    assert runner.seconds("model") > 0
    runner.directory("model", "add", "x")
    assert runner.document("a/b.json", "score") == {"said": "score"}
    assert runner.document("a/b.json", "score") == {"said": "score"}
    assert runner.counted() == ["add", "score"]
    runner.directory("model", "add", "y")
    assert runner.document("a/b.json", "other") == {"said": "other"}
    assert runner.counted() == ["add", "score", "add", "other"]
    runner.drop("model")
    assert not out.exists()
    assert runner.seconds("model") == 0


def test_what_was_killed_is_done_again(runner):
    for step in (runner.directory, runner.document):
        with pytest.raises(KeyboardInterrupt):
            step("x", "die")
        assert not (runner.work / "x").exists()
    # Killed after the output, before the note; and after the note, before the output's name.
    runner.directory("model", "add")
    (runner.work / "done/model.json").unlink()
    runner.directory("model", "add")
    runner.document("said.json", "score")
    (runner.work / "said.json").unlink()
    assert runner.document("said.json", "score") == {"said": "score"}
    assert runner.counted() == ["die", "die", "add", "add", "score", "score"]


def test_a_command_that_outlives_its_study_is_waited_for(runner, tmp_path):
    """Killed outright, a study leaves its command at work: what that writes is nobody else's."""
    program = tmp_path / "slow.py"
    program.write_text("import os, sys, time\nprint(os.getpid(), file=sys.stderr, flush=True)\n"
                       "time.sleep(600)\n")  # fmt: skip
    driver = tmp_path / "driver.py"
    driver.write_text(
        f"import sys\nsys.path.insert(0, {str(Path(tofu_steps.__file__).parent)!r})\n"
        "import pathlib, tofu_steps\n"
        f"tofu_steps.WS = (sys.executable, {str(program)!r})\n"
        f"run = tofu_steps.Runner(pathlib.Path({str(runner.work)!r}))\n"
        "with run.alone():\n    run.directory('model', 'add')\n"
    )
    killed = subprocess.Popen([sys.executable, str(driver)], stderr=subprocess.DEVNULL)
    log, pid = runner.work / "log", None
    try:
        until = time.monotonic() + 60
        while pid is None and time.monotonic() < until:
            time.sleep(0.05)
            text = log.read_text() if log.exists() else ""
            pid = int(text) if text.endswith("\n") else None
        assert pid is not None
        killed.kill()
        killed.wait()
        with pytest.raises(SystemExit, match="is at work here"), runner.alone():
            pass
    finally:
        killed.kill()
        if pid is not None:
            os.kill(pid, signal.SIGKILL)
    until = time.monotonic() + 60
    while True:  # it is gone from /proc before the kernel has let go of its lock
        try:
            with runner.alone():
                runner.directory("model", "add")
            break
        except SystemExit:
            assert time.monotonic() < until
            time.sleep(0.05)
    assert runner.counted() == ["add"]


def test_a_failure_says_what_the_command_said(runner):
    with pytest.raises(tofu_steps.FailedError, match="what\nremedy"):
        runner.directory("model", "fail")


def test_the_best_of_those_that_keep_enough_is_chosen():
    def of(quality, utility):
        return {"forget_quality": quality, "model_utility": utility}

    assert tofu_study.chosen([of(0.1, 0.6), of(0.9, 0.53), of(0.5, 0.55)], 0.6) == (2, True)
    assert tofu_study.chosen([of(0.1, 0.2), of(0.9, 0.1)], 0.6) == (0, False)
    assert tofu_study.chosen([{"failed": "x"}, of(0.9, 0.6)], 0.6) == (1, True)
    assert tofu_study.chosen([{"failed": "x"}], 0.6) == (None, False)
    assert tofu_study.chosen([of(0.5, 0.6), of(0.5, 0.6)], 0.6) == (0, True)


@pytest.mark.parametrize("system", tofu_study.systems(), ids=lambda each: each.name)
def test_every_system_is_a_command_that_ws_takes(system):
    places = dict.fromkeys(
        ("base", "untaught", "forget", "keep", "forget_vector", "keep_vector"), "a place"
    )
    places |= {"steps": 3, "seed": 1}
    assert len(system.values) == tofu_data.FULL.candidates
    assert len(set(system.values)) == len(system.values)
    words = system.words(places, system.values[0])
    assert "a place" in words
    assert "-o" not in words
    assert system.values[0] in words
    assert system.name_of("1", words) != system.name_of("1", [*words, "--quiet"])
    command = get_command(app).commands[words[0]]
    command.make_context(words[0], [*words[1:], "-o", "out"])  # raises what is not an option


def test_few_systems_are_small():
    small = [each.name for each in tofu_study.systems() if each.small]
    assert small == ["npo", "gradient-difference", "negate", "project-data", "project-untaught"]


def test_the_study_goes_on_where_it_was_killed(files, tmp_path, capsys, monkeypatch):
    """Of a tiny model: every command is run once, but for the one that was killed."""
    size = replace(TINY, epochs=1, steps=2, candidates=1)
    base = tiny.save(tiny.tiny("llama"), tmp_path / "base")
    wanted = [each for each in tofu_study.systems() if each.name in ("npo", "negate")]
    ws, ran, killed = Command(capsys, monkeypatch), [], []

    def in_process(self, name, command, stdout):
        ran.append(name)
        if len(ran) in (3, 12, 15):  # teaching, judging, scoring
            killed.append(name)
            raise KeyboardInterrupt
        out, _ = ws.done(*command)
        if stdout is not None:
            stdout.write_text(out)
        self.noted(name, command, 1.0)

    monkeypatch.setattr(tofu_steps.Runner, "_run", in_process)

    def study():
        made = tofu_study.Study(base, files, tmp_path / "work", size, 0)
        made.references()
        return made.result([made.measure(system) for system in wanted])

    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            study()
    found = study()
    assert killed == [
        "retrained.vector",
        "choose/npo.1e-3." + killed[1][-13:],
        "more-forget.vector",
    ]
    assert len(ran) == 3 + len(set(ran))
    assert found["models"]["retrained"]["forget_quality"] == 1
    npo, negate = found["rows"]
    assert (npo["seconds"], negate["value"]) == (1.0, "1")
    assert 0 <= npo["score"]["model_utility"] <= 1
    assert npo["score"]["log_truth_ratios"] != found["models"]["taught"]["log_truth_ratios"]
    assert not list((tmp_path / "work/small/seed0").glob("npo*"))  # models are gone
    count = len(ran)
    assert study() == found
    assert len(ran) == count


def scores(quality, auc=0.75):
    value = {"value": 0.5, "interval": None}
    names = ("probability", "rouge_l_recall", "extraction_strength", "exact_memorisation")
    return {
        "forget_quality": quality,
        "model_utility": 0.4321,
        "sets": [{"scores": dict.fromkeys(names, value)}],
        "membership": dict.fromkeys(("loss", "zlib", "min_k", "min_k++"), auc),
        "log_truth_ratios": [0.0, 0.0],
        "priv_leak": -25.0,
        "fluency": {"value": 7.25},
    }


def test_tables_and_picture(tmp_path):
    candidate = {"value": "1", "forget_quality": 0.5, "model_utility": 0.25}
    rows = [
        {"system": "poor", "score": scores(1e-7), "counts": False, "value": "2", "seconds": 3.2,
         "candidates": [{"value": "2", "failed": "no\nreason"}]},
        {"system": "good", "score": scores(0.75), "counts": True, "value": "1", "seconds": 1.0,
         "candidates": [candidate]},
        {"system": "none", "counts": False, "seconds": 0.0, "candidates": []},
        {"system": "kept", "score": scores(0.75) | {"model_utility": 0.5}, "counts": True,
         "value": "1", "seconds": None, "candidates": [candidate]},
    ]  # fmt: skip
    models = dict.fromkeys(("base", "retrained"), scores(1.0, 0.5)) | {"taught": scores(1.0)}
    found = {"size": {"forget": 1, "keep": 2}, "seed": 7, "models": models, "rows": rows}
    lines = tofu_tables.render(found).splitlines()
    place = next(n for n, line in enumerate(lines) if line.startswith("| good |"))
    assert lines[place].split(" | ")[1:3] == ["0.750", "0.432"]
    # As good, and keeps more; how long it took is not known.
    assert lines[place - 1].startswith("| kept | 0.750 | 0.500 |")
    assert lines[place - 1].endswith(" | 1 |  |")
    assert lines[place + 1].startswith("| poor \\* | 1.0e-07 |")
    # 3 / (1 / 0.5 + 1 / 0.5 + 1 / 1): of AUCs of 0.75, half of 0.5 is left.
    good = "| good | 0.600 | 0.500 | 0.500 | 1.000 | 0.750 | 0.750 | 0.750 | 0.750 |"
    place = lines.index(good)
    retrained = lines[place - 3]
    assert retrained.startswith("| *retrained without it* | 0.750 | 0.500 | 1.000 | 1.000 | 0.500")
    assert "| good 1 | 0.500 | 0.250 | chosen |" in lines
    assert "| poor 2 |  |  | failed: reason |" in lines
    tofu_tables.draw(found, tmp_path / "frontier.svg")
    assert "model utility" in (tmp_path / "frontier.svg").read_text()


def test_the_tables_in_the_readme_are_those_of_the_results():
    folder = Path(tofu_tables.__file__).parent
    text = (folder / "README.md").read_text(encoding="utf-8")
    kept = sorted((folder / "results/tofu").glob("*.json"))
    assert kept
    for file in kept:
        scored, _ = tofu_tables.render(json.loads(file.read_text())).split(
            "Forget quality: p-value"
        )
        rows = [line for line in scored.splitlines() if line.startswith("|")]
        assert len(rows) > 4
        assert all(row in text for row in rows), file.name
