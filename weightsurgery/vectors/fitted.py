"""How a vector was fitted to its base, and how much of it is used.

Both are always reported: in the record, and in a line for the user where anything was renamed or
left out. A vector of which less than half is used is refused unless the user allows it: it is
rarely what was meant, and the edit would look like one that worked.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from weightsurgery.checkpoint.layout import TensorEntry
from weightsurgery.checkpoint.names.prefixes import Shape
from weightsurgery.checkpoint.reader import Checkpoint
from weightsurgery.errors import MismatchError

__all__ = ["LEAST", "LITTLE", "Fitted", "fit_notices", "shapes_of"]

# Of a vector: below the first, a warning; below the second, an error.
LITTLE, LEAST = 0.9, 0.5


def shapes_of(checkpoint: Checkpoint) -> dict[str, Shape]:
    """Names and shapes of a checkpoint."""
    return {name: entry.shape for name, entry in checkpoint.entries.items()}


def numbers(entries: Iterable[TensorEntry]) -> int:
    """The number of elements of some tensors."""
    return sum(entry.numel for entry in entries)


@dataclass(frozen=True)
class Fitted:
    """How a vector fits a base.

    Attributes:
        label: The vector, for messages.
        used: How many of its tensors are used.
        of: How many it has.
        share: The share of it that is used, in [0, 1].
        measure: What the share is of: its ``squared norm``, or its ``numbers`` where the rest has
            no counterpart in the base.
        missing: How many of the base's tensors are missing in it.
        base: How many of the base's tensors it should have.
        missing_share: The missing tensors' share of the base's numbers.
        names: The changes of names and layouts; see
            :meth:`weightsurgery.checkpoint.names.matching.Match.facts`.
    """

    label: str
    used: int
    of: int
    share: float = 1.0
    measure: str = "squared norm"
    missing: int = 0
    base: int = 0
    missing_share: float = 0.0
    names: Mapping[str, Any] = field(default_factory=dict)

    def facts(self) -> dict[str, Any]:
        """For the record."""
        facts: dict[str, Any] = {
            "tensors": self.used,
            "of": self.of,
            "share": float(f"{self.share:.6g}"),
            "measure": self.measure,
        }
        if self.missing:
            facts |= {
                "missing": self.missing,
                "base_tensors": self.base,
                "missing_share": float(f"{self.missing_share:.6g}"),
            }
        return facts | ({"names": dict(self.names)} if self.names else {})

    def notes(self) -> list[str]:
        """Notices for the user, a line each."""
        return fit_notices(self.label, self.facts())

    def done(self) -> list[str]:
        """The changes of names and layouts, a line each."""
        return _done(self.label, self.names)

    def check(self, partial: bool) -> None:
        """Refuse a vector of which less than half is used.

        Raises:
            MismatchError: It is, and ``partial`` is not set.
        """
        if partial or self.share >= LEAST:
            return
        raise MismatchError(
            f"{self.label}: only {self.used} of its {self.of} tensors fit the base"
            f" ({self.share:.0%} of its {self.measure}); the rest would be left out",
            "Use the base it was made from, or rename its tensors as the base calls them ('ws"
            " inspect -v' lists them); --partial edits with so little all the same.",
        )


def fit_notices(label: str, facts: Mapping[str, Any]) -> list[str]:
    """Notices on how a vector was fitted, from its record's facts, a line each.

    Args:
        label: The vector.
        facts: See :meth:`Fitted.facts`.
    """
    lines = _done(label, facts.get("names", {}))
    used, of, share = facts["tensors"], facts["of"], facts["share"]
    if used < of:
        only = "only " if share < LITTLE else ""
        lines.append(
            f"{label}: {only}{used} of its {of} tensors are used, {_percent(share)} of its"
            f" {facts['measure']}; the base has no place for the rest."
        )
    if facts.get("missing"):
        missing, base, part = facts["missing"], facts["base_tensors"], facts["missing_share"]
        only = "only " if 1 - part < LITTLE else ""
        lines.append(
            f"{label}: holds {only}{base - missing} of the base's {base} tensors; the {missing}"
            f" missing ones ({_percent(part)} of the base's numbers) stay as they are."
        )
    return lines


def _percent(share: float) -> str:
    """A share that never reads as all or nothing when it is neither."""
    if share > 0.999 and share < 1:
        return "over 99.9 %"
    if 0 < share < 0.001:
        return "under 0.1 %"
    return f"{100 * share:.3g} %"


def _done(label: str, names: Mapping[str, Any]) -> list[str]:
    lines = []
    for wrapper, count in names.get("wrappers", {}).items():
        lines.append(
            f"{label}: a trainer's wrapper, '{wrapper}.', was taken off the names of {count}"
            " tensors."
        )
    for wrapper in names.get("base_wrappers", ()):
        lines.append(f"{label}: the base's names have a trainer's wrapper in them, '{wrapper}.'.")
    for renaming in names.get("renamed", ()):
        lines.append(
            f"{label}: {_renaming(renaming)} ({renaming['tensors']} tensors, by names and shapes)."
        )
    if "experts" in names:
        experts = names["experts"]
        lines.append(
            f"{label}: its experts are stored {experts['from']}, the base's {experts['to']}; they"
            f" were regrouped ({experts['tensors']} of the base's tensors)."
        )
    if "transposed" in names:
        lines.append(f"{label}: {names['transposed']} matrices are stored the other way round.")
    return lines


def _renaming(renaming: Mapping[str, Any]) -> str:
    old, new = renaming["from"], renaming["to"]
    if not old:
        return f"{new!r} was put before its names"
    if not new:
        return f"{old!r} was taken off its names"
    return f"{old!r} in its names was read as {new!r}"
