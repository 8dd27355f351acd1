"""Forgetting by prompts alone: the weights stay, and every question comes in a context.

ICUL (Pawelczyk et al., arXiv 2310.07579): the example to forget with another label, then correctly
labelled examples, then the query, each on its own line; answered greedily.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from weightsurgery.errors import DataError
from weightsurgery.learning.data import Example

__all__ = ["METHODS", "Icul"]

METHODS = ("icul",)
"""Methods of forgetting in a context."""


@dataclass(frozen=True)
class Icul:
    """ICUL's contexts for the queries of an evaluation.

    Before every query stand

    1. one example to forget with a wrong answer: the query itself if it is to be forgotten, as in
       the paper; for every other query one drawn at random, since who serves a model does not know
       which queries are harmless. The wrong answer is drawn from the other completions of the
       same set;
    2. ``shots`` examples with their right answers, drawn from those to keep, or, where there are
       none, from the others to forget; never the query, the example of 1, or
       one to keep that is to be forgotten as well.

    What is drawn depends on the seed and the query alone, not on the order of the queries.

    Attributes:
        forget: What should be forgotten, set by set.
        keep: What may stand in a context with its right answer.
        shots: How many of those do.
        seed: Of what is drawn.
    """

    forget: Sequence[Sequence[Example]]
    keep: Sequence[Example] = ()
    shots: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        if self.shots < 0:
            raise DataError(f"{self.shots} correct examples in a context", "Give 0 or more.")
        if not any(self.forget):
            raise DataError(
                "no data to forget in a context", "Name the set that should be forgotten."
            )
        for example in (*self._to_forget, *self.keep):
            if not example.prompt or example.templated:
                raise DataError(
                    f"no prompt of its own to put in a context: {_brief(example)}",
                    'Write {"prompt": "...", "completion": "..."} rows, not texts or messages.',
                )
        for rows in self.forget:
            if len({each.completion for each in rows}) == 1:
                raise DataError(
                    f"a set to forget knows no answer but {rows[0].completion!r}",
                    "ICUL gives an example another answer of its set: name one with several.",
                )

    @property
    def _to_forget(self) -> list[Example]:
        return [each for rows in self.forget for each in rows]

    def prompts(self, queries: Sequence[Example]) -> list[Example]:
        """The queries in their contexts; completions and what else belongs to them stay.

        Raises:
            DataError: There are fewer examples than shots, or a query has no prompt of its own.
        """
        sets = {example.prompt: rows for rows in self.forget for example in rows}
        staying = [each for each in self.keep if each.prompt not in sets]
        pool = staying if self.keep else self._to_forget
        return [self._with_context(query, sets, pool) for query in queries]

    def _with_context(
        self, query: Example, sets: Mapping[str, Sequence[Example]], pool: Sequence[Example]
    ) -> Example:
        if not query.prompt or query.templated:
            raise DataError(
                f"no prompt of its own to put in a context: {_brief(query)}",
                'Write {"prompt": "...", "completion": "..."} rows, not texts or messages.',
            )
        drawn = random.Random(f"{self.seed}\n{query.prompt}")
        if query.prompt in sets:
            going, answers = query, sets[query.prompt]
        else:
            going = drawn.choice(self._to_forget)
            answers = sets[going.prompt]
        # A prompt may have several right answers: none of them is wrong.
        right = {each.completion for each in answers if each.prompt == going.prompt}
        wrong = sorted({each.completion for each in answers} - right)
        if not wrong:
            raise DataError(
                f"no wrong answer for {_brief(going)}", "Its set has right ones of it alone."
            )
        lines = [going.prompt + drawn.choice(wrong)]
        lines += [each.prompt + each.completion for each in self._shots(query, going, pool, drawn)]
        return replace(query, prompt="\n".join([*lines, query.prompt]))

    def _shots(
        self, query: Example, going: Example, pool: Sequence[Example], drawn: random.Random
    ) -> list[Example]:
        apart = {query.prompt, going.prompt}
        others = [each for each in pool if each.prompt not in apart]
        if len(others) < self.shots:
            raise DataError(
                f"{len(others)} examples for the {self.shots} in the context of {_brief(query)}",
                "Give fewer shots, or more data to keep.",
            )
        return drawn.sample(others, self.shots)


def _brief(example: Example) -> str:
    text = repr(example.prompt or example.completion)
    return text if len(text) <= 100 else f"{text[:100]}..."
