"""Several requests, which arrive one after another, instead of one.

What is to be forgotten is split by people into requests of equal size. Each method forgets them

``one by one``
    each on the model that the requests before it left: one more change each time;
``fused``
    each on the untouched base, and the changes made one by the regression mean
    (:func:`weightsurgery.procedures.requests.fuse`): no request is in the way of another, and none
    need come first. No setting is chosen for what is fused, which is scored alone;
``in one go``
    all of them as a single request on the base, once the last is there.

Settings of each request are chosen as ever, among eight candidates by validation facts, which are
held against the scores of the base that no request has touched: what all of them cost together
counts. Where no candidate of a request holds the keep tasks, the request is refused: nobody would
ship that change, and taking the least harmful one, as a single row of the bench does to show what
a method is like, would spoil the model for all requests to come. The model stays as it was, and a
fusion leaves this request out; ``qualifies`` is false for it, and its setting says ``refused``.
All of them in one go are a row like any other, with the least harmful candidate shown.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from weightsurgery.errors import EditError
from weightsurgery.lab.bench.chosen import (
    Baseline,
    BenchMethod,
    Candidate,
    Choice,
    Cost,
    choose,
    measured,
    run_method,
    scored,
)
from weightsurgery.lab.bench.requests import (
    FUSED,
    IN_ONE_GO,
    ONE_BY_ONE,
    ForgetRequest,
    PartialRequest,
    check_requests,
    name_of,
)
from weightsurgery.lab.bench.results import Outcome
from weightsurgery.lab.bench.systems import PROMPTED
from weightsurgery.learning.fitting import isolated
from weightsurgery.learning.statistics import gather
from weightsurgery.learning.watch import Rule
from weightsurgery.procedures.requests import fuse, in_sequence

if TYPE_CHECKING:
    from weightsurgery.lab.bench.subject import Change, Subject

__all__ = ["run_requests", "takes_part"]


def takes_part(name: str) -> bool:
    """Whether a row changes the base's weights, so that another request can come after it."""
    return name not in PROMPTED and name != "retrained"


def run_requests(
    subject: Subject,
    name: str,
    method: BenchMethod,
    threshold: float,
    relearn_steps: int = 0,
    count: int = 4,
) -> list[Outcome]:
    """One method on several requests, in all three ways.

    Args:
        subject: An untouched base; it is so again in the end, to the bit.
        name: The method's.
        method: A row that changes weights.
        threshold: Share of the base's score that every keep task's validation facts must keep.
        relearn_steps: Steps of the attack on what was forgotten in the end; 0 for no attack.
        count: Requests.

    Returns:
        After each request one by one, after each fused, then all in one go. The target is all that
        is forgotten by then, and everything is compared with the untouched base; time and memory
        are those of the latest request. Attacks, rounding included, follow the last one.

    Raises:
        EditError: A method that changes no weights or trains them anew, one that offers more
            candidates than its budget, or a number of requests that cannot be split.
    """
    if not takes_part(name):
        raise EditError(
            f"{name} with several requests",
            "It leaves no changed weights for the next to start at.",
        )
    check_requests(count, len({subject.entity[f.prompt] for f in ForgetRequest().given(subject)}))
    before = Baseline.of(subject)
    rule = Rule(threshold, before.validation)
    work = _Work(subject, name, method, rule, relearn_steps, count, before)
    alone = None
    outcomes = []
    for number, choice in enumerate(_one_by_one(work), 1):
        outcomes.append(work.scored(ONE_BY_ONE, number, choice))
        alone = alone or choice
    assert alone is not None
    # The first request is worked on the base either way.
    outcomes.append(replace(outcomes[0], asked=name_of(FUSED, 1, count)))
    for number, choice in enumerate(_fused(work, alone), 2):
        outcomes.append(work.scored(FUSED, number, choice))
    whole = subject.with_request(PartialRequest(count, 1, count, IN_ONE_GO))
    outcomes.append(run_method(whole, name, method, threshold, relearn_steps))
    return outcomes


@dataclass(frozen=True)
class _Work:
    """What the steps of a sequence share."""

    subject: Subject
    name: str
    method: BenchMethod
    rule: Rule
    relearn_steps: int
    count: int
    before: Baseline

    def choice(self, number: int) -> Choice:
        """For a request alone, on the model as it is now; no change where it is refused."""
        subject = self.subject.with_request(PartialRequest(self.count, number, number))
        with isolated(subject.seed, torch.get_num_threads()):
            chosen = choose(subject, self.name, self.method, self.rule)
        if chosen.candidate.prompts is not None:
            raise EditError(
                f"{self.name} with several requests",
                "It changes prompts, and leaves no changed weights for the next to start at.",
            )
        if chosen.qualifies:
            return chosen
        return replace(chosen, candidate=Candidate({"refused": True}, {}))

    def scored(self, way: str, number: int, choice: Choice) -> Outcome:
        """After a request; the choice's change is that of all of them."""
        subject = self.subject.with_request(PartialRequest(self.count, 1, number, way))
        last = number == self.count
        with isolated(subject.seed, torch.get_num_threads()):
            return scored(subject, self.name, choice, self.before, self.relearn_steps, last=last)

    def holds(self, change: Mapping[str, Tensor]) -> bool:
        """Whether the base with a change holds the keep tasks' validation facts."""
        with self.subject.edited(change):
            return self.rule.holds(self.subject.validation())

    def grams(self, number: int, change: Mapping[str, Tensor]) -> Change:
        """Activation statistics of a request's own facts on the base, for what is changed."""
        subject = self.subject.with_request(PartialRequest(self.count, number, number))
        names = [name for name in subject.names if name in change]
        return gather(subject.model, subject.tokenizer, subject.forget, names) if names else {}


def _one_by_one(work: _Work) -> Iterator[Choice]:
    """After each request its choice, with the sum of all changes so far."""
    choices: list[Choice] = []

    def request(number: int) -> Callable[[], Mapping[str, Tensor]]:
        def change() -> Mapping[str, Tensor]:
            choices.append(work.choice(number))
            return choices[-1].candidate.change

        return change

    requests = [request(number) for number in range(1, work.count + 1)]
    for total in in_sequence(work.subject.model, requests):
        yield _with(choices.pop(), total)


def _fused(work: _Work, first: Choice) -> Iterator[Choice]:
    """After each request from the second its choice, with what all changes so far are made."""
    changes: dict[int, Mapping[str, Tensor]] = {}
    if first.qualifies:
        changes[1] = first.candidate.change
    grams: dict[int, Change] = {}
    total: Mapping[str, Tensor] = first.candidate.change
    for number in range(2, work.count + 1):
        choice = work.choice(number)
        with measured() as cost:
            if choice.qualifies:
                changes[number] = total = choice.candidate.change
            if choice.qualifies and len(changes) > 1:
                for index, change in changes.items():
                    if index not in grams:
                        grams[index] = work.grams(index, change)
                config = work.subject.model.config.to_dict()
                total = fuse(list(changes.values()), list(grams.values()), config=config)
        yield replace(
            _with(choice, total),
            qualifies=choice.qualifies and work.holds(total),
            cost=_both(choice.cost, cost),
        )


def _with(choice: Choice, change: Mapping[str, Tensor]) -> Choice:
    return replace(choice, candidate=replace(choice.candidate, change=dict(change)))


def _both(one: Cost, other: Cost) -> Cost:
    """Of two pieces of work, one after the other."""
    known = one.memory is not None and other.memory is not None
    return Cost(
        one.seconds + other.seconds,
        one.cpu_seconds + other.cpu_seconds,
        max(one.memory or 0, other.memory or 0) if known else None,
    )
