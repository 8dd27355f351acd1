"""What finding a vector from data shows."""

from __future__ import annotations

import pytest

from weightsurgery.checkpoint.record import EditRecord
from weightsurgery.report.tables import Table
from weightsurgery.report.unlearned import round_tables


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
