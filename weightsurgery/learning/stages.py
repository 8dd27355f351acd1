"""One stage after another, each finished one kept, so that a killed run goes on after it."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from weightsurgery.algebra.devices import pick_device
from weightsurgery.errors import DataError, EditError
from weightsurgery.learning.data import Encoded, Example, encode
from weightsurgery.learning.method import Stage
from weightsurgery.learning.models import context_length
from weightsurgery.learning.placement import distributed
from weightsurgery.learning.points import save_tensors, writing
from weightsurgery.learning.retain import Retain
from weightsurgery.learning.settings import Training
from weightsurgery.learning.sharding import is_sharded, pieces_of
from weightsurgery.learning.training import EncodedRows, Trained, train_stage
from weightsurgery.learning.values import change_since, held_values, set_values, values_of
from weightsurgery.learning.windows import text_windows
from weightsurgery.progress import Progress

__all__ = [
    "change_since",
    "encode_rows",
    "held_values",
    "is_main",
    "process_device",
    "run_stage",
    "run_stages",
    "set_values",
    "values_of",
    "wait_for_all",
]


_log = logging.getLogger(__name__)


def is_main() -> bool:
    """Whether this process is the one that writes."""
    return int(os.environ.get("RANK", "0")) == 0


def process_device(name: str) -> torch.device:
    """``auto``, ``cpu``, ``cuda`` or ``cuda:i`` as this process's device.

    Of several processes, each has the GPU of its rank.

    Raises:
        EditError: No such device here, or one GPU is named for all processes.
    """
    device = pick_device(name)
    if device.type != "cuda" or not distributed():
        return device
    if ":" in name:
        raise EditError(
            f"device {name!r} for {os.environ['WORLD_SIZE']} processes",
            "Use auto or cuda, which gives each process the GPU of its rank; CUDA_VISIBLE_DEVICES"
            " says which there are.",
        )
    return pick_device(f"cuda:{os.environ.get('LOCAL_RANK', '0')}")


def wait_for_all() -> None:
    """Wait for the other processes of a distributed run, if there are any."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()


def encode_rows(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Iterable[Example],
    max_length: int | None,
) -> list[Encoded]:
    """Examples as tokens that the model can take.

    Args:
        model: What will read them.
        tokenizer: Its tokenizer.
        examples: Any number.
        max_length: Tokens beyond which an example is split into windows; None for what the model
            reads at once.

    Returns:
        A row for each example, or for each window of one.

    Raises:
        DataError: A prompt alone is longer than that, or an example holds tokens that the model
            has no embedding for.
    """
    lengths = [each for each in (max_length, context_length(model)) if each is not None]
    rows: list[tuple[int, Encoded]] = []
    split = 0
    for number, example in enumerate(examples, 1):
        row = encode(tokenizer, example)
        if not lengths or len(row.input_ids) <= min(lengths):
            rows.append((number, row))
            continue
        windows = text_windows(tokenizer, example, min(lengths), f"example {number}")
        rows += [(number, encode(tokenizer, each)) for each in windows]
        split += 1
    if split:
        _log.info(
            "%d examples longer than %d tokens, split into %d windows.",
            split, min(lengths), len(rows) - number + split,
        )  # fmt: skip
    embeddings: Any = model.get_input_embeddings()
    known = embeddings.weight.shape[0]
    checked = []
    for number, row in rows:
        if max(row.input_ids) >= known:
            raise DataError(
                f"example {number}: token {max(row.input_ids)}; the model has {known} embeddings",
                "Use the tokenizer that belongs to the checkpoint.",
            )
        checked.append(row)
    return checked


def run_stages(
    model: PreTrainedModel,
    stages: Sequence[Stage],
    rows: EncodedRows,
    training: Training,
    *,
    device: torch.device,
    retain: Retain | None = None,
    workspace: Path | None = None,
    progress: Progress | None = None,
) -> list[Trained]:
    """Trains the stages in turn, each on the model that the ones before it left.

    Args:
        model: Float32; trained in place.
        stages: What to train, in order.
        rows: On what.
        training: How.
        device: Where.
        retain: Holds the model to its base; learns here what the base's values were.
        workspace: Where finished stages, and checkpoints within one, are kept and found again.
            None for a run that need not survive a kill.
        progress: See `train_stage`.

    Returns:
        The result of each stage.
    """
    if not is_sharded(model):
        model.to(device)  # type: ignore[arg-type]
    results = []
    for number, stage in enumerate(stages):
        if retain is not None and retain.originals is not None:
            retain.originals |= pieces_of(model, stage.parameters)
        file = None if workspace is None else workspace / f"stage-{number:05d}.safetensors"
        trained = run_stage(
            model,
            stage,
            rows,
            training,
            file,
            device=device,
            retain=retain,
            place=(number, len(stages)),
            progress=progress,
        )
        results.append(trained)
    return results


def run_stage(
    model: PreTrainedModel,
    stage: Stage,
    rows: EncodedRows,
    training: Training,
    file: Path | None,
    *,
    device: torch.device,
    retain: Retain | None = None,
    place: tuple[int, int] = (0, 1),
    progress: Progress | None = None,
) -> Trained:
    """Trains a stage, or takes it as it was finished by a run that was killed later.

    Args:
        model: Float32; trained in place.
        stage: What to train.
        rows: On what.
        training: How.
        file: Where the finished stage is kept, and beside it checkpoints; None for nowhere.
        device: Where.
        retain: See `train_stage`.
        place: See `train_stage`.
        progress: See `train_stage`.
    """
    if file is not None and file.is_file():
        return _read(model, file)
    trained = train_stage(
        model,
        stage,
        rows,
        training,
        directory=None if file is None else file.with_suffix(""),
        device=device,
        retain=retain,
        place=place,
        progress=progress,
    )
    if file is not None:
        values = values_of(model, stage.parameters, is_main())
        if is_main():
            _write(file, values, trained)
        wait_for_all()  # whoever still writes its part of the last point
        if is_main():
            shutil.rmtree(file.with_suffix(""), ignore_errors=True)
        wait_for_all()
    return trained


def _write(file: Path, values: dict[str, torch.Tensor], trained: Trained) -> None:
    """A finished stage; whole under its name or not there."""
    with writing(file.parent):
        save_tensors(values, file, {"trained": json.dumps(asdict(trained))})


def _read(model: PreTrainedModel, file: Path) -> Trained:
    with safe_open(file, "pt") as saved:
        set_values(model, {name: saved.get_tensor(name) for name in saved.keys()})  # noqa: SIM118
        return Trained(**json.loads(saved.metadata()["trained"]))
