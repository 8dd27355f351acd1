"""Steps of the TOFU study: command lines of ws, each done once, whatever is killed in between.

A step is done when its output stands under its name, beside the command that made it. Directories
appear when ws has written them whole, and a killed training goes on; documents are renamed last.
"""

from __future__ import annotations

import fcntl
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["FailedError", "Runner", "save"]

WS = (sys.executable, "-m", "weightsurgery")
TAIL = 8
"""The last lines of a failed command's output that are kept."""


class FailedError(Exception):
    """A command that did not succeed; its last lines."""


def save(path: Path, document: Mapping[str, Any]) -> None:
    """Write a document, all or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    partial.replace(path)


@dataclass
class Runner:
    """Runs what is missing.

    Attributes:
        work: Where outputs, commands and the log are.
    """

    work: Path
    _held: tuple[int, ...] = field(default=(), init=False)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Let no other work here until this process and its commands have ended.

        Commands inherit the lock: one that goes on when this process was killed has it still.

        Raises:
            SystemExit: Somebody else does.
        """
        self.work.mkdir(parents=True, exist_ok=True)
        lock = os.open(self.work / "lock", os.O_CREAT | os.O_RDWR)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            raise SystemExit(
                f"{self.work}: another study, or a command of one that was killed, is at work here."
                " Wait for it, or end it."
            ) from None
        self._held = (lock,)
        try:
            yield
        finally:
            self._held = ()
            os.close(lock)

    def directory(self, name: str, *words: Any) -> Path:
        """A model or vector that a command of ws writes by `-o`.

        Args:
            name: Of the output, under ``work``.
            words: The command; ``-o`` is added.

        Raises:
            FailedError: The command did not succeed.
        """
        out = self.work / name
        command = [*map(str, words), "-o", str(out)]
        if self._done(name, out, command):
            return out
        if out.exists():  # of another command, or killed before it was noted down
            shutil.rmtree(out)
        self._run(name, command, None)
        return out

    def document(self, name: str, *words: Any) -> dict[str, Any]:
        """What a command of ws prints with `--json`.

        Args:
            name: Of the file, under ``work``.
            words: The command; ``--json`` is added.

        Raises:
            FailedError: The command did not succeed.
        """
        out = self.work / name
        command = [*map(str, words), "--json"]
        if not self._done(name, out, command):
            partial = out.with_name(out.name + ".partial")
            partial.parent.mkdir(parents=True, exist_ok=True)
            out.unlink(missing_ok=True)  # of another command
            self._run(name, command, partial)
            partial.replace(out)
        document: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
        return document

    def has(self, name: str, *words: Any) -> bool:
        """Whether :meth:`document` would run nothing."""
        return self._done(name, self.work / name, [*map(str, words), "--json"])

    def seconds(self, name: str) -> float:
        """How long a directory took to be written; 0 if it is not noted."""
        note = self._note(name)
        return json.loads(note.read_text(encoding="utf-8"))["seconds"] if note.exists() else 0.0

    def drop(self, name: str) -> None:
        """Forget a directory that is not needed any more; what was noted of it goes, too."""
        shutil.rmtree(self.work / name, ignore_errors=True)
        shutil.rmtree(self.work / f"{name}.vector", ignore_errors=True)
        self._note(name).unlink(missing_ok=True)

    def _note(self, name: str) -> Path:
        return self.work / "done" / f"{name.replace('/', '.')}.json"

    def _done(self, name: str, out: Path, command: Sequence[str]) -> bool:
        note = self._note(name)
        if not out.exists() or not note.exists():
            return False
        record: Mapping[str, Any] = json.loads(note.read_text(encoding="utf-8"))
        return bool(record["command"] == list(command))

    def _run(self, name: str, command: Sequence[str], stdout: Path | None) -> None:
        print(f"== {name}: ws {shlex.join(command)}", file=sys.stderr, flush=True)
        self.work.mkdir(parents=True, exist_ok=True)
        log, started = self.work / "log", time.monotonic()
        with log.open("ab") as output:
            begun = output.tell()
            with stdout.open("wb") if stdout else open(os.devnull, "wb") as file:
                status = subprocess.run(
                    [*WS, *command], stdout=file, stderr=output, check=False, pass_fds=self._held
                ).returncode
        if status < 0 or status == 130:
            raise KeyboardInterrupt
        if status:
            with log.open("rb") as file:
                file.seek(begun)
                lines = file.read().decode("utf-8", "replace").splitlines()
            raise FailedError(f"ws {shlex.join(command)}\n" + "\n".join(lines[-TAIL:]))
        self.noted(name, command, time.monotonic() - started)

    def noted(self, name: str, command: Sequence[str], seconds: float) -> None:
        """Note down that a step is done; without its output the note counts for nothing."""
        note = self._note(name)
        note.parent.mkdir(parents=True, exist_ok=True)
        partial = note.with_suffix(".partial")
        text = json.dumps({"command": list(command), "seconds": seconds})
        partial.write_text(text, encoding="utf-8")
        partial.replace(note)
