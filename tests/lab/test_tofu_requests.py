"""The TOFU study's requests one after another, and what is learned and forgotten again."""

import pytest
from typer.main import get_command

from tests.lab.test_tofu_robust import files, study, tofu_data, tofu_study  # noqa: F401
from weightsurgery.cli.main import app

import tofu_learn  # isort: skip
import tofu_requests  # isort: skip
import tofu_robust_tables  # isort: skip


@pytest.mark.parametrize("size", [tofu_data.FULL, tofu_data.SMALL])
def test_requests_ask_for_more_and_more(files, size):  # noqa: F811
    dealt = tofu_data.deal(files, size)
    found = tofu_requests.request_files(files, size, dealt)
    asked = {name: {row["question"] for row in rows} for name, rows in (dealt | found).items()}
    until = set()
    for number, count in enumerate((10, 10, 20), 1):
        request = asked[f"request.{number}"]
        assert len(request) == count
        assert not request & until
        until |= request
        assert asked[f"request.taught.{number}"] == asked["taught"] - until
        assert asked[f"request.keep.{number}"] < asked[f"request.taught.{number}"]
        assert asked[f"request.asked.{number}"] < until
        assert len(found[f"request.asked.{number}"]) == len(until) * 3 // 5
        assert not asked["request.score.keep"] & (until | asked[f"request.keep.{number}"])
    assert asked["request.all"] == until
    assert asked["request.score.keep"] <= asked["score.keep"]
    assert found["request.score.keep"]
    assert all(row["perturbed_answer"] for row in found["request.asked.3"])
    assert set(found["request.keep.1"][0]) == {"question", "answer"}


def test_nobody_knows_what_is_learned(files):  # noqa: F811
    found = tofu_learn.learn_files(files, tofu_data.FULL)
    dealt = tofu_data.deal(files, tofu_data.FULL)
    asked = {name: {row["question"] for row in rows} for name, rows in (dealt | found).items()}
    assert len(asked["learn"]) == 40
    assert asked["learn.asked"] < asked["learn"]
    assert not asked["learn"] & (asked["taught"] | asked["holdout"])


def rows_of(*names):
    values = {each.name: each.values[0] for each in tofu_study.systems()}
    return [{"system": name, "value": values[name], "score": {}} for name in names]


def test_requests_follow_one_another(study):  # noqa: F811
    made = study()
    made.references()
    count = len(study.ran)
    study.dies = [count + 9]
    rows = rows_of("negate", "npo")
    for _ in study.dies:
        with pytest.raises(KeyboardInterrupt):
            tofu_requests.Requests(made, study.data).result(rows, ["negate"])
    requests = tofu_requests.Requests(made, study.data)
    found = requests.result(rows, ["negate"])
    assert list(found) == ["retrained", "taught", "negate"]
    assert [len(scores) for scores in found.values()] == [3, 3, 4]
    assert [score["forget_quality"] for score in found["retrained"]] == [1, 1, 1]
    edits = requests.plans("negate", "1")
    bases = [edit.words[1] for edit in edits]
    taught = str(study.work / "taught")
    assert bases == [taught, *(str(study.work / edit.name) for edit in edits[:2]), taught]
    assert not any((study.work / edit.name).exists() for edit in edits)
    ratios = {tuple(score["log_truth_ratios"]) for score in found["negate"] + found["taught"]}
    assert len(ratios) == 7  # no two models say the same
    steps = requests.plans("npo", "1e-3")
    numbers = [edit.words[edit.words.index("--steps") + 1] for edit in steps]
    assert numbers == ["1", "1", "2", "4"]  # two for the twenty rows of the study
    # What was there before any teaching stays the same, however often the model is edited.
    befores = [edit.words[edit.words.index("--never-knew") + 1]
               for edit in requests.plans("project-untaught", "0.12")]  # fmt: skip
    assert befores == [str(made.base)] * 4
    count = len(study.ran)
    assert requests.result(rows, ["negate"]) == found
    assert len(study.ran) == count
    found["npo"] = [{"failed": "ws unlearn\nNaN\nremedy"}] * 4
    text = tofu_robust_tables.render_requests(found)
    last = found["negate"][-1]
    assert f"{last['model_utility']:.3f} |\n| npo | failed: remedy |" in text
    assert "| retrained | 1.000, " in text


def test_an_author_is_learned_and_forgotten(study, monkeypatch):  # noqa: F811
    made = study()
    made.references()
    learning = tofu_learn.Learning(made, study.data)
    assert learning.steps == 6
    before = learning.forgotten("project-untaught", "0.12").words
    assert before[before.index("--never-knew") + 1] == str(made.model)  # which never learned
    command, words = get_command(app).commands["learn"], [*learning.learned().words]
    command.make_context("learn", [*words[1:], "-o", "out"])  # raises what is not an option
    # That command asks a model of random weights for neighbours in vain: an edit in its place.
    other = ["add", str(made.model), str(study.work / "taught.vector")]
    monkeypatch.setattr(
        learning, "learned", lambda: tofu_requests.Planned("learned.data", other, [])
    )
    rows = rows_of("negate")
    found = learning.result(rows, ["negate"])
    assert list(found) == ["never learned", "ws learn", "LoRA", "LoRA, then negate"]
    known = {name: score["sets"][0]["scores"]["probability"]["value"]
             for name, score in found.items()}  # fmt: skip
    assert known["LoRA"] > known["never learned"]
    assert known["LoRA, then negate"] < known["LoRA"]
    assert found["never learned"]["forget_quality"] == 1
    assert len(found["LoRA"]["sets"]) == 5  # what was forgotten, four to keep
    assert [path.name for path in study.work.glob("learned*")] == []
    count = len(study.ran)
    assert tofu_learn.Learning(made, study.data).scored("learned.lora") == found["LoRA"]
    assert learning.result(rows, ["negate"]) == found
    assert len(study.ran) == count
    text = tofu_robust_tables.render_learned(found)
    assert f"| LoRA | {known['LoRA']:.3f} |" in text
