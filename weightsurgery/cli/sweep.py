"""``ws sweep``: choose the settings of ``ws project`` on validation data."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from weightsurgery.cli import console
from weightsurgery.cli.edit_options import Base
from weightsurgery.cli.factors import KeepRank, rank_rule
from weightsurgery.cli.helped import among
from weightsurgery.cli.opened import refuse_running, remarked
from weightsurgery.cli.options import Fit, Show, Which, Work
from weightsurgery.cli.paged import Pages
from weightsurgery.cli.panels import fit_option, panel, subspace_option
from weightsurgery.cli.score import BatchSize
from weightsurgery.cli.spread import options
from weightsurgery.learning.metric_names import SHARES

if TYPE_CHECKING:
    from weightsurgery.procedures.choice import Cell
    from weightsurgery.procedures.grid import Grid

__all__ = ["sweep"]

_Value = TypeVar("_Value", int, float, str)

_grid_option, _data_option = panel("The grid"), panel("Data")


@dataclass(frozen=True)
class Cells:
    """The settings that are tried, in all combinations."""

    scales: Annotated[str, _grid_option(metavar="λ,λ,...", help="Scales.")] = "0.5,1,2,4,8"
    ranks: Annotated[str, _grid_option(metavar="K,K,...", help="Numbers of factors.")] = "16,64"
    sides: Annotated[
        str | None,
        _grid_option(
            metavar="SIDE,...",
            help="Out of right, left, both, shared, frobenius and soft. Default: right,both.",
        ),
    ] = None
    epsilons: Annotated[
        str | None,
        _grid_option(
            metavar="ε,ε,...",
            help="Ridges of the activation statistics, or of side soft. Default, with such:"
            " 1e-2,1e-1,1.",
        ),
    ] = None
    threshold: Annotated[
        float, _grid_option(help="Share of the base's score that every keep set must keep.")
    ] = 0.975

    def grid(self, vectors: bool, statistics: bool) -> Grid:
        """As the library's grid, by whether vectors and whether statistics are to be kept."""
        from weightsurgery.procedures.grid import Grid

        sides = _values(self.sides or ("right,both" if vectors else "right"), "--sides", str)
        return Grid(
            _values(self.scales, "--scales", float),
            _values(self.ranks, "--ranks", int),
            sides,
            _values(self.epsilons, "--epsilons", float)
            if self.epsilons is not None
            else (1e-2, 1e-1, 1.0) * (statistics or "soft" in sides),
        )


@dataclass(frozen=True)
class Data:
    """The data of the choice, and how it is scored."""

    forget_data: Annotated[
        str, _data_option(metavar="DATA", help="What should be forgotten, for the choice.")
    ]
    keep_data: Annotated[
        list[str],
        _data_option(
            metavar="DATA", help="What should stay; repeatable. Best facts that no vector has seen."
        ),
    ]
    test_forget: Annotated[
        str | None, _data_option(metavar="DATA", help="Score the chosen edit on this too, once.")
    ] = None
    test_keep: Annotated[
        list[str] | None, _data_option(metavar="DATA", help="Likewise; repeatable.")
    ] = None
    metric: Annotated[
        str | None,
        _data_option(
            autocompletion=among(*SHARES),
            help=f"{', '.join(SHARES[:-1])} or {SHARES[-1]}. Default: begins_with; of"
            " conversations contains.",
        ),
    ] = None
    any_end: Annotated[
        bool, _data_option(help="An exact match need not stop after the completion.")
    ] = False


@dataclass(frozen=True)
class Space:
    """Settings of the projection that every cell shares."""

    basis: Annotated[str, subspace_option(help="joint or sum; see 'ws project'.")] = "joint"
    keep_rank: KeepRank = None
    seed: Annotated[
        int, subspace_option(help="Seed of randomised SVD and bootstrap intervals.")
    ] = 0


@options
def sweep(
    base: Base,
    forget: Annotated[
        list[str], typer.Option(metavar="VECTOR", help="The task to forget; several add up.")
    ],
    keep: Annotated[
        list[str],
        typer.Option(
            metavar="VECTOR|STATS",
            help="What to keep; repeatable. A task, or activation statistics, as for 'ws project'.",
        ),
    ],
    data: Data,
    which: Which,
    fit: Fit,
    work: Work,
    show: Show,
    pages: Pages,
    cells: Cells,
    space: Space,
    allow_unrelated: Annotated[
        bool, fit_option(help="Go on although a vector does not derive from BASE.")
    ] = False,
    batch_size: BatchSize = 128,
) -> None:
    r"""Choose the settings of 'ws project' on validation data.

    The one that forgets most while every keep set keeps --threshold of the base's score. The last
    line is the command that does the edit.

    Example:  ws sweep ./base --forget ./tuned/authors --keep ./tuned/poets \
      --forget-data authors.jsonl --keep-data poets.jsonl
    """
    from weightsurgery.deferred import need

    need("a sweep runs the model", "transformers", extra="eval")
    pages.check()
    from weightsurgery.checkpoint.reader import Checkpoint
    from weightsurgery.errors import EditError
    from weightsurgery.learning.intervals import Resampling
    from weightsurgery.procedures.splits import DataSets
    from weightsurgery.procedures.sweep import sweep as choose
    from weightsurgery.report.sweep import failure, sweep_sections, sweep_tables
    from weightsurgery.surgery.discriminating import Project
    from weightsurgery.vectors.sources import open_keep, open_vector

    rule = rank_rule(space.keep_rank, None, "--keep-rank")
    refuse_running(fit, "ws sweep")
    with Checkpoint.open(base) as opened:
        to_keep = open_keep(opened, keep, **fit.policies)
        grid = cells.grid(bool(to_keep.vectors), bool(to_keep.inputs))
        edit = Project(
            open_vector(opened, forget, **fit.policies),
            to_keep.vectors,
            keep_rank=rule,
            basis=space.basis,
            seed=space.seed,
            keep_inputs=to_keep.inputs,
        )
        remarked(opened, show)
        notes = (line for vector in edit.vectors().values() for line in vector.notes())
        console.notices(dict.fromkeys(notes), show)
        with console.progress(show, unit="cells") as progress:
            result = choose(
                edit,
                opened,
                DataSets(data.forget_data, data.keep_data, data.test_forget, data.test_keep or ()),
                grid,
                threshold=cells.threshold,
                metric=data.metric and data.metric.replace("-", "_"),
                selection=which.selection("all-linear"),
                **vars(work),
                batch_size=batch_size,
                require_end=not data.any_end,
                allow_unrelated=allow_unrelated,
                resampling=Resampling(space.seed),
                progress=progress,
            )
    command: list[str] = []
    if result.chosen is not None:
        command = _command(base, forget, keep, result.cells[result.chosen], space, which, fit, work)
        command += ["--allow-unrelated"] * allow_unrelated
    document = {"base": base, **asdict(result), "command": command or None}
    console.result(show, lambda: document, lambda: sweep_tables(result, every=show.verbose))
    if pages:  # last: the result is printed even where no file can be written
        from weightsurgery.report.sections import record_section

        sections = [*sweep_sections(document), record_section(show.command)]
        pages.write(f"Sweep on {base}", sections, show)
    if result.chosen is None:
        raise EditError(*failure(result))
    if not show.json:
        console.show("", shlex.join(command))


def _values(text: str, option: str, kind: Callable[[str], _Value]) -> tuple[_Value, ...]:
    from weightsurgery.errors import EditError

    try:
        return tuple(kind(part.strip()) for part in text.split(",")) if text.strip() else ()
    except ValueError:
        words = "whole numbers" if kind is int else "numbers"
        raise EditError(f"{option} {text}", f"Give {words} parted by commas.") from None


def _command(
    base: str,
    forget: list[str],
    keep: list[str],
    cell: Cell,
    space: Space,
    which: Which,
    fit: Fit,
    work: Work,
) -> list[str]:
    """The command line of an edit with a cell's settings."""
    words = ["ws", "project", base]
    for option, names in (("--forget", forget), ("--keep", keep)):
        for name in names:
            words += [option, name]
    settings = {
        "--rank": cell.rank,
        "--scale": repr(cell.scale).removesuffix(".0"),
        "--side": cell.side,
        "--epsilon": cell.epsilon,
        "--basis": space.basis,
        "--keep-rank": space.keep_rank,
        "--seed": space.seed or None,
        "--targets": which.targets,
        "--layers": which.layers,
        "--vocab": None if fit.vocab == "error" else fit.vocab,
        "--missing": None if fit.missing == "error" else fit.missing,
        "--device": None if work.device == "auto" else work.device,
    }
    for option, patterns in (("--include", which.include), ("--exclude", which.exclude)):
        for pattern in patterns or ():
            words += [option, pattern]
    for option, value in settings.items():
        words += [] if value is None else [option, str(value)]
    return [*words, *["--partial"] * fit.partial, "-o", "./edited"]
