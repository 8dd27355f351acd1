"""Commands killed at random moments, by call and by clock, then begun again: the same bytes."""

from __future__ import annotations

import random
import signal

from scripts.soak_parts.commands import TRIALS, each_whole
from scripts.soak_parts.state import State
from tests.faults.running import Faults
from tests.faults.trials import killed

COUNT = 720


def run(state: State, count: int | None) -> None:
    """Kill: by SIGKILL before a random call or after a while; some by SIGINT and SIGTERM."""
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
                how = draw.choice(["call", "call", "clock", "SIGINT", "SIGTERM"])
                with state.trial(name) as facts:
                    facts["how"] = how
                    if how == "call":
                        at = draw.randint(1, found.disk.calls)
                        done = killed(found, Faults(found.here, kill_at=at))
                    else:
                        after = draw.uniform(0, found.seconds)
                        sent = signal.SIGKILL if how == "clock" else getattr(signal, how)
                        done = killed(found, None, after, sent)
                    facts["code"] = done.code
                    facts["outcome"] = "done before" if done.code == 0 else "held"
                    assert done.code in (0, -9, 130, 143), done
