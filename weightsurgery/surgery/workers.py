"""Threads and devices, and the order of results."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from itertools import islice
from typing import Any, TypeVar

from weightsurgery.algebra.devices import pick_device
from weightsurgery.deferred import torch

__all__ = ["cores", "device_for", "in_order", "results", "torch_threads"]

_T = TypeVar("_T")
_R = TypeVar("_R")


def cores() -> int:
    """Processor cores this process may use."""
    return len(os.sched_getaffinity(0))


def device_for(name: str, decomposes: bool) -> str:
    """The device as torch names it; work without decompositions stays with the CPU by default.

    Elementwise work waits for the disk, not for the processor; and torch need not be loaded.

    Raises:
        EditError: No such device here.
    """
    if name == "cpu" or (name == "auto" and not decomposes):
        return "cpu"
    return str(pick_device(name))


class torch_threads:  # noqa: N801 - a context manager reads as a phrase
    """Set the number of threads inside one torch operation, and restore it.

    Work is spread over tensors instead: threads inside an operation wait for each other, and two
    of them on a machine with one core busy were measured 4.6 times slower than one.
    """

    def __init__(self, count: int) -> None:
        self.count = count

    def __enter__(self) -> None:
        self.before = torch.get_num_threads()
        torch.set_num_threads(self.count)

    def __exit__(self, *_: object) -> None:
        torch.set_num_threads(self.before)


def in_order(function: Callable[[_T], _R], items: Sequence[_T], workers: int) -> Iterator[_R]:
    """``map`` over threads, in order, with a bounded number of results waiting."""
    with ThreadPoolExecutor(workers, "ws") as pool:
        try:
            rest = iter(items)
            waiting = [pool.submit(function, item) for item in islice(rest, workers)]
            while waiting:
                yield waiting.pop(0).result()
                waiting += [pool.submit(function, item) for item in islice(rest, 1)]
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def results(futures: Sequence[Future[Any]]) -> list[Any]:
    """Results in order; raises the first error without waiting for the rest."""
    done, _ = wait(futures, return_when=FIRST_EXCEPTION)
    for future in done:
        future.result()
    return [future.result() for future in futures]
