"""Memory that a thread keeps: touching fresh pages costs more than what is done in them."""

from __future__ import annotations

import mmap
import threading
from collections.abc import Hashable
from typing import Any

__all__ = ["Buffers"]


class Buffers(threading.local):
    """Page-aligned memory by name, each thread's own; it ends with the thread."""

    def __init__(self) -> None:
        self._kept: dict[Hashable, Any] = {}

    def get(self, name: Hashable, size: int) -> memoryview:
        """``size`` writable bytes; what the same name gave before is overwritten."""
        if name not in self._kept or len(self._kept[name]) < size:
            self._kept[name] = self._allocate(max(size, mmap.PAGESIZE))
        return memoryview(self._kept[name])[:size]

    def _allocate(self, size: int) -> Any:
        return mmap.mmap(-1, size)
