"""Options that say how many factors, and what a discriminating edit keeps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from weightsurgery.cli.helped import among
from weightsurgery.cli.panels import subspace_option

if TYPE_CHECKING:
    from weightsurgery.algebra.lowrank import RankRule

__all__ = ["KeepRank", "Share", "Truncate", "rank_rule"]


@dataclass(frozen=True)
class Truncate:
    """How many factors."""

    rank: Annotated[
        str | None,
        typer.Option(
            metavar="K|auto",
            help="Factors of each matrix, or auto. That is by the Gavish-Donoho threshold.",
        ),
    ] = None
    energy: Annotated[
        float | None,
        subspace_option(
            metavar="E", help="Instead: as many factors as hold this fraction of the squared norm."
        ),
    ] = None

    def rule(self) -> RankRule | None:
        """As the library's rule; None if neither option is given."""
        return rank_rule(self.rank, self.energy, "--rank")


KeepRank = Annotated[
    str | None,
    subspace_option(
        metavar="K|auto", help="Factors of each task to keep. Default: as for the task itself."
    ),
]


@dataclass(frozen=True)
class Share:
    """What a discriminating edit keeps, and how."""

    keep: Annotated[
        list[str] | None,
        typer.Option(
            metavar="DATA|VECTOR|STATS",
            help="What to keep; repeatable. A data set, a change of BASE, or activation statistics"
            " (ws identify --mode activations); STATS:2 weights its tokens twice.",
        ),
    ] = None
    side: Annotated[
        str,
        subspace_option(
            autocompletion=among("algebra.discriminate:SIDES"),
            help="right (keep what W does to the keep inputs), left (no change along the keep"
            " outputs), both, shared, frobenius, or soft (right by a ridge: less of what the keep"
            " vectors moved more; they alone, no statistics).",
        ),
    ] = "right"
    basis: Annotated[
        str,
        subspace_option(
            autocompletion=among("algebra.discriminate:BASES"),
            help="joint (the span of all keep tasks at once) or sum (one after another).",
        ),
    ] = "joint"
    keep_rank: KeepRank = None
    epsilon: Annotated[
        float | None,
        subspace_option(
            help="Ridge of activation statistics, or of side soft: the smaller, the more of what"
            " the keep inputs would feel is held back; 0 leaves their span alone. Default: 0.001;"
            " 0.03 for side soft."
        ),
    ] = None


def rank_rule(rank: str | None, energy: float | None, option: str) -> RankRule | None:
    """A rank rule from its options."""
    from weightsurgery.algebra.lowrank import DonohoGavish, Energy, Rank
    from weightsurgery.errors import EditError

    if rank is not None and energy is not None:
        raise EditError(f"both {option} and an energy", "Give one of them.")
    if energy is not None:
        return Energy(energy)
    if rank is None:
        return None
    if rank == "auto":
        return DonohoGavish()
    try:
        return Rank(int(rank))
    except ValueError:
        raise EditError(f"{option} {rank}", "Give a whole number, or auto.") from None
