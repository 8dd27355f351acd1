"""The command that writes a change in another library's format: export."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import partial
from typing import Annotated, Any

import typer

from weightsurgery.cli import console
from weightsurgery.cli.factors import Truncate
from weightsurgery.cli.helped import among
from weightsurgery.cli.opened import open_base
from weightsurgery.cli.options import Fit, Out, Show, Which, Work, written_line
from weightsurgery.cli.panels import fit_option, output_option, tensor_option
from weightsurgery.cli.spread import options

__all__ = ["export"]


@dataclass(frozen=True)
class Held(Which):
    """Which tensors; what is left out by default differs from other commands."""

    targets: Annotated[
        str | None,
        tensor_option(
            autocompletion=among("checkpoint.selection:TARGETS"),
            help="all (default), all-linear (without embeddings and head), attention, mlp,"
            " mlp-out or embeddings. What is left out is reported.",
        ),
    ] = None


@options
def export(
    base: Annotated[str, typer.Argument(metavar="BASE", help="The checkpoint the adapter is for.")],
    vectors: Annotated[
        list[str],
        typer.Argument(
            metavar="VECTOR", help="Changes of BASE; several add up, VECTOR:0.5 scales one."
        ),
    ],
    which: Held,
    truncate: Truncate,
    fit: Fit,
    work: Work,
    show: Show,
    out: Out,
    to: Annotated[str, typer.Option(help="Format: peft (a LoRA adapter).")] = "peft",
    scale: Annotated[
        float, typer.Option(help="λ, the factor of the change; -1 for what negate does.")
    ] = 1.0,
    dtype: Annotated[
        str,
        output_option(
            autocompletion=among("bfloat16", "float16", "float32"),
            help="Store the factors as bfloat16, float16 or float32.",
        ),
    ] = "bfloat16",
    overwrite: Annotated[bool, output_option(help="Replace an existing output of ws.")] = False,
    dry_run: Annotated[
        bool, output_option(help="Say what would be read, written and held in memory, and stop.")
    ] = False,
    allow_unrelated: Annotated[
        bool, fit_option(help="Export although a vector does not derive from BASE.")
    ] = False,
) -> None:
    """Write a low-rank change as a PEFT LoRA adapter.

    BASE with the adapter is BASE + λT. Factors stay factors; with --rank or --energy they are cut
    down, and dense changes truncated. What a LoRA cannot hold is refused by name.

    Example:  ws export ./base ./subspace --to peft -o ./adapter --scale -1
    """
    from weightsurgery.checkpoint.reader import Checkpoint
    from weightsurgery.errors import EditError
    from weightsurgery.report.exported import exported_tables
    from weightsurgery.report.plans import adapter_plan_lines
    from weightsurgery.surgery.notices import input_notices
    from weightsurgery.surgery.workers import cores, device_for, in_order, torch_threads
    from weightsurgery.vectors.export import export_adapter, plan_export
    from weightsurgery.vectors.sources import open_vector

    if to != "peft":
        raise EditError(f"--to {to}", "The one format there is: peft.")
    if work.workers is not None and work.workers < 1:
        raise EditError(f"{work.workers} workers", "Use at least one.")
    rule, workers = truncate.rule(), work.workers or min(cores(), 2)
    what: dict[str, Any] = {
        "selection": which.selection("all"),
        "rule": rule,
        "dtype": dtype,
        "overwrite": overwrite,
    }
    with open_base(base, fit, Checkpoint.open) as opened, torch_threads(1):
        vector = scale * open_vector(opened, vectors, **fit.policies)
        if dry_run:
            plan = plan_export(opened, vector, out, workers=workers, **what)
            console.result(show, plan.summary, lambda: adapter_plan_lines(plan, out))
            return
        with console.progress(show) as progress:
            record = export_adapter(
                opened,
                vector,
                out,
                allow_unrelated=allow_unrelated,
                device=device_for(work.device, decomposes=rule is not None),
                command=show.command,
                each=partial(in_order, workers=workers),
                progress=progress,
                **what,
            )
    console.result(
        show,
        lambda: {"out": out, **asdict(record)},
        lambda: exported_tables(record, every=show.verbose),
    )
    console.notices((*input_notices(record), written_line(out, record.kind)), show)
