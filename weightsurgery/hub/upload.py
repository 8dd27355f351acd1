"""Upload of files before a commit, with a count of the bytes that were sent.

huggingface_hub sends large files by xet where hf_xet is installed, by git's LFS otherwise. Files
that the Hub has stored already, be it under another name or from a push that was cut off, are not
sent again: by content under LFS, chunk by chunk under xet.
"""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from logging import ERROR
from pathlib import Path
from typing import TYPE_CHECKING, Any

from weightsurgery.hub.failures import uses_xet
from weightsurgery.hub.local import LocalFile
from weightsurgery.progress import Progress

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd

__all__ = ["Meter", "additions", "quiet_hub"]


@dataclass
class Meter:
    """A count of the bytes sent so far.

    Attributes:
        total: Bytes of all files to be sent.
        progress: Called as ``progress("uploading", done, total)`` in bytes that were read.
        sent: Bytes of content that went over the wire; None where they are not counted.
        by: ``"lfs"`` or ``"xet"``.
    """

    total: int
    progress: Progress | None = None
    sent: int | None = None
    by: str = "lfs"
    _places: dict[str, int] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def read(self, name: str, count: int, place: int) -> None:
        """Count bytes of a file that were handed to the connection, up to a place in it."""
        with self._lock:
            self.sent = (self.sent or 0) + count
            self._places[name] = place
            done = sum(self._places.values())
        self._report(done)

    def reported(self, done: int, sent: int) -> None:
        """Take over the xet client's figures."""
        with self._lock:
            self.sent = max(self.sent or 0, sent)
        self._report(done)

    def _report(self, done: int) -> None:
        if self.progress is not None:
            self.progress("uploading", min(done, self.total), self.total)


class _NetworkFile(io.BufferedReader):
    """A file that counts what the network reads of it."""

    def __init__(self, content: str | bytes, name: str, meter: Meter) -> None:
        raw: Any = io.FileIO(content) if isinstance(content, str) else io.BytesIO(content)
        super().__init__(raw)
        self._file, self._meter = name, meter

    def read(self, size: int | None = -1, /) -> bytes:
        """Read, and count it."""
        data = super().read(size)
        self._meter.read(self._file, len(data), self.tell())
        return data


def additions(files: Sequence[LocalFile], meter: Meter) -> list[CommitOperationAdd]:
    """The files as huggingface_hub adds them, counted while LFS sends them."""
    from huggingface_hub import CommitOperationAdd

    by_xet = uses_xet()
    meter.by = "xet" if by_xet else "lfs"

    class Addition(CommitOperationAdd):
        @contextmanager
        def as_file(self, with_tqdm: bool = False) -> Iterator[Any]:
            """The open file; with a bar it is about to be sent."""
            if with_tqdm and isinstance(self.path_or_fileobj, str | bytes):
                with _NetworkFile(self.path_or_fileobj, self.path_in_repo, meter) as file:
                    yield file
            else:
                with super().as_file() as file:
                    yield file

    added: list[CommitOperationAdd] = []
    for file in files:
        content = str(file.content) if isinstance(file.content, Path) else file.content
        addition = Addition(file.name, content)
        if not by_xet:  # verified a moment ago; the xet client hashes on the way, and is compared
            addition.upload_info.sha256 = bytes.fromhex(file.sha256)
        added.append(addition)
    return added


@contextmanager
def quiet_hub(meter: Meter | None = None) -> Iterator[None]:
    """No bars and no log lines of huggingface_hub: what its xet client reports goes to the meter.

    Its interface (2.4) hands out those reports to its own bars alone, so one of ours stands in for
    them. Where that place is gone in another version, or bars are forbidden by
    HF_HUB_DISABLE_PROGRESS_BARS, an upload by xet goes uncounted.
    """
    from huggingface_hub import constants
    from huggingface_hub.utils import (  # type: ignore[attr-defined]
        disable_progress_bars,
        logging,
    )

    level = logging.get_verbosity()
    logging.set_verbosity(ERROR)
    try:
        if meter is not None and uses_xet():
            with _reports_to(meter):
                yield
        elif constants.HF_HUB_DISABLE_PROGRESS_BARS is not None:
            yield  # whoever sets it has the last word
        else:
            with disable_progress_bars():
                yield
    finally:
        logging.set_verbosity(level)


@contextmanager
def _reports_to(meter: Meter) -> Iterator[None]:
    from huggingface_hub.utils import _xet_progress_reporting as place

    class Reporter:
        def update_progress(self, group: Any, _items: Any = None) -> None:
            meter.reported(group.total_bytes_completed, group.total_transfer_bytes_completed)

        def close(self) -> None:
            pass

    theirs = place.XetUploadProgressReporter
    place.XetUploadProgressReporter = Reporter  # type: ignore[assignment, misc]
    try:
        yield
    finally:
        place.XetUploadProgressReporter = theirs  # type: ignore[misc]
