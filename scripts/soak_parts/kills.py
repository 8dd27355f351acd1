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


def _once(command: Whole, draw: random.Random, facts: dict[str, Any]) -> None:
    assert command.disk is not None
    way = facts["how"] = draw.choice(["call", "call", "clock", "SIGINT", "SIGTERM"])
    if way == "call":
        result = killed(command, Faults(command.here, kill_at=draw.randint(1, command.disk.calls)))
    else:
        sent = signal.SIGKILL if way == "clock" else getattr(signal, way)
        result = killed(command, None, draw.uniform(0, command.seconds), sent)
    facts["code"] = result.code
    facts["outcome"] = "done before" if result.code == 0 else "held"
    ends = {"call": -9, "clock": -9, "SIGINT": 130, "SIGTERM": 143}
    assert result.code in (0, ends[way]), result
    if result.code in (130, 143):
        assert "Traceback" not in result.stderr, result
        assert result.stderr.count("Interrupted") == 1, result
