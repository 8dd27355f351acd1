"""What a page knows of every tensor: a map of layers and modules, and the numbers behind it.

The map is small whatever the model: a cell for each layer and module, the experts of a layer in
one. The numbers of each tensor go into the page as compressed columns, unpacked when somebody
looks into a cell, so that 90,000 tensors are two megabytes.
"""

from __future__ import annotations

import base64
import gzip
import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from weightsurgery.checkpoint.naming import KINDS, kind_of, layer_of
from weightsurgery.report.visible import visible

__all__ = ["DIGITS", "LABELS", "packed", "rounded", "spectra_of", "tensor_map", "unpacked"]

DIGITS = 4
"""Significant digits that a page keeps of each number; of cosines, which are near 1, six."""

LABELS = {
    "relative": "relative change ‖T‖/‖W‖",
    "relative_change": "relative change ‖T‖/‖W‖",
    "norm": "norm ‖T‖",
    "cosine": "cosine of before and after",
    "effective_rank": "effective rank",
    "surviving": "survives rounding, if negated",
    "surviving_fraction": "survives rounding",
    "survived": "survives discrimination",
    "rank": "rank",
    "kept": "energy kept",
    "kept_energy": "energy kept of the task",
    "lost": "energy lost",
    "sparsity": "unchanged elements",
    "edit_check": "edit check (1: as meant)",
    "rounding_loss": "lost in rounding",
    "rounding": "lost in rounding",
    "response": "response of inputs to keep",
}
"""The figures of a tensor that are shown, the first that is there at first: by key, in words."""

_SHARES = frozenset(
    {"relative", "relative_change", "surviving", "surviving_fraction", "survived", "kept",
     "kept_energy", "lost", "sparsity", "rounding_loss", "rounding"}
)  # fmt: skip
_VALUES = 60_000  # singular values in a page, at most
_LAYERED = re.compile(r"^(.*?)(?:^|\.)(?:layers|layer|h|blocks|block)\.\d+\.(.*)$")


def _module(name: str) -> tuple[str, str]:
    """The stack of layers that a tensor is in, and where in its layer; experts unnumbered."""
    match = _LAYERED.match(name)
    stack, inside = ("", name) if match is None else match.groups()
    return stack, re.sub(r"(?<=\.)\d+(?=\.)", "*", inside).removesuffix(".weight")


def packed(columns: Mapping[str, Any]) -> str:
    """JSON, gzipped, in base64; the same for the same columns."""
    text = json.dumps(columns, separators=(",", ":"), ensure_ascii=False)
    return base64.b64encode(gzip.compress(text.encode(), 9, mtime=0)).decode()


def unpacked(text: str) -> dict[str, Any]:
    """What :func:`packed` was given."""
    return dict(json.loads(gzip.decompress(base64.b64decode(text))))


def tensor_map(
    title: str,
    rows: Sequence[Mapping[str, Any]],
    measures: Mapping[str, str] = LABELS,
    spectra: Mapping[str, Sequence[float]] | None = None,
    note: str = "",
    unknown: str = "",
) -> dict[str, Any] | None:
    """A section of a page: the map, and each tensor behind it.

    Args:
        title: Above it.
        rows: Of each tensor its ``name``, ``shape`` where it is known, and figures by key.
        measures: The figures to show, in words.
        spectra: Singular values of a tensor's change, descending, by its name.
        note: Below it.
        unknown: Why the singular values of a tensor are not there.

    Returns:
        None where no tensor has any of the figures.
    """
    keys = [key for key in measures if any(_is_figure(row.get(key)) for row in rows)]
    if not keys:
        return None
    rows = [{**row, "name": visible(str(row["name"]))} for row in rows]
    modules = _modules([row["name"] for row in rows])
    cells: dict[tuple[int, str], list[int]] = {}
    for number, row in enumerate(rows):
        layer = layer_of(row["name"])
        cells.setdefault((-1 if layer is None else layer, modules[row["name"]]), []).append(number)
    order = sorted(cells, key=lambda cell: (cell[0], _rank(rows[cells[cell][0]]["name"]), cell[1]))
    ranked = sorted(
        {module: _rank(rows[numbers[0]]["name"]) for (_, module), numbers in cells.items()}.items(),
        key=lambda item: (item[1], item[0]),
    )
    columns: dict[str, Any] = {"name": [rows[n]["name"] for cell in order for n in cells[cell]]}
    members = [rows[n] for cell in order for n in cells[cell]]
    if any(row.get("shape") for row in members):
        columns["shape"] = ["×".join(map(str, row.get("shape") or ())) for row in members]
    columns |= {key: [rounded(row.get(key), _digits(key)) for row in members] for key in keys}
    shown, thinned = _thinned(
        columns["name"], {visible(name): text for name, text in (spectra or {}).items()}
    )
    if shown:
        columns["values"] = shown
    words = f"Of the longer spectra {thinned} are drawn by some of their values." if thinned else ""
    return {
        "type": "map",
        "title": title,
        "note": " ".join(text for text in (note, words) if text),
        **({"unknown": unknown} if unknown else {}),
        "measures": [
            {"key": key, "label": measures[key], "share": key in _SHARES, "digits": _digits(key)}
            for key in keys
        ],
        "layers": sorted({layer for layer, _ in order}),
        "modules": [module for module, _ in ranked],
        # Of each cell its layer, its module, the number of its tensors, and its figures.
        "cells": [
            [layer, module, len(cells[layer, module])]
            + [
                rounded(_mean(key, [rows[n] for n in cells[layer, module]]), _digits(key))
                for key in keys
            ]
            for layer, module in order
        ],
        "count": len(rows),
        "packed": packed(columns),
    }


def _digits(key: str) -> int:
    return DIGITS + 2 if key.endswith("cosine") else DIGITS


def rounded(value: Any, digits: int = DIGITS) -> float | int | None:
    """A number as the page keeps it; None for what is none."""
    if not _is_figure(value):
        return None
    return value if isinstance(value, int) else float(f"{value:.{digits}g}")


def _is_figure(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _rank(name: str) -> int:
    kind = kind_of(name)
    first = ("embeddings", *KINDS)  # as data meets them
    return first.index(kind)


def _modules(names: Sequence[str]) -> dict[str, str]:
    """Of each name its module; where there would be too many to draw, its kind."""
    places = {name: _module(name) for name in names}
    many_stacks = len({stack for stack, _ in places.values() if stack}) > 1
    modules = {
        name: f"{stack}.{inside}" if many_stacks and stack else inside
        for name, (stack, inside) in places.items()
    }
    if len(set(modules.values())) <= 80:
        return modules
    return {name: kind_of(name) for name in names}


def _mean(key: str, rows: Sequence[Mapping[str, Any]]) -> float | None:
    """A figure of several tensors: norms add up as norms do, the rest is a mean over them."""
    values = [float(row[key]) for row in rows if _is_figure(row.get(key))]
    if len(values) < 2:
        return values[0] if values else None
    if key == "norm":
        return math.sqrt(math.fsum(value**2 for value in values))
    if key == "relative" and all(_is_figure(row.get("norm")) for row in rows):
        moved = math.fsum(row["norm"] ** 2 for row in rows)
        weights = math.fsum((row["norm"] / row[key]) ** 2 for row in rows if row[key])
        return math.sqrt(moved / weights) if weights else 0.0
    return math.fsum(values) / len(values)


def _thinned(
    names: Sequence[str], spectra: Mapping[str, Sequence[float]]
) -> tuple[list[list[list[float]] | None], int]:
    """Of each tensor its singular values, numbered; of how many only some fit the page."""
    known = [name for name in names if len(spectra.get(name, ()))]
    if not known:
        return [], 0
    limit = max(6, _VALUES // len(known))
    if limit * len(known) > _VALUES:  # too many matrices: those that change most
        by_size = sorted(known, key=lambda name: -float(spectra[name][0]))
        known = by_size[: _VALUES // limit]
    listed, thinned = set(known), 0
    thinned_spectra: list[list[list[float]] | None] = []
    for name in names:
        if name not in listed:
            thinned_spectra.append(None)
            continue
        values = spectra[name]
        places = _spread(len(values), limit)
        thinned += len(places) < len(values)
        thinned_spectra.append(
            [[n + 1 for n in places], [float(f"{values[n]:.4g}") for n in places]]
        )
    return thinned_spectra, thinned


def _spread(count: int, limit: int) -> list[int]:
    """Numbers from the first to the last, close together at first."""
    if count <= limit:
        return list(range(count))
    return sorted({round((count - 1) ** (n / (limit - 1))) - (n == 0) for n in range(limit)})


def spectra_of(directory: str | os.PathLike[str]) -> dict[str, list[float]]:
    """Singular values of each matrix that a saved vector holds as factors.

    Args:
        directory: Where it is; without any such factors, or no vector at all, there are none.
    """
    from weightsurgery.checkpoint.reader import Checkpoint
    from weightsurgery.errors import WeightSurgeryError

    try:
        with Checkpoint.open(directory) as opened:
            return {
                name[:-3]: sorted(map(abs, opened.tensor(name).tolist()), reverse=True)
                for name in opened.entries
                if name.endswith("::S")
            }
    except WeightSurgeryError:
        return {}
