"""A job: everything that determines a vector, read and checked."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from weightsurgery.algebra.lowrank import RankRule
from weightsurgery.checkpoint.digests import input_sha256
from weightsurgery.checkpoint.reader import Checkpoint
from weightsurgery.checkpoint.record import versions
from weightsurgery.checkpoint.selection import Selection
from weightsurgery.learning.models import tokenizer_files
from weightsurgery.progress import Progress
from weightsurgery.surgery.apply import AdapterStorage, Storage
from weightsurgery.surgery.provenance import (
    Input,
    files,
    folders,
    hash_files,
    inputs_of,
    recorded,
)
from weightsurgery.surgery.workers import cores
from weightsurgery.unlearning.sets import Sets
from weightsurgery.vectors.lineage import samples_of
from weightsurgery.vectors.sources import Keep

if TYPE_CHECKING:
    from weightsurgery.unlearning.method import Method

__all__ = ["Job", "Machine", "Output"]


@dataclass(frozen=True)
class Machine:
    """The device and threads to work with, and where progress is reported.

    Attributes:
        progress: Called as ``progress(text, done, total)``, in units of what goes on.
        device: Where models run and matrices are decomposed, as it was named.
        workers: Threads of the edit; None for as many as suit.
        command: The command line, for the records.
    """

    progress: Progress | None = None
    device: str = "auto"
    workers: int | None = None
    command: Sequence[str] = ()


@dataclass(frozen=True)
class Output:
    """What is written, and where.

    Attributes:
        out: Directory of the edited checkpoint, or of the adapter.
        vector: Directory of the vector; None for ``OUT.vector``.
        scale: λ of the edit; the saved vector is unscaled.
        scales: Of the edit, as in a selection.
        storage: dtype and rounding of the result; or an adapter's, which takes a change in factors.
        overwrite: Replace existing outputs of this tool, vector included.
        allow_unrelated: Go on although a vector does not derive from the base.
    """

    out: str | os.PathLike[str]
    vector: str | os.PathLike[str] | None = None
    scale: float = 1.0
    scales: tuple[tuple[str, float], ...] = ()
    storage: Storage | AdapterStorage | None = None
    overwrite: bool = False
    allow_unrelated: bool = False

    @property
    def target(self) -> Path:
        """Where the output goes, links resolved."""
        return Path(os.path.realpath(self.out))

    @property
    def place(self) -> Path:
        """Where the vector goes: as named, or beside the output under its name and ``.vector``."""
        if self.vector is None:
            return self.target.with_name(f"{self.target.name}.vector")
        return Path(os.path.realpath(self.vector))


@dataclass(frozen=True)
class Job:
    """Everything that determines a vector, read and checked.

    Attributes:
        base: The checkpoint.
        tokenizer: Its tokenizer.
        edit: What the vector is for: ``project``, ``learn``, ``unlearn`` or ``identify``.
        method: Finds the change.
        sets: The data.
        names: The tensors that may change.
        selection: The selection that chose them; its scales are the edit's alone.
        device: Where to train.
        chosen: Whether the selection was made by hand.
        keep: Vectors and statistics to keep.
        never_knew: A checkpoint that never knew what is to be forgotten.
        rank: Truncate the change by this rule; None for as it is.
        lineage: Result of the check that vectors and statistics derive from the base.
    """

    base: Checkpoint
    tokenizer: Any
    edit: str
    method: Method
    sets: Sets
    names: tuple[str, ...]
    selection: Selection
    device: torch.device
    chosen: bool = True
    keep: Keep = field(default_factory=Keep)
    never_knew: Checkpoint | None = None
    rank: RankRule | None = None
    lineage: tuple[Mapping[str, Any], ...] = ()

    @property
    def learning(self) -> bool:
        """Whether the data is learned: the vector is then ``W' − W``, and else ``W − W'``."""
        return self.edit in ("learn", "identify")

    @property
    def read_places(self) -> list[Path]:
        """What is read, which no output may touch."""
        return [*folders(self._read()), *(dataset.path for dataset in self.sets.every)]

    def _read(self) -> dict[str, Input]:
        """The base, the vectors and statistics to keep, and a checkpoint that never knew."""
        vectors = {f"keep{n}": vector for n, vector in enumerate(self.keep.vectors, 1)}
        statistics = {f"keep_inputs{n}": inputs for n, inputs in enumerate(self.keep.inputs, 1)}
        inputs = inputs_of(self.base, vectors, statistics)
        if self.never_knew is not None:
            inputs["never_knew"] = inputs_of(self.never_knew, {})["base"]
        return inputs

    @property
    def inputs(self) -> dict[str, Any]:
        """The record's entries of the inputs, with SHA-256; of the base its tokenizer too."""
        read = self._read()

        def hashed() -> dict[str, Any]:
            entries = recorded(read, hash_files(read, cores()))
            entries["base"]["files"] |= {
                path.name: input_sha256(path) for path in tokenizer_files(self.base.path)
            }
            return entries

        entries = self.base.remember(f"inputs {sorted(map(str, files(read)))}", hashed)
        return {**entries, **self.sets.described(self.edit)}

    @property
    def parameters(self) -> dict[str, Any]:
        """The vector's parameters, for its record."""
        processes = int(os.environ.get("WORLD_SIZE", "1"))
        return {
            "edit": self.edit,
            **self.method.described(self),
            "selection": asdict(self.selection),
            "device": self.device.type,
            **({"processes": processes} if self.method.distributed else {}),
            "base_samples": samples_of(self.base),
        }

    @property
    def versions(self) -> dict[str, str]:
        """Versions of the training libraries, besides those that every record names."""
        packages = ("transformers", "accelerate", "tokenizers", *self.method.packages)
        return versions() | {name: importlib.metadata.version(name) for name in packages}

    def identity(self) -> Any:
        """Everything that determines the vector, as a record of it would hold it."""
        return json.loads(json.dumps([self.parameters, self.inputs, self.versions]))

    @property
    def digest(self) -> str:
        """SHA-256 of the identity: a run resumes a killed one with the same digest.

        Where the method's steps are the same however processes share them, so is the digest.
        """
        parameters, *others = self.identity()
        if self.method.shares_steps(self):
            parameters["training"] = _by_step(parameters["training"], parameters.pop("processes"))
        identity = json.dumps([parameters, *others], sort_keys=True)
        return hashlib.sha256(identity.encode()).hexdigest()


def _by_step(training: Mapping[str, Any], processes: int) -> dict[str, Any]:
    """Settings of a training, with the examples of a step for how they are shared."""
    shared = {"batch_size", "accumulation"}
    step = processes * training["batch_size"] * training["accumulation"]
    return {**{k: v for k, v in training.items() if k not in shared}, "step": step}
