"""What a command takes, and its settings as a command line and back."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from weightsurgery.errors import RecipeError

__all__ = ["Command", "Field"]


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

    @property
    def key(self) -> str:
        """What recipes call it."""
        return self.keys[0]

    def read(self, text: str) -> Any:
        """A value from a word of a command line.

        Raises:
            ValueError: Not of this kind.
        """
        if self.kind is float:
            value = float(text)
            if not math.isfinite(value):
                raise ValueError(f"{text} is no finite number")
            return value
        if self.kind is bool:
            return not text
        return int(text) if self.kind is int else text

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
class Command:
    """A command that writes an output.

    Attributes:
        name: As in ``ws NAME``.
        fields: All it takes, in its order.
    """

    name: str
    fields: tuple[Field, ...]

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
        found: dict[str, Any] = {}
        arguments: list[str] = []
        try:
            for field, text in _read(self, iter(words), arguments):
                if field.many:
                    found.setdefault(field.name, []).append(field.read(text))
                else:
                    found[field.name] = field.read(text)
            return {**self._arguments(arguments), **found}
        except ValueError as error:
            raise RecipeError(
                f"ws {self.name}: {error}",
                "The command is not one of this version of ws; use the one that made it.",
            ) from None

    def _arguments(self, words: Sequence[str]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        rest = list(words)
        for field in (each for each in self.fields if each.argument):
            if field.many:
                found[field.name], rest = [field.read(text) for text in rest], []
            elif rest:
                found[field.name] = field.read(rest.pop(0))
        if rest:
            raise ValueError(f"nothing takes {rest[0]!r}")
        return {name: value for name, value in found.items() if value != []}


def _read(
    command: Command, words: Iterator[str], arguments: list[str]
) -> Iterator[tuple[Field, str]]:
    """Options and their text, which for flags is empty or says no; the rest is ``arguments``."""

    def following(option: str) -> str:
        word = next(words, None)
        if word is None:
            raise ValueError(f"{option} without a value")
        return word

    for word in words:
        if word == "--":
            arguments += words
        elif word.startswith("--"):
            option, equals, text = word.partition("=")
            off = next((each for each in command.fields if each.off == option[2:]), None)
            if off is not None and not equals:
                yield off, "no"
                continue
            field = command.field(option[2:])
            if field is None or field.argument or (field.kind is bool and equals):
                raise ValueError(f"no option {word}")
            yield field, text if equals or field.kind is bool else following(option)
        elif word.startswith("-") and word != "-":
            letters = word[1:]
            while letters:
                letter, letters = letters[0], letters[1:]
                field = next((each for each in command.fields if each.short == letter), None)
                if field is None:
                    raise ValueError(f"no option -{letter}")
                if field.kind is bool:
                    yield field, ""
                else:
                    yield field, letters or following(f"-{letter}")
                    letters = ""
        else:
            arguments.append(word)
