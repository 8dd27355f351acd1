"""From what a user types to a directory: ``path`` or ``org/name[@revision]``."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from weightsurgery.errors import SourceError

__all__ = ["Source", "resolve_source"]

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
    path = os.path.expanduser(text)
    if os.path.isdir(path):
        return Source(text, Path(path).resolve())
    if os.path.isfile(path):
        raise SourceError(
            f"{text}: a file, not a directory",
            "Name the checkpoint's directory (it is read together with its config).",
        )
    if not _HUB_ID.fullmatch(text):
        raise SourceError(
            f"{text}: no such directory", "Give a directory, or org/name[@revision] on the Hub."
        )
    return _from_hub(text, local_only)


def _from_hub(text: str, local_only: bool) -> Source:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (  # type: ignore[attr-defined]
        GatedRepoError,
        HFValidationError,
        HTTPError,  # the HTTP client's, which is another one in every version
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    repo, _, revision = text.partition("@")
    where = f"{repo}{'@' + revision if revision else ''}"
    try:
        folder = snapshot_download(
            repo,
            revision=revision or None,
            allow_patterns=_HUB_PATTERNS,
            local_files_only=local_only,
        )
    except GatedRepoError:
        raise SourceError(
            f"{where}: gated repository",
            "Ask for access on its page, then run 'hf auth login'.",
        ) from None
    except RevisionNotFoundError:
        raise SourceError(
            f"{where}: no such revision", "Name a branch, tag or commit of the repository."
        ) from None
    except RepositoryNotFoundError:
        raise SourceError(
            f"{where}: neither a directory here nor a repository you can see on the Hub",
            "Check the spelling; for a private repository run 'hf auth login'.",
        ) from None
    except HFValidationError:
        raise SourceError(
            f"{where}: neither a directory here nor a possible name on the Hub",
            "Give a directory, or org/name[@revision] on the Hub.",
        ) from None
    except (LocalEntryNotFoundError, HTTPError, ConnectionError, TimeoutError) as error:
        raise SourceError(
            f"{where}: no such directory here, and the Hub could not be reached"
            f" ({_first_line(error)})",
            "Check the path or the connection; with HF_HUB_OFFLINE=1 only cached files are used.",
        ) from None
    except OSError as error:
        raise SourceError(
            f"{where}: could not be stored in the Hub's cache ({_first_line(error)})",
            "Check the space and the permissions there; HF_HOME moves the cache.",
        ) from None
    path = Path(folder)
    return Source(text, path, path.name)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
