"""Rows that an adapter replaces: embeddings, heads, biases, single tokens.

peft saves an embedding or a head that it adapts or that was resized, ``modules_to_save``, and the
rows of ``trainable_token_indices`` as whole weights, whatever their names suggest.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from weightsurgery.checkpoint.layout import ARITHMETIC_DTYPES
from weightsurgery.checkpoint.names.matching import find_match
from weightsurgery.checkpoint.names.prefixes import Shape, plain_names, renamed, unwrapped
from weightsurgery.checkpoint.naming import kind_of, twin_candidates
from weightsurgery.checkpoint.reader import Checkpoint
from weightsurgery.checkpoint.tied import is_tied, same_bytes
from weightsurgery.deferred import torch
from weightsurgery.errors import MismatchError, VectorError
from weightsurgery.vectors.adapter_deltas import RowsDelta, changed_rows
from weightsurgery.vectors.adapter_keys import inside, kohya_modules
from weightsurgery.vectors.fitted import shapes_of

__all__ = ["AdapterRows", "BaseNames", "find_rows", "row_target"]

_MERGE = "Merge the adapter in peft, and pass the merged checkpoint instead."
_TOKENS = re.compile(r"^(.+)\.token_adapter\.trainable_tokens_delta$")
_WRAPPERS = re.compile(r"\.(base_layer|modules_to_save(\.default)?)(?=\.)")

_SHOWN = 6


@dataclass(frozen=True)
class AdapterRows:
    """Rows of one of the base's tensors that the adapter replaces.

    Attributes:
        name: The tensor.
        key: The adapter's.
        places: Which rows change, ascending, int64.
        sources: Where each of them lies in the adapter's tensor.
        count: How many rows the adapter's tensor has.
        both_sides: Whether embedding and head, where they are tied, both change.
        weights: The adapter's tensors.
    """

    name: str
    key: str
    places: torch.Tensor
    sources: torch.Tensor
    count: int
    both_sides: bool
    weights: Checkpoint

    def delta(self) -> RowsDelta:
        """The change."""
        return RowsDelta(self.places, self._read)

    def _read(self, first: int, last: int) -> torch.Tensor:
        at = self.sources[first:last]
        start, stop = int(at.min()), int(at.max()) + 1
        return self.weights.rows(self.key, start, stop)[at - start]

    def description(self) -> str:
        """The replacement, for the user."""
        if not len(self.places):
            return f"{self.name}: its {self.count} rows in the adapter are the base's own"
        examples = ", ".join(map(str, self.places[:_SHOWN].tolist()))
        more = ", ..." if len(self.places) > _SHOWN else ""
        what = "rows" if kind_of(self.name) in ("embeddings", "head") else "rows or numbers"
        return (
            f"{self.name}: {len(self.places)} {what} are replaced by the adapter's, which holds"
            f" {self.count} of it: {examples}{more}"
        )


def find_rows(
    base: Checkpoint,
    weights: Checkpoint,
    keys: Iterable[str],
    settings: Mapping[str, Any],
    find: Callable[[str], str | None],
) -> list[AdapterRows]:
    """The rows of the base's tensors that an adapter replaces.

    Args:
        base: The base.
        weights: The adapter's tensors.
        keys: Those that are no factors.
        settings: The adapter's config.
        find: The base's tensor of a name.

    Raises:
        VectorError: A tensor is nothing that the base has.
        MismatchError: It has another shape than the base's.
    """
    by_name: dict[str, list[AdapterRows]] = {}
    for key in keys:
        tokens = _TOKENS.match(plain := inside(key))
        name = find(row_target(plain))
        if name is None or base.entry(name).dtype not in ARITHMETIC_DTYPES:
            raise VectorError(
                f"{weights.source.name}: tensor {key!r} is no LoRA factor, and"
                f" {base.source.name} has no tensor that it could be",
                _MERGE,
            )
        _check_shape(base, name, weights, key)
        rows = _tokens(base, name, weights, key, settings) if tokens else None
        rows = rows or _whole(base, name, weights, key)
        by_name.setdefault(name, []).append(rows)
    return [joined for name, rows in by_name.items() for joined in _joined(base, name, rows)]


def row_target(plain: str) -> str:
    """The model's tensor whose rows an adapter's tensor holds."""
    tokens = _TOKENS.match(plain)
    return _WRAPPERS.sub("", f"{tokens[1]}.weight" if tokens else plain)


def _joined(base: Checkpoint, name: str, rows: Sequence[AdapterRows]) -> list[AdapterRows]:
    """One entry per tensor: both sides of a tied matrix may be stored, and must then agree."""
    first = rows[0]
    for other in rows[1:]:
        same = torch.equal(first.places, other.places)
        if not same or not same_bytes(first.weights, first.key, other.key):
            raise VectorError(
                f"{first.weights.source.name}: {first.key!r} and {other.key!r} differ, and are one"
                f" tensor, {name!r}, in {base.source.name}",
                "Untie the base first: load it with tie_word_embeddings=False, copy the embedding"
                " into the head, save it, and use that as the base.",
            )
    if len(rows) == 1:
        return [first]
    return [
        AdapterRows(name, first.key, first.places, first.sources, first.count, True, first.weights)
    ]


def _check_shape(base: Checkpoint, name: str, weights: Checkpoint, key: str) -> None:
    ours, theirs = base.entry(name).shape, weights.entry(key).shape
    if ours == theirs:
        return
    vocabulary = kind_of(name) in ("embeddings", "head") and len(ours) == len(theirs)
    if vocabulary and ours[1:] == theirs[1:] and theirs[0] < ours[0]:
        return
    what = f"{weights.source.name}: {key!r} is {list(theirs)}, {name!r} of the base {list(ours)}"
    if vocabulary and ours[1:] == theirs[1:]:
        raise MismatchError(
            f"{what}: the vocabulary was extended by {theirs[0] - ours[0]} tokens",
            f"Extend the base likewise: model.resize_token_embeddings({theirs[0]}), save it, and"
            " use that as the base.",
        )
    raise MismatchError(what, "Use the base that the adapter was trained on.")


def _whole(base: Checkpoint, name: str, weights: Checkpoint, key: str) -> AdapterRows:
    count = weights.entry(key).rows
    places = changed_rows(base, name, weights, key, count)
    return AdapterRows(name, key, places, places, count, False, weights)


def _tokens(
    base: Checkpoint, name: str, weights: Checkpoint, key: str, settings: Mapping[str, Any]
) -> AdapterRows:
    """``trainable_token_indices``: rows in the order of the indices."""
    indices = settings.get("trainable_token_indices")
    module = name.removesuffix(".weight")
    if isinstance(indices, dict):
        indices = next((tokens for text, tokens in indices.items()
                     if f".{module}".endswith(f".{text}")), None)  # fmt: skip
    rows, count = base.entry(name).rows, weights.entry(key).rows
    chosen = indices if isinstance(indices, list) else []
    right = all(
        isinstance(token, int) and not isinstance(token, bool) and 0 <= token < rows
        for token in chosen
    )
    if not right or len(set(chosen)) != len(chosen) or len(chosen) != count:
        raise VectorError(
            f"{weights.source.name}: {key!r} has {count} rows, and trainable_token_indices does not"
            f" name as many different ones of the {rows} of {name!r}",
            "Restore adapter_config.json, or merge the adapter in peft.",
        )
    places, sources = torch.tensor(chosen, dtype=torch.int64).sort()
    return AdapterRows(name, key, places, sources, count, is_tied(base, name), weights)


class BaseNames:
    """The base's names for an adapter's modules, by names and shapes.

    Args:
        base: The base.
        shapes: The tensors that the adapter changes, by its names, in the base's shapes.
        where: The adapter, for messages.

    Raises:
        MismatchError: Its names fit the base's in two ways.
    """

    def __init__(self, base: Checkpoint, shapes: Mapping[str, Shape], where: str) -> None:
        self._base = base
        match = find_match(shapes_of(base), shapes, where)
        self._renamings = list(match.renamings)
        self._known = {
            place.names[0]: name for name, place in match.places.items() if len(place.names) == 1
        }
        self._plain = plain_names(base.entries, base.source.name)

    def facts(self, keys: Iterable[str]) -> dict[str, Any]:
        """The renamings and wrappers that were recognised, for the record.

        Args:
            keys: The adapter's tensors.
        """
        facts: dict[str, Any] = {}
        if self._renamings:
            facts["renamed"] = [
                {"from": renaming.old, "to": renaming.new, "tensors": renaming.count}
                for renaming in self._renamings
            ]

        wrappers = Counter(wrapper for key in keys for wrapper in dict.fromkeys(unwrapped(key)[1]))
        return facts | ({"wrappers": dict(wrappers)} if wrappers else {})

    def find(self, name: str) -> str | None:
        """The base's tensor of a name, which may have another prefix there; None for none."""
        names = self._base.entries
        if name in names:
            return name
        if name in self._known:
            return self._known[name]
        called = renamed(name, self._renamings)
        if called in self._plain:
            return self._plain[called]
        # The wrapped model may hold the checkpoint's modules under a longer or shorter prefix.
        near = [key for key in names if key.endswith(f".{name}") or name.endswith(f".{key}")]
        if near:
            return near[0] if len(near) == 1 else None
        twins = twin_candidates(called, list(names))
        return twins[0] if twins and is_tied(self._base, twins[0]) else None

    def find_flat(self, module: str) -> str | None:
        """The base's weight of a module that kohya's scripts named; None for none.

        Their names are without dots, after a prefix for the part of the model.
        """
        flat = kohya_modules(self._base.entries)
        ends = {name for name in flat if f"_{module}".endswith(f"_{name}")}
        longest = max(ends, key=len, default="")
        modules = flat.get(longest, [])
        return f"{modules[0]}.weight" if len(modules) == 1 else None
