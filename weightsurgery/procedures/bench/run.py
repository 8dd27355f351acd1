"""Running a bench: for every world and method the best candidate by validation, then its scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from weightsurgery.checkpoint.record import versions
from weightsurgery.errors import EditError
from weightsurgery.learning.attacks import quantised, relearn
from weightsurgery.learning.data import Example
from weightsurgery.learning.fitting import isolated
from weightsurgery.procedures.bench.asks import Ask
from weightsurgery.procedures.bench.cost import measured
from weightsurgery.procedures.bench.methods import (
    BUDGET,
    FORGETTING,
    LEARNING,
    Candidate,
    Method,
)
from weightsurgery.procedures.bench.results import (
    Bench,
    Outcome,
    Tried,
    read_bench,
    save_bench,
)
from weightsurgery.procedures.bench.subject import Subject
from weightsurgery.procedures.world import get_world
from weightsurgery.procedures.world.build import Progress
from weightsurgery.procedures.world.recipe import VARIANTS

__all__ = ["bench", "run_method"]


def bench(
    seeds: Sequence[int] = (0, 1, 2),
    variant: str = "default",
    methods: Sequence[str] | None = None,
    *,
    task: str = "forget",
    asks: Sequence[Ask] = (Ask(),),
    threshold: float = 0.975,
    relearn_steps: int = 40,
    cache_dir: Path | None = None,
    save_to: Path | None = None,
    progress: Progress | None = None,
) -> Bench:
    """Holds methods against each other on embedded worlds.

    Args:
        seeds: Of the worlds.
        variant: Of their recipe.
        methods: Names from the table of the task; all by default.
        task: ``"forget"`` the authors, or ``"learn"`` facts that the base lacks.
        asks: What is to be forgotten and kept; several with names make a study.
        threshold: Share of its score that every keep task's validation set must keep for a
            candidate to be chosen.
        relearn_steps: Steps of the attack on what was forgotten; 0 for no attack.
        cache_dir: Where worlds are kept.
        save_to: A file of results, which grows by each outcome; what it holds is not done again.
        progress: Called as ``progress(stage, done, total)`` in methods.

    Returns:
        An outcome per seed, ask and method, and what the file held besides.

    Raises:
        EditError: An unknown variant, method or task.
        DataError: The file holds something else, or results of another bench.
        OutputError: It cannot be written.
        WeightSurgeryError: A world cannot be made.
    """
    tables = {"forget": FORGETTING, "learn": LEARNING}
    if task not in tables:
        raise EditError(f"task {task!r}", f"Choose one of: {', '.join(tables)}.")
    if variant not in VARIANTS:
        raise EditError(f"variant {variant!r}", f"Choose one of: {', '.join(VARIANTS)}.")
    chosen = _chosen(tables[task], methods)
    found = Bench(variant, task, threshold, (), versions())
    if save_to is not None:
        found = read_bench(save_to).merged(found) if save_to.exists() else found
        save_bench(found, save_to)  # if it cannot be written, that shows now
    known = {(each.seed, each.asked, each.method) for each in found.outcomes}
    wanted = [
        (seed, ask, name)
        for seed in seeds
        for ask in asks
        for name in chosen
        if (seed, ask.name, name) not in known
    ]
    subject: Subject | None = None
    for place, (seed, ask, name) in enumerate(wanted):
        if subject is None or subject.seed != seed:
            recipe = VARIANTS[variant]
            subject = Subject.of(get_world(seed, cache_dir, progress, recipe=recipe), recipe, seed)
        if subject.ask is not ask:
            subject = subject.asking(ask)
        if progress is not None:
            stage = ", ".join(filter(None, (f"seed {seed}", ask.name, name)))
            progress(stage, place, len(wanted))
        learning = task == "learn"
        outcome = run_method(subject, name, chosen[name], threshold, relearn_steps, learning)
        found = Bench(variant, task, threshold, (*found.outcomes, outcome), found.versions)
        if save_to is not None:
            save_bench(found, save_to)
    return found


def _chosen(table: Mapping[str, Method], names: Sequence[str] | None) -> dict[str, Method]:
    for name in names or ():
        if name not in table:
            raise EditError(f"method {name!r}", f"Choose from: {', '.join(table)}.")
    return {name: method for name, method in table.items() if names is None or name in names}


def run_method(
    subject: Subject,
    name: str,
    method: Method,
    threshold: float,
    relearn_steps: int = 0,
    learning: bool = False,
) -> Outcome:
    """Choose a method's candidate by validation data, and score that one alone on unseen facts.

    Raises:
        EditError: The method offers more candidates than its budget.
    """
    with isolated(subject.seed, torch.get_num_threads()):
        target = subject.news if learning else subject.target
        before = subject.validation()
        target_before = subject.score(target)
        keep_before = _keep_scores(subject)
        paraphrased = subject.ask.target_paraphrased(subject)
        also = subject.ask.also(subject)
        also_before = {name: subject.score(facts) for name, facts in also.items()}
        subject.anew()
        best: tuple[tuple[bool, float, float], Candidate] | None = None
        looks, tried = 0, []
        with measured() as cost:
            for candidate in method.candidates(subject):
                looks += 1 + candidate.looks
                with subject.edited(candidate.change), subject.asked(candidate.prompts):
                    score = subject.score(target)
                    kept = subject.validation()
                tried.append(Tried(dict(candidate.setting), score, kept))
                worst = min(kept[role] / before[role] for role in before)
                goodness = score if learning else -score
                holds = worst >= threshold
                # One that holds goes before one that does not; those by how much they reach,
                # these by how little they harm.
                rank = (holds, goodness, worst) if holds else (holds, worst, goodness)
                if best is None or rank > best[0]:
                    best = (rank, candidate)
        if looks > BUDGET:
            raise EditError(f"{name}: {looks} looks at validation data", f"At most {BUDGET}.")
        assert best is not None
        (qualifies, *_), found = best
        with subject.edited(found.change), subject.asked(found.prompts):
            # Before the attack that trains: arguments are made in their order.
            int8 = _rounded(subject, target, "int8")
            outcome = Outcome(
                name,
                subject.seed,
                dict(found.setting),
                qualifies,
                looks,
                round(cost.seconds, 2),
                subject.score(target),
                target_before,
                _keep_scores(subject),
                keep_before,
                subject.ask.chance(subject),
                subject.score(paraphrased) if paraphrased and not learning else None,
                _rounded(subject, target, "nf4"),
                {} if learning or not relearn_steps else _relearned(subject, relearn_steps),
                rounded_int8=int8,
                cpu_seconds=round(cost.cpu_seconds, 2),
                memory=cost.memory,
                tried=tuple(tried),
                validation_before=before,
                asked=subject.ask.name,
                also={name: subject.score(facts) for name, facts in also.items()},
                also_before=also_before,
            )
    return outcome


def _keep_scores(subject: Subject) -> dict[str, float]:
    return {
        f"{role}.{split}": subject.score(facts)
        for split in ("seen", "unseen")
        for role, facts in subject.kept(split).items()
    }


def _rounded(subject: Subject, target: list[Example], method: str) -> dict[str, float]:
    with quantised(subject.model, method):
        return {"target": subject.score(target), **_keep_scores(subject)}


def _relearned(subject: Subject, steps: int) -> dict[str, float]:
    """Trains on every other person of the target, and asks for the rest; undone by `edited`."""
    about = [subject.entity[fact.prompt] for fact in subject.target]
    given = set(list(dict.fromkeys(about))[::2])
    half = [fact for fact, entity in zip(subject.target, about, strict=True) if entity in given]
    rest = [fact for fact, entity in zip(subject.target, about, strict=True) if entity not in given]
    before = subject.score(rest)
    relearn(subject.model, subject.tokenizer, half, steps, seed=subject.seed)
    return {"half": subject.score(half), "rest": subject.score(rest), "rest_before": before}
