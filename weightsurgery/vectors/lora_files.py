"""The two files of a PEFT LoRA adapter: a plan of their size, and writing them all or nothing."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weightsurgery.algebra.lowrank import LowRank, Rank
from weightsurgery.checkpoint.digests import file_sha256
from weightsurgery.checkpoint.header import BLOCK_ELEMENTS
from weightsurgery.checkpoint.layout import encode_header
from weightsurgery.checkpoint.plain_files import new_file, write_whole
from weightsurgery.checkpoint.reader import Checkpoint
from weightsurgery.checkpoint.record import EditRecord
from weightsurgery.checkpoint.staging import RECORD_NAME, Staging, output_errors
from weightsurgery.checkpoint.targets import check_target
from weightsurgery.deferred import torch
from weightsurgery.errors import NonFiniteError
from weightsurgery.vectors.deltas import DenseDelta, FactorDelta
from weightsurgery.vectors.lora import Content, LoraLayer, LoraLayers, Sorted, factored, is_factored
from weightsurgery.vectors.task_vector import TaskVector

__all__ = ["DTYPES", "AdapterPlan", "LoraWriter", "adapter_config", "halves", "plan_adapter"]

# Dtypes of factors, and what safetensors calls them.
DTYPES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}

_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


class LoraWriter:
    """Writes an adapter layer by layer; one layer's factors are held at a time.

    peft reads a single file, whose header comes first and needs the shapes of all factors: so
    they are gathered in a file beside it. Use as a context manager: an exception removes
    everything, :meth:`commit` makes it whole.

    Args:
        staging: Where to write.
        dtype: One of :data:`DTYPES`, that of the factors.

    Attributes:
        ranks: Rank of each layer written so far.
        parameters: Numbers written so far.
    """

    def __init__(self, staging: Staging, dtype: str) -> None:
        self._staging, self._code = staging, DTYPES[dtype]
        self._tensors: list[tuple[str, str, tuple[int, ...]]] = []
        self._gathered = staging.root / "factors"
        try:
            with output_errors(staging.target):
                self._file = new_file(self._gathered)
        except BaseException:
            staging.close()
            raise
        self.ranks: dict[LoraLayer, int] = {}
        self.parameters = 0

    def __enter__(self) -> LoraWriter:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):  # what a full disk did not take fails again here
            self._file.close()
        self._staging.close()

    def add(self, layer: LoraLayer, a: torch.Tensor, b: torch.Tensor) -> None:
        """Add the factors of one layer: ``A`` (r, in) and ``B`` (out, r), in the file's dtype."""
        self.ranks[layer] = a.shape[0]
        for key, half in zip(layer.keys, (a, b), strict=True):
            self._tensors.append((key, self._code, tuple(half.shape)))
            self.parameters += half.numel()
            with output_errors(self._staging.target):
                self._file.write(half.contiguous().reshape(-1).view(torch.uint8).numpy().data)

    def commit(self, record: EditRecord, config: Mapping[str, Any]) -> EditRecord:
        """Write the files and the record, and put the adapter in its place."""
        files = self._staging.files
        with output_errors(self._staging.target):
            self._file.close()
            with self._gathered.open("rb") as gathered, new_file(files / _WEIGHTS) as file:
                file.write(encode_header(self._tensors, {"format": "pt"}))
                shutil.copyfileobj(gathered, file, 1 << 22)
            write_whole(files / _CONFIG, json.dumps(config, indent=2) + "\n")
            record.files = {
                name: {"sha256": file_sha256(files / name), "bytes": (files / name).stat().st_size}
                for name in (_CONFIG, _WEIGHTS)
            }
            write_whole(files / RECORD_NAME, record.to_json())
        self._staging.commit([*record.files, RECORD_NAME])
        return record


def halves(name: str, factors: LowRank, dtype: str) -> tuple[torch.Tensor, torch.Tensor, float]:
    """The two factors of an adapter, of equal size: ``B = U √S`` and ``A = √S Vᵀ``.

    Args:
        name: The tensor, for messages.
        factors: Of its change, oriented (out, in).
        dtype: One of :data:`DTYPES`.

    Returns:
        ``A`` (r, in) and ``B`` (out, r) in that dtype, and ``‖B A − U diag(S) Vᵀ‖``.

    Raises:
        NonFiniteError: A number is beyond that dtype.
    """
    root = factors.S.double().sqrt()
    a, b = (factors.V.double() * root).T, factors.U.double() * root
    stored_as = getattr(torch, dtype)
    stored_a, stored_b = a.to(stored_as), b.to(stored_as)
    if not (bool(stored_a.isfinite().all()) and bool(stored_b.isfinite().all())):
        raise NonFiniteError(
            f"tensor {name!r}: factors too large for {dtype}",
            "Use --dtype bfloat16 or float32, or a smaller --scale.",
        )
    # B A − B'A' = (B − B') A + B' (A − A'): by factors, and no large numbers cancel.
    left = torch.cat([b - stored_b.double(), stored_b.double()], 1)
    right = torch.cat([a, a - stored_a.double()])
    missed = float(((left.T @ left) * (right @ right.T)).sum())
    return stored_a, stored_b, math.sqrt(max(0.0, missed))


def adapter_config(
    base: Checkpoint, layers: LoraLayers, ranks: Mapping[LoraLayer, int]
) -> dict[str, Any]:
    """The content of ``adapter_config.json``.

    ``r`` is the largest rank. Layers of a lower one are listed in both patterns, so that every
    scaling is 1: alpha over rank by the patterns, alpha over ``r`` without.

    Args:
        base: The base; by its path if it is a directory, which need not be the current one's.
        layers: The layers of the base.
        ranks: Those that are adapted.
    """
    r = max(ranks.values())
    lower = {f"^{re.escape(layer.module)}": rank for layer, rank in ranks.items() if rank != r}
    architectures = base.config.get("architectures") or [""]
    causal = str(architectures[0]).endswith(("ForCausalLM", "LMHeadModel"))
    local = base.source.revision is None
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM" if causal else None,
        "base_model_name_or_path": (
            str(base.path) if local else base.source.name.partition("@")[0]
        ),
        "revision": base.source.revision,
        "inference_mode": True,
        "r": r,
        "lora_alpha": r,
        "rank_pattern": lower,
        "alpha_pattern": lower,
        "target_modules": layers.targets(ranks),
        "fan_in_fan_out": any(layer.flipped and not layer.embedding for layer in ranks),
        "lora_dropout": 0.0,
        "bias": "none",
        "use_rslora": False,
        "use_dora": False,
        "init_lora_weights": True,
        "modules_to_save": None,
    }


_WIDTHS = {"bfloat16": 2, "float16": 2, "float32": 4}


@dataclass(frozen=True)
class AdapterPlan:
    """The cost and effect of writing an adapter.

    Attributes:
        edit: The name of an edit, or ``export``.
        edited: Tensors that may change, with the largest rank each can get.
        left_out: Tensors that the change would change and the adapter does not.
        read_bytes: Bytes of weights, vectors and statistics to be read.
        write_bytes: Size of the adapter's weights.
        exact: Whether that is its exact size; if not, it is an upper bound, as ranks are chosen
            during the SVD.
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
    sorted_tensors: Sorted,
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
    """Plan the writing of an adapter; changes given as factors are recompressed for their rank.

    Args:
        edit: The edit's name.
        base: The base.
        content: The change.
        sorted_tensors: Its tensors, sorted by :func:`~weightsurgery.vectors.lora.sort_tensors`.
        out: Where it would go.
        inputs: Files that are read.
        vectors: All vectors that are read.
        dtype: Of the factors.
        overwrite: Replace an existing output of this tool.
        workers: Matrices that are worked on at a time.
        beside: Bytes of statistics that are read for a tensor, and the memory they take.
        most: The largest rank of any of the content's matrices, where known.

    Raises:
        OutputError: The output may not be written here.
    """
    target = Path(os.path.realpath(os.fspath(out)))
    with output_errors(target):
        folders = sorted({base.path, *(path.parent for path in inputs)})
        check_target(target, folders, overwrite)
    ranks = {layer: _rank(base, content, layer, most) for layer in sorted_tensors.layers}
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
        max(_memory_bytes(base, content, layer, rank), statistics.get(layer.name, (0, 0))[1])
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
        tuple(sorted_tensors.left_out),
        read_bytes=read,
        write_bytes=written,
        exact=all(exact for _, exact in ranks.values()),
        memory_bytes=sum(sorted(needs, reverse=True)[:workers]),
        free_bytes=shutil.disk_usage(above).free,
    )


def _rank(
    base: Checkpoint, content: Content, layer: LoraLayer, most: int | None
) -> tuple[int, bool]:
    """The rank of a layer's factors, and whether it is exact rather than an upper bound."""
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


def _memory_bytes(base: Checkpoint, content: Content, layer: LoraLayer, rank: int) -> int:
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
