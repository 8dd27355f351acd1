"""Initial directions of the adapter in a training by neighbours: where the request stands out.

LoRA starts from random rows ``A``, which feel every input alike, so that what is learned about the
request has to be unlearned about all else. Here they are the directions in which the inputs of each
matrix on texts to forget have most energy beside those on texts that are to stay
(:mod:`weightsurgery.algebra.contrast`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, TypeVar

import torch
from torch import Tensor

from weightsurgery.algebra.contrast import WORK_BYTES, contrasting
from weightsurgery.learning.activations import BATCH_TOKENS, gathered, linear_inputs
from weightsurgery.learning.material import Material, Row
from weightsurgery.learning.models import in_halves
from weightsurgery.progress import Progress

__all__ = ["EPSILON", "Directions", "directions", "sample", "start", "sums_bytes"]

EPSILON = 0.1
"""Ridge, of the median of what the inputs to keep have in a dimension."""

# Tokens that are read, of what is to be forgotten and of each kind that is to stay.
_TOKENS = 1024

# Bytes that the sums of inputs which grow at once may take, of either side, or one matrix's.
_MOST_BYTES = 4 << 30


@dataclass(frozen=True)
class Directions:
    """Where a request stands out among the inputs of a matrix of width ``n``.

    Attributes:
        rows: ``A``, (rank, n), float32, on the model's device: as long as random rows of LoRA are
            felt by an input to forget without massive activations. Rows in which the texts to
            forget have no energy are zero.
        loadings: ``L``, (n, rank): ``L A x`` is the regression of an input ``x`` of the request on
            its coordinates ``A x``, where these are all uncorrelated.
    """

    rows: Tensor
    loadings: Tensor


def directions(
    model: Any,
    names: Sequence[str],
    material: Material,
    rank: int,
    *,
    tokens: tuple[int, int | None] = (_TOKENS, _TOKENS),
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, Directions]:
    """Rows for an adapter to start from, and what they say of an input.

    Args:
        model: As it is, without its adapter.
        names: Weights of its linear layers; others are left out.
        material: The texts.
        rank: Rows per matrix.
        tokens: How many are read, about, of the request, and of each kind of what is to stay; None
            for all.
        seed: Of the iteration that finds eigenvectors.
        progress: Called as ``progress(text, done, total)``.

    Returns:
        By name. A matrix that never ran is missing.

    Raises:
        NonFiniteError: The model computes NaN or infinity.
    """
    layers = {name: each for name, each in linear_inputs(model).items() if name in set(names)}
    taught, kept = tokens
    keep_rows = [row for rows in material.kept.values() for row in sample(rows, kept)]
    if not layers or not keep_rows:  # nothing to stand out from
        return {}
    widest = max(width for _, width in layers.values())
    most = max(_MOST_BYTES, 12 * widest**2)
    starts: dict[str, Directions] = {}
    # By matrix and side. Experts that few texts come to may run on one side alone, or later there.
    waiting: tuple[dict[str, Tensor], dict[str, Tensor]] = ({}, {})
    with in_halves(model), torch.no_grad():
        sides = (
            gathered(model, layers, [row.tokens for row in rows], most, BATCH_TOKENS, progress)
            for rows in (sample(material.taught, taught), keep_rows)
        )
        for both in zip_longest(*sides):
            for sums, side in zip(waiting, both, strict=True):
                members, gram, count = side or ((), torch.empty(0), 1)
                sums |= dict.fromkeys(members, gram.div_(count))
            starts |= _contrasted(waiting, waiting[0].keys() & waiting[1].keys(), rank, seed)
        for name, task in waiting[0].items():
            waiting[1][name] = torch.zeros_like(task)
        starts |= _contrasted(waiting, set(waiting[0]), rank, seed)
    return starts


def _contrasted(
    waiting: tuple[dict[str, Tensor], dict[str, Tensor]],
    names: Collection[str],
    rank: int,
    seed: int,
) -> dict[str, Directions]:
    """Those of matrices of which both sums are there, which are let go; once for shared inputs."""
    starts: dict[str, Directions] = {}
    known: dict[tuple[int, int], Directions] = {}
    pairs = {name: (waiting[0].pop(name), waiting[1].pop(name)) for name in sorted(names)}
    for name, (task, keep) in pairs.items():
        if (id(task), id(keep)) not in known:
            with torch.autocast(task.device.type, enabled=False):
                rows = contrasting(task, keep, rank, EPSILON, seed)
                length = (float(task.diagonal().median()) / 3) ** 0.5 or 1.0
                loadings = task.double() @ rows.T / length
            known[id(task), id(keep)] = Directions((length * rows).float(), loadings.float())
        starts[name] = known[id(task), id(keep)]
    return starts


def sums_bytes(widths: Collection[int]) -> int:
    """Peak memory of :func:`directions` in bytes, for matrices of such input widths ``n``.

    Two float64 sums of ``n²`` grow for each matrix as far as they fit the bound, and one matrix is
    decomposed meanwhile.
    """
    if not widths:
        return 0
    most = max(_MOST_BYTES, 12 * max(widths) ** 2)
    sums = min(most, sum(12 * width**2 for width in widths))
    return 2 * sums + WORK_BYTES * max(widths) ** 2


_T = TypeVar("_T", bound=Row)


def sample(rows: Sequence[_T], most: int | None) -> list[_T]:
    """Evenly spaced texts that have so many tokens together, at least one; or all, for None."""
    if most is None:
        return list(rows)
    tokens = sum(len(row.tokens) for row in rows)
    count = max(1, min(len(rows), len(rows) * most // max(1, tokens)))
    return [rows[n * len(rows) // count] for n in range(count)] if rows else []


def start(with_adapter: Any, rows: Mapping[str, Tensor]) -> None:
    """Give an adapter, which changes nothing yet, these rows; zero ones stay random.

    Args:
        with_adapter: As :func:`weightsurgery.learning.adapter.attach` made it.
        rows: By parameter, ``(rank, n)``.
    """
    inner = with_adapter.get_base_model()
    with torch.no_grad():
        for name, initial in rows.items():
            weight = inner.get_submodule(name.removesuffix(".weight")).lora_A["default"].weight
            nonzero = (initial != 0).any(1)
            weight[nonzero] = initial[nonzero].to(weight)
