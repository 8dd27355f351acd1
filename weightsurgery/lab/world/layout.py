"""A world on disk: which file is where, and how a directory appears only when it is whole."""

import glob
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from weightsurgery.errors import DataError, OutputError
from weightsurgery.lab.world.facts import PLAIN, SPLITS, TASKS, WORDINGS, Fact, make_facts, wordings
from weightsurgery.lab.world.recipe import WorldRecipe

__all__ = ["World", "copy_world", "open_world", "whole_or_nothing"]


@dataclass(frozen=True)
class World:
    """Where the parts of a world are.

    Attributes:
        directory: Holds all of it.
    """

    directory: Path

    @property
    def base(self) -> Path:
        """The checkpoint that knows all facts of all tasks."""
        return self.directory / "base"

    @property
    def summary_file(self) -> Path:
        """`world.json`: seed, recipe, versions, sizes, accuracies, seconds."""
        return self.directory / "world.json"

    def finetuned(self, task: str) -> Path:
        """The base after further training on the seen facts of `task`.

        Raises:
            ValueError: There is no such task.
        """
        return self.directory / "finetuned" / _one_of(task, TASKS, "task")

    def data(self, task: str, split: str, wording: str = PLAIN) -> Path:
        """The JSONL file with the facts of `task` in `split`.

        Args:
            task: One of `TASKS`.
            split: One of `SPLITS`.
            wording: One of `WORDINGS`; a world has files of those that its base learned.

        Raises:
            ValueError: There is no such task, split or wording.
        """
        name = f"{_one_of(task, TASKS, 'task')}.{_one_of(split, SPLITS, 'split')}"
        ending = "" if _one_of(wording, WORDINGS, "wording") == PLAIN else f".{wording}"
        return self.directory / "data" / f"{name}{ending}.jsonl"

    def summary(self) -> dict[str, Any]:
        """What `world.json` says."""
        summary: dict[str, Any] = json.loads(self.summary_file.read_text(encoding="utf-8"))
        return summary

    def recipe(self) -> WorldRecipe:
        """The recipe it was made by.

        Raises:
            DataError: The recipe has fields that this version does not know.
        """
        fields = self.summary()["recipe"]
        try:
            return WorldRecipe(**fields)
        except TypeError as error:
            raise DataError(
                f"{self.summary_file}: is the recipe of another version: {error}",
                "Remove the directory and make the world again.",
            ) from error

    def facts(self) -> dict[str, list[Fact]]:
        """Per task its facts with entity and split, in the order of the data files.

        They are written out again from recipe and seed: the data files hold no entities.
        """
        return make_facts(self.recipe(), self.summary()["seed"])


def _one_of(name: str, names: tuple[str, ...], kind: str) -> str:
    if name not in names:
        raise ValueError(f"no {kind} {name!r}; there are {', '.join(names)}")
    return name


def open_world(directory: Path) -> World:
    """The world in a directory that holds one.

    Raises:
        DataError: A part is missing.
    """
    world = World(directory)
    parts = [world.summary_file, world.base / "config.json"]
    parts += [world.finetuned(task) / "config.json" for task in TASKS]
    recipe = world.recipe() if world.summary_file.is_file() else WorldRecipe()
    parts += [
        world.data(task, split, wording)
        for task in TASKS
        for wording in wordings(recipe, task)
        for split in SPLITS
    ]
    for part in parts:
        if not part.is_file():
            raise DataError(
                f"{directory}: is no embedded world: {part.relative_to(directory)} is missing",
                "Remove the directory and make the world again.",
            )
    return world


def copy_world(world: World, directory: Path) -> World:
    """Copies a world to a directory of the user's, all or nothing.

    Args:
        world: What to copy.
        directory: Where to; must not exist, or be an empty directory.

    Returns:
        The copy.

    Raises:
        OutputError: `directory` holds something, or cannot be written.
    """
    with whole_or_nothing(directory) as staged:
        shutil.copytree(world.directory, staged, dirs_exist_ok=True)
    return World(directory)


@contextmanager
def whole_or_nothing(directory: Path) -> Iterator[Path]:
    """An empty hidden sibling to fill, which gets the name `directory` when the block ends well.

    A block that fails leaves nothing; a killed one leaves the sibling, which the next call for
    the same directory removes. A lock keeps two processes from making the same directory at once.

    Args:
        directory: Must not exist, or be an empty directory.

    Yields:
        The directory to fill.

    Raises:
        OutputError: `directory` holds something, or its parent cannot be written.
    """
    directory = Path(os.path.abspath(directory))
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(directory.parent / f".{directory.name}.lock")
        with lock:
            _refuse_occupied(directory)
            # Holding the lock: whoever made these is gone.
            for stale in directory.parent.glob(f".{glob.escape(directory.name)}.making-*"):
                shutil.rmtree(stale)
            staged = Path(
                tempfile.mkdtemp(prefix=f".{directory.name}.making-", dir=directory.parent)
            )
            try:
                yield staged
                _flush(staged)
                staged.chmod(0o755)
                os.replace(staged, directory)
                _flush(directory.parent, within=False)
            finally:
                shutil.rmtree(staged, ignore_errors=True)
            Path(lock.lock_file).unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(
            f"{directory}: cannot be written: {error.strerror or error}",
            "Choose another directory, or make room in this one.",
        ) from error


def _refuse_occupied(directory: Path) -> None:
    if directory.is_dir() and not any(directory.iterdir()):
        return  # rename(2) replaces an empty directory
    if directory.exists():
        raise OutputError(
            f"{directory}: already holds something", "Remove it, or choose another directory."
        )


def _flush(directory: Path, within: bool = True) -> None:
    """Makes the directory, and with `within` all files in it, survive a power cut."""
    paths = [directory, *directory.rglob("*")] if within else [directory]
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
