"""Trainings as tables: of an edit from data, of ``ws identify``, of the survey's systems."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from weightsurgery.learning.unlearners.settings import settings_of
from weightsurgery.report.guarded import guard_tables, look_table
from weightsurgery.report.tables import Table, facts_table, percent

if TYPE_CHECKING:
    from weightsurgery.checkpoint.record import EditRecord
    from weightsurgery.unlearning.system import System

__all__ = [
    "identified_tables",
    "round_tables",
    "settings_line",
    "system_tables",
    "systems_document",
    "trained_tables",
]


def round_tables(record: EditRecord, every: bool = False) -> list[str | Table]:
    """The rounds: losses, and what was left of each watched set.

    Args:
        record: The saved vector's.
        every: Every look at the validation data too, instead of each round's last.
    """
    if record.parameters["objective"] == "neighbours":
        return _by_neighbours(record, every)
    summary, steps = record.summary, record.parameters["steps"]
    looks = summary["watched"]
    names = list(looks[0]["keep"]) if looks else []
    target = "to learn" if record.parameters["edit"] == "learn" else "to forget"
    watched = (target, *_shown(names)) if looks else ()

    def cells(look: dict[str, Any] | None) -> tuple[str, ...]:
        if look is None:
            return ("",) * len(watched)
        keep_shares = look["keep"]
        assert isinstance(keep_shares, dict)
        return tuple(percent(share) for share in (look["target"], *keep_shares.values()))

    rows = [("before", "", "", *cells(looks[0]))] if looks else []
    for number, losses in enumerate(summary["rounds"], 1):
        inside = [look for look in looks[1:] if (number - 1) * steps < look["step"]]
        inside = [look for look in inside if look["step"] <= number * steps]
        if every:
            rows += [("", f"step {look['step']}", "", *cells(look)) for look in inside[:-1]]
        shown = (f"{losses['first_loss']:.4f}", f"{losses['last_loss']:.4f}")
        rows.append((str(number), *shown, *cells(inside[-1] if inside else None)))
    title = f"Task vector of {summary['examples']} examples, norm {summary['norm']:.4g}"
    note = "Losses are of a round's first and last batch."
    if "kept_energy" in summary:
        note += f" Truncated, the vector holds {percent(summary['kept_energy'])} of its energy."
    if looks:
        note += (
            " Figures are answers to validation data that begin with the truth (in chat: contain"
            " it); the best weights that left every set to keep at"
            f" {percent(record.parameters['threshold'])} of before count."
        )
    columns = ("round", "loss before", "loss after", *watched)
    return [Table(title, columns, rows, note), *guard_tables(summary["guard"])]


def _by_neighbours(record: EditRecord, every: bool) -> list[str | Table]:
    """What was gathered, the looks of the training, and the guard."""
    summary, gathered = record.summary, record.summary["gathered"]
    strength = gathered.get("strength")
    taken_back = strength is not None
    rows: list[tuple[str, ...]] = [
        (
            "examples",
            f"{summary['examples']}, at {gathered['places']} places where the truth is said",
        ),
        ("wordings", str(len(gathered["wordings"]))),
        ("neighbours", str(gathered["neighbours"])),
        *_held_rows(gathered),
        *([("strength", f"{strength:.3g}")] if taken_back else []),
        ("steps", str(summary["steps"])),
        *_sureness_rows(gathered.get("sure")),
        ("norm of the vector", f"{summary['norm']:.4g}"),
    ]
    if every:
        prompts = [_wording_text(wording) for wording in gathered["wordings"]]
        rows += [("wording", text) for text in prompts]
    done = "Learned" if record.parameters["edit"] == "learn" else "Forgotten"
    looks = summary["looks"]
    shown = (
        looks
        if every or taken_back
        else [looks[0], *(e for e in looks if e["step"] == summary["steps"])]
    )
    facts = facts_table("Taken back" if taken_back else f"{done} by neighbours", rows)
    looked = look_table(shown, summary["steps"], not taken_back)
    return [facts, looked, *guard_tables(summary["guard"])]


def _sureness_rows(sure: Mapping[str, float] | None) -> list[tuple[str, ...]]:
    """How undecided the model is about the request, and about strangers."""
    if not sure:
        return []
    after = f", {sure['after']:.2f} after" if "after" in sure else ""
    return [
        (
            "undecided",
            f"about the request {sure['before']:.2f} nats a token when taken back{after};"
            f" about strangers {sure['strangers']:.2f}",
        )
    ]


def _held_rows(gathered: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """How much of the data to keep is held, and how much of it the model answered itself."""
    counts = gathered.get("kept_given")
    if not counts:
        return []
    text = f"{counts['read']} of {counts['texts']} texts are read"
    if counts["given"]:
        text += (
            f", {counts['asked']} of {counts['given']} prompts answered in the model's own words"
        )
    if counts["too_long"]:
        text += f"; {counts['too_long']} are too long to be asked"
    return [("to keep", text)]


def _wording_text(wording: Mapping[str, Any]) -> str:
    form = wording["form"] or "(the request's own words)"
    text = f"{wording['before']}{form}{wording['after']}".replace("\n", " ⏎ ")
    return f"{text}  [chat]" if wording["chat"] else text


def _shown(names: Sequence[str]) -> list[str]:
    """Files by their last part, or as given where two share that."""
    ends = [PurePath(name).name for name in names]
    return [end if ends.count(end) == 1 else name for end, name in zip(ends, names, strict=True)]


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
