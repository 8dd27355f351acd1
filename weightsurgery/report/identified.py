"""A training by ``ws identify`` as tables."""

from __future__ import annotations

from typing import TYPE_CHECKING

from weightsurgery.report.tables import Table

if TYPE_CHECKING:
    from weightsurgery.checkpoint.record import EditRecord

__all__ = ["identified_tables"]


def identified_tables(record: EditRecord, every: bool = False) -> list[str | Table]:
    """The stages of a training, and the size of what they changed.

    Args:
        record: The saved vector's.
        every: A row for each tensor too.
    """
    stages = record.summary["stages"]
    watched = any(row["best_validation"] is not None for row in stages)
    columns: tuple[str, ...] = ("trained", "steps", "loss before", "loss after")
    rows: list[tuple[str, ...]] = [
        (row["stage"], str(row["steps"]), f"{row['first_loss']:.4f}", f"{row['last_loss']:.4f}")
        for row in stages
    ]
    if watched:
        columns = (*columns, "best validation")
        rows = [
            (*cells, f"{row['best_validation']:.4f}")
            for cells, row in zip(rows, stages, strict=True)
        ]
    title = (
        f"Task vector of {record.summary['examples']} examples:"
        f" {record.summary['tensors']} tensors, norm {record.summary['norm']:.4g}"
    )
    note = "Losses are of a stage's first and last batch, each before that batch's step."
    tables: list[str | Table] = [Table(title, columns, rows, note)]
    if every:
        cells = [
            (name, str(row["kind"]), f"{row['norm']:.4g}", f"{row['relative']:.4g}")
            for name, row in record.tensors.items()
        ]
        columns = ("tensor", "kind", "norm", "relative")
        tables.append(Table("Tensors", columns, cells, left=frozenset({0, 1})))
    return tables
