"""Power failures at random calls, in both models of what a disk keeps; see tests/faults/disk.py."""

from __future__ import annotations

import random
from typing import Any

from scripts.soak_parts.commands import disturb
from scripts.soak_parts.state import State
from tests.faults.trials import Whole, power_lost

COUNT = 540


def run(state: State, count: int | None) -> None:
    """Let the power fail, and run each command again."""
    disturb(state, count or COUNT, _once)


def _once(command: Whole, draw: random.Random, facts: dict[str, Any]) -> None:
    assert command.disk is not None
    model = draw.choice(["ordered", "scattered"])
    call = draw.randint(0, command.disk.calls)
    facts.update(how=model, call=call, of=command.disk.calls)
    power_lost(command, call, model, draw)
