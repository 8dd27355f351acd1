"""Cycles of the learning rate, as many as the looks at a training show to be needed.

The rate falls to nothing within a cycle, so that what is to stay settles. Where the look at its end
(:meth:`~weightsurgery.learning.looks.Look.far`) finds more to do, the rate begins anew (warm
restarts: Loshchilov & Hutter, arXiv 1608.03983), so the length follows from the looks. To forget,
later cycles are half as long; where no more is left than that neighbours settle, the rate rises
half as high.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from weightsurgery.learning.looks import Look

__all__ = ["Cycles"]

# Share of the budget by which answers about neighbours may have moved, for them to have settled.
_SETTLED = 0.2

_RISE = 4  # steps in which the rate rises


@dataclass(frozen=True)
class Cycles:
    """The cycles of a training, by its looks so far.

    All of it follows from the looks, so that a run that goes on after a kill has it too.

    Attributes:
        length: Steps of the first cycle.
        most: Cycles at most.
        budget: Divergence of ordinary language, nats a token, that a change may cost.
        learning: Whether to learn, not to forget.
    """

    length: int
    most: int
    budget: float
    learning: bool

    def ends(self, history: Sequence[Look]) -> list[int]:
        """Steps after which each cycle ends."""
        looks = {each.step: each for each in history}
        ends = [self.length]
        while len(ends) < self.most and (look := looks.get(ends[-1])):
            far = look.far(history[0], self.learning)
            # Beyond half of the budget another cycle would end outside of it.
            if look.language > self.budget / 2 or (far and self._settled(look)):
                break
            ends.append(ends[-1] + (self.length if self.learning else -(-self.length // 2)))
        return ends

    def around(self, history: Sequence[Look], step: int) -> tuple[int, int]:
        """The first step of the cycle that a step is in, and the one after its last.

        Before the look at its end, what follows on a cycle is taken for one like the first.
        """
        ends = self.ends(history)
        start = max((end for end in ends if end <= step), default=0)
        return start, next((end for end in ends if end > step), start + self.length)

    def rate(self, history: Sequence[Look], step: int) -> float:
        """Share of the full rate after so many steps: in each cycle a rise, and a fall."""
        start, end = self.around(history, step)
        position, length = step - start, end - start
        rate = min(1.0, (position + 1) / _RISE, (length - position) / max(1, length - _RISE))
        before = next((each for each in history if start and each.step == start), None)
        return rate / 2 if before and before.far(history[0], self.learning) else rate

    def _settled(self, look: Look) -> bool:
        return self.learning or look.neighbours <= self.budget * _SETTLED
