"""From what a user types to a directory: ``path`` or ``org/name[@revision]``."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from weightsurgery.checkpoint.blobs import check_snapshot
from weightsurgery.checkpoint.hub_errors import hub_errors
from weightsurgery.checkpoint.repository import look_up
from weightsurgery.checkpoint.weight_files import find_weights
from weightsurgery.errors import SourceError
from weightsurgery.suggestions import near_path

__all__ = ["Source", "is_hub_name", "resolve_source"]

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+(@[\w./-]+)?", re.ASCII)

# What an edit may need. Weights in other formats, images and logs stay on the Hub.
_HUB_PATTERNS = [
    "*.safetensors",
    "*.json",
    "*.jinja",
    "*.txt",
    "*.model",
    "*.py",
    "*.tiktoken",
    "*.vocab",
    "*.bpe",
    "*.spm",
    "LICENSE*",
    "LICENCE*",
    "NOTICE*",
    "USE_POLICY*",
    "COPYING*",
]


@dataclass(frozen=True)
class Source:
    """Where a checkpoint or vector was found.

    Attributes:
        name: What the user typed.
        path: Local directory (for a Hub repository, its snapshot in the cache).
        revision: Commit of a Hub repository; None for a local directory.
    """

    name: str
    path: Path
    revision: str | None = None


def resolve_source(name: str | os.PathLike[str], local_only: bool = False) -> Source:
    """Find the directory behind a name.

    A path that exists is that path. Otherwise ``org/name`` or ``org/name@revision`` is looked up
    on the Hugging Face Hub, through huggingface_hub's cache, and pinned to a commit.

    Args:
        name: What the user typed.
        local_only: Look in the cache without asking the Hub.

    Raises:
        SourceError: Neither a directory nor a repository.
    """
    text = os.fspath(name)
    if text.startswith("s3:/"):
        raise SourceError(
            f"{text}: an address on S3, where edits write to and nothing is read from",
            "Copy it to a directory first ('aws s3 cp --recursive'), and name that.",
        )
    path = os.path.expanduser(text)
    if os.path.isdir(path):
        return Source(text, Path(path).resolve())
    if path.lower().endswith(".gguf") and os.path.isfile(path):
        find_weights(Path(path).resolve().parent, [os.path.basename(path)])
    if os.path.isfile(path):
        raise SourceError(
            f"{text}: a file, not a directory",
            "Name the checkpoint's directory (it is read together with its config).",
        )
    if not _HUB_ID.fullmatch(text):
        raise SourceError(
            f"{text}: no such directory",
            f"{near_path(text)}Give a directory, or org/name[@revision] on the Hub.",
        )
    return _from_hub(text, local_only)


def is_hub_name(text: str) -> bool:
    """Whether a name is a repository's, and no directory or file here bears it."""
    return not os.path.exists(os.path.expanduser(text)) and bool(_HUB_ID.fullmatch(text))


def _from_hub(text: str, local_only: bool) -> Source:
    from huggingface_hub import snapshot_download

    repo, _, revision = text.partition("@")
    repository = None if local_only else look_up(text)

    def snapshot(revision: str | None) -> Path:
        return Path(
            snapshot_download(
                repo,
                revision=revision,
                allow_patterns=_HUB_PATTERNS,
                local_files_only=local_only,
            )
        )

    with hub_errors(text):
        # By the name that was typed, so that the cache knows it in offline mode too.
        path = snapshot(revision or None)
        if repository is not None and path.name != repository.commit:
            path = snapshot(repository.commit)  # there was a push in between
    check_snapshot(path, {} if repository is None else repository.hashes)
    return Source(text, path, path.name)
