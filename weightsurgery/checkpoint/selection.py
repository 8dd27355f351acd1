"""Which tensors an edit or a training applies to, and how strongly."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase

from weightsurgery.checkpoint.layout import ARITHMETIC_DTYPES, TensorEntry
from weightsurgery.checkpoint.naming import is_mlp_output, kind_of, layer_of
from weightsurgery.checkpoint.stacks import is_matrix, is_stack
from weightsurgery.errors import SelectionError
from weightsurgery.suggestions import one_of

__all__ = ["LARGEST_SCALE", "TARGETS", "Selection", "parse_layers"]

# Beyond this even float32 overflows on the smallest changes.
LARGEST_SCALE = 1e30

_RANGE = re.compile(r"^(\d+)?(-)?(\d+)?$")


def _all_linear(entry: TensorEntry) -> bool:
    """Linear layers between embedding and head, as peft's "all-linear" has them."""
    linear = is_matrix(entry) or is_stack(entry)
    return linear and kind_of(entry.name) in ("attention", "mlp", "other")


TARGETS: Mapping[str, Callable[[TensorEntry], bool]] = {
    "all": lambda entry: True,
    "all-linear": _all_linear,
    "attention": lambda entry: kind_of(entry.name) == "attention",
    "mlp": lambda entry: kind_of(entry.name) == "mlp",
    "mlp-out": lambda entry: is_mlp_output(entry.name),
    "embeddings": lambda entry: kind_of(entry.name) in ("embeddings", "head"),
}


def parse_layers(text: str) -> list[tuple[int, int | None]]:
    """``"0-3,8,20-"`` as inclusive ranges; an open end is None.

    Raises:
        SelectionError: Not such a list.
    """
    ranges: list[tuple[int, int | None]] = []
    for part in text.split(","):
        match = _RANGE.match(part.strip())
        first, dash, last = match.groups() if match else (None, None, None)
        if match is None or (first is None and last is None):
            raise SelectionError(f"layers {text!r}", "Write them as in 0-3,8,20-")
        start = int(first or 0)
        stop = None if dash and last is None else int(last if last is not None else start)
        if stop is not None and stop < start:
            raise SelectionError(f"layers {text!r}: {part} runs backwards", "Write 0-3, not 3-0.")
        ranges.append((start, stop))
    return ranges


def _in_layers(layer: int | None, ranges: Sequence[tuple[int, int | None]]) -> bool:
    return layer is not None and any(
        start <= layer and (stop is None or layer <= stop) for start, stop in ranges
    )


def _matches(pattern: str, name: str) -> bool:
    """Whether a layer range or glob matches a name."""
    if _RANGE.match(pattern.split(",")[0]):
        return _in_layers(layer_of(name), parse_layers(pattern))
    return fnmatchcase(name, pattern)


def _nearest(pattern: str, names: Iterable[str]) -> str:
    """The remedy for a pattern without a match: one that has some, where one is near."""
    names = list(names)
    words = {word for name in names for word in name.split(".")}
    near = "".join(
        part if part in words or not part.isidentifier()
        else next(iter(get_close_matches(part, words, 1)), part)
        for part in re.split(r"(\W+)", pattern)
    )  # fmt: skip
    for form in (f"*{pattern}*", near, f"*{near}*"):
        if any(fnmatchcase(name, form) for name in names):
            return f"Did you mean {form!r}? List the names with 'ws inspect -v'."
    return "List the names with 'ws inspect -v'."


@dataclass(frozen=True)
class Selection:
    """Tensors by kind, name and layer, with a scale for each.

    Attributes:
        targets: One of :data:`TARGETS`.
        include: Globs; with any given, a tensor must match one.
        exclude: Globs; a tensor that matches one stays as it is.
        layers: Layer ranges such as ``"0-3,8,20-"``; tensors outside the layers do not match.
        scales: ``(pattern, factor)``: layer ranges or globs and what to multiply the edit's scale
            with there; the last match counts.

    Example: the MLPs of all layers but the first four, layer 8 at half strength::

        Selection("mlp", layers="4-", scales=(("8", 0.5),))
    """

    targets: str = "all"
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    layers: str | None = None
    scales: tuple[tuple[str, float], ...] = ()

    def __post_init__(self) -> None:
        if self.targets not in TARGETS:
            raise SelectionError(f"targets {self.targets!r}", one_of(self.targets, TARGETS))
        for pattern, factor in self.scales:
            if not abs(factor) <= LARGEST_SCALE:
                raise SelectionError(
                    f"scale {factor} for {pattern!r}", "Give a finite number, up to 1e30."
                )

    def resolve(self, entries: Mapping[str, TensorEntry]) -> dict[str, float]:
        """The selected tensors of a checkpoint and the factor for each, in its order.

        Integer and boolean tensors are never selected: they hold indices and masks.

        Raises:
            SelectionError: A pattern matches nothing, or nothing at all is selected.
        """
        for pattern in (*self.include, *self.exclude):
            if not any(fnmatchcase(name, pattern) for name in entries):
                raise SelectionError(f"no tensor matches {pattern!r}", _nearest(pattern, entries))
        ranges = parse_layers(self.layers) if self.layers is not None else None
        for pattern, _ in self.scales:
            if not any(_matches(pattern, name) for name in entries):
                raise SelectionError(
                    f"no tensor matches {pattern!r}, which has a scale of its own",
                    _nearest(pattern, entries),
                )
        chosen, wanted = {}, TARGETS[self.targets]
        if self.targets == "mlp-out" and not any(map(wanted, entries.values())):
            wanted = TARGETS["mlp"]  # a family that names them otherwise
        for name, entry in entries.items():
            if entry.dtype not in ARITHMETIC_DTYPES or not wanted(entry):
                continue
            if self.include and not any(fnmatchcase(name, p) for p in self.include):
                continue
            if any(fnmatchcase(name, pattern) for pattern in self.exclude):
                continue
            if ranges is not None and not _in_layers(layer_of(name), ranges):
                continue
            chosen[name] = self._scale_of(name)
        if not chosen:
            raise SelectionError(
                "no tensor is selected", "Widen --targets, --include, --exclude or --layers."
            )
        return chosen

    def _scale_of(self, name: str) -> float:
        factor = 1.0
        for pattern, value in self.scales:
            if _matches(pattern, name):
                factor = value
        return factor
