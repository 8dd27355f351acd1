"""The systems of the unlearning survey (arXiv 2311.15766) and their successors, a row each.

A row is either an unlearner, which trains on a loss of its own
(:mod:`weightsurgery.learning.unlearners`), or a function that finds the change in another way
(:mod:`weightsurgery.unlearning.merging`). Both take a
:class:`~weightsurgery.unlearning.change_request.ChangeRequest` and leave the model as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

from torch import Tensor

from weightsurgery.algebra.lowrank import LowRank
from weightsurgery.checkpoint.selection import Selection
from weightsurgery.errors import EditError
from weightsurgery.learning.settings import Training
from weightsurgery.learning.unlearners import UNLEARNERS, Unlearner, settings_of, train_unlearner
from weightsurgery.unlearning.change_request import ChangeRequest
from weightsurgery.unlearning.merging import MERGERS, settled
from weightsurgery.unlearning.tuned import merge

__all__ = ["SYSTEMS", "Made", "System", "system"]


@dataclass(frozen=True)
class Made:
    """What a system made of a request.

    Attributes:
        change: ``W' − W`` by parameter, on the CPU: a tensor, or the factors of an adapter.
        notes: What the record should say of how it went.
    """

    change: Mapping[str, Tensor | LowRank]
    notes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class System:
    """A system that forgets from data.

    Attributes:
        about: What it does, in a line.
        source: Where it comes from.
        change: Does it.
        settled: All its settings, by name, from those that are given; refuses senseless ones.
        training: How it trains unless told otherwise: as published, as far as that was found.
        keeps: Whether it works on data to keep, with some settings.
        needs_unseen: Whether it measures by data the model never saw.
        adapter_rank: Rank of the adapter, for a system that is one.
        models: How many copies of the trained parameters it holds for models that stand still.
        takes_rank: Whether it can train a LoRA adapter where the request names a rank.
        goes_on: Whether a killed training of it goes on where it was.
    """

    about: str
    source: str
    change: Callable[[ChangeRequest], Made]
    settled: Callable[[Mapping[str, Any]], dict[str, Any]]
    training: Training
    keeps: Callable[[Mapping[str, Any]], bool]
    needs_unseen: bool = False
    adapter_rank: int | None = None
    models: int = 0
    takes_rank: bool = True
    goes_on: bool = False


def _trained(name: str, about: str) -> System:
    """A row of an unlearner."""
    kind = UNLEARNERS[name]
    return System(
        about,
        kind.paper,
        partial(_train, kind),
        lambda given: asdict(settings_of(kind, given)),
        kind.published,
        lambda settings: kind.keeps(settings_of(kind, settings)),
        kind.needs_unseen,
        kind.adapter_rank,
        kind.models,
        goes_on=True,
    )


def _train(kind: type[Unlearner], request: ChangeRequest) -> Made:
    found = train_unlearner(
        kind,
        request.model,
        request.tokenizer,
        request.forget,
        request.keep,
        request.training,
        settings_of(kind, request.settings),
        selection=Selection(include=request.names),
        unseen=request.unseen,
        lora_rank=request.lora_rank,
        chosen=request.chosen,
        progress=request.progress,
        workspace=request.workspace,
    )
    return Made(found.change, found.notes)


def _merged(name: str) -> System:
    """A row of a merging system."""
    merger = MERGERS[name]
    return System(
        merger.about,
        merger.source,
        lambda request: Made(*merge(name, request)),
        partial(settled, name),
        Training(learning_rate=merger.learning_rate, batch_size=32),
        # Without a scale the published recipe finds one, which needs something to hold on to.
        lambda settings: merger.needs_keep or settings["scale"] is None,
        adapter_rank=merger.adapter_rank,
        takes_rank=merger.takes_rank,
    )


SYSTEMS: Mapping[str, System] = {
    "gradient-ascent": _trained("gradient-ascent", "−CE(forget)"),
    "gradient-difference": _trained("gradient-difference", "−CE(forget) + CE(keep)"),
    "kul": _trained("kul", "gradient ascent until the request is as strange as unseen data"),
    "npo": _trained("npo", "negative preference; retain=gdr or klr adds a term of what to keep"),
    "simnpo": _trained("simnpo", "negative preference by length, and CE(keep)"),
    "kga": _trained("kga", "the gap to a model that knows it becomes that of unseen data"),
    "eul": _trained("eul", "an adapter that leaves the model on forget and stays on keep"),
    "au": _trained("au", "the model's own labels less what a reinforced one says more strongly"),
    "rmu": _trained("rmu", "hidden states on forget steered to a random vector, held on keep"),
    **{name: _merged(name) for name in MERGERS},
}
"""Every system by the name of ``ws unlearn --method`` and ``ws bench --method``."""


def system(name: str) -> System:
    """A row by its name.

    Raises:
        EditError: There is none.
    """
    if name not in SYSTEMS:
        raise EditError(
            f"method {name!r}", f"Choose one of: {', '.join(SYSTEMS)}; 'ws unlearn --list' tells."
        )
    return SYSTEMS[name]
