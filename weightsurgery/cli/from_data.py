"""``ws project`` and ``ws learn`` from data sets, or with data to keep."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING

from weightsurgery.cli import console
from weightsurgery.cli.data_options import FromData
from weightsurgery.cli.edit_options import EditOptions
from weightsurgery.cli.factors import Share, rank_rule
from weightsurgery.cli.find_and_edit import find_and_edit
from weightsurgery.cli.opened import refuse_running

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
    name: str, base: str, task: list[str], share: Share, data: FromData, given: EditOptions
) -> None:
    """Forget or learn data sets."""
    installed()
    given.pages.check()
    refuse_running(given.fit, "data")
    from weightsurgery.algebra.lowrank import Rank
    from weightsurgery.errors import EditError
    from weightsurgery.procedures.unlearn import Sources
    from weightsurgery.report.trainings import round_tables
    from weightsurgery.vectors.sources import split_data

    if (share.side, share.basis) != ("right", "joint"):
        raise EditError(
            f"--side {share.side} --basis {share.basis} with data: training inside the subspace"
            " leaves the joint span of the keep inputs alone",
            "Leave both out, or make a vector of the data first with 'ws identify'.",
        )
    store, show, learning = given.store, given.show, name == "learn"
    _, vectors = split_data(share.keep or ())
    objective, why = data.chosen(learning, bool(vectors))
    search = data.search(
        learning,
        objective,
        share.epsilon,
        store.seed,
        given.truncate.rule(),
        rank_rule(share.keep_rank, None, "--keep-rank") or Rank(64),
    )
    if why:
        console.notice(why, show)
    installed(*(("peft",) if search.neighbours is not None else ()))
    sources = Sources(
        tuple(task),
        tuple(share.keep or ()),
        data.validation_target,
        tuple(data.validation_keep or ()),
        never_knew=data.never_knew,
        **given.fit.policies,
    )
    selection = given.which.selection(search.targets, store.layer_scale)
    find_and_edit(
        base,
        sources,
        search,
        "add" if learning else "negate",
        partial(round_tables, every=show.verbose),
        store,
        given.work,
        show,
        given.pages,
        scale=given.scale,
        vector=data.vector,
        scales=selection.scales,
        selection=selection,
    )


@contextmanager
def kept_data(
    base: Checkpoint, files: list[str], task: TaskVector, prompts: int | None, given: EditOptions
) -> Iterator[tuple[InputStatistics, ...]]:
    """Activation statistics of data to keep while a vector is taken away; none without data."""
    if not files:
        yield ()
        return
    installed()
    from weightsurgery.procedures.gathered import keep_data
    from weightsurgery.unlearning.matrices import matrices

    store = given.store
    selection = given.which.selection("all-linear", store.layer_scale)
    names = [name for name in matrices(base, selection) if task.rows_at(name) is not None]
    with ExitStack() as open_until_the_end:
        with console.progress(given.show, unit="tokens") as progress:
            statistics = open_until_the_end.enter_context(
                keep_data(
                    base,
                    files,
                    store.out,
                    names,
                    prompts=2000 if prompts is None else prompts,
                    seed=store.seed,
                    device=given.work.device,
                    overwrite=store.overwrite,
                    dry_run=store.dry_run,
                    progress=progress,
                )
            )
        yield (statistics,)
