"""Choosing the settings of an edit on validation data: scale, rank, side and ridge.

The model is loaded once, every cell of the grid is set in memory and scored, and nothing is
decomposed twice (see :mod:`weightsurgery.procedures.grid`). A cell qualifies if it forgets
something and every keep set keeps at least ``threshold`` of the base's score; the choice is the
qualifying cell that forgets most, as Ilharco et al. (2023, arXiv 2212.04089) choose their scale. It
alone is scored on the test sets, once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from weightsurgery.algebra.devices import pick_device
from weightsurgery.checkpoint.reader import Checkpoint
from weightsurgery.checkpoint.selection import Selection
from weightsurgery.checkpoint.stacks import is_matrix, is_stack
from weightsurgery.errors import DataError, EditError, NonFiniteError, SelectionError
from weightsurgery.learning import intervals
from weightsurgery.learning.answers import headline
from weightsurgery.learning.intervals import Measurements, Resampling
from weightsurgery.learning.metric_names import METRICS, SHARES
from weightsurgery.learning.models import load_tokenizer
from weightsurgery.learning.parameters import load_float32
from weightsurgery.learning.placement import refuse_distributed
from weightsurgery.learning.scores import score
from weightsurgery.procedures.choice import (
    Cell,
    FinalScore,
    Sweep,
    choose,
    frontier,
    nearest,
    scored,
)
from weightsurgery.procedures.grid import Changes, Grid, Setting
from weightsurgery.procedures.in_memory import EditedInMemory
from weightsurgery.procedures.splits import DataSet, DataSets
from weightsurgery.progress import Progress
from weightsurgery.surgery.apply import Storage
from weightsurgery.surgery.discriminating import Learn, Project
from weightsurgery.surgery.edit import Run
from weightsurgery.surgery.plan import worker_count
from weightsurgery.surgery.workers import in_order, torch_threads
from weightsurgery.vectors.deltas import SumDelta
from weightsurgery.vectors.lineage import check_lineage

__all__ = ["DataSets", "Grid", "sweep"]

_Ladder = Mapping[Setting, dict[str, SumDelta]]


def sweep(
    edit: Project | Learn,
    base: Checkpoint,
    data: DataSets,
    grid: Grid | None = None,
    *,
    threshold: float = 0.975,
    metric: str | None = None,
    selection: Selection | None = None,
    device: str = "auto",
    workers: int | None = None,
    batch_size: int = 128,
    require_end: bool = True,
    allow_unrelated: bool = False,
    resampling: Resampling | None = None,
    progress: Progress | None = None,
) -> Sweep:
    """Score every cell of a grid on validation data, and choose.

    Held in memory: the model in float32, and the factors of every tensor's change at every setting
    but the scales. The model runs in float32; edited weights are rounded to the dtype they would
    be stored in.

    Args:
        edit: Its tasks, statistics, basis, keep rank and seed; the grid replaces the rest.
        base: The checkpoint, of a causal language model.
        data: The validation and test sets.
        grid: The values to try; by default :class:`Grid`'s, with the edit's ridge if it has
            statistics.
        threshold: In (0, 1]; see :class:`weightsurgery.procedures.choice.Sweep`.
        metric: One of ``metric_names.SHARES``, higher for what is known better; by default
            whether an answer begins with the truth, or, where a set holds conversations,
            contains it.
        selection: Which tensors; by default all linear layers.
        device: Where the model runs and matrices are decomposed.
        workers: Threads for decompositions; see :func:`weightsurgery.surgery.plan.worker_count`.
        batch_size: Examples per forward pass.
        require_end: Whether the model must also stop after a completion.
        allow_unrelated: Go on although a vector does not derive from the base.
        resampling: The bootstrap of the test's intervals.
        progress: Called as ``progress(stage, done, total)``.

    Raises:
        EditError: A threshold or a grid that makes no sense for this edit.
        DataError: A set cannot be read, is not known to the base, or is for choice and test both.
        SelectionError: No such metric, or nothing is selected.
        LineageError: A vector of another base.
        UnsupportedCheckpointError: Weights have other names in memory than on disk.
        NonFiniteError: The base's own predictions, or a vector, are not finite.
    """
    refuse_distributed("ws sweep", "Run it in one process.")
    grid = grid or Grid(epsilons=(edit.ridge,) if edit.keep_inputs else ())
    _check(edit, grid, threshold, metric, batch_size)
    factors = _factors(edit, base, selection or Selection("all-linear"), workers)
    terms = [change for vector in edit.vectors().values() for _, change in vector.terms]
    check_lineage(base, [*terms, *edit.statistics().values()], allow_unrelated)
    torch_device = pick_device(device)
    tokenizer = load_tokenizer(base.path)
    sets, tests = data.read(tokenizer)
    model: Any = load_float32(base)
    model.to(torch_device)
    metric = metric or headline([row for dataset in sets for row in dataset.examples])
    run = _SweepRun(model.eval(), tokenizer, metric, batch_size, require_end)
    with EditedInMemory(model, base, factors) as edited:
        before = run.means(sets)
        for dataset, base_score in zip(sets, before, strict=True):
            _check_known(dataset, base_score, metric)
        changes = Changes(edit, base, grid, torch_device)
        ladders = _decomposed(changes, grid, factors, worker_count(edit, workers), progress)

        def set_cell(cell: Cell) -> None:
            setting = Setting(cell.rank, cell.side, cell.epsilon)
            edited.set(ladders[setting], edit.sign * cell.scale)

        cells = _scored(grid, set_cell, run, sets, before, progress)
        chosen = choose(cells, before[0], threshold)
        result = Sweep(
            metric,
            threshold,
            sets[0].name,
            tuple(dataset.name for dataset in sets[1:]),
            before[0],
            tuple(before[1:]),
            tuple(cells),
            frontier(cells),
            chosen,
            nearest(cells, before[0]) if chosen is None else None,
        )
        if chosen is None or not tests:
            return result
        edited.restore()
        before_test = [run.measured(dataset) for dataset in tests]
        set_cell(cells[chosen])
        after_test = [run.measured(dataset) for dataset in tests]
    bootstrap = resampling or Resampling()
    pairs = zip(tests, before_test, after_test, strict=True)
    return replace(result, test=tuple(_tested(*pair, metric, bootstrap) for pair in pairs))


@dataclass(frozen=True)
class _SweepRun:
    """A model and its scoring options."""

    model: Any
    tokenizer: Any
    metric: str
    batch_size: int
    require_end: bool

    def measured(self, data: DataSet) -> Measurements:
        return score(
            self.model,
            self.tokenizer,
            data.examples,
            [self.metric],
            where=data.name,
            forget=data.role == "forget",
            batch_size=self.batch_size,
            require_end=self.require_end,
        )[self.metric]

    def means(self, sets: Sequence[DataSet]) -> list[float]:
        """Mean scores of the sets.

        Raises:
            DataError: It is not defined on any example.
        """
        means = []
        for dataset in sets:
            measurements = self.measured(dataset)
            mean = measurements.mean()
            if mean is None:
                raise DataError(f"{dataset.name}: {measurements.why}", "Choose another metric.")
            means.append(mean)
        return means


def _check(
    edit: Project | Learn, grid: Grid, threshold: float, metric: str | None, batch_size: int
) -> None:
    if not 0 < threshold <= 1:
        raise EditError(
            f"threshold {threshold}", "Give a share above 0 and up to 1, such as 0.975."
        )
    if metric is not None and metric not in SHARES:
        listed = ", ".join(SHARES)
        raise SelectionError(
            f"metric {metric!r}: a sweep needs one that is a share", f"Choose from: {listed}."
        )
    if batch_size < 1:
        raise DataError(f"a batch of {batch_size}", "Give a whole number from 1.")
    soft = "soft" in grid.sides
    if soft and edit.keep_inputs:
        raise EditError(
            "side soft with activation statistics to keep: each would have a ridge of its own",
            "Keep vectors alone, or choose other sides, such as right and both.",
        )
    if not soft and bool(edit.keep_inputs) != bool(grid.epsilons):
        raise EditError(
            "activation statistics to keep, and no epsilons"
            if edit.keep_inputs
            else "epsilons without activation statistics or side soft, whose ridge they are",
            "Give both or neither.",
        )
    if not edit.keep and len(grid.sides) > 1:
        raise EditError(
            "several sides without a vector to keep: all would give the same",
            "Give one side, or a vector to keep.",
        )


def _factors(
    edit: Project | Learn, base: Checkpoint, selection: Selection, workers: int | None
) -> dict[str, float]:
    """The matrices that change, and their factors of the scale."""
    with TemporaryDirectory(prefix="ws-sweep-") as nowhere:
        # Refuses whatever the edit would refuse; nothing is written.
        run = Run(selection, workers=workers)
        plan = Storage().plan(edit, base, Path(nowhere) / "edited", run)
    for name in plan.edited:
        if is_stack(base.entry(name)) and edit.task.rows_at(name) is not None:
            raise EditError(
                f"tensor {name!r} is a stack of experts, which a sweep does not set in memory",
                f"Leave it out with --exclude '{name}' or --targets attention, or write edits with"
                " ws project and score them with ws evaluate.",
            )
    return {
        name: factor
        for name, factor in plan.edited.items()
        if name not in plan.copies
        and base.entry(name).numel
        and is_matrix(base.entry(name))
        and edit.task.rows_at(name) is not None
    }


def _check_known(data: DataSet, known: float, metric: str) -> None:
    if not known > 0:
        raise DataError(
            f"{data.name}: the base's score is 0 ({METRICS[metric].title}), so there is nothing to"
            f" {data.role}",
            "Score what the base knows: a completion may lack the space before it; of exact_match,"
            " the end of the text may never have been trained (--any-end).",
        )


def _decomposed(
    changes: Changes,
    grid: Grid,
    factors: Mapping[str, float],
    workers: int,
    progress: Progress | None,
) -> _Ladder:
    """Every tensor's change, by setting."""
    ladders: dict[Setting, dict[str, SumDelta]] = {setting: {} for setting in grid.settings()}
    names = list(factors)
    # One thread per operation, as where an edit is written: the result depends on it.
    with torch_threads(1):
        for number, deltas in enumerate(in_order(changes.at, names, workers)):
            name = names[number]
            for setting, delta in deltas.items():
                ladders[setting][name] = SumDelta(((factors[name], delta),), name)
            if progress is not None:
                progress("decomposing", number + 1, len(names))
    return ladders


def _scored(
    grid: Grid,
    set_cell: Callable[[Cell], None],
    run: _SweepRun,
    sets: Sequence[DataSet],
    before: Sequence[float],
    progress: Progress | None,
) -> list[Cell]:
    """Every cell with its scores, or with the reason why it has none."""
    plan = [
        Cell(scale, setting.rank, setting.side, setting.epsilon)
        for setting in grid.settings()
        for scale in sorted(grid.scales)
    ]
    cells = []
    for number, cell in enumerate(plan):
        try:
            set_cell(cell)
            figures = scored(before, run.means(sets))
        except NonFiniteError as error:
            cells.append(replace(cell, failed=error.what))
        else:
            cells.append(Cell(**{**asdict(cell), **figures}))
        if progress is not None:
            progress("scoring", number + 1, len(plan))
    return cells


def _tested(
    data: DataSet, before: Measurements, after: Measurements, metric: str, resampling: Resampling
) -> FinalScore:
    transform = METRICS[metric].transform
    change = intervals.forgetting if data.role == "forget" else intervals.drift
    return FinalScore(
        data.name,
        data.role,
        len(data.examples),
        intervals.estimate(before, resampling, transform),
        intervals.estimate(after, resampling, transform),
        intervals.estimate_change(before, after, change, resampling, transform),
    )
