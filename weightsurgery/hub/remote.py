"""The state of a repository before anything is written to it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from weightsurgery.checkpoint.staging import RECORD_NAME
from weightsurgery.errors import HubError
from weightsurgery.hub.failures import push_errors

if TYPE_CHECKING:
    from huggingface_hub import HfApi

__all__ = ["CommitFile", "Destination", "Remote", "git_blob", "is_weights", "look", "tree_of"]

_REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+", re.ASCII)
_BRANCH = re.compile(r"[\w][\w./-]*", re.ASCII)

# Endings of files that some library loads as weights, and of their indexes.
_WEIGHTS = (
    ".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".gguf",
)  # fmt: skip
_INDEX = re.compile(r"\.(safetensors|bin|pt|h5|msgpack)\.index(\..+)?\.json$")


@dataclass(frozen=True)
class Destination:
    """Where a push goes.

    Attributes:
        repo_id: ``org/name``.
        branch: A branch, made from main if it is missing; or a pull request, ``refs/pr/N``.
        private: The repository must be private, and is made so where it is created.
        pull_request: Open a pull request instead of committing.

    Raises:
        HubError: No possible name.
    """

    repo_id: str
    branch: str = "main"
    private: bool = False
    pull_request: bool = False

    def __post_init__(self) -> None:
        from huggingface_hub.errors import HFValidationError
        from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

        try:
            validate_repo_id(self.repo_id)
            possible = _REPO_ID.fullmatch(self.repo_id) is not None
        except HFValidationError:
            possible = False
        if not possible:
            raise HubError(
                f"{self.repo_id!r}: no possible name of a repository",
                "Write org/name, as in me/edited-model; a branch goes to --branch.",
            )
        parts = self.branch.split("/")
        if not _BRANCH.fullmatch(self.branch) or ".." in self.branch or "" in parts:
            raise HubError(
                f"--branch {self.branch}: no possible name", "Write one such as scale-2."
            )


@dataclass(frozen=True)
class CommitFile:
    """A file of a commit.

    Attributes:
        size: In bytes.
        blob: Git's SHA-1 of it, or of the pointer that stands for it.
        sha256: Of a large file; None for one that is in git itself.
    """

    size: int
    blob: str
    sha256: str | None = None


@dataclass(frozen=True)
class Remote:
    """A repository at one moment.

    Attributes:
        exists: Whether it is there and can be seen.
        private: Whether it is private.
        branch_exists: Whether the branch is there; if not, head and files are those of main.
        head: The parent of our commit; None in an empty repository.
        files: That commit's files.
    """

    exists: bool
    private: bool = False
    branch_exists: bool = False
    head: str | None = None
    files: Mapping[str, CommitFile] = field(default_factory=dict)

    @property
    def is_ours(self) -> bool:
        """Whether its content was written by this tool."""
        return RECORD_NAME in self.files

    @property
    def weights(self) -> list[str]:
        """Files of weights, and their indexes."""
        return [name for name in self.files if is_weights(name)]


def is_weights(name: str) -> bool:
    """Whether a file would be loaded as weights, or names such files."""
    return (
        name.endswith(_WEIGHTS)
        or _INDEX.search(name) is not None
        or name.rpartition("/")[2] == "adapter_config.json"
    )


def look(api: HfApi, destination: Destination) -> Remote:
    """Fetch a repository's state from the Hub.

    Raises:
        HubError: The request fails, or the repository does not fit the destination.
    """
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    where = destination.repo_id
    with push_errors(where):
        try:
            info = api.model_info(where)
            refs = api.list_repo_refs(
                where, include_pull_requests=destination.branch.startswith("refs/")
            )
        except GatedRepoError:
            raise
        except RepositoryNotFoundError:
            if destination.pull_request:
                raise
            return Remote(False)
    if info.id != where:
        raise HubError(f"{where}: is now called {info.id}", f"Push to {info.id}.")
    private = bool(info.private)
    if destination.private and not private:
        raise HubError(
            f"{where}: is public, and --private does not change that",
            f"Make it private in its settings, or leave out --private ('hf repos settings {where}"
            " --private').",
        )
    heads = {branch.name: branch.target_commit for branch in refs.branches}
    heads |= {request.ref: request.target_commit for request in refs.pull_requests or ()}
    there = destination.branch in heads
    if not there and (destination.pull_request or destination.branch.startswith("refs/")):
        raise HubError(
            f"{where}: no branch or pull request {destination.branch}",
            f"There are: {', '.join(sorted(heads)) or 'none'}.",
        )
    head = heads.get(destination.branch) or heads.get("main")
    files = tree_of(api, where, head) if head else {}
    return Remote(True, private, there, head, files)


def tree_of(api: HfApi, repo_id: str, commit: str) -> dict[str, CommitFile]:
    """The files of a commit.

    Raises:
        HubError: The request fails.
    """
    from huggingface_hub.hf_api import RepoFile

    files = {}
    with push_errors(repo_id):
        for entry in api.list_repo_tree(repo_id, revision=commit, recursive=True):
            if isinstance(entry, RepoFile):
                sha = entry.lfs.sha256 if entry.lfs else None
                files[entry.path] = CommitFile(entry.size, entry.blob_id, sha)
    return files


def git_blob(content: bytes) -> str:
    """The SHA-1 that git gives a file of this content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
