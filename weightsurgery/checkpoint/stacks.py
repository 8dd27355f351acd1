"""Tensors as matrices: linear layers' weights, alone or in a stack, (out, in) or (in, out).

A mixture's experts are often one tensor ``(experts, a, b)``, which is a list of matrices; whatever
works on matrices works on each of them.
"""

from __future__ import annotations

from weightsurgery.checkpoint.header import TensorEntry
from weightsurgery.checkpoint.names.experts import transposed_stacks
from weightsurgery.checkpoint.naming import is_transposed
from weightsurgery.checkpoint.reader import Checkpoint

__all__ = ["input_width", "is_in_out", "is_matrix", "is_stack", "matrix_count"]

# Parameters of two axes that are not used as matrices: biases of all experts together, and the
# decay rates of state-space models.
_NO_MATRICES = ("bias", "A_log")


def is_stack(entry: TensorEntry) -> bool:
    """Whether a tensor is a stack of experts' matrices."""
    return len(entry.shape) == 3 and "experts" in entry.name


def is_matrix(entry: TensorEntry) -> bool:
    """Whether a tensor is a matrix that something is multiplied with, or looked up in."""
    return len(entry.shape) == 2 and not entry.name.endswith(_NO_MATRICES)


def matrix_count(entry: TensorEntry) -> int:
    """How many matrices a tensor holds."""
    return entry.shape[0] if is_stack(entry) else int(is_matrix(entry))


def is_in_out(base: Checkpoint, name: str) -> bool:
    """Whether a matrix, or those of a stack, are stored (in, out) instead of (out, in)."""
    if not is_stack(base.entry(name)):
        return is_transposed(name, base.config)

    def find() -> frozenset[str]:
        stacks = {entry.name: entry.shape for entry in base.entries.values() if is_stack(entry)}
        return transposed_stacks(stacks)

    return name in base.remember("transposed stacks", find)


def input_width(base: Checkpoint, name: str) -> int:
    """Inputs ``n`` of a matrix, or of each of a stack's."""
    return base.entry(name).shape[-2 if is_in_out(base, name) else -1]
