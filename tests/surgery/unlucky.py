"""Edits during which something happens to the process that does them; workers import this."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weightsurgery import Negate


def first(path: str) -> bool:
    """Whether nobody was here before."""
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


@dataclass(frozen=True)
class KilledOnce(Negate):
    """The first process that prepares a tensor dies of it."""

    marker: str = ""

    def prepare(self, base: Any, name: str, device: Any) -> Any:
        if first(self.marker):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().prepare(base, name, device)


@dataclass(frozen=True)
class StuckOn(Negate):
    """The first task on one node goes on until there is MARKER.end."""

    marker: str = ""
    node: str = ""

    def prepare(self, base: Any, name: str, device: Any) -> Any:
        import ray

        if ray.get_runtime_context().get_node_id() == self.node and first(self.marker):
            while not Path(f"{self.marker}.end").exists():
                time.sleep(0.05)
        return super().prepare(base, name, device)
