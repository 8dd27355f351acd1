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


def _once(command: Whole, draw: random.Random, facts: dict[str, Any]) -> None:
    assert command.disk is not None
    fault = draw.choice([*FULL, "ENOSPC", "EIO", "EROFS", "reads", "short", "short reads"])
    first = draw.randint(1, command.disk.calls)
    facts.update(how=fault, first=first)
    reset(command)
    if fault == "short":
        faults = Faults(command.here, kinds="W", how="s")
    elif fault == "short reads":
        faults = Faults(command.inputs, kinds="r", how="s")
    elif fault == "reads":
        faults = Faults(command.inputs, kinds="r", how="e", first=first, error=errno.EIO)
    else:
        kinds = "CWTAM" if fault in FULL else draw.choice(["F", "R", "CWTAMFR"])
        faults = Faults(
            command.here, kinds=kinds, how="e", first=first, error=getattr(errno, fault)
        )
    result = command.server.run(command.argv, command.here, faults)
    facts["code"] = result.code
    if fault in ("short", "short reads"):
        assert result.code == 0, result
        assert digests(command.here) == command.wanted
        return
    assert result.code in (0, 1), result
    if result.code == 1:
        assert "error:" in result.stderr, result
        assert "Traceback" not in result.stderr, result
        facts["outcome"] = "refused"
    elif not visible(command.old):
        assert visible(digests(command.here)) == visible(command.wanted), result
    judge(command, finished=result.code == 0)
