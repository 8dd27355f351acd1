"""The trials of a part, one line each, kept so that a soak that was stopped goes on."""

from __future__ import annotations

import collections
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["State"]


_FIGURES = {"seconds", "peak_mb", "parameters", "runs", "packages", "why"}


class State:
    """The trials of a part.

    Args:
        name: The part.
        folder: Where its lines are kept.
        deadline: On the monotonic clock; no trial begins after it.
    """

    def __init__(self, name: str, folder: Path, deadline: float) -> None:
        self.name, self.folder, self.deadline = name, folder, deadline
        self.file = folder / f"{name}.jsonl"
        self.lines: dict[str, dict[str, Any]] = {}
        if self.file.exists():
            for line in self.file.read_text().splitlines():
                entry = json.loads(line)
                self.lines[entry["trial"]] = entry

    def todo(self, trial: str) -> bool:
        """Whether a trial is still to be done, and there is time."""
        return trial not in self.lines and time.monotonic() < self.deadline

    def note(self, trial: str, outcome: str, **facts: Any) -> None:
        """Write down how a trial ended; ``fault`` is what must not be."""
        entry = {"trial": trial, "outcome": outcome, **facts}
        self.lines[trial] = entry
        with self.file.open("a") as file:
            file.write(json.dumps(entry) + "\n")
        if outcome == "fault":
            print(f"{self.name}: {trial}: {json.dumps(facts)[:600]}", flush=True)

    @contextmanager
    def trial(self, trial: str) -> Iterator[dict[str, Any]]:
        """Inside, a trial is done; what it says in the facts is noted, an exception is a fault.

        Yields:
            Facts; ``outcome`` is ``held`` where nothing else is said.
        """
        facts: dict[str, Any] = {}
        try:
            yield facts
        except Exception as error:
            facts["outcome"] = "fault"
            facts["error"] = f"{type(error).__name__}: {error}"[:2000]
        self.note(trial, facts.pop("outcome", "held"), **facts)

    def summary(self) -> dict[str, Any]:
        """Numbers of trials by their ends."""
        ends = collections.Counter(trial["outcome"] for trial in self.lines.values())
        by_command: dict[str, collections.Counter[str]] = collections.defaultdict(
            collections.Counter
        )
        for trial in self.lines.values():
            by_command[trial["trial"].rpartition(":")[0] or trial["trial"]][trial["outcome"]] += 1
        measured = {name: {k: entry[k] for k in _FIGURES if k in entry}
                    for name, entry in self.lines.items() if _FIGURES & entry.keys()}  # fmt: skip
        return {
            "trials": len(self.lines),
            "faults": ends["fault"],
            "ends": dict(sorted(ends.items())),
            "by": {
                name: dict(sorted(counts.items())) for name, counts in sorted(by_command.items())
            },
            **({"measured": measured} if measured else {}),
        }
