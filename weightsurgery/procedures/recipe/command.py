"""What a command takes, and its settings as a command line and back."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from weightsurgery.errors import RecipeError

__all__ = ["Field", "RecipeCommand"]


@dataclass(frozen=True)
class Field:
    """An argument or option.

    Attributes:
        name: The parameter.
        keys: Its long names without dashes, as on the command line; recipes use the first.
        kind: ``str``, ``int``, ``float`` or ``bool``.
        many: Whether it takes several values.
        required: Whether it must be given.
        default: What it is where it is not given.
        argument: Whether it is an argument, not an option.
        short: Its letter; "" for none.
        off: The long name that says no; "" for none.
        in_recipes: Whether it is part of the edit; others belong to one run of it.
        writes: Whether it names a place that is written.
        former: Whether it is the former name of another, read yet not written.
    """

    name: str
    keys: tuple[str, ...]
    kind: type
    many: bool = False
    required: bool = False
    default: Any = None
    argument: bool = False
    short: str = ""
    off: str = ""
    in_recipes: bool = True
    writes: bool = False
    former: bool = False

    @property
    def key(self) -> str:
        """What recipes call it."""
        return self.keys[0]

    def read(self, given: Any) -> Any:
        """A value from what a command line gives: text, several texts, or yes and no.

        Raises:
            ValueError: Not of this kind.
        """
        if self.many:
            return [self._one(text) for text in given]
        return given if self.kind is bool else self._one(given)

    def _one(self, text: str) -> Any:
        value = self.kind(text)
        if self.kind is float and not math.isfinite(value):
            raise ValueError(f"{text} is no finite number")
        return value

    def words(self, value: Any) -> list[str]:
        """An option as words of a command line."""
        option = f"-{self.short}" if self.short else f"--{self.key}"
        if self.kind is bool:
            return [option] if value else [f"--{self.off}"] if self.off else []
        return [
            word for each in (value if self.many else [value]) for word in (option, _word(each))
        ]


def _word(value: Any) -> str:
    return repr(value).removesuffix(".0") if isinstance(value, float) else str(value)


@dataclass(frozen=True)
class RecipeCommand:
    """A command that writes an output.

    Attributes:
        name: As in ``ws NAME``.
        fields: All it takes, in its order.
        given: Reads the words that follow ``ws NAME``, as the command line does: texts by
            parameter name, of flags yes or no; ValueError where they are none of this command.
    """

    name: str
    fields: tuple[Field, ...]
    given: Callable[[Sequence[str]], Mapping[str, Any]]

    def field(self, key: str) -> Field | None:
        """The field of a long name."""
        return next((each for each in self.fields if key in each.keys), None)

    def line(self, values: Mapping[str, Any]) -> list[str]:
        """The command line of these values, by parameter name; what is as by default is left out.

        Arguments come first, options in the order of ``values``.
        """
        by_name = {each.name: each for each in self.fields}
        arguments: list[str] = []
        for each in self.fields:
            if each.argument and each.name in values:
                value = values[each.name]
                arguments += map(_word, value if each.many else [value])
        options: list[str] = []
        for name, value in values.items():
            field = by_name[name]
            if not field.argument and (field.required or value != field.default):
                options += field.words(value)
        if any(word.startswith("-") for word in arguments):
            return ["ws", self.name, *options, "--", *arguments]
        return ["ws", self.name, *arguments, *options]

    def parsed(self, words: Sequence[str]) -> dict[str, Any]:
        """What a command line gave, by parameter name: arguments, then options in its order.

        Args:
            words: What follows ``ws NAME``.

        Raises:
            RecipeError: Not a command line of this command.
        """
        by_name = {each.name: each for each in self.fields}
        try:
            return {name: by_name[name].read(each) for name, each in self.given(words).items()}
        except ValueError as error:
            raise RecipeError(
                f"ws {self.name}: {error}",
                "The command is not one of this version of ws; use the one that made it.",
            ) from None
