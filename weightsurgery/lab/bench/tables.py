"""The yardstick's results as tables of text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from weightsurgery.lab.bench.cost_tables import cost_table, scale_table
from weightsurgery.lab.bench.figures import (
    ABSENT,
    UNHELD,
    any_shared,
    drifts,
    figure,
    marked,
    percent,
    row_name,
    seeds_of,
)
from weightsurgery.lab.bench.study_tables import study_tables
from weightsurgery.report.tables import Table

if TYPE_CHECKING:
    from weightsurgery.lab.bench.results import Bench, Outcome

__all__ = ["bench_tables", "markdown", "variant_tables"]

_ROLES = ("twin", "related", "unrelated")


def bench_tables(bench: Bench, about: Mapping[str, str]) -> list[str | Table]:
    """All tables of a bench.

    Args:
        bench: At least one outcome.
        about: Per method what it does.
    """
    return [*_result_tables(bench), _methods([bench], about)]


def variant_tables(benches: Sequence[Bench], about: Mapping[str, str]) -> list[str | Table]:
    """The tables of benches of several variants: one by one, and side by side.

    Args:
        benches: As :func:`weightsurgery.lab.bench.cost_tables.by_variant` gives them; one alone is
            printed as :func:`bench_tables` does.
        about: Per method what it does.
    """
    if len(benches) == 1:
        return bench_tables(benches[0], about)
    tables = []
    for bench in benches:
        for table in _result_tables(bench):
            world = f", {bench.variant} world"
            title = table.title.removesuffix(world) + world
            tables.append(replace(table, title=title))
    return [*tables, scale_table(benches), _methods(benches, about)]


def _result_tables(bench: Bench) -> list[Table]:
    rows = [(row_name(method, request), outcomes) for method, request, outcomes in bench.by_row()]
    plain = [(method, outcomes) for method, request, outcomes in bench.by_row() if not request]
    learning = bench.task == "learn"
    tables = []
    if plain or not rows:
        tables.append(_main(bench, plain))
    tables += study_tables(bench)
    if any(outcome.paraphrased is not None for outcome in bench.outcomes):
        tables.append(_paraphrased(rows))
    robust = _robust(rows, learning)
    if robust.rows:
        tables.append(robust)
    if any(outcome.cpu_seconds is not None for outcome in bench.outcomes):
        tables.append(cost_table(bench))
    return tables


def _methods(benches: Sequence[Bench], about: Mapping[str, str]) -> Table:
    names = dict.fromkeys(outcome.method for bench in benches for outcome in bench.outcomes)
    rows = [(name, about.get(name, "")) for name in names]
    return Table("Methods", ("method", "what it does"), rows, left=frozenset({0, 1}))


def _main(bench: Bench, rows: Sequence[tuple[str, list[Outcome]]]) -> Table:
    learning = bench.task == "learn"
    headings = ("reached %",) if learning else ("left %", "forgotten %")
    columns = (
        "method", *headings,
        *(f"{role} unseen" for role in _ROLES), *(f"{role} seen" for role in _ROLES), "s",
    )  # fmt: skip
    cells = []
    for name, outcomes in rows:
        target = [figure(outcomes, lambda outcome: 100 * outcome.target)]
        if not learning:
            target.append(figure(outcomes, lambda outcome: outcome.forgotten))
        moved = [
            figure(outcomes, lambda outcome, key=key: outcome.drift(key))  # type: ignore[misc]
            for split in ("unseen", "seen")
            for key in (f"{role}.{split}" for role in _ROLES)
        ]
        seconds = figure(outcomes, lambda outcome: outcome.seconds, 0)
        cells.append((marked(name, outcomes), *target, *moved, seconds))
    seeds = seeds_of(outcome for _, outcomes in rows for outcome in outcomes)
    note = (
        f"Seeds {seeds}; mean ± standard deviation. Drift of the tasks to keep in % of the base's"
        " accuracy; 'unseen' facts were given to no edit and to no choice"
        f" of settings. Settings by validation facts: each keep task at {bench.threshold:.1%} of"
        " the base or more."
    )
    if not learning:
        note += " Forgotten: over chance, at most 100."
    if any(not outcome.qualifies for _, outcomes in rows for outcome in outcomes):
        note += f" {UNHELD}"
    title = "Learning what the base lacks" if learning else "Forgetting the authors"
    return Table(f"{title}, {bench.variant} world", columns, cells, note)


def _paraphrased(rows: Sequence[tuple[str, list[Outcome]]]) -> Table:
    cells = [
        (
            name,
            figure(outcomes, lambda outcome: 100 * outcome.target),
            figure(outcomes, lambda outcome: 100 * (outcome.paraphrased or 0.0)),
        )
        for name, outcomes in rows
        if all(outcome.paraphrased is not None for outcome in outcomes)
    ]
    return Table(
        "The request in other words", ("method", "left %", "left in words no edit saw %"), cells
    )


def _robust(rows: Sequence[tuple[str, list[Outcome]]], learning: bool) -> Table:
    columns = ["method", "reached %" if learning else "left %", "after NF4 %", "NF4 drift unseen"]
    # Results of before there was such a column lack it.
    has_int8 = any(outcome.rounded_int8 for _, outcomes in rows for outcome in outcomes)
    if has_int8:
        columns += ["after int8 %", "int8 drift unseen"]
    attacked = any(outcome.relearned for _, outcomes in rows for outcome in outcomes)
    if attacked:
        columns += ["other half %", "after relearning %"]
    cells = []
    for name, outcomes in rows:
        # Not every row of a study is attacked.
        if not any(outcome.rounded or outcome.relearned for outcome in outcomes):
            continue
        row = [
            name,
            figure(outcomes, lambda outcome: 100 * outcome.target),
            *_after_rounding(outcomes, "rounded"),
        ]
        if has_int8:
            row += _after_rounding(outcomes, "rounded_int8")
        if attacked:
            row += [
                figure(outcomes, lambda outcome: percent(outcome.relearned.get("rest_before"))),
                figure(outcomes, lambda outcome: percent(outcome.relearned.get("rest"))),
            ]
        cells.append(tuple(row))
    note = "NF4: the linear layers' weights rounded to 4 bits; its drift is the worst keep task's."
    if any_shared(outcome for _, outcomes in rows for outcome in outcomes):
        note += " What the request shares with them is left out."
    if has_int8:
        note += " int8: to 8 bits."
    if attacked:
        note += (
            " Relearning: trained on the facts of every other person to forget; shown is what"
            " comes back of the other half."
        )
    return Table("Does it last?", tuple(columns), cells, note)


def _after_rounding(outcomes: Sequence[Outcome], field: str) -> list[str]:
    if not all(getattr(outcome, field) for outcome in outcomes):
        return [ABSENT, ABSENT]
    return [
        figure(outcomes, lambda outcome: 100 * float(getattr(outcome, field)["target"])),
        figure(outcomes, lambda outcome: max(drifts(outcome, getattr(outcome, field)).values())),
    ]


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
