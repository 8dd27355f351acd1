"""Power failures at random calls, in both models of what a disk keeps; see tests/faults/disk.py."""

from __future__ import annotations

import random

from scripts.soak_parts.commands import TRIALS, each_whole
from scripts.soak_parts.state import State
from tests.faults.trials import power_lost

COUNT = 540


def run(state: State, count: int | None) -> None:
    """Let the power fail, and run each command again."""
    each = -(-(count or COUNT) // len(TRIALS))
    open_ = [t for t in TRIALS if any(state.todo(f"{t.name}:{n}") for n in range(each))]
    with each_whole(state, open_) as runs:
        for found in runs:
            assert found.disk is not None
            for number in range(each):
                name = f"{found.trial.name}:{number}"
                if not state.todo(name):
                    continue
                draw = random.Random(name)
                how = draw.choice(["ordered", "scattered"])
                call = draw.randint(0, found.disk.calls)
                with state.trial(name) as facts:
                    facts.update(how=how, call=call, of=found.disk.calls)
                    power_lost(found, call, how, draw)
