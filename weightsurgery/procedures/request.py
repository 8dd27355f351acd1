"""What an edit from data sets was asked for, read and checked."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from weightsurgery.algebra.devices import pick_device
from weightsurgery.algebra.lowrank import Rank, RankRule
from weightsurgery.checkpoint.reader import Checkpoint
from weightsurgery.checkpoint.record import file_sha256, versions
from weightsurgery.checkpoint.selection import Selection
from weightsurgery.checkpoint.stacks import input_width
from weightsurgery.checkpoint.staging import Staging, check_target, output_errors
from weightsurgery.errors import EditError, MismatchError
from weightsurgery.learning.forget import ByNeighbours
from weightsurgery.learning.guard import BUDGET
from weightsurgery.learning.models import load_tokenizer, tokenizer_files
from weightsurgery.learning.rounds import Rounds
from weightsurgery.procedures.matrices import matrices
from weightsurgery.procedures.sets import Sets
from weightsurgery.surgery.provenance import (
    Input,
    files,
    folders,
    hash_files,
    inputs_of,
    recorded,
)
from weightsurgery.surgery.workers import cores
from weightsurgery.vectors.lineage import check_lineage, samples_of
from weightsurgery.vectors.sources import Keep, open_keep, split_data
from weightsurgery.vectors.statistics import check_width

__all__ = ["Request", "Search", "Sources"]


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


@dataclass(frozen=True)
class Search:
    """How the change is found.

    Attributes:
        rounds: See :class:`weightsurgery.learning.rounds.Rounds`.
        neighbours: Forget, or learn where `rounds` says so, by neighbours instead; see
            :mod:`weightsurgery.learning.forget`.
        rank: Truncate what was found; None for as it is.
        keep_rank: How many factors of each vector to keep.
        threshold: Share of its accuracy before that every validation set must keep.
        budget: Divergence that ordinary language may suffer, in nats a token; see
            :mod:`weightsurgery.learning.guard`.
        allow_harm: Write what goes beyond it all the same.

    Raises:
        EditError: A threshold that is no share, or a senseless budget.
    """

    rounds: Rounds = field(default_factory=Rounds)
    neighbours: ByNeighbours | None = None
    rank: RankRule | None = None
    keep_rank: RankRule = field(default_factory=lambda: Rank(64))
    threshold: float = 0.975
    budget: float = BUDGET
    allow_harm: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.budget < math.inf:
            raise EditError(f"budget {self.budget}", "Give nats a token, such as 0.01.")
        if not 0 < self.threshold <= 1:
            raise EditError(
                f"threshold {self.threshold}", "Give a share above 0 and up to 1, such as 0.975."
            )

    @property
    def learning(self) -> bool:
        """Whether the data is to be learned rather than forgotten."""
        return self.rounds.objective == "learn"

    @property
    def targets(self) -> str:
        """Which matrices are changed where nothing else is said.

        To forget by neighbours those of the MLPs, where facts are looked up (Geva et al., arXiv
        2012.14913; Meng et al., 2202.05262): with them alone as much is forgotten for a third of
        the divergence of ordinary language.
        """
        return "mlp" if self.neighbours is not None and not self.learning else "all-linear"

    @property
    def objective(self) -> str:
        """What the change is after."""
        return self.rounds.objective if self.neighbours is None else "neighbours"

    @property
    def seed(self) -> int:
        """Of every draw."""
        if self.neighbours is None:
            return self.rounds.seed
        return self.neighbours.training.seed

    @property
    def edit(self) -> str:
        """``"learn"`` or ``"project"``."""
        return "learn" if self.learning else "project"

    @property
    def role(self) -> str:
        """``"task"`` or ``"forget"``."""
        return "task" if self.learning else "forget"

    def described(self) -> dict[str, Any]:
        """Every setting, for the record."""
        guarded = {"budget": self.budget}  # what may be allowed beyond it changes no vector
        rank = None if self.rank is None else str(self.rank)
        if self.neighbours is not None:
            own = self.neighbours.described()
            own["lora_rank"] = own.pop("rank")
            return {"objective": self.objective, **own, "rank": rank, **guarded}
        found = asdict(self.rounds)
        found["round_scale"] = found.pop("scale")  # the edit has one of its own
        return {
            **found,
            "learning_rate": self.rounds.rate,
            "rank": rank,
            "keep_rank": str(self.keep_rank),
            "threshold": self.threshold,
            **guarded,
        }


@dataclass(frozen=True)
class Request:
    """Everything that decides the vector, read and checked.

    Attributes:
        base: The checkpoint.
        tokenizer: Its tokenizer.
        sets: The data.
        keep: Vectors and statistics to keep.
        search: How to find the change.
        selection: Which tensors; its scales are the edit's.
        names: The matrices.
        device: Where to train.
        lineage: What the check of the vectors' and statistics' kinship found.
    """

    base: Checkpoint
    tokenizer: Any
    sets: Sets
    keep: Keep
    search: Search
    selection: Selection
    names: tuple[str, ...]
    device: torch.device
    lineage: tuple[Mapping[str, Any], ...]

    @classmethod
    def read(
        cls,
        base: Checkpoint,
        sources: Sources,
        search: Search,
        selection: Selection,
        device: str,
        allow_unrelated: bool,
    ) -> Request:
        """Reads the data and checks what can be checked before a model is loaded.

        Raises:
            WeightSurgeryError: See :mod:`weightsurgery.errors`.
        """
        where = pick_device(device)
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
        if search.neighbours is not None:
            _check_neighbours(sources, keep, "learn" if search.learning else "strangers")
        elif not data and not search.rounds.prompts:
            raise EditError(
                "no data to keep and no prompts: nothing says what inputs look like",
                "Give data with --keep, or leave out --prompts 0.",
            )
        changes = [change for vector in keep.vectors for _, change in vector.terms]
        lineage = check_lineage(base, [*changes, *keep.inputs], allow_unrelated)
        return cls(
            base,
            tokenizer,
            sets,
            keep,
            search,
            replace(selection, scales=()),
            tuple(names),
            where,
            tuple(kin.to_dict() for kin in lineage),
        )

    @property
    def watching(self) -> bool:
        """Whether there is validation data."""
        return bool(self.sets.validation_keep or self.sets.validation_target)

    @property
    def nothing_kept(self) -> bool:
        """Whether nothing was named to keep."""
        return not (self.sets.keep or self.keep.vectors or self.keep.inputs)

    @property
    def read_places(self) -> list[Path]:
        """What is read, which no output may touch."""
        return [*folders(self._read()), *(each.path for each in self.sets.every)]

    def _read(self) -> dict[str, Input]:
        """The base, and the vectors and statistics to keep."""
        vectors = {f"keep{n}": vector for n, vector in enumerate(self.keep.vectors, 1)}
        statistics = {f"keep_inputs{n}": each for n, each in enumerate(self.keep.inputs, 1)}
        return inputs_of(self.base, vectors, statistics)

    @property
    def inputs(self) -> dict[str, Any]:
        """The record's entry for each input, with SHA-256."""
        read = self._read()

        def hashed() -> dict[str, Any]:
            entries = recorded(read, hash_files(read, cores()))
            entries["base"]["files"] |= {
                path.name: file_sha256(path) for path in tokenizer_files(self.base.path)
            }
            return entries

        entries = self.base.remember(f"inputs {sorted(map(str, files(read)))}", hashed)
        return {**entries, **self.sets.described(self.search.role)}

    @property
    def parameters(self) -> dict[str, Any]:
        """The vector's parameters, for its record."""
        return {
            "edit": self.search.edit,
            "method": "neighbours" if self.search.neighbours else "rounds from data",
            **self.search.described(),
            "selection": asdict(self.selection),
            "device": self.device.type,
            "base_samples": samples_of(self.base),
        }

    @property
    def versions(self) -> dict[str, str]:
        """Of what trains, besides what every record names."""
        packages = ["transformers", "accelerate", "tokenizers"]
        packages += ["peft"] if self.search.neighbours else []
        return versions() | {name: importlib.metadata.version(name) for name in packages}

    @property
    def digest(self) -> str:
        """All that decides the vector, as SHA-256."""
        return hashlib.sha256(json.dumps(self.identity(), sort_keys=True).encode()).hexdigest()

    def identity(self) -> Any:
        """All that decides the vector, as a record of it would hold it."""
        return json.loads(json.dumps([self.parameters, self.inputs, self.versions]))

    def check_places(self, out: Path, vector: Path, finished: bool, overwrite: bool) -> None:
        """Refuse outputs that would lose something.

        Raises:
            OutputError: See :func:`weightsurgery.checkpoint.staging.check_target`.
        """
        with output_errors(out):
            check_target(out, [*self.read_places, vector], overwrite or _resumable(out))
            if not finished:
                check_target(vector, self.read_places, overwrite)


def _check_neighbours(sources: Sources, keep: Keep, other: str) -> None:
    if keep.vectors or keep.inputs:
        label = keep.vectors[0].label if keep.vectors else keep.inputs[0].label
        raise EditError(
            f"--keep {label}: --objective neighbours keeps data sets, by what the model says of"
            " them",
            f"Keep a data set, or pass --objective {other}, which trains outside the span of"
            " vectors and statistics.",
        )
    if sources.validation_keep or sources.validation_target:
        raise EditError(
            "validation data with --objective neighbours, which ends by what it sees itself",
            f"Leave it out, or pass --objective {other}.",
        )


def _resumable(out: Path) -> bool:
    """Whether an interrupted edit of this name may be continued; the edit itself looks closer."""
    return Staging.beside(out).exists()
