"""What a comparison would do, for ``--dry-run``."""

from __future__ import annotations

from weightsurgery.report.tables import Table, size
from weightsurgery.surgery.diff_plan import DiffPlan

__all__ = ["comparison_lines"]


def comparison_lines(plan: DiffPlan, out: str | None) -> list[str | Table]:
    """The plan as a table."""
    facts = [
        ("tensors", f"{len(plan.tensors)}, {plan.parameters:,} parameters"),
        ("read", size(plan.read_bytes)),
        ("fetched from the Hub", size(plan.fetch_bytes)),
        ("working memory", f"about {size(plan.memory_bytes)}"),
    ]
    if out is not None and plan.free_bytes is not None:
        facts += [
            ("output", out),
            ("written", f"at most {size(plan.write_bytes)}"),
            ("free where it goes", size(plan.free_bytes)),
        ]
    return [Table("Plan: diff", ("", ""), facts, left=frozenset({0, 1}))]
