"""The embedded world: a small Llama that knows four fact tasks, made locally from a seed.

The public names are loaded when first used: importing this package imports nothing heavy.
"""

from typing import TYPE_CHECKING

from weightsurgery.deferred import attributes
from weightsurgery.lab.world.facts import SPLITS, TASKS
from weightsurgery.lab.world.recipe import VARIANTS, WorldRecipe

if TYPE_CHECKING:
    from weightsurgery.lab.world.build import build_world, get_world
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

__getattr__ = attributes(
    __name__, {"build": "build_world get_world", "layout": "World copy_world open_world"}
)
