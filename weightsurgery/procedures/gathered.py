"""Keeping data while a vector is removed: its activation statistics, gathered for the edit.

They are written to a directory beside the output, which is removed when the edit is done.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from weightsurgery.checkpoint.plain_files import need_space
from weightsurgery.checkpoint.reader import Checkpoint
from weightsurgery.checkpoint.record import EditRecord
from weightsurgery.checkpoint.source import Source, resolve_source
from weightsurgery.checkpoint.stacks import input_width
from weightsurgery.checkpoint.staging import Staging
from weightsurgery.checkpoint.targets import beside, check_target
from weightsurgery.errors import EditError
from weightsurgery.learning.activations import BATCH_TOKENS, gathered, linear_inputs, sums_bound
from weightsurgery.learning.keep_span import Kept, keep_texts
from weightsurgery.learning.models import load_model, load_tokenizer
from weightsurgery.learning.statistics import tokens_of
from weightsurgery.progress import Progress
from weightsurgery.unlearning.matrices import stored_matrices
from weightsurgery.unlearning.sets import Sets
from weightsurgery.vectors.lineage import samples_of
from weightsurgery.vectors.statistics import InputStatistics, Statistics, StatisticsWriter

__all__ = ["DataStatistics", "PlannedStatistics", "keep_data"]

_LABEL = "the data to keep"


class DataStatistics(Statistics):
    """Activation statistics that were gathered for one edit, named by their data.

    Args:
        source: Their temporary directory.
        origin: The data they were gathered from.
    """

    def __init__(self, source: Source, origin: Mapping[str, Any]) -> None:
        super().__init__(source)
        self.label = _LABEL
        self._origin = origin

    def provenance(self) -> Mapping[str, Any]:
        """See :class:`InputStatistics`; the data, for the statistics themselves do not stay."""
        return {**self._origin, "paths": []}


@dataclass(frozen=True)
class PlannedStatistics:
    """Statistics that would be gathered: their widths are known, for a plan.

    Attributes:
        widths: By tensor name.
        origin: The data they would be gathered from.
    """

    widths: Mapping[str, int]
    origin: Mapping[str, Any]
    label: str = _LABEL

    @property
    def nbytes(self) -> int:
        """Size on disk, at most: layers with one input share one matrix."""
        return sum(4 * width**2 for width in self.widths.values())

    def width(self, name: str) -> int | None:
        """See :class:`InputStatistics`."""
        return self.widths.get(name)

    def for_tensor(self, name: str) -> torch.Tensor | None:
        """See :class:`InputStatistics`; none yet."""
        return None

    def provenance(self) -> Mapping[str, Any]:
        """See :class:`InputStatistics`."""
        return {**self.origin, "paths": []}


@contextmanager
def keep_data(
    base: Checkpoint,
    data: Sequence[str],
    out: str | os.PathLike[str],
    names: Sequence[str],
    *,
    prompts: int = 2000,
    seed: int = 0,
    device: str = "auto",
    overwrite: bool = False,
    dry_run: bool = False,
    progress: Progress | None = None,
) -> Iterator[InputStatistics]:
    """Activation statistics of data sets and of strangers' prompts made from them.

    Use as a context manager: they exist inside, and are removed after.

    Args:
        base: The checkpoint, of a causal language model.
        data: Files; see :func:`weightsurgery.learning.data.read_examples`.
        out: The output of the edit, beside which they are stored.
        names: The matrices that the edit changes.
        prompts: Strangers' prompts, in equal parts of the form of every data set; 0 for none.
        seed: Of the draws.
        device: Where the model runs.
        overwrite: Whether the output may replace one.
        dry_run: Gather nothing, and yield :class:`PlannedStatistics`.
        progress: Called as ``progress(stage, done, total)`` in tokens.

    Raises:
        DataError: Data that cannot be read, or that the model cannot take.
        EditError: A negative number of prompts.
        OutputError: No space, or another process writes this output.
        UnsupportedCheckpointError: A matrix is no linear layer of its own in memory.
        NonFiniteError: The model computes NaN or infinity.
    """
    if prompts < 0:
        raise EditError(f"prompts {prompts}", "Give a whole number from 0.")
    tokenizer = load_tokenizer(base.path)
    sets = Sets.read(tokenizer, keep=data)
    origin = {
        "kind": "data",
        "name": [dataset.name for dataset in sets.keep],
        "sha256": {dataset.name: dataset.sha256 for dataset in sets.keep},
        "prompts": prompts,
        "seed": seed,
    }
    planned = PlannedStatistics({name: input_width(base, name) for name in names}, origin)
    if dry_run:
        yield planned
        return
    target = Path(os.path.realpath(out))
    if not beside(target).exists():  # else there may be something to resume
        check_target(target, [base.path, *(dataset.path for dataset in sets.keep)], overwrite)
    # One part has the form of the task itself, which a vector does not reveal.
    keep = Kept([dataset.examples for dataset in sets.keep])
    prompt_count = prompts + prompts // len(sets.keep)
    texts = keep_texts(tokenizer, (), keep, prompt_count, seed)
    place = target.with_name(f"{target.name}.keep-statistics")
    staging = Staging(place, f"statistics {os.getpid()}", [base.path], overwrite=True)
    try:
        why = " for activation statistics beside it"
        need_space(target, planned.nbytes, staging.root, why)
        model, _ = load_model(base.path, device)
        stored = stored_matrices(model, base, names)
        layers = {name: layer for name, layer in linear_inputs(model).items() if name in stored}
        rows = tokens_of(tokenizer, texts, model)
        directory = staging.root / "statistics"
        shutil.rmtree(directory, ignore_errors=True)  # of a killed run
        with StatisticsWriter(directory, [base.path]) as writer:
            bound = sums_bound(model, layers)
            for group, gram, n in gathered(model, layers, rows, bound, BATCH_TOKENS, progress):
                writer.add([stored[name] for name in group], gram, n)
            record = EditRecord("activation-statistics")
            record.parameters = {"base_samples": samples_of(base)}
            writer.commit(record)
        del model
        yield DataStatistics(resolve_source(str(directory)), origin)
    finally:
        staging.close()
