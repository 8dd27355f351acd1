"""BASE, opened as it is stored or dequantised, and remarks on it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from weightsurgery.cli import console
from weightsurgery.cli.options import Fit, Show

if TYPE_CHECKING:
    from weightsurgery.checkpoint.reader import Checkpoint

__all__ = ["open_base", "refuse_running", "remarked"]


def open_base(base: str, fit: Fit, opener: Callable[[str], Checkpoint]) -> Checkpoint:
    """Open BASE.

    Args:
        base: A directory or ``org/name[@revision]``.
        fit: With ``--dequantize`` or without.
        opener: Opens it as it is stored.
    """
    checkpoint = opener(base)
    if not fit.dequantize:
        return checkpoint
    from weightsurgery.checkpoint.dequantised import dequantised

    return dequantised(checkpoint)


def remarked(base: Checkpoint, show: Show) -> Checkpoint:
    """Say what is odd about a checkpoint that is looked at or edited; the checkpoint."""
    from weightsurgery.checkpoint.remarks import remarks

    for text in remarks(base):
        console.notice(f"{base.source.name}: {text}.", show)
    return base


def refuse_running(fit: Fit, why: str) -> None:
    """Refuse ``--dequantize`` where the model itself is run.

    Args:
        fit: With ``--dequantize`` or without.
        why: What runs it, for the message.

    Raises:
        EditError: It is set.
    """
    from weightsurgery.errors import EditError

    if fit.dequantize:
        raise EditError(
            f"--dequantize with {why}: the model is run as it is stored",
            "Write the numbers first ('ws add BASE VECTOR --scale 0 --dequantize -o DIR'), and use"
            " that as BASE.",
        )
