"""The model card of an output, written from its record.

Pure functions of what they are given: no network, no clock, no machine. The same record gives the
same card. :func:`weightsurgery.report.card_merge.merge_card` puts it beside what a user wrote.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from weightsurgery.report.card_figures import (
    PICTURE,
    checksums,
    figures,
    inputs,
    layer_bars,
    unrelated,
)
from weightsurgery.report.card_limits import limits
from weightsurgery.report.card_method import is_kept, method, tell
from weightsurgery.report.card_scores import EVALUATION, score_tables
from weightsurgery.report.card_text import (
    block,
    code,
    hub_names,
    literal,
    shown_command,
    shown_name,
)

if TYPE_CHECKING:
    from weightsurgery.checkpoint.record import EditRecord

__all__ = ["CARRIED", "Base", "Place", "card_section", "front_matter"]

CARRIED = ("license", "license_name", "license_link", "language", "pipeline_tag")
"""Keys of the base's card that hold for what was made from it."""


@dataclass(frozen=True)
class Base:
    """What is known of the base beyond the record.

    Attributes:
        hub_id: ``org/name``; None for a base that is on no Hub.
        revision: Its commit, if known.
        card: Front matter of its card; empty if there is none.
    """

    hub_id: str | None = None
    revision: str | None = None
    card: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Place:
    """Where the output goes, and what lies there beside its weights.

    Attributes:
        repo_id: ``org/name``.
        branch: The branch, ``"main"`` by default.
        architecture: First of the config's ``architectures``; None if it names none.
        scores: Documents of ``ws evaluate --json`` about it.
        picture: Whether a picture of the layers is uploaded.
    """

    repo_id: str
    branch: str = "main"
    architecture: str | None = None
    scores: Sequence[Mapping[str, Any]] = ()
    picture: bool = False


def front_matter(record: EditRecord, base: Base) -> dict[str, Any]:
    """The card's metadata; keys of which nothing is known are left out."""
    from huggingface_hub import ModelCardData

    told = tell(record)
    carried = {key: base.card[key] for key in CARRIED if base.card.get(key) is not None}
    library = {"adapter": "peft"}.get(record.kind, "weightsurgery")
    relation = {"adapter": "adapter", "checkpoint": "finetune"}.get(record.kind)
    if record.kind == "checkpoint":
        named = base.card.get("library_name")
        known = "transformers" if "config.json" in record.files else None
        library = str(named) if named else known or library
    else:
        own = record.kind == "adapter"
        carried = {key: carried[key] for key in carried if own or key != "pipeline_tag"}
    data = ModelCardData(
        base_model=base.hub_id,
        base_model_relation=relation if base.hub_id else None,
        library_name=library,
        tags=told.tags,
        **carried,
    )
    found: dict[str, Any] = data.to_dict()  # type: ignore[no-untyped-call]
    return found


def card_section(record: EditRecord, base: Base, place: Place, alone: bool) -> str:
    """Our part of the card, Markdown.

    Args:
        record: The output's.
        base: Its base.
        place: Where it goes.
        alone: Whether the card holds nothing else; a user's own text has a title already.
    """
    title = literal(place.repo_id.rpartition("/")[2])
    heading = f"# {title}" if alone else "## How this was made"
    level = "##" if alone else "###"
    model = record.kind in ("checkpoint", "adapter")
    parts: list[tuple[str, str]] = [
        ("", _opening(record, base)),
        ("What went in", _went_in(record)),
        ("How to use it", _use(record, base, place)),
        ("Method", "\n\n".join(method(record))),
        ("The command", _command(record)),
        ("Before and after", _scores(record, place)),
        ("What changed" if model else "In figures", _changed(record, place)),
        ("Limits and warnings", limits(record)),
        ("Check it, make it again", _again(record, place)),
    ]
    texts = [heading]
    texts += [f"{level} {name}\n\n{text}" if name else text for name, text in parts if text]
    return "\n\n".join(texts)


def _opening(record: EditRecord, base: Base) -> str:
    told = tell(record)
    origin = code(base.hub_id) if base.hub_id else code(_base_name(record))
    if record.kind == "activation-statistics":
        return f"Statistics of what goes into the linear layers of {origin}, on given data."
    if record.kind == "task-vector":
        return f"A task vector of {origin}: a change of its weights, to be added or taken away."
    removed, added = _named(record)
    words = []
    if removed:
        words.append(f"without {_listing(removed)}")
    if added:
        words.append(f"with {_listing(added)} added")
    kept = [code(shown_name(each)) for role, each in _listed(record).items() if is_kept(role)]
    if kept:
        words.append(f"keeping {_listing(kept)}")
    by = "" if not told.edit else f" by `ws {told.edit}`"
    done = ", ".join(words) or "see below"
    if record.kind == "adapter":
        return (
            f"An adapter for {origin}, made{by or ' by WeightSurgery'}. The base with it: {done}."
        )
    return f"This is {origin}, edited in its weights{by}: {done}."


def _listed(record: EditRecord) -> dict[str, Mapping[str, Any]]:
    return {**record.inputs, **(record.parameters.get("data") or {})}


def _named(record: EditRecord) -> tuple[list[str], list[str]]:
    """Names of what was taken away and of what was added."""
    told = tell(record)
    removed: list[str] = []
    added: list[str] = []
    for role, each in _listed(record).items():
        if role == "base" or is_kept(role) or role.startswith("validation"):
            continue
        if told.from_data and role.startswith("vector"):
            continue
        factor = each.get("factor")
        opposite = isinstance(factor, int | float) and factor < 0
        plain = record.kind == "adapter" and not told.edit
        if not told.sign and not plain:
            continue
        away = opposite if plain else told.removes != opposite
        (removed if away else added).append(code(shown_name(each)))
    return removed, added


def _listing(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _base_name(record: EditRecord) -> str:
    return shown_name(record.inputs.get("base", {"name": "a base"}))


def _went_in(record: EditRecord) -> str:
    told = tell(record)
    drawn = inputs(record, told)
    local = [each for each in _listed(record).values() if not each.get("revision")]
    notes = [*unrelated(record)]
    if local:
        notes.append("Local files are named by the last part of their path alone.")
    if record.parent:
        name = code(PurePath(str(record.parent.get("name", ""))).name)
        notes.append(f"The base {name} was itself written by WeightSurgery.")
    return "\n\n".join([drawn, *notes])


def _use(record: EditRecord, base: Base, place: Place) -> str:
    repo = place.repo_id
    revision = "" if place.branch == "main" else f', revision="{place.branch}"'
    at = repo if place.branch == "main" else f"{repo}@{place.branch}"
    named = base.hub_id or "path/to/the/base"
    if record.kind == "task-vector":
        lines = [f"ws add {named} {at} -o changed          # or: ws negate, with --scale"]
        return block(lines, "sh")
    if record.kind == "activation-statistics":
        return block([f"ws project {named} --forget VECTOR --keep {at} -o edited"], "sh")
    causal = (place.architecture or "").endswith(("ForCausalLM", "LMHeadModel"))
    auto = "AutoModelForCausalLM" if causal or record.kind == "adapter" else "AutoModel"
    if record.kind == "adapter":
        pinned = f', revision="{base.revision}"' if base.hub_id and base.revision else ""
        lines = [
            "from peft import PeftModel",
            f"from transformers import {auto}",
            "",
            f'base = {auto}.from_pretrained("{named}"{pinned})',
            f'model = PeftModel.from_pretrained(base, "{repo}"{revision})',
        ]
        note = "\n\n`model.merge_and_unload()` puts it into the weights."
        return block(lines, "python") + note
    if "config.json" not in record.files:
        return block([f"hf download {repo} --revision {place.branch} --local-dir model"], "sh")
    has_words = any(name.startswith(("tokenizer", "vocab")) for name in record.files)
    lines = [
        f"from transformers import {auto}{', AutoTokenizer' if has_words else ''}",
        "",
        f'model = {auto}.from_pretrained("{repo}"{revision}, dtype="auto")',
    ]
    if has_words:
        lines.append(f'tokenizer = AutoTokenizer.from_pretrained("{repo}"{revision})')
    return block(lines, "python")


def _command(record: EditRecord) -> str:
    if not record.command:
        return "Made from Python; `weightsurgery.json` holds every parameter."
    return block([shown_command(record.command, hub_names(record.inputs))], "sh")


def _scores(record: EditRecord, place: Place) -> str:
    if not place.scores and record.kind in ("task-vector", "activation-statistics"):
        return ""
    if not place.scores:
        return "Not scored yet. `ws evaluate` measures what is gone and what stayed."
    return f"{score_tables(place.scores)}\n\nThe whole of it is in `{EVALUATION}`."


def _changed(record: EditRecord, place: Place) -> str:
    drawn = f"![Size of the change by layer]({PICTURE})" if place.picture else layer_bars(record)
    notes = []
    check = record.summary.get("edit_check")
    if isinstance(check, int | float) and not 0.9 <= check <= 1.1:
        notes.append(f"Rounding kept {100 * check:.0f} % of the intended change.")
    return "\n\n".join(part for part in (figures(record), *notes, drawn) if part)


def _again(record: EditRecord, place: Place) -> str:
    folder = place.repo_id.rpartition("/")[2]
    revision = "" if place.branch == "main" else f" --revision {place.branch}"
    lines = [f"hf download {place.repo_id}{revision} --local-dir {folder}", f"ws verify {folder}"]
    if record.command:
        lines.append(f"ws run --from {folder} > recipe.yaml")
        lines.append("ws run recipe.yaml -o again          # the same inputs give the same bytes")
    versions = ", ".join(
        f"{literal(name)} {literal(str(v))}" for name, v in record.versions.items()
    )
    return (
        "`weightsurgery.json` holds the command, every parameter, and the SHA-256 of all inputs and"
        f" outputs.\n\n{block(lines, 'sh')}\n\nMade with {versions}.\n\n"
        f"<details><summary>Checksums</summary>\n\n{checksums(record)}\n\n</details>"
    )
