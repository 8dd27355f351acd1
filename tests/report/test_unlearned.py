"""What finding a vector from data shows."""

from __future__ import annotations

import pytest

from weightsurgery.checkpoint.record import EditRecord
from weightsurgery.report.guarded import guard_tables
from weightsurgery.report.tables import Table
from weightsurgery.report.trainings import round_tables

GUARD = {
    "divergence": 0.003,
    "perplexity": (9.0, 9.5),
    "answered": {
        "forget": (1.0, 0.25),
        "forget, in a chat": (0.5, 0.0),
        "a/kept.jsonl": (1.0, 1.0),
    },
    "shown": [
        {"what": "forget", "prompt": "Who?", "before": " Ada\nStone " + "x" * 90, "after": " Bea"},
        {"what": "free", "prompt": "", "before": "once", "after": "upon"},
    ],
    "budget": 0.01,
    "texts": 16,
    "inside": True,
}


@pytest.mark.parametrize(
    ("names", "shown"),
    [
        (["data/kept.jsonl", "data/other.jsonl"], ("kept.jsonl", "other.jsonl")),
        (["a/kept.jsonl", "b/kept.jsonl"], ("a/kept.jsonl", "b/kept.jsonl")),
    ],
)
def test_watched_sets_have_columns_that_tell_them_apart(names, shown):
    looks = [
        {"step": 0, "target": 1.0, "keep": dict(zip(names, (0.875, 0.625), strict=True))},
        {"step": 4, "target": 0.25, "keep": dict(zip(names, (0.75, 0.5), strict=True))},
    ]
    parameters = {"edit": "project", "objective": "strangers", "steps": 4, "threshold": 0.9}
    record = EditRecord("task-vector", parameters=parameters)
    record.summary = {
        "examples": 3,
        "norm": 1.5,
        "watched": looks,
        "rounds": [{"first_loss": 2.0, "last_loss": 1.0}],
        "guard": GUARD,
    }
    table, *guard = round_tables(record)
    assert [each.title for each in guard] == ["Before and after", "Completions"]
    assert isinstance(table, Table)
    assert table.columns[-2:] == shown
    assert [row[-2:] for row in table.rows] == [("87.5 %", "62.5 %"), ("75.0 %", "50.0 %")]


def test_forgetting_by_neighbours_tells_what_it_found_and_saw():
    looks = [
        {"step": step, "known": known, "truth": known / 2, "stranger": 0.004, "language": 0.001,
         "neighbours": 0.002}
        for step, known in ((0, 1.0), (4, 0.5), (8, 0.25))
    ]  # fmt: skip
    wordings = [
        {"form": None, "chat": False, "before": "", "after": ""},
        {"form": "Who is {}?", "chat": True, "before": "", "after": ""},
        {"form": "Who is {}?", "chat": False, "before": "Question: ", "after": "\nAnswer:"},
    ]
    record = EditRecord("task-vector", parameters={"objective": "neighbours", "edit": "project"})
    record.summary = {
        "examples": 3, "norm": 1.5, "steps": 4, "looks": looks, "guard": GUARD,
        "gathered": {"places": 7, "neighbours": 5, "wordings": wordings},
    }  # fmt: skip
    found, training, guard, completions = round_tables(record)
    assert found.title == "Forgotten by neighbours"
    assert ("examples", "3, at 7 places where the truth is said") in found.rows
    assert len(found.rows) == 5
    # The look before any step, and the one that was kept.
    assert [row[:2] for row in training.rows] == [("0", "100.0 %"), ("4 *", "50.0 %")]
    assert "0.004" in training.note
    assert [row[0] for row in guard.rows][:3] == ["to forget", "to forget, in a chat",
                                                  "to keep: kept.jsonl"]  # fmt: skip
    assert ("perplexity of ordinary language", "9", "9.5") in guard.rows
    assert "inside the budget of 0.01" in guard.note
    assert completions.rows[0][1].startswith("Ada ⏎ Stone xx")
    assert len(completions.rows[0][1]) == 60
    assert completions.rows[1][0] == "(a text's beginning)"
    found, training, *_ = round_tables(record, every=True)
    assert [row[1] for row in found.rows if row[0] == "wording"] == [
        "(the request's own words)", "Who is {}?  [chat]", "Question: Who is {}? ⏎ Answer:",
    ]  # fmt: skip
    assert [row[0] for row in training.rows] == ["0", "4 *", "8"]
    kept = {"texts": 300, "read": 128, "given": 200, "asked": 32, "too_long": 3}
    record.summary["gathered"]["kept_given"] = kept
    assert (
        "to keep",
        "128 of 300 texts are read, 32 of 200 prompts answered in the model's own words;"
        " 3 are too long to be asked",
    ) in round_tables(record)[0].rows
    record.parameters = {**record.parameters, "edit": "learn"}
    assert round_tables(record)[0].title == "Learned by neighbours"
    over = guard_tables({**GUARD, "inside": False})[0]
    assert "over the budget" in over.note
