"""Running a bench: every method on every world."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from weightsurgery.checkpoint.record import versions
from weightsurgery.errors import EditError
from weightsurgery.lab.bench.chosen import run_method
from weightsurgery.lab.bench.methods import FORGETTING, LEARNING, BenchMethod
from weightsurgery.lab.bench.requests import ForgetRequest, check_requests, names_of
from weightsurgery.lab.bench.results import Bench, read_bench, save_bench
from weightsurgery.lab.bench.sequence import run_requests, takes_part
from weightsurgery.lab.bench.subject import Subject
from weightsurgery.lab.world import get_world
from weightsurgery.lab.world.recipe import VARIANTS
from weightsurgery.progress import Progress

__all__ = ["bench", "run_method"]


def bench(
    seeds: Sequence[int] = (0, 1, 2),
    variant: str = "default",
    methods: Sequence[str] | None = None,
    *,
    task: str = "forget",
    forget_requests: Sequence[ForgetRequest] = (ForgetRequest(),),
    requests: int | None = None,
    threshold: float = 0.975,
    relearn_steps: int = 40,
    cache_dir: Path | None = None,
    save_to: Path | None = None,
    progress: Progress | None = None,
) -> Bench:
    """Compare methods on embedded worlds.

    Args:
        seeds: Of the worlds.
        variant: Of their recipe.
        methods: Names from the table of the task; all by default.
        task: ``"forget"`` the authors, or ``"learn"`` facts that the base lacks.
        forget_requests: What is to be forgotten and kept; several with names make a study.
        requests: What is to be forgotten comes in so many requests, one after another; see
            :mod:`weightsurgery.lab.bench.sequence`. Rows without changed weights that the
            next request could start at are left out, or refused by their names.
        threshold: Share of its score that every keep task's validation set must keep for a
            candidate to be chosen.
        relearn_steps: Steps of the attack on what was forgotten; 0 for no attack.
        cache_dir: Where worlds are kept.
        save_to: A file of results, which grows by each outcome; what it holds is not done again.
        progress: Called as ``progress(stage, done, total)`` in methods.

    Returns:
        An outcome per seed, request and method, or of requests several; and what the file held
        besides.

    Raises:
        EditError: An unknown variant, method or task, or requests that do not go with the rest.
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
    if requests is not None:
        chosen = _requested(
            requests, chosen, task, variant, forget_requests, by_name=methods is not None
        )
    results = Bench(variant, task, threshold, (), versions())
    if save_to is not None:
        results = read_bench(save_to).merged(results) if save_to.exists() else results
        save_bench(results, save_to)  # if it cannot be written, that shows now
    done = {(row.seed, row.asked, row.method) for row in results.outcomes}
    # By what an outcome is called; several requests are done together, or not at all.
    works: list[tuple[tuple[str, ...], ForgetRequest]] = [
        ((request.name,), request) for request in forget_requests
    ]
    if requests is not None:
        works = [(names_of(requests), ForgetRequest())]
    wanted = [
        (seed, request, name)
        for seed in seeds
        for names, request in works
        for name in chosen
        if not all((seed, label, name) in done for label in names)
    ]
    subject: Subject | None = None
    for place, (seed, request, name) in enumerate(wanted):
        if subject is None or subject.seed != seed:
            recipe = VARIANTS[variant]
            subject = Subject.of(get_world(seed, cache_dir, progress, recipe=recipe), recipe, seed)
        if subject.request is not request:
            subject = subject.with_request(request)
        request_name = f"{requests} requests" if requests else request.name
        if progress is not None:
            progress(
                ", ".join(filter(None, (f"seed {seed}", request_name, name))), place, len(wanted)
            )
        if requests is None:
            learning = task == "learn"
            outcome = run_method(subject, name, chosen[name], threshold, relearn_steps, learning)
            outcomes = [outcome]
        else:
            outcomes = run_requests(subject, name, chosen[name], threshold, relearn_steps, requests)
        results = results.merged(replace(results, outcomes=tuple(outcomes)))
        if save_to is not None:
            save_bench(results, save_to)
    return results


def _chosen(
    table: Mapping[str, BenchMethod], names: Sequence[str] | None
) -> dict[str, BenchMethod]:
    for name in names or ():
        if name not in table:
            raise EditError(f"method {name!r}", f"Choose from: {', '.join(table)}.")
    return {name: method for name, method in table.items() if names is None or name in names}


def _requested(
    requests: int,
    chosen: Mapping[str, BenchMethod],
    task: str,
    variant: str,
    forget_requests: Sequence[ForgetRequest],
    by_name: bool,
) -> dict[str, BenchMethod]:
    """The rows that can meet several requests.

    Raises:
        EditError: There is something that cannot.
    """
    if task != "forget":
        raise EditError(
            f"{requests} requests with the task {task!r}", "Requests are to forget: leave it out."
        )
    named = ", ".join(request.name for request in forget_requests if request.name)
    if named:
        raise EditError(
            f"{requests} requests together with: {named}", "Run them apart, one study at a time."
        )
    check_requests(requests, VARIANTS[variant].people)
    refused = [name for name in chosen if not takes_part(name)]
    if refused and by_name:
        raise EditError(
            f"{requests} requests with {', '.join(refused)}",
            "Leave it out: it leaves no changed weights that another request could start at.",
        )
    return {name: method for name, method in chosen.items() if takes_part(name)}
