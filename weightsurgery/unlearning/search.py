"""Settings by which ``ws project`` and ``ws learn`` search for a change from data sets."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from weightsurgery.algebra.lowrank import Rank, RankRule
from weightsurgery.errors import EditError
from weightsurgery.learning.forget import ByNeighbours
from weightsurgery.learning.guard import BUDGET
from weightsurgery.learning.rounds import Rounds

__all__ = ["Search"]


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
        arXiv 2012.14913; Meng et al., 2202.05262).
        """
        return "mlp-out" if self.neighbours is not None and not self.learning else "all-linear"

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
