"""The command that makes an output again: run."""

from __future__ import annotations

import inspect
import os
import shlex
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_origin

import typer

from weightsurgery.cli import console
from weightsurgery.cli.command_line import standing_for
from weightsurgery.cli.options import Show, written_path
from weightsurgery.cli.spread import options

if TYPE_CHECKING:
    from weightsurgery.procedures.recipe.command import Command, Field
    from weightsurgery.procedures.recipe.recipe import Recipe

__all__ = ["run", "runnable"]

# What is said of one run, not of the edit. A stranger's recipe must not say it: --overwrite
# replaces outputs, --html any file, --with-code brings programs.
_OF_ONE_RUN = {
    "overwrite",
    "dry_run",
    "json",
    "quiet",
    "verbose",
    "workers",
    "html",
    "remote",
    "list_",
    "with_code",
}


@options
def run(
    show: Show,
    recipe: Annotated[
        str | None, typer.Argument(metavar="RECIPE", help="A YAML file; - for standard input.")
    ] = None,
    from_: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="OUT",
            help="Instead of running one, print the recipe of OUT, a directory written by ws.",
        ),
    ] = None,
    out: Annotated[
        str | None,
        typer.Option(
            "--out", "-o", metavar="DIR", help="Write there, not where the recipe says.",
            rich_help_panel="The output",
        ),
    ] = None,
    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite", help="Replace an existing output of ws.", rich_help_panel="The output"
        ),
    ] = False,
    with_code: Annotated[
        bool,
        typer.Option(
            "--with-code",
            help="Copy the base's Python files, too: as for the command itself.",
            rich_help_panel="The output",
        ),
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Check the recipe and what it reads, say what would be done, and stop.",
            rich_help_panel="The output",
        ),
    ] = False,
    device: Annotated[
        str | None,
        typer.Option(
            help="Where models run and matrices are decomposed, not where the recipe says.",
            rich_help_panel="The machine",
        ),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(help="Threads.", rich_help_panel="The machine")
    ] = None,
) -> None:  # fmt: skip
    """Make an output again from a recipe, or write the recipe of an output.

    A recipe is YAML: the lines 'weightsurgery: 1' and 'command: negate' (or another command that
    writes an output), then its arguments and options by their long names, as 'base: ./base' and
    'scale: 0.7'. Names and paths are as on the command line. Run, what --from prints writes the
    same bytes.

    Without -o, a recipe writes below the current directory alone, and it brings no programs: a
    stranger's can be run.

    Example:  ws run --from ./edited > recipe.yaml

    Example:  ws run recipe.yaml -o ./again
    """
    if (recipe is None) == (from_ is None):
        raise typer.BadParameter("give a RECIPE or --from OUT")
    if from_ is not None:
        if overwrite or with_code or dry_run or device is not None or workers is not None:
            raise typer.BadParameter("--from runs nothing; of the edit it takes -o alone")
        _print_recipe(from_, out, show)
        return
    from weightsurgery.procedures.recipe.document import read_text
    from weightsurgery.procedures.recipe.recipe import read_recipe

    assert recipe is not None
    read = read_recipe(
        read_text(recipe), recipe, {name: each for name, (each, _) in _all().items()}
    )
    changed = {"out": out, "device": device, "workers": workers}
    flags = {"overwrite": overwrite, "with_code": with_code, "dry_run": dry_run, **vars(show)}
    changed |= {name: True for name, given in flags.items() if given}
    _run(read, {name: value for name, value in changed.items() if value is not None}, show)


def _run(recipe: Recipe, changed: dict[str, Any], show: Show) -> None:
    from weightsurgery.errors import RecipeError
    from weightsurgery.procedures.recipe.inputs import check_inputs, check_result, differences
    from weightsurgery.procedures.recipe.places import check_places

    command, callback = _all()[recipe.command.name]
    check_places(recipe, changed)
    known = {each.name for each in command.fields}
    for name in changed.keys() - known - {"quiet", "verbose"}:
        raise RecipeError(
            f"--{name.replace('_', '-')} with 'ws {command.name}', which takes none",
            "Leave it out.",
        )
    values = {**recipe.values, **{name: each for name, each in changed.items() if name in known}}
    words = command.line(values)
    for text in differences(recipe.made_with, values.get("device")):
        console.notice(text, show)
    with console.progress(show) as progress:
        checked = check_inputs(recipe, progress)
    if checked:
        console.notice(f"{checked} input files are as the recipe has them.", show)
    console.notice(f"The same as:  {shlex.join(words)}", show)
    with standing_for(words):
        callback(**_arguments(callback, values))
    if "dry_run" not in changed:
        checked = check_result(recipe, values["out"])
        if checked:
            console.notice(f"{checked} files came out as the recipe has them.", show)


def _print_recipe(directory: str, out: str | None, show: Show) -> None:
    from pathlib import Path

    from weightsurgery.checkpoint.record import read_record
    from weightsurgery.procedures.recipe.from_record import recipe_of
    from weightsurgery.procedures.recipe.inputs import differences
    from weightsurgery.procedures.recipe.text import recipe_data, recipe_text

    record = read_record(Path(os.path.expanduser(directory)))
    commands = {name: each for name, (each, _) in _all().items()}
    found = recipe_of(record, directory, commands, out)
    if show.json:
        console.document(recipe_data(found))
    else:
        console.show(recipe_text(found, directory).rstrip("\n"))
    for text in (*found.notices, *differences(found.made_with)):
        console.notice(text, show)


def _all() -> dict[str, tuple[Command, Callable[..., None]]]:
    """The commands that write an output, by name, with what runs them."""
    from weightsurgery.cli.main import app  # which lists this command too

    return runnable(app)


def runnable(app: typer.Typer) -> dict[str, tuple[Command, Callable[..., None]]]:
    """The commands of an app that a recipe may name: those with an option ``--out``.

    What they take is read from their signatures, so that recipes and command line agree.
    """
    from weightsurgery.procedures.recipe.command import Command

    found = {}
    for registered in app.registered_commands:
        callback = registered.callback
        assert callback is not None
        name = registered.name or callback.__name__
        parameters = inspect.signature(callback).parameters
        fields = tuple(_field(each) for each in parameters.values())
        if name != "run" and any(each.name == "out" and not each.argument for each in fields):
            found[name] = Command(name, fields), callback
    return found


def _field(parameter: inspect.Parameter) -> Field:
    from weightsurgery.procedures.recipe.command import Field

    hint, info = get_args(parameter.annotation)[:2]
    kinds = [each for each in get_args(hint) if each is not type(None)]
    if kinds and get_origin(hint) is not list:  # X | None
        assert len(kinds) == 1, parameter
        hint = kinds[0]
    many = get_origin(hint) is list
    kind = get_args(hint)[0] if many else hint
    # As typer has it, the first name may be where a default was expected.
    names = [
        each.strip()
        for text in (info.default, *(info.param_decls or ()))
        if isinstance(text, str) and text.startswith("-")
        for each in text.split("/")
    ]
    off = [name[2:] for name in names if name.startswith("--no-") and kind is bool]
    long = [name[2:] for name in names if name.startswith("--") and name[2:] not in off]
    return Field(
        parameter.name,
        tuple(long) or (parameter.name.rstrip("_").replace("_", "-"),),
        kind,
        many,
        parameter.default is inspect.Parameter.empty,
        None if parameter.default is inspect.Parameter.empty else parameter.default,
        isinstance(info, typer.models.ArgumentInfo),
        next((name[1:] for name in names if not name.startswith("--")), ""),
        next(iter(off), ""),
        parameter.name not in _OF_ONE_RUN,
        info.callback is written_path,
    )


def _arguments(callback: Callable[..., None], values: dict[str, Any]) -> dict[str, Any]:
    """What typer would hand to the command."""
    found = {}
    for parameter in inspect.signature(callback).parameters.values():
        value = values.get(parameter.name, parameter.default)
        info = get_args(parameter.annotation)[1]
        found[parameter.name] = value if info.callback is None else info.callback(value)
    return found
