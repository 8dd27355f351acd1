"""The pull request that proposes a push already, where the answer to an earlier one got lost.

A commit upon a branch is seen in the branch's files. A pull request is a ref of its own, which
nobody names who never heard of it; so those that this account opened are looked through.
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
    """Find an open pull request of an account that is what a push would open now.

    It is to the same branch, begins at the same commit, holds all the files as they are here, and
    none of those that are to go. One upon an older commit is not the same: it might no longer
    apply.

    Args:
        api: The Hub.
        destination: The repository, and the branch that it is to go to.
        account: Whose pull requests.
        parent: The commit that ours would go upon.
        files: What it must hold.
        deleted: What it must not hold.

    Returns:
        The newest; None if there is none.

    Raises:
        HubError: The Hub cannot be asked.
    """
    repo_id = destination.repo_id
    with push_errors(repo_id):
        discussions = api.get_repo_discussions(
            repo_id, author=account, discussion_type="pull_request"
        )
        # Those of a script may be drafts, which are open as well.
        numbers = [each.num for each in discussions if each.status in ("open", "draft")]
        if not numbers:
            return None
        refs = api.list_repo_refs(repo_id, include_pull_requests=True).pull_requests or ()
    heads = {each.ref: each.target_commit for each in refs}
    for number in sorted(numbers, reverse=True):
        commit = heads.get(f"refs/pr/{number}")
        if commit is None:
            continue
        there = tree_of(api, repo_id, commit)
        if not all(each.same_as(there.get(each.name)) for each in files):
            continue
        if not there.keys().isdisjoint(deleted):
            continue
        with push_errors(repo_id):
            history = api.list_repo_commits(repo_id, revision=commit)
            details = api.get_discussion_details(repo_id, number)
        target = (details.target_branch or "").removeprefix("refs/heads/")
        if target == destination.branch and any(each.commit_id == parent for each in history):
            return PullRequest(number, details.url, commit)
    return None
