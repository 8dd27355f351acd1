"""What writing an adapter would read, write and hold."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weightsurgery.algebra.lowrank import Rank
from weightsurgery.checkpoint.header import BLOCK_ELEMENTS
from weightsurgery.checkpoint.layout import encode_header
from weightsurgery.checkpoint.reader import Checkpoint
from weightsurgery.checkpoint.staging import check_target, output_errors
from weightsurgery.vectors.deltas import DenseDelta, FactorDelta
from weightsurgery.vectors.lora_content import Content, Sorted, factored, is_factored
from weightsurgery.vectors.lora_layers import LoraLayer
from weightsurgery.vectors.lora_writer import DTYPES
from weightsurgery.vectors.task_vector import TaskVector

__all__ = ["AdapterPlan", "plan_adapter"]

_WIDTHS = {"bfloat16": 2, "float16": 2, "float32": 4}


@dataclass(frozen=True)
class AdapterPlan:
    """What writing an adapter would do.

    Attributes:
        edit: What is written: the name of an edit, or ``export``.
        edited: Tensors that may change, with the most factors each can get.
        left_out: Tensors that the change would change and the adapter does not.
        read_bytes: Bytes of weights, vectors and statistics to be read.
        write_bytes: Size of the adapter's weights.
        exact: Whether that is its size; if not, it is at most so large, as ranks are found on the
            way.
        memory_bytes: Estimate of the working memory at its peak, without the interpreter.
        free_bytes: Free space where the output goes.
    """

    edit: str
    edited: Mapping[str, int]
    left_out: tuple[str, ...]
    read_bytes: int
    write_bytes: int
    exact: bool
    memory_bytes: int
    free_bytes: int

    def summary(self) -> dict[str, Any]:
        """Numbers and names, for ``--dry-run --json``."""
        return {
            "edit": self.edit,
            "as": "adapter",
            "edited": sorted(self.edited),
            "ranks": dict(self.edited),
            "left_out": list(self.left_out),
            "read_bytes": self.read_bytes,
            "write_bytes": self.write_bytes,
            "exact": self.exact,
            "memory_bytes": self.memory_bytes,
            "free_bytes": self.free_bytes,
        }


def plan_adapter(
    edit: str,
    base: Checkpoint,
    content: Content,
    found: Sorted,
    out: str | os.PathLike[str],
    inputs: Iterable[Path],
    *,
    vectors: Sequence[TaskVector],
    dtype: str,
    overwrite: bool = False,
    workers: int = 1,
    beside: Mapping[str, tuple[int, int]] | None = None,
    most: int | None = None,
) -> AdapterPlan:
    """Work out what writing an adapter takes; changes that are factors are factored to tell.

    Args:
        edit: Its name.
        base: The base.
        content: The change.
        found: Its tensors, sorted.
        out: Where it would go.
        inputs: Files that are read.
        vectors: All that are read.
        dtype: Of the factors.
        overwrite: Replace an existing output of this tool.
        workers: Matrices that are worked on at a time.
        beside: Bytes of statistics that are read for a tensor, and the memory they take.
        most: The most factors that the content has of any matrix, where it tells.

    Raises:
        OutputError: The output may not be written here.
    """
    target = Path(os.path.realpath(os.fspath(out)))
    with output_errors(target):
        folders = sorted({base.path, *(path.parent for path in inputs)})
        check_target(target, folders, overwrite)
    ranks = {layer: _rank(base, content, layer, most) for layer in found.layers}
    held = {layer: rank for layer, (rank, _) in ranks.items() if rank}
    tensors = []
    for layer, rank in held.items():
        rows, columns = base.entry(layer.name).shape
        out_, in_ = (columns, rows) if layer.flipped else (rows, columns)
        shapes = ((rank, in_), (out_, rank))
        pairs = zip(layer.keys, shapes, strict=True)
        tensors += [(key, DTYPES[dtype], shape) for key, shape in pairs]
    written = len(encode_header(tensors, {"format": "pt"})) if tensors else 0
    written += _WIDTHS[dtype] * sum(a * b for _, _, (a, b) in tensors)
    statistics = beside or {}
    needs = [
        max(_takes(base, content, layer, rank), statistics.get(layer.name, (0, 0))[1])
        for layer, rank in held.items()
    ]
    read = sum(statistics.get(layer.name, (0, 0))[0] for layer in held)
    for layer in held:
        stored = base.entry(layer.name).nbytes
        deltas = [vector.at(layer.name) for vector in vectors]
        terms = [term for delta in deltas if delta is not None for _, term in delta.terms]
        read += sum(_bytes_of(term, stored) for term in terms)
        read += stored * any(getattr(term, "relative", False) for term in terms)
    above = next(path for path in target.parents if path.exists())
    return AdapterPlan(
        edit,
        {layer.name: rank for layer, rank in held.items()},
        tuple(found.left_out),
        read_bytes=read,
        write_bytes=written,
        exact=all(exact for _, exact in ranks.values()),
        memory_bytes=sum(sorted(needs, reverse=True)[:workers]),
        free_bytes=shutil.disk_usage(above).free,
    )


def _rank(
    base: Checkpoint, content: Content, layer: LoraLayer, most: int | None
) -> tuple[int, bool]:
    """How many factors a layer gets, and whether it is no fewer."""
    delta = content.outline(layer.name)
    short = min(base.entry(layer.name).shape)
    if delta is None:
        return 0, True
    if is_factored(delta) and not content.factored:
        result = factored(base, content, layer, "cpu")
        return (0 if result is None else result[0].factors.rank), True
    limits = [short] if most is None else [short, most]
    if isinstance(content.rule, Rank):
        limits.append(content.rule.k)
    return min(limits), False


def _takes(base: Checkpoint, content: Content, layer: LoraLayer, rank: int) -> int:
    """Working memory of one matrix."""
    entry, delta = base.entry(layer.name), content.outline(layer.name)
    if delta is not None and is_factored(delta) and not content.factored:
        widths = [term.right.shape[1] for _, term in delta.terms if isinstance(term, FactorDelta)]
        return 8 * 4 * (rank + sum(widths)) * sum(entry.shape)  # float64, four times over
    # The change, its float64 projection on the Krylov basis, and a block of the base.
    return 12 * entry.numel + 6 * 4 * BLOCK_ELEMENTS + 8 * 4 * rank * sum(entry.shape)


def _bytes_of(term: object, stored: int) -> int:
    if isinstance(term, FactorDelta):
        return term.left.nbytes + term.right.nbytes
    if isinstance(term, DenseDelta) and term.stored is not None:
        return term.stored.entry.nbytes
    return stored
