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
    """Inside, the journal of an output that got its name stays beside it.

    A command writes a page after its output. Killed in between and begun again, it knows by the
    journal that the output is its own, and goes on with the page. So it does where the page cannot
    be written; what else is wrong would come again, and leaves no journal.
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
            for each in waiting:
                each()


def afterwards(remove: Callable[[], None]) -> bool:
    """Whether something waits for more to be written; then it is called when that was done."""
    waiting = _waiting.get()
    if waiting is not None:
        waiting.append(remove)
    return waiting is not None
