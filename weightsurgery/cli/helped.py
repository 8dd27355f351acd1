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
        found: list[str] = []
        for each in names:
            module, colon, name = each.partition(":")
            found += getattr(import_module(f"weightsurgery.{module}"), name) if colon else [each]
        return [each for each in found if each.startswith(incomplete)]

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
        found: list[Any] = super().get_params(ctx)  # type: ignore[misc]
        own = sorted(found[:-1], key=lambda each: (not each.required, each.name in _LAST))
        found = [*own, found[-1]]
        for each in found:
            _name_the_value(each, ctx)
        more = copy(found[-1])  # as --help is, whatever the library makes of that
        more.name, more.opts, more.callback = "help_all", [_ALL], _show_all
        more.help, found[-1].help = "Show all options and exit.", "Show this and exit."
        return [*found, more]

    def _rare(self, ctx: Any) -> list[Any]:
        """The options that the short help leaves out."""
        return [
            each
            for each in self.params
            if getattr(each, "rich_help_panel", None) and not each.required
        ]

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """One screen, unless all was asked for."""
        with nullcontext() if ctx.meta.get(_ALL) else self._shortened(ctx):
            super().format_help(ctx, formatter)  # type: ignore[misc]

    def _told(self, ctx: Any, rare: list[Any]) -> str:
        """The last line of the short help."""
        panels = dict.fromkeys(each.rich_help_panel for each in rare)
        return f"{len(rare)} more with '{ctx.command_path} {_ALL}': {', '.join(panels)}."

    @contextmanager
    def _shortened(self, ctx: Any) -> Iterator[None]:
        """Rare options hidden, of the others the first sentence."""
        rare = [each for each in self._rare(ctx) if not each.hidden]
        others = [each for each in self.params if each not in rare and each.help]
        epilog, helps = self.epilog, [each.help for each in others]
        if rare:
            self.epilog = self._told(ctx, rare)
        for each in rare:
            each.hidden = True
        for each in others:
            each.help = each.help.split(". ")[0].rstrip(".") + "."
        try:
            yield
        finally:
            self.epilog = epilog
            for each in rare:
                each.hidden = False
            for each, text in zip(others, helps, strict=True):
                each.help = text

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse, and ask of a mistyped option whether another one was meant."""
        try:
            found: list[str] = super().parse_args(ctx, args)  # type: ignore[misc]
        except typer.TyperException as error:
            near = list(getattr(error, "possibilities", None) or ())
            if near:
                error.message = f"{error.message}. Did you mean {near[0]}?"
                error.possibilities = None  # type: ignore[attr-defined]
            raise
        return found


class Command(_Helped, TyperCommand):
    """A command whose ``--help`` is one screen."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """What cannot be left out, as it is typed, before what can."""
        options, *words = super().collect_usage_pieces(ctx)
        words = [re.sub(r"^{(.*)}(\.*)$", r"\1\2", each) for each in words if each]
        for each in self.params:
            if each.required and each.param_type_name == "option":
                words += [each.opts[0], each.metavar]
        return [*words, options]


class Group(_Helped, TyperGroup):
    """A group of commands whose ``--help`` is one screen."""

    def _rare(self, ctx: Any) -> list[Any]:
        """Its own options: the commands come first."""
        return [*self.params, self.get_help_option(ctx)]

    def _told(self, ctx: Any, rare: list[Any]) -> str:
        path = ctx.command_path
        own = [each.opts[0] for each in rare if "--help" not in each.opts]
        also = f" Also {', '.join(own[:2])}." if own else ""  # to show completions few ask
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
        each if "Example:" in each else " ".join(each.split("\n")) for each in text.split("\n\n")
    )
