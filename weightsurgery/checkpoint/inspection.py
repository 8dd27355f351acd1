"""A checkpoint at a glance, from its headers and config alone."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from weightsurgery.checkpoint.naming import kind_of, layer_of, twin_candidates
from weightsurgery.checkpoint.quantised import quantisation
from weightsurgery.checkpoint.reader import Checkpoint
from weightsurgery.checkpoint.remarks import remarks
from weightsurgery.checkpoint.tied import tied_copies

__all__ = ["Inspection", "TensorGroup", "inspect"]


@dataclass(frozen=True)
class TensorGroup:
    """Tensors whose names differ only in numbers.

    Attributes:
        name: The name with numbers replaced by ``*``.
        kind: See :data:`weightsurgery.checkpoint.naming.KINDS`.
        dtype: Their dtype.
        shape: Their shape.
        count: How many there are.
        parameters: Elements of all of them.
    """

    name: str
    kind: str
    dtype: str
    shape: tuple[int, ...]
    count: int
    parameters: int


@dataclass(frozen=True)
class Inspection:
    """What a checkpoint holds.

    Attributes:
        name: As the user gave it.
        revision: Commit, if it comes from the Hub.
        architecture: From the config; empty if it says nothing.
        parameters: Number of elements of all tensors.
        nbytes: Bytes of all tensors.
        tensors: Number of tensors.
        layers: Number of layers, from the names.
        shards: File name → size in bytes.
        dtypes: dtype → number of elements.
        kinds: Kind → number of elements.
        tied: Tied names: copy → the tensor it follows, for copies that are stored; the name of the
            config's setting where only one of the two is.
        quantised: The quantisation scheme, or None.
        groups: All tensors, grouped.
        remarks: What is odd about it, a line each; see
            :func:`weightsurgery.checkpoint.remarks.remarks`.
    """

    name: str
    revision: str | None
    architecture: str
    parameters: int
    nbytes: int
    tensors: int
    layers: int
    shards: Mapping[str, int]
    dtypes: Mapping[str, int]
    kinds: Mapping[str, int]
    tied: Mapping[str, str]
    quantised: str | None
    groups: tuple[TensorGroup, ...]
    remarks: tuple[str, ...] = ()


def inspect(checkpoint: Checkpoint) -> Inspection:
    """Describe a checkpoint; of a remote one no weight is read."""
    entries = checkpoint.entries.values()
    dtypes: Counter[str] = Counter()
    kinds: Counter[str] = Counter()
    groups: dict[tuple[str, str, str, tuple[int, ...]], list[int]] = {}
    for entry in entries:
        dtypes[entry.dtype] += entry.numel
        kinds[kind_of(entry.name)] += entry.numel
        pattern = re.sub(r"(?<=[.])\d+(?=[.]|$)", "*", entry.name)
        key = (pattern, kind_of(entry.name), entry.dtype, entry.shape)
        groups.setdefault(key, []).append(entry.numel)
    layers = {layer_of(name) for name in checkpoint.entries} - {None}
    config = checkpoint.config
    tied = _uncompared(checkpoint) if checkpoint.remote else dict(tied_copies(checkpoint))
    if not tied and checkpoint.text_config.get("tie_word_embeddings") and not kinds["head"]:
        tied = {"output head": "input embedding (only one of them is stored)"}
    named = config.get("architectures") or [config.get("model_type", "")]
    return Inspection(
        checkpoint.source.name,
        checkpoint.source.revision,
        str(named[0]) if isinstance(named, list) and named else "",
        checkpoint.layout.parameters,
        checkpoint.layout.nbytes,
        len(checkpoint.entries),
        len(layers),
        {name: header.size for name, header in checkpoint.shards.items()},
        dict(dtypes.most_common()),
        dict(kinds.most_common()),
        tied,
        quantisation(checkpoint),
        tuple(TensorGroup(*key, len(sizes), sum(sizes)) for key, sizes in groups.items()),
        remarks(checkpoint),
    )


def _uncompared(checkpoint: Checkpoint) -> dict[str, str]:
    """Stored heads that the config ties to an embedding, which only their bytes could confirm."""
    if checkpoint.text_config.get("tie_word_embeddings") is not True:
        return {}
    names = list(checkpoint.entries)
    twins = {name: twin_candidates(name, names) for name in names if kind_of(name) == "head"}
    return {
        name: f"{others[0]} (by the config; the bytes were not compared)"
        for name, others in twins.items()
        if others
    }
