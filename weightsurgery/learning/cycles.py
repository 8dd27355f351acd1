"""How long to train, and how hard: cycles of a learning rate, as many as looks find need of.

The rate falls to nothing within a cycle, so that what is to stay settles. Where the look at its end
(:meth:`~weightsurgery.learning.looks.Look.far`) finds more to do, the rate begins anew (warm
restarts: Loshchilov & Hutter, arXiv 1608.03983): how long to push follows from what is seen. To
forget, later cycles are half as long; where no more is left than that neighbours settle, the rate
rises half as high.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from weightsurgery.learning.looks import Look

__all__ = ["Cycles"]

# Share of the budget by which what is said of neighbours may have moved, for it to have settled.
_SETTLED = 0.2

_RISE = 4  # steps in which the rate rises


@dataclass(frozen=True)
class Cycles:
    """The cycles of a training, as far as its looks say by now.

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

    def ends(self, seen: Sequence[Look]) -> list[int]:
        """After how many steps each cycle ends."""
        looks = {each.step: each for each in seen}
        ends = [self.length]
        while len(ends) < self.most and (look := looks.get(ends[-1])):
            far = look.far(seen[0], self.learning)
            # Beyond half of the budget another cycle would end outside of it.
            if look.language > self.budget / 2 or (far and self._settled(look)):
                break
            ends.append(ends[-1] + (self.length if self.learning else -(-self.length // 2)))
        return ends

    def around(self, seen: Sequence[Look], step: int) -> tuple[int, int]:
        """The first step of the cycle that a step is in, and the one after its last.

        Before the look at its end, what follows on a cycle is taken for one like the first.
        """
        ends = self.ends(seen)
        start = max((end for end in ends if end <= step), default=0)
        return start, next((end for end in ends if end > step), start + self.length)

    def rate(self, seen: Sequence[Look], step: int) -> float:
        """Share of the full rate after so many steps: in each cycle a rise, and a fall."""
        start, end = self.around(seen, step)
        own, length = step - start, end - start
        rate = min(1.0, (own + 1) / _RISE, (length - own) / max(1, length - _RISE))
        before = next((each for each in seen if start and each.step == start), None)
        return rate / 2 if before and before.far(seen[0], self.learning) else rate

    def _settled(self, look: Look) -> bool:
        return self.learning or look.neighbours <= self.budget * _SETTLED
