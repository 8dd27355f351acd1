"""The data sets that models are scored on, as their tokenizers read them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from weightsurgery.learning.data import Example, read_examples
from weightsurgery.learning.evaluate import check_same, set_names
from weightsurgery.learning.models import load_tokenizer

__all__ = ["ScoredSets", "SetPart"]


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
        cls,
        models: Mapping[str, Path],
        forget: Sequence[str | Path],
        keep: Sequence[str | Path],
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
