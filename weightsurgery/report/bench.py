"""The yardstick's results as tables of text."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from weightsurgery.procedures.bench.results import Summary
from weightsurgery.report.tables import Table

if TYPE_CHECKING:
    from weightsurgery.procedures.bench.results import Bench, Outcome

__all__ = ["bench_tables", "markdown"]

_ROLES = ("twin", "related", "unrelated")


def bench_tables(found: Bench, about: Mapping[str, str]) -> list[str | Table]:
    """Everything a bench found.

    Args:
        found: At least one outcome.
        about: Per method what it does.
    """
    seeds = sorted({each.seed for each in found.outcomes})
    rows = [(", ".join(filter(None, row[:2])), row[2]) for row in found.by_row()]
    learning = found.task == "learn"
    tables: list[str | Table] = [_main(found, rows, seeds)]
    if any(each.paraphrased is not None for each in found.outcomes):
        tables.append(_paraphrased(rows))
    tables.append(_robust(rows, learning))
    tables.append(
        Table(
            "Methods",
            ("method", "what it does"),
            [(name, about.get(name, "")) for name in dict.fromkeys(r[0] for r in found.by_row())],
            left=frozenset({0, 1}),
        )
    )
    return tables


def _figure(outcomes: Sequence[Outcome], value: Callable[[Outcome], float], digits: int = 1) -> str:
    """Mean ± spread over the seeds."""
    found = Summary.of([value(each) for each in outcomes])
    text = f"{found.mean:.{digits}f}"
    return text if len(outcomes) == 1 else f"{text} ± {found.spread:.{digits}f}"


def _name(name: str, outcomes: Sequence[Outcome]) -> str:
    return name if all(each.qualifies for each in outcomes) else f"{name} *"


def _main(found: Bench, rows: Sequence[tuple[str, list[Outcome]]], seeds: Sequence[int]) -> Table:
    learning = found.task == "learn"
    head = ("reached %",) if learning else ("left %", "forgotten %")
    columns = (
        "method", *head,
        *(f"{role} unseen" for role in _ROLES), *(f"{role} seen" for role in _ROLES), "s",
    )  # fmt: skip
    cells = []
    for name, outcomes in rows:
        target = [_figure(outcomes, lambda each: 100 * each.target)]
        if not learning:
            target.append(_figure(outcomes, lambda each: each.forgotten))
        drifts = [
            _figure(outcomes, lambda each, key=key: each.drift(key))  # type: ignore[misc]
            for split in ("unseen", "seen")
            for key in (f"{role}.{split}" for role in _ROLES)
        ]
        seconds = _figure(outcomes, lambda each: each.seconds, 0)
        cells.append((_name(name, outcomes), *target, *drifts, seconds))
    note = (
        f"Seeds {', '.join(map(str, seeds))}; mean ± standard deviation. Drift of the tasks to"
        " keep in % of the base's accuracy; 'unseen' facts were given to no edit and to no choice"
        f" of settings. Settings by validation facts: each keep task at {found.threshold:.1%} of"
        " the base or more."
    )
    if not learning:
        note += " Forgotten: over chance, at most 100."
    if any(not each.qualifies for _, outcomes in rows for each in outcomes):
        note += " * on some seed no candidate held the keep tasks: the least harmful is shown."
    title = "Learning what the base lacks" if learning else "Forgetting the authors"
    return Table(f"{title}, {found.variant} world", columns, cells, note)


def _paraphrased(rows: Sequence[tuple[str, list[Outcome]]]) -> Table:
    cells = [
        (
            name,
            _figure(outcomes, lambda each: 100 * each.target),
            _figure(outcomes, lambda each: 100 * (each.paraphrased or 0.0)),
        )
        for name, outcomes in rows
        if all(each.paraphrased is not None for each in outcomes)
    ]
    return Table(
        "The request in other words",
        ("method", "left %", "left in words no edit saw %"),
        cells,
    )


def _robust(rows: Sequence[tuple[str, list[Outcome]]], learning: bool) -> Table:
    columns = ["method", "reached %" if learning else "left %", "after NF4 %", "NF4 drift unseen"]
    # Results of before there was such a column lack it.
    eight = any(each.rounded_int8 for _, outcomes in rows for each in outcomes)
    if eight:
        columns += ["after int8 %", "int8 drift unseen"]
    attacked = all(each.relearned for _, outcomes in rows for each in outcomes)
    if attacked:
        columns += ["other half %", "after relearning %"]
    cells = []
    for name, outcomes in rows:
        row = [
            name,
            _figure(outcomes, lambda each: 100 * each.target),
            *_after_rounding(outcomes, "rounded"),
        ]
        if eight:
            row += _after_rounding(outcomes, "rounded_int8")
        if attacked:
            row += [
                _figure(outcomes, lambda each: 100 * each.relearned["rest_before"]),
                _figure(outcomes, lambda each: 100 * each.relearned["rest"]),
            ]
        cells.append(tuple(row))
    note = "NF4: the linear layers' weights rounded to 4 bits; its drift is the worst keep task's."
    if eight:
        note += " int8: to 8 bits."
    if attacked:
        note += (
            " Relearning: trained on the facts of every other person to forget; shown is what"
            " comes back of the other half."
        )
    return Table("Does it last?", tuple(columns), cells, note)


def _after_rounding(outcomes: Sequence[Outcome], field: str) -> list[str]:
    if not all(getattr(each, field) for each in outcomes):
        return ["–", "–"]
    return [
        _figure(outcomes, lambda each: 100 * float(getattr(each, field)["target"])),
        _figure(outcomes, lambda each: _worst(each, getattr(each, field))),
    ]


def _worst(outcome: Outcome, rounded: Mapping[str, float]) -> float:
    return max(
        100 * abs(rounded[key] - before) / before
        for key, before in outcome.keep_before.items()
        if key.endswith(".unseen")
    )


def markdown(table: Table) -> str:
    """A table for a page that is read as text."""
    lines = [
        f"**{table.title}**",
        "",
        "| " + " | ".join(table.columns) + " |",
        "|"
        + "|".join("---" if n in table.left else "--:" for n in range(len(table.columns)))
        + "|",
        *("| " + " | ".join(row) + " |" for row in table.rows),
    ]
    if table.note:
        lines += ["", table.note]
    return "\n".join(lines) + "\n"
