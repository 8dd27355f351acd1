"""Whether a change derives from this base: a sampled check before anything is edited.

Checkpoints of one architecture fit each other shape by shape, whether or not one was trained
from the other; the difference of two unrelated models is noise as large as the weights. A fine
tune stays close to its base (cosine near 1); independent weights have cosine near 0.
"""

from __future__ import annotations

import base64
import hashlib
import math
import os
import struct
from array import array
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from weightsurgery.checkpoint.layout import ARITHMETIC_DTYPES
from weightsurgery.checkpoint.naming import kind_of
from weightsurgery.checkpoint.reader import Checkpoint, torch_dtype
from weightsurgery.checkpoint.source import resolve_source
from weightsurgery.deferred import torch
from weightsurgery.errors import LineageError, VectorError, WeightSurgeryError
from weightsurgery.vectors.adapters import AdapterChange
from weightsurgery.vectors.finetuned import FinetunedChange
from weightsurgery.vectors.saved import SavedChange
from weightsurgery.vectors.statistics import InputStatistics, Statistics, WeightedStatistics
from weightsurgery.vectors.task_vector import Change

__all__ = ["Kinship", "check_lineage", "kinship", "sample"]

TENSORS = 16
ELEMENTS = 256

# Independent weights have a cosine near 0 (0.06 in standard deviation over 256 samples) and a
# relative difference of 1.4; fine-tunes over 0.8 and under 0.7. Some matrices of a fine-tune may
# have been trained anew: a quarter of them is too many.
LEAST_COSINE, MOST_SIZE, MOST_ALIEN = 0.5, 5.0, 0.25


@dataclass(frozen=True)
class Kinship:
    """The result of the check.

    Attributes:
        vector: Name of the change.
        verdict: ``"related"``, ``"unrelated"``, or ``"unknown"`` if there was nothing to compare.
        cosine: Median cosine between the base's samples and the other's; None if unknown.
        relative: Median size of their difference relative to the base; None if unknown.
        evidence: What was compared.
    """

    vector: str
    verdict: str
    cosine: float | None
    relative: float | None
    evidence: str

    def to_dict(self) -> dict[str, Any]:
        """For the record."""
        return asdict(self)


def sample(checkpoint: Checkpoint, name: str) -> array[float]:
    """Elements spread evenly over a tensor: up to :data:`ELEMENTS`, as float32."""
    entry = checkpoint.entry(name)
    runs = 8
    length = min(ELEMENTS // runs, max(1, entry.numel // runs))
    width = entry.nbytes // entry.numel
    values = array("f")
    for run in range(min(runs, entry.numel // length)):
        start = (entry.numel - length) * run // max(1, runs - 1) * width
        raw = checkpoint.read_bytes(name, start, start + length * width)
        values.extend(_numbers(raw, entry.dtype))
    return values


def _numbers(raw: bytearray, dtype: str) -> Sequence[float]:
    """Decode a few elements with the standard library, faster than loading NumPy."""
    if dtype.startswith("F8"):
        numbers: list[float] = torch.frombuffer(raw, dtype=torch_dtype(dtype)).float().tolist()
        return numbers
    if dtype == "BF16":  # the upper half of a float32
        wide = bytearray(2 * len(raw))
        wide[2::4], wide[3::4] = raw[::2], raw[1::2]
        raw, dtype = wide, "F32"
    kind, width = {"F16": ("e", 2), "F32": ("f", 4), "F64": ("d", 8)}[dtype]
    return struct.unpack(f"<{len(raw) // width}{kind}", raw)


def sampled_names(checkpoint: Checkpoint, among: Collection[str] | None = None) -> list[str]:
    """Matrices to recognise a checkpoint by, picked by a hash of their names.

    Every n-th would pick the same matrix of each layer, or none but masks. Embeddings and norms
    say little: the former often stay, the latter are near one everywhere.

    Args:
        checkpoint: Where they are.
        among: Only these; None for all.
    """
    names = [
        name
        for name, entry in checkpoint.entries.items()
        if (among is None or name in among)
        and len(entry.shape) >= 2
        and entry.numel >= 16
        and entry.dtype in ARITHMETIC_DTYPES
        and kind_of(name) not in ("embeddings", "head", "norm")
        and not name.endswith("bias")
    ]
    names.sort(key=lambda name: hashlib.blake2b(name.encode()).digest())
    return names[:TENSORS]


def samples_of(checkpoint: Checkpoint, among: Collection[str] | None = None) -> dict[str, str]:
    """Samples of a base, for a saved vector's record: base64 of float32."""
    return {
        name: base64.b64encode(_packed(sample(checkpoint, name))).decode()
        for name in sampled_names(checkpoint, among)
    }


def _packed(values: array[float]) -> bytes:
    return struct.pack(f"<{len(values)}f", *values)


def _compare(
    vector: str, pairs: Mapping[str, tuple[array[float], array[float]]], evidence: str
) -> Kinship:
    cosines: dict[str, float] = {}
    sizes: dict[str, float] = {}
    for name, (ours, theirs) in pairs.items():
        if not all(map(math.isfinite, (*ours, *theirs))):
            continue  # the edit itself names the tensor and the remedy
        if len(set(ours)) <= 2 and len(set(theirs)) <= 2:
            continue  # a mask, or nothing but zeros: alike in any two models
        norm, other = math.hypot(*ours), math.hypot(*theirs)
        inner = math.fsum(a * b for a, b in zip(ours, theirs, strict=True))
        apart = math.dist(ours, theirs)
        cosines[name] = inner / (norm * other) if norm > 0 and other > 0 else 0.0
        sizes[name] = apart / norm if norm > 0 else float("inf")
    if not cosines:
        return Kinship(vector, "unknown", None, None, f"{evidence}: nothing to compare")
    alien = [name for name in cosines if cosines[name] < LEAST_COSINE or sizes[name] > MOST_SIZE]
    cosine, relative = _lower_median(cosines.values()), _lower_median(sizes.values())
    verdict = "unrelated" if len(alien) >= MOST_ALIEN * len(cosines) else "related"
    if alien:
        evidence += f"; {len(alien)} of {len(cosines)} matrices differ, {alien[0]!r} for one"
    return Kinship(vector, verdict, round(cosine, 6), min(1e9, float(f"{relative:.6g}")), evidence)


def _lower_median(values: Iterable[float]) -> float:
    """The lower median."""
    ordered = sorted(values)
    return ordered[(len(ordered) - 1) // 2]


def kinship(
    base: Checkpoint, change: Change | InputStatistics, among: Collection[str] | None = None
) -> Kinship:
    """Compare the origin of a change or of statistics with the base, on up to 16 matrices.

    Args:
        base: The base.
        change: The change, or the statistics, that should come from it.
        among: Compare these tensors alone; None for all.
    """
    if isinstance(change, WeightedStatistics):
        return kinship(base, change.statistics, among)
    if isinstance(change, FinetunedChange):
        if change.base is not base and change.base.path != base.path:
            raise ValueError("the change was opened for another base")
        return _by_weights(base, change.finetuned, change.label, "weights of the fine-tuned", among)
    if isinstance(change, SavedChange | Statistics):
        stored = change.record.parameters.get("base_samples")
        if not isinstance(stored, Mapping):
            what = "vector has" if isinstance(change, SavedChange) else "statistics have"
            return Kinship(change.label, "unknown", None, None, f"the {what} no samples")
        pairs = {}
        renamed = change.base_names if isinstance(change, SavedChange) else {}
        for key, text in stored.items():
            name = renamed.get(str(key), str(key))
            entry = base.entries.get(name)
            theirs = _decoded(change, text)
            if among is not None and name not in among:
                continue
            if entry is not None and entry.numel and entry.dtype in ARITHMETIC_DTYPES:
                ours = sample(base, name)
                if len(ours) == len(theirs):
                    pairs[name] = (ours, theirs)
        come = "vector was taken" if isinstance(change, SavedChange) else "statistics come"
        return _compare(change.label, pairs, f"samples of the base the {come} from")
    if isinstance(change, AdapterChange):
        return _adapter_kinship(base, change)
    return Kinship(change.label, "unknown", None, None, "a vector in memory")


def _decoded(change: SavedChange | Statistics, text: object) -> array[float]:
    try:
        raw = base64.b64decode(text if isinstance(text, str) else "?", validate=True)
        return array("f", struct.unpack(f"<{len(raw) // 4}f", raw))
    except (ValueError, struct.error):
        raise VectorError(
            f"{change.source.name}: damaged base_samples in its record", "Save the vector again."
        ) from None


def _by_weights(
    base: Checkpoint,
    other: Checkpoint,
    label: str,
    evidence: str,
    among: Collection[str] | None = None,
) -> Kinship:
    pairs = {
        name: (sample(base, name), sample(other, name))
        for name in sampled_names(base, among)
        if name in other.entries
        and other.entry(name).shape == base.entry(name).shape
        and other.entry(name).dtype in ARITHMETIC_DTYPES
    }
    return _compare(label, pairs, evidence)


def _adapter_kinship(base: Checkpoint, change: AdapterChange) -> Kinship:
    """An adapter has no copy of its base: compare the base its config names, if it is here."""
    name = change.base_name
    if not name:
        return Kinship(change.label, "unknown", None, None, "the adapter names no base")
    if os.path.isdir(name) and not os.path.isabs(name):
        # It was relative to where the adapter was trained, which need not be here.
        return Kinship(
            change.label, "unknown", None, None, f"the adapter names its base as {name!r}"
        )
    if not os.path.isdir(name) and name.split("@")[0] == base.source.name.split("@")[0]:
        return Kinship(change.label, "related", None, None, f"the adapter names this base, {name}")
    try:
        # An adapter's note is no reason to download its base: look on this machine alone.
        named = Checkpoint.open(resolve_source(name, local_only=True).path)
    except WeightSurgeryError:
        return Kinship(
            change.label, "unknown", None, None, f"the adapter's base {name} is not on this machine"
        )
    with named:
        return _by_weights(base, named, change.label, f"weights of the adapter's base {name}")


def check_lineage(
    base: Checkpoint, changes: Sequence[Change | InputStatistics], allow_unrelated: bool
) -> list[Kinship]:
    """Refuse changes and statistics that come from other weights than the base's.

    Raises:
        LineageError: One is unrelated, and ``allow_unrelated`` is not set.
    """
    kinships = [kinship(base, change) for change in changes]
    for kin in kinships:
        if kin.verdict == "unrelated" and not allow_unrelated:
            raise LineageError(
                f"{kin.vector}: not derived from {base.source.name}: cosine {kin.cosine:.3f},"
                f" relative difference {kin.relative:.2f} ({kin.evidence})",
                "Use the base it was trained from; --allow-unrelated edits all the same.",
            )
    return kinships
