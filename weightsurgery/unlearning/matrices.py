"""Which matrices of a checkpoint an edit changes, and which parameters of the model they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from weightsurgery.checkpoint.reader import Checkpoint
from weightsurgery.checkpoint.selection import Selection
from weightsurgery.checkpoint.tied import tied_copies
from weightsurgery.errors import EditError, SelectionError, UnsupportedCheckpointError
from weightsurgery.learning.activations import linear_inputs
from weightsurgery.learning.parameters import parameters_of

__all__ = ["matrices", "stored_matrices"]


def matrices(base: Checkpoint, selection: Selection) -> list[str]:
    """The selected matrices; biases and norms stay as they are.

    Raises:
        SelectionError: No matrix is selected.
        EditError: One of the selected tensors has more than two axes.
    """
    copies = tied_copies(base)
    names = []
    for name in selection.resolve(base.entries):
        shape = base.entry(name).shape
        if len(shape) > 2:
            raise EditError(
                f"tensor {name!r} has shape {list(shape)}: no matrix, so no single layer's inputs",
                f"Leave it as it is with --exclude '{name}'.",
            )
        if len(shape) == 2 and base.entry(name).numel and name not in copies:
            names.append(name)
    if not names:
        raise SelectionError(
            "no matrix is selected", "Widen --targets, --include, --exclude or --layers."
        )
    return names


def stored_matrices(model: Any, base: Checkpoint, names: Sequence[str]) -> dict[str, str]:
    """The linear layers that matrices become in memory.

    Args:
        model: A transformers model, loaded from the base.
        base: Where they are stored.
        names: Of the matrices.

    Returns:
        Parameter → the matrix it is stored as, in the model's order.

    Raises:
        UnsupportedCheckpointError: A matrix is no single linear layer in memory.
    """
    layers = linear_inputs(model)
    stored_as = {}
    for parameter, tensors in parameters_of(model, base, names).items():
        first = tensors[0]
        if len(tensors) > 1 or base.entry(first).shape != tuple(
            model.get_parameter(parameter).shape
        ):
            raise UnsupportedCheckpointError(
                f"{base.source.name}: {first!r} is another matrix in memory than on disk,"
                f" {parameter!r}",
                # Where a model's MLPs are experts, there is nothing else in the default.
                "Leave it out with "
                + (
                    "--targets all-linear --exclude '*experts*'"
                    if "experts" in first
                    else f"--exclude '{first}'"
                )
                + ", or work with vectors.",
            )
        if parameter not in layers:
            raise UnsupportedCheckpointError(
                f"{base.source.name}: {first!r} is no linear layer, so what it is given cannot be"
                " kept",
                f"Leave it out with --exclude '{first}'.",
            )
        stored_as[parameter] = first
    return stored_as
