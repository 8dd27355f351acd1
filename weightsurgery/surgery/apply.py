"""Entry points: apply an edit to a checkpoint, or plan it.

How the result is stored decides what is written: :class:`Storage` writes the edited checkpoint,
:class:`AdapterStorage` the LoRA adapter that makes it of the base.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from weightsurgery.checkpoint.reader import Checkpoint
from weightsurgery.checkpoint.selection import Selection
from weightsurgery.progress import Progress
from weightsurgery.surgery.as_adapter import AdapterStorage
from weightsurgery.surgery.as_checkpoint import Storage
from weightsurgery.surgery.edit import Applied, Edit, Run
from weightsurgery.surgery.plan import EditPlan
from weightsurgery.vectors.lora_files import AdapterPlan

__all__ = ["AdapterStorage", "Applied", "Storage", "apply", "plan_edit"]


def plan_edit(
    edit: Edit,
    base: Checkpoint,
    out: str | os.PathLike[str],
    selection: Selection,
    storage: Storage | AdapterStorage,
    workers: int | None = None,
    overwrite: bool = False,
) -> EditPlan | AdapterPlan:
    """What an edit reads, writes and holds, worked out from headers alone.

    Raises:
        VectorError: A selected tensor's change is nothing that a LoRA holds, for an adapter.
        WeightSurgeryError: See :func:`weightsurgery.surgery.plan.plan_checkpoint`.
    """
    return storage.plan(edit, base, out, Run(selection, workers=workers, overwrite=overwrite))


def apply(
    edit: Edit,
    base: Checkpoint,
    out: str | os.PathLike[str],
    *,
    selection: Selection | None = None,
    storage: Storage | AdapterStorage | None = None,
    device: str = "auto",
    workers: int | None = None,
    overwrite: bool = False,
    allow_unrelated: bool = False,
    command: Sequence[str] = (),
    progress: Progress | None = None,
    cluster: str | None = None,
) -> Applied:
    """Edit a checkpoint: read ``base``, write ``out``, all or nothing.

    Args:
        edit: What to do.
        base: The checkpoint to edit.
        out: Directory to write.
        selection: Which tensors; by default all for plain edits and all linear layers for
            discriminating ones.
        storage: A checkpoint, with its dtype and rounding (the default), or an adapter.
        device: Where matrices are decomposed: ``auto``, ``cpu``, ``cuda`` or ``cuda:i``.
        workers: Threads; by default the number of cores, with bounds.
        overwrite: Replace an existing output of this tool.
        allow_unrelated: Edit although a vector does not derive from the base.
        command: The command line, for the record.
        progress: Called as ``progress(stage, done, total)`` in bytes, from worker threads.
        cluster: ``ray`` for a running Ray cluster (``RAY_ADDRESS``, else this machine's, else one
            started for this run), or ``ray://host:port`` through Ray's client; ``workers`` then
            bounds the tasks under way.

    Returns:
        The record and notices.

    Raises:
        VectorError: A selected tensor's change is nothing that a LoRA holds, for an adapter.
        ClusterError: The cluster is not there, does not see the files, or lost what was done; what
            is finished stays, and the same call goes on from it.
        WeightSurgeryError: See :mod:`weightsurgery.errors`; nothing is left of the output then.

    Example::

        with Checkpoint.open("base") as base:
            apply(Negate(open_vector(base, ["tuned"]), scale=0.5), base, "edited")
    """
    selection = selection or Selection("all-linear" if edit.factors else "all")
    run = Run(selection, device, workers, overwrite, allow_unrelated, command, progress, cluster)
    return (storage or Storage()).write(edit, base, out, run)
