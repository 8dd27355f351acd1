"""What a piece of work costs: wall time, processor time, and memory at its peak."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Cost", "measured"]

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass
class Cost:
    """Filled in when the work is done.

    Attributes:
        seconds: Wall time.
        cpu_seconds: Time of all threads of this process; unlike wall time, it hardly depends on
            what else the machine does.
        memory: Bytes of main memory at the peak beyond those held when the work began; None where
            the system does not tell (Linux does).
    """

    seconds: float = 0.0
    cpu_seconds: float = 0.0
    memory: int | None = None


def _resident(field: str) -> int:
    """Bytes; ``VmRSS`` as it is, ``VmHWM`` at its peak."""
    match = re.search(rf"^{field}:\s+(\d+) kB", _STATUS.read_text(encoding="ascii"), re.MULTILINE)
    if match is None:
        raise OSError(f"{_STATUS} has no {field}")
    return 1024 * int(match[1])


@contextmanager
def measured() -> Iterator[Cost]:
    """Measure the block; not to be nested, since the system keeps one peak of a process."""
    cost, before = Cost(), None
    try:
        _RESET.write_text("5", encoding="ascii")  # the peak is now what is held now
        before = _resident("VmRSS")
    except OSError:
        pass
    wall, cpu = time.monotonic(), time.process_time()
    yield cost
    cost.seconds, cost.cpu_seconds = time.monotonic() - wall, time.process_time() - cpu
    if before is not None:
        cost.memory = max(0, _resident("VmHWM") - before)
