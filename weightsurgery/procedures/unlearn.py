"""Forgetting and learning from data: ``ws project``, ``ws learn`` and ``ws unlearn``."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from weightsurgery.checkpoint.reader import Checkpoint
from weightsurgery.checkpoint.selection import Selection
from weightsurgery.checkpoint.stacks import input_width
from weightsurgery.errors import EditError, MismatchError
from weightsurgery.learning.models import load_tokenizer
from weightsurgery.learning.placement import refuse_distributed
from weightsurgery.learning.sharding import sharding
from weightsurgery.learning.stages import process_device
from weightsurgery.progress import Progress
from weightsurgery.surgery.apply import AdapterStorage, Storage
from weightsurgery.unlearning import run as road
from weightsurgery.unlearning.by_search import Search
from weightsurgery.unlearning.by_system import BySystem, MethodSettings
from weightsurgery.unlearning.job import Job, Machine, Output
from weightsurgery.unlearning.matrices import matrices
from weightsurgery.unlearning.methods.neighbours import Neighbours
from weightsurgery.unlearning.methods.rounds import InRounds
from weightsurgery.unlearning.plan import TrainingPlan
from weightsurgery.unlearning.run import Unlearned
from weightsurgery.unlearning.sets import Sets
from weightsurgery.vectors.lineage import check_lineage
from weightsurgery.vectors.sources import open_keep, split_data
from weightsurgery.vectors.statistics import check_width

__all__ = [
    "MethodSettings",
    "Output",
    "Search",
    "Sources",
    "Unlearned",
    "plan",
    "read_job",
    "unlearn",
]


@dataclass(frozen=True)
class Sources:
    """The inputs of an edit, by name as given.

    Attributes:
        target: Data sets to forget or to learn; at least one.
        keep: What to keep. For a search data sets, vectors and activation statistics, none for
            random texts to stand for what is to stay; for a method of ``ws unlearn`` data sets.
        validation_target: Data that a search validates on; the target where it is None.
        validation_keep: Data sets to keep that a search validates on and the edit does not see.
        vocab: For keep vectors; see :func:`weightsurgery.vectors.sources.open_change`.
        missing: Likewise.
        partial: Likewise.
        unseen: Data sets that the model never saw, for the methods that measure by them.
        never_knew: A checkpoint that never knew what is to be forgotten, for a search by
            neighbours: what it says is to be said.
    """

    target: Sequence[str]
    keep: Sequence[str] = ()
    validation_target: str | None = None
    validation_keep: Sequence[str] = ()
    vocab: str = "error"
    missing: str = "error"
    partial: bool = False
    unseen: Sequence[str] = ()
    never_knew: str | None = None


def read_job(
    base: Checkpoint,
    sources: Sources,
    how: Search | MethodSettings,
    selection: Selection | None = None,
    device: str = "auto",
    allow_unrelated: bool = False,
) -> Job:
    """Reads the data and checks what can be checked before a model is loaded.

    Args:
        base: The checkpoint, of a causal language model; it is held in float32 to be trained.
        sources: What is read.
        how: Settings of a search, whose objective is to forget or to learn, or of a method of
            ``ws unlearn``.
        selection: Which matrices; None for :attr:`Search.targets`, or those the method trains.
        device: Where to train.
        allow_unrelated: Go on although a vector to keep does not derive from the base.

    Raises:
        DataError: Data that cannot be read, that is both to go and to stay, or that validates what
            the edit sees.
        EditError: Settings that make no sense, alone or together, or needed data that is missing.
        WeightSurgeryError: See :mod:`weightsurgery.errors`.
    """
    if isinstance(how, Search):
        return _search_job(base, sources, how, selection, device, allow_unrelated)
    return _method_job(base, sources, how, selection, device)


def _search_job(
    base: Checkpoint,
    sources: Sources,
    search: Search,
    selection: Selection | None,
    device: str,
    allow_unrelated: bool,
) -> Job:
    if sources.unseen:
        raise EditError(
            f"{sources.unseen[0]}: unseen data, which a search does not look at",
            "Leave it out, or choose a method of 'ws unlearn' that measures by it.",
        )
    _check_processes(search)
    torch_device = process_device(device)
    selection = selection or Selection(search.targets)
    names = matrices(base, selection)
    _, strays = split_data(sources.target)
    if strays or not sources.target:
        raise EditError(
            f"{strays[0] if strays else 'nothing'}: no data set",
            "Give data sets alone, or vectors alone.",
        )
    data, others = split_data(sources.keep)
    tokenizer = load_tokenizer(base.beside())
    validation = sources.validation_target
    sets = Sets.read(
        tokenizer,
        target=sources.target,
        keep=data,
        validation_target=() if validation is None else (validation,),
        validation_keep=sources.validation_keep,
    )
    keep = open_keep(base, others, sources.vocab, sources.missing, partial=sources.partial)
    for vector in keep.vectors:
        if all(vector.rows_at(name) is None for name in names):
            raise MismatchError(
                f"{vector.label}: to be kept, but it changes none of the selected tensors",
                "Widen --targets, --include, --exclude or --layers, or leave it out.",
            )
    for statistics in keep.inputs:
        for name in names:
            check_width(statistics, name, input_width(base, name))
    method = InRounds(search) if search.neighbours is None else Neighbours(search)
    job = Job(
        base,
        tokenizer,
        search.edit,
        method,
        sets,
        tuple(names),
        replace(selection, scales=()),
        torch_device,
        keep=keep,
        never_knew=_never_knew(base, sources, search, tokenizer, sets),
        rank=search.rank,
    )
    method.check(job)
    changes = [change for vector in keep.vectors for _, change in vector.terms]
    lineage = check_lineage(base, [*changes, *keep.inputs], allow_unrelated)
    return replace(job, lineage=tuple(kin.to_dict() for kin in lineage))


def _never_knew(
    base: Checkpoint, sources: Sources, search: Search, tokenizer: Any, sets: Sets
) -> Checkpoint | None:
    """The checkpoint that never knew, if there is to be one.

    Raises:
        EditError: The search has no use for it, or it is the one to edit.
        MismatchError: It reads the request as other tokens.
        WeightSurgeryError: It cannot be opened.
    """
    name = sources.never_knew
    if name is None:
        return None
    if search.neighbours is None or search.learning:
        raise EditError(
            f"--never-knew {name} with objective {search.objective}, which asks no other model",
            "Leave it out; 'ws project --objective neighbours' does.",
        )
    checkpoint = Checkpoint.open(name)
    if checkpoint.path.samefile(base.path):
        raise EditError(
            f"--never-knew {name} is the checkpoint to edit, which knows",
            "Name the one that it was tuned from.",
        )
    others = load_tokenizer(checkpoint.beside())
    for example in sets.examples:
        text = f"{example.prompt}{example.completion}"
        if others(text)["input_ids"] != tokenizer(text)["input_ids"]:
            raise MismatchError(
                f"--never-knew {name}: its tokenizer reads {text[:40]!r} as other tokens than"
                " the one of the checkpoint to edit",
                "Name a checkpoint with the same tokenizer: the one that it was tuned from.",
            )
    return checkpoint


def _check_processes(search: Search) -> None:
    """Refuse to do in several processes what is not shared among them.

    Raises:
        EditError: It is not.
    """
    if not sharding():
        refuse_distributed(
            f"ws {search.edit} from data sets",
            "Run it in one process, or under FSDP (docs/operating.md); 'ws unlearn' and"
            " 'ws identify' train in several.",
        )
    elif search.neighbours is not None:
        other = "learn" if search.learning else "strangers"
        raise EditError(
            "--objective neighbours under FSDP: its looks and directions want a whole model",
            f"Pass --objective {other}, or run it in one process.",
        )


def _method_job(
    base: Checkpoint,
    sources: Sources,
    settings: MethodSettings,
    selection: Selection | None,
    device: str,
) -> Job:
    method = BySystem.of(settings)
    if not sources.target:
        raise EditError("nothing to forget", "Give data with --forget FILE.")
    for paths in (sources.target, sources.keep, sources.unseen):
        _, strays = split_data(paths)
        if strays:
            raise EditError(
                f"{strays[0]}: no data set",
                "Methods train on data; 'ws negate' and 'ws project' take vectors.",
            )
    if sources.validation_target is not None or sources.validation_keep:
        raise EditError(
            f"validation data with {settings.method}, which does not look at it", "Leave it out."
        )
    method.check(bool(sources.keep), bool(sources.unseen))
    torch_device = process_device(device)
    chosen = selection or Selection("all-linear")
    names = matrices(base, chosen)
    tokenizer = load_tokenizer(base.beside())
    return Job(
        base,
        tokenizer,
        "unlearn",
        method,
        Sets.read(tokenizer, target=sources.target, keep=sources.keep, unseen=sources.unseen),
        tuple(names),
        replace(chosen, scales=()),
        torch_device,
        selection is not None,
        rank=settings.rank,
    )


def plan(
    base: Checkpoint,
    sources: Sources,
    output: Output,
    how: Search | MethodSettings,
    selection: Selection | None = None,
    device: str = "auto",
    workers: int | None = None,
) -> TrainingPlan:
    """What :func:`unlearn` with these settings would train, hold and write; nothing is run.

    Raises:
        WeightSurgeryError: What :func:`unlearn` would raise before it loads the model.
    """
    job = read_job(base, sources, how, selection, device, output.allow_unrelated)
    return road.plan(job, output, Machine(device=device, workers=workers))


def unlearn(
    base: Checkpoint,
    sources: Sources,
    out: str | os.PathLike[str],
    how: Search | MethodSettings,
    *,
    scale: float = 1.0,
    vector: str | os.PathLike[str] | None = None,
    selection: Selection | None = None,
    scales: tuple[tuple[str, float], ...] | None = None,
    storage: Storage | AdapterStorage | None = None,
    device: str = "auto",
    workers: int | None = None,
    overwrite: bool = False,
    allow_unrelated: bool = False,
    command: Sequence[str] = (),
    progress: Progress | None = None,
) -> Unlearned | None:
    """Forget or learn data sets: find the vector, save it, and write the edited checkpoint.

    Args:
        base: See :func:`read_job`; so are sources, how and selection.
        sources: See there.
        out: Directory to write.
        how: See there.
        scale: λ of the edit; the saved vector is unscaled.
        vector: Where the vector is saved; by default ``OUT.vector``.
        selection: See there.
        scales: Factors of λ by tensor, as in a selection; by default the selection's.
        storage: dtype and rounding of the result; or an adapter's, which takes a rank.
        device: Where to train.
        workers: Threads of the edit.
        overwrite: Replace existing outputs of this tool, vector included.
        allow_unrelated: See there.
        command: The command line, for the records.
        progress: Called as ``progress(text, done, total)``, in units of what goes on.

    Returns:
        The edit and its vector; None in the processes of a distributed run that do not write.

    Raises:
        WeightSurgeryError: See :func:`read_job` and :func:`weightsurgery.unlearning.run.run`.

    Example::

        with Checkpoint.open("model") as base:
            sources = Sources(["authors.jsonl"], keep=["capitals.jsonl"])
            unlearn(base, sources, "edited", MethodSettings("npo", {"beta": 0.2}))
    """
    job = read_job(base, sources, how, selection, device, allow_unrelated)
    if scales is None:
        scales = () if selection is None else selection.scales
    output = Output(out, vector, scale, scales, storage, overwrite, allow_unrelated)
    return road.run(job, output, Machine(progress, device, workers, command))
