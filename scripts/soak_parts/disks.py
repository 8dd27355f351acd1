"""Disks that fill up, fail, or give and take little at a time, at random calls."""

from __future__ import annotations

import errno
import random

from scripts.soak_parts.commands import TRIALS, each_whole
from scripts.soak_parts.state import State
from tests.faults.running import Faults
from tests.faults.trials import digests, judge, reset, visible

COUNT = 360
FULL = ("ENOSPC", "EDQUOT", "EFBIG")


def run(state: State, count: int | None) -> None:
    """Disturb: two lines of ours or the same bytes, and nothing else under the final names."""
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
                how = draw.choice(
                    [*FULL, "ENOSPC", "EIO", "EROFS", "reads", "short", "short reads"]
                )
                first = draw.randint(1, found.disk.calls)
                with state.trial(name) as facts:
                    facts.update(how=how, first=first)
                    reset(found)
                    if how == "short":
                        faults = Faults(found.here, kinds="W", how="s")
                    elif how == "short reads":
                        faults = Faults(found.inputs, kinds="r", how="s")
                    elif how == "reads":
                        faults = Faults(found.inputs, kinds="r", how="e", first=first,
                                        error=errno.EIO)  # fmt: skip
                    else:
                        kinds = "CWTAM" if how in FULL else draw.choice(["F", "R", "CWTAMFR"])
                        faults = Faults(found.here, kinds=kinds, how="e", first=first,
                                        error=getattr(errno, how))  # fmt: skip
                    done = found.server.run(found.argv, found.here, faults)
                    facts["code"] = done.code
                    if how in ("short", "short reads"):
                        assert done.code == 0, done
                        assert digests(found.here) == found.wanted
                        continue
                    assert done.code in (0, 1), done
                    if done.code == 1:
                        assert "error:" in done.stderr, done
                        assert "Traceback" not in done.stderr, done
                        facts["outcome"] = "refused"
                    elif not visible(found.old):
                        assert visible(digests(found.here)) == visible(found.wanted), done
                    judge(found, finished=done.code == 0)
