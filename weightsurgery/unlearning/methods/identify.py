"""Subspace identification: the task vector of a data set, layer by layer, saved.

:mod:`weightsurgery.learning.identify` trains; here the data is read, and the change is saved under
the names that the checkpoint has for its tensors.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
from typing_extensions import override

from weightsurgery.algebra.lowrank import RankRule
from weightsurgery.checkpoint.layout import TensorEntry
from weightsurgery.checkpoint.plain_files import held_bytes, need_space
from weightsurgery.checkpoint.reader import Checkpoint
from weightsurgery.checkpoint.record import EditRecord, read_record
from weightsurgery.checkpoint.selection import Selection
from weightsurgery.checkpoint.targets import check_target
from weightsurgery.checkpoint.tied import tied_copies
from weightsurgery.errors import EditError
from weightsurgery.learning.identify import ALL_LINEAR, DELTA, as_rows, is_main, train
from weightsurgery.learning.method import IdentifyMode, stages_of
from weightsurgery.learning.models import load_tokenizer, quiet
from weightsurgery.learning.parameters import (
    load_float32,
    parameters_of,
    random_model,
    save_tensors,
    sole_name,
)
from weightsurgery.learning.points import writing
from weightsurgery.learning.settings import Training
from weightsurgery.learning.sharding import sharding
from weightsurgery.learning.stages import process_device, values_of, wait_for_all
from weightsurgery.learning.training import isolated
from weightsurgery.progress import Progress
from weightsurgery.unlearning.job import Job, Machine
from weightsurgery.unlearning.method import Method
from weightsurgery.unlearning.saving import MethodResult, find_and_save, workspace_of
from weightsurgery.unlearning.sets import Sets
from weightsurgery.unlearning.shared_plan import SharedMemory, Shares, shared_memory
from weightsurgery.vectors.finetuned import FinetunedChange, refuse_quantised

__all__ = ["Identify", "IdentifyPlan", "identify", "plan", "read_job"]

Name = str | os.PathLike[str]


@dataclass(frozen=True)
class IdentifyPlan:
    """What an identification would train and hold, from headers alone.

    Attributes:
        mode: The method's.
        stages: Name, number of tensors and of trained parameters per stage, in order.
        weights: Bytes of the model in float32.
        gradients: Bytes of the gradients of the largest stage.
        optimiser: Bytes of AdamW's two moments for the largest stage.
        originals: Bytes of the base's values that keep data need.
        disk: Bytes beside the output while work goes on, output included.
        shared: What each process holds where several share the model.
    """

    mode: str
    stages: tuple[tuple[str, int, int], ...]
    weights: int
    gradients: int
    optimiser: int
    originals: int
    disk: int
    shared: tuple[SharedMemory, ...] = ()


@dataclass(frozen=True)
class Identify(Method):
    """Find the task vector of a data set.

    Attributes:
        modes: The mode and its settings.
        training: Training settings.
    """

    modes: IdentifyMode
    training: Training
    distributed = True

    @property
    @override
    def seed(self) -> int:  # type: ignore[override]
        return self.training.seed

    @property
    @override
    def packages(self) -> tuple[str, ...]:  # type: ignore[override]
        return () if self.modes.lora_rank is None else ("peft",)

    @override
    def described(self, job: Job) -> dict[str, Any]:
        return {"method": asdict(self.modes), "training": asdict(self.training)}

    @override
    def shares_steps(self, job: Job) -> bool:
        return not job.sets.keep  # of which each process draws its own

    def factors(self, job: Job) -> RankRule:
        """See :class:`Method`; identification writes a vector alone."""
        self._no_edit()

    def plan(self, job: Job, edit: Any, vector: Path, finished: bool) -> NoReturn:
        """See :class:`Method`; identification writes a vector alone: see :meth:`planned`."""
        self._no_edit()

    def _no_edit(self) -> NoReturn:
        raise EditError(
            "identify applies no edit", "Apply its vector with 'ws negate' or 'ws add'."
        )

    def planned(self, job: Job) -> IdentifyPlan:
        """What it will take."""
        entries, rank = job.base.entries, self.modes.lora_rank

        def numbers(entry: TensorEntry) -> int:
            if rank is None:
                return entry.numel
            return rank * sum(entry.shape) if len(entry.shape) == 2 else 0

        stages = tuple(
            (stage.name, len(stage.parameters), sum(numbers(entries[n]) for n in stage.parameters))
            for stage in stages_of(list(job.names), self.modes)
        )
        largest = max(count for _, _, count in stages)
        total = sum(count for _, _, count in stages)
        originals = total if job.sets.keep and rank is None else 0
        # Finished stages, the fine-tuned tensors, the vector; a point to go on from, and the one
        # before it; in mode literal the first values too.
        copies = 4 if self.modes.mode == "literal" else 3
        return IdentifyPlan(
            self.modes.mode,
            stages,
            weights=4 * sum(entry.numel for entry in entries.values()),
            gradients=4 * largest,
            optimiser=8 * largest,
            originals=4 * originals,
            disk=4 * (copies * total + 6 * largest),
            shared=shared_memory(
                entries,
                Shares(job.names, rank, 1 if originals else 0),
            ),
        )

    def find(self, job: Job, machine: Machine, workspace: Path) -> MethodResult:
        """See :class:`Method`: loads, trains, and returns the changes by their stored names.

        Raises:
            OutputError: Too little space, or what is trained cannot be written.
        """
        base, modes, training, root = job.base, self.modes, self.training, workspace.parent
        if is_main():
            self._check_space(job, root)
        with isolated(), quiet():
            literal = modes.mode == "literal"
            model = random_model(base, training.seed) if literal else load_float32(base, job.device)
            stored = parameters_of(model, base, job.names)
            names = list(stored)
            initial = values_of(model, names) if literal else {}
            rows, retain = as_rows(
                model,
                job.tokenizer,
                job.sets.examples,
                [example for dataset in job.sets.keep for example in dataset.examples],
                [example for dataset in job.sets.validation_target for example in dataset.examples],
                training,
                modes,
            )
            trained, factors = train(
                model, names, rows, training, modes, job.device, retain, workspace, machine.progress
            )
            summary = {"stages": [asdict(stage) for stage in trained]}
            if factors is not None:
                by_name = {
                    sole_name(base, stored[n], factor): factor for n, factor in factors.items()
                }
                return MethodResult(by_name, summary)
            values = values_of(model, names, is_main())
            if not is_main():
                return MethodResult({}, summary)
            with writing(root.parent):
                before = save_tensors(model, initial, root / "initial") if literal else base
                after = save_tensors(model, values, root / "tuned")
            finetuned = FinetunedChange(before, after, missing="base")
            return MethodResult(_Differences(job, finetuned), summary)

    def _check_space(self, job: Job, root: Path) -> None:
        needed = self.planned(job).disk - held_bytes(root)
        need_space(root.parent, needed, root, " while training")


class _Differences(Mapping[str, torch.Tensor]):
    """The changed tensors, read one by one: float32 differences of the tensors' shapes."""

    def __init__(self, job: Job, change: FinetunedChange) -> None:
        # A head tied to its embedding changes with it, stored apart or not.
        copies = {copy for copy, name in tied_copies(job.base).items() if name in job.names}
        self._base, self._change, names = job.base, change, {*job.names, *copies}
        self._names = [n for n in job.base.entries if n in names and change.rows_at(n) is not None]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __getitem__(self, name: str) -> torch.Tensor:
        entry, delta = self._base.entry(name), self._change.at(name)
        if delta is None:
            raise KeyError(name)
        difference = torch.zeros(entry.rows, *entry.columns)
        for start, stop in entry.blocks():
            before = self._change.base.rows(name, start, stop).float()
            delta.add_rows(difference[start:stop], start, stop, 1.0, before)
        return difference.reshape(entry.shape)


def read_job(
    base: Checkpoint,
    data: Name,
    keep: Sequence[Name],
    validation: Name | None,
    training: Training,
    method: IdentifyMode,
    selection: Selection,
    device: str,
) -> Job:
    """Reads the data and checks what can be checked before a model is loaded.

    The arguments are those of :func:`identify`.

    Raises:
        WeightSurgeryError: See :mod:`weightsurgery.errors`.
    """
    training_device = process_device(device)
    refuse_quantised(base)
    if training.patience is not None and validation is None:
        raise EditError("patience without validation data", "Give --validation FILE.")
    if keep and method.mode == "literal":
        raise EditError(
            "keep data in mode literal: a model of random weights has nothing to keep",
            "Use --mode delta or joint.",
        )
    if method.mode == "literal" and sharding():
        raise EditError(
            "mode literal under FSDP, which shares a model as it is read: this one is drawn",
            "Use --mode delta or joint, or run it without FSDP.",
        )
    names = tuple(selection.resolve(base.entries))
    stages_of(list(names), method)
    tokenizer = load_tokenizer(base.beside())
    sets = Sets.read(
        tokenizer,
        target=[os.fspath(data)],
        keep=[os.fspath(name) for name in keep],
        validation_target=[] if validation is None else [os.fspath(validation)],
        apart=False,
    )
    identification = Identify(method, training)
    return Job(base, tokenizer, "identify", identification, sets, names, selection, training_device)


def identify(
    checkpoint: Name,
    data: Name,
    out: Name,
    training: Training,
    method: IdentifyMode = DELTA,
    *,
    selection: Selection = ALL_LINEAR,
    keep: Sequence[Name] = (),
    validation: Name | None = None,
    device: str = "auto",
    overwrite: bool = False,
    command: Sequence[str] = (),
    progress: Progress | None = None,
) -> EditRecord:
    """Finds the task vector of a data set and saves it, all or nothing.

    A run that was killed goes on where it stopped when it is started again with the same
    arguments, and gives the same vector. Under torchrun or accelerate all processes train and the
    first one writes.

    Args:
        checkpoint: A directory or ``org/name[@revision]``.
        data: Prompts and completions; see `data.read_examples`.
        out: Directory for the vector: float32 differences to the checkpoint as it is stored, or
            an adapter's change as low-rank factors.
        training: Training settings.
        method: The mode and its settings.
        selection: Which tensors, by the checkpoint's names.
        keep: Data on which the model is held to the checkpoint's predictions.
        validation: Validation data for the loss; the weights of the lowest loss are taken.
        device: ``"auto"``, ``"cpu"``, ``"cuda"`` or, in one process, ``"cuda:i"``.
        overwrite: Replace an existing output of this tool.
        command: The command line, for the record.
        progress: Called as ``progress(text, done, total)`` in steps.

    Returns:
        The vector's record.

    Raises:
        WeightSurgeryError: See :mod:`weightsurgery.errors`; nothing is left behind then.
    """
    with Checkpoint.open(checkpoint) as base:
        job = read_job(base, data, keep, validation, training, method, selection, device)
        place, machine = Path(os.path.realpath(out)), Machine(progress, device, command=command)
        if not is_main():
            job.method.find(job, Machine(device=device), workspace_of(job, place))
            wait_for_all()
            return read_record(place)
        record = find_and_save(
            job,
            place,
            overwrite,
            lambda workspace: job.method.find(job, machine, workspace),
            command,
        )
        wait_for_all()
        return record


def plan(
    checkpoint: Name | Checkpoint,
    data: Name,
    out: Name,
    training: Training,
    method: IdentifyMode = DELTA,
    *,
    selection: Selection = ALL_LINEAR,
    keep: Sequence[Name] = (),
    validation: Name | None = None,
    device: str = "auto",
    overwrite: bool = False,
) -> IdentifyPlan:
    """What `identify` with these arguments would train and hold; headers are enough.

    Raises:
        WeightSurgeryError: What `identify` would raise before it loads the model.
    """
    with ExitStack() as stack:
        base = (
            checkpoint
            if isinstance(checkpoint, Checkpoint)
            else stack.enter_context(Checkpoint.open(checkpoint))
        )
        job = read_job(base, data, keep, validation, training, method, selection, device)
        check_target(Path(os.path.realpath(out)), job.read_places, overwrite)
        return Identify(method, training).planned(job)
