"""What an adapter holds, or would hold, as tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from weightsurgery.report.tables import (
    Table,
    edit_tables,
    facts_table,
    lineage_rows,
    percent,
    size,
    survived_rows,
    used_rows,
)

if TYPE_CHECKING:
    from weightsurgery.checkpoint.record import EditRecord

__all__ = ["exported_tables", "left_out_rows", "ranks_shown", "written_tables"]


def written_tables(record: EditRecord, every: bool = False) -> list[str | Table]:
    """What an edit wrote: a checkpoint or an adapter.

    Args:
        record: The output's.
        every: Also every tensor.
    """
    tables = exported_tables if record.kind == "adapter" else edit_tables
    return tables(record, every)


def exported_tables(record: EditRecord, every: bool = False) -> list[str | Table]:
    """Size, ranks and losses of an adapter, and what it leaves out.

    Args:
        record: The adapter's.
        every: Also every matrix.
    """
    summary = record.summary
    ranks = [facts["rank"] for facts in record.tensors.values()]
    lowest, highest = min(ranks), max(ranks)
    total = sum(facts["bytes"] for facts in record.files.values())
    facts = [
        ("matrices", f"{summary['tensors']}, of rank {ranks_shown(lowest, highest)}"),
        ("size", f"{size(total)}, {record.parameters['dtype']}"),
        ("change", f"norm {summary['norm']:.4g}"),
        _truncated(record),
        ("lost in rounding", f"{percent(summary['rounding'], 2)} of its norm"),
    ]
    if (relative := summary.get("relative_change")) is not None:
        facts.append(("relative change", percent(relative, 2)))
    facts += survived_rows(record)
    facts += left_out_rows("left out", summary["left_out"])
    facts += left_out_rows("no change", summary["unchanged"])
    facts += lineage_rows(record.lineage)
    facts += used_rows(record)
    tables: list[str | Table] = [facts_table("Adapter", facts)]
    if every:
        columns: tuple[str, ...] = (
            "tensor",
            "rank",
            "‖T‖",
            "energy lost",
            "lost in rounding",
            "svd error",
        )
        rows: list[tuple[str, ...]] = [
            (
                name,
                str(row["rank"]),
                f"{row['norm']:.3g}",
                percent(row["lost"], 2),
                percent(row["rounding"], 2),
                f"{row.get('svd_residual', row['residual']):.1e}",
            )
            for name, row in record.tensors.items()
        ]
        if all("survived" in row for row in record.tensors.values()):
            columns = (*columns, "survived discr.")
            survived = [percent(row["survived"], 2) for row in record.tensors.values()]
            rows = [(*cells, cell) for cells, cell in zip(rows, survived, strict=True)]
        tables.append(Table("Matrices", columns, rows))
    return tables


def _truncated(record: EditRecord) -> tuple[str, str]:
    """What truncation lost: of the whole change, or of the task before discrimination."""
    rows = record.tensors.values()
    if all("kept_energy" in facts for facts in rows):  # what is left of it is all there
        energies = [facts["kept_energy"] for facts in rows]
        figure = f"{percent(min(energies), 2)} to {percent(max(energies), 2)} of its energy"
        return "task, truncated", f"{figure}, before discrimination"
    lost = [facts["lost"] for facts in rows]
    figure = f"{percent(record.summary['lost'], 2)} of its energy"
    return "lost by truncation", f"{figure} ({percent(min(lost), 2)} to {percent(max(lost), 2)})"


def left_out_rows(words: str, names: Sequence[str]) -> list[tuple[str, str]]:
    """A row for names, the first of them shown; none for none."""
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return [(words, f"{names[0]}{more}")] if names else []


def ranks_shown(lowest: int, highest: int) -> str:
    """A range of ranks."""
    return str(highest) if lowest == highest else f"{lowest} to {highest}"
