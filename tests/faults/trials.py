"""Commands on small inputs that write, and what must be there whatever befell them."""

from __future__ import annotations

import hashlib
import random
import shlex
import shutil
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from tests.faults.disk import Disk, lay
from tests.faults.running import Done, Faults, Server

__all__ = ["Trial", "Whole", "digests", "killed", "power_lost", "reset", "whole"]


@dataclass(frozen=True)
class Trial:
    """A command that writes.

    Attributes:
        name: Of it.
        words: After `ws`; ``IN/`` stands for the folder of inputs.
        first: A command that leaves something there before, for those that replace it.
    """

    name: str
    words: str
    first: str = ""


def argv(words: str, inputs: Path) -> list[str]:
    """The words of a command."""
    return [each.replace("IN/", f"{inputs}/") for each in shlex.split(words)]


def digests(place: Path) -> dict[str, str]:
    """SHA-256 of all files there, and the directories."""
    found = {}
    for path in sorted(place.rglob("*")):
        folder = path.is_dir()
        text = "directory" if folder else hashlib.sha256(path.read_bytes()).hexdigest()
        found[str(path.relative_to(place))] = text
    return found


@dataclass(frozen=True)
class Whole:
    """A command's undisturbed run.

    Attributes:
        trial: It.
        server: Runs it.
        here: Where.
        inputs: What it reads.
        before: A copy of what was there.
        old: Digests of that.
        wanted: Digests of what is there afterwards.
        seconds: How long it took.
        disk: The history of what it wrote; None without a shim.
    """

    trial: Trial
    server: Server
    here: Path
    inputs: Path
    before: Path
    old: Mapping[str, str]
    wanted: Mapping[str, str]
    seconds: float
    disk: Disk | None

    @property
    def argv(self) -> list[str]:
        """Its words."""
        return argv(self.trial.words, self.inputs)


def reset(found: Whole) -> None:
    """What was there before it."""
    shutil.rmtree(found.here, ignore_errors=True)
    shutil.copytree(found.before, found.here)


def whole(trial: Trial, server: Server, inputs: Path, root: Path, logged: bool = True) -> Whole:
    """Run a command undisturbed, twice: it writes the same bytes.

    Args:
        trial: Which.
        server: Runs it.
        inputs: What it reads.
        root: A place for all that.
        logged: Whether there is a shim.
    """
    here, before = root / "here", root / "before"
    here.mkdir(parents=True)
    if trial.first:
        done = server.run(argv(trial.first, inputs), here)
        assert done.code == 0, (trial.name, done)
    shutil.copytree(here, before)
    log = root / "log"
    found = Whole(trial, server, here, inputs, before, digests(here), {}, 0.0, None)
    begun = time.monotonic()
    done = server.run(found.argv, here, Faults(here, str(log) if logged else ""))
    took = time.monotonic() - begun
    assert done.code == 0, (trial.name, done)
    wanted = digests(here)
    reset(found)
    done = server.run(found.argv, here)
    assert done.code == 0, (trial.name, done)
    assert digests(here) == wanted, (trial.name, "differs from one time to the next")
    disk = Disk(before, log) if logged else None
    return replace(found, wanted=wanted, seconds=took, disk=disk)


def visible(state: Mapping[str, str]) -> dict[str, str]:
    """What stands under names that are no work under way."""
    return {n: text for n, text in state.items() if not any(p[0] == "." for p in n.split("/"))}


def judge(found: Whole, finished: bool = False) -> Done | None:
    """What must hold after a disturbance; then the command once more.

    Args:
        found: The command, and what it writes.
        finished: Whether it had said that it was done.

    Returns:
        How the command ended the second time; None where it was not needed.
    """
    name = found.trial.name
    left = visible(digests(found.here))
    for top in {each.split("/")[0] for each in left}:
        now = {k: v for k, v in left.items() if k.split("/")[0] == top}
        states = [{k: v for k, v in each.items() if k.split("/")[0] == top}
                  for each in (found.wanted, found.old)]  # fmt: skip
        empty = set(now.values()) == {"directory"}
        assert now in states or empty, (name, "partial", top, sorted(now))
    if finished:
        assert left == visible(found.wanted), (name, "was done, and is gone", sorted(left))
    if left == visible(found.wanted) and left != visible(found.old) and finished:
        return None
    done = found.server.run(found.argv, found.here)
    refused = done.code == 1 and ": exists" in done.stderr
    assert done.code == 0 or refused, (name, done)
    now = digests(found.here)
    assert visible(now) == visible(found.wanted), (name, "other bytes", differing(now, found))
    assert now == found.wanted or refused, (name, "strays", differing(now, found))
    return done


def differing(now: Mapping[str, str], found: Whole) -> list[str]:
    """Names that are there too many, too few, or of other bytes."""
    return sorted(k for k in {*now, *found.wanted} if now.get(k) != found.wanted.get(k))


def killed(found: Whole, faults: Faults | None = None, after: float | None = None,
           number: int = signal.SIGKILL) -> Done:  # fmt: skip
    """Begin the command, and end it: before a call, or after a while.

    Returns:
        How it ended then.
    """
    reset(found)
    running = found.server.start(found.argv, found.here, faults)
    if after is not None:
        running.send(number, after)
    done = running.wait()
    judge(found, finished=done.code == 0)
    return done


def power_lost(found: Whole, call: int, how: str, draw: random.Random) -> None:
    """Let the power fail after a call of the undisturbed run, and begin again."""
    assert found.disk is not None
    lay(found.here, found.disk.after(call, how, draw))
    judge(found, finished=call >= found.disk.calls)


Report = Callable[[str], None]
