"""What the base calls the modules of an adapter: its own names, others, or those of a wrapper."""

from __future__ import annotations

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
    """The base's names for what an adapter adapts, found by names and shapes.

    Args:
        base: The base.
        shapes: Tensors that the adapter changes, by the names it has for them, in the shapes that
            the base should have them in.
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
        """What was done to names, for the record.

        Args:
            keys: The adapter's tensors.
        """
        found: dict[str, Any] = {}
        if self._renamings:
            found["renamed"] = [
                {"from": each.old, "to": each.new, "tensors": each.count}
                for each in self._renamings
            ]
        wrapped = [dict.fromkeys(unwrapped(key)[1]) for key in keys]
        wrappers = {each: sum(each in some for some in wrapped) for of in wrapped for each in of}
        return found | ({"wrappers": wrappers} if wrappers else {})

    def find(self, name: str) -> str | None:
        """The base's tensor of a name, which may have another beginning there; None for none."""
        names = self._base.entries
        if name in names:
            return name
        if name in self._known:
            return self._known[name]
        called = renamed(name, self._renamings)
        if called in self._plain:
            return self._plain[called]
        # The wrapped model may hold the checkpoint's modules under a longer or shorter prefix.
        near = [each for each in names if each.endswith(f".{name}") or name.endswith(f".{each}")]
        if near:
            return near[0] if len(near) == 1 else None
        twins = twin_candidates(called, list(names))
        return twins[0] if twins and is_tied(self._base, twins[0]) else None

    def find_flat(self, module: str) -> str | None:
        """The base's weight of a module that kohya's scripts named; None for none.

        Their names are without dots, after a prefix for the part of the model.
        """
        flat = kohya_modules(self._base.entries)
        ends = {each for each in flat if f"_{module}".endswith(f"_{each}")}
        longest = max(ends, key=len, default="")
        several = flat.get(longest, [])
        return f"{several[0]}.weight" if len(several) == 1 else None
