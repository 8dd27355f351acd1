"""Progress as plain lines, and when to print one; without a clock and a stream."""

from __future__ import annotations

from dataclasses import dataclass

from weightsurgery.report.tables import size

__all__ = ["EVERY", "FIRST", "Lines", "rate"]

FIRST = 10.0
"""Seconds of work before the first line, so that short commands stay silent in scripts."""

EVERY = 30.0
"""Seconds from one line to the next, at least; the end of a stage does not wait."""


@dataclass
class _Stage:
    """A stage of the work.

    Attributes:
        text: What to call it, as last reported.
        begun: Seconds at which the stage before it was last heard of.
        first: Seconds of its first report, and how much was done by then: a run that goes on after
            a kill begins in the middle.
        done: How much is done.
        total: How much there is.
        printed: Whether a line about it was printed.
    """

    text: str
    begun: float
    first: tuple[float, int]
    done: int
    total: int
    printed: bool = False

    def goes_on(self, text: str, done: int) -> bool:
        """Whether a report is of this stage. Its text may hold the loss, so may change."""
        return done >= self.done and (text == self.text or self.done < self.total)

    def rate(self, now: float) -> float | None:
        """What is done in a second; None where nothing can be said yet."""
        since, before = self.first if self.done > self.first[1] else (self.begun, 0)
        return (self.done - before) / (now - since) if self.done > before and now > since else None


class Lines:
    """Turns reports of progress into few lines.

    The first comes when the work has lasted ten seconds, then at most one every thirty. A stage
    that was printed gets a line at its end too: half an hour later the log shows what took it.
    """

    def __init__(self, unit: str, now: float) -> None:
        """Begins.

        Args:
            unit: `bytes`; of anything else there are plain counts, since a command may count steps
                first and tokens then.
            now: Seconds, of any clock that does not run backwards.
        """
        self._bytes = unit == "bytes"
        self._now, self._next = now, now + FIRST
        self._stage: _Stage | None = None

    def report(self, text: str, done: int, total: int, now: float) -> list[str]:
        """Takes a report, and says what to print.

        Args:
            text: What is being done.
            done: How much of it, in the unit.
            total: How much there is.
            now: Seconds.
        """
        lines: list[str] = []
        if self._stage is None or not self._stage.goes_on(text, done):
            lines = self.ended(now)
            self._stage = _Stage(text, self._now, (now, done), done, total)
        stage = self._stage
        stage.text, stage.done, stage.total, self._now = text, done, total, now
        if stage.printed and done >= total:
            lines += self.ended(now)
        elif now >= self._next and done < total:
            lines.append(self._line(stage, now))
            stage.printed, self._next = True, now + EVERY
        return lines

    def ended(self, now: float) -> list[str]:
        """Ends the stage: a line if it was printed.

        Args:
            now: Seconds.
        """
        stage = self._stage
        if stage is None or not stage.printed:
            return []
        stage.printed = False
        return [f"{self._counted(stage)} after {_lasting(now - stage.begun)}"]

    def _line(self, stage: _Stage, now: float) -> str:
        line, speed = self._counted(stage), stage.rate(now)
        if speed is None:
            return line
        left = (stage.total - stage.done) / speed
        fast = f"{size(speed)}/s" if self._bytes else rate(speed)
        return f"{line}, {fast}, {_lasting(left)} left"

    def _counted(self, stage: _Stage) -> str:
        done, total = stage.done, stage.total
        counted = f"{size(done)} of {size(total)}" if self._bytes else f"{done}/{total}"
        # A name may hold anything; a log is read by people and by programs that want lines.
        text = "".join(letter if letter.isprintable() else "?" for letter in stage.text)
        return f"{text}: {counted}"


def rate(speed: float) -> str:
    """How fast counts go, as text: so many in a second, or how long each takes.

    Args:
        speed: Per second, above 0.
    """
    if speed >= 1:
        return f"{speed:,.0f}/s" if speed >= 10 else f"{speed:.1f}/s"
    return f"{_lasting(1 / speed)} each" if speed < 0.1 else f"{1 / speed:.1f} s each"


def _lasting(seconds: float) -> str:
    """A time as text: 45 s, 3 min 20 s, 2 h 5 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return "{} h {} min".format(*divmod(minutes, 60))
