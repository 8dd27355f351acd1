"""What all methods of a bench are given on one world: model, data, vectors, statistics."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from weightsurgery.lab.bench.requests import ForgetRequest
from weightsurgery.lab.world import World, WorldRecipe
from weightsurgery.lab.world.facts import PLAIN, make_facts, worded, wordings
from weightsurgery.learning.data import Example, read_examples
from weightsurgery.learning.identify import ALL_LINEAR, train_vector
from weightsurgery.learning.keep_span import Kept, keep_texts
from weightsurgery.learning.models import PreTrainedModel, PreTrainedTokenizerBase, load_model
from weightsurgery.learning.parameters import entries_of
from weightsurgery.learning.settings import Training
from weightsurgery.learning.stages import set_values, values_of
from weightsurgery.learning.statistics import gather
from weightsurgery.learning.watch import Rule

__all__ = ["Change", "Prompts", "Subject"]

Change = dict[str, Tensor]

Prompts = Callable[[Sequence[Example]], list[Example]]
"""From queries to the prompts that the model gets."""

_STRANGERS = 2000

# Computed by each row anew and counted in its time; the candidates of a row share it.
_CACHED = ("vector", "keep_vectors", "seen_grams", "stranger_grams", "vector_grams")


@dataclass
class Subject:
    """A world's base model, and what methods may see of the world.

    Attributes:
        world: The world.
        recipe: What it was made by.
        seed: What it was made from.
        model: The base, float32, in evaluation mode.
        tokenizer: Its tokenizer.
        request: What is to be forgotten and kept.
        rule: By which the bench chooses among candidates, and by which methods that watch
            validation facts while they train must choose too.
    """

    world: World
    recipe: WorldRecipe
    seed: int
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    request: ForgetRequest = field(default_factory=ForgetRequest)
    rule: Rule = field(default_factory=Rule)
    _read: dict[tuple[str, str, str], list[Example]] = field(default_factory=dict)
    _prompts: Prompts | None = None

    @classmethod
    def of(
        cls, world: World, recipe: WorldRecipe, seed: int, request: ForgetRequest | None = None
    ) -> Subject:
        """Load a world's base."""
        model, tokenizer = load_model(world.base)  # float32, as a world stores it
        return cls(world, recipe, seed, model, tokenizer, request or ForgetRequest())

    def with_request(self, request: ForgetRequest) -> Subject:
        """The same model with another request."""
        return Subject(self.world, self.recipe, self.seed, self.model, self.tokenizer, request)

    def drop_cached(self) -> None:
        """Drop what a row computed, so that the next row's time includes its own."""
        for name in _CACHED:
            self.__dict__.pop(name, None)

    def facts(self, task: str, split: str, wording: str = PLAIN) -> list[Example]:
        """Facts of a task."""
        key = (task, split, wording)
        if key not in self._read:
            path = self.world.data(task, split, wording)
            self._read[key] = read_examples(path)
        return self._read[key]

    @cached_property
    def entity(self) -> dict[str, str]:
        """Query → whom or what it is about."""
        facts = (fact for rows in make_facts(self.recipe, self.seed).values() for fact in rows)
        return {
            worded(fact, wording)[0]: fact.entity
            for fact in facts
            for wording in wordings(self.recipe, fact.task)
        }

    @cached_property
    def forget(self) -> list[Example]:
        """The request, as edits are given it."""
        return self.request.given(self)

    @cached_property
    def target(self) -> list[Example]:
        """What forgetting is scored on."""
        return self.request.target(self)

    @cached_property
    def new_facts(self) -> list[Example]:
        """Facts that the base lacks."""
        return self.request.strangers(self)

    @cached_property
    def seen(self) -> list[list[Example]]:
        """The keep facts that an edit may see, task by task."""
        return list(self.keep_facts("seen").values())

    @cached_property
    def seen_facts(self) -> list[Example]:
        """The same in one list."""
        return [fact for rows in self.seen for fact in rows]

    def keep_facts(self, split: str) -> dict[str, list[Example]]:
        """Role → its facts in a split."""
        return {role: self.request.keep_facts(self, role, split) for role in self.request.roles}

    @cached_property
    def names(self) -> list[str]:
        """The matrices that edits change."""
        return list(ALL_LINEAR.resolve(entries_of(self.model)))

    @cached_property
    def before(self) -> Change:
        """Every parameter of the base."""
        return values_of(self.model, [name for name, _ in self.model.named_parameters()])

    @contextmanager
    def edited(self, change: Mapping[str, Tensor]) -> Iterator[None]:
        """The model with a change inside; the base again, after."""
        before = self.before  # known before anything inside can change it
        try:
            set_values(self.model, {name: before[name] + t for name, t in change.items()})
            yield
        finally:
            set_values(self.model, before)

    @contextmanager
    def prompted_by(self, prompts: Prompts | None) -> Iterator[None]:
        """Every query is scored as the function has it; as it stands again, after."""
        self._prompts, before = prompts, self._prompts
        try:
            yield
        finally:
            self._prompts = before

    @contextmanager
    def held_to(self, rule: Rule) -> Iterator[None]:
        """Candidates are chosen by another rule; by the one as it stands again, after."""
        self.rule, before = rule, self.rule
        try:
            yield
        finally:
            self.rule = before

    def score(self, examples: Sequence[Example]) -> float:
        """How well the model as it is now does, by the request's score."""
        if self._prompts is not None:
            examples = self._prompts(examples)
        return self.request.score(self.model, self.tokenizer, examples)

    def validation(self) -> dict[str, float]:
        """Role → score of its validation facts."""
        return {role: self.score(facts) for role, facts in self.keep_facts("validation").items()}

    # What vectors are trained by; the world's own fine-tunes use the same figures.
    def tuning(self, seed: int = 0) -> Training:
        """How a task vector is trained."""
        r = self.recipe
        return Training(
            steps=r.tuning_steps,
            learning_rate=r.tuning_learning_rate,
            batch_size=r.tuning_batch,
            warmup=r.tuning_warmup,
            seed=seed,
        )

    @cached_property
    def vector(self) -> Change:
        """The joint task vector of the request."""
        return train_vector(self.model, self.tokenizer, self.forget, self.tuning())

    @cached_property
    def keep_vectors(self) -> list[Change]:
        """The joint task vectors of the seen keep facts, task by task."""
        return [train_vector(self.model, self.tokenizer, rows, self.tuning()) for rows in self.seen]

    @cached_property
    def seen_grams(self) -> Change:
        """Activation statistics of the seen keep facts."""
        return self._grams(0)

    @cached_property
    def stranger_grams(self) -> Change:
        """The same with strangers' prompts."""
        return self._grams(_STRANGERS)

    def _grams(self, prompts: int) -> Change:
        texts = keep_texts(self.tokenizer, self.forget, Kept(self.seen), prompts)
        return gather(self.model, self.tokenizer, texts, self.names)

    @cached_property
    def vector_grams(self) -> Change:
        """``Σ TᵀT`` of the keep vectors: their stand-in for activation statistics."""
        return {
            name: torch.stack([t[name].double().T @ t[name].double() for t in self.keep_vectors])
            .sum(0)
            for name in self.names
        }  # fmt: skip
