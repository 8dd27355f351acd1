"""Byte ranges of a file on the Hub: retried, and continued where a connection broke off."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping

from weightsurgery.checkpoint.hub_errors import hub_errors
from weightsurgery.errors import SourceError

__all__ = ["fetch_range"]

# Attempts in a row without a byte before giving up, and the longest wait between two.
_ATTEMPTS = 5
_LONGEST_WAIT = 8.0

_CONTENT_RANGE = re.compile(r"bytes (\d+)-\d+/(?:\d+|\*)", re.ASCII)


class _BrokenOffError(Exception):
    """A connection that ended before the range did."""


def fetch_range(
    repository: str,
    commit: str,
    name: str,
    start: int,
    stop: int,
    take: Callable[[int, bytes], None],
    wait: Callable[[float], object] = time.sleep,
) -> None:
    """Fetch bytes ``start:stop`` of a file of a repository.

    huggingface_hub retries what the Hub answers (429, 5xx) and refused connections; a connection
    that breaks in the middle is taken up here from the byte it stopped at.

    Args:
        repository: ``org/name``.
        commit: Of the repository.
        name: The file.
        start: First byte.
        stop: After the last byte.
        take: Called as ``take(offset, data)``, in order.
        wait: Waits so many seconds before another attempt.

    Raises:
        SourceError: The Hub refuses, does not serve ranges or serves other ranges than requested,
            or cannot be reached any more.
    """
    from huggingface_hub import hf_hub_url

    url = hf_hub_url(repository, name, revision=commit)
    where, position, failures = f"{repository}@{commit[:12]}/{name}", start, 0
    while position < stop:
        before = position
        try:
            with hub_errors(where):
                for data in _stream(url, where, position, stop):
                    take(position, data)
                    position += len(data)
            if position < stop:
                raise _BrokenOffError("the connection was closed early")
        except _BrokenOffError as broken:
            failures = 1 if position > before else failures + 1
            if failures >= _ATTEMPTS:
                raise SourceError(
                    f"{where}: stopped at byte {position} of {stop} ({broken})",
                    "Check the connection, and run it again: it goes on from there.",
                ) from None
            wait(min(_LONGEST_WAIT, 2.0 ** (failures - 1)))


def _stream(url: str, where: str, start: int, stop: int) -> Iterator[bytes]:
    """The bytes of one response, in pieces; fewer than requested if it breaks off."""
    from huggingface_hub.constants import HF_HUB_DOWNLOAD_TIMEOUT
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]
    from huggingface_hub.utils import (  # type: ignore[attr-defined]
        build_hf_headers,
        hf_raise_for_status,
        http_stream_backoff,
    )

    # Compressed on the way, positions would not be those of the file.
    headers = {"Range": f"bytes={start}-{stop - 1}", "Accept-Encoding": "identity"}
    with http_stream_backoff(
        "GET", url, headers={**build_hf_headers(), **headers}, timeout=HF_HUB_DOWNLOAD_TIMEOUT
    ) as response:
        if response.status_code == 416:
            raise SourceError(
                f"{where}: ends before byte {start}, though the server says that it is longer",
                "The file or the server is damaged: try another revision, or tell its owner.",
            )
        hf_raise_for_status(response)
        if response.status_code != 206:
            raise SourceError(
                f"{where}: the server ignores byte ranges",
                "Download the whole checkpoint: leave out --remote, or pass --no-remote.",
            )
        _check_range(response.headers, where, start)
        left = stop - start
        try:
            for data in response.iter_raw():  # as it comes: gathered pieces would be lost
                yield data[:left]
                left -= len(data)
                if left <= 0:
                    return
        except HTTPError as error:
            # Inside the library's retries this would be taken for a request that never began.
            raise _BrokenOffError(str(error) or type(error).__name__) from None


def _check_range(headers: Mapping[str, str], where: str, start: int) -> None:
    """Check that a response holds the requested bytes: parts cannot be checked by a hash.

    Raises:
        SourceError: The answer begins elsewhere, does not say where, or is compressed.
    """
    content_range, packed = (
        headers.get("Content-Range", ""),
        headers.get("Content-Encoding", "identity"),
    )
    match = _CONTENT_RANGE.fullmatch(content_range.strip())
    if match is not None and int(match[1]) == start and packed == "identity":
        return
    answer = f"{content_range[:80]!r}" if packed == "identity" else f"{packed[:80]!r} data"
    raise SourceError(
        f"{where}: asked for bytes from {start} on, the server answers {answer}",
        "Something on the way, such as a proxy, garbles ranges: leave out --remote, or pass"
        " --no-remote.",
    )
