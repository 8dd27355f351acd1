"""Whose turn it is, where several threads feed one sequential hash."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from typing import Protocol, TypeVar

from weightsurgery.checkpoint.hashing import Sha256, update_each

__all__ = ["Turns", "in_turn"]


class _Counted(Protocol):
    @property
    def windows(self) -> int: ...


_Work = TypeVar("_Work", bound=_Counted)


class Turns:
    """Hashes are sequential: windows that come from several threads wait for their turn."""

    def __init__(self, failed: threading.Event) -> None:
        self._failed = failed
        self._next = 0
        self._turn = threading.Condition()

    def update(self, number: int, pairs: Sequence[tuple[Sha256, memoryview]]) -> None:
        """Add the bytes of one window, or windows, when all before it are added."""
        with self._turn:
            while self._next != number:
                self._turn.wait(0.1)
                if self._failed.is_set():
                    return
        update_each(pairs)
        with self._turn:
            self._next += 1
            self._turn.notify_all()


def in_turn(groups: Sequence[_Work], together: int) -> Iterator[tuple[_Work, int]]:
    """All windows, each group's in order, so many groups at a time."""
    waiting = list(groups)
    active: list[tuple[_Work, Iterator[int]]] = []
    while waiting or active:
        while waiting and len(active) < together:
            group = waiting.pop(0)
            active.append((group, iter(range(group.windows))))
        for each in list(active):
            number = next(each[1], None)
            if number is None:
                active.remove(each)
            else:
                yield each[0], number
