"""Disks that fill up, fail, or give and take little at a time, at random calls."""

from __future__ import annotations

import errno
import random
from typing import Any

from scripts.soak_parts.commands import disturb
from scripts.soak_parts.state import State
from tests.faults.running import Faults
from tests.faults.trials import Whole, digests, judge, reset, visible

COUNT = 360
FULL = ("ENOSPC", "EDQUOT", "EFBIG")


def run(state: State, count: int | None) -> None:
    """Disturb: two lines of ours or the same bytes, and nothing else under the final names."""
    disturb(state, count or COUNT, _once)


def _once(found: Whole, draw: random.Random, facts: dict[str, Any]) -> None:
    assert found.disk is not None
    how = draw.choice([*FULL, "ENOSPC", "EIO", "EROFS", "reads", "short", "short reads"])
    first = draw.randint(1, found.disk.calls)
    facts.update(how=how, first=first)
    reset(found)
    if how == "short":
        faults = Faults(found.here, kinds="W", how="s")
    elif how == "short reads":
        faults = Faults(found.inputs, kinds="r", how="s")
    elif how == "reads":
        faults = Faults(found.inputs, kinds="r", how="e", first=first, error=errno.EIO)
    else:
        kinds = "CWTAM" if how in FULL else draw.choice(["F", "R", "CWTAMFR"])
        faults = Faults(found.here, kinds=kinds, how="e", first=first, error=getattr(errno, how))
    done = found.server.run(found.argv, found.here, faults)
    facts["code"] = done.code
    if how in ("short", "short reads"):
        assert done.code == 0, done
        assert digests(found.here) == found.wanted
        return
    assert done.code in (0, 1), done
    if done.code == 1:
        assert "error:" in done.stderr, done
        assert "Traceback" not in done.stderr, done
        facts["outcome"] = "refused"
    elif not visible(found.old):
        assert visible(digests(found.here)) == visible(found.wanted), done
    judge(found, finished=done.code == 0)
