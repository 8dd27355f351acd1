"""`ws evaluate --metric tofu` as a user meets it."""

import json

import pytest

from tests.scoring.conftest import tofu_world  # noqa: F401 : a fixture


@pytest.fixture
def command(tofu_world):  # noqa: F811
    root = tofu_world
    return ["evaluate", root / "taught", "--metric", "tofu", "--forget", root / "forget.jsonl",
            "--keep", root / "keep.jsonl", "--keep", root / "choices.jsonl"]  # fmt: skip


def test_tables_json_and_page_say_the_same(done, command, tofu_world, tmp_path):  # noqa: F811
    root = tofu_world
    more = ["--reference", root / "retrained", "--holdout", root / "holdout.jsonl",
            "--judge", root / "retrained"]  # fmt: skip
    out, _ = done(*command, *more, "--json", "-q")
    document = json.loads(out)
    found = document["tofu"]
    assert (document["sets"], document["tasks"]) == ([], [])
    assert found["forget_quality"] < 0.05
    text, _ = done(*command, *more, "--html", tmp_path / "page.html", "-q")
    assert f"{found['model_utility']:.4f}" in text
    assert f"{found['membership']['zlib']:.4f}" in text
    assert f"{found['priv_leak']:.1f} %" in text
    assert f"{found['memorisation']:.4f}" in text
    assert f"{found['privacy']:.4f}" in text
    assert "extraction strength" in text
    page = (tmp_path / "page.html").read_text()
    assert "PrivLeak" in page
    assert f"{found['model_utility']:.4f}" in page


def test_the_output_is_a_reference(done, command, tofu_world, tmp_path):  # noqa: F811
    root = tofu_world
    own = ["evaluate", root / "retrained", *command[2:], "--reference", root / "retrained"]
    out, _ = done(*own, "--json", "-q")
    (tmp_path / "of.json").write_text(out)
    by_file, _ = done(*command, "--reference", tmp_path / "of.json", "--json", "-q")
    plain, _ = done(*command, "--reference", root / "retrained", "--json", "-q")
    a, b = json.loads(by_file)["tofu"], json.loads(plain)["tofu"]
    assert a["forget_quality"] == b["forget_quality"]


def test_it_stands_beside_other_metrics(done, command, tofu_world):  # noqa: F811
    more = ["--metric", "nll", "--reference", tofu_world / "retrained"]
    out, _ = done(*command, *more, "--json", "-q")
    document = json.loads(out)
    assert [list(each["scores"]) for each in document["sets"]] == [["nll"]] * 3
    assert document["tofu"]["model_utility"] > 0


def test_what_does_not_go_together_is_refused(refused, command, tofu_world):  # noqa: F811
    what, remedy = refused(*command)
    assert "without a reference" in what
    assert "--reference" in remedy
    plain = ["evaluate", tofu_world / "taught", "--forget", tofu_world / "forget.jsonl"]
    for option in ("--reference", "--holdout", "--judge"):
        what, remedy = refused(*plain, option, tofu_world / "retrained")
        assert (what, remedy) == (f"error: {option} without --metric tofu", "Add --metric tofu.")
    what, _ = refused(*command, "--against", tofu_world / "retrained")
    assert "alone with --against" in what
    what, _ = refused(*command, "--in-context", "icul")
    assert "--in-context" in what
    what, _ = refused("attack", "quantize", *command[1:])
    assert "metric 'tofu'" in what
