"""What a command says of itself: the common options on one screen, all of them on request.

Common are the options that stand in no panel, and whatever a command cannot do without.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from copy import copy
from importlib import import_module
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

__all__ = ["Command", "Group", "among"]

_ALL = "--help-all"

# What every command has stands last.
_LAST = ("device", "json", "quiet", "verbose")


def among(*names: str) -> Callable[[str], list[str]]:
    """What the shell completes an option's value to.

    Args:
        names: The values; or, as ``room.module:NAMES``, where they stand, to be imported then.
    """

    def complete(incomplete: str) -> list[str]:
        values: list[str] = []
        for word in names:
            module, colon, name = word.partition(":")
            values += getattr(import_module(f"weightsurgery.{module}"), name) if colon else [word]
        return [value for value in values if value.startswith(incomplete)]

    return complete


def _show_all(context: typer.Context, _: Any, wanted: bool) -> None:
    if wanted and not context.resilient_parsing:
        context.meta[_ALL] = True
        typer.echo(context.get_help())
        raise typer.Exit


class _Helped:
    """What a command and a group of them have in common."""

    # Of the library's classes that this is mixed into.
    params: list[Any]
    help: str | None
    epilog: str | None

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self.help = _reflowed(self.help)

    def get_params(self, ctx: Any) -> list[Any]:
        """All parameters, ``--help`` and ``--help-all`` last."""
        params: list[Any] = super().get_params(ctx)  # type: ignore[misc]
        others = sorted(params[:-1], key=lambda param: (not param.required, param.name in _LAST))
        params = [*others, params[-1]]
        for param in params:
            _name_the_value(param, ctx)
        more = copy(params[-1])  # as --help is, whatever the library makes of that
        more.name, more.opts, more.callback = "help_all", [_ALL], _show_all
        more.help, params[-1].help = "Show all options and exit.", "Show this and exit."
        return [*params, more]

    def _rare(self, ctx: Any) -> list[Any]:
        """The options that the short help leaves out."""
        return [
            param
            for param in self.params
            if getattr(param, "rich_help_panel", None) and not param.required
        ]

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """One screen, unless ``--help-all`` was given."""
        with nullcontext() if ctx.meta.get(_ALL) else self._shortened(ctx):
            super().format_help(ctx, formatter)  # type: ignore[misc]

    def _last_line(self, ctx: Any, rare: list[Any]) -> str:
        """The last line of the short help."""
        panels = dict.fromkeys(param.rich_help_panel for param in rare)
        return f"{len(rare)} more with '{ctx.command_path} {_ALL}': {', '.join(panels)}."

    @contextmanager
    def _shortened(self, ctx: Any) -> Iterator[None]:
        """Rare options hidden, of the others the first sentence."""
        rare = [param for param in self._rare(ctx) if not param.hidden]
        others = [param for param in self.params if param not in rare and param.help]
        epilog, helps = self.epilog, [param.help for param in others]
        if rare:
            self.epilog = self._last_line(ctx, rare)
        for param in rare:
            param.hidden = True
        for param in others:
            param.help = param.help.split(". ")[0].rstrip(".") + "."
        try:
            yield
        finally:
            self.epilog = epilog
            for param in rare:
                param.hidden = False
            for param, text in zip(others, helps, strict=True):
                param.help = text

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse, and ask of a mistyped option whether another one was meant."""
        try:
            rest: list[str] = super().parse_args(ctx, args)  # type: ignore[misc]
        except typer.TyperException as error:
            near = list(getattr(error, "possibilities", None) or ())
            if near:
                error.message = f"{error.message}. Did you mean {near[0]}?"
                error.possibilities = None  # type: ignore[attr-defined]
            raise
        return rest


class Command(_Helped, TyperCommand):
    """A command whose ``--help`` is one screen."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """What cannot be left out, as it is typed, before what can."""
        options, *words = super().collect_usage_pieces(ctx)
        words = [re.sub(r"^{(.*)}(\.*)$", r"\1\2", word) for word in words if word]
        for param in self.params:
            if param.required and param.param_type_name == "option":
                words += [param.opts[0], param.metavar]
        return [*words, options]


class Group(_Helped, TyperGroup):
    """A group of commands whose ``--help`` is one screen."""

    def _rare(self, ctx: Any) -> list[Any]:
        """Its own options: the commands come first."""
        return [*self.params, self.get_help_option(ctx)]

    def _last_line(self, ctx: Any, rare: list[Any]) -> str:
        path = ctx.command_path
        names = [param.opts[0] for param in rare if "--help" not in param.opts]
        also = f" Also {', '.join(names[:2])}." if names else ""  # to show completions few ask
        return f"'{path} COMMAND --help' explains a command.{also}"


_VALUES = {"int": "N", "int range": "N", "float": "X", "str": "NAME"}


def _name_the_value(param: Any, ctx: Any) -> None:
    """Name an option's value by what it is, not by its type in Python; a switch has none."""
    if param.param_type_name == "argument":
        # Its own name says it.
        param.display_type_rich = lambda ctx: None
    elif param.metavar is None:
        known = "" if param.is_flag else param.display_type_rich(ctx).strip("<>")
        param.metavar = _VALUES.get(known, known)


def _reflowed(text: str | None) -> str | None:
    """Paragraphs as lines that a terminal of any width wraps; examples stay as they are."""
    if text is None:
        return None
    return "\n\n".join(
        part if "Example:" in part else " ".join(part.split("\n")) for part in text.split("\n\n")
    )
