"""All or nothing: an output is built beside its target and renamed into place when whole.

Beside the target ``OUT`` stands ``.OUT.ws-partial/`` while work goes on::

    journal.jsonl   first line: the identity of the output; then one line per finished piece
    files/          the future content of OUT
    old/            the output that is being replaced, for the moment between two renames

The journal is locked, so two runs cannot build the same output. After a kill the next run of the
same command finds the journal and continues; a different command starts afresh. A place that holds
a link or another user's file is refused: its owner could redirect what is written or removed.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, ClassVar

from weightsurgery.checkpoint.afterwards import afterwards
from weightsurgery.checkpoint.plain_files import check_own, open_own, sync_directory, sync_file
from weightsurgery.checkpoint.targets import beside, check_target, refuse_address
from weightsurgery.errors import LostWorkError, OutputError, WeightSurgeryError

if TYPE_CHECKING:
    from weightsurgery.checkpoint.record import EditRecord

__all__ = [
    "RECORD_NAME",
    "Staging",
    "output_errors",
]

RECORD_NAME = "weightsurgery.json"
_JOURNAL = "journal.jsonl"

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class output_errors:  # noqa: N801 - a context manager reads as a phrase
    """Turn the operating system's errors while writing into ours.

    Args:
        target: The output that is being written, for the message.
    """

    def __init__(self, target: Path) -> None:
        self.target = target

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if not isinstance(error, OSError):
            return
        remedy = "Check the path and its permissions."
        if error.errno in _FULL:
            remedy = "Free some space, or write to another disk with -o."
        elif error.errno == errno.EIO:
            remedy = "The disk fails: write to another with -o."
        raise OutputError(f"{self.target}: {error.strerror or error}", remedy) from error


class Staging:
    """The place beside the target where an output grows.

    Args:
        target: Directory to be written; its parent is made if needed.
        identity: What is being made, as a digest. A journal with the same identity is resumed.
        inputs: Directories that are read, which the target may not touch.
        overwrite: Replace an existing output.

    Attributes:
        files: Directory whose content becomes the target.
        finished: Journal lines of an earlier, interrupted run.
        complete: An earlier run finished but was killed before it could clean up; the target is
            whole and nothing is left to do.
        kept_after: Errors after which what is done is left for a later run; others say what to
            change first.
    """

    kept_after: ClassVar[tuple[type[BaseException], ...]] = (KeyboardInterrupt, LostWorkError)

    def __init__(
        self, target: Path, identity: str, inputs: Sequence[Path], overwrite: bool = False
    ) -> None:
        self.target = Path(os.path.realpath(target))
        self.identity = identity
        self._inputs, self._overwrite = tuple(inputs), overwrite
        self.root = beside(self.target)
        self.files = self.root / "files"
        self.old = self.root / "old"
        self.finished: list[dict[str, Any]] = []
        self.complete = self._promised = False
        refuse_address(self.target)
        with output_errors(self.target):
            _make_folders(self.target.parent)
            if os.path.lexists(self.root):
                check_own(self.root, directory=True)  # nothing is trusted, or written, through it
                self._journal = self._lock()
                self._recover()
            else:
                self._check_target()
                try:
                    self.root.mkdir()
                    self._journal = self._lock()
                    self._begin()
                except OutputError:  # another process was there in between
                    raise
                except BaseException:
                    shutil.rmtree(self.root, ignore_errors=True)
                    raise

    def _check_target(self) -> None:
        check_target(self.target, self._inputs, self._overwrite)

    def _lock(self) -> IO[bytes]:
        journal = os.fdopen(open_own(self.root / _JOURNAL, os.O_APPEND), "ab+")
        try:
            fcntl.flock(journal, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            journal.close()
            raise OutputError(
                f"{self._shown()}: another ws process is writing it", "Wait for it to finish."
            ) from None
        return journal

    def _shown(self) -> object:
        """The output, for messages."""
        return self.target

    def _begin(self) -> None:
        self._journal.truncate(0)  # first: a journal without files/ means a finished output
        os.fsync(self._journal.fileno())
        shutil.rmtree(self.files, ignore_errors=True)
        self.files.mkdir()
        sync_directory(self.root)
        self.finished = []
        self.note([{"identity": self.identity}])

    def _recover(self) -> None:
        if self.old.exists() and not _holds_anything(self.target):
            self.old.rename(self.target)  # killed between the two renames: undo the first
        lines = self._read_journal()
        same = bool(lines) and lines[0].get("identity") == self.identity
        if same and not self.files.exists() and lines[-1] == self._commitment(self.target):
            self.complete = self._promised = True
            self.close()
            return
        try:
            self._check_target()
        except OutputError:
            (self.leave if self.files.exists() else self.close)()
            raise
        if self.old.exists():
            shutil.rmtree(self.old)
        if same and self.files.is_dir():
            self.finished = lines[1:]
        else:
            self._begin()

    def _read_journal(self) -> list[dict[str, Any]]:
        """All whole lines; a torn last one is cut off."""
        self._journal.seek(0)
        lines, good = [], 0
        for raw in self._journal:
            try:
                line = json.loads(raw)
            except ValueError:
                break
            if not raw.endswith(b"\n") or not isinstance(line, dict):
                break
            lines.append(line)
            good += len(raw)
        self._journal.truncate(good)
        return lines

    def record(self) -> EditRecord:
        """The record of the output that is in place."""
        from weightsurgery.checkpoint.record import read_record

        return read_record(self.target)

    def note(self, lines: Iterable[dict[str, Any]]) -> None:
        """Append lines to the journal and flush them to disk.

        Call it after the bytes they describe were flushed, never before.
        """
        text = "".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines)
        self._journal.seek(0, os.SEEK_END)
        self._journal.write(text.encode())
        self._journal.flush()
        os.fsync(self._journal.fileno())

    def restart(self) -> None:
        """Forget an interrupted run that cannot be continued."""
        self._begin()

    def commit(self, names: Iterable[str] | None = None) -> None:
        """Flush everything and rename it into place.

        Args:
            names: The output's files, relative to it; any other files there are removed. None for
                all there are.
        """
        with output_errors(self.target):
            if names is not None:
                self._remove_others({self.files / name for name in names})
            directories = {self.files}
            for path in sorted(self.files.rglob("*")):
                if path.is_dir():
                    directories.add(path)
                else:
                    sync_file(path)
            for directory in directories:
                sync_directory(directory)
            try:
                self._check_target()  # again: hours may have passed
            except OutputError:
                self.leave()
                raise
            self._promised = True
            self.note([self._commitment(self.files)])
            if _holds_anything(self.target):
                self.target.rename(self.old)
            elif self.target.exists():
                self.target.rmdir()
            self.files.rename(self.target)
            sync_directory(self.target.parent)
            self.close()

    @staticmethod
    def _commitment(files: Path) -> dict[str, Any]:
        """The journal's last line: which output was about to get its name."""
        path = files / RECORD_NAME
        if not path.is_file():
            return {"commit": str(files)}  # none that could be known again
        return {"commit": hashlib.sha256(path.read_bytes()).hexdigest()}

    @classmethod
    def clear(cls, target: Path, identity: str) -> None:
        """Remove what a run left beside its output when it was killed after the rename."""
        root = beside(Path(os.path.realpath(target)))
        if os.path.lexists(root) and not (root / "files").exists():
            with contextlib.suppress(OutputError):  # another process's, or not ours
                cls(target, identity, [], overwrite=True).close()

    def _remove_others(self, ours: set[Path]) -> None:
        folders = {above for path in ours for above in path.parents}
        for path in sorted(self.files.rglob("*"), reverse=True):  # what is inside comes first
            if path.is_dir() and not path.is_symlink():
                if path not in folders:
                    path.rmdir()
            elif path not in ours:
                path.unlink()

    def close(self) -> None:
        """Remove the staging, unless it was left; after a commit, or to give up."""
        if self._journal.closed or self._leave_for_later():
            return
        if self.old.exists() and not _holds_anything(self.target):
            with contextlib.suppress(OSError):
                self.old.rename(self.target)  # failed between the two renames: undo the first
        if not self.old.exists() or _holds_anything(self.target):
            shutil.rmtree(self.root, ignore_errors=True)  # else it holds the only copy
        self.leave()

    def _leave_for_later(self) -> bool:
        """Whether the output is in place, and its journal is needed until all is written."""
        named = self._promised and not self.files.exists()
        if not named or not afterwards(partial(self.clear, self.target, self.identity)):
            return False
        for path in self.root.iterdir():  # but for the journal, by which it is known again
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            elif path.name != _JOURNAL:
                path.unlink()
        self.leave()
        return True

    def give_up(self, error: BaseException) -> None:
        """After an error: close, or leave all for a later run where nothing is wrong with the work.

        An interrupt, too little memory, a full disk or a process that is gone need not come again;
        our other errors say what to change first.
        """
        ours = isinstance(error, WeightSurgeryError) and not isinstance(error, OutputError)
        (self.close if ours else self.leave)()

    def leave(self) -> None:
        """Close the journal and leave everything for a later run to resume."""
        with contextlib.suppress(OSError):  # what a failed flush left over fails again here
            self._journal.close()


def _make_folders(path: Path) -> None:
    new = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in new:
        sync_directory(folder.parent)


def _holds_anything(directory: Path) -> bool:
    return directory.is_dir() and any(directory.iterdir())
