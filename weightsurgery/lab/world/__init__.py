"""The embedded world: a small Llama that knows four fact tasks, made locally from a seed.

The public names are loaded when first used: importing this package imports nothing heavy.
"""

import importlib
from typing import TYPE_CHECKING, Any

from weightsurgery.lab.world.facts import SPLITS, TASKS
from weightsurgery.lab.world.recipe import VARIANTS, WorldRecipe

if TYPE_CHECKING:
    from weightsurgery.lab.world.build import build_world
    from weightsurgery.lab.world.cache import get_world
    from weightsurgery.lab.world.layout import World, copy_world, open_world

__all__ = [
    "SPLITS",
    "TASKS",
    "VARIANTS",
    "World",
    "WorldRecipe",
    "build_world",
    "copy_world",
    "get_world",
    "open_world",
]

_HOMES = {
    "World": "layout",
    "build_world": "build",
    "copy_world": "layout",
    "get_world": "cache",
    "open_world": "layout",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
