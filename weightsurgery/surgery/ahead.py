"""Changes that have to be worked out, a few tensors ahead of where they are added."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from weightsurgery.surgery.edit import Prepared

__all__ = ["Ahead"]


class Ahead:
    """Works out changes in order, on threads of its own, and holds but a few of them.

    Args:
        prepare: Works out the change of one tensor; None if there is none.
        names: The tensors, in the order in which they will be asked for.
        workers: Threads; as many tensors are worked out beyond the one that was asked for last.
    """

    def __init__(
        self, prepare: Callable[[str], Prepared | None], names: Sequence[str], workers: int
    ) -> None:
        self._prepare = prepare
        self._names = names
        self._place = {name: number for number, name in enumerate(names)}
        self._workers = workers
        self._pool = ThreadPoolExecutor(workers, "ws-ahead")
        self._lock = threading.Lock()
        self._begun = 0
        self._found: dict[str, Future[Prepared | None]] = {}

    def get(self, name: str) -> Prepared | None:
        """The change of a tensor, when it is there; raises what working it out raised."""
        with self._lock:
            end = min(self._place[name] + self._workers + 1, len(self._names))
            for each in self._names[self._begun : end]:
                self._found[each] = self._pool.submit(self._prepare, each)
            self._begun = max(self._begun, end)
            future = self._found[name]
        return future.result()

    def release(self, name: str) -> None:
        """Let go of a change that has been added everywhere."""
        with self._lock:
            self._found.pop(name, None)

    def close(self) -> None:
        """Begin no more."""
        self._pool.shutdown(wait=True, cancel_futures=True)
