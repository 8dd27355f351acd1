"""A push: one atomic commit of a verified output, and the check that it arrived."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from weightsurgery.errors import HubError
from weightsurgery.hub.failures import push_errors
from weightsurgery.hub.local import LocalFile, check_unchanged
from weightsurgery.hub.plan import PushPlan
from weightsurgery.hub.remote import Remote, look, tree_of
from weightsurgery.hub.upload import Meter, additions, quiet_hub
from weightsurgery.progress import Progress

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo, HfApi

__all__ = ["Pushed", "push"]


@dataclass(frozen=True)
class Pushed:
    """The result of a push.

    Attributes:
        plan: The plan that was carried out.
        commit: The commit that holds the output; None in a repository without any.
        url: Of that commit.
        pull_request: URL of the pull request, if this or an earlier push opened one.
        changed: Whether a commit was made; if not, all was there already.
        sent: Bytes of content that went over the wire; None where the client does not say.
        by: ``"lfs"`` or ``"xet"``.
        notices: What the Hub warned of in the card.
    """

    plan: PushPlan
    commit: str | None
    url: str
    pull_request: str | None = None
    changed: bool = True
    sent: int | None = None
    by: str = "lfs"
    notices: tuple[str, ...] = ()


def push(api: HfApi, plan: PushPlan, progress: Progress | None = None) -> Pushed:
    """Carry out a plan: create what is missing, upload, commit once, check the commit.

    A cut connection or a kill loses nothing: the same push sends what is not stored yet.

    Args:
        api: The Hub.
        plan: The plan; nothing may have changed since.
        progress: Called as ``progress("uploading", done, total)`` in bytes.

    Raises:
        HubError: The Hub refused, the branch moved, a file changed meanwhile, or what the commit
            holds is not what was pushed.
    """
    repo_id = plan.destination.repo_id
    remote = _prepared(api, plan)
    if not plan.changes:
        existing = plan.open_pull_request
        head = existing.commit if existing else remote.head
        url = f"{api.endpoint}/{repo_id}/commit/{head}"
        _check(api, plan, head)
        return Pushed(plan, head, url, existing.url if existing else None, changed=False)
    meter = Meter(sum(file.size for file in plan.uploads), progress)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        with quiet_hub(meter), push_errors(repo_id, "commit"):
            done = _commit(api, plan, remote, meter)
    warned = (" ".join(str(warning.message).split()) for warning in caught)
    notices = tuple(dict.fromkeys(text for text in warned if "README.md" in text))
    _check(api, plan, done.oid)
    sent = 0 if meter.sent is None and meter.by == "lfs" else meter.sent
    return Pushed(plan, done.oid, done.commit_url, done.pr_url, True, sent, meter.by, notices)


def _prepared(api: HfApi, plan: PushPlan) -> Remote:
    """The repository and branch, made where they are missing."""
    destination, remote = plan.destination, plan.remote
    where = destination.repo_id
    if plan.creates:
        with push_errors(where, "create"):
            api.create_repo(where, private=destination.private or None)
        remote = look(api, destination)
    if plan.creates_branch:
        with push_errors(where, "create"):
            api.create_branch(where, branch=destination.branch, revision=remote.head)
    return remote


def _commit(api: HfApi, plan: PushPlan, remote: Remote, meter: Meter) -> CommitInfo:
    from huggingface_hub import CommitOperationDelete

    destination = plan.destination
    where = destination.repo_id
    if any(file.name == "README.md" for file in plan.uploads):
        _check_card(plan)  # before the large files go, not after
    files = additions(plan.uploads, meter)
    api.preupload_lfs_files(
        where,
        files,
        revision=destination.branch,
        create_pr=destination.pull_request,
        free_memory=False,
    )
    _check_ready(plan, files)
    check_unchanged(plan.file_stamps)
    return api.create_commit(
        where,
        [*files, *(CommitOperationDelete(name, is_folder=False) for name in plan.deleted)],
        commit_message=plan.title,
        revision=destination.branch,
        parent_commit=remote.head,
        create_pr=destination.pull_request,
    )


def _check_card(plan: PushPlan) -> None:
    """Have the Hub validate the model card.

    Raises:
        HubError: It refuses it.
    """
    from huggingface_hub import ModelCard

    try:
        ModelCard(plan.card, ignore_metadata_errors=True).validate()
    except ValueError as error:
        try:
            message = "; ".join(problem["message"] for problem in json.loads(str(error))["errors"])
        except (ValueError, LookupError, TypeError):
            message = " ".join(str(error).split())
        raise HubError(
            f"{plan.destination.repo_id}: the Hub refuses the model card: {message}",
            "Mend the front matter of README.md, the base's or your own.",
        ) from None


def _check_ready(plan: PushPlan, files: Sequence[Any]) -> None:
    """Check that the files to be committed are those that were verified, and all of them.

    Raises:
        HubError: A file was read otherwise, or the repository ignores it.
    """
    for local, added in zip(plan.uploads, files, strict=True):
        info = added.upload_info
        if info.is_hashed and info.sha256.hex() != local.sha256:
            raise HubError(
                f"{local.name}: changed while it was being uploaded; nothing was committed",
                "Let nothing write there, and run it again.",
            )
        if getattr(added, "_should_ignore", False):
            raise HubError(
                f"{plan.destination.repo_id}: its .gitignore leaves out {local.name}",
                "Take that line out of .gitignore there, and run it again.",
            )


def _check(api: HfApi, plan: PushPlan, commit: str | None) -> None:
    """Compare what the commit holds with the record.

    Raises:
        HubError: It differs.
    """
    there = tree_of(api, plan.destination.repo_id, commit) if commit else {}
    wrong = [file.name for file in plan.files if not _arrived(file, there.get(file.name))]
    if wrong:
        raise HubError(
            f"{plan.destination.repo_id}: commit {commit} does not hold what was pushed:"
            f" {', '.join(wrong)}",
            "Run it again; if that does not help, report it to the Hub.",
        )


def _arrived(local: LocalFile, there: Any) -> bool:
    return there is not None and local.same_as(there)
