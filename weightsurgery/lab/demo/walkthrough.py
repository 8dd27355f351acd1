"""The walkthrough of the toy: forget one task of the embedded world, keep its twin, step by step.

Every step is the library call behind a command, and names that command, so that it can be
repeated by hand.
"""

from __future__ import annotations

import shlex
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from weightsurgery.algebra.lowrank import Rank
from weightsurgery.checkpoint.inspection import inspect
from weightsurgery.checkpoint.reader import Checkpoint
from weightsurgery.checkpoint.record import verify
from weightsurgery.errors import OutputError, SelectionError
from weightsurgery.lab.demo.capitals import Step
from weightsurgery.lab.world import VARIANTS, World, WorldRecipe, copy_world, get_world, open_world
from weightsurgery.progress import Progress
from weightsurgery.report.tables import Table, percent
from weightsurgery.surgery.apply import apply
from weightsurgery.surgery.compare import diff
from weightsurgery.surgery.discriminating import Project
from weightsurgery.surgery.edit import Edit
from weightsurgery.surgery.edits import Negate
from weightsurgery.surgery.overlap import overlaps
from weightsurgery.vectors.sources import open_vector

if TYPE_CHECKING:
    from weightsurgery.lab.demo.capitals import Chosen, DemoFiles, DemoOutcome

__all__ = [
    "WalkthroughScores",
    "chosen_table",
    "comparison_table",
    "outcome_tables",
    "place_line",
    "walkthrough",
]

FORGET, TWIN = "authors", "painters"
KEEP = (TWIN, "capitals", "addition")

# Both leave 4 to 9 % of the authors' seen facts on seeds 0, 1 and 2, so that what they do to the
# tasks to keep can be compared.
NEGATE_SCALE = 1.2
PROJECT_SCALE, PROJECT_RANK = 7.0, 64


@dataclass(frozen=True)
class WalkthroughScores:
    """Accuracy of the base and of each edited model.

    Attributes:
        scores: Model → ``TASK.SPLIT`` → exact-match accuracy in [0, 1].
        facts: ``TASK.SPLIT`` → number of facts.
    """

    scores: dict[str, dict[str, float]]
    facts: dict[str, int]


def _world_in(directory: Path, seed: int, recipe: WorldRecipe, progress: Progress | None) -> World:
    """The world in a user's directory: the one that is there, or a copy from the cache."""
    cached = get_world(seed, progress=progress, recipe=recipe)
    if (directory / "world.json").is_file():
        present = open_world(directory)
        ours, theirs = cached.summary(), present.summary()
        if all(ours.get(key) == theirs.get(key) for key in ("seed", "recipe")):
            return present
        raise OutputError(
            f"{directory}: holds the world of another seed, variant or version",
            "Name another directory with --dir, or remove this one.",
        )
    return copy_world(cached, directory)


def walkthrough(
    seed: int = 0,
    directory: Path | None = None,
    *,
    variant: str = "default",
    world_only: bool = False,
    progress: Progress | None = None,
) -> Iterator[Step]:
    """Make the world, look at it, edit it in two ways, and score the results.

    Args:
        seed: Of the world.
        directory: Where world and outputs are left; by default outputs go to a temporary
            directory and the world stays in the cache.
        variant: One of `VARIANTS`. The scales of the edits were chosen for the default one.
        world_only: Stop when the world is made.
        progress: Called as ``progress(stage, done, total)``.

    Yields:
        The steps as they are done.

    Raises:
        WeightSurgeryError: See :mod:`weightsurgery.errors`.
    """
    if variant not in VARIANTS:
        raise SelectionError(
            f"--variant {variant}: there is no such world", f"Choose from {', '.join(VARIANTS)}."
        )
    recipe = VARIANTS[variant]
    with ExitStack() as stack:
        begun = time.monotonic()
        if directory is None:
            world = get_world(seed, progress=progress, recipe=recipe)
            outputs = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ws-demo-")))
            shown = Path("DIR")
        else:
            world = _world_in(directory, seed, recipe, progress)
            outputs = shown = directory
        chosen = "" if variant == "default" else f" --variant {variant}"
        yield Step(
            f"ws demo --toy --world-only --seed {seed}{chosen} --dir {shlex.quote(str(shown))}",
            "A small Llama that knows four fact tasks, and fine-tunes of it on each.",
            world,
            time.monotonic() - begun,
        )
        if world_only:
            return
        yield from _steps(world, outputs, _Names(shown), progress)


@dataclass(frozen=True)
class _Names:
    """Paths as the commands show them."""

    root: Path

    def __call__(self, *parts: str) -> str:
        return shlex.quote(str(self.root.joinpath(*parts)))


def _steps(world: World, outputs: Path, shown: _Names, progress: Progress | None) -> Iterator[Step]:
    base = Checkpoint.open(world.base)
    vectors = {task: open_vector(base, [str(world.finetuned(task))]) for task in (FORGET, *KEEP)}
    path, finetuned = shown("base"), {task: shown("finetuned", task) for task in vectors}

    def step(command: str, text: str, call: Callable[[], Any]) -> Step:
        begun = time.monotonic()
        result = call()
        return Step(command, text, result, time.monotonic() - begun)

    yield step(f"ws inspect {path}", "What is in it.", lambda: inspect(base))
    yield step(
        f"ws diff {path} {finetuned[FORGET]}",
        f"What fine-tuning on {FORGET} changed: the task vector.",
        lambda: diff(base, vectors[FORGET], progress=progress),
    )
    yield step(
        f"ws overlap {path} {' '.join(finetuned.values())}",
        "What the tasks share, and must not lose together.",
        lambda: overlaps(base, vectors, Rank(32), progress=progress),
    )
    edits: dict[str, tuple[str, str, Edit]] = {
        "negated": (
            f"ws negate {path} {finetuned[FORGET]} --scale {NEGATE_SCALE:g} -o {shown('negated')}",
            f"Plain task arithmetic: take the {FORGET} vector away.",
            Negate(vectors[FORGET], NEGATE_SCALE),
        ),
        "projected": (
            f"ws project {path} --forget {finetuned[FORGET]}"
            + "".join(f" --keep {finetuned[task]}" for task in KEEP)
            + f" --rank {PROJECT_RANK} --scale {PROJECT_SCALE:g} -o {shown('projected')}",
            "The same, less what it shares with the tasks to keep.",
            Project(
                vectors[FORGET],
                tuple(vectors[task] for task in KEEP),
                Rank(PROJECT_RANK),
                scale=PROJECT_SCALE,
            ),
        ),
    }
    models = {"base": world.base}
    for name, (command, text, edit) in edits.items():
        models[name] = outputs / name

        def run(edit: Edit = edit, out: Path = models[name], line: str = command) -> Any:
            return apply(
                edit, base, out, device="cpu", overwrite=True, command=shlex.split(line),
                progress=progress,
            )  # fmt: skip

        yield step(command, text, run)
        verify(models[name])
    models["trained"] = outputs / "trained"
    yield _from_data(world, base, models["trained"], shown, progress)
    verify(models["trained"])
    yield step("", "What is left of each task.", lambda: _score(world, models, progress))


def _from_data(
    world: World, base: Checkpoint, out: Path, shown_path: _Names, progress: Progress | None
) -> Step:
    """The step that needs no fine-tune: the facts themselves, to forget and to keep."""
    from weightsurgery.procedures.unlearn import Search, Sources, unlearn

    begun = time.monotonic()
    files = {task: world.data(task, "seen") for task in (FORGET, *KEEP)}
    shown = {task: shown_path("data", path.name) for task, path in files.items()}
    command = (
        f"ws project {shown_path('base')} --forget {shown[FORGET]}"
        + "".join(f" --keep {shown[task]}" for task in KEEP)
        + f" --objective strangers --allow-harm -o {shown_path('trained')}"
    )
    result = unlearn(
        base,
        Sources((str(files[FORGET]),), tuple(str(files[task]) for task in KEEP)),
        out,
        Search(allow_harm=True),
        device="cpu",
        overwrite=True,
        command=shlex.split(command),
        progress=progress,
    )
    return Step(
        command,
        "From data alone: trained inside the subspace that inputs to keep hardly feel.",
        result,
        time.monotonic() - begun,
    )


def _score(world: World, models: dict[str, Path], progress: Progress | None) -> WalkthroughScores:
    from weightsurgery.learning.exact import score_checkpoint

    data = {
        f"{task}.{split}": world.data(task, split)
        for task in (FORGET, *KEEP)
        for split in ("seen", "unseen")
    }
    facts = {name: sum(1 for _ in path.open()) for name, path in data.items()}
    scores = {}
    for number, (name, path) in enumerate(models.items()):
        if progress is not None:
            progress("scoring", number, len(models))
        scores[name] = score_checkpoint(path, data)
    return WalkthroughScores(scores, facts)


_ANSWER = 160  # characters of an answer that a row shows


def place_line(files: DemoFiles) -> str:
    """Which model it is, and where."""
    return f"{files.base} is {files.checkpoint}"


def chosen_table(chosen: Chosen) -> Table:
    """What the model knows, and how much of it an edit is given."""
    rows = [
        (group.name, str(len(group.questions)), group.given, group.questions[0].shown)
        for group in chosen.groups
    ]
    note = "Facts that the model does not know are left out; to be forgotten in every wording."
    columns = ("facts", "number", "given to the edit", "asked, for example")
    return Table("Asked", columns, rows, note, left=frozenset({0, 2, 3}))


def outcome_tables(outcome: DemoOutcome) -> list[str | Table]:
    """Right answers and perplexity before and after, then some answers as they are."""
    rows = [
        (group.name, group.given, str(len(group.questions)), *map(str, group.right))
        for group in outcome.groups
    ]
    rows.append(
        ("prose, perplexity", "never", "", *(f"{value:.1f}" for value in outcome.perplexity))
    )
    note = (
        "Right answers: they begin with the truth, in chat hold it. A good edit brings the first"
        " rows to nothing and leaves the others as they were."
    )
    columns = ("asked for", "given to the edit", "number", "before", "after")
    samples = [
        (sample.prompt, _line(sample.before), _line(sample.after)) for sample in outcome.samples
    ]
    return [
        Table("Before and after", columns, rows, note, left=frozenset({0, 1})),
        Table("Side by side", ("asked", "before", "after"), samples, left=frozenset({0, 1, 2})),
        "What to do next:\n",
        *(f"# {what}\n{command}" for what, command in outcome.onward),
    ]


def comparison_table(scores: WalkthroughScores) -> Table:
    """Accuracy of the base and the edited models, task by task."""
    models = list(scores.scores)
    rows = []
    for name, count in scores.facts.items():
        task, split = name.rsplit(".", 1)
        shares = (percent(scores.scores[model][name]) for model in models)
        rows.append((task, split, str(count), *shares))
    note = (
        "Exact-match accuracy. Negated and projected saw the fine-tunes on the seen facts, trained"
        " the seen facts themselves; nothing saw the unseen ones."
    )
    columns = ("task", "facts", "number", *models)
    return Table("What is left", columns, rows, note, left=frozenset({0, 1}))


def _line(text: str) -> str:
    """An answer on one line, cut where it is long."""
    flat = " ".join(text.split())
    return flat if len(flat) <= _ANSWER else f"{flat[:_ANSWER].rstrip()} …"
