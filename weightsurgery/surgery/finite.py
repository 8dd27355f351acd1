"""Saying where NaN and infinity come from: the base, the change, or the rounding."""

from __future__ import annotations

from typing import NoReturn

from weightsurgery.checkpoint.layout import TensorEntry
from weightsurgery.checkpoint.reader import Checkpoint
from weightsurgery.errors import NonFiniteError
from weightsurgery.surgery.edit import Edit

__all__ = ["refuse_non_finite"]


def refuse_non_finite(
    edit: Edit, base: Checkpoint, entry: TensorEntry, stored: str, base_ok: bool, change_ok: bool
) -> NoReturn:
    """Raise the error for an edited tensor that would hold NaN or infinity.

    Args:
        edit: The edit.
        base: The checkpoint that is edited.
        entry: The tensor.
        stored: The dtype it is to be stored in.
        base_ok: Whether the base's weights are finite.
        change_ok: Whether the change is.

    Raises:
        NonFiniteError: Always.
    """
    where = f"tensor {entry.name!r} ({base.path / entry.shard})"
    leave = f"Leave the tensor as it is with --exclude '{entry.name}'"
    if not base_ok:
        raise NonFiniteError(f"{where}: NaN or infinity in the base", f"{leave}.")
    if not change_ok:
        labels = ", ".join(vector.label for vector in edit.vectors().values())
        raise NonFiniteError(
            f"{where}: NaN or infinity in the change ({labels})",
            f"{leave}, or check the fine-tuned weights.",
        )
    raise NonFiniteError(
        f"{where}: the edited weights overflow {stored}",
        "Use a smaller --scale, or --dtype float32.",
    )
