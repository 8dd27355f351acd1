"""What `ws identify` was asked for, what it will take, and the vector it writes."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import math
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from weightsurgery.algebra.lowrank import LowRank
from weightsurgery.checkpoint.layout import TensorEntry
from weightsurgery.checkpoint.naming import kind_of, layer_of
from weightsurgery.checkpoint.reader import Checkpoint
from weightsurgery.checkpoint.record import EditRecord, file_sha256, versions
from weightsurgery.checkpoint.selection import Selection
from weightsurgery.checkpoint.staging import Staging, held_bytes
from weightsurgery.checkpoint.tied import tied_copies
from weightsurgery.errors import EditError, NonFiniteError, OutputError
from weightsurgery.learning.data import Example
from weightsurgery.learning.method import Method, stages_of
from weightsurgery.learning.models import load_tokenizer, tokenizer_files
from weightsurgery.learning.places import place_of
from weightsurgery.learning.reading import read
from weightsurgery.learning.recorded import described, digests, roles
from weightsurgery.learning.settings import Training
from weightsurgery.learning.training import Trained
from weightsurgery.vectors.finetuned import FinetunedChange, refuse_quantised
from weightsurgery.vectors.lineage import samples_of
from weightsurgery.vectors.saved import VectorWriter

__all__ = ["Plan", "Request", "process_device", "write_vector"]


def process_device(name: str) -> torch.device:
    """``auto``, ``cpu`` or ``cuda`` as this process's device.

    Raises:
        EditError: No such device here.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise EditError(f"device {name!r}", "Use auto, cpu or cuda.")
    if name == "cuda" and not torch.cuda.is_available():
        raise EditError(
            "device 'cuda': torch sees none", "Use --device cpu, or install a CUDA build of torch."
        )
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


@dataclass(frozen=True)
class Plan:
    """What an identification would train and hold, from headers alone.

    Attributes:
        mode: The method's.
        stages: Name, tensors and trained numbers of each stage, in order.
        weights: Bytes of the model in float32.
        gradients: Bytes of the gradients of the largest stage.
        optimiser: Bytes of AdamW's two moments for the largest stage.
        originals: Bytes of the base's values that keep data need.
        disk: Bytes beside the output while work goes on, output included.
    """

    mode: str
    stages: tuple[tuple[str, int, int], ...]
    weights: int
    gradients: int
    optimiser: int
    originals: int
    disk: int


@dataclass(frozen=True)
class Request:
    """Everything that decides the vector, read and checked.

    Attributes:
        base: The checkpoint.
        tokenizer: Its tokenizer.
        examples: What to learn.
        keep: What to hold on to.
        validation: What to watch.
        training: How to train.
        method: The mode and what belongs to it.
        selection: Which tensors.
        selected: Their names.
        device: Type of the device.
        base_files: What is read of the checkpoint.
        data: The data sets as given, by their key in the record.
        facts: What was made of each; see :class:`weightsurgery.learning.reading.Reading`.
    """

    base: Checkpoint
    tokenizer: PreTrainedTokenizerBase
    examples: tuple[Example, ...]
    keep: tuple[Example, ...]
    validation: tuple[Example, ...]
    training: Training
    method: Method
    selection: Selection
    selected: tuple[str, ...]
    device: str
    base_files: Sequence[Path]
    data: Mapping[str, str]
    facts: Mapping[str, Mapping[str, Any]]

    @classmethod
    def read(
        cls,
        base: Checkpoint,
        data: str | os.PathLike[str],
        keep: Sequence[str | os.PathLike[str]],
        validation: str | os.PathLike[str] | None,
        training: Training,
        method: Method,
        selection: Selection,
        device: str,
    ) -> Request:
        """Reads the data and checks what can be checked before a model is loaded.

        Raises:
            WeightSurgeryError: See :mod:`weightsurgery.errors`.
        """
        refuse_quantised(base)
        if training.patience is not None and validation is None:
            raise EditError("patience without validation data", "Give --validation FILE.")
        if keep and method.mode == "literal":
            raise EditError(
                "keep data in mode literal: a model of random weights has nothing to keep",
                "Use --mode delta or joint.",
            )
        selected = tuple(selection.resolve(base.entries))
        stages_of(list(selected), method)
        given = {
            "data": [data],
            "keep": list(keep),
            "validation": [] if validation is None else [validation],
        }
        tokenizer = load_tokenizer(base.path)
        names = {role: roles(role, paths) for role, paths in given.items()}
        keys = {key: name for told in names.values() for key, name in told.items()}
        sets = {key: read(name, tokenizer) for key, name in keys.items()}
        examples = {
            role: tuple(row for key in told for row in sets[key].examples)
            for role, told in names.items()
        }
        beside = tokenizer_files(base.path)
        return cls(
            base,
            tokenizer,
            examples["data"],
            examples["keep"],
            examples["validation"],
            training,
            method,
            selection,
            selected,
            device,
            [*base.files_read(), *beside],
            keys,
            {key: each.facts for key, each in sets.items()},
        )

    @property
    def folders(self) -> list[Path]:
        """What is read, which no output may touch: the checkpoint, and the data files."""
        return [self.base.path, *(place_of(name).root for name in self.data.values())]

    @property
    def inputs(self) -> dict[str, Any]:
        """The record's entry for each input, with SHA-256."""
        return self.base.remember(f"inputs {sorted(self.data.items())}", self._hashed)

    def _hashed(self) -> dict[str, Any]:
        source = self.base.source
        base = {
            "kind": "checkpoint",
            "name": source.name,
            "revision": source.revision,
            "files": {path.name: file_sha256(path) for path in self.base_files},
        }
        sets = {
            key: described(name, digests(name), self.facts[key]) for key, name in self.data.items()
        }
        return {"base": base, **sets}

    @property
    def parameters(self) -> dict[str, Any]:
        """The record's parameters."""
        return {
            "edit": "identify",
            "method": asdict(self.method),
            "training": asdict(self.training),
            "selection": asdict(self.selection),
            "device": self.device,
            "processes": int(os.environ.get("WORLD_SIZE", "1")),
        }

    @property
    def versions(self) -> dict[str, str]:
        """Of what trains, besides what every record names."""
        packages = ["transformers", "accelerate", "tokenizers"]
        packages += ["peft"] if self.method.lora_rank is not None else []
        return versions() | {name: importlib.metadata.version(name) for name in packages}

    @property
    def identity(self) -> str:
        """Digest of all that decides the vector: what a run must share with a killed one."""
        text = json.dumps([self.inputs, self.parameters, self.versions], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def plan(self) -> Plan:
        """What it will take."""
        entries = self.base.entries
        rank = self.method.lora_rank

        def numbers(entry: TensorEntry) -> int:
            if rank is None:
                return entry.numel
            return rank * sum(entry.shape) if len(entry.shape) == 2 else 0

        stages = tuple(
            (stage.name, len(stage.parameters), sum(numbers(entries[n]) for n in stage.parameters))
            for stage in stages_of(list(self.selected), self.method)
        )
        largest = max(count for _, _, count in stages)
        total = sum(count for _, _, count in stages)
        originals = total if self.keep and rank is None else 0
        # Finished stages, the tuned tensors, the vector; a point to go on from, and the one
        # before it; in mode literal the first values too.
        copies = 4 if self.method.mode == "literal" else 3
        return Plan(
            self.method.mode,
            stages,
            weights=4 * sum(entry.numel for entry in entries.values()),
            gradients=4 * largest,
            optimiser=8 * largest,
            originals=4 * originals,
            disk=4 * (copies * total + 6 * largest),
        )

    def check_space(self, staging: Staging) -> None:
        """Refuse what the disk cannot hold.

        Raises:
            OutputError: Too little is free.
        """
        needed = self.plan().disk - held_bytes(staging.root)
        free = shutil.disk_usage(staging.root).free
        if needed > free:
            raise OutputError(
                f"{staging.target}: {needed / 1e6:.0f} MB needed while training, {free / 1e6:.0f}"
                " MB free",
                "Free some space, or write to another disk with -o.",
            )


def write_vector(
    request: Request,
    staging: Staging,
    trained: Sequence[Trained],
    found: Mapping[str, LowRank] | FinetunedChange,
    command: Sequence[str],
) -> EditRecord:
    """Write the vector tensor by tensor, and put it in its place.

    Raises:
        NonFiniteError: A change is NaN or infinite.
        OutputError: It cannot be written.
    """
    base = request.base
    tensors: dict[str, dict[str, Any]] = {}
    # A head tied to its embedding changes with it, stored apart or not.
    copies = {copy for copy, name in tied_copies(base).items() if name in request.selected}
    names = [name for name in base.entries if name in {*request.selected, *copies}]
    with VectorWriter(staging.target, [], staging=staging) as writer:
        for name in names:
            change = _change(found, base.entry(name))
            if change is None:
                continue
            squared = (
                change.energy
                if isinstance(change, LowRank)
                else float(change.double().square().sum())
            )
            if not math.isfinite(squared):
                raise NonFiniteError(
                    f"tensor {name!r}: its trained change holds NaN or infinity",
                    "Lower --learning-rate, or look for NaN in the checkpoint.",
                )
            norm = float(base.tensor(name).double().norm())
            tensors[name] = {
                "kind": kind_of(name),
                "layer": layer_of(name),
                "norm": math.sqrt(squared),
                "relative": math.sqrt(squared) / norm if norm > 0 else 0.0,
            }
            if isinstance(change, LowRank):
                tensors[name]["rank"] = change.rank
            writer.add(name, change)
        record = EditRecord("task-vector", command=list(command))
        record.parameters = {**request.parameters, "base_samples": samples_of(base)}
        record.inputs = request.inputs
        record.tensors = tensors
        record.versions = request.versions
        record.summary = {
            "stages": [asdict(each) for each in trained],
            "examples": len(request.examples),
            "tensors": len(tensors),
            "norm": math.hypot(*(row["norm"] for row in tensors.values())),
        }
        return writer.commit(record)


def _change(
    found: Mapping[str, LowRank] | FinetunedChange, entry: TensorEntry
) -> torch.Tensor | LowRank | None:
    """One tensor's change: factors, or a float32 difference of the tensor's shape."""
    if not isinstance(found, FinetunedChange):
        return found.get(entry.name)
    delta = found.at(entry.name)
    if delta is None:
        return None
    change = torch.zeros(entry.rows, *entry.columns)
    for start, stop in entry.blocks():
        before = found.base.rows(entry.name, start, stop).float()
        delta.add_rows(change[start:stop], start, stop, 1.0, before)
    return change.reshape(entry.shape)
