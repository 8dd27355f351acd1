"""A repository of the Hub at one commit: its files, from one request."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from weightsurgery.checkpoint.blobs import check_file
from weightsurgery.checkpoint.hub_errors import hub_errors
from weightsurgery.errors import SourceError, UnsupportedCheckpointError

__all__ = ["RemoteFile", "Repository", "look_up"]


@dataclass(frozen=True)
class RemoteFile:
    """One file.

    Attributes:
        name: Path in the repository.
        size: In bytes.
        sha256: Of its content, for files in LFS or xet storage; None for small ones in git.
        sha1: Of a small one, as git names it; None where the server does not give it.
    """

    name: str
    size: int
    sha256: str | None
    sha1: str | None = None


@dataclass(frozen=True)
class Repository:
    """A repository at one commit.

    Attributes:
        requested: What the user typed: ``org/name[@revision]``.
        name: ``org/name``.
        commit: The commit that the revision stood for at the first request.
        files: Every file by name.
    """

    requested: str
    name: str
    commit: str
    files: Mapping[str, RemoteFile]

    def cached(self, name: str) -> Path | None:
        """Where huggingface_hub's cache holds a file of this commit; None if it does not."""
        from huggingface_hub import try_to_load_from_cache

        path = try_to_load_from_cache(self.name, name, revision=self.commit)
        return Path(path) if isinstance(path, str) else None

    def download(self, name: str) -> Path:
        """A whole file, through huggingface_hub's cache; a small one is compared with its hash.

        Raises:
            SourceError: It is not there, or may not be read.
            CorruptCheckpointError: It is not what the repository's listing says.
        """
        from huggingface_hub import hf_hub_download

        with hub_errors(self.requested):
            path = Path(hf_hub_download(self.name, name, revision=self.commit))
        if named := self.hashes.get(name):
            check_file(path, named)
        return path

    @property
    def hashes(self) -> dict[str, str]:
        """SHA-256, or git's SHA-1, of each file whose hash the server gives."""
        return {file.name: named for file in self.files.values()
                if (named := file.sha256 or file.sha1)}  # fmt: skip


@cache
def look_up(text: str) -> Repository | None:
    """Pin ``org/name[@revision]`` to a commit, once per process, and list its files.

    Two mentions of one name are thus the same commit, whoever pushes in between.

    Returns:
        None where the Hub is not asked or not reached: in offline mode, or without a connection.

    Raises:
        SourceError: There is no such repository or revision, this user may not see it, or what
            answers is no Hub.
        UnsupportedCheckpointError: Its weights are pickles.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.constants import HF_HUB_ETAG_TIMEOUT, is_offline_mode
    from huggingface_hub.errors import (  # type: ignore[attr-defined]
        HfHubHTTPError,
        HTTPError,
    )

    if is_offline_mode():
        return None
    name, _, revision = text.partition("@")
    with hub_errors(text):
        try:
            info = HfApi().model_info(
                name, revision=revision or None, files_metadata=True, timeout=HF_HUB_ETAG_TIMEOUT
            )
        except HfHubHTTPError as error:
            if error.response.status_code >= 500:
                return None
            raise
        except (HTTPError, ConnectionError, TimeoutError):
            return None
        except (KeyError, TypeError, AttributeError) as error:
            raise _unlike_the_hub(text, f"no description of a repository ({error!r})") from None
    files = {
        sibling.rfilename: RemoteFile(
            _name(text, sibling.rfilename),
            _size(text, sibling.size),
            _digest(text, sibling.lfs.sha256, 64) if sibling.lfs is not None else None,
            _digest(text, sibling.blob_id, 40) if sibling.lfs is None and sibling.blob_id else None,
        )
        for sibling in info.siblings or ()
    }
    _refuse_without_weights(text, list(files))
    return Repository(text, name, _digest(text, info.sha, 40), files)


def _digest(text: str, value: object, length: int) -> str:
    """A hash as the server gives it; files of the cache are named after it, so nothing else is.

    Raises:
        SourceError: It is none.
    """
    if isinstance(value, str) and re.fullmatch(f"[0-9a-f]{{{length}}}", value):
        return value
    raise _unlike_the_hub(text, f"{str(value)[:80]!r} for a hash")


def _name(text: str, value: object) -> str:
    """A file's name as the server gives it, which becomes a path in the cache.

    Raises:
        SourceError: It is none, or leads out of the repository.
    """
    parts = re.split(r"[/\\]", value) if isinstance(value, str) and "\0" not in value else [""]
    if isinstance(value, str) and not {"", ".", ".."}.intersection(parts):
        return value
    raise _unlike_the_hub(text, f"{str(value)[:80]!r} for a file's name")


def _size(text: str, value: object) -> int:
    """A file's size as the server gives it; 0 where it gives none.

    Raises:
        SourceError: It is none.
    """
    if value is None:
        return 0
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63:
        return value
    raise _unlike_the_hub(text, f"{str(value)[:80]!r} for a size")


def _unlike_the_hub(text: str, value: str) -> SourceError:
    return SourceError(
        f"{text}: the server gives {value}",
        "Check HF_ENDPOINT: this is not how the Hub answers; nothing was fetched.",
    )


def _refuse_without_weights(text: str, names: list[str]) -> None:
    """Before anything is downloaded."""
    if any(name.endswith(".safetensors") for name in names):
        return
    pickles = [name for name in names if name.endswith((".bin", ".pt", ".pth"))]
    if pickles:
        raise UnsupportedCheckpointError(
            f"{text}: holds PyTorch pickles ({', '.join(pickles[:3])}), no safetensors",
            "Look for another revision, such as refs/pr/1, where the Hub converted it; or load it"
            " with the library that wrote it, and save it as safetensors.",
        )
    raise SourceError(
        f"{text}: no .safetensors file among its {len(names)} files",
        "Name a repository or revision that holds a model's weights as safetensors.",
    )
