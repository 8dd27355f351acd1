"""A row of the bench on one world: its best candidate by validation, its scores and its cost."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from weightsurgery.errors import EditError
from weightsurgery.lab.bench.results import Outcome, Tried
from weightsurgery.lab.bench.subject import Change, Prompts, Subject
from weightsurgery.learning.attacks import quantised, relearn
from weightsurgery.learning.data import Example
from weightsurgery.learning.fitting import isolated
from weightsurgery.learning.watch import Rule

__all__ = [
    "BUDGET",
    "Baseline",
    "BenchMethod",
    "Candidate",
    "Choice",
    "Cost",
    "choose",
    "measured",
    "run_method",
    "scored",
]


@dataclass(frozen=True)
class Baseline:
    """The base's scores, which edits are held against.

    Attributes:
        validation: Role → exact match on validation facts.
        keep: ``ROLE.seen`` and ``ROLE.unseen`` → exact match.
    """

    validation: Mapping[str, float]
    keep: Mapping[str, float]

    @classmethod
    def of(cls, subject: Subject) -> Baseline:
        """Of the model as it is now."""
        return cls(subject.validation(), _keep_scores(subject))


@dataclass(frozen=True)
class Choice:
    """The chosen candidate of a method, and all that were tried.

    Attributes:
        candidate: The chosen one.
        qualifies: Whether it leaves every keep task's validation facts at the threshold.
        looks: How often validation data were looked at.
        tried: All of them, in the order they were made.
        cost: To make and validate all of them.
    """

    candidate: Candidate
    qualifies: bool
    looks: int
    tried: tuple[Tried, ...]
    cost: Cost


def choose(
    subject: Subject, name: str, method: BenchMethod, rule: Rule, learning: bool = False
) -> Choice:
    """Make a method's candidates, and take the best by validation facts.

    Where a method makes none, since all its training ended in NaN, the base stays as it is, which
    does not qualify.

    Args:
        subject: What the method is given; its target is what candidates are to reach.
        name: The method's.
        method: Makes the candidates.
        rule: What every role must keep of which score on validation facts; methods that watch
            these are held to it while they train.
        learning: More of the target is better.

    Raises:
        EditError: The method offers more candidates than its budget.
    """
    target = subject.new_facts if learning else subject.target
    best: tuple[tuple[bool, float, float], Candidate] | None = None
    looks, tried = 0, []
    subject.drop_cached()
    with measured() as cost, subject.held_to(rule):
        for candidate in method.candidates(subject):
            looks += 1 + candidate.looks
            with subject.edited(candidate.change), subject.prompted_by(candidate.prompts):
                score = subject.score(target)
                scores = subject.validation()
            tried.append(Tried(dict(candidate.setting), score, scores))
            left, goodness = rule.left(scores), score if learning else -score
            holds = rule.holds(scores)
            # One that holds goes before one that does not; those by how much they reach, these by
            # how little they harm.
            rank = (holds, goodness, left) if holds else (holds, left, goodness)
            if best is None or rank > best[0]:
                best = (rank, candidate)
    if looks > BUDGET:
        raise EditError(f"{name}: {looks} looks at validation data", f"At most {BUDGET}.")
    if best is None:
        return Choice(Candidate({}, {}), False, looks, (), cost)
    (qualifies, *_), winner = best
    return Choice(winner, qualifies, looks, tuple(tried), cost)


def run_method(
    subject: Subject,
    name: str,
    method: BenchMethod,
    threshold: float,
    relearn_steps: int = 0,
    learning: bool = False,
) -> Outcome:
    """Choose a method's candidate by validation data, and score that one alone on unseen facts.

    Raises:
        EditError: The method offers more candidates than its budget.
    """
    with isolated(subject.seed, torch.get_num_threads()):
        before = Baseline.of(subject)
        choice = choose(subject, name, method, Rule(threshold, before.validation), learning)
        return scored(subject, name, choice, before, relearn_steps, learning)


def scored(
    subject: Subject,
    name: str,
    choice: Choice,
    before: Baseline,
    relearn_steps: int = 0,
    learning: bool = False,
    *,
    last: bool = True,
) -> Outcome:
    """Score what was chosen.

    Args:
        subject: Of the base that the chosen change is to be added to.
        name: The method's.
        choice: Its candidate.
        before: The base's scores.
        relearn_steps: Steps of the attack on what was forgotten; 0 for no attack.
        learning: The target is what the base lacks.
        last: Nothing comes after it: it is attacked, by rounding too.
    """
    target = subject.new_facts if learning else subject.target
    target_before = subject.score(target)
    paraphrased = [] if learning else subject.request.target_paraphrased(subject)
    also = subject.request.also(subject)
    also_before = {name: subject.score(facts) for name, facts in also.items()}
    with subject.edited(choice.candidate.change), subject.prompted_by(choice.candidate.prompts):
        return Outcome(
            name,
            subject.seed,
            dict(choice.candidate.setting),
            choice.qualifies,
            choice.looks,
            round(choice.cost.seconds, 2),
            subject.score(target),
            target_before,
            _keep_scores(subject),
            before.keep,
            subject.request.chance(subject),
            subject.score(paraphrased) if paraphrased else None,
            cpu_seconds=round(choice.cost.cpu_seconds, 2),
            memory=choice.cost.memory,
            tried=choice.tried,
            validation_before=before.validation,
            asked=subject.request.name,
            also={name: subject.score(facts) for name, facts in also.items()},
            also_before=also_before,
            rounded_int8=_rounded(subject, target, "int8") if last else {},
            rounded=_rounded(subject, target, "nf4") if last else {},
            # The attack trains: arguments are made in their order, and it is the last.
            relearned=_relearned(subject, relearn_steps)
            if last and relearn_steps and not learning
            else {},
        )


def _keep_scores(subject: Subject) -> dict[str, float]:
    return {
        f"{role}.{split}": subject.score(facts)
        for split in ("seen", "unseen")
        for role, facts in subject.keep_facts(split).items()
    }


def _rounded(subject: Subject, target: list[Example], method: str) -> dict[str, float]:
    with quantised(subject.model, method):
        return {"target": subject.score(target), **_keep_scores(subject)}


def _relearned(subject: Subject, steps: int) -> dict[str, float]:
    """Train on every other person of the target, and score the rest; undone by `edited`."""
    about = [subject.entity[fact.prompt] for fact in subject.target]
    trained_on = set(list(dict.fromkeys(about))[::2])
    half = [
        fact for fact, entity in zip(subject.target, about, strict=True) if entity in trained_on
    ]
    rest = [
        fact for fact, entity in zip(subject.target, about, strict=True) if entity not in trained_on
    ]
    before = subject.score(rest)
    relearn(subject.model, subject.tokenizer, half, steps, seed=subject.seed)
    return {"half": subject.score(half), "rest": subject.score(rest), "rest_before": before}


BUDGET = 8
"""Candidates, or looks at validation data, that each method has."""


@dataclass(frozen=True)
class Candidate:
    """A setting and what it does to the weights.

    Attributes:
        setting: By name.
        change: ``W' − W`` by parameter.
        looks: How often validation data were looked at to find it, beyond the bench's own look.
        prompts: What every query becomes, for what changes prompts instead of weights; None leaves
            them as they are.
    """

    setting: Mapping[str, Any]
    change: Change
    looks: int = 0
    prompts: Prompts | None = None


@dataclass(frozen=True)
class BenchMethod:
    """A row of the bench.

    Attributes:
        about: What it does, in a line.
        candidates: Makes its candidates, cheapest shared work first.
        sees: What of the tasks to keep it is given: ``"nothing"``, ``"vectors"``, ``"facts"``
            (seen ones) or ``"everything"``.
    """

    about: str
    candidates: Callable[[Subject], Iterator[Candidate]]
    sees: str = "nothing"


_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass
class Cost:
    """Filled in when the work is done.

    Attributes:
        seconds: Wall time.
        cpu_seconds: Time of all threads of this process; unlike wall time, it hardly depends on
            what else the machine does.
        memory: Bytes of main memory at the peak beyond those held when the work began; None where
            the system does not tell (Linux does).
    """

    seconds: float = 0.0
    cpu_seconds: float = 0.0
    memory: int | None = None


def _resident(field: str) -> int:
    """Bytes; ``VmRSS`` as it is, ``VmHWM`` at its peak."""
    match = re.search(rf"^{field}:\s+(\d+) kB", _STATUS.read_text(encoding="ascii"), re.MULTILINE)
    if match is None:
        raise OSError(f"{_STATUS} has no {field}")
    return 1024 * int(match[1])


@contextmanager
def measured() -> Iterator[Cost]:
    """Measure the block; not to be nested, since the system keeps one peak of a process."""
    cost, before = Cost(), None
    try:
        _RESET.write_text("5", encoding="ascii")  # the peak is now what is held now
        before = _resident("VmRSS")
    except OSError:
        pass
    wall, cpu = time.monotonic(), time.process_time()
    yield cost
    cost.seconds, cost.cpu_seconds = time.monotonic() - wall, time.process_time() - cpu
    if before is not None:
        cost.memory = max(0, _resident("VmHWM") - before)
