"""What an adapter holds, as tables."""

from __future__ import annotations

from typing import TYPE_CHECKING

from weightsurgery.report.tables import Table, size

if TYPE_CHECKING:
    from weightsurgery.checkpoint.record import EditRecord

__all__ = ["exported_tables"]


def exported_tables(record: EditRecord, every: bool = False) -> list[str | Table]:
    """Size, ranks and losses of an adapter, and what it leaves out.

    Args:
        record: The adapter's.
        every: Also every matrix.
    """
    summary = record.summary
    ranks = [facts["rank"] for facts in record.tensors.values()]
    lowest, highest = min(ranks), max(ranks)
    losses = [facts["lost"] for facts in record.tensors.values()]
    total = sum(facts["bytes"] for facts in record.files.values())
    facts = [
        ("matrices", f"{summary['tensors']}, of rank {_range(lowest, highest)}"),
        ("size", f"{size(total)}, {record.parameters['dtype']}"),
        ("change", f"norm {summary['norm']:.4g}"),
        (
            "lost by truncation",
            f"{_percent(summary['lost'])} of its energy"
            f" ({_percent(min(losses))} to {_percent(max(losses))})",
        ),
        ("lost in rounding", f"{_percent(summary['rounding'])} of its norm"),
    ]
    for name, words in (("left_out", "left out"), ("unchanged", "no change")):
        if names := summary[name]:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            facts.append((words, f"{names[0]}{more}"))
    for kin in record.lineage:
        figure = "" if kin["cosine"] is None else f", cosine {kin['cosine']:.4f}"
        facts.append((f"lineage of {kin['vector']}", f"{kin['verdict']}{figure}"))
    tables: list[str | Table] = [Table("Adapter", ("", ""), facts, left=frozenset({0, 1}))]
    if every:
        columns = ("tensor", "rank", "‖T‖", "energy lost", "lost in rounding", "svd error")
        rows = [
            (
                name,
                str(each["rank"]),
                f"{each['norm']:.3g}",
                _percent(each["lost"]),
                _percent(each["rounding"]),
                f"{each['residual']:.1e}",
            )
            for name, each in record.tensors.items()
        ]
        tables.append(Table("Matrices", columns, rows))
    return tables


def _range(lowest: int, highest: int) -> str:
    return str(highest) if lowest == highest else f"{lowest} to {highest}"


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.2f} %"
