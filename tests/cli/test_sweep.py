"""``ws sweep`` as a user meets it: choose, then do what the last line says."""

import json
import shlex

import pytest

from tests.conftest import snapshot
from tests.learning.tiny import OTHER, write
from tests.procedures.taught import Taught, teach
from tests.report.paged import section


@pytest.fixture(scope="module")
def taught(tmp_path_factory) -> Taught:
    return teach(tmp_path_factory.mktemp("taught"))


@pytest.fixture
def asked(taught) -> list:
    """A small sweep."""
    return [
        "sweep", taught.base, "--forget", taught.forget, "--keep", taught.keep,
        "--forget-data", taught.forget_data, "--keep-data", taught.keep_data,
        "--scales", "1,4,16", "--ranks", "4,16",
    ]  # fmt: skip


def test_the_last_line_does_the_chosen_edit(ws, asked, taught, tmp_path):
    before = snapshot(taught.base)
    document = ws.document(*asked)
    cell = document["cells"][document["chosen"]]
    out, err = ws.done(*asked)
    assert err == ""
    assert snapshot(taught.base) == before
    line = shlex.split(out.strip().splitlines()[-1])
    assert line == document["command"]
    assert line[-2:] == ["-o", "./edited"]
    ws.done(*line[1:-1], tmp_path / "edited")
    scores = ws.document(
        "evaluate", tmp_path / "edited", "--forget", taught.forget_data,
        "--keep", taught.keep_data, "--against", taught.base, "--metric", "begins-with",
    )["sets"]  # fmt: skip
    assert cell["forgetting"] > 50
    assert scores[0]["forgetting"]["begins_with"]["value"] == cell["forgetting"]
    assert scores[0]["before"]["begins_with"]["value"] == document["base_forget"] == 1.0
    assert scores[1]["scores"]["begins_with"]["value"] == cell["keep"][0]


def test_statistics_options_and_tests_reach_the_edit(ws, asked, taught, tmp_path):
    document = ws.document(
        *asked, "--keep", taught.statistics, "--epsilons", "0.01,1", "--sides", "both",
        "--exclude", "*.0.*", "--keep-rank", "3", "--seed", "7", "--basis", "sum",
        "--test-forget", taught.test_forget, "--test-keep", taught.test_keep,
        "--threshold", "0.5", "--metric", "exact-match", "--html", tmp_path / "page.html",
    )  # fmt: skip
    assert len(document["cells"]) == 3 * 2 * 2
    assert {cell["epsilon"] for cell in document["cells"]} == {0.01, 1.0}
    assert [each["name"] for each in document["test"]] == ["test-forget", "test-keep"]
    line = document["command"]
    for option, value in {
        "--side": "both", "--exclude": "*.0.*", "--keep-rank": "3", "--seed": "7", "--basis": "sum",
    }.items():  # fmt: skip
        assert line[line.index(option) + 1] == value
    assert line.count("--keep") == 2
    drawn = section(tmp_path / "page.html", "points")
    cells = [cell for cell in document["cells"] if not cell["failed"]]
    assert [(p["x"], p["y"]) for p in drawn["points"]] == [
        (100 * cell["worst_drift"], cell["forgetting"]) for cell in cells
    ]
    assert "--keep-rank 3" in section(tmp_path / "page.html", "record")["command"]
    record = ws.document(*line[1:-1], tmp_path / "edited")
    cell = document["cells"][document["chosen"]]
    for key in ("scale", "side", "epsilon"):
        assert record["parameters"][key] == cell[key]
    assert record["parameters"]["rank"] == str(cell["rank"])


def test_side_soft_and_its_ridge_reach_the_edit(ws, asked, tmp_path):
    document = ws.document(*asked, "--sides", "soft", "--epsilons", "0.01", "--exclude", "*.0.*")
    line = document["command"]
    assert line[line.index("--side") + 1] == "soft"
    assert line[line.index("--epsilon") + 1] == "0.01"
    record = ws.document(*line[1:-1], tmp_path / "edited")
    assert (record["parameters"]["side"], record["parameters"]["epsilon"]) == ("soft", 0.01)
    default = ws.document(*asked, "--sides", "soft", "--scales", "4,16", "--ranks", "16")
    assert len({cell["epsilon"] for cell in default["cells"]}) > 1


def test_where_nothing_qualifies_the_table_is_shown_and_the_code_is_1(ws, asked):
    code, out, err = ws.run(*asked, "--scales", "256")
    assert code == 1
    assert "nearest" in out
    assert "ws project" not in out
    assert err.startswith("error: no cell keeps 97.5 % of every keep set")
    assert len(err.strip().splitlines()) == 2
    code, out, err = ws.run(*asked, "--scales", "256", "--json")
    document = json.loads(out)
    assert (code, document["chosen"], document["command"]) == (1, None, None)


def test_all_cells_on_request(ws, asked):
    few, _ = ws.done(*asked)
    every, _ = ws.done(*asked, "-v")
    assert len(every.splitlines()) >= len(few.splitlines())
    assert sum(" right " in line or " both " in line for line in every.splitlines()) >= 12


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--scales", ""], "a sweep over no scales"),
        (["--ranks", " "], "a sweep over no ranks"),
        (["--sides", " "], "a sweep over no sides"),
        (["--scales", "1,two"], "--scales 1,two"),
        (["--ranks", "1.5"], "--ranks 1.5"),
        (["--ranks", "auto"], "--ranks auto"),
        (["--scales", "1,1.0"], "1.0 twice among the scales"),
        (["--scales", "nan"], "scale nan"),
        (["--sides", "up"], "side 'up'"),
        (["--epsilons", "0.1"], "epsilons without activation statistics"),
        (["--sides", "soft", "--epsilons", "-1"], "epsilon -1"),
        (["--threshold", "1.5"], "threshold 1.5"),
        (["--threshold", "nan"], "threshold nan"),
        (["--metric", "perplexity"], "metric 'perplexity'"),
        (["--basis", "odd"], "basis 'odd'"),
        (["--batch-size", "0"], "a batch of 0"),
        (["--workers", "0"], "0 workers"),
        (["--include", "nothing"], "no tensor matches 'nothing'"),
        (["--keep-data", "missing.jsonl"], "missing.jsonl"),
        (["--device", "tpu"], "device 'tpu'"),
    ],
)
def test_refusals_in_two_lines(ws, asked, options, says):
    what, remedy = ws.refused(*asked, *options)
    assert says in what
    assert remedy


def test_what_the_base_does_not_know_is_refused(ws, asked, tmp_path):
    unknown = write(tmp_path / "unknown.jsonl", [OTHER[0].__class__("Is this known?", " No")])
    what, _ = ws.refused(*asked, "--keep-data", unknown)
    assert "unknown: the base's score is 0 (begins with the truth)" in what
