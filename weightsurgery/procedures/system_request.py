"""What ``ws unlearn`` was asked for, read and checked."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from weightsurgery.algebra.devices import pick_device
from weightsurgery.algebra.lowrank import RankRule
from weightsurgery.checkpoint.reader import Checkpoint
from weightsurgery.checkpoint.record import file_sha256, versions
from weightsurgery.checkpoint.selection import Selection
from weightsurgery.errors import DataError, EditError
from weightsurgery.learning.models import load_tokenizer, tokenizer_files
from weightsurgery.learning.outcome import process_device
from weightsurgery.learning.settings import Training
from weightsurgery.learning.unlearners import UNLEARNERS
from weightsurgery.procedures.matrices import matrices
from weightsurgery.procedures.sets import FileSet, Sets
from weightsurgery.procedures.systems import System, system
from weightsurgery.surgery.provenance import files, folders, hash_files, inputs_of, recorded
from weightsurgery.surgery.workers import cores
from weightsurgery.vectors.lineage import samples_of
from weightsurgery.vectors.sources import split_data

__all__ = ["How", "SystemRequest"]


@dataclass(frozen=True)
class How:
    """How to forget.

    Attributes:
        method: A name of :data:`weightsurgery.procedures.systems.SYSTEMS`.
        settings: The method's own, by name; the others are as published.
        training: Fields of :class:`~weightsurgery.learning.settings.Training`, likewise.
        lora_rank: Train a LoRA adapter of this rank; None for the method's way.
        rank: Truncate what was found; None for as it is.
    """

    method: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    lora_rank: int | None = None
    rank: RankRule | None = None

    def trained(self, row: System) -> Training:
        """The training: as published but for what is given; epochs give way to steps and back."""
        given = dict(self.training)
        if given.get("epochs") is not None and given.get("steps") is None:
            given["steps"] = None
        return replace(row.training, **given)


@dataclass(frozen=True)
class SystemRequest:
    """Everything that decides the vector, read and checked.

    Attributes:
        base: The checkpoint.
        tokenizer: Its tokenizer.
        sets: What to forget and to keep.
        unseen: What the model never saw.
        how: As asked for.
        row: The system.
        settings: All of its settings.
        training: How it trains.
        selection: Which tensors; its scales are the edit's.
        chosen: Whether that was chosen by hand.
        names: The matrices.
        device: Where to train.
    """

    base: Checkpoint
    tokenizer: Any
    sets: Sets
    unseen: tuple[FileSet, ...]
    how: How
    row: System
    settings: Mapping[str, Any]
    training: Training
    selection: Selection
    chosen: bool
    names: tuple[str, ...]
    device: torch.device

    @classmethod
    def read(
        cls,
        base: Checkpoint,
        forget: Sequence[str],
        keep: Sequence[str],
        unseen: Sequence[str],
        how: How,
        selection: Selection | None,
        device: str,
    ) -> SystemRequest:
        """Reads the data and checks what can be checked before a model is loaded.

        Raises:
            WeightSurgeryError: See :mod:`weightsurgery.errors`.
        """
        row = system(how.method)
        settings, training = row.settled(how.settings), how.trained(row)
        if how.lora_rank is not None and how.lora_rank < 1:
            raise EditError(f"LoRA rank {how.lora_rank}", "Give a whole number from 1.")
        if how.lora_rank is not None and not row.takes_rank:
            raise EditError(f"{how.method} as a LoRA adapter", "Leave out --lora-rank.")
        if not forget:
            raise EditError("nothing to forget", "Give data with --forget FILE.")
        for given in (forget, keep, unseen):
            _, strays = split_data(given)
            if strays:
                raise EditError(
                    f"{strays[0]}: no data set",
                    "Methods train on data; 'ws negate' and 'ws project' take vectors.",
                )
        if row.keeps(settings) and not keep:
            instead = ", or a λ of your own with --set scale=0.5" * (
                "scale" in settings and not row.keeps({**settings, "scale": 1.0})
            )
            raise EditError(
                f"{how.method} without data to keep, which it works on",
                f"Give --keep FILE{instead}.",
            )
        if row.needs_unseen and not unseen:
            raise EditError(
                f"{how.method} without data the model never saw, which it measures by",
                "Give --unseen FILE: texts of the same form as those to forget.",
            )
        where = process_device(device) if "WORLD_SIZE" in os.environ else pick_device(device)
        chosen = selection is not None
        selection = selection or Selection("all-linear")
        names = matrices(base, selection)
        tokenizer = load_tokenizer(base.path)
        sets = Sets.read(tokenizer, target=forget, keep=keep)
        return cls(
            base,
            tokenizer,
            sets,
            _unseen(sets, unseen, tokenizer),
            how,
            row,
            settings,
            training,
            replace(selection, scales=()),
            chosen,
            tuple(names),
            where,
        )

    @property
    def rank(self) -> int | None:
        """Rank of the adapter that is trained, if one is."""
        return self.how.lora_rank if self.how.lora_rank is not None else self.row.adapter_rank

    @property
    def read_places(self) -> list[Path]:
        """What is read, which no output may touch."""
        data = [each.path for each in (*self.sets.every, *self.unseen)]
        return [*folders(inputs_of(self.base, {})), *data]

    @property
    def inputs(self) -> dict[str, Any]:
        """The record's entry for each input, with SHA-256."""
        read = inputs_of(self.base, {})

        def hashed() -> dict[str, Any]:
            entries = recorded(read, hash_files(read, cores()))
            entries["base"]["files"] |= {
                path.name: file_sha256(path) for path in tokenizer_files(self.base.path)
            }
            return entries

        entries = self.base.remember(f"inputs {sorted(map(str, files(read)))}", hashed)
        others = {f"unseen{n}": each.described for n, each in enumerate(self.unseen, 1)}
        return {**entries, **self.sets.described("forget"), **others}

    @property
    def parameters(self) -> dict[str, Any]:
        """The vector's parameters, for its record."""
        return {
            "edit": "unlearn",
            "method": self.how.method,
            "source": self.row.source,
            "settings": dict(self.settings),
            "training": asdict(self.training),
            "lora_rank": self.rank,
            "rank": None if self.how.rank is None else str(self.how.rank),
            "selection": asdict(self.selection),
            "chosen": self.chosen,
            "device": self.device.type,
            "processes": int(os.environ.get("WORLD_SIZE", "1")),
            "base_samples": samples_of(self.base),
        }

    @property
    def versions(self) -> dict[str, str]:
        """Of what trains, besides what every record names."""
        packages = ["transformers", "accelerate", "tokenizers"]
        packages += ["peft"] if self.rank is not None else []
        return versions() | {name: importlib.metadata.version(name) for name in packages}

    def kept_bytes(self, trained: int) -> int:
        """What the training keeps on disk meanwhile, at most, to go on from after a kill.

        Args:
            trained: How many numbers are trained.
        """
        if self.how.method not in UNLEARNERS:
            return 0
        how, passes = self.training, len(self.sets.examples) / self.training.batch_size
        steps = math.ceil(how.epochs * math.ceil(passes)) if how.steps is None else how.steps
        # Helpers; weights and two moments, of a point and the one before it, or of the one that
        # a helper's training ends with.
        points = 6 if steps > how.save_every else 3 * bool(self.row.models)
        return 4 * trained * (self.row.models + points)

    @property
    def digest(self) -> str:
        """All that decides the vector, as SHA-256."""
        return hashlib.sha256(json.dumps(self.identity(), sort_keys=True).encode()).hexdigest()

    def identity(self) -> Any:
        """All that decides the vector, as a record of it would hold it."""
        return json.loads(json.dumps([self.parameters, self.inputs, self.versions]))


def _unseen(sets: Sets, names: Sequence[str], tokenizer: Any) -> tuple[FileSet, ...]:
    found = tuple(FileSet.read(name, tokenizer) for name in names)
    for each in found:
        for other in sets.every:
            if each.same_as(other):
                raise DataError(
                    f"{each.name}: named as unseen, but it is {other.name}",
                    "Give data that the model never saw.",
                )
    return found
