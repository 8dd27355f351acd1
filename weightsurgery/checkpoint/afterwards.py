"""Outputs that have their names while the command that wrote them still has more to write."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from weightsurgery.errors import OutputError, WeightSurgeryError

__all__ = ["afterwards", "until_all_is_written"]

_waiting: ContextVar[list[Callable[[], None]] | None] = ContextVar("waiting", default=None)


@contextmanager
def until_all_is_written() -> Iterator[None]:
    """A context in which the journal of a renamed output stays beside it.

    A command writes a page after its output. Killed in between and started again, it recognises by
    the journal that the output is its own, and goes on with the page; likewise where the page could
    not be written. Other errors would come again, and leave no journal.
    """
    waiting: list[Callable[[], None]] = []
    token, goes_on = _waiting.set(waiting), True
    try:
        yield
        goes_on = False
    except WeightSurgeryError as error:
        goes_on = isinstance(error, OutputError)
        raise
    finally:
        _waiting.reset(token)
        if not goes_on:
            for remove in waiting:
                remove()


def afterwards(remove: Callable[[], None]) -> bool:
    """Call ``remove`` when all is written; False where nothing more will be."""
    waiting = _waiting.get()
    if waiting is not None:
        waiting.append(remove)
    return waiting is not None
