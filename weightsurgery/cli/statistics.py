"""``ws identify --mode activations``: what linear layers are given on data, saved."""

from __future__ import annotations

import shlex
from dataclasses import asdict

from weightsurgery.cli import console
from weightsurgery.cli.options import Show, Which
from weightsurgery.deferred import need
from weightsurgery.errors import EditError

__all__ = ["gather_statistics"]


def gather_statistics(
    ckpt: str,
    data: str,
    out: str,
    which: Which,
    show: Show,
    device: str,
    device_map: str | None,
    max_memory: float | None,
    overwrite: bool,
) -> None:
    """Gather, save, and say what was gathered."""
    need("identify runs the model", "transformers", extra="demo")
    if max_memory is not None and not 0 < max_memory < 1e9:
        raise EditError(f"--max-memory {max_memory:g}", "Give a positive number of GB.")
    from weightsurgery.learning.statistics import gather_to

    with console.progress(show, unit="tokens") as progress:
        record = gather_to(
            out,
            ckpt,
            data,
            selection=which.selection("all-linear"),
            device=device,
            device_map=device_map,
            max_bytes=None if max_memory is None else int(max_memory * 1e9),
            overwrite=overwrite,
            command=show.command,
            progress=progress,
        )
    summary = record.summary
    if show.json:
        console.document({"out": out, **asdict(record)})
    else:
        console.show(
            f"{out}: what {summary['tensors']} tensors are given ({summary['matrices']} distinct"
            f" inputs) on {summary['tokens']} tokens of {summary['examples']} examples"
        )
    left = record.parameters["not_gathered"]
    if left:
        console.notice(
            f"{len(left)} tensors have no statistics (fused, or not run), {left[0]} for one.", show
        )
    keep = f"ws project {shlex.quote(ckpt)} --forget VECTOR --keep {shlex.quote(out)} -o ./edited"
    console.notice(f"Saved the statistics in {out}; keep what they describe with:  {keep}", show)
