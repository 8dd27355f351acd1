"""The settings of an edit as command-line options, from the parameters in its record."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from weightsurgery.checkpoint.record import EditRecord
from weightsurgery.errors import RecipeError
from weightsurgery.procedures.recipe.command import RecipeCommand

__all__ = ["called_from_python", "settings"]

# Options whose value a record holds under their name.
_PLAIN = (
    "scale", "side", "basis", "seed", "epsilon", "dtype", "allow_unrelated", "objective", "rounds",
    "steps", "batch_size", "learning_rate", "draws", "prompts", "round_scale", "threshold",
    "wordings", "neighbours", "keep_weight", "lora_rank", "budget", "whole_answers",
)  # fmt: skip
_TRAINED = (
    "steps", "learning_rate", "batch_size", "accumulation", "warmup", "weight_decay", "max_length",
    "seed", "precision", "gradient_checkpointing", "save_every", "patience",
)  # fmt: skip


def settings(
    record: EditRecord, command: RecipeCommand, given: Mapping[str, Any]
) -> dict[str, Any]:
    """Values by parameter name, of the options that a record holds.

    Args:
        record: The record.
        command: Its command.
        given: The given values, which may rule other options out.
    """
    parameters = record.parameters
    values = {name: parameters[name] for name in _PLAIN if name in parameters}
    values |= _selection(parameters.get("selection", {}))
    values |= _storage(parameters.get("storage", {}))
    values |= _ranks(parameters)
    values["as_"] = "adapter" if record.kind == "adapter" else "checkpoint"
    if isinstance(parameters.get("device"), str):
        values["device"] = parameters["device"].split(":")[0]
    if isinstance(parameters.get("training"), Mapping):
        values |= _training(parameters["training"])
    if parameters.get("edit") == "unlearn":
        values |= _system(parameters)
    if isinstance(parameters.get("method"), Mapping):
        method = parameters["method"]
        values |= {name: method[name] for name in ("mode", "order", "lora_rank", "lora_alpha")}
        values["keep_weight"] = method["keep_weight"]
    if "objective" in values:  # options that go with some objectives only
        if values["objective"] != "negate":
            values.pop("round_scale", None)
        if values["objective"] not in ("neighbours", "strangers"):
            values.pop("draws", None)
        if parameters.get("take_back"):  # nothing was trained
            for name in ("steps", "learning_rate", "batch_size", "keep_weight", "draws"):
                values.pop(name, None)
        if not given.get("validation_keep"):
            values.pop("threshold", None)
    names = {field.name for field in command.fields}
    return {name: value for name, value in values.items() if name in names}


def _selection(selection: Mapping[str, Any]) -> dict[str, Any]:
    values = {name: selection[name] for name in ("targets", "layers") if name in selection}
    for name in ("include", "exclude"):
        values[name] = list(selection.get(name, ())) or None
    scales = [f"{pattern}={_number(factor)}" for pattern, factor in selection.get("scales", ())]
    return {**values, "layer_scale": scales or None}


def _storage(storage: Mapping[str, Any]) -> dict[str, Any]:
    values = {name: storage[name] for name in ("dtype", "rounding") if name in storage}
    if storage.get("rounding") == "stochastic":
        values["seed"] = storage["seed"]
    return values


def _ranks(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The rank rules, which records hold as text."""
    values: dict[str, Any] = {}
    rule = parameters.get("rank", parameters.get("rule"))
    if isinstance(rule, str):
        values |= _rule(rule)
    keep = parameters.get("keep_rank")
    if isinstance(keep, str) and "rank" in _rule(keep):
        values["keep_rank"] = _rule(keep)["rank"]
    return values


def _rule(text: str) -> dict[str, Any]:
    if text.startswith("energy "):
        return {"energy": float(text.removeprefix("energy "))}
    if text.startswith("auto"):
        return {"rank": "auto"}
    return {"rank": text} if text.isdecimal() else {}


def _training(training: Mapping[str, Any]) -> dict[str, Any]:
    if "dtype" in training:  # its name in older records
        training = {"precision": training["dtype"], **training}
    values = {name: training[name] for name in _TRAINED if name in training}
    if values.get("steps") is None:
        values["epochs"] = training["epochs"]
    return values


def _system(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of ``ws unlearn`` that are recorded in another way than those of trainings."""
    chosen = parameters["settings"].items()
    values = {
        "dtype": parameters.get("storage", {}).get("dtype"),
        "lora_rank": parameters["lora_rank"],
        "set_": [f"{name}={json.dumps(value)}" for name, value in chosen] or None,
    }
    if not parameters["chosen"]:  # by hand; else the method takes what it takes
        values |= dict.fromkeys(("targets", "include", "exclude", "layers"))
    return values


def _number(value: float) -> str:
    return repr(float(value)).removesuffix(".0")


def called_from_python(
    record: EditRecord, commands: Mapping[str, RecipeCommand], place: str
) -> tuple[RecipeCommand, dict[str, Any]]:
    """The command that does what a call of :func:`weightsurgery.apply` did.

    Args:
        record: A record without a command line.
        commands: Those that a recipe may name.
        place: Name of the record in messages.

    Returns:
        The command, and values by parameter name.

    Raises:
        RecipeError: No command line is equivalent.
    """

    def unsayable(why: str) -> RecipeError:
        return RecipeError(
            f"{place} has no command line, and none says the same: {why}",
            "Make it again in Python, as it was made.",
        )

    parameters, inputs = record.parameters, record.inputs
    name = parameters.get("edit")
    if name not in ("negate", "add", "project", "learn") or name not in commands:
        raise unsayable(f"what made it is {name or record.kind!r}")
    if "data" in parameters:
        raise unsayable("it was trained on data sets by a call of weightsurgery.procedures")
    values: dict[str, Any] = {"base": inputs["base"]["name"]}
    role = {"negate": "vector", "add": "vector", "project": "forget", "learn": "task"}[name]
    values["vectors" if role == "vector" else role] = [
        _named(inputs[key], unsayable) for key in inputs if key.partition(".")[0] == role
    ]
    keeps = [key for key in inputs if key.startswith("keep")]
    summed = [key for key in keeps if "." in key]
    if summed:
        raise unsayable(f"{summed[0].partition('.')[0]} is a sum of vectors, kept as one task")
    if keeps:
        values["keep"] = [_named(inputs[key], unsayable) for key in keeps]
    for option in ("vocab", "missing"):
        chosen = sorted({entry[option] for entry in inputs.values() if option in entry})
        if len(chosen) > 1:
            raise unsayable(f"its vectors were opened with different {option}: {chosen}")
        values |= {option: chosen[0]} if chosen else {}
    if any(entry.get("partial") for entry in inputs.values()):
        values["partial"] = True
    storage = parameters.get("storage", {})
    seed = parameters.get("seed", storage.get("seed"))
    if storage.get("rounding") == "stochastic" and storage["seed"] != seed:
        raise unsayable("the edit and its rounding have different seeds")
    rank, keep_rank = parameters.get("rank", ""), parameters.get("keep_rank", "")
    if keep_rank != rank and "rank" not in _rule(keep_rank):
        raise unsayable(f"what is kept is truncated by {keep_rank}")
    if rank and parameters.get("rule", "all factors") != "all factors":
        raise unsayable(f"its adapter was truncated again, by {parameters['rule']}")
    recorded = settings(record, commands[name], values)
    by_name = {field.name: field for field in commands[name].fields}
    changed = {
        option: value
        for option, value in recorded.items()
        if option != "device" and value != by_name[option].default
    }
    return commands[name], {**values, **changed}


def _named(entry: Mapping[str, Any], unsayable: Any) -> str:
    """A vector or statistics as on the command line."""
    if not entry.get("files"):
        raise unsayable(f"{entry.get('name')} was made in memory")
    factor = float(entry.get("factor", entry.get("weight", 1)))
    return str(entry["name"]) if factor == 1 else f"{entry['name']}:{_number(factor)}"
