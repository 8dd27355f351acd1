"""The arguments and options of a command, and its command lines, written and parsed."""

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
        multiple: Whether it takes a list of values.
        required: Whether it must be given.
        default: Its default value.
        argument: Whether it is an argument, not an option.
        short: Its one-letter option; "" for none.
        off: The long name that negates it; "" for none.
        in_recipes: Whether it is part of the edit; others belong to one run of it.
        writes: Whether it names an output path.
        former: Whether it is a deprecated name, read yet not written.
    """

    name: str
    keys: tuple[str, ...]
    kind: type
    multiple: bool = False
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
        """Its key in recipes."""
        return self.keys[0]

    def read(self, given: Any) -> Any:
        """A value from the command line's text, list of texts, or flag.

        Raises:
            ValueError: Not of this kind.
        """
        if self.multiple:
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
            word for item in (value if self.multiple else [value]) for word in (option, _word(item))
        ]


def _word(value: Any) -> str:
    return repr(value).removesuffix(".0") if isinstance(value, float) else str(value)


@dataclass(frozen=True)
class RecipeCommand:
    """A command that writes an output.

    Attributes:
        name: As in ``ws NAME``.
        fields: Its arguments and options, in order.
        given: Parses the words that follow ``ws NAME``, as the command line does: texts by
            parameter name, booleans for flags; ValueError where the command does not take them.
    """

    name: str
    fields: tuple[Field, ...]
    given: Callable[[Sequence[str]], Mapping[str, Any]]

    def field(self, key: str) -> Field | None:
        """The field of a long name."""
        return next((field for field in self.fields if key in field.keys), None)

    def line(self, values: Mapping[str, Any]) -> list[str]:
        """The command line of these values, by parameter name; defaults are left out.

        Arguments come first, options in the order of ``values``.
        """
        by_name = {field.name: field for field in self.fields}
        arguments: list[str] = []
        for field in self.fields:
            if field.argument and field.name in values:
                value = values[field.name]
                arguments += map(_word, value if field.multiple else [value])
        options: list[str] = []
        for name, value in values.items():
            field = by_name[name]
            if not field.argument and (field.required or value != field.default):
                options += field.words(value)
        if any(word.startswith("-") for word in arguments):
            return ["ws", self.name, *options, "--", *arguments]
        return ["ws", self.name, *arguments, *options]

    def parsed(self, words: Sequence[str]) -> dict[str, Any]:
        """The values of a command line, by parameter name: arguments, then options in its order.

        Args:
            words: What follows ``ws NAME``.

        Raises:
            RecipeError: Not a command line of this command.
        """
        by_name = {field.name: field for field in self.fields}
        try:
            return {name: by_name[name].read(text) for name, text in self.given(words).items()}
        except ValueError as error:
            raise RecipeError(
                f"ws {self.name}: {error}",
                "The command is not one of this version of ws; use the one that made it.",
            ) from None
