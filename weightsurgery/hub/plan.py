"""The plan of a push: everything is read and checked, nothing is written.

A commit on a branch shows in the branch's files. A pull request is a separate ref, whose number is
not known after a lost response; so those that this account opened are searched.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from weightsurgery.checkpoint.digest_cache import Stamp
from weightsurgery.checkpoint.record import read_record, verify
from weightsurgery.errors import HubError
from weightsurgery.hub.carded import make_card
from weightsurgery.hub.failures import push_errors
from weightsurgery.hub.local import LocalFile, copied_bytes, recorded_files, stamps, warnings_of
from weightsurgery.hub.remote import Destination, Remote, look, tree_of
from weightsurgery.hub.upload import quiet_hub
from weightsurgery.progress import Progress
from weightsurgery.report.card_figures import PICTURE
from weightsurgery.report.card_merge import BEGIN
from weightsurgery.report.card_scores import EVALUATION, check_content, read_scores

if TYPE_CHECKING:
    from huggingface_hub import HfApi

    from weightsurgery.checkpoint.record import EditRecord

__all__ = ["PullRequest", "PushPlan", "find_pull_request", "plan_push"]


@dataclass(frozen=True)
class PushPlan:
    """A checked push that is not done yet.

    Attributes:
        out: The output.
        record: Its record.
        destination: Where it goes.
        remote: The repository as it is.
        account: The account of the token; None where there is none.
        uploads: Files that the commit adds or replaces.
        present: Files that are there already, whole.
        deleted: Files that the commit deletes: weights and indexes of others.
        copied: Bytes, in the uploads, of tensors that the edit did not change; None where that is
            not known.
        title: The commit's first line.
        card: Text of the model card.
        notices: Things the user should know, a line each.
        open_pull_request: The pull request that holds all of it already, if there is one.
        seen: What would change if a file did.
    """

    out: Path
    record: EditRecord
    destination: Destination
    remote: Remote
    account: str | None
    uploads: tuple[LocalFile, ...]
    present: tuple[LocalFile, ...]
    deleted: tuple[str, ...]
    copied: int | None
    title: str
    card: str
    notices: tuple[str, ...]
    open_pull_request: PullRequest | None
    file_stamps: Mapping[Path, Stamp] = field(repr=False)

    @property
    def files(self) -> tuple[LocalFile, ...]:
        """All that the repository is to hold of this output."""
        return (*self.uploads, *self.present)

    @property
    def changes(self) -> bool:
        """Whether there is anything to commit."""
        return bool(self.uploads or self.deleted)

    @property
    def creates(self) -> bool:
        """Whether the repository is to be made."""
        return not self.remote.exists

    @property
    def creates_branch(self) -> bool:
        """Whether the branch is to be made."""
        return self.destination.branch != "main" and not self.remote.branch_exists


def plan_push(
    api: HfApi,
    out: str | os.PathLike[str],
    destination: Destination,
    *,
    title: str = "",
    overwrite: bool = False,
    base_model: str | None = None,
    scores: Sequence[str | os.PathLike[str]] = (),
    anonymous: bool = False,
    progress: Progress | None = None,
) -> PushPlan:
    """Verify an output, inspect its destination, and compose its card.

    Args:
        api: The Hub.
        out: A directory written by this tool.
        destination: Where it goes.
        title: The commit's first line; by default it names the command that wrote the output.
        overwrite: Replace weights that this tool did not write.
        base_model: ``org/name`` of the base, where the record knows a local path alone.
        scores: Documents of ``ws evaluate --json`` about this output.
        anonymous: Go on without a token where there is none; private repositories are then unseen.
        progress: Called as ``progress("checking", done, total)`` in bytes.

    Raises:
        VerificationError: The output is not what its record says.
        HubError: It may not or cannot be pushed.
        DataError: The scores are of another output, or of other bytes than it holds.
    """
    place = Path(os.path.realpath(out))
    evaluations = [read_scores(path, place) for path in scores]
    file_stamps: dict[Path, Stamp] = {}
    record = _verified(place, file_stamps, progress)
    for path, evaluation in zip(scores, evaluations, strict=True):
        check_content(evaluation, path, place, record)
    account = _account(api, destination, anonymous)
    with quiet_hub():
        remote = look(api, destination)
        _may_replace(destination, remote, overwrite)
        card = make_card(api, place, record, destination, remote, evaluations, base_model)
        files = [*recorded_files(place, record), *card.files]
        uploads = [file for file in files if not file.same_as(remote.files.get(file.name))]
        deleted = _stale(remote, files, card.replaced)
        existing = None
        if destination.pull_request and account and remote.head and (uploads or deleted):
            existing = find_pull_request(api, destination, account, remote.head, files, deleted)
        if existing is not None:
            uploads, deleted = [], []
        return PushPlan(
            place,
            record,
            destination,
            remote,
            account,
            tuple(uploads),
            tuple(file for file in files if file not in uploads),
            tuple(deleted),
            copied_bytes(place, record, uploads),
            title.strip() or _title(record),
            card.text,
            (*card.notices, *warnings_of(place, record, files)),
            existing,
            file_stamps,
        )


def _verified(place: Path, file_stamps: dict[Path, Stamp], progress: Progress | None) -> EditRecord:
    """The record, after every byte was checked against it; fills in the files' stamps."""
    file_stamps |= stamps(place, read_record(place))
    return verify(place, None if progress is None else _checking(progress))


def _checking(progress: Progress) -> Callable[[int, int], None]:
    return lambda done, total: progress("checking", done, total)


def _account(api: HfApi, destination: Destination, anonymous: bool) -> str | None:
    """The name of the account that the token belongs to.

    Raises:
        HubError: A token is needed and missing, it is not accepted, or offline mode is set.
    """
    from huggingface_hub import constants, get_token

    where = destination.repo_id
    if constants.HF_HUB_OFFLINE:
        raise HubError(
            f"{where}: HF_HUB_OFFLINE is set, so the Hub cannot be asked",
            "Unset it, or set it to 0, and run it again.",
        )
    if get_token() is None:
        if anonymous:
            return None
        raise HubError(
            f"{where}: no token for the Hub",
            "Run 'hf auth login', or set HF_TOKEN; --dry-run needs none for what is public.",
        )
    with push_errors(where):
        return str(api.whoami()["name"])


def _may_replace(destination: Destination, remote: Remote, overwrite: bool) -> None:
    """Refuse to replace weights that this tool did not write; a pull request replaces nothing yet.

    Raises:
        HubError: There are some.
    """
    allowed = overwrite or destination.pull_request or remote.is_ours or not remote.branch_exists
    if remote.weights and not allowed:
        more = f" and {len(remote.weights) - 1} more" if remote.weights[1:] else ""
        raise HubError(
            f"{destination.repo_id}: {destination.branch} holds weights that ws did not write"
            f" ({remote.weights[0]}{more})",
            "Pass --overwrite to replace them, --pr to propose it, or --branch NAME to put it"
            " beside them.",
        )


def _stale(remote: Remote, files: Sequence[LocalFile], card: str) -> list[str]:
    """Files in the repository that describe other weights: old weights, indexes, our figures."""
    new = {file.name for file in files}
    ours = card.partition(BEGIN)[2]
    figures = [name for name in (EVALUATION, PICTURE) if name in remote.files and name in ours]
    return sorted({*remote.weights, *figures} - new)


def _title(record: EditRecord) -> str:
    words = list(record.command)[:2]
    origin = f" made by {' '.join(words)}" if len(words) == 2 else ""
    return f"Upload {record.kind}{origin}"


@dataclass(frozen=True)
class PullRequest:
    """A pull request that is open.

    Attributes:
        number: Its number.
        url: Where it is discussed.
        commit: Its head.
    """

    number: int
    url: str
    commit: str


def find_pull_request(
    api: HfApi,
    destination: Destination,
    account: str,
    parent: str,
    files: Sequence[LocalFile],
    deleted: Sequence[str],
) -> PullRequest | None:
    """Find an open pull request of an account that equals the one a push would open.

    It has the same target branch and the same parent commit, holds all the files as they are here,
    and none of those to be deleted. One on an older commit is not the same: it might no longer
    apply.

    Args:
        api: The Hub.
        destination: The repository, and the target branch.
        account: The author of the pull requests.
        parent: The parent of our commit.
        files: The files it must hold.
        deleted: The files it must not hold.

    Returns:
        The newest; None if there is none.

    Raises:
        HubError: A request fails.
    """
    repo_id = destination.repo_id
    with push_errors(repo_id):
        discussions = api.get_repo_discussions(
            repo_id, author=account, discussion_type="pull_request"
        )
        # Those of a script may be drafts, which are open as well.
        numbers = [thread.num for thread in discussions if thread.status in ("open", "draft")]
        if not numbers:
            return None
        refs = api.list_repo_refs(repo_id, include_pull_requests=True).pull_requests or ()
    heads = {ref.ref: ref.target_commit for ref in refs}
    for number in sorted(numbers, reverse=True):
        commit = heads.get(f"refs/pr/{number}")
        if commit is None:
            continue
        there = tree_of(api, repo_id, commit)
        if not all(file.same_as(there.get(file.name)) for file in files):
            continue
        if not there.keys().isdisjoint(deleted):
            continue
        with push_errors(repo_id):
            history = api.list_repo_commits(repo_id, revision=commit)
            details = api.get_discussion_details(repo_id, number)
        target = (details.target_branch or "").removeprefix("refs/heads/")
        if target == destination.branch and any(entry.commit_id == parent for entry in history):
            return PullRequest(number, details.url, commit)
    return None
