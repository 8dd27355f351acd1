"""Worlds that were made before: a cache directory, one world per seed and recipe."""

from pathlib import Path

from weightsurgery.checkpoint.digest_cache import cache_directory
from weightsurgery.errors import OutputError
from weightsurgery.lab.world.build import build_world
from weightsurgery.lab.world.layout import World, open_world
from weightsurgery.lab.world.recipe import WorldRecipe
from weightsurgery.progress import Progress

__all__ = ["get_world"]


def get_world(
    seed: int = 0,
    cache_dir: Path | None = None,
    progress: Progress | None = None,
    *,
    recipe: WorldRecipe | None = None,
    threads: int | None = None,
) -> World:
    """The world of a seed and recipe, from the cache, or made now and kept there.

    Args:
        seed: See `build_world`.
        cache_dir: Where worlds are kept; `cache_directory()` by default.
        progress: Called as ``progress(stage, done, total)``; not for a world at hand.
        recipe: Sizes and hyperparameters; the full world by default.
        threads: Torch threads to make it with; a world at hand is taken whatever made it.

    Returns:
        The world. It belongs to the cache: copy it before changing anything in it.

    Raises:
        OutputError: The cache cannot be written.
        DataError: A part of the cached world is missing.
        WeightSurgeryError: The model did not learn the facts.
    """
    recipe = recipe or WorldRecipe()
    directory = (cache_dir or cache_directory()) / f"world-{seed}-{recipe.key()}"
    if not directory.is_dir():
        try:
            return build_world(directory, seed, progress, recipe=recipe, threads=threads)
        except OutputError:
            # Another process may have made it while this one waited for the lock.
            if not directory.is_dir():
                raise
    return open_world(directory)
