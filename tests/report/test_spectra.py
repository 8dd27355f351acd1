"""The singular values in pages: of dense changes, of adapters, and of what is left out."""

import shutil

import pytest
import torch

from tests.cli.typed import Command
from tests.conftest import write_checkpoint
from tests.report.paged import section
from weightsurgery.checkpoint.reader import Checkpoint
from weightsurgery.report.matrices import unpacked
from weightsurgery.report.spectra import shown
from weightsurgery.surgery.spectra import ELEMENTS, LEADING, leading_spectra
from weightsurgery.vectors.sources import open_vector

WIDE = "model.layers.0.mlp.up_proj.weight"  # decomposed by iteration
SMALL = "model.layers.0.self_attn.q_proj.weight"  # decomposed in whole
SHAPES = {WIDE: (320, 300), SMALL: (40, 96), "model.norm.weight": (96,)}


@pytest.fixture
def ws(capsys, monkeypatch):
    return Command(capsys, monkeypatch)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """A base, and a fine-tune of it in whose change no singular values lie close together."""
    root = tmp_path_factory.mktemp("pair")
    generator = torch.Generator().manual_seed(0)
    base = {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
    tuned = {}
    for name, weight in base.items():
        change = torch.randn(weight.shape, generator=generator)
        if change.dim() == 2:
            u, s, vh = torch.linalg.svd(change, full_matrices=False)
            change = (u * 0.9 ** torch.arange(len(s))) @ vh
        tuned[name] = weight + change
    config = {"model_type": "llama"}
    write_checkpoint(root / "base", base, 1, config)
    write_checkpoint(root / "tuned", tuned, 1, config)
    return root, {name: tuned[name].double() - base[name].double() for name in base}


def columns_of(page) -> dict:
    found = section(page, "map")
    columns = unpacked(found["packed"])
    return dict(zip(columns["name"], columns["values"], strict=True)), found


def same(shown, change, count) -> None:
    numbers, values = shown
    assert numbers == [*range(1, count + 1)]
    truth = torch.linalg.svdvals(change)[:count]
    assert values == pytest.approx(truth.tolist(), abs=1e-3 * float(truth[0]))


def test_the_leading_values_of_a_dense_change(pair):
    root, change = pair
    with Checkpoint.open(root / "base") as base:
        vector = open_vector(base, [str(root / "tuned")])
        sizes = {name: float(each.norm()) for name, each in change.items()}
        found = leading_spectra(base, vector, sizes)
        assert found.values.keys() == {WIDE, SMALL}  # what is no matrix has none
        assert found.left_out == 0
        assert found.whole == {SMALL}  # no more than 64 of its values there are
        for name, count in ((WIDE, LEADING), (SMALL, 40)):
            truth = torch.linalg.svdvals(change[name])[:count]
            off = (torch.tensor(found.values[name]).double() - truth).abs().max() / truth[0]
            assert off <= 2**0.5 * found.residual + 1e-6
        # What is said of them on the page.
        assert f"the leading {LEADING} singular values" in shown(found).note
        assert "not decomposed" not in shown(found).note
        # Within a bound, those that change most, and the others are counted.
        some = leading_spectra(base, vector, sizes, elements=320 * 300)
        first = max((WIDE, SMALL), key=lambda name: sizes[name])
        assert some.values.keys() == {first}
        assert some.left_out == 1
        assert "not decomposed: 1." in shown(some).note
        assert shown(some).unknown == "this matrix was not decomposed"
        assert leading_spectra(base, vector, sizes, elements=0).left_out == 2
        vector.close()
    assert sum(torch.Size(shape).numel() for shape in SHAPES.values()) < ELEMENTS


def test_pages_of_a_difference_and_of_an_edit_show_them(ws, pair, tmp_path):
    root, change = pair
    ws.done("diff", root / "base", root / "tuned", "--html", tmp_path / "diff.html")
    values, found = columns_of(tmp_path / "diff.html")
    same(values[WIDE], change[WIDE], LEADING)
    same(values[SMALL], change[SMALL], 40)
    assert values["model.norm.weight"] is None
    assert "singular values" in found["note"]

    out, page = tmp_path / "out", tmp_path / "out.html"
    ws.done("negate", root / "base", root / "tuned", "-o", out, "--scale", "0.5", "--html", page)
    values, _ = columns_of(page)
    same(values[WIDE], change[WIDE] / 2, LEADING)
    same(values[SMALL], change[SMALL] / 2, 40)


def test_an_adapter_shows_all_of_its_values_exactly(ws, pair, tmp_path):
    root, change = pair
    out, page = tmp_path / "adapter", tmp_path / "adapter.html"
    ws.done("negate", root / "base", root / "tuned", "-o", out, "--as", "adapter", "--rank", "5",
            "--targets", "all-linear", "--dtype", "float32", "--html", page)  # fmt: skip
    values, found = columns_of(page)
    same(values[WIDE], change[WIDE], 5)
    same(values[SMALL], change[SMALL], 5)
    assert "leading" not in found["note"]


def test_a_page_without_the_base_says_why_there_are_none(ws, pair, tmp_path):
    root, _ = pair
    shutil.copytree(root / "base", tmp_path / "base")
    out, page = tmp_path / "out", tmp_path / "out.html"
    ws.done("negate", tmp_path / "base", root / "tuned", "-o", out)
    ws.done("report", out, "--html", page)
    assert columns_of(page)[0][WIDE] is not None
    shutil.rmtree(tmp_path / "base")
    ws.done("report", out, "--html", page)
    found = section(page, "map")
    assert "values" not in unpacked(found["packed"])
    assert found["unknown"] == "the base that the record names is not at hand"
    # Another model of that name is not taken for the base.
    shutil.copytree(root / "tuned", tmp_path / "base")
    ws.done("report", out, "--html", page)
    assert "values" not in unpacked(section(page, "map")["packed"])
