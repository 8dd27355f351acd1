"""Order among threads: hashes in the order of the file, and prefetch of changes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol, TypeVar

from weightsurgery.checkpoint.hashing import Sha256, update_each
from weightsurgery.surgery.edit import Prepared

__all__ = ["HashOrder", "Prefetch", "in_turn"]


class _HasWindows(Protocol):
    @property
    def windows(self) -> int: ...


_Work = TypeVar("_Work", bound=_HasWindows)


class HashOrder:
    """Hashes are sequential: windows from different threads wait for their turn."""

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
    """All windows, in order within a group; ``together`` groups are active at a time."""
    waiting = list(groups)
    active: list[tuple[_Work, Iterator[int]]] = []
    while waiting or active:
        while waiting and len(active) < together:
            group = waiting.pop(0)
            active.append((group, iter(range(group.windows))))
        for group_windows in list(active):
            number = next(group_windows[1], None)
            if number is None:
                active.remove(group_windows)
            else:
                yield group_windows[0], number


class Prefetch:
    """Prefetches changes in order, on its own threads, and holds only a few of them.

    Args:
        prepare: Computes the change of one tensor; None if there is none.
        names: The tensors, in the order in which they will be requested.
        workers: Threads; as many tensors are prefetched beyond the one requested last.
    """

    def __init__(
        self, prepare: Callable[[str], Prepared | None], names: Sequence[str], workers: int
    ) -> None:
        self._prepare = prepare
        self._names = names
        self._place = {name: number for number, name in enumerate(names)}
        self._workers = workers
        self._pool = ThreadPoolExecutor(workers, "ws-prefetch")
        self._lock = threading.Lock()
        self._submitted = 0
        self._futures: dict[str, Future[Prepared | None]] = {}

    def get(self, name: str) -> Prepared | None:
        """The change of a tensor, once it is computed; raises what computing it raised."""
        with self._lock:
            end = min(self._place[name] + self._workers + 1, len(self._names))
            for upcoming in self._names[self._submitted : end]:
                self._futures[upcoming] = self._pool.submit(self._prepare, upcoming)
            self._submitted = max(self._submitted, end)
            future = self._futures[name]
        return future.result()

    def release(self, name: str) -> None:
        """Free a change that has been added everywhere."""
        with self._lock:
            self._futures.pop(name, None)

    def close(self) -> None:
        """Cancel what has not begun."""
        self._pool.shutdown(wait=True, cancel_futures=True)
