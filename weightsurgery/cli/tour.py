"""The tour: the main job on the embedded world."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from weightsurgery.cli import console
from weightsurgery.cli.options import Show, written_path
from weightsurgery.cli.spread import options
from weightsurgery.cli.worlds import Variant, need_training

if TYPE_CHECKING:
    from weightsurgery.report.tables import Table

__all__ = ["demo"]


@options
def demo(
    show: Show,
    seed: Annotated[int, typer.Option(help="Of the world and everything in it.")] = 0,
    directory: Annotated[
        str | None,
        typer.Option(
            "--dir",
            metavar="DIR",
            help="Leave the world and the outputs here, to go on by hand.",
            callback=written_path,
        ),
    ] = None,
    variant: Variant = "default",
    world_only: Annotated[
        bool, typer.Option("--world-only", help="Stop when the world is made.")
    ] = False,
) -> None:
    """Forget one task and keep its twin, on a small world made and trained on this machine.

    The first run trains the world (a few minutes); later runs find it in the cache
    ($WEIGHTSURGERY_CACHE). Needs the extra named demo.

    Example:  ws demo --dir ./demo
    """
    from pathlib import Path

    need_training("the demo trains a small model")
    from weightsurgery.procedures import demo as tour

    where = Path(directory) if directory is not None else None
    documents = []
    with console.progress(show, unit="steps") as progress:
        for step in tour.demo(
            seed, where, variant=variant, world_only=world_only, progress=progress
        ):
            if progress is not None:
                progress.rest()
            documents.append({"command": step.command, "seconds": round(step.seconds, 2)})
            if show.json:
                documents[-1]["result"] = _data(step.result)
                continue
            if step.command:
                console.show(f"$ {step.command}")
            console.show(f"{step.says} ({step.seconds:.1f} s)", *_tables(step.result), "")
    if show.json:
        console.document(documents)
    elif where is not None:
        console.notice(f"Everything is in {where}: repeat any step by hand.", show)


def _tables(result: Any) -> list[str | Table]:
    """The tables for what a step returned."""
    from weightsurgery.checkpoint.inspection import Inspection
    from weightsurgery.procedures.demo import Comparison
    from weightsurgery.procedures.unlearn import Unlearned
    from weightsurgery.report import tables
    from weightsurgery.surgery.compare import Comparison as Difference
    from weightsurgery.surgery.run import Applied

    if isinstance(result, Unlearned):
        result = result.applied
    if isinstance(result, Inspection):
        return tables.inspection_tables(result)
    if isinstance(result, Difference):
        return tables.difference_tables(result)
    if isinstance(result, Applied):
        return tables.edit_tables(result.record)
    if isinstance(result, Comparison):
        return [tables.comparison_table(result)]
    if isinstance(result, tuple):
        return tables.overlap_tables(*result)[:1]
    return []


def _data(result: Any) -> Any:
    """What a step returned, for ``--json``."""
    from weightsurgery.procedures.demo import Comparison
    from weightsurgery.procedures.unlearn import Unlearned
    from weightsurgery.surgery.run import Applied

    if isinstance(result, Unlearned):
        result = result.applied
    if isinstance(result, Applied):
        return {"summary": result.record.summary, "files": result.record.files}
    if isinstance(result, Comparison):
        return asdict(result)
    if isinstance(result, tuple):
        return [asdict(pair) for pair in result[1]]
    if hasattr(result, "summary"):
        return {"directory": str(result.directory), **result.summary()}
    return asdict(result)
