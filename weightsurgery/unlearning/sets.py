"""The data sets of an edit: to forget or learn, to keep and to validate on, read and compared."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from weightsurgery.errors import DataError
from weightsurgery.learning.data import Example
from weightsurgery.learning.places import described, roles
from weightsurgery.learning.reading import read

__all__ = ["FileSet", "Sets"]


@dataclass(frozen=True)
class FileSet:
    """A data set, read.

    Attributes:
        name: As given.
        path: Where it is.
        files: SHA-256 by file name; more than one where it is a directory.
        examples: At least one.
        part: Which split of the file, if it has more than one.
        facts: How it was read, for the record; see :class:`weightsurgery.learning.reading.Reading`.
    """

    name: str
    path: Path
    files: Mapping[str, str]
    examples: tuple[Example, ...]
    part: str | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, name: str, tokenizer: Any) -> FileSet:
        """Read a file; see :func:`weightsurgery.learning.reading.read`.

        Raises:
            DataError: It cannot be read.
        """
        reading = read(name, tokenizer)
        source = reading.place
        path = Path(os.path.realpath(source.root))
        files = source.digests()
        return cls(name, path, files, tuple(reading.examples), source.part, reading.facts)

    @property
    def sha256(self) -> str:
        """Of the file; of a directory's names and contents."""
        if len(self.files) == 1:
            (digest,) = self.files.values()
            return digest
        lines = "".join(f"{file} {digest}\n" for file, digest in self.files.items())
        return hashlib.sha256(lines.encode()).hexdigest()

    @property
    def described(self) -> dict[str, Any]:
        """The record's entry."""
        return described(self.name, self.files, self.facts)

    def same_as(self, other: FileSet) -> bool:
        """Whether the other is this file, or a copy of it."""
        if self.sha256 != other.sha256:
            return self.path == other.path and self.path.is_file()
        return self.part == other.part


@dataclass(frozen=True)
class Sets:
    """All data sets of an edit.

    Attributes:
        target: What to forget or to learn.
        keep: What to keep.
        validation_target: What to forget or to learn, for validation; at most one.
        validation_keep: What should stay, for validation; the edit does not see it.
        unseen: What the model never saw.
    """

    target: tuple[FileSet, ...] = ()
    keep: tuple[FileSet, ...] = ()
    validation_target: tuple[FileSet, ...] = ()
    validation_keep: tuple[FileSet, ...] = ()
    unseen: tuple[FileSet, ...] = ()

    @classmethod
    def read(
        cls,
        tokenizer: Any,
        *,
        target: Sequence[str] = (),
        keep: Sequence[str] = (),
        validation_target: Sequence[str] = (),
        validation_keep: Sequence[str] = (),
        unseen: Sequence[str] = (),
        apart: bool = True,
    ) -> Sets:
        """Read all of them, and check that they are apart.

        Args:
            tokenizer: Its chat template renders conversations.
            target: See above, by name; so are the others.
            keep: See above.
            validation_target: See above.
            validation_keep: See above.
            unseen: See above.
            apart: Refuse data that are both to go and to stay, or both seen and validated on.

        Raises:
            DataError: One cannot be read; or, to be apart, is named twice, an example is both to
                go and to stay, validation data is what the edit sees, or unseen data is not.
        """
        named = (target, keep, validation_target, validation_keep, unseen)
        sets = cls(*(tuple(FileSet.read(name, tokenizer) for name in role) for role in named))
        if apart:
            sets._check_files()
            sets._check_examples()
            sets._check_unseen()
        return sets

    @property
    def examples(self) -> tuple[Example, ...]:
        """What to forget or to learn."""
        return tuple(example for dataset in self.target for example in dataset.examples)

    @property
    def watching(self) -> bool:
        """Whether there is validation data."""
        return bool(self.validation_keep or self.validation_target)

    @property
    def every(self) -> Iterator[FileSet]:
        """All of them."""
        yield from (*self.target, *self.keep)
        yield from (*self.validation_target, *self.validation_keep, *self.unseen)

    def described(self, edit: str) -> dict[str, dict[str, Any]]:
        """The record's entries, by role.

        Args:
            edit: The edit they are for: ``project``, ``learn``, ``unlearn`` or ``identify``.
        """
        if edit == "identify":
            return {
                key: dataset.described
                for role, sets in (
                    ("data", self.target),
                    ("keep", self.keep),
                    ("validation", self.validation_target),
                )
                for key, dataset in zip(roles(role, [s.name for s in sets]), sets, strict=True)
            }
        role, entries = "task" if edit == "learn" else "forget", {}
        for number, dataset in enumerate(self.target, 1):
            entries[role if len(self.target) == 1 else f"{role}.{number}"] = dataset.described
        for key, sets in (
            ("keep_data", self.keep),
            (f"validation_{role}", self.validation_target),
            ("validation_keep", self.validation_keep),
            ("unseen", self.unseen),
        ):
            for number, dataset in enumerate(sets, 1):
                entries[f"{key}{number}"] = dataset.described
        return entries

    def _check_files(self) -> None:
        visible = [*self.target, *self.keep]
        for number, dataset in enumerate(visible):
            for other in visible[:number]:
                if dataset.same_as(other):
                    raise DataError(
                        f"{dataset.name}: the same data as {other.name}", "Name each data set once."
                    )
        for dataset in (*self.validation_keep, *self.validation_target):
            refused = self.keep if dataset in self.validation_target else visible
            for other in refused:
                if dataset.same_as(other):
                    raise DataError(
                        f"{dataset.name}: validation data, but the edit sees it as {other.name}",
                        "Scores on what the edit sees prove nothing: hold other examples back.",
                    )
        for number, dataset in enumerate(self.validation_keep):
            for other in (*self.validation_target, *self.validation_keep[:number]):
                if dataset.same_as(other):
                    raise DataError(
                        f"{dataset.name}: the same data as {other.name}", "Name each data set once."
                    )

    def _check_unseen(self) -> None:
        for dataset in self.unseen:
            for other in (*self.target, *self.keep):
                if dataset.same_as(other):
                    raise DataError(
                        f"{dataset.name}: named as unseen, but it is {other.name}",
                        "Give data that the model never saw.",
                    )

    def _check_examples(self) -> None:
        targets = {_key(example) for dataset in self.target for example in dataset.examples}
        for dataset in (*self.keep, *self.validation_keep):
            both = [example for example in dataset.examples if _key(example) in targets]
            if both:
                raise DataError(
                    f"{dataset.name}: {len(both)} of {len(dataset.examples)} examples are also in"
                    f" {self.target[0].name}, {_key(both[0])[:60]!r} for one",
                    "Nothing can go and stay at once: take them out of one of the two.",
                )


def _key(example: Example) -> str:
    """What tells an example from others: its prompt, or a text as a whole."""
    return example.prompt or example.completion
