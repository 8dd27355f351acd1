"""The base's names for the modules of an adapter: the same, renamed, or in a wrapper."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from weightsurgery.checkpoint.names.matching import find_match
from weightsurgery.checkpoint.names.prefixes import Shape, renamed
from weightsurgery.checkpoint.names.wrappers import plain_names, unwrapped
from weightsurgery.checkpoint.naming import twin_candidates
from weightsurgery.checkpoint.reader import Checkpoint
from weightsurgery.checkpoint.tied import is_tied
from weightsurgery.vectors.adapter_keys import kohya_modules
from weightsurgery.vectors.fitted import shapes_of

__all__ = ["BaseNames"]


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
