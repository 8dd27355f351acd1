"""The systems that forget from data, what one would take, and what it did, as tables."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from weightsurgery.learning.unlearners.settings import settings_of
from weightsurgery.report.guarded import guard_tables
from weightsurgery.report.tables import Table, facts_table

if TYPE_CHECKING:
    from weightsurgery.checkpoint.record import EditRecord
    from weightsurgery.unlearning.system import System

__all__ = ["settings_line", "system_tables", "systems_document", "trained_tables"]


def system_tables(systems: Mapping[str, type[System]]) -> list[str | Table]:
    """Every system: what it does, its source, and its default settings."""
    needs, sources = [], []
    for name, row in systems.items():
        needs.append((name, row.about, " ".join(_needs(row))))
        defaults = filter(None, (settings_line(asdict(settings_of(row))), _training(row)))
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


def settings_line(settings: Mapping[str, Any]) -> str:
    """Settings as ``name=value``."""
    shown = (f"{name}={_short(value)}" for name, value in settings.items())
    return ", ".join(shown)


def _short(value: object) -> str:
    if value is None:
        return "auto"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _training(row: type[System]) -> str:
    training = row.published
    length = (
        f"{training.steps} steps" if training.steps is not None else f"{training.epochs:g} epochs"
    )
    adapter = f", LoRA of rank {row.adapter_rank}" if row.adapter_rank is not None else ""
    return f"lr {training.learning_rate:g}, {length}, batch {training.batch_size}{adapter}"


def trained_tables(record: EditRecord) -> list[str | Table]:
    """A system's training, from the saved vector's record."""
    notes = dict(record.summary["training"])
    given = record.parameters
    rows = [("method", f"{given['method']} ({given['source']})")]
    rows.append(("settings", settings_line(given["settings"]) or "none of its own"))
    if "steps" in notes:
        first, last = notes.pop("first_loss"), notes.pop("last_loss")
        rows.append(("training", f"{notes.pop('steps')} steps, loss {first:.4f} to {last:.4f}"))
    for name in ("stage", "best_validation"):
        notes.pop(name, None)
    rows += [(name, _value_text(value)) for name, value in notes.items()]
    title = (
        f"Task vector of {record.summary['examples']} examples:"
        f" {record.summary['tensors']} tensors, norm {record.summary['norm']:.4g}"
    )
    note = "Losses are of the method's own objective, on the first and the last batch."
    table = facts_table(title, rows, note)
    return [table, *guard_tables(record.summary["guard"])]


def _value_text(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_value_text(item)}" for name, item in value.items())
    if value is None:
        return "not defined"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
