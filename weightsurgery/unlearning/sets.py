"""The data sets of an edit: what to forget or learn, to keep, and to watch, read and compared."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from weightsurgery.errors import DataError
from weightsurgery.learning.data import Example
from weightsurgery.learning.reading import read
from weightsurgery.learning.recorded import described, roles

__all__ = ["FileSet", "Sets"]


@dataclass(frozen=True)
class FileSet:
    """A data set, read.

    Attributes:
        name: As given.
        path: Where it is.
        files: SHA-256 by file name; several where it is a directory.
        examples: At least one.
        part: Which split of the file, if it has several.
        facts: What was made of it; see :class:`weightsurgery.learning.reading.Reading`.
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
        found = read(name, tokenizer)
        place = found.place
        root = Path(os.path.realpath(place.root))
        files = place.digests()
        return cls(name, root, files, tuple(found.examples), place.part, found.facts)

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
        validation_target: Of what to forget or to learn, what is looked at; at most one.
        validation_keep: What should stay, and the edit does not see.
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
        """Read all of them, and hold them against each other.

        Args:
            tokenizer: Its chat template renders conversations.
            target: See above, by name; so are the others.
            keep: See above.
            validation_target: See above.
            validation_keep: See above.
            unseen: See above.
            apart: What goes, stays and is looked at must be apart.

        Raises:
            DataError: One cannot be read; or, to be apart, is named twice, an example is both to
                go and to stay, validation data is what the edit sees, or unseen data is not.
        """
        given = (target, keep, validation_target, validation_keep, unseen)
        found = cls(*(tuple(FileSet.read(name, tokenizer) for name in role) for role in given))
        if apart:
            found._check_files()
            found._check_examples()
            found._check_unseen()
        return found

    @property
    def examples(self) -> tuple[Example, ...]:
        """What to forget or to learn."""
        return tuple(each for rows in self.target for each in rows.examples)

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
        """The record's entry for each.

        Args:
            edit: What is made of them: ``project``, ``learn``, ``unlearn`` or ``identify``.
        """
        if edit == "identify":
            return {
                key: each.described
                for role, sets in (
                    ("data", self.target),
                    ("keep", self.keep),
                    ("validation", self.validation_target),
                )
                for key, each in zip(roles(role, [s.name for s in sets]), sets, strict=True)
            }
        role, found = "task" if edit == "learn" else "forget", {}
        for number, each in enumerate(self.target, 1):
            found[role if len(self.target) == 1 else f"{role}.{number}"] = each.described
        for key, sets in (
            ("keep_data", self.keep),
            (f"validation_{role}", self.validation_target),
            ("validation_keep", self.validation_keep),
            ("unseen", self.unseen),
        ):
            for number, each in enumerate(sets, 1):
                found[f"{key}{number}"] = each.described
        return found

    def _check_files(self) -> None:
        seen = [*self.target, *self.keep]
        for number, each in enumerate(seen):
            for other in seen[:number]:
                if each.same_as(other):
                    raise DataError(
                        f"{each.name}: the same data as {other.name}",
                        "Name each data set once.",
                    )
        for each in (*self.validation_keep, *self.validation_target):
            refused = self.keep if each in self.validation_target else seen
            for other in refused:
                if each.same_as(other):
                    raise DataError(
                        f"{each.name}: validation data, but the edit sees it as {other.name}",
                        "Scores on what the edit sees prove nothing: hold other examples back.",
                    )
        for number, each in enumerate(self.validation_keep):
            for other in (*self.validation_target, *self.validation_keep[:number]):
                if each.same_as(other):
                    raise DataError(
                        f"{each.name}: the same data as {other.name}", "Name each data set once."
                    )

    def _check_unseen(self) -> None:
        for each in self.unseen:
            for other in (*self.target, *self.keep):
                if each.same_as(other):
                    raise DataError(
                        f"{each.name}: named as unseen, but it is {other.name}",
                        "Give data that the model never saw.",
                    )

    def _check_examples(self) -> None:
        going = {_key(example) for each in self.target for example in each.examples}
        for each in (*self.keep, *self.validation_keep):
            both = [example for example in each.examples if _key(example) in going]
            if both:
                raise DataError(
                    f"{each.name}: {len(both)} of {len(each.examples)} examples are also in"
                    f" {self.target[0].name}, {_key(both[0])[:60]!r} for one",
                    "Nothing can go and stay at once: take them out of one of the two.",
                )


def _key(example: Example) -> str:
    """What tells an example from others: its prompt, or a text as a whole."""
    return example.prompt or example.completion
