"""The requests of a bench: which facts are to go, at once or in parts, and which are to stay.

A request names files of facts; they are read through the subject, when something needs them.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from typing_extensions import override

from weightsurgery.errors import EditError
from weightsurgery.lab.world.facts import PARAPHRASED, PLAIN, SPLITS, make_facts, worded, wordings
from weightsurgery.learning.data import Example
from weightsurgery.learning.exact import exact_match

if TYPE_CHECKING:
    from weightsurgery.lab.bench.subject import Subject
    from weightsurgery.learning.data import Example
    from weightsurgery.learning.models import PreTrainedModel, PreTrainedTokenizerBase

__all__ = [
    "FORGET",
    "FUSED",
    "IN_ONE_GO",
    "KEEP",
    "ONE_BY_ONE",
    "ForgetRequest",
    "Overlap",
    "PartialRequest",
    "check_requests",
    "facts_of",
    "name_of",
    "names_of",
    "overlaps",
]

FORGET = "authors"
KEEP: Mapping[str, str] = {"twin": "painters", "related": "capitals", "unrelated": "addition"}
"""Role → task."""


class ForgetRequest:
    """Forget one task whole; keep the others.

    Methods may see every fact that is given (the request), and the ``seen`` facts of what is to be
    kept. Settings are chosen on its ``validation`` facts; ``unseen`` ones are for the result alone.
    """

    name = ""
    """Of a study that compares several requests; the plain one has none."""

    task = FORGET

    @property
    def roles(self) -> Mapping[str, str]:
        """What is to be kept: role → task."""
        return KEEP

    def given(self, subject: Subject) -> list[Example]:
        """The facts to forget, as edits are given them."""
        return facts_of(subject, self.task)

    def target(self, subject: Subject) -> list[Example]:
        """The facts that forgetting is scored on."""
        return self.given(subject)

    def target_paraphrased(self, subject: Subject) -> list[Example]:
        """The same in words that no edit sees; empty where the base does not know them."""
        if not subject.recipe.paraphrases:
            return []
        return facts_of(subject, self.task, wording=PARAPHRASED)

    def keep_facts(self, subject: Subject, role: str, split: str) -> list[Example]:
        """The facts to keep of a role, in ``"seen"``, ``"validation"`` or ``"unseen"``."""
        return subject.facts(self.roles[role], split)

    def also(self, subject: Subject) -> dict[str, list[Example]]:
        """Sets that are scored besides, at the end, by the names of their columns."""
        return {}

    def survivors(self, subject: Subject) -> dict[str, list[Example]]:
        """What a model knows that was never taught the target: sets by name."""
        return {
            task: [
                fact
                for wording in wordings(subject.recipe, task)
                for fact in facts_of(subject, task, wording=wording)
            ]
            for task in self.roles.values()
        }

    def strangers(self, subject: Subject) -> list[Example]:
        """Facts that the base lacks: people of another world, in the same forms."""
        facts = make_facts(subject.recipe, subject.seed + 1000)[self.task]
        return [Example(*worded(fact)) for fact in facts if fact.split == "seen"]

    def chance(self, subject: Subject) -> float:
        """Score on the target of one who knows the forms alone."""
        return 1 / subject.recipe.answers

    def score(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        examples: Sequence[Example],
    ) -> float:
        """How well a model does on a set, at every look: greedy exact match."""
        return exact_match(model, tokenizer, examples, batch_size=256)


class Overlap(ForgetRequest):
    """The request and what is to be kept share facts: those of some of the people are in both.

    What is shared is to be kept. It is in both files that edits are given, so that none of it is
    unseen; a third of these people are the role's validation facts, the others are its result.

    Args:
        share: Of the people to forget, in [0, 1).
        apart: What is shared is taken out of the request, as ``ws project`` asks one to do; it is
            kept all the same.
    """

    def __init__(self, share: float, apart: bool = False) -> None:
        self.share, self.apart = share, apart
        self.name = f"{share:.0%} shared{', taken out' if apart else ''}"

    @property
    @override
    def roles(self) -> Mapping[str, str]:
        return {**KEEP, "shared": self.task} if self.share else KEEP

    @override
    def given(self, subject: Subject) -> list[Example]:
        return self.target(subject) if self.apart else super().given(subject)

    def _shared(self, subject: Subject) -> list[str]:
        """Whom both files tell about; a larger share tells about the same ones and more."""
        people = list(dict.fromkeys(subject.entity[f.prompt] for f in super().given(subject)))
        random.Random(f"shared {subject.seed}").shuffle(people)
        return people[: round(self.share * len(people))]

    def target(self, subject: Subject) -> list[Example]:
        """See :meth:`ForgetRequest.target`: what is not shared."""
        shared = set(self._shared(subject))
        return [f for f in super().given(subject) if subject.entity[f.prompt] not in shared]

    def target_paraphrased(self, subject: Subject) -> list[Example]:
        """See :meth:`ForgetRequest.target_paraphrased`: none."""
        return []

    @override
    def keep_facts(self, subject: Subject, role: str, split: str) -> list[Example]:
        if role != "shared":
            return super().keep_facts(subject, role, split)
        people = self._shared(subject)
        chosen: Sequence[str] = {
            "seen": people, "validation": people[::3],
            "unseen": [person for n, person in enumerate(people) if n % 3],
        }[split]  # fmt: skip
        return [f for f in super().given(subject) if subject.entity[f.prompt] in set(chosen)]

    def survivors(self, subject: Subject) -> dict[str, list[Example]]:
        """See :meth:`ForgetRequest.survivors`: of the task to forget, what is shared."""
        sets, shared = super().survivors(subject), set(self._shared(subject))
        if self.task in sets:
            sets[self.task] = [f for f in sets[self.task] if subject.entity[f.prompt] in shared]
        return sets


def facts_of(
    subject: Subject, task: str, splits: Sequence[str] = SPLITS, wording: str = PLAIN
) -> list[Example]:
    """A task's facts in several splits; all of them by default."""
    return [fact for split in splits for fact in subject.facts(task, split, wording)]


def overlaps(text: str) -> list[Overlap]:
    """Requests for each share in a list such as ``0,0.25,0.5``: as it is, and taken out.

    Raises:
        EditError: A share is no number from 0 to under 1.
    """
    try:
        shares = list(dict.fromkeys(float(word) for word in text.split(",")))
        if not all(0 <= share < 1 for share in shares):
            raise ValueError("out of range")
    except ValueError:
        raise EditError(
            f"--overlap {text}", "Give shares from 0 to under 1, as in 0,0.25,0.5."
        ) from None
    return [
        Overlap(share, apart)
        for share in shares
        for apart in ((False, True) if share else (False,))
    ]


ONE_BY_ONE, FUSED, IN_ONE_GO = "one by one", "fused", "in one go"


class PartialRequest(ForgetRequest):
    """Some of several requests: each is to forget an equal share of the task's people.

    Who is in which request depends on the world's seed alone, and on how many requests there are.

    Args:
        count: Requests in all; where people do not divide by it, some have one person more.
        first: The first one included, from 1.
        last: The last one, included.
        way: How they are met, for the name.
    """

    def __init__(self, count: int, first: int, last: int, way: str = "") -> None:
        self.count, self.first, self.last = count, first, last
        self.name = name_of(way, last, count) if way else ""

    def given(self, subject: Subject) -> list[Example]:
        """See :meth:`ForgetRequest.given`: the facts about these people."""
        return self._about(subject, super().given(subject), self.first, self.last)

    @override
    def target_paraphrased(self, subject: Subject) -> list[Example]:
        facts = super().target_paraphrased(subject)
        return self._about(subject, facts, self.first, self.last)

    def also(self, subject: Subject) -> dict[str, list[Example]]:
        """The ``latest`` request alone, and what is still ``waiting``."""
        facts = super().given(subject)
        sets = {"latest": self._about(subject, facts, self.last, self.last)}
        if self.last < self.count:
            sets["waiting"] = self._about(subject, facts, self.last + 1, self.count)
        return sets

    def _about(
        self, subject: Subject, facts: list[Example], first: int, last: int
    ) -> list[Example]:
        people = list(dict.fromkeys(subject.entity[f.prompt] for f in super().given(subject)))
        random.Random(f"requests {subject.seed}").shuffle(people)
        number = {person: 1 + n * self.count // len(people) for n, person in enumerate(people)}
        return [f for f in facts if first <= number[subject.entity[f.prompt]] <= last]


def name_of(way: str, number: int, count: int) -> str:
    """The name of the stage after a request: how requests are met, and how far."""
    return f"{way}, {number} of {count}"


def names_of(count: int) -> tuple[str, ...]:
    """The names of what :func:`run_requests` gives, in order."""
    numbers = range(1, count + 1)
    stages = tuple(name_of(way, number, count) for way in (ONE_BY_ONE, FUSED) for number in numbers)
    return (*stages, name_of(IN_ONE_GO, count, count))


def check_requests(count: int, people: int) -> None:
    """Refuses what cannot be split.

    Raises:
        EditError: Fewer than two requests, or more than people.
    """
    if not 2 <= count <= people:
        raise EditError(
            f"{count} requests about {people} people",
            f"Give a whole number from 2 to {people}: each request is about somebody.",
        )
