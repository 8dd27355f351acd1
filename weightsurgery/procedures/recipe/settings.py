"""What the options of an edit came to, told from the parameters in its record."""

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
    "wordings", "neighbours", "keep_weight", "lora_rank", "budget",
)  # fmt: skip
_TRAINED = (
    "steps", "learning_rate", "batch_size", "accumulation", "warmup", "weight_decay", "max_length",
    "seed", "precision", "gradient_checkpointing", "save_every", "patience",
)  # fmt: skip


def settings(
    record: EditRecord, command: RecipeCommand, given: Mapping[str, Any]
) -> dict[str, Any]:
    """Values by parameter name, of the options that a record knows more of than their default.

    Args:
        record: The record.
        command: Its command.
        given: What was given, which may rule other options out.
    """
    parameters = record.parameters
    found = {name: parameters[name] for name in _PLAIN if name in parameters}
    found |= _selection(parameters.get("selection", {}))
    found |= _storage(parameters.get("storage", {}))
    found |= _ranks(parameters)
    found["as_"] = "adapter" if record.kind == "adapter" else "checkpoint"
    if isinstance(parameters.get("device"), str):
        found["device"] = parameters["device"].split(":")[0]
    if isinstance(parameters.get("training"), Mapping):
        found |= _training(parameters["training"])
    if parameters.get("edit") == "unlearn":
        found |= _system(parameters)
    if isinstance(parameters.get("method"), Mapping):
        method = parameters["method"]
        found |= {name: method[name] for name in ("mode", "order", "lora_rank", "lora_alpha")}
        found["keep_weight"] = method["keep_weight"]
    if "objective" in found:  # options that go with some objectives only
        if found["objective"] != "negate":
            found.pop("round_scale", None)
        if found["objective"] not in ("neighbours", "strangers"):
            found.pop("draws", None)
        if not given.get("validation_keep"):
            found.pop("threshold", None)
    names = {each.name for each in command.fields}
    return {name: value for name, value in found.items() if name in names}


def _selection(selection: Mapping[str, Any]) -> dict[str, Any]:
    found = {name: selection[name] for name in ("targets", "layers") if name in selection}
    for name in ("include", "exclude"):
        found[name] = list(selection.get(name, ())) or None
    scales = [f"{pattern}={_number(factor)}" for pattern, factor in selection.get("scales", ())]
    return {**found, "layer_scale": scales or None}


def _storage(storage: Mapping[str, Any]) -> dict[str, Any]:
    found = {name: storage[name] for name in ("dtype", "rounding") if name in storage}
    if storage.get("rounding") == "stochastic":
        found["seed"] = storage["seed"]
    return found


def _ranks(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The rules of how many factors, which records hold in words."""
    found: dict[str, Any] = {}
    rule = parameters.get("rank", parameters.get("rule"))
    if isinstance(rule, str):
        found |= _rule(rule)
    keep = parameters.get("keep_rank")
    if isinstance(keep, str) and "rank" in _rule(keep):
        found["keep_rank"] = _rule(keep)["rank"]
    return found


def _rule(text: str) -> dict[str, Any]:
    if text.startswith("energy "):
        return {"energy": float(text.removeprefix("energy "))}
    if text.startswith("auto"):
        return {"rank": "auto"}
    return {"rank": text} if text.isdecimal() else {}


def _training(training: Mapping[str, Any]) -> dict[str, Any]:
    if "dtype" in training:  # as records of before called it
        training = {"precision": training["dtype"], **training}
    found = {name: training[name] for name in _TRAINED if name in training}
    if found.get("steps") is None:
        found["epochs"] = training["epochs"]
    return found


def _system(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """What ``ws unlearn`` was run with, where it differs from how trainings are recorded."""
    chosen = parameters["settings"].items()
    found = {
        "dtype": parameters.get("storage", {}).get("dtype"),
        "lora_rank": parameters["lora_rank"],
        "set_": [f"{name}={json.dumps(value)}" for name, value in chosen] or None,
    }
    if not parameters["chosen"]:  # by hand; else the method takes what it takes
        found |= dict.fromkeys(("targets", "include", "exclude", "layers"))
    return found


def _number(value: float) -> str:
    return repr(float(value)).removesuffix(".0")


def called_from_python(
    record: EditRecord, commands: Mapping[str, RecipeCommand], place: str
) -> tuple[RecipeCommand, dict[str, Any]]:
    """The command that does what a call of :func:`weightsurgery.apply` did.

    Args:
        record: A record without a command line.
        commands: Those that a recipe may name.
        place: What to call the record in messages.

    Returns:
        The command, and values by parameter name.

    Raises:
        RecipeError: No command line says the same.
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
        chosen = sorted({each[option] for each in inputs.values() if option in each})
        if len(chosen) > 1:
            raise unsayable(f"its vectors were opened with different {option}: {chosen}")
        values |= {option: chosen[0]} if chosen else {}
    if any(each.get("partial") for each in inputs.values()):
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
    known = settings(record, commands[name], values)
    by_name = {each.name: each for each in commands[name].fields}
    others = {
        option: value
        for option, value in known.items()
        if option != "device" and value != by_name[option].default
    }
    return commands[name], {**values, **others}


def _named(each: Mapping[str, Any], unsayable: Any) -> str:
    """A vector or statistics as on the command line."""
    if not each.get("files"):
        raise unsayable(f"{each.get('name')} was made in memory")
    factor = float(each.get("factor", each.get("weight", 1)))
    return str(each["name"]) if factor == 1 else f"{each['name']}:{_number(factor)}"
