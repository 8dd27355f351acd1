"""The open pull request that proposes a push already, after a lost response to an earlier one.

A commit on a branch shows in the branch's files. A pull request is a separate ref, whose number is
not known after a lost response; so those that this account opened are searched.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from weightsurgery.hub.failures import push_errors
from weightsurgery.hub.local import LocalFile
from weightsurgery.hub.remote import Destination, tree_of

if TYPE_CHECKING:
    from huggingface_hub import HfApi

__all__ = ["PullRequest", "find_pull_request"]


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
