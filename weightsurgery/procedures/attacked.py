"""What an attack did: scores before and after, of a checkpoint and of a control."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from weightsurgery.learning.evaluate import estimates
from weightsurgery.learning.intervals import Estimate, Measurements, Resampling, estimate_combined
from weightsurgery.learning.scores import METRICS
from weightsurgery.procedures.attacked_sets import ScoredSets, SetPart

__all__ = ["Attack", "AttackedModel", "AttackedSet", "States", "attacked_sets"]

States = dict[str, list[dict[str, Measurements]]]
"""Per state of a model ("before", then each attack's name) what was measured on each part."""


@dataclass(frozen=True)
class AttackedModel:
    """What an attack did to one model's scores on one set.

    Attributes:
        before: Per metric the score before.
        after: Per attack and metric the score after.
        change: Per attack and metric that is a share, after less before, as a fraction.
    """

    before: Mapping[str, Estimate]
    after: Mapping[str, Mapping[str, Estimate]]
    change: Mapping[str, Mapping[str, Estimate]]


@dataclass(frozen=True)
class AttackedSet:
    """A set, or the part of it that the attacker has or has not.

    Attributes:
        name: The file's name without ending, or its path where two share that.
        path: As given.
        role: `forget` or `keep`.
        part: `trained on`, `held out`, or "" for a whole set.
        examples: How many.
        checkpoint: What the attack did to the checkpoint.
        control: What it did to the control; None without one.
        beyond: Per attack and metric that is a share: the checkpoint's change less the control's.
    """

    name: str
    path: str
    role: str
    part: str
    examples: int
    checkpoint: AttackedModel
    control: AttackedModel | None = None
    beyond: Mapping[str, Mapping[str, Estimate]] | None = None


@dataclass(frozen=True)
class Attack:
    """What an attack brought back.

    Attributes:
        kind: `relearn` or `quantize`.
        checkpoint: As given.
        against: The control, as given.
        settings: The attack's own, by name.
        attacks: Names of what was done, in order.
        sets: First those to forget, then those to keep.
        trained_on: Per set to forget the numbers, from 1, of the examples that the attacker had.
        layers: How many linear layers of the checkpoint were rounded; 0 for relearning.
        n: Length of the n-grams of `el`.
        require_end: Whether an exact match had to end with EOS.
        seed: Of the split, of the order of training, and of the bootstrap.
        resamples: Of the bootstrap.
    """

    kind: str
    checkpoint: str
    against: str | None
    settings: Mapping[str, Any]
    attacks: tuple[str, ...]
    sets: tuple[AttackedSet, ...]
    trained_on: Mapping[str, list[int]]
    layers: int
    n: int
    require_end: bool
    seed: int
    resamples: int


def attacked_sets(
    sets: ScoredSets, found: Mapping[str, States], attacks: Sequence[str], drawn: Resampling
) -> tuple[AttackedSet, ...]:
    """Every part before and after, with intervals of a paired bootstrap.

    Args:
        sets: What was asked.
        found: By `checkpoint` and, with one, `control` what was measured.
        attacks: Names of the states but `before`.
        drawn: How intervals are found.
    """
    return tuple(
        _compared_set(part, number, found, attacks, drawn) for number, part in enumerate(sets.parts)
    )


def _compared_set(
    part: SetPart,
    number: int,
    found: Mapping[str, States],
    attacks: Sequence[str],
    drawn: Resampling,
) -> AttackedSet:
    models = {
        name: {state: measured[number] for state, measured in states.items()}
        for name, states in found.items()
    }
    checkpoint, control = models["checkpoint"], models.get("control")
    made = AttackedSet(
        part.name, part.path, part.role, part.part, part.examples,
        _attacked_model(checkpoint, attacks, drawn),
    )  # fmt: skip
    if control is None:
        return made
    return AttackedSet(
        part.name, part.path, part.role, part.part, part.examples, made.checkpoint,
        _attacked_model(control, attacks, drawn),
        {
            attack: _differences(
                [checkpoint["before"], checkpoint[attack], control["before"], control[attack]],
                lambda before, after, before_, after_: (after - before) - (after_ - before_),
                drawn,
            )
            for attack in attacks
        },
    )  # fmt: skip


def _attacked_model(
    states: Mapping[str, Mapping[str, Measurements]], attacks: Sequence[str], drawn: Resampling
) -> AttackedModel:
    return AttackedModel(
        estimates(states["before"], drawn),
        {attack: estimates(states[attack], drawn) for attack in attacks},
        {
            attack: _differences(
                [states["before"], states[attack]], lambda before, after: after - before, drawn
            )
            for attack in attacks
        },
    )


def _differences(
    states: Sequence[Mapping[str, Measurements]],
    combine: Callable[..., float],
    drawn: Resampling,
) -> dict[str, Estimate]:
    """Of the metrics that are shares."""
    return {
        name: estimate_combined(
            [each[name] for each in states], combine, drawn, METRICS[name].transform
        )
        for name in states[0]
        if METRICS[name].share
    }
