"""Making a world: facts, tokenizer, base model, fine-tunes, scores; once, all or nothing."""

import importlib.metadata
import json
import time
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from weightsurgery.checkpoint.digest_cache import cache_directory
from weightsurgery.errors import OutputError, WeightSurgeryError
from weightsurgery.lab.world.facts import (
    PLAIN,
    SPLITS,
    TASKS,
    WORDINGS,
    Fact,
    make_facts,
    worded,
    wordings,
)
from weightsurgery.lab.world.layout import World, open_world, whole_or_nothing
from weightsurgery.lab.world.model import default_threads, make_model, make_tokenizer
from weightsurgery.lab.world.recipe import FORMAT_VERSION, WorldRecipe
from weightsurgery.learning.data import Example
from weightsurgery.learning.exact import exact_match
from weightsurgery.learning.fitting import Schedule, fit, isolated
from weightsurgery.learning.models import quiet
from weightsurgery.progress import Progress

__all__ = ["build_world", "get_world", "train_base"]


def build_world(
    directory: Path,
    seed: int = 0,
    progress: Progress | None = None,
    *,
    recipe: WorldRecipe | None = None,
    threads: int | None = None,
) -> World:
    """Makes a world from a seed, without network, on the CPU.

    The same recipe, seed, thread count and library versions make the same weights. The directory
    appears under its name when everything in it is whole; a killed build leaves only a hidden
    sibling, which the next one sweeps away.

    Args:
        directory: Where the world goes; must not exist, or be an empty directory.
        seed: Of the facts, the initial weights and the order of the examples.
        progress: Called as ``progress(stage, done, total)``.
        recipe: Sizes and hyperparameters; the full world by default.
        threads: Torch threads; by default two, or one on a single core.

    Returns:
        The world.

    Raises:
        OutputError: `directory` holds something, or cannot be written.
        WeightSurgeryError: The model did not learn the facts within the recipe's cap of steps.
    """
    recipe = recipe or WorldRecipe()
    threads = threads or default_threads()
    report = progress or (lambda stage, done, total: None)
    with whole_or_nothing(directory) as staged, isolated(seed, threads):
        _build(World(staged), recipe, seed, threads, report)
    return World(directory)


def _build(world: World, recipe: WorldRecipe, seed: int, threads: int, report: Progress) -> None:
    started = time.perf_counter()
    cpu_started = time.process_time()
    facts = make_facts(recipe, seed)
    _write_facts(world, recipe, facts)
    examples = {
        task: [row for wording in wordings(recipe, task) for row in _examples(rows, wording)]
        for task, rows in facts.items()
    }
    everything = [example for rows in examples.values() for example in rows]
    tokenizer = make_tokenizer(
        (example.prompt + example.completion for example in everything), recipe.vocabulary
    )
    model = make_model(recipe, tokenizer)
    steps = train_base(model, tokenizer, examples, recipe, seed, report)
    _save(model, tokenizer, world.base, recipe)
    # By wording, those that there are alone: the facts of the tasks that have it.
    questions = {
        wording: {task: rows for task, rows in facts.items() if wording in wordings(recipe, task)}
        for wording in WORDINGS
    }
    accuracy = {
        wording: {"base": _scores(model, tokenizer, rows, wording)}
        for wording, rows in questions.items()
        if rows
    }
    seconds = {"base": time.perf_counter() - started}

    known = {name: weight.detach().clone() for name, weight in model.state_dict().items()}
    for task in TASKS:
        fine_tune_started = time.perf_counter()
        model.load_state_dict(known)
        seen = _examples(_only(facts[task], "seen"))
        _fine_tune(model, tokenizer, seen, recipe, seed, f"fine-tuning on {task}", report)
        _save(model, tokenizer, world.finetuned(task), recipe)
        for wording, scores in accuracy.items():
            scores[task] = _scores(model, tokenizer, questions[wording], wording)
        seconds[task] = time.perf_counter() - fine_tune_started

    packages = ("torch", "transformers", "tokenizers", "accelerate")
    summary = {
        "format": FORMAT_VERSION,
        "seed": seed,
        "recipe": recipe.describe(),
        "versions": {name: importlib.metadata.version(name) for name in packages},
        "threads": threads,
        "parameters": sum(weight.numel() for weight in model.parameters()),
        "facts": {
            task: {split: len(_only(rows, split)) for split in SPLITS}
            for task, rows in facts.items()
        },
        "steps": steps,
        **{
            "accuracy" if wording == PLAIN else f"{wording}_accuracy": scores
            for wording, scores in accuracy.items()
        },
        "seconds": {name: round(value, 2) for name, value in seconds.items()}
        | {"total": round(time.perf_counter() - started, 2)},
        "cpu_seconds": round(time.process_time() - cpu_started, 2),
    }
    world.summary_file.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")


def train_base(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Mapping[str, Sequence[Example]],
    recipe: WorldRecipe,
    seed: int,
    report: Progress,
) -> int:
    """Teaches the base all facts; returns the steps that took."""
    scores: dict[str, float] = {}

    def learned(step: int) -> bool:
        report("training the base", step, recipe.steps if step <= recipe.steps else recipe.step_cap)
        last = step == recipe.step_cap
        due = step >= recipe.first_check and (step - recipe.first_check) % recipe.check_every == 0
        if due or last:
            for task, rows in examples.items():
                scores[task] = exact_match(model, tokenizer, rows)
            model.train()
        # The learning rate has fallen by `steps`: what is good enough by then is good enough.
        enough = recipe.stop_at if step < recipe.steps else recipe.required
        return bool(due and min(scores.values()) >= enough)

    schedule = Schedule(
        recipe.batch,
        recipe.learning_rate,
        recipe.final_learning_rate,
        recipe.warmup,
        recipe.weight_decay,
        recipe.steps,
        recipe.step_cap,
    )
    everything = [example for rows in examples.values() for example in rows]
    steps = fit(model, tokenizer, everything, schedule, seed, learned)
    if min(scores.values()) < recipe.required:
        figures = ", ".join(f"{task} {score:.1%}" for task, score in scores.items())
        raise WeightSurgeryError(
            f"the world's base model knows too little after {steps} steps: {figures}; "
            f"{recipe.required:.1%} is required of each",
            "Use another seed, or a recipe with a higher step cap.",
        )
    return steps


def _fine_tune(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    recipe: WorldRecipe,
    seed: int,
    stage: str,
    report: Progress,
) -> None:
    """Trains on one task's seen facts for a fixed number of steps."""

    def report_step(step: int) -> bool:
        report(stage, step, recipe.tuning_steps)
        return False

    schedule = Schedule(
        recipe.tuning_batch,
        recipe.tuning_learning_rate,
        1.0,
        recipe.tuning_warmup,
        recipe.tuning_weight_decay,
        recipe.tuning_steps,
        recipe.tuning_steps,
    )
    fit(model, tokenizer, examples, schedule, seed, report_step)


def _only(facts: Sequence[Fact], split: str) -> list[Fact]:
    return [fact for fact in facts if fact.split == split]


def _examples(facts: Sequence[Fact], wording: str = PLAIN) -> list[Example]:
    """Facts as questions, in one of their wordings."""
    return [Example(*worded(fact, wording)) for fact in facts]


def _write_facts(world: World, recipe: WorldRecipe, facts: Mapping[str, Sequence[Fact]]) -> None:
    for task, rows in facts.items():
        for wording, split in product(wordings(recipe, task), SPLITS):
            path = world.data(task, split, wording)
            path.parent.mkdir(parents=True, exist_ok=True)
            lines = [
                json.dumps({"prompt": example.prompt, "completion": example.completion})
                for example in _examples(_only(rows, split), wording)
            ]
            path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def _save(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, directory: Path, recipe: WorldRecipe
) -> None:
    with quiet():
        model.save_pretrained(directory, max_shard_size=recipe.shard_bytes)
        tokenizer.save_pretrained(directory)
    # transformers leaves the shards readable by their owner alone.
    for path in directory.iterdir():
        path.chmod(0o644)


def _scores(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    facts: Mapping[str, Sequence[Fact]],
    wording: str,
) -> dict[str, dict[str, float]]:
    """Accuracy per task and split."""
    return {
        task: {
            split: exact_match(model, tokenizer, _examples(_only(rows, split), wording))
            for split in SPLITS
        }
        for task, rows in facts.items()
    }


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
