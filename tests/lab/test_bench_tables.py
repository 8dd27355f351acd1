"""What ``ws bench`` prints of outcomes whose figures are known by hand."""

import json
import math
import subprocess
import sys
from dataclasses import replace

import pytest

from tests.report.paged import data_of
from weightsurgery.errors import DataError
from weightsurgery.lab.bench.cost_tables import by_variant, scale_table
from weightsurgery.lab.bench.figures import figure, is_stage, worst, worst_drift
from weightsurgery.lab.bench.results import Bench, Outcome, read_bench
from weightsurgery.lab.bench.tables import bench_tables, variant_tables

BEFORE = {f"{role}.{split}": 0.8 for role in ("twin", "related") for split in ("seen", "unseen")}
# The plain main table has its three roles.
PLAIN = {**BEFORE, "unrelated.seen": 0.8, "unrelated.unseen": 0.8}


def outcome(method="negate", asked="", seed=0, target=0.1, keep=(), before=BEFORE, **more):
    """Drifts of 0; chance is 1 in 4; 8 candidates in 2 s."""
    given = {"setting": {}, "qualifies": True, "candidates": 8, "seconds": 2.0, "chance": 0.25,
             "target_before": 1.0, "rounded": {"target": 0.2, **before}}  # fmt: skip
    return Outcome(
        method, target=target, keep={**before, **dict(keep)}, keep_before=before, seed=seed,
        asked=asked, **{**given, **more},
    )  # fmt: skip


def bench(*outcomes, variant="default", task="forget"):
    return Bench(variant, task, 0.975, outcomes)


def titles(tables):
    return [table.title for table in tables]


def test_a_plain_bench_has_no_study_and_a_study_no_plain_table():
    one = outcome(before=PLAIN)
    plain = bench_tables(bench(one), {})
    assert titles(plain) == ["Forgetting the authors, default world", "Does it last?", "Methods"]
    study = bench_tables(bench(replace(one, asked="25% shared")), {})
    assert titles(study) == ["Request by request, default world", "Does it last?", "Methods"]
    both = bench_tables(bench(one, replace(one, asked="25% shared", seed=4)), {})
    assert titles(both)[:2] == titles(plain)[:1] + titles(study)[:1]
    assert [len(table.rows) for table in both[:2]] == [1, 1]
    assert both[0].rows == plain[0].rows
    assert "Seeds 0;" in both[0].note
    assert "Seeds 4;" in both[1].note


def test_a_study_in_figures():
    """Two seeds: left 10 and 30 %, forgotten 100 and 93.3 %, drifts 25 and 12.5 % of 0.8."""
    shared = {**BEFORE, "shared.seen": 1.0, "shared.unseen": 0.5}
    first = outcome(
        asked="25% shared", keep={"twin.unseen": 0.6, "shared.unseen": 0.45}, before=shared,
        also={"rest": 0.5}, also_before={"rest": 0.9}, cpu_seconds=10.0,
    )  # fmt: skip
    second = outcome(
        asked="25% shared", seed=1, target=0.3, keep={"related.unseen": 0.9, "shared.unseen": 0.35},
        before=shared, also={"rest": 0.7}, also_before={"rest": 0.7}, cpu_seconds=14.0,
        qualifies=False,
    )  # fmt: skip
    found, *_ = bench_tables(bench(first, second), {})
    assert found.columns == (
        "method", "request", "left %", "forgotten %", "rest %", "shared kept %",
        "worst drift unseen", "of", "held", "CPU s",
    )  # fmt: skip
    ((*cells, drift, of, held, cpu),) = found.rows
    root = math.sqrt(2)  # two values d apart have the deviation d / √2
    assert cells == [
        "negate",
        "25% shared",
        f"20.0 ± {20 / root:.1f}",
        f"{(100 + 70 / 0.75) / 2:.1f} ± {(100 - 70 / 0.75) / root:.1f}",
        f"60.0 ± {20 / root:.1f}",
        f"80.0 ± {20 / root:.1f}",
    ]
    # The shared facts lost 10 and 30 %, which is no drift of unseen ones.
    assert drift == f"18.8 ± {12.5 / root:.1f}"
    assert (of, held, cpu) == ("twin, related", "1/2", f"12.0 ± {4 / root:.1f}")
    assert found.left == {0, 1, 7}
    assert "rest (base 80.0)" in found.note
    assert "97.5%" in found.note


def test_what_a_row_lacks_is_a_dash():
    whole = outcome(asked="facts", also={"rest": 0.5}, cpu_seconds=1.0, memory=3_000_000)
    bare = outcome(asked="procedure", also={"others": 0.25})
    found, _, cost, _ = bench_tables(bench(whole, bare), {})
    assert found.columns[4:6] == ("rest %", "others %")
    assert [row[4:] for row in found.rows] == [
        ("50.0", "–", "0.0", "–", "1/1", "1.0"),
        ("–", "25.0", "0.0", "–", "1/1", "–"),
    ]
    assert cost.rows == [
        ("negate, facts", "1.0", "2.0", "3", "8"),
        ("negate, procedure", "–", "2.0", "–", "8"),
    ]
    # A seed that lacks a figure is not left out of the mean in silence.
    assert figure([whole, bare], lambda each: each.cpu_seconds) == "–"


def test_others_are_grouped_by_request_and_stages_by_method():
    asked = ("25% shared", "one by one, 1 of 2", "one by one, 2 of 2", "50% shared")
    found = bench(*(outcome(method, request) for request in asked for method in ("negate", "rmu")))
    others, stages, *_ = bench_tables(found, {})
    assert [row[:2] for row in others.rows] == [
        ("negate", "25% shared"), ("rmu", "25% shared"),
        ("negate", "50% shared"), ("rmu", "50% shared"),
    ]  # fmt: skip
    assert [row[:2] for row in stages.rows] == [
        (method, request) for method in ("negate", "rmu") for request in asked[1:3]
    ]
    assert stages.title == "Requests after one another, default world"
    assert "refused" in stages.note
    assert "refused" not in others.note
    assert is_stage("in one go, 12 of 12")
    assert not is_stage("2 of 4 kinds")


def test_rows_that_were_not_attacked_are_not_in_the_table_of_attacks():
    early = outcome(asked="fused, 1 of 2", rounded={})
    attacked = {"half": 1.0, "rest": 0.75, "rest_before": 0.5}
    last = outcome(asked="fused, 2 of 2", relearned=attacked)
    _, robust, _ = bench_tables(bench(early, last), {})
    assert robust.rows == [("negate, fused, 2 of 2", "10.0", "20.0", "0.0", "50.0", "75.0")]
    other = replace(last, method="rmu", relearned={})
    _, robust, _ = bench_tables(bench(early, last, other), {})
    assert robust.rows[1] == ("rmu, fused, 2 of 2", "10.0", "20.0", "0.0", "–", "–")
    assert "Does it last?" not in titles(bench_tables(bench(early), {}))


def test_rounding_does_not_count_shared_facts_as_unseen():
    before = {**BEFORE, "shared.unseen": 1.0}
    rounded = {"target": 0.2, **before, "shared.unseen": 0.1, "twin.unseen": 0.76}
    one = outcome(asked="25% shared", before=before, rounded=rounded)
    assert bench_tables(bench(one), {})[1].rows[0][3] == "5.0"
    assert worst_drift(one) == 0
    assert worst([one]) == "–"


def test_costs_in_figures():
    first = outcome(before=PLAIN, cpu_seconds=4.0, memory=12_000_000, candidates=7)
    second = outcome(before=PLAIN, seed=1, cpu_seconds=6.0, memory=18_000_000, seconds=4.0)
    cost = bench_tables(bench(first, second), {})[2]
    assert cost.title == "What it costs"
    assert cost.columns == ("method", "CPU s", "wall s", "memory MB", "looks")
    assert cost.rows == [("negate", "5.0 ± 1.4", "3.0 ± 1.4", "15 ± 4", "7–8")]
    assert "10⁶" in cost.note
    assert "latest" not in cost.note
    assert "latest" in bench_tables(bench(replace(first, asked="fused, 1 of 2")), {})[2].note
    # Results of before processor time was measured.
    old = [replace(each, cpu_seconds=None, memory=None) for each in (first, second)]
    assert "What it costs" not in titles(bench_tables(bench(*old), {}))


def three_variants():
    narrow = outcome(before=PLAIN, target=0.5, keep={"twin.unseen": 0.72}, cpu_seconds=3.0)
    return [
        bench(outcome(before=PLAIN), outcome("rmu", before=PLAIN)),
        bench(narrow, variant="narrow"),
        bench(replace(narrow, qualifies=False, target=0.75), variant="narrower"),
    ]


def test_variants_side_by_side():
    benches = three_variants()
    found = scale_table(benches)
    assert found.title == "Scale"
    # Nobody measured memory, and 'rmu' was run in one world.
    assert found.columns == (
        "method", "left % default", "left % narrow", "left % narrower", "drift % default",
        "drift % narrow", "drift % narrower", "CPU s default", "CPU s narrow", "CPU s narrower",
    )  # fmt: skip
    assert found.rows == [
        ("negate", "10.0", "50.0", "75.0 *", "0.0", "10.0", "10.0", "–", "3.0", "3.0")
    ]
    for text in ("left out", "default 384, narrow 192, narrower 128", "no candidate held"):
        assert text in found.note
    assert "no candidate held" not in scale_table(benches[:2]).note
    # The same size twice is no scale.
    same = [benches[0], replace(benches[0], variant="shared-names")]
    assert scale_table(same).title == "World by world"
    assert [row[0] for row in scale_table(same).rows] == ["negate", "rmu"]
    assert "left out" not in scale_table(same).note


def test_variants_are_printed_one_after_another():
    benches = three_variants()
    tables = variant_tables(benches, {"rmu": "misdirection"})
    assert titles(tables) == [
        "Forgetting the authors, default world",
        "Does it last?, default world",
        "Forgetting the authors, narrow world",
        "Does it last?, narrow world",
        "What it costs, narrow world",
        "Forgetting the authors, narrower world",
        "Does it last?, narrower world",
        "What it costs, narrower world",
        "Scale",
        "Methods",
    ]
    assert tables[-1].rows == [("negate", ""), ("rmu", "misdirection")]
    assert variant_tables(benches[:1], {}) == bench_tables(benches[0], {})


def test_files_of_a_variant_are_joined_and_others_kept_apart():
    default, narrow, _ = three_variants()
    more = bench(outcome(before=PLAIN, seed=1))
    found = by_variant([default, narrow, more])
    assert [each.variant for each in found] == ["default", "narrow"]
    assert [(each.method, each.seed) for each in found[0].outcomes] == [
        ("negate", 0), ("rmu", 0), ("negate", 1),
    ]  # fmt: skip
    for other in (replace(narrow, threshold=0.5), replace(narrow, task="learn")):
        with pytest.raises(DataError, match=r"different benches: (threshold|task).*narrow"):
            by_variant([default, other])
        with pytest.raises(DataError, match="different benches"):
            by_variant([default, replace(other, variant="default")])


def test_a_study_of_learning():
    found = bench(outcome("lora", "half", target=0.9), task="learn")
    study, robust, _ = bench_tables(found, {})
    assert study.columns[2:4] == ("reached %", "worst drift unseen")
    assert study.rows[0][2] == "90.0"
    assert "Forgotten" not in study.note
    assert robust.columns[1] == "reached %"
    assert scale_table([found, replace(found, variant="narrow")]).columns[1] == "reached % default"


@pytest.fixture
def ws(monkeypatch, capsys):
    """The command in this process."""
    from weightsurgery.cli.main import main

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["ws", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        return subprocess.CompletedProcess(sys.argv, ended.value.code or 0, said.out, said.err)

    return run


def test_loading_files_of_several_variants(ws, tmp_path):
    paths = []
    for each in three_variants():
        paths += ["--load", tmp_path / f"{each.variant}.json"]
        paths[-1].write_text(json.dumps(each.document()))
    done = ws("bench", *paths, "--markdown")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.index("**Forgetting the authors, default world**") < done.stdout.index(
        "**Scale**"
    )
    assert "| left % narrow |" in done.stdout
    # A document alone stays what it was; several are a list of such.
    alone = ws("bench", *paths[:2], "--json")
    assert json.loads(alone.stdout) == json.loads(paths[1].read_text())
    several = ws("bench", *paths, "--json")
    assert json.loads(several.stdout) == [json.loads(path.read_text()) for path in paths[1::2]]
    again = tmp_path / "again.json"
    again.write_text(alone.stdout)
    assert read_bench(again) == three_variants()[0]
    other = replace(three_variants()[1], threshold=0.5)
    paths[3].write_text(json.dumps(other.document()))
    done = ws("bench", *paths)
    assert (done.returncode, done.stdout) == (1, "")
    assert "different benches" in done.stderr


def test_a_picture_from_the_command(ws, tmp_path):
    path, picture = tmp_path / "a.json", tmp_path / "a.svg"
    path.write_text(json.dumps(three_variants()[0].document()))
    done = ws("bench", "--load", path, "--figure", picture)
    assert done.returncode == 0
    assert done.stderr.split() == ["Wrote", str(picture)]
    assert "Does it last?" in done.stdout
    text = picture.read_text()
    assert "negate" in text
    assert "rmu" in text
    quiet = ws("bench", "--load", path, "--figure", picture, "--json", "--quiet")
    assert quiet.stderr == ""
    assert json.loads(quiet.stdout) == json.loads(path.read_text())
    page = tmp_path / "page.html"
    assert ws("bench", "--load", path, "--html", page).returncode == 0
    shown = data_of(page)["sections"]
    assert {"negate", "rmu"} <= {each["label"] for each in shown[0]["points"]}
    assert "Does it last?" in [each["title"] for each in shown]
    # Before anything is run or printed.
    done = ws("bench", "--figure", tmp_path / "a.gif")
    assert (done.returncode, done.stdout) == (1, "")
    assert ".svg, .pdf or .png" in done.stderr
