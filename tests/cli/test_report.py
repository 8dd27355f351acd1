"""Pages and pictures as a user asks for them: --html, --figure, and ws report."""

import json
import os
import re
import shutil

import pytest
import torch

from tests.report.paged import data_of, evaluated, section, tried
from weightsurgery.checkpoint.reader import Checkpoint
from weightsurgery.report.matrices import spectra_of, unpacked


def columns_of(page) -> dict:
    return unpacked(section(page, "map")["packed"])


def test_a_difference_with_its_singular_values(ws, llama, tmp_path):
    page = tmp_path / "page.html"
    arguments = ["diff", llama.base, llama.forget, "--rank", "4"]
    _, err = ws.done(*arguments, "--html", page)
    assert f"Wrote {page}." in err
    document = ws.document(*arguments)
    rows = {row["name"]: row for row in document["tensors"]}
    columns = columns_of(page)
    assert sorted(columns["name"]) == sorted(rows)
    for at, name in enumerate(columns["name"]):
        assert columns["norm"][at] == float(f"{rows[name]['norm']:.4g}")
        assert columns["cosine"][at] == float(f"{rows[name]['cosine']:.6g}")
        if columns["values"][at] is None:
            assert len(rows[name]["shape"]) == 1
            continue
        numbers, values = columns["values"][at]
        assert numbers == [1, 2, 3, 4]
        with Checkpoint.open(llama.base) as base, Checkpoint.open(llama.forget) as tuned:
            change = tuned.tensor(name).double() - base.tensor(name).double()
        assert values == pytest.approx(torch.linalg.svdvals(change)[:4].tolist(), rel=1e-3)
    assert section(page, "record")["command"].startswith("ws diff ")


def test_the_page_of_an_overlap(ws, llama, tmp_path):
    page = tmp_path / "page.html"
    arguments = ["overlap", llama.base, llama.forget, llama.keep, "--rank", "4"]
    ws.done(*arguments, "--html", page)
    document = ws.document(*arguments)
    grid = section(page, "grid")
    shared = document["mean"][0]["inputs"]
    assert grid["values"] == [[1.0, float(f"{shared:.4g}")], [float(f"{shared:.4g}"), 1.0]]
    (line,) = section(page, "lines")["series"]
    by_layer = {}
    for row in document["tensors"]:
        by_layer.setdefault(row["layer"], []).append(row["pairs"][0]["inputs"])
    assert [at for at, _ in line["points"]] == sorted(by_layer)
    for at, mean in line["points"]:
        assert mean == pytest.approx(sum(by_layer[at]) / len(by_layer[at]), rel=1e-3)
    assert section(page, "map")["count"] == len(document["tensors"])


@pytest.fixture(scope="module")
def projected(llama, subspace, tmp_path_factory):
    """An edit by a saved vector, and the page that was asked for with it."""
    from tests.cli.typed import ws as typed

    root = tmp_path_factory.mktemp("projected")
    done = typed("project", llama.base, "--forget", subspace, "--keep", llama.keep, "-o",
                 root / "out", "--rank", "4", "--html", root / "page.html")  # fmt: skip
    assert done.returncode == 0, done.stderr
    return root


def test_an_edit_and_its_report_are_the_same_page(ws, projected, subspace):
    out, page = projected / "out", projected / "page.html"
    record = json.loads((out / "weightsurgery.json").read_text())
    columns = columns_of(page)
    assert sorted(columns["name"]) == sorted(record["tensors"])
    known = spectra_of(subspace)
    for at, name in enumerate(columns["name"]):
        facts = record["tensors"][name]
        for key in ("relative_change", "survived", "surviving_fraction"):
            assert columns[key][at] == float(f"{facts[key]:.4g}"), key
        assert columns["values"][at][1] == [float(f"{each:.4g}") for each in known[name]]
        assert re.fullmatch(r"\d+×\d+", columns["shape"][at])
    survived = section(page, "lines")
    assert "survived" in survived["title"]
    ws.done("report", out)
    assert (projected / "out.html").read_bytes() == page.read_bytes()
    assert ws.done("verify", out)


def test_a_report_takes_scores_completions_and_a_file_alone(ws, projected, tmp_path):
    out = projected / "out"
    (tmp_path / "tried.json").write_text(json.dumps(tried()))
    (tmp_path / "scores.json").write_text(json.dumps(evaluated()))
    page = tmp_path / "page.html"
    more = ["--with", tmp_path / "tried.json", "--with", tmp_path / "scores.json"]
    ws.done("report", out, *more, "--html", page)
    kinds = [each["type"] for each in data_of(page)["sections"]]
    assert {"map", "texts", "scores"} <= set(kinds)
    assert kinds[-1] == "record"
    ws.done("report", tmp_path / "tried.json")
    assert section(tmp_path / "tried.json.html", "texts")["names"] == ["base", "edited"]
    told = ws.document("report", tmp_path / "tried.json", "--html", page)
    assert [each["type"] for each in told["sections"]] == ["texts"]


def test_what_is_no_output_is_refused(ws, projected, llama, tmp_path):
    what, remedy = ws.refused("report", llama.base)
    assert "no weightsurgery.json" in what
    bad = tmp_path / "bad.json"
    for text, says in (("{", "no JSON"), ("[]", "no JSON"), ("{}", "no document"),
                       ('{"checkpoint": 1, "sets": [1], "tasks": []}', "damaged")):  # fmt: skip
        bad.write_text(text)
        what, remedy = ws.refused("report", projected / "out", "--with", bad)
        assert str(bad) in what
        assert says in what
        assert "--json" in remedy
    foreign = {**evaluated(), "checkpoint": str(projected / "out")}
    bad.write_text(json.dumps(foreign))
    what, _ = ws.refused("report", projected / "out", "--with", bad)
    assert "does not say which bytes were scored" in what
    what, remedy = ws.refused("diff", llama.base, llama.forget, "--html", tmp_path / "no/page")
    assert "no/page: not a file that can be written" in what


@pytest.mark.parametrize("kind", ["svg", "pdf"])
def test_figures_are_the_pages_pictures(ws, projected, tmp_path, kind):
    pytest.importorskip("matplotlib")
    for name in ("a", "b"):
        ws.done("report", projected / "out", "--figure", tmp_path / f"{name}.{kind}")
    assert sorted(os.listdir(tmp_path)) == sorted(
        f"{name}{number}.{kind}" for name in "ab" for number in ("", "-2")
    )
    first = (tmp_path / f"a.{kind}").read_bytes()
    assert first == (tmp_path / f"b.{kind}").read_bytes()
    if kind == "svg":
        text = first.decode()
        assert "self_attn.q_proj" in text
        assert "relative change" in text
    else:
        assert first.startswith(b"%PDF")


def test_a_figure_that_cannot_be_is_refused_before_the_work(ws, llama, tmp_path):
    arguments = ["diff", llama.base, llama.forget, "-o", tmp_path / "out"]
    for name, says in (("a.gif", ".svg, .pdf or .png"), ("no/a.svg", "another file")):
        what, remedy = ws.refused(*arguments, "--figure", tmp_path / name)
        assert name in what
        assert says in remedy
        assert not (tmp_path / "out").exists()


def test_reports_of_vectors_and_adapters(ws, llama, subspace, tmp_path):
    page = tmp_path / "page.html"
    ws.done("report", subspace, "--html", page)
    columns = columns_of(page)
    assert sorted(columns["name"]) == sorted(spectra_of(subspace))
    assert all(len(values[0]) == 4 for values in columns["values"])
    adapter = tmp_path / "adapter"
    ws.done("negate", llama.base, subspace, "-o", adapter, "--as", "adapter")
    ws.done("report", adapter, "--html", page)
    record = json.loads((adapter / "weightsurgery.json").read_text())
    columns = columns_of(page)
    for at, name in enumerate(columns["name"]):
        assert columns["norm"][at] == float(f"{record['tensors'][name]['norm']:.4g}")
    told = json.loads(section(page, "record")["record"])
    assert told["summary"] == record["summary"]
    assert "tensors" not in told


def test_a_vector_that_was_replaced_since_says_nothing(ws, llama, subspace, tmp_path):
    """The values are those of what was written, whatever lies where the vector was."""
    vector, out = tmp_path / "vector", tmp_path / "out"
    shutil.copytree(subspace, vector)
    ws.done("negate", llama.base, vector, "-o", out)

    def told() -> dict:
        columns = columns_of_report(ws, out)
        found = zip(columns["name"], columns["values"], strict=True)
        return {name: pair[1] for name, pair in found if pair is not None}

    def written(name) -> torch.Tensor:
        with Checkpoint.open(llama.base) as base, Checkpoint.open(out) as edited:
            change = edited.tensor(name).double() - base.tensor(name).double()
        return torch.linalg.svdvals(change)

    saved = told()
    ws.done("subspace", llama.base, llama.keep, "-o", vector, "--rank", "2", "--overwrite")
    other = spectra_of(vector)
    for replaced in (True, False):
        found = told()
        assert found.keys() == saved.keys()
        for name, values in found.items():
            truth = written(name)[: len(values)]
            assert values == pytest.approx(truth.tolist(), abs=1e-3 * float(truth[0]))
            assert values[:2] != pytest.approx(other[name], rel=1e-2)
        if replaced:
            shutil.rmtree(vector)


def columns_of_report(ws, out) -> dict:
    ws.done("report", out)
    return columns_of(out.with_suffix(".html"))
