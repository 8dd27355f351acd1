"""The page: its numbers are the JSON's, nothing of a stranger's runs, and it stands alone."""

import base64
import hashlib
import math
import re
from itertools import pairwise

import pytest

from tests.report.paged import (
    HOSTILE,
    data_of,
    difference,
    evaluated,
    parts,
    section,
    tensors,
    tried,
)
from weightsurgery.report.matrices import tensor_map, unpacked
from weightsurgery.report.outputs import sections_of
from weightsurgery.report.page import page_text, write_page
from weightsurgery.report.sections import compared_texts, difference_sections
from weightsurgery.report.visible import visible

DOCUMENTS = {
    "diff": difference(tensors(2, 2, hostile=True)),
    "try": tried(),
    "evaluate": evaluated(),
}


@pytest.fixture(params=DOCUMENTS)
def page(request) -> str:
    return page_text(f"About {HOSTILE}", sections_of(DOCUMENTS[request.param]))


def test_every_number_of_every_tensor_is_the_documents():
    rows = tensors(3, 4)
    found = tensor_map("Change", rows)
    columns = unpacked(found["packed"])
    assert sorted(columns["name"]) == sorted(row["name"] for row in rows)
    by_name = {row["name"]: row for row in rows}
    for at, name in enumerate(columns["name"]):
        assert columns["shape"][at] == "×".join(map(str, by_name[name]["shape"]))
        for measure in found["measures"]:
            told, meant = columns[measure["key"]][at], by_name[name][measure["key"]]
            assert told == float(f"{meant:.{measure['digits']}g}"), (name, measure)


def test_a_cell_tells_of_its_own_tensors():
    rows = tensors(3, 4)
    found = tensor_map("Change", rows)
    columns = unpacked(found["packed"])
    keys = [each["key"] for each in found["measures"]]
    start = 0
    for layer, module, count, *values in found["cells"]:
        own = slice(start, start + count)
        start += count
        for name in columns["name"][own]:
            assert (f".layers.{layer}." in name) == (layer >= 0)
            assert re.search(re.escape(module).replace(r"\*", r"\d+"), name)
        norms = columns["norm"][own]
        moved = math.sqrt(sum(each**2 for each in norms))
        assert values[keys.index("norm")] == pytest.approx(moved, rel=1e-3)
        shares = columns["relative"][own]
        weights = sum((norm / share) ** 2 for norm, share in zip(norms, shares, strict=True))
        told = values[keys.index("relative")]
        assert told == pytest.approx(moved / math.sqrt(weights), rel=2e-3)
        mean = sum(columns["surviving"][own]) / count
        assert values[keys.index("surviving")] == pytest.approx(mean, rel=1e-3)
    assert start == len(rows) == found["count"]
    experts = [cell for cell in found["cells"] if "experts" in cell[1]]
    assert {cell[2] for cell in experts} == {4}
    assert len(experts) == 3 * 3


def test_ninety_thousand_tensors_with_their_singular_values_stay_under_three_megabytes():
    rows = tensors(61, 490)
    assert len(rows) > 89_000
    spectra = {row["name"]: [1 / (n + 1) for n in range(64)] for row in rows}
    sections = difference_sections(difference(rows), spectra)
    text = page_text("Large", sections)
    assert len(text.encode()) < 3_000_000
    (found,) = [each for each in sections if each["type"] == "map"]
    assert len(found["cells"]) == 2 + 61 * (4 + 3)
    columns = unpacked(found["packed"])
    assert len(columns["name"]) == len(rows)
    known = [each for each in columns["values"] if each]
    assert known
    for numbers, values in known[:100]:
        assert numbers[0] == 1
        assert numbers[-1] == 64
        assert values == [float(f"{1 / n:.4g}") for n in numbers]


def test_singular_values_are_whole_where_they_fit_and_stand_with_their_matrix():
    rows = tensors(1, 1)
    spectra = {rows[3]["name"]: [3.0, 2.0, 0.5]}
    columns = unpacked(tensor_map("Change", rows, spectra=spectra)["packed"])
    for name, values in zip(columns["name"], columns["values"], strict=True):
        assert values == ([[1, 2, 3], [3.0, 2.0, 0.5]] if name == rows[3]["name"] else None)
    assert "values" not in unpacked(tensor_map("Change", rows)["packed"])


def test_nothing_of_a_strangers_is_markup_or_steers(page):
    assert "\x1b" not in page
    assert "\u202e" not in page
    found = parts(page)
    outline = [tag for tag, _ in found.tags]
    assert outline.count("script") == 5
    assert "img" not in outline
    assert not any(key.startswith("on") for _, keys in found.tags for key in keys)
    told = data_of(page)
    assert told["title"] == f"About {visible(HOSTILE)}"
    held = str(told)
    if "packed" in held:
        held += str([unpacked(each["packed"]) for each in told["sections"] if "packed" in each])
    assert "<img src=x onerror" in held  # it is shown, as text
    assert "\x1b" not in held


def test_only_its_own_scripts_may_run_and_nothing_is_fetched(page):
    found = parts(page)
    (policy,) = [
        keys["content"] for tag, keys in found.tags
        if tag == "meta" and keys.get("http-equiv") == "Content-Security-Policy"
    ]  # fmt: skip
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe-eval" not in policy
    assert "'unsafe-inline'" not in policy.partition("script-src")[2].partition(";")[0]
    allowed = set(re.findall(r"'sha256-([^']+)'", policy))
    scripts = re.findall(r"<script>(.*?)</script>", page, re.S)
    digests = {
        base64.b64encode(hashlib.sha256(each.encode()).digest()).decode() for each in scripts
    }
    assert digests == allowed
    for tag, keys in found.tags:
        assert not {"src", "href"} & set(keys), tag
    assert not re.search(
        r"@import|url\((?!#)", "".join(t for tag, t in found.texts if tag == "style")
    )
    own = "".join(each for each in scripts if "Copyright" not in each[:200])
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacent|document\.write|\beval\(|fetch\(", own
    )


def test_the_same_sections_are_the_same_page_and_licences_are_in_it(tmp_path):
    sections = sections_of(DOCUMENTS["diff"])
    for name in ("a", "b"):
        write_page(tmp_path / name, "One", sections)
    text = (tmp_path / "a").read_bytes()
    assert text == (tmp_path / "b").read_bytes()
    assert b"Mike Bostock" in text
    assert b"Observable, Inc." in text
    assert b"THE SOFTWARE IS PROVIDED" in text


def test_texts_are_compared_word_by_word():
    before, after = "the capital is Paris, of course", "the capital is Lyon, of course"
    left, right = compared_texts(before, after)
    assert left == [["the capital is ", False], ["Paris", True], [", of course", False]]
    assert right == [["the capital is ", False], ["Lyon", True], [", of course", False]]
    for one, other in pairwise(["", "a", "a b", "b a\n", "a b"]):
        left, right = compared_texts(one, other)
        assert ("".join(t for t, _ in left), "".join(t for t, _ in right)) == (one, other)
        kept = ["".join(t for t, changed in side if not changed) for side in (left, right)]
        assert kept[0] == kept[1]
    same, _ = compared_texts("as it was", "as it was")
    assert same == [["as it was", False]]


def test_completions_say_which_changed():
    found = section(page_text("Tried", sections_of(tried())), "texts")
    assert found["names"] == ["base", "edited"]
    assert [row["changed"] for row in found["rows"]] == [True, False, True, True]
    assert "3 of 4" in found["note"]


def test_scores_are_the_documents_with_their_intervals():
    found = section(page_text("Scores", sections_of(evaluated())), "scores")
    first, second = (row for row in found["rows"] if row["share"])
    assert (first["before"], first["after"]) == ([0.75, 0.5, 1.0], [0.125, 0.0625, 1.0])
    assert second["after"] == [0.7, 0.35, 1.0]
    plain = [row for row in found["rows"] if not row["share"]]
    assert [row["after"] for row in plain] == [[3.25, None, None]] * 2
    table = section(page_text("Scores", sections_of(evaluated())), "table")
    # A phone shows the beginning: whose it is, and then what became of it.
    assert table["rows"][0][2:4] == ["75.0 % [50.0, 100.0]", "12.5 % [6.2, 100.0]"]
    assert table["columns"][0] == "set"
    assert table["columns"][-1] == "examples"
