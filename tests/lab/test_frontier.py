"""A bench as a picture: where its points are, and what is drawn of them."""

import importlib.util
import itertools
import math
import re
from dataclasses import replace

import pytest

from tests.lab.test_bench_tables import BEFORE, bench, outcome
from weightsurgery.errors import DataError, OutputError, WeightSurgeryError
from weightsurgery.lab.bench import picture as frontier_picture
from weightsurgery.lab.bench.frontier import FAMILIES, bench_sections, families, panels, trade_off
from weightsurgery.lab.bench.picture import draw_frontier, place
from weightsurgery.lab.bench.results import Tried

KNOWN = {"negate": "by weights", "rmu": "trained", "retrained": "retrained"}


def two_seeds():
    """Forgotten 50 and 100 %, harm 10 and 0 %."""
    return [
        outcome(target=0.625, keep={"twin.unseen": 0.72, "related.unseen": 0.76}),
        outcome(seed=1, target=0.25),
    ]


def test_a_point_is_where_its_figures_say():
    (panel,) = panels([bench(*two_seeds(), outcome("rmu", qualifies=False))])
    point, other = panel.points
    assert (panel.variant, panel.request, panel.seeds) == ("default", "", (0, 1))
    assert point.reached.mean == pytest.approx(75)
    assert point.reached.spread == pytest.approx(50 / math.sqrt(2))
    assert point.harm.mean == pytest.approx(5)
    assert point.harm.spread == pytest.approx(10 / math.sqrt(2))
    assert (point.held, other.held) == (True, False)
    assert (other.harm.mean, other.reached.mean) == (0, 100)
    (learned,) = panels([bench(outcome("lora", target=0.9), task="learn")])
    assert learned.points[0].reached.mean == pytest.approx(90)


def test_one_panel_for_each_variant_and_ask():
    before = {**BEFORE, "shared.unseen": 1.0}
    shared = outcome(asked="25% shared", keep={"shared.unseen": 0.1}, before=before)
    found = panels([bench(outcome(), shared), bench(outcome(), variant="narrow")])
    assert [(each.variant, each.request) for each in found] == [
        ("default", ""), ("default", "25% shared"), ("narrow", ""),
    ]  # fmt: skip
    assert [each.shared for each in found] == [False, True, False]
    assert found[1].points[0].harm.mean == 0
    with pytest.raises(DataError, match="single row"):
        panels([bench()])


def tried(scale, target, twin, related=1.0):
    return Tried({"scale": scale}, target, {"twin": twin, "related": related})


def flat(pairs):
    return list(itertools.chain.from_iterable(pairs))


VALIDATION = {"twin": 1.0, "related": 0.5}


def test_a_trade_off_is_of_means_that_nothing_betters():
    first = outcome(
        validation_before=VALIDATION,
        tried=[tried(1, 1.0, 1.0, 0.5), tried(2, 0.7, 0.9, 0.5), tried(3, 0.85, 0.8, 0.5),
               tried(4, 0.25, 0.9, 0.3)],
    )  # fmt: skip
    # Harm is that of the worst task, in % of what the base knew: 4 costs 40 % here.
    assert flat(trade_off([first])) == pytest.approx(flat([(0, 0), (10, 40), (40, 100)]), abs=1e-9)
    second = replace(
        first, seed=1, tried=[tried(2, 0.4, 0.7, 0.5), tried(1, 1.0, 0.9, 0.5), tried(9, 0, 1)]
    )
    # By setting, in whatever order; those of one seed alone are left out.
    found = trade_off([first, second])
    assert flat(found) == pytest.approx(flat([(5, 0), (20, 60)]), abs=1e-9)
    learned = [replace(each, tried=each.tried[:2]) for each in (first, second)]
    assert flat(trade_off(learned, learning=True)) == pytest.approx(flat([(5, 100)]), abs=1e-9)
    assert trade_off([outcome()]) == ()
    assert trade_off([]) == ()


def test_settings_that_come_again_are_told_apart():
    twice = [tried(1, 0.7, 0.9, 0.5), tried(1, 0.4, 0.8, 0.5)]
    one = outcome(validation_before=VALIDATION, tried=twice)
    assert flat(trade_off([one])) == pytest.approx(flat([(10, 40), (20, 80)]), abs=1e-9)


def test_candidates_of_a_stage_are_not_held_against_all_requests():
    one = outcome(validation_before=VALIDATION, tried=[tried(1, 0.7, 0.9), tried(2, 0.4, 0.8)])
    plain, stage = panels([bench(one, replace(one, asked="fused, 2 of 2"))])
    assert plain.points[0].trade_off
    assert not stage.points[0].trade_off
    assert "refused" in frontier_picture._caption([stage])
    assert "refused" not in frontier_picture._caption([plain])


def test_every_method_has_a_family():
    from weightsurgery.lab.bench.methods import FORGETTING, LEARNING

    known = families()
    assert set(known.values()) <= set(FAMILIES)
    assert set(FORGETTING) | set(LEARNING) <= set(known)
    assert known["retrained"] == "retrained"
    assert (known["npo"], known["ethos"], known["icul"]) == ("trained", "merging", "prompted")
    assert (known["right"], known["subspace"]) == ("by weights", "from data")


def drawn_at(figure, method):
    """Where the mark of a method is drawn, in the units of its axes."""
    (mark,) = [each for axes in figure.axes for each in axes.collections
               if each.get_gid() == f"point {method}"]  # fmt: skip
    return tuple(mark.get_offsets()[0]), mark.get_facecolor()[0]


def test_marks_lie_on_their_points_and_are_hollow_where_nothing_held():
    found = panels([bench(*two_seeds(), outcome("rmu", qualifies=False), outcome("retrained"))])
    figure = frontier_picture._figure(found, KNOWN)
    place_, colour = drawn_at(figure, "negate")
    assert place_ == pytest.approx((5, 75))
    assert tuple(colour[:3]) != (1, 1, 1)
    place_, colour = drawn_at(figure, "rmu")
    assert place_ == pytest.approx((0, 100))
    assert tuple(colour[:3]) == (1, 1, 1)
    (axes,) = figure.axes
    left, right = axes.get_xlim()
    assert left < 0 < 10 < right
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["retrained", "by weights", "trained", "not held on\nsome seed"]


def test_the_same_results_are_the_same_bytes(tmp_path):
    one = outcome(validation_before=VALIDATION, tried=[tried(1, 0.7, 0.9), tried(2, 0.4, 0.8)])
    found = [bench(one, outcome("rmu", qualifies=False), outcome("unheard-of", target=0.5))]
    for kind, start in ((".svg", b"<?xml"), (".png", b"\x89PNG")):
        first, second = tmp_path / f"a{kind}", tmp_path / f"b{kind}"
        draw_frontier(found, first, KNOWN)
        draw_frontier(found, second, KNOWN)
        assert first.read_bytes() == second.read_bytes()
        assert first.read_bytes().startswith(start)
    draw_frontier([bench(replace(one, target=0.6))], second, KNOWN)
    assert first.read_bytes() != second.read_bytes()
    text = (tmp_path / "a.svg").read_text()
    for name in ("negate", "rmu", "unheard-of", "Forgetting against harm, default world",
                 "Seeds 0", "97.5%", "Hollow", "Thin"):  # fmt: skip
        assert name in text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "a.svg", "b.png", "b.svg"]


def test_a_page_shows_the_same_points():
    asked = outcome(asked="style", target=0.5)
    found = [bench(*two_seeds()), bench(asked)]
    for section, panel in zip(bench_sections(found), panels(found), strict=True):
        assert [(p["x"], p["y"], p["label"], p["hollow"]) for p in section["points"]] == [
            (p.harm.mean, p.reached.mean, p.method, not p.held) for p in panel.points
        ]
        bars = section["bars"]
        for point, across, up in zip(panel.points, bars[::2], bars[1::2], strict=True):
            assert across[2] - point.harm.mean == pytest.approx(point.harm.spread)
            assert up[3] - up[1] == pytest.approx(2 * point.reached.spread)


def test_panels_share_their_scales_and_say_what_they_are(tmp_path):
    asked = replace(two_seeds()[0], asked="style")
    figure = frontier_picture._figure(panels([bench(*two_seeds(), asked)]), KNOWN)
    first, second = figure.axes
    assert first.get_xlim() == second.get_xlim()
    assert first.get_ylim() == second.get_ylim()
    assert second.get_title() == "default, style"
    draw_frontier([bench(*two_seeds(), asked)], tmp_path / "a.svg", {})
    assert len(re.findall(">negate<", (tmp_path / "a.svg").read_text())) == 2


def test_what_cannot_be_drawn(tmp_path, monkeypatch):
    found = [bench(outcome())]
    with pytest.raises(OutputError, match="no kind of picture") as refused:
        draw_frontier(found, tmp_path / "a.gif", {})
    assert ".svg, .pdf or .png" in refused.value.remedy
    for path in (tmp_path / "nowhere" / "a.svg", tmp_path / "folder.svg"):
        (tmp_path / "folder.svg").mkdir(exist_ok=True)
        with pytest.raises(OutputError, match="not a file"):
            draw_frontier(found, path, {})
    with pytest.raises(DataError, match="single row"):
        draw_frontier([bench()], tmp_path / "a.svg", {})
    real = importlib.util.find_spec
    monkeypatch.setattr(
        "weightsurgery.deferred.find_spec",
        lambda name: None if name == "matplotlib" else real(name),
    )
    with pytest.raises(WeightSurgeryError, match="matplotlib is not installed") as missing:
        draw_frontier(found, tmp_path / "a.svg", {})
    assert missing.value.remedy == "Install it with:  pip install 'weightsurgery[report]'"
    assert [path.name for path in tmp_path.iterdir()] == ["folder.svg"]


def boxes(middles, sizes):
    return [(x - w / 2, y - h / 2, x + w / 2, y + h / 2)
            for (x, y), (w, h) in zip(middles, sizes, strict=True)]  # fmt: skip


def test_labels_cover_neither_each_other_nor_points():
    """Five points in one place and six in a row, where names in line would lie on each other."""
    points = [(60.0, 60.0)] * 5 + [(200.0 + 12 * n, 150.0) for n in range(6)]
    sizes = [(70.0, 12.0)] * len(points)
    inside = (0.0, 0.0, 500.0, 300.0)
    naive = boxes([(x + 44, y) for x, y in points], sizes)
    found = boxes(place(points, sizes, inside), sizes)

    def covered(all_boxes):
        pairs = itertools.combinations(all_boxes, 2)
        lying = sum(a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3] for a, b in pairs)
        marks = sum(b[0] < x < b[2] and b[1] < y < b[3] for b in all_boxes for x, y in set(points))
        return lying, marks

    assert min(covered(naive)) > 4
    assert covered(found) == (0, 0)
    assert all(b[0] >= 0 and b[1] >= 0 and b[2] <= 500 and b[3] <= 300 for b in found)
    assert place(points, sizes, inside) == place(points, sizes, inside)
    assert place([], [], inside) == []


def test_labels_keep_off_lines():
    point, size, inside = [(100.0, 100.0)], [(40.0, 12.0)], (0.0, 0.0, 300.0, 200.0)
    level = (20.0, 100.0, 180.0, 100.0)

    def on_it(bars):
        (box,) = boxes(place(point, size, inside, bars), size)
        return box[1] < 100 < box[3]

    assert on_it([])
    assert not on_it([level])
