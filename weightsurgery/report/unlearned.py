"""The training behind an edit from data sets, as tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from weightsurgery.report.guarded import guard_tables, look_table
from weightsurgery.report.tables import Table, facts_table, percent

if TYPE_CHECKING:
    from weightsurgery.checkpoint.record import EditRecord

__all__ = ["round_tables"]


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
    rows: list[tuple[str, ...]] = [
        (
            "examples",
            f"{summary['examples']}, at {gathered['places']} places where the truth is said",
        ),
        ("wordings", str(len(gathered["wordings"]))),
        ("neighbours", str(gathered["neighbours"])),
        *_held_rows(gathered),
        ("steps", str(summary["steps"])),
        ("norm of the vector", f"{summary['norm']:.4g}"),
    ]
    if every:
        prompts = [_wording_text(wording) for wording in gathered["wordings"]]
        rows += [("wording", text) for text in prompts]
    done = "Learned" if record.parameters["edit"] == "learn" else "Forgotten"
    looks = summary["looks"]
    shown = looks if every else [looks[0], *(e for e in looks if e["step"] == summary["steps"])]
    facts = facts_table(f"{done} by neighbours", rows)
    return [facts, look_table(shown, summary["steps"]), *guard_tables(summary["guard"])]


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
