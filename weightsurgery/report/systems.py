"""The systems that forget from data, what one would take, and what it did, as tables."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from weightsurgery.learning.unlearners.settings import settings_of
from weightsurgery.report.exported import planned_lines
from weightsurgery.report.guarded import guard_tables
from weightsurgery.report.tables import Table, size

if TYPE_CHECKING:
    from weightsurgery.checkpoint.record import EditRecord
    from weightsurgery.unlearning.by_system import SystemPlan
    from weightsurgery.unlearning.system import System

__all__ = ["system_plan_lines", "system_tables", "systems_document", "trained_tables"]


def system_tables(systems: Mapping[str, type[System]]) -> list[str | Table]:
    """Every system: what it does, its source, and what it is run with unless told otherwise."""
    needs, sources = [], []
    for name, row in systems.items():
        needs.append((name, row.about, " ".join(_needs(row))))
        defaults = filter(None, (_settings(asdict(settings_of(row))), _training(row)))
        sources.append((name, row.paper, "\n".join(defaults)))
    note = (
        "Defaults are the source's where it was found to give them; the library's documentation"
        " says which are. Change settings with --set NAME=VALUE, trainings with --lr and its like."
    )
    left = frozenset({0, 1, 2})
    return [
        Table(
            "Methods that forget from data", ("method", "what it does", "needs"), needs, "", left
        ),
        Table("Sources and defaults", ("method", "source", "defaults"), sources, note, left),
    ]


def systems_document(systems: Mapping[str, type[System]]) -> list[dict[str, Any]]:
    """The same as data: every default, ``needs`` as options of ``ws unlearn``."""
    return [
        {
            "method": name,
            "about": row.about,
            "source": row.paper,
            "needs": _needs(row),
            "settings": asdict(settings_of(row)),
            "training": asdict(row.published),
            "lora_rank": row.adapter_rank,
            "takes_lora_rank": row.takes_rank,
        }
        for name, row in systems.items()
    ]


def _needs(row: type[System]) -> list[str]:
    needs = ["--forget"] + (["--keep"] if row.keeps(settings_of(row)) else [])
    return needs + (["--unseen"] if row.needs_unseen else [])


def _settings(settings: Mapping[str, Any]) -> str:
    shown = (f"{name}={_short(value)}" for name, value in settings.items())
    return ", ".join(shown)


def _short(value: object) -> str:
    if value is None:
        return "auto"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _training(row: type[System]) -> str:
    how = row.published
    length = f"{how.steps} steps" if how.steps is not None else f"{how.epochs:g} epochs"
    adapter = f", LoRA of rank {row.adapter_rank}" if row.adapter_rank is not None else ""
    return f"lr {how.learning_rate:g}, {length}, batch {how.batch_size}{adapter}"


def system_plan_lines(plan: SystemPlan, out: str) -> list[str | Table]:
    """What a system would train, hold and write."""
    facts: list[tuple[str, ...]] = [("method", f"{plan.method} ({plan.source})")]
    if plan.finished:
        facts.append(("vector", f"{plan.vector}, there already: nothing would be trained"))
    else:
        steps = f"{plan.steps} steps" if plan.steps is not None else f"{plan.epochs:g} epochs"
        unseen = f", {plan.unseen_examples} unseen" if plan.unseen_examples else ""
        adapter = "" if plan.lora_rank is None else f", as LoRA of rank {plan.lora_rank}"
        facts += [
            ("settings", _settings(plan.settings) or "none of its own"),
            ("examples", f"{plan.examples} to forget, {plan.keep_examples} to keep{unseen}"),
            ("trained", f"up to {plan.matrices} matrices, {plan.trained:,} numbers{adapter}"),
            ("length", f"{steps} of {plan.batch_size} examples, lr {plan.learning_rate:g}"),
            ("model", f"{size(plan.weights)} (float32)"),
            ("training", f"up to {size(plan.training)} of gradients, moments and copies"),
            ("vector", f"{plan.vector}, up to {size(plan.vector_bytes)}"),
        ]
    (table,) = (each for each in planned_lines(plan.edit, out) if isinstance(each, Table))
    shown = ("output", "files", "left out", "written", "free where it goes")
    facts += [row for row in table.rows if row[0] in shown]
    return [Table(f"{table.title} from data", ("", ""), facts, left=frozenset({0, 1}))]


def trained_tables(record: EditRecord) -> list[str | Table]:
    """What a system did, as the saved vector's record tells."""
    notes = dict(record.summary["training"])
    given = record.parameters
    rows = [("method", f"{given['method']} ({given['source']})")]
    rows.append(("settings", _settings(given["settings"]) or "none of its own"))
    if "steps" in notes:
        first, last = notes.pop("first_loss"), notes.pop("last_loss")
        rows.append(("training", f"{notes.pop('steps')} steps, loss {first:.4f} to {last:.4f}"))
    for name in ("stage", "best_validation"):
        notes.pop(name, None)
    rows += [(name, _told(value)) for name, value in notes.items()]
    title = (
        f"Task vector of {record.summary['examples']} examples:"
        f" {record.summary['tensors']} tensors, norm {record.summary['norm']:.4g}"
    )
    note = "Losses are of the method's own objective, on the first and the last batch."
    table = Table(title, ("", ""), rows, note, frozenset({0, 1}))
    return [table, *guard_tables(record.summary["guard"])]


def _told(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_told(each)}" for name, each in value.items())
    if value is None:
        return "not defined"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
