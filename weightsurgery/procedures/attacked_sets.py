"""The data sets that several models are asked, as each model's tokenizer reads them."""

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
        name: The set's; see `evaluate.set_names`.
        path: As given.
        role: `forget` or `keep`.
        number: Of the set.
        rows: Of the set, from 0.
        part: What part it is; "" for a whole set.
    """

    name: str
    path: str
    role: str
    number: int
    rows: tuple[int, ...]
    part: str = ""

    @property
    def examples(self) -> int:
        """How many."""
        return len(self.rows)

    @property
    def label(self) -> str:
        """What to call it in messages."""
        return f"{self.name} ({self.part})" if self.part else self.name


@dataclass(frozen=True)
class ScoredSets:
    """Sets, read by the tokenizer of each model.

    Attributes:
        directories: Per model where it is.
        examples: Per model every set.
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
        found = {
            name: [read_examples(file, tokenizer) for file in files]
            for name, tokenizer in tokenizers.items()
        }
        first, *others = found.values()
        for again in others:
            check_same(first, again, names)
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
        return cls(models, found, parts, next(iter(tokenizers.values())))

    @property
    def sets(self) -> Sequence[Sequence[Example]]:
        """Every set, as the first model's tokenizer reads it."""
        return next(iter(self.examples.values()))

    def divided(self, given: Sequence[Sequence[int]]) -> ScoredSets:
        """The same, with the first sets in two: the rows given, and the others."""
        parts = []
        for part in self.parts:
            if part.number >= len(given):
                parts.append(part)
                continue
            taken = set(given[part.number])
            for word, rows in (
                ("trained on", tuple(row for row in part.rows if row in taken)),
                ("held out", tuple(row for row in part.rows if row not in taken)),
            ):
                if rows:
                    parts.append(replace(part, rows=rows, part=word))
        return replace(self, parts=parts)

    def parts_of(self, model: str) -> Iterator[tuple[SetPart, list[Example]]]:
        """What a model is asked, part by part."""
        for part in self.parts:
            rows = self.examples[model][part.number]
            yield part, [rows[row] for row in part.rows]
