"""The model card of a push: from the record, the base's card, and the user's text."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from weightsurgery.checkpoint.plain_files import is_plain_within
from weightsurgery.errors import HubError
from weightsurgery.hub.failures import push_errors
from weightsurgery.hub.local import LocalFile
from weightsurgery.hub.origin import card_on_hub, find_origin, lacking
from weightsurgery.hub.remote import Destination, Remote
from weightsurgery.report.card import Place, card_section, front_matter
from weightsurgery.report.card_figures import PICTURE, layer_picture
from weightsurgery.report.card_merge import merge_card, split_card
from weightsurgery.report.card_scores import EVALUATION, scores_file

if TYPE_CHECKING:
    from huggingface_hub import HfApi

    from weightsurgery.checkpoint.record import EditRecord

__all__ = ["CARD", "MadeCard", "make_card"]

CARD = "README.md"


@dataclass(frozen=True)
class MadeCard:
    """A card, and the files uploaded with it.

    Attributes:
        text: Of the card.
        files: The card, its picture, and the scores.
        replaced: Text of the card that is there now; "" for none.
        notices: Things the user should know, a line each.
    """

    text: str
    files: tuple[LocalFile, ...]
    replaced: str
    notices: tuple[str, ...]


def make_card(
    api: HfApi,
    place: Path,
    record: EditRecord,
    destination: Destination,
    remote: Remote,
    evaluations: Sequence[Mapping[str, Any]],
    base_model: str | None,
) -> MadeCard:
    """Write the card of an output.

    Args:
        api: The Hub.
        place: The output.
        record: Its record.
        destination: Where it goes.
        remote: What is there.
        evaluations: Documents of ``ws evaluate --json`` about it.
        base_model: ``org/name`` of the base, if the user gives it.

    Raises:
        HubError: A card cannot be read, or the named base is missing.
    """
    origin = find_origin(api, record, base_model)
    picture = layer_picture(record)
    card_place = Place(
        destination.repo_id,
        destination.branch,
        _architecture(place),
        evaluations,
        picture is not None,
    )
    existing = _existing(api, place, destination, remote)
    merged = merge_card(
        existing.text,
        existing.where,
        front_matter(record, origin.base),
        lambda alone: card_section(record, origin.base, card_place, alone),
    )
    files = [LocalFile.of(CARD, merged.text.encode())]
    if picture is not None:
        files.append(LocalFile.of(PICTURE, picture))
    if evaluations:
        files.append(LocalFile.of(EVALUATION, scores_file(evaluations)))
    front, _ = split_card(merged.text, existing.where)
    notices = (*merged.notices, *existing.notices, *origin.notices, *lacking(front))
    return MadeCard(merged.text, tuple(files), existing.remote, notices)


@dataclass(frozen=True)
class _Existing:
    """The card that ours is merged into, and the one in the repository."""

    text: str | None
    where: str
    remote: str
    notices: tuple[str, ...] = ()


def _existing(api: HfApi, place: Path, destination: Destination, remote: Remote) -> _Existing:
    there = ""
    where = f"{destination.repo_id}/{CARD}"
    if CARD in remote.files:
        with push_errors(destination.repo_id):
            path = card_on_hub(api, destination.repo_id, remote.head)
        there = _decoded(path.read_bytes(), where) if path else ""
    local = place / CARD
    if not os.path.lexists(local):
        return _Existing(there or None, where, there)
    if not is_plain_within(local, place):
        raise HubError(
            f"{local}: leads out of the output, or is no plain file",
            "Put the card itself in its place, or remove it.",
        )
    text = _decoded(local.read_bytes(), str(local))
    notices: tuple[str, ...] = ()
    if there.strip() and split_card(text, str(local))[1].strip() != _user_text(there, where):
        notices = (f"{local}: its text replaces that of the card on the Hub, which git keeps.",)
    return _Existing(text, str(local), there, notices)


def _user_text(card: str, where: str) -> str:
    """A card's text by the user; all of it where its front matter or markers are damaged."""
    try:
        return split_card(card, where)[1].strip()
    except HubError:
        return card.strip()


def _decoded(content: bytes, where: str) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError:
        raise HubError(f"{where}: not UTF-8", "Save it as UTF-8, or take it away.") from None


def _architecture(place: Path) -> str | None:
    try:
        config = json.loads((place / "config.json").read_text(encoding="utf-8"))
        named = config["architectures"][0]
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return named if isinstance(named, str) else None
