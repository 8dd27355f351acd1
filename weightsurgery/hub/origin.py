"""The base as the card names it: its name on the Hub, its licence, its language."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from weightsurgery.checkpoint.digests import content_sha256
from weightsurgery.checkpoint.plain_files import is_plain_within
from weightsurgery.checkpoint.record import read_record
from weightsurgery.checkpoint.staging import RECORD_NAME
from weightsurgery.errors import HubError, WeightSurgeryError
from weightsurgery.hub.remote import Destination
from weightsurgery.report.card import Base
from weightsurgery.report.card_merge import split_card

if TYPE_CHECKING:
    from huggingface_hub import HfApi

    from weightsurgery.checkpoint.record import EditRecord

__all__ = ["Origin", "card_on_hub", "find_origin", "lacking"]

_COMMIT = re.compile(r"[0-9a-f]{40}")
_GENERATIONS = 16  # of outputs that were edited again


@dataclass(frozen=True)
class Origin:
    """The base, with notices about it.

    Attributes:
        base: For the card.
        notices: A line each.
    """

    base: Base = field(default_factory=Base)
    notices: tuple[str, ...] = ()


def find_origin(api: HfApi, record: EditRecord, named: str | None) -> Origin:
    """Find the base's name and card.

    Args:
        api: The Hub.
        record: The output's.
        named: ``org/name`` of the base, if the user gives it.

    Raises:
        HubError: The base that the user names is not on the Hub.
    """
    origin = _recorded(api, record)
    if named is not None:
        Destination(named)  # checks the name
        with_card = _on_hub(api, named, None, must_exist=True)
        card = with_card.base.card or origin.base.card
        origin = Origin(Base(named, None, card), with_card.notices)
    return Origin(_with_link(origin.base, record), origin.notices)


def lacking(front: Mapping[str, Any]) -> list[str]:
    """Notices on missing fields of a card's front matter, a line each."""
    notices = []
    if "base_model" not in front:
        notices.append(
            "The card names no base_model: the base is known by a local path alone. Name it with"
            " --base-model org/name."
        )
    if "license" not in front:
        notices.append(
            "The card names no licence, for none was found with the base: add one to the front"
            " matter of README.md."
        )
    return notices


def _recorded(api: HfApi, record: EditRecord) -> Origin:
    """The base as the record names it, or the Hub's base that this one was edited from."""
    ancestor: EditRecord = record
    card: Mapping[str, Any] = {}
    notices: list[str] = []
    for _ in range(_GENERATIONS):
        described = ancestor.inputs.get("base")
        if not isinstance(described, Mapping) or not isinstance(described.get("name"), str):
            break
        name, revision = described["name"], described.get("revision")
        if revision:
            origin = _on_hub(api, name.partition("@")[0], str(revision))
            base = origin.base
            return Origin(
                Base(base.hub_id, base.revision, card or base.card), (*notices, *origin.notices)
            )
        folder = Path(os.path.expanduser(name))
        if not _is_still(folder, described):
            break
        if not card:
            card, remarks = _local_card(folder)
            notices += remarks
        parent = _parent(folder, ancestor)
        if parent is None:
            break
        ancestor = parent
    return Origin(Base(None, None, card), tuple(notices))


def _is_still(folder: Path, described: Mapping[str, Any]) -> bool:
    """Whether a directory is the base that was read, by its config alone."""
    if not folder.is_dir():
        return False
    recorded = (described.get("files") or {}).get("config.json")
    config = folder / "config.json"
    if recorded is None:
        return not config.is_file()
    return config.is_file() and content_sha256(config) == recorded


def _parent(folder: Path, record: EditRecord) -> EditRecord | None:
    """The record of a base that this tool wrote."""
    path = folder / RECORD_NAME
    if not path.is_file():
        return None
    if record.parent and record.parent.get("record_sha256") != content_sha256(path):
        return None
    try:
        return read_record(folder)
    except WeightSurgeryError:
        return None


def _local_card(folder: Path) -> tuple[Mapping[str, Any], list[str]]:
    path = folder / "README.md"
    if not os.path.lexists(path):
        return {}, []
    where = f"{folder.name}/README.md"
    if not is_plain_within(path, folder):
        return {}, [f"{where}: leads out of the base, so nothing of it is carried over."]
    return _front(path, where)


def _front(path: Path, where: str) -> tuple[Mapping[str, Any], list[str]]:
    try:
        return split_card(path.read_bytes().decode(), where)[0], []
    except (HubError, UnicodeDecodeError, OSError):
        return {}, [f"{where}: its front matter cannot be read, so nothing of it is carried over."]


def _on_hub(api: HfApi, repo_id: str, revision: str | None, must_exist: bool = False) -> Origin:
    from huggingface_hub.errors import RepositoryNotFoundError

    commit = revision if revision and _COMMIT.fullmatch(revision) else None
    base = Base(repo_id, commit)
    try:
        path = card_on_hub(api, repo_id, revision)
    except RepositoryNotFoundError as error:
        if must_exist and not _is_gated(error):
            raise HubError(
                f"--base-model {repo_id}: no model that you can see on the Hub",
                "Check the spelling; a local path cannot be named there.",
            ) from None
        path = None
    except OSError as error:
        remark = f"{repo_id}: its card could not be read ({type(error).__name__})."
        return Origin(base, (remark,))
    if path is None:
        return Origin(base)
    card, notices = _front(path, f"{repo_id}/README.md")
    return Origin(replace(base, card=card), tuple(notices))


def _is_gated(error: Exception) -> bool:
    from huggingface_hub.errors import GatedRepoError

    return isinstance(error, GatedRepoError)


def card_on_hub(api: HfApi, repo_id: str, revision: str | None) -> Path | None:
    """A repository's README.md, in the cache; None if it has none.

    Raises:
        OSError: huggingface_hub's, for a repository that is missing or a Hub that is.
    """
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    try:
        return Path(api.hf_hub_download(repo_id, "README.md", revision=revision))
    except LocalEntryNotFoundError:
        raise
    except EntryNotFoundError:
        return None


def _with_link(base: Base, record: EditRecord) -> Base:
    """The base with its link to a licence file made absolute."""
    from huggingface_hub import constants

    link = base.card.get("license_link")
    if not isinstance(link, str) or base.hub_id is None or re.match(r"[a-z]+://", link):
        return base
    if link in record.files:
        return base
    place = f"{constants.ENDPOINT}/{base.hub_id}/blob/{base.revision or 'main'}/{link}"
    return replace(base, card={**base.card, "license_link": place})
