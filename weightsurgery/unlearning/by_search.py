"""A search for the change that data sets ask for, as a method of the road, and its settings."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from typing_extensions import override

from weightsurgery.algebra.lowrank import Rank, RankRule
from weightsurgery.checkpoint.reader import Checkpoint
from weightsurgery.checkpoint.selection import Selection
from weightsurgery.checkpoint.stacks import input_width
from weightsurgery.errors import EditError
from weightsurgery.learning.directions import sums_bytes
from weightsurgery.learning.forget import ByNeighbours
from weightsurgery.learning.guard import BUDGET
from weightsurgery.learning.keep_span import SUMS
from weightsurgery.learning.models import halves_sooner
from weightsurgery.learning.rounds import Rounds
from weightsurgery.surgery.plan import EditPlan
from weightsurgery.unlearning.job import Job
from weightsurgery.unlearning.method import OnModel
from weightsurgery.unlearning.plan import SearchPlan, apart
from weightsurgery.unlearning.shared_plan import Shares, shared_memory
from weightsurgery.vectors.lora_files import AdapterPlan

__all__ = ["BySearch", "Search", "distinct_widths"]

# Texts of a pass, their usual length in tokens, and the positions per text that count.
_PASS, _LENGTH, _PLACES = 16, 40, 14


@dataclass(frozen=True)
class BySearch(OnModel):
    """Forget or learn by a search.

    Attributes:
        search: Its settings, the budget of harm included.
    """

    search: Search

    @property
    @override
    def seed(self) -> int:  # type: ignore[override]
        return self.search.seed

    @property
    @override
    def budget(self) -> float:  # type: ignore[override]
        return self.search.budget

    @property
    @override
    def allow_harm(self) -> bool:  # type: ignore[override]
        return self.search.allow_harm

    @override
    def plan(
        self, job: Job, edit: EditPlan | AdapterPlan, vector: Path, finished: bool
    ) -> SearchPlan:
        entries = job.base.entries
        sizes = _in_rounds(job) if self.search.neighbours is None else _by_neighbours(job, self)
        return SearchPlan(
            edit=edit,
            vector=str(vector),
            vector_bytes=4 * sizes["trained"],
            finished=finished,
            settings={"edit": self.search.edit, **self.search.described()},
            examples=len(job.sets.examples),
            keep_examples=sum(len(dataset.examples) for dataset in job.sets.keep),
            matrices=len(job.names),
            weights=4 * sum(entry.numel for entry in entries.values()) + sizes.pop("halves", 0),
            **sizes,
        )


def _in_rounds(job: Job) -> dict[str, Any]:
    """Whole matrices, projected by the eigenvectors of their inputs."""
    trained = sum(job.base.entry(name).numel for name in job.names)
    widths = distinct_widths(job)
    eigenvectors = sum(4 * width**2 for width in widths)
    sums = min(max(SUMS, 12 * max(widths) ** 2), sum(8 * width**2 for width in widths))
    # Decomposed one by one: beside its sum a float64 copy, vectors and what LAPACK works in.
    statistics = sums + 28 * max(widths) ** 2
    # The weights before and after, and the watch's best.
    held = 3 if job.sets.watching else 2
    shares = Shares(job.names, None, held, False, widths, statistics)
    copies = held * 4 * trained
    if job.device.type == "cpu":
        statistics += eigenvectors  # of those that were decomposed before
    else:
        copies += eigenvectors
    gradients_and_moments = 3 * 4 * trained
    return {
        "trained": trained,
        "statistics": statistics,
        "eigenvectors": eigenvectors,
        "shared": shared_memory(job.base.entries, shares),
        **apart(job.device, gradients_and_moments, copies),
    }


def _by_neighbours(job: Job, method: BySearch) -> dict[str, Any]:
    """An adapter's factors."""
    assert method.search.neighbours is not None
    rank = method.search.neighbours.change_rank
    shapes = [job.base.entry(name).shape for name in job.names]
    trained = sum(min(rank, *shape) * sum(shape) for shape in shapes)
    # Factors, gradients and two moments; a look's copy.
    held = apart(job.device, 4 * 4 * trained, 4 * trained)
    return {
        "trained": trained,
        "halves": _halves(job) if halves_sooner(job.device) else 0,
        "statistics": sums_bytes(distinct_widths(job)),
        "activations": _activations(job),
        "never_knew": 0 if job.never_knew is None else _bytes(job.never_knew),
        **held,
    }


def _bytes(checkpoint: Checkpoint) -> int:
    return sum(entry.nbytes for entry in checkpoint.entries.values())


# Matrices with the same input, by the names that model families give them.
_TOGETHER = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"), ("w1", "w3"))


def distinct_widths(job: Job) -> list[int]:
    """Input widths ``n`` of a job's matrices, once for matrices that share their input."""
    widths: dict[tuple[str, str], int] = {}
    for name in job.names:
        parent, _, module = name.removesuffix(".weight").rpartition(".")
        group = next((names[0] for names in _TOGETHER if module in names), module)
        widths[parent, group] = input_width(job.base, name)
    return list(widths.values())


def _halves(job: Job) -> int:
    """Bytes of the linear layers' weights in bfloat16, which stand beside the float32 ones."""
    return 2 * sum(
        job.base.entry(name).numel for name in Selection("all-linear").resolve(job.base.entries)
    )


def _activations(job: Job) -> int:
    """Bytes of activations for a backward pass over texts of usual length, float32.

    A trained linear layer holds its inputs; outputs of any of them are held by what follows, and
    the norms, rotations and gates between them hold about half as much again. Logits count three
    times, with their softmax and gradient.
    """
    tokens, places = _PASS * _LENGTH, _PASS * _PLACES
    config = job.base.config
    vocabulary = int(config.get("text_config", config).get("vocab_size", 0))
    inputs = sum(input_width(job.base, name) for name in job.names)
    outputs = 0
    for name in Selection("all-linear").resolve(job.base.entries):
        if len(job.base.entry(name).shape) > 1:
            outputs += sum(job.base.entry(name).shape[-2:]) - input_width(job.base, name)
    layers = inputs + outputs
    return 4 * (tokens * int(1.5 * layers) + 3 * places * vocabulary)


@dataclass(frozen=True)
class Search:
    """Settings of a search.

    Attributes:
        rounds: See :class:`weightsurgery.learning.rounds.Rounds`.
        neighbours: Forget, or learn where `rounds` says so, by neighbours instead; see
            :mod:`weightsurgery.learning.forget`.
        rank: Truncate the change by this rule; None for as it is.
        keep_rank: Number of factors to keep of a vector.
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
        """Which matrices are changed by default.

        To forget by neighbours those with which MLPs end, where facts are looked up (Geva et al.,
        arXiv 2012.14913; Meng et al., 2202.05262); but what was taught went into all of them.
        """
        if self.neighbours is None or self.learning or self.neighbours.take_back:
            return "all-linear"
        return "mlp-out"

    @property
    def objective(self) -> str:
        """The objective of the search."""
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

    def described(self) -> dict[str, Any]:
        """Every setting, for the record."""
        guarded = {"budget": self.budget}  # what may be allowed beyond it changes no vector
        rank = None if self.rank is None else str(self.rank)
        if self.neighbours is not None:
            settings = self.neighbours.described()
            settings["lora_rank"] = settings.pop("rank")
            return {"objective": self.objective, **settings, "rank": rank, **guarded}
        return {
            **asdict(self.rounds),
            "learning_rate": self.rounds.rate,
            "rank": rank,
            "keep_rank": str(self.keep_rank),
            "threshold": self.threshold,
            **guarded,
        }
