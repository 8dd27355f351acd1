"""Which matrices of a checkpoint an edit changes, and which parameters of the model they are."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from weightsurgery.checkpoint.reader import Checkpoint
from weightsurgery.checkpoint.selection import Selection
from weightsurgery.checkpoint.tied import tied_copies
from weightsurgery.errors import EditError, SelectionError, UnsupportedCheckpointError
from weightsurgery.learning.activations import linear_inputs
from weightsurgery.learning.parameters import parameters_of

__all__ = ["matrices", "stored_matrices"]

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")  # of a layer or an expert


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
    stored_as, elsewhere, unlike = dict[str, str](), list[str](), list[str]()
    for parameter, tensors in parameters_of(model, base, names).items():
        first = tensors[0]
        shape = tuple(model.get_parameter(parameter).shape)
        if len(tensors) > 1 or base.entry(first).shape != shape:
            elsewhere.append(first)
        elif parameter not in layers:
            unlike.append(first)
        stored_as[parameter] = first
    if elsewhere:
        one, more = "is another matrix", "are other matrices"
        raise UnsupportedCheckpointError(
            f"{base.source.name}: {_told(elsewhere, one, more)} in memory than on disk",
            f"{_without(elsewhere + unlike)}, or work with vectors.",
        )
    if unlike:
        one, more = "is no linear layer", "are no linear layers"
        raise UnsupportedCheckpointError(
            f"{base.source.name}: {_told(unlike, one, more)}, so what it is given cannot be kept",
            f"{_without(unlike)}.",
        )
    return stored_as


def _told(names: Sequence[str], one: str, more: str) -> str:
    """What the first of some matrices is, and how many more."""
    count = len(names) - 1
    return f"{names[0]!r} and {count} more {more}" if count else f"{names[0]!r} {one}"


def _without(names: Sequence[str]) -> str:
    """The options that leave matrices out, of all layers at once."""
    # Where a model's MLPs are experts, there is nothing else in the default.
    experts = [name for name in names if "experts" in name]
    patterns = ["*experts*"] * bool(experts)
    patterns += sorted({_NUMBER.sub("*", name) for name in names if name not in experts})
    options = " ".join(f"--exclude '{pattern}'" for pattern in patterns)
    return f"Leave it out with {'--targets all-linear ' * bool(experts)}{options}"
