"""The yardstick's results as tables of text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from weightsurgery.lab.bench.cost_tables import cost_table, scale_table
from weightsurgery.lab.bench.figures import (
    ABSENT,
    SHARED,
    UNHELD,
    any_shared,
    cpu,
    drifts,
    figure,
    is_stage,
    marked,
    percent,
    row_name,
    seeds_of,
    worst,
    worst_drift,
)
from weightsurgery.lab.bench.results import Summary
from weightsurgery.report.tables import Table

if TYPE_CHECKING:
    from weightsurgery.lab.bench.results import Bench, Outcome

__all__ = ["bench_tables", "markdown", "study_tables", "variant_tables"]

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


_Row = tuple[str, str, list["Outcome"]]


def study_tables(bench: Bench) -> list[Table]:
    """The outcome of each request: a table of the stages of sequences, and one of all others.

    Stages ("…, 2 of 4") stand under each other per method, so that one reads down how damage
    adds up; other requests hold the methods side by side.

    Args:
        bench: Its outcomes with a request of a name are shown, the others left out.
    """
    rows = [row for row in bench.by_row() if row[1]]
    stages = [row for row in rows if is_stage(row[1])]
    others = [row for row in rows if not is_stage(row[1])]
    tables = []
    if others:
        ordered = _grouped(others, 1)
        tables.append(_table(bench, f"Request by request, {bench.variant} world", ordered))
    if stages:
        ordered = _grouped(stages, 0)
        tables.append(_table(bench, f"Requests after one another, {bench.variant} world", ordered))
    return tables


def _grouped(rows: Sequence[_Row], place: int) -> list[_Row]:
    """Rows of one method or one request together, groups in the order in which they are met."""
    groups = list(dict.fromkeys(row[place] for row in rows))
    return sorted(rows, key=lambda row: groups.index(row[place]))


def _table(bench: Bench, title: str, rows: Sequence[_Row]) -> Table:
    learning = bench.task == "learn"
    all_outcomes = [outcome for *_, outcomes in rows for outcome in outcomes]
    also = list(dict.fromkeys(key for outcome in all_outcomes for key in outcome.also))
    shared = any_shared(all_outcomes)
    columns = (
        "method", "request",
        *(("reached %",) if learning else ("left %", "forgotten %")),
        *(f"{key} %" for key in also),
        *(("shared kept %",) if shared else ()),
        "worst drift unseen", "of", "held", "CPU s",
    )  # fmt: skip
    cells = [tuple(_cells(*row, also, shared, learning)) for row in rows]
    words = frozenset({0, 1, columns.index("of")})
    return Table(title, columns, cells, _note(bench, all_outcomes, also, shared), words)


def _cells(
    method: str,
    request: str,
    outcomes: Sequence[Outcome],
    also: Sequence[str],
    shared: bool,
    learning: bool,
) -> Iterator[str]:
    yield from (method, request, figure(outcomes, lambda outcome: 100 * outcome.target))
    if not learning:
        yield figure(outcomes, lambda outcome: outcome.forgotten)
    for key in also:
        yield figure(outcomes, lambda outcome, key=key: percent(outcome.also.get(key)))  # type: ignore[misc]
    if shared:
        yield figure(outcomes, _shared_kept)
    yield figure(outcomes, worst_drift)
    yield worst(outcomes)
    yield f"{sum(outcome.qualifies for outcome in outcomes)}/{len(outcomes)}"
    yield figure(outcomes, cpu)


def _shared_kept(outcome: Outcome) -> float | None:
    key = f"{SHARED}.unseen"
    if key not in outcome.keep:
        return None
    return 100 * outcome.keep[key] / outcome.keep_before[key]


def _note(bench: Bench, outcomes: Sequence[Outcome], also: Sequence[str], shared: bool) -> str:
    parts = [f"Seeds {seeds_of(outcomes)}; mean ± standard deviation."]
    if bench.task != "learn":
        parts.append("Left: score on the request. Forgotten: over chance, at most 100.")
    if also:
        bases = [
            (key, [e.also_before[key] for e in outcomes if key in e.also_before]) for key in also
        ]
        shown = [
            f"{key} (base {100 * Summary.of(values).mean:.1f})" if values else key
            for key, values in bases
        ]
        parts.append(f"Further sets, score: {'; '.join(shown)}.")
    if shared:
        parts.append(
            "Shared kept: what is left, in % of the base, of facts that request and keep data both"
            " hold, of people on whom no setting was chosen."
        )
    parts.append(
        "Worst drift: of all tasks to keep, on facts given to no edit and no choice"
        f"{' (so not of shared ones)' if shared else ''}, in % of the base's accuracy; 'of' names"
        f" the task. Held: on how many seeds {bench.threshold:.1%} of"
        " every keep task's validation facts were left;"
    )
    if any(is_stage(outcome.asked) for outcome in outcomes):
        parts.append(
            "a request that no candidate held them for is refused, and changes nothing (in one go,"
            " the least harmful is shown). Left and forgotten: of all requests so far; CPU: of the"
            " latest."
        )
    else:
        parts.append("where not, the least harmful is shown.")
    if any(outcome.cpu_seconds is None for outcome in outcomes):
        parts.append(f"{ABSENT}: not measured.")
    return " ".join(parts)
