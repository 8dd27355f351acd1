"""Public benchmarks through lm-evaluation-harness."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weightsurgery.algebra.devices import pick_device
from weightsurgery.checkpoint.source import resolve_source
from weightsurgery.deferred import need
from weightsurgery.errors import DataError
from weightsurgery.learning.models import load_tokenizer, quiet

__all__ = ["PREFIX", "TaskScore", "Tasks", "find_tasks", "run_tasks"]

PREFIX = "lm-eval:"
"""What a task's name begins with on the command line."""


@dataclass(frozen=True)
class TaskScore:
    """One figure of one task.

    Attributes:
        task: Its name.
        metric: The harness's name of the figure, its filter after a comma.
        value: As the harness gives it.
        error: Its standard error; None where the harness gives none.
        before: The value of the checkpoint compared with; None if there is none.
        before_error: The standard error of that.
    """

    task: str
    metric: str
    value: float | None
    error: float | None
    before: float | None = None
    before_error: float | None = None


@dataclass(frozen=True)
class Tasks:
    """Tasks that the harness knows.

    Attributes:
        names: What it calls them.
        manager: The harness's own index of them.
    """

    names: tuple[str, ...]
    manager: Any


def find_tasks(texts: Sequence[str], include_path: str | Path | None = None) -> Tasks:
    """Finds tasks of lm-evaluation-harness by `lm-eval:NAME`.

    Args:
        texts: Each such a name.
        include_path: A directory with task files (YAML) of one's own; they come first.

    Raises:
        WeightSurgeryError: The harness is not installed.
        DataError: A text has no such form, the harness knows no such task, or there is no such
            directory.
    """
    for text in texts:
        if not text.startswith(PREFIX) or text == PREFIX:
            raise DataError(f"task {text!r}", f"Write {PREFIX}NAME, as in {PREFIX}hellaswag.")
    names = tuple(dict.fromkeys(text.removeprefix(PREFIX) for text in texts))
    need("tasks run through lm-evaluation-harness", "lm_eval", extra="eval")
    if include_path is not None and not Path(include_path).expanduser().is_dir():
        raise DataError(f"{include_path}: no such directory", "Name one with task files (YAML).")
    with _silence():
        manager = _index(names, include_path)
        unknown = [name for name in names if not manager.match_tasks([name])]
    if unknown:
        raise DataError(
            f"lm-evaluation-harness knows no task {unknown[0]!r}",
            "List them with 'lm-eval ls tasks'; for files of your own pass --include-path DIR.",
        )
    return Tasks(names, manager)


def _index(names: Sequence[str], include_path: str | Path | None) -> Any:
    from lm_eval.tasks import TaskManager

    if include_path is not None:
        directory = str(Path(include_path).expanduser())
        manager = TaskManager(include_path=directory, include_defaults=False)
        if set(names) <= set(manager.all_subtasks):
            return manager  # its own thousands take seconds to read
        return TaskManager(include_path=directory)
    return TaskManager()


def run_tasks(
    checkpoint: str | Path,
    tasks: Tasks,
    against: str | Path | None = None,
    *,
    batch_size: int = 32,
    device: str = "auto",
) -> tuple[TaskScore, ...]:
    """Runs tasks of lm-evaluation-harness on a checkpoint, and on another to compare with.

    BOS goes before every text if the tokenizer itself puts it there; the harness would leave it
    out. Nothing is printed.

    Args:
        checkpoint: Directory or `org/name[@revision]` of a causal language model.
        tasks: See `find_tasks`.
        against: The checkpoint before the edit.
        batch_size: Requests per forward pass.
        device: `auto`, `cpu`, `cuda` or `cuda:i`.

    Returns:
        Every figure of every task and its subtasks.

    Raises:
        DataError: The harness cannot run the tasks on a checkpoint.
        SourceError: A checkpoint cannot be found or loaded.
    """
    after = _run(resolve_source(checkpoint).path, tasks, batch_size, device)
    before: _Figures = {}
    if against is not None:
        before = _run(resolve_source(against).path, tasks, batch_size, device)
    return tuple(
        TaskScore(*key, *figures, *before.get(key, (None, None))) for key, figures in after.items()
    )


_Figures = dict[tuple[str, str], tuple[float | None, float | None]]


def _run(checkpoint: Path, tasks: Tasks, batch_size: int, device: str) -> _Figures:
    tokenizer = load_tokenizer(checkpoint)
    begins = list(tokenizer("a")["input_ids"])[:1]
    arguments = {
        "pretrained": str(checkpoint),
        "dtype": "auto",
        "add_bos_token": tokenizer.bos_token_id is not None and begins == [tokenizer.bos_token_id],
    }
    from lm_eval import simple_evaluate

    try:
        with _silence(), quiet():
            results = simple_evaluate(
                model="hf",
                model_args=arguments,
                tasks=list(tasks.names),
                batch_size=batch_size,
                device=str(pick_device(device)),
                task_manager=tasks.manager,
                log_samples=False,
                bootstrap_iters=1000,
            )
    except Exception as error:  # tasks are programs: they can fail in any way
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise DataError(
            f"{', '.join(tasks.names)}: lm-evaluation-harness fails on {checkpoint}: {lines[0]}",
            "Run it by 'lm-eval run' for all it says; offline, its data must be in the cache.",
        ) from error
    return _figures(results["results"])


def _figures(results: dict[str, dict[str, Any]]) -> _Figures:
    scores: _Figures = {}
    for task, figures in results.items():
        for key, value in figures.items():
            name, comma, which = key.partition(",")
            if not comma or name.endswith("_stderr"):
                continue
            error = figures.get(f"{name}_stderr,{which}")
            label = name if which == "none" else key
            scores[task, label] = (_number(value), _number(error))
    return scores


def _number(value: Any) -> float | None:
    if isinstance(value, bool | int | float) and math.isfinite(value):
        return float(value)
    return None


@contextmanager
def _silence() -> Iterator[None]:
    """Without the harness's prints, bars and log lines, and those of git, which it calls."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    stderr = os.dup(2)
    try:
        with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
            os.dup2(nowhere.fileno(), 2)
            yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        logging.disable(before)
