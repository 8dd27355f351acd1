"""Forgetting and learning from data: ``ws project`` and ``ws learn`` of data sets."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace

from weightsurgery.algebra.devices import pick_device
from weightsurgery.checkpoint.reader import Checkpoint
from weightsurgery.checkpoint.selection import Selection
from weightsurgery.checkpoint.stacks import input_width
from weightsurgery.errors import EditError, MismatchError
from weightsurgery.learning.models import load_tokenizer
from weightsurgery.progress import Progress
from weightsurgery.surgery.apply import AdapterStorage, Storage
from weightsurgery.unlearning import run as road
from weightsurgery.unlearning.job import Job, Machine, Output
from weightsurgery.unlearning.matrices import matrices
from weightsurgery.unlearning.methods.neighbours import Neighbours
from weightsurgery.unlearning.methods.rounds import InRounds
from weightsurgery.unlearning.plan import TrainingPlan
from weightsurgery.unlearning.run import Unlearned
from weightsurgery.unlearning.search import Search
from weightsurgery.unlearning.sets import Sets
from weightsurgery.vectors.lineage import check_lineage
from weightsurgery.vectors.sources import open_keep, split_data
from weightsurgery.vectors.statistics import check_width

__all__ = ["Search", "Sources", "Unlearned", "plan", "read_job", "unlearn"]


@dataclass(frozen=True)
class Sources:
    """What is read, by name as given.

    Attributes:
        target: Data sets to forget or to learn; at least one.
        keep: Data sets, vectors and activation statistics to keep; none for random texts to
            stand for what is to stay.
        validation_target: What is looked at while training; the target where it is None.
        validation_keep: Data sets to look at that the edit does not see.
        vocab: For keep vectors; see :func:`weightsurgery.vectors.sources.open_change`.
        missing: Likewise.
        partial: Likewise.
    """

    target: tuple[str, ...]
    keep: tuple[str, ...] = ()
    validation_target: str | None = None
    validation_keep: tuple[str, ...] = ()
    vocab: str = "error"
    missing: str = "error"
    partial: bool = False


def read_job(
    base: Checkpoint,
    sources: Sources,
    search: Search,
    selection: Selection | None = None,
    device: str = "auto",
    allow_unrelated: bool = False,
) -> Job:
    """Reads the data and checks what can be checked before a model is loaded.

    Args:
        base: The checkpoint, of a causal language model; it is held in float32 to be trained.
        sources: What is read.
        search: How the change is found; its objective tells forgetting from learning.
        selection: Which matrices; None for :attr:`Search.targets`.
        device: Where to train.
        allow_unrelated: Go on although a vector to keep does not derive from the base.

    Raises:
        DataError: Data that cannot be read, that is both to go and to stay, or that validates what
            the edit sees.
        EditError: Settings that make no sense, or not together.
        WeightSurgeryError: See :mod:`weightsurgery.errors`.
    """
    where = pick_device(device)
    selection = selection or Selection(search.targets)
    names = matrices(base, selection)
    _, strays = split_data(sources.target)
    if strays or not sources.target:
        raise EditError(
            f"{strays[0] if strays else 'nothing'}: no data set",
            "Give data sets alone, or vectors alone.",
        )
    data, others = split_data(sources.keep)
    tokenizer = load_tokenizer(base.path)
    watched = sources.validation_target
    sets = Sets.read(
        tokenizer,
        target=sources.target,
        keep=data,
        validation_target=() if watched is None else (watched,),
        validation_keep=sources.validation_keep,
    )
    keep = open_keep(base, others, sources.vocab, sources.missing, partial=sources.partial)
    for vector in keep.vectors:
        if all(vector.at(name) is None for name in names):
            raise MismatchError(
                f"{vector.label}: to be kept, but it changes none of the selected tensors",
                "Widen --targets, --include, --exclude or --layers, or leave it out.",
            )
    for each in keep.inputs:
        for name in names:
            check_width(each, name, input_width(base, name))
    method = InRounds(search) if search.neighbours is None else Neighbours(search)
    job = Job(
        base,
        tokenizer,
        search.edit,
        method,
        sets,
        tuple(names),
        replace(selection, scales=()),
        where,
        kept=keep,
        rank=search.rank,
    )
    method.check(job)
    changes = [change for vector in keep.vectors for _, change in vector.terms]
    lineage = check_lineage(base, [*changes, *keep.inputs], allow_unrelated)
    return replace(job, lineage=tuple(kin.to_dict() for kin in lineage))


def plan(
    base: Checkpoint,
    sources: Sources,
    out: str | os.PathLike[str],
    search: Search,
    *,
    vector: str | os.PathLike[str] | None = None,
    selection: Selection | None = None,
    storage: Storage | AdapterStorage | None = None,
    device: str = "auto",
    workers: int | None = None,
    overwrite: bool = False,
    allow_unrelated: bool = False,
) -> TrainingPlan:
    """What :func:`unlearn` with these arguments would train, hold and write; nothing is run.

    Raises:
        WeightSurgeryError: What :func:`unlearn` would raise before it loads the model.
    """
    selection = selection or Selection(search.targets)
    job = read_job(base, sources, search, selection, device, allow_unrelated)
    output = Output(
        out,
        vector,
        scales=selection.scales,
        storage=storage,
        overwrite=overwrite,
        allow_unrelated=allow_unrelated,
    )
    found = road.plan(job, output, Machine(device=device, workers=workers))
    assert isinstance(found, TrainingPlan)
    return found


def unlearn(
    base: Checkpoint,
    sources: Sources,
    out: str | os.PathLike[str],
    search: Search,
    *,
    scale: float = 1.0,
    vector: str | os.PathLike[str] | None = None,
    selection: Selection | None = None,
    storage: Storage | AdapterStorage | None = None,
    device: str = "auto",
    workers: int | None = None,
    overwrite: bool = False,
    allow_unrelated: bool = False,
    command: Sequence[str] = (),
    progress: Progress | None = None,
) -> Unlearned:
    """Forget or learn data sets: find the vector, save it, and write the edited checkpoint.

    Args:
        base: See :func:`read_job`; so are sources, search and selection, whose scales are the
            edit's.
        sources: See there.
        out: Directory to write.
        search: See there.
        scale: λ of the edit; the saved vector is as it was found.
        vector: Where the vector is saved; by default ``OUT.vector``.
        selection: See there.
        storage: dtype and rounding of the result; or an adapter's, which takes a search with a
            rank.
        device: Where to train.
        workers: Threads of the edit.
        overwrite: Replace existing outputs of this tool, vector included.
        allow_unrelated: See there.
        command: The command line, for the records.
        progress: Called as ``progress(text, done, total)``, in units of what goes on.

    Raises:
        WeightSurgeryError: See :func:`read_job` and :func:`weightsurgery.unlearning.run.run`.
    """
    selection = selection or Selection(search.targets)
    job = read_job(base, sources, search, selection, device, allow_unrelated)
    output = Output(out, vector, scale, selection.scales, storage, overwrite, allow_unrelated)
    done = road.run(job, output, Machine(progress, device, workers, command))
    assert done is not None  # one process alone
    return done
