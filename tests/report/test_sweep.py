"""What is said of a sweep."""

import json
from dataclasses import asdict, replace

import pytest

from weightsurgery.learning.intervals import Estimate
from weightsurgery.procedures.choice import Cell, FinalScore, Sweep, scored
from weightsurgery.report.sweep import failure, setting, sweep_sections, sweep_tables
from weightsurgery.report.tables import Table


def cell(scale: float, forget: float, keep: float, epsilon: float | None = None) -> Cell:
    return Cell(scale, 16, "right", epsilon, **scored((1.0, 1.0, 0.8), (forget, keep, 0.8)))


CELLS = (cell(1, 0.9, 1.0), cell(4, 0.2, 0.98), cell(16, 0.0, 0.4))
INFINITE = Cell(1e30, 16, "right", None, failed="tensor 'w': the edited weights overflow F32")
FOUND = Sweep(
    "exact_match", 0.975, "authors", ("painters", "capitals.validation"), 1.0, (1.0, 0.8),
    (*CELLS, INFINITE), (0, 1, 2), 1, None,
    (
        FinalScore("unseen", "forget", 9, Estimate(1.0, (1.0, 1.0), 9),
                  Estimate(0.25, (0.125, 0.5), 9), Estimate(75.0, (50.0, 87.5), 9)),
        FinalScore("other", "keep", 1, Estimate(0.5, None, 1), Estimate(0.625, None, 1),
                  Estimate(0.25, None, 1)),
    ),
)  # fmt: skip


def test_the_frontier_and_every_cell():
    frontier, chosen, test = sweep_tables(FOUND)
    assert frontier.rows == [
        ("base", "", "", "", "100.0 %", "80.0 %", "", ""),
        ("frontier", "1", "16", "right", "90.0 %", "80.0 %", "10.0 %", "0.0 %"),
        ("chosen", "4", "16", "right", "20.0 %", "80.0 %", "80.0 %", "2.0 %"),
        ("frontier", "16", "16", "right", "0.0 %", "40.0 %", "100.0 %", "60.0 %"),
    ]
    assert "3 of 4 cells" in frontier.note
    assert "1 cells have no scores" in frontier.note
    assert "scale 4, rank 16, side right" in chosen
    assert "98.0 % or more" in chosen
    assert test.rows == [
        ("unseen", "forget", "9", "100.0 %", "25.0 %", "75.0 %", "50.0 – 87.5 %"),
        ("other", "keep", "1", "50.0 %", "62.5 %", "25.0 %", ""),
    ]
    every, *_ = sweep_tables(FOUND, every=True)
    assert len(every.rows) == 5
    assert every.rows[2] == (
        "chosen", "4", "16", "right", "20.0 %", "98.0 %", "80.0 %", "80.0 %", "2.0 %"
    )  # fmt: skip
    assert every.rows[4][4:] == ("–",) * 5
    assert "overflow F32" in every.note
    for table in (frontier, every, test):
        assert isinstance(table, Table)
        assert all(len(row) == len(table.columns) for row in table.rows)


def test_ridges_have_a_column():
    found = replace(
        FOUND, cells=(cell(1, 0.9, 1.0, 1e-3), cell(4, 0.2, 0.98, 0.1)), frontier=(0, 1), test=()
    )
    for every in (False, True):
        table, _ = sweep_tables(found, every)
        at = table.columns.index("epsilon")
        assert [row[at] for row in table.rows] == ["", "0.001", "0.1"]
        assert all(len(row) == len(table.columns) for row in table.rows)
    assert setting(found.cells[0]) == "scale 1, rank 16, side right, epsilon 0.001"
    mixed = replace(found, cells=(cell(1, 0.9, 1.0), replace(found.cells[0], side="soft")))
    for every in (False, True):
        table, _ = sweep_tables(mixed, every)
        assert [row[table.columns.index("epsilon")] for row in table.rows] == ["", "", "0.001"]
        assert all(len(row) == len(table.columns) for row in table.rows)


def test_where_nothing_qualifies():
    cells = (cell(4, 0.2, 0.9), cell(16, 0.0, 0.4))
    lost = replace(FOUND, cells=cells, frontier=(0, 1), chosen=None, nearest=0, test=())
    (table,) = sweep_tables(lost)
    assert table.rows[1][0] == "nearest"
    what, remedy = failure(lost)
    assert "nearest is scale 4, rank 16, side right" in what
    assert "keeps 90.0 % and forgets 80.0 %" in what
    assert "--threshold" in remedy
    nothing = replace(lost, cells=(cell(1, 1.0, 1.0), INFINITE), frontier=(0,), nearest=None)
    what, remedy = failure(nothing)
    assert "none forgets anything of authors (1 of 2 have no scores)" in what
    assert "--scales" in remedy


@pytest.mark.parametrize("chosen", [1, None])
def test_the_pages_sections_are_the_documents(chosen):
    found = replace(FOUND, chosen=chosen, nearest=None if chosen else 1)
    command = ["ws", "project", "my <base>"] if chosen else None
    document = json.loads(json.dumps({"base": "b", **asdict(found), "command": command}))
    drawn, frontier, test, every, *edit = sweep_sections(document)
    assert [(p["x"], p["y"]) for p in drawn["points"]] == [
        (100 * each.worst_drift, each.forgetting) for each in CELLS
    ]
    assert [p["mark"] for p in drawn["points"]] == [
        "frontier", "chosen" if chosen else "nearest", "frontier"
    ]  # fmt: skip
    assert drawn["frontier"] == [[p["x"], p["y"]] for p in drawn["points"]]
    assert drawn["limit"]["x"] == pytest.approx(2.5)
    assert ("Chosen: scale 4" in drawn["note"]) == (chosen is not None)
    assert ("nearest is scale 4" in drawn["note"]) == (chosen is None)
    told = sweep_tables(found)[0]
    assert frontier["rows"] == [list(row) for row in told.rows]
    assert test["rows"][0][0] == "unseen"
    assert every["closed"]
    assert len(every["rows"]) == 1 + len(found.cells)
    assert "overflow F32" in every["note"]
    assert [each["command"] for each in edit] == (["ws project 'my <base>'"] if chosen else [])


def test_the_sections_of_nothing_but_failures():
    found = replace(FOUND, cells=(INFINITE,), frontier=(), chosen=None, test=())
    drawn, *_ = sweep_sections({**asdict(found), "command": None})
    assert drawn["points"] == []
    assert "1 of 1 have no scores" in drawn["note"]
