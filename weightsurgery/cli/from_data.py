"""``ws project`` and ``ws learn`` from data sets, or with data to keep."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from weightsurgery.cli import console
from weightsurgery.cli.data_options import FromData
from weightsurgery.cli.factors import Share, Truncate, rank_rule
from weightsurgery.cli.found import INTERRUPTED, show_found
from weightsurgery.cli.opened import refuse_running, remarked
from weightsurgery.cli.options import Fit, Show, Store, Which, Work
from weightsurgery.cli.paged import Pages

if TYPE_CHECKING:
    from weightsurgery.checkpoint.reader import Checkpoint
    from weightsurgery.vectors.statistics import InputStatistics
    from weightsurgery.vectors.task_vector import TaskVector

__all__ = ["edit_from_data", "from_data", "installed", "kept_data"]


def from_data(task: list[str]) -> bool:
    """Whether what to forget or learn are data sets.

    Raises:
        EditError: Some are and some are not, or a data set has a factor.
    """
    from weightsurgery.errors import EditError
    from weightsurgery.vectors.sources import split_data

    data, others = split_data(task)
    if data and others:
        raise EditError(
            f"{data[0]} is a data set and {others[0]} is not",
            "Give data sets alone or vectors alone; 'ws identify' makes a vector of data.",
        )
    return bool(data)


def installed(*more: str) -> None:
    """Refuse to run a model where what runs it is not installed.

    Raises:
        WeightSurgeryError: With the command that installs it.
    """
    from weightsurgery.deferred import need

    need("the model is to be run", "transformers", "accelerate", *more, extra="demo")


def edit_from_data(
    name: str,
    base: str,
    task: list[str],
    scale: float,
    share: Share,
    truncate: Truncate,
    data: FromData,
    store: Store,
    which: Which,
    fit: Fit,
    work: Work,
    show: Show,
    pages: Pages,
) -> None:
    """Forget or learn data sets."""
    installed()
    pages.check()
    refuse_running(fit, "data")
    from weightsurgery.algebra.lowrank import Rank
    from weightsurgery.checkpoint.reader import Checkpoint
    from weightsurgery.errors import EditError
    from weightsurgery.procedures import unlearn as library
    from weightsurgery.report.plans import data_plan_lines
    from weightsurgery.report.unlearned import round_tables
    from weightsurgery.vectors.sources import split_data

    if (share.side, share.basis) != ("right", "joint"):
        raise EditError(
            f"--side {share.side} --basis {share.basis} with data: training inside the subspace"
            " leaves the joint span of the keep inputs alone",
            "Leave both out, or make a vector of the data first with 'ws identify'.",
        )
    _, vectors = split_data(share.keep or ())
    objective, why = data.chosen(name == "learn", bool(vectors))
    search = data.search(
        name == "learn",
        objective,
        share.epsilon,
        store.seed,
        truncate.rule(),
        rank_rule(share.keep_rank, None, "--keep-rank") or Rank(64),
    )
    if why:
        console.notice(why, show)
    installed(*(("peft",) if search.neighbours is not None else ()))
    sources = library.Sources(
        tuple(task),
        tuple(share.keep or ()),
        data.validation_target,
        tuple(data.validation_keep or ()),
        fit.vocab,
        fit.missing,
        fit.partial,
    )
    what: dict[str, Any] = {
        "vector": data.vector,
        "selection": which.selection(search.targets, store.layer_scale),
        "storage": store.storage(),
        "device": work.device,
        "workers": work.workers,
        "overwrite": store.overwrite,
        "allow_unrelated": store.allow_unrelated,
    }
    with Checkpoint.open(base) as opened:
        remarked(opened, show)
        if store.dry_run:
            plan = library.plan(opened, sources, store.out, search, **what)
            if show.json:
                console.document(plan.summary())
            else:
                console.show(*data_plan_lines(plan, store.out))
            return
        with console.progress(show, "steps", INTERRUPTED) as progress:
            done = library.unlearn(
                opened,
                sources,
                store.out,
                search,
                scale=scale,
                command=show.command,
                progress=progress,
                **what,
            )
    assert done is not None  # one process alone
    trained = round_tables(done.vector, every=show.verbose)
    show_found(done, trained, base, "add" if name == "learn" else "negate", store, show, pages)


@contextmanager
def kept_data(
    base: Checkpoint,
    files: list[str],
    task: TaskVector,
    data: FromData,
    store: Store,
    which: Which,
    work: Work,
    show: Show,
) -> Iterator[tuple[InputStatistics, ...]]:
    """Activation statistics of data to keep while a vector is taken away; none without data."""
    if not files:
        yield ()
        return
    installed()
    from weightsurgery.procedures.gathered import keep_data
    from weightsurgery.unlearning.matrices import matrices

    selection = which.selection("all-linear", store.layer_scale)
    names = [name for name in matrices(base, selection) if task.at(name) is not None]
    prompts = 2000 if data.prompts is None else data.prompts
    with ExitStack() as open_until_the_end:
        with console.progress(show, unit="tokens") as progress:
            statistics = open_until_the_end.enter_context(
                keep_data(
                    base,
                    files,
                    store.out,
                    names,
                    prompts=prompts,
                    seed=store.seed,
                    device=work.device,
                    overwrite=store.overwrite,
                    dry_run=store.dry_run,
                    progress=progress,
                )
            )
        yield (statistics,)
