"""The validation data that a sweep chooses on, and the test data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weightsurgery.errors import DataError
from weightsurgery.learning.data import Example, read_examples
from weightsurgery.learning.evaluate import set_names
from weightsurgery.learning.places import place_of

__all__ = ["DataSet", "DataSets"]


@dataclass(frozen=True)
class DataSet:
    """A data set, read.

    Attributes:
        name: The file's name without ending, or its path where two share that.
        role: ``"forget"`` or ``"keep"``.
        examples: Its examples; at least one.
    """

    name: str
    role: str
    examples: Sequence[Example]


@dataclass(frozen=True)
class DataSets:
    """Validation and test sets; see :func:`weightsurgery.learning.data.read_examples`.

    Attributes:
        forget: What should be forgotten, for the choice.
        keep: What should stay, for the choice; at least one.
        test_forget: For the one test of the chosen cell; None for no such.
        test_keep: Likewise.
    """

    forget: str | Path
    keep: Sequence[str | Path]
    test_forget: str | Path | None = None
    test_keep: Sequence[str | Path] = ()

    def read(self, tokenizer: Any) -> tuple[list[DataSet], list[DataSet]]:
        """Read all of it: what to choose on (first the set to forget), and what to test on.

        Raises:
            DataError: A set cannot be read, is named twice, or is for choice and test both; or
                there is none to keep.
        """
        if not self.keep:
            raise DataError("no data to keep", "Name at least one set with --keep-data.")
        tests = [] if self.test_forget is None else [(self.test_forget, "forget")]
        rows = [(self.forget, "forget"), *((path, "keep") for path in self.keep)]
        split = len(rows)
        rows += [*tests, *((path, "keep") for path in self.test_keep)]
        files = [place_of(path).key for path, _ in rows]
        for number, (path, _) in enumerate(rows):
            if files[number] in files[:number]:
                chosen = number >= split and files.index(files[number]) < split
                raise DataError(
                    f"{path}: is to test what was chosen on it"
                    if chosen
                    else f"{path}: is named twice",
                    "Test on data that the choice has not seen."
                    if chosen
                    else "Name each set once, to forget or to keep.",
                )
        sets = [
            DataSet(name, role, read_examples(path, tokenizer))
            for name, (path, role) in zip(set_names([path for path, _ in rows]), rows, strict=True)
        ]
        return sets[:split], sets[split:]
