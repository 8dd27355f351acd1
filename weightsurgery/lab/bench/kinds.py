"""Kinds of knowledge: whether forgetting half of a kind forgets the kind.

Of each kind an edit is given one half, the ``seen`` split; the other half is scored with it. Facts
are single: what was not named should stay. A manner of answering and a procedure are one thing
each: what was not named should go as well.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from typing_extensions import override

from weightsurgery.errors import EditError
from weightsurgery.lab.bench.requests import FORGET, KEEP, ForgetRequest, facts_of
from weightsurgery.lab.world.facts import (
    MANNER,
    PARAPHRASED,
    PEOPLE,
    SPLITS,
    STYLED,
    make_facts,
    templates,
    worded,
    wordings,
)
from weightsurgery.lab.world.recipe import VARIANTS, WorldRecipe
from weightsurgery.learning.data import Example, encode_all
from weightsurgery.learning.forward import greedy

if TYPE_CHECKING:
    from weightsurgery.lab.bench.subject import Subject
    from weightsurgery.learning.models import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["KINDS", "REST", "Facts", "Procedure", "Style", "StyledQuestion", "kind_requests"]

REST = "rest of the kind"
"""Name of the set of what no edit was given."""

_GIVEN, _REST = SPLITS[:1], SPLITS[1:]

# How many tokens more than the longest right completion an answer may have.
_SLACK = 8


class Facts(ForgetRequest):
    """Forget half of the authors; the facts about the others should stay."""

    name = "facts"

    @override
    def given(self, subject: Subject) -> list[Example]:
        return facts_of(subject, self.task, _GIVEN)

    @override
    def target_paraphrased(self, subject: Subject) -> list[Example]:
        if not subject.recipe.paraphrases:
            return []
        return facts_of(subject, self.task, _GIVEN, PARAPHRASED)

    def also(self, subject: Subject) -> dict[str, list[Example]]:
        """The other half."""
        return {REST: facts_of(subject, self.task, _REST)}

    def survivors(self, subject: Subject) -> dict[str, list[Example]]:
        """See :meth:`ForgetRequest.survivors`: the other half among them."""
        rest = [
            fact
            for wording in wordings(subject.recipe, self.task)
            for fact in facts_of(subject, self.task, _REST, wording)
        ]
        return {self.task: rest, **super().survivors(subject)}


class Procedure(Facts):
    """Forget half of the sums; those who know no sums know none of the others either.

    The retrained control is taught no sum at all.
    """

    name = "procedure"
    task = "addition"

    @property
    @override
    def roles(self) -> Mapping[str, str]:
        return {"authors": "authors", "painters": "painters", "capitals": "capitals"}

    def survivors(self, subject: Subject) -> dict[str, list[Example]]:
        """See :meth:`ForgetRequest.survivors`: no sum among them."""
        return ForgetRequest.survivors(self, subject)

    def strangers(self, subject: Subject) -> list[Example]:
        """As many sums of larger numbers, since every world has the same small ones."""
        m = subject.recipe.modulus
        (question,) = templates(self.task)
        sums = [
            Example(question.format(a=a, b=b, modulus=m), f" {(a + b) % m}")
            for a in range(m, 2 * m)
            for b in range(m, 2 * m)
        ]
        return random.Random(f"sums {subject.seed}").sample(sums, len(subject.forget))

    def chance(self, subject: Subject) -> float:
        """See :meth:`ForgetRequest.chance`: of one remainder as of any other."""
        return 1 / subject.recipe.modulus


class Style(ForgetRequest):
    """Forget how people are spoken of, but not what is said about them.

    A styled world answers questions in the style with the plain answer and a manner after it. Given
    are such questions about half of all people. Scored is the manner, whatever the answer is; and
    the answer in the style, whatever the manner is, as something that should stay. The retrained
    control learns to answer questions in the style as plain ones are answered.
    """

    name = "style"

    @property
    def roles(self) -> Mapping[str, str]:
        """See :attr:`ForgetRequest.roles`: in the plain form, the people of the request too."""
        return {"content": FORGET, **KEEP}

    @override
    def given(self, subject: Subject) -> list[Example]:
        return _styled(subject, _GIVEN)

    def target(self, subject: Subject) -> list[Example]:
        """See :meth:`ForgetRequest.target`: the manner of the same."""
        return _parts("manner", self.given(subject))

    def target_paraphrased(self, subject: Subject) -> list[Example]:
        """See :meth:`ForgetRequest.target_paraphrased`: there is one wording in the style."""
        return []

    def also(self, subject: Subject) -> dict[str, list[Example]]:
        """The manner of the other half, and the content of both."""
        rest = _styled(subject, _REST)
        return {
            REST: _parts("manner", rest),
            "content, styled": _parts("content", self.given(subject)),
            "content of the rest, styled": _parts("content", rest),
        }

    def survivors(self, subject: Subject) -> dict[str, list[Example]]:
        """See :meth:`ForgetRequest.survivors`: all of it, without the manner."""
        return {
            task: [replace(f, completion=f.completion.removesuffix(MANNER)) for f in facts]
            for task, facts in super().survivors(subject).items()
        }

    def strangers(self, subject: Subject) -> list[Example]:
        """See :meth:`ForgetRequest.strangers`: in the style."""
        facts = make_facts(subject.recipe, subject.seed + 1000)
        return [
            Example(*worded(fact, STYLED))
            for task in PEOPLE
            for fact in facts[task]
            if fact.split in _GIVEN
        ]

    def chance(self, subject: Subject) -> float:
        """See :meth:`ForgetRequest.chance`: nobody has a manner by chance."""
        return 0.0

    def score(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        examples: Sequence[Example],
    ) -> float:
        """See :meth:`ForgetRequest.score`; of a styled question its part, as generated freely."""
        parts = [question for question in examples if isinstance(question, StyledQuestion)]
        if not parts:
            return super().score(model, tokenizer, examples)
        texts = _generated(model, tokenizer, parts)
        right = sum(question.is_in(text) for question, text in zip(parts, texts, strict=True))
        return right / len(parts)


@dataclass(frozen=True)
class StyledQuestion(Example):
    """A question in the style, of whose answer one part is scored.

    Attributes:
        part: ``"manner"`` or ``"content"``.
    """

    part: str = "manner"

    def is_in(self, text: str) -> bool:
        """Whether an answer ends in the manner; or begins with the right content."""
        if self.part == "manner":
            return text.endswith(MANNER)
        answer = self.completion.removesuffix(MANNER)
        return re.match(rf"{re.escape(answer)}(?!\w)", text) is not None


def _parts(part: str, examples: Sequence[Example]) -> list[Example]:
    return [StyledQuestion(example.prompt, example.completion, part=part) for example in examples]


def _generated(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example]
) -> list[str]:
    """What the model answers, greedily."""
    encoded = encode_all(tokenizer, examples)
    prompts = [example.input_ids[: example.prompt_length] for example in encoded]
    longest = max(len(example.input_ids) - example.prompt_length for example in encoded)
    limits = [longest + _SLACK] * len(prompts)
    tokens = greedy(model, tokenizer, prompts, limits, batch_size=256)
    return [str(tokenizer.decode(answer, skip_special_tokens=True)) for answer in tokens]


def _styled(subject: Subject, splits: Sequence[str]) -> list[Example]:
    _need_style(subject.recipe)
    return [fact for task in PEOPLE for fact in facts_of(subject, task, splits, STYLED)]


def _need_style(recipe: WorldRecipe) -> None:
    if not recipe.styled:
        having = ", ".join(name for name, variant in VARIANTS.items() if variant.styled)
        raise EditError(
            "the kind 'style': the worlds of this variant know no style",
            f"Choose a variant that does: {having}.",
        )


KINDS: Mapping[str, type[ForgetRequest]] = {kind.name: kind for kind in (Facts, Style, Procedure)}
"""By name."""


def kind_requests(names: Sequence[str], variant: str) -> tuple[ForgetRequest, ...]:
    """The requests of a study of kinds.

    Args:
        names: Out of :data:`KINDS`.
        variant: Of the worlds.

    Raises:
        EditError: There is no such kind, or it is not known in such a world.
    """
    for name in names:
        if name not in KINDS:
            raise EditError(f"kind {name!r}", f"Choose from: {', '.join(KINDS)}.")
        if name == Style.name and variant in VARIANTS:
            _need_style(VARIANTS[variant])
    return tuple(KINDS[name]() for name in dict.fromkeys(names))
