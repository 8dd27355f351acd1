"""The interface of an edit: a change of one tensor at a time, to be applied at any scale."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NoReturn, Protocol

from weightsurgery.checkpoint.layout import TensorEntry
from weightsurgery.checkpoint.reader import Checkpoint
from weightsurgery.checkpoint.record import EditRecord
from weightsurgery.checkpoint.selection import LARGEST_SCALE, Selection
from weightsurgery.deferred import torch
from weightsurgery.errors import EditError, NonFiniteError
from weightsurgery.progress import Progress
from weightsurgery.vectors.deltas import Delta
from weightsurgery.vectors.statistics import InputStatistics
from weightsurgery.vectors.task_vector import TaskVector

__all__ = ["Applied", "Edit", "Prepared", "Run", "check_scales", "refuse_non_finite", "task_of"]


@dataclass(frozen=True)
class Prepared:
    """One tensor's change, ready to be applied at any scale.

    Attributes:
        delta: The change, before the edit's sign and scale.
        facts: Its entry in the record.
    """

    delta: Delta
    facts: Mapping[str, Any] = field(default_factory=dict)


class Edit(Protocol):
    """``W' = W + sign · scale · T'``.

    Attributes:
        name: Key in :data:`weightsurgery.surgery.edits.EDITS`.
        sign: −1 to subtract, +1 to add.
        factors: Whether matrices are decomposed (needs more memory, uses the device).
        scale: λ.
    """

    name: ClassVar[str]
    sign: ClassVar[int]
    factors: ClassVar[bool]

    @property
    def scale(self) -> float:
        """λ."""
        ...

    def vectors(self) -> Mapping[str, TaskVector]:
        """The vectors by their role, for checks and the record."""
        ...

    def statistics(self) -> Mapping[str, InputStatistics]:
        """The activation statistics by their role, for checks and the record."""
        ...

    def check_statistics(self, base: Checkpoint, names: Iterable[str]) -> None:
        """Refuse statistics that lack one of the matrices that the edit changes."""
        ...

    def parameters(self) -> Mapping[str, Any]:
        """Every parameter, for the record."""
        ...

    def prepare(self, base: Checkpoint, name: str, device: torch.device | str) -> Prepared | None:
        """Compute one tensor's change; None where there is none."""
        ...

    def most_factors(self) -> int | None:
        """The most factors that a discriminating edit leaves of any matrix; None if that varies."""
        ...


@dataclass(frozen=True)
class Run:
    """Options of a run, which belong neither to the edit nor to the storage of its result.

    Attributes:
        selection: Which tensors.
        device: Where matrices are decomposed: ``auto``, ``cpu``, ``cuda`` or ``cuda:i``.
        workers: Threads; None for the number of cores, with bounds.
        overwrite: Replace an existing output of this tool.
        allow_unrelated: Edit although a vector does not derive from the base.
        command: The command line, for the record.
        progress: Called as ``progress(stage, done, total)`` in bytes, from worker threads.
        cluster: ``ray`` or ``ray://host:port``, to do the work there; None for this machine.
    """

    selection: Selection
    device: str = "auto"
    workers: int | None = None
    overwrite: bool = False
    allow_unrelated: bool = False
    command: Sequence[str] = ()
    progress: Progress | None = None
    cluster: str | None = None


@dataclass(frozen=True)
class Applied:
    """The result of an edit.

    Attributes:
        record: The record that was written beside the weights.
        notices: What the user should know, one line per notice.
        resumed: Number of tensors an interrupted run had finished.
    """

    record: EditRecord
    notices: tuple[str, ...]
    resumed: int = 0


def task_of(edit: Edit) -> TaskVector:
    """The vector that an edit subtracts or adds: the first, before those to keep."""
    return next(iter(edit.vectors().values()))


def check_scales(scale: float, *vectors: TaskVector) -> None:
    """Refuse an edit's scale, or a factor in its vectors, that is not finite or beyond all use.

    Raises:
        EditError: It is.
    """
    for factor in (1.0, *(factor for vector in vectors for factor, _ in vector.terms)):
        for value in (scale, factor, scale * factor):
            if not abs(value) <= LARGEST_SCALE:
                raise EditError(f"scale {value}", "Give a finite number, up to 1e30.")


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
