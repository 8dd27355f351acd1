"""What an attack is scored on, and its result: a checkpoint and a control, before and after."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from weightsurgery.learning.data import Example, read_examples
from weightsurgery.learning.evaluate import check_same, estimates, set_names
from weightsurgery.learning.intervals import Estimate, Measurements, Resampling, estimate_combined
from weightsurgery.learning.metric_names import METRICS
from weightsurgery.learning.models import load_tokenizer

__all__ = [
    "Attack",
    "AttackedModel",
    "AttackedSet",
    "ScoredSets",
    "SetPart",
    "States",
    "attacked_sets",
]

States = dict[str, list[dict[str, Measurements]]]
"""Per state of a model ("before", then the attacks' names) the measurements of every part."""


@dataclass(frozen=True)
class AttackedModel:
    """One model's scores on one set, before and after an attack.

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
        examples: Number of examples.
        checkpoint: The checkpoint's scores.
        control: The control's scores; None without one.
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
    """The result of an attack.

    Attributes:
        kind: `relearn` or `quantize`.
        checkpoint: As given.
        against: The control, as given.
        settings: Settings of the attack, by name.
        attacks: Names of the attacks, in order.
        sets: First those to forget, then those to keep.
        trained_on: Per set to forget, or data set of the attacker's own, the numbers, from 1, of
            the examples that were trained on.
        layers: Number of linear layers of the checkpoint that were rounded; 0 for relearning.
        n: Length of the n-grams of `el`.
        require_end: Whether an exact match had to end with EOS.
        seed: Of the split, of the order of training, and of the bootstrap.
        resamples: Of the bootstrap.
        reference: What forget quality is measured against, as given; None without.
        forget_quality: Per model (`checkpoint`, `control`) and state (`before`, then the attacks)
            the p-value over the rows to forget that the attacker does not have; None without
            `reference`.
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
    reference: str | None = None
    forget_quality: Mapping[str, Mapping[str, float]] | None = None


def attacked_sets(
    sets: ScoredSets, measured: Mapping[str, States], attacks: Sequence[str], resampling: Resampling
) -> tuple[AttackedSet, ...]:
    """Every part before and after, with intervals of a paired bootstrap.

    Args:
        sets: The scored sets.
        measured: Measurements of `checkpoint` and, with one, `control`.
        attacks: Names of the states but `before`.
        resampling: The bootstrap.
    """
    return tuple(
        _compared_set(part, number, measured, attacks, resampling)
        for number, part in enumerate(sets.parts)
    )


def _compared_set(
    part: SetPart,
    number: int,
    measured: Mapping[str, States],
    attacks: Sequence[str],
    resampling: Resampling,
) -> AttackedSet:
    models = {
        name: {state: row_measurements[number] for state, row_measurements in states.items()}
        for name, states in measured.items()
    }
    checkpoint, control = models["checkpoint"], models.get("control")
    attacked = AttackedSet(
        part.name, part.path, part.role, part.part, part.examples,
        _attacked_model(checkpoint, attacks, resampling),
    )  # fmt: skip
    if control is None:
        return attacked
    return AttackedSet(
        part.name, part.path, part.role, part.part, part.examples, attacked.checkpoint,
        _attacked_model(control, attacks, resampling),
        {
            attack: _differences(
                [checkpoint["before"], checkpoint[attack], control["before"], control[attack]],
                lambda before, after, before_, after_: (after - before) - (after_ - before_),
                resampling,
            )
            for attack in attacks
        },
    )  # fmt: skip


def _attacked_model(
    states: Mapping[str, Mapping[str, Measurements]], attacks: Sequence[str], resampling: Resampling
) -> AttackedModel:
    return AttackedModel(
        estimates(states["before"], resampling),
        {attack: estimates(states[attack], resampling) for attack in attacks},
        {
            attack: _differences(
                [states["before"], states[attack]], lambda before, after: after - before, resampling
            )
            for attack in attacks
        },
    )


def _differences(
    states: Sequence[Mapping[str, Measurements]],
    combine: Callable[..., float],
    resampling: Resampling,
) -> dict[str, Estimate]:
    """Differences of the metrics that are shares."""
    return {
        name: estimate_combined(
            [state[name] for state in states], combine, resampling, METRICS[name].transform
        )
        for name in states[0]
        if METRICS[name].share
    }


@dataclass(frozen=True)
class SetPart:
    """A set or a part of it.

    Attributes:
        name: Of the set; see `evaluate.set_names`.
        path: As given.
        role: `forget` or `keep`.
        number: Index of the set.
        rows: Row indices in the set, from 0.
        part: Name of the part; "" for a whole set.
    """

    name: str
    path: str
    role: str
    number: int
    rows: tuple[int, ...]
    part: str = ""

    @property
    def examples(self) -> int:
        """Number of examples."""
        return len(self.rows)

    @property
    def label(self) -> str:
        """Name for messages."""
        return f"{self.name} ({self.part})" if self.part else self.name


@dataclass(frozen=True)
class ScoredSets:
    """Sets, read by the tokenizers of all models.

    Attributes:
        directories: Directory of every model.
        examples: Per model its reading of every set.
        parts: What is scored, in order.
        tokenizer: Of the first model.
    """

    directories: Mapping[str, Path]
    examples: Mapping[str, Sequence[Sequence[Example]]]
    parts: Sequence[SetPart]
    tokenizer: Any

    @classmethod
    def read(
        cls, models: Mapping[str, Path], forget: Sequence[str | Path], keep: Sequence[str | Path]
    ) -> ScoredSets:
        """Read every set for every model: a fault in the last should not cost an attack.

        Raises:
            DataError: A set cannot be read, or differs between the models.
            SourceError: A tokenizer cannot be loaded.
        """
        files = [*forget, *keep]
        names = set_names(files)
        tokenizers = {name: load_tokenizer(directory) for name, directory in models.items()}
        examples = {
            name: [read_examples(file, tokenizer) for file in files]
            for name, tokenizer in tokenizers.items()
        }
        first, *others = examples.values()
        for other in others:
            check_same(first, other, names)
        parts = [
            SetPart(
                name,
                str(file),
                "forget" if number < len(forget) else "keep",
                number,
                tuple(range(len(rows))),
            )
            for number, (name, file, rows) in enumerate(zip(names, files, first, strict=True))
        ]
        return cls(models, examples, parts, next(iter(tokenizers.values())))

    @property
    def sets(self) -> Sequence[Sequence[Example]]:
        """Every set, as the first model's tokenizer reads it."""
        return next(iter(self.examples.values()))

    def divided(self, numbers: Sequence[Sequence[int]]) -> ScoredSets:
        """The same, with the first sets divided: the given row numbers, and the others."""
        parts = []
        for part in self.parts:
            if part.number >= len(numbers):
                parts.append(part)
                continue
            taken = set(numbers[part.number])
            for word, rows in (
                ("trained on", tuple(row for row in part.rows if row in taken)),
                ("held out", tuple(row for row in part.rows if row not in taken)),
            ):
                if rows:
                    parts.append(replace(part, rows=rows, part=word))
        return replace(self, parts=parts)

    def parts_of(self, model: str) -> Iterator[tuple[SetPart, list[Example]]]:
        """A model's examples, part by part."""
        for part in self.parts:
            rows = self.examples[model][part.number]
            yield part, [rows[row] for row in part.rows]
