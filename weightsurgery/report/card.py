"""The model card of an output, written from its record.

Pure functions of what they are given: no network, no clock, no machine. The same record gives the
same card. :func:`weightsurgery.report.card_merge.merge_card` puts it beside what a user wrote.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from weightsurgery.checkpoint.record import EditRecord, as_recorded
from weightsurgery.report.card_figures import (
    PICTURE,
    checksums,
    figures,
    inputs,
    layer_bars,
    unrelated,
)
from weightsurgery.report.card_limits import limits
from weightsurgery.report.card_method import is_kept, method, provenance_of
from weightsurgery.report.card_scores import EVALUATION, score_tables
from weightsurgery.report.card_text import (
    block,
    code,
    hub_names,
    literal,
    shown_command,
    shown_name,
)
from weightsurgery.report.tables import percent

if TYPE_CHECKING:
    from jinja2 import Template

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


@as_recorded()
def front_matter(record: EditRecord, base: Base) -> dict[str, Any]:
    """The card's metadata; keys of which nothing is known are left out."""
    from huggingface_hub import ModelCardData

    provenance = provenance_of(record)
    carried = {key: base.card[key] for key in CARRIED if base.card.get(key) is not None}
    library = {"adapter": "peft"}.get(record.kind, "weightsurgery")
    relation = {"adapter": "adapter", "checkpoint": "finetune"}.get(record.kind)
    if record.kind == "checkpoint":
        named = base.card.get("library_name")
        known = "transformers" if "config.json" in record.files else None
        library = str(named) if named else known or library
    else:
        is_adapter = record.kind == "adapter"
        carried = {key: carried[key] for key in carried if is_adapter or key != "pipeline_tag"}
    data = ModelCardData(
        base_model=base.hub_id,
        base_model_relation=relation if base.hub_id else None,
        library_name=library,
        tags=provenance.tags,
        **carried,
    )
    metadata: dict[str, Any] = data.to_dict()  # type: ignore[no-untyped-call]
    return metadata


@as_recorded()
def card_section(record: EditRecord, base: Base, place: Place, alone: bool) -> str:
    """Our part of the card, Markdown, by the template ``card.md.jinja`` beside this file.

    Args:
        record: The output's.
        base: Its base.
        place: Where it goes.
        alone: Whether the card holds nothing else; a user's own text has a title already.
    """
    provenance = provenance_of(record)
    repo, branch, kind = place.repo_id, place.branch, record.kind
    folder = repo.rpartition("/")[2]
    causal = (place.architecture or "").endswith(("ForCausalLM", "LMHeadModel"))
    parent = PurePath(str(record.parent.get("name", ""))).name if record.parent else None
    return _template().render(
        heading=f"# {literal(folder)}" if alone else "## How this was made",
        level="##" if alone else "###",
        kind=kind,
        is_model=kind in ("checkpoint", "adapter"),
        origin=code(base.hub_id) if base.hub_id else code(_base_name(record)),
        tool=provenance.edit and f"`ws {provenance.edit}`",
        done=_done(record),
        inputs="\n\n".join([inputs(record, provenance), *unrelated(record)]),
        local_inputs=any(not version.get("revision") for version in _listed(record).values()),
        parent=None if parent is None else code(parent),
        base=base.hub_id or "path/to/the/base",
        base_revision=base.revision if base.hub_id else None,
        repo=repo,
        branch=branch,
        revision="" if branch == "main" else f', revision="{branch}"',
        at=repo if branch == "main" else f"{repo}@{branch}",
        folder=folder,
        model_class="AutoModelForCausalLM" if causal or kind == "adapter" else "AutoModel",
        has_config="config.json" in record.files,
        has_words=any(name.startswith(("tokenizer", "vocab")) for name in record.files),
        method="\n\n".join(method(record)),
        command=block([shown_command(record.command, hub_names(record.inputs))], "sh")
        if record.command
        else "",
        scores=score_tables(place.scores) if place.scores else None,
        evaluation=EVALUATION,
        figures=figures(record),
        kept_by_rounding=_kept_by_rounding(record),
        layers=f"![Size of the change by layer]({PICTURE})"
        if place.picture
        else layer_bars(record),
        limits=limits(record),
        versions=", ".join(
            f"{literal(name)} {literal(str(version))}" for name, version in record.versions.items()
        ),
        checksums=checksums(record),
    )


@cache
def _template() -> Template:
    from jinja2 import Environment, StrictUndefined

    # Markdown is made safe where it is made: see card_text.
    environment = Environment(
        trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined, autoescape=False
    )
    environment.filters["block"] = lambda text, language: block(
        text.strip("\n").split("\n"), language
    )
    return environment.from_string((files(__package__) / "card.md.jinja").read_text("utf-8"))


def _done(record: EditRecord) -> str:
    """What was taken away, added and kept, in words."""
    removed, added = _named(record)
    words = []
    if removed:
        words.append(f"without {_listing(removed)}")
    if added:
        words.append(f"with {_listing(added)} added")
    to_keep = [
        code(shown_name(source)) for role, source in _listed(record).items() if is_kept(role)
    ]
    if to_keep:
        words.append(f"keeping {_listing(to_keep)}")
    return ", ".join(words) or "see below"


def _kept_by_rounding(record: EditRecord) -> str | None:
    check = record.summary.get("edit_check")
    if isinstance(check, int | float) and not 0.9 <= check <= 1.1:
        return percent(check, 0)
    return None


def _listed(record: EditRecord) -> dict[str, Mapping[str, Any]]:
    return {**record.inputs, **(record.parameters.get("data") or {})}


def _named(record: EditRecord) -> tuple[list[str], list[str]]:
    """Names of what was taken away and of what was added."""
    provenance = provenance_of(record)
    removed: list[str] = []
    added: list[str] = []
    for role, source in _listed(record).items():
        if role in ("base", "never_knew") or is_kept(role) or role.startswith("validation"):
            continue
        if provenance.from_data and role.startswith("vector"):
            continue
        factor = source.get("factor")
        opposite = isinstance(factor, int | float) and factor < 0
        plain = record.kind == "adapter" and not provenance.edit
        if not provenance.sign and not plain:
            continue
        away = opposite if plain else provenance.removes != opposite
        (removed if away else added).append(code(shown_name(source)))
    return removed, added


def _listing(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _base_name(record: EditRecord) -> str:
    return shown_name(record.inputs.get("base", {"name": "a base"}))
