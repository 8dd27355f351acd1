"""Commands killed at random moments, by call and by clock, then begun again: the same bytes."""

from __future__ import annotations

import random
import signal
from typing import Any

from scripts.soak_parts.commands import disturb
from scripts.soak_parts.state import State
from tests.faults.running import Faults
from tests.faults.trials import Whole, killed

COUNT = 720


def run(state: State, count: int | None) -> None:
    """Kill: by SIGKILL before a random call or after a while; some by SIGINT and SIGTERM."""
    disturb(state, count or COUNT, _once)


def _once(found: Whole, draw: random.Random, facts: dict[str, Any]) -> None:
    assert found.disk is not None
    how = facts["how"] = draw.choice(["call", "call", "clock", "SIGINT", "SIGTERM"])
    if how == "call":
        done = killed(found, Faults(found.here, kill_at=draw.randint(1, found.disk.calls)))
    else:
        sent = signal.SIGKILL if how == "clock" else getattr(signal, how)
        done = killed(found, None, draw.uniform(0, found.seconds), sent)
    facts["code"] = done.code
    facts["outcome"] = "done before" if done.code == 0 else "held"
    ends = {"call": -9, "clock": -9, "SIGINT": 130, "SIGTERM": 143}
    assert done.code in (0, ends[how]), done
    if done.code in (130, 143):
        assert "Traceback" not in done.stderr, done
        assert done.stderr.count("Interrupted") == 1, done
