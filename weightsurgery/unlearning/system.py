"""What a method of ``ws unlearn`` says of itself; reading it loads no model and no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from weightsurgery.learning.settings import Training
from weightsurgery.learning.unlearners.settings import NoSettings

if TYPE_CHECKING:
    from torch import Tensor

    from weightsurgery.algebra.lowrank import LowRank
    from weightsurgery.unlearning.change_request import ChangeRequest

__all__ = ["System", "SystemResult"]


@dataclass(frozen=True)
class SystemResult:
    """What a system made of a request.

    Attributes:
        change: ``W' − W`` by parameter, on the CPU: a tensor, or the factors of an adapter.
        notes: What the record should say of how it went.
    """

    change: Mapping[str, Tensor | LowRank]
    notes: Mapping[str, Any] = field(default_factory=dict)


class System:
    """A system that forgets from data.

    Attributes:
        name: As it is called on the command line.
        about: What it does, in a line.
        paper: Where it comes from.
        Settings: Its own settings, a dataclass, which refuses senseless ones.
        published: How it trains unless told otherwise: as published, as far as that was found.
        needs_unseen: Whether it measures by data the model never saw.
        adapter_rank: Rank of the adapter, for a system that is one.
        references: How many frozen references it holds, each a copy of the trained parameters.
        takes_rank: Whether it can train a LoRA adapter where the request names a rank.
        goes_on: Whether a killed training of it goes on where it was.
        bench: What the bench tries of it.
    """

    name: ClassVar[str] = ""
    about: ClassVar[str] = ""
    paper: ClassVar[str] = ""
    Settings: ClassVar[type] = NoSettings
    published: ClassVar[Training] = Training()
    needs_unseen: ClassVar[bool] = False
    adapter_rank: ClassVar[int | None] = None
    references: ClassVar[int] = 0
    takes_rank: ClassVar[bool] = True
    goes_on: ClassVar[bool] = False
    bench: ClassVar[Sequence[Any]] = ()

    @classmethod
    def keeps(cls, settings: Any) -> bool:
        """Whether it works on data to keep, with these settings."""
        raise NotImplementedError

    @classmethod
    def change(cls, request: ChangeRequest) -> SystemResult:
        """Find the change; the model is as before in the end, to the bit."""
        raise NotImplementedError
