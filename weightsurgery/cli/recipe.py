"""The command that makes an output again: run."""

from __future__ import annotations

import functools
import inspect
import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_origin, get_type_hints

import typer

from weightsurgery.cli import console
from weightsurgery.cli.edit_options import Cluster
from weightsurgery.cli.options import Show, written_path
from weightsurgery.cli.panels import machine_option, output_option
from weightsurgery.cli.spread import given, options

if TYPE_CHECKING:
    from weightsurgery.procedures.recipe.command import Field, RecipeCommand
    from weightsurgery.procedures.recipe.recipe import Recipe

__all__ = ["run", "writing"]

# Options of one run, not of the edit. A stranger's recipe must not set them: --overwrite
# replaces outputs, --html and --figure any file, --with-code brings programs.
_OF_ONE_RUN = {
    "overwrite",
    "dry_run",
    "json",
    "quiet",
    "verbose",
    "workers",
    "cluster",
    "html",
    "figure",
    "remote",
    "list_",
    "with_code",
}


@dataclass(frozen=True)
class Changes:
    """What a run does otherwise than the recipe says, by the names of the command's options.

    Their order is that of the line that a run prints and records.
    """

    out: Annotated[
        str | None,
        output_option("--out", "-o", metavar="DIR", help="Write there, not where the recipe says."),
    ] = None
    device: Annotated[
        str | None,
        machine_option(
            help="Where models run and matrices are decomposed, not where the recipe says."
        ),
    ] = None
    workers: Annotated[int | None, machine_option(help="Threads.")] = None
    cluster: Cluster = None
    overwrite: Annotated[bool, output_option(help="Replace an existing output of ws.")] = False
    with_code: Annotated[
        bool, output_option(help="Copy the base's Python files, too: as for the command itself.")
    ] = False
    dry_run: Annotated[
        bool,
        output_option(help="Check the recipe and what it reads, say what would be done, and stop."),
    ] = False


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
    *,
    changes: Changes,
) -> None:
    """Make an output again from its recipe, or print the recipe.

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
        if given(changes).keys() - {"out"}:
            raise typer.BadParameter("--from runs nothing; of the edit it takes -o alone")
        _print_recipe(from_, changes.out, show)
        return
    from weightsurgery.procedures.recipe.document import read_text
    from weightsurgery.procedures.recipe.recipe import read_recipe

    assert recipe is not None
    read = read_recipe(read_text(recipe), recipe, writing(_group(show)))
    printing = {"json": show.json, "quiet": show.quiet, "verbose": show.verbose}
    changed = given(changes) | {name: True for name, wanted in printing.items() if wanted}
    _run(read, changed, show)


def _run(recipe: Recipe, changed: dict[str, Any], show: Show) -> None:
    from weightsurgery.errors import RecipeError
    from weightsurgery.procedures.recipe.checks import (
        check_inputs,
        check_places,
        check_result,
        differences,
    )

    command = recipe.command
    check_places(recipe, changed)
    known = {field.name for field in command.fields}
    for name in changed.keys() - known - {"quiet", "verbose"}:
        raise RecipeError(
            f"--{name.replace('_', '-')} with 'ws {command.name}', which takes none",
            "Leave it out.",
        )
    values = {**recipe.values, **{name: value for name, value in changed.items() if name in known}}
    words = command.line(values)
    console.notices(differences(recipe.made_with, values.get("device")), show)
    with console.progress(show) as progress:
        checked = check_inputs(recipe, progress)
    if checked:
        console.notice(f"{checked} input files are as the recipe has them.", show)
    console.notice(f"The same as:  {shlex.join(words)}", show)
    # What typing this line would do; records name it too, so an output does not tell who typed it.
    root = show.context.find_root()
    typed = _group(show).commands[command.name]
    with typed.make_context(command.name, words[2:], parent=root, obj=words) as context:
        typed.invoke(context)
    if "dry_run" not in changed:
        checked = check_result(recipe, values["out"])
        if checked:
            console.notice(f"{checked} files came out as the recipe has them.", show)


def _print_recipe(directory: str, out: str | None, show: Show) -> None:
    from pathlib import Path

    from weightsurgery.checkpoint.record import read_record
    from weightsurgery.procedures.recipe.checks import differences
    from weightsurgery.procedures.recipe.from_record import recipe_data, recipe_of, recipe_text

    record = read_record(Path(os.path.expanduser(directory)))
    recipe = recipe_of(record, directory, writing(_group(show)), out)
    console.result(
        show, lambda: recipe_data(recipe), lambda: [recipe_text(recipe, directory).rstrip("\n")]
    )
    console.notices((*recipe.notices, *differences(recipe.made_with)), show)


def _group(show: Show) -> Any:
    """The command ``ws``, as Typer has it."""
    return show.context.find_root().command


def writing(group: Any) -> dict[str, RecipeCommand]:
    """The commands of a group that a recipe may name: those with an option ``--out``.

    Args:
        group: As ``typer.main.get_command`` makes it of an app. What its commands take, and how
            their command lines are read, is Typer's own, so recipes and command line agree.
    """
    from weightsurgery.procedures.recipe.command import RecipeCommand

    commands = {}
    for name, command in group.commands.items():
        if name == "run" or not any("--out" in option.opts for option in command.params):
            continue
        hints = get_type_hints(command.callback, include_extras=True)
        fields = tuple(
            _field(option, hints[option.name]) for option in command.params if option.name in hints
        )
        commands[name] = RecipeCommand(name, fields, functools.partial(_given, command))
    return commands


def _field(option: Any, annotation: Any) -> Field:
    """One of Typer's parameters, with the type that it is annotated with."""
    from weightsurgery.procedures.recipe.command import Field

    hint = get_args(annotation)[0]
    multiple = option.nargs == -1 or getattr(option, "multiple", False)
    kinds = [kind for kind in (hint, *get_args(hint)) if kind in (str, int, float, bool)]
    if multiple:  # list[X], or list[X] | None
        (listed,) = (kind for kind in (hint, *get_args(hint)) if get_origin(kind) is list)
        kinds = list(get_args(listed))
    (kind,) = kinds
    return Field(
        option.name,
        tuple(name[2:] for name in option.opts if name.startswith("--"))
        or (option.name.rstrip("_").replace("_", "-"),),
        kind,
        multiple,
        option.required,
        option.default,
        option.param_type_name == "argument",
        next((name[1:] for name in option.opts if name[:1] == "-" != name[1:2]), ""),
        next((name[2:] for name in option.secondary_opts), ""),
        option.name not in _OF_ONE_RUN,
        option.callback is not None and inspect.unwrap(option.callback) is written_path,
        getattr(option, "hidden", False),
    )


def _given(command: Any, words: Sequence[str]) -> dict[str, Any]:
    """What a command line gives, by parameter name: arguments, then options in its order.

    Raises:
        ValueError: Not a command line of this command.
    """
    context = typer.Context(command, info_name=command.name)
    try:
        values, rest, order = command.make_parser(context).parse_args(list(words))
    except typer.TyperException as error:
        raise ValueError(error.format_message()) from None
    if rest:
        raise ValueError(f"nothing takes {rest[0]!r}")
    for param in order:
        if not param.expose_value:  # --help: ends a command, and is none of its settings
            raise ValueError(f"no option {param.opts[-1]}")
    order.sort(key=lambda param: param.param_type_name != "argument")
    names = dict.fromkeys(param.name for param in order)
    return {name: values[name] for name in names if values[name] not in (None, (), [])}
