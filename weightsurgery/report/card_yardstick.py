"""What the yardstick measured of each kind of edit, for the model card."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.resources import files
from typing import TYPE_CHECKING, NamedTuple

from weightsurgery.report.card_method import is_kept, tell

if TYPE_CHECKING:
    from weightsurgery.checkpoint.record import EditRecord

__all__ = ["YARDSTICK", "Measured", "measured"]


class Measured(NamedTuple):
    """A row, in percent, as mean ± standard deviation over three worlds.

    Attributes:
        label: The method as a reader knows it.
        left: Accuracy left on what was to go.
        drift: What unseen facts of the worst task to keep lost of the base's accuracy.
        quantised: ``left`` after rounding to NF4.
        relearned: Accuracy on half of what was to go after training on the other half.
    """

    label: str
    left: str
    drift: str
    quantised: str
    relearned: str


# By the rows' names in `ws bench`; "retrained" is the model trained anew without what was to go.
# scripts/reproduce/results/systems.json is where they are from, and a test compares.
_FIGURES = files(__package__) / "yardstick.json"
YARDSTICK: Mapping[str, Measured] = {
    name: Measured(**row) for name, row in json.loads(_FIGURES.read_text("utf-8")).items()
}


def measured(record: EditRecord) -> Measured | None:
    """The yardstick's row that is nearest to an edit; None where it has none."""
    told = tell(record)
    if not told.removes:
        return None
    given = record.parameters
    if told.edit == "unlearn":
        settings = given.get("settings")
        retain = settings.get("retain", "none") if isinstance(settings, dict) else "none"
        method = str(given.get("method"))
        return YARDSTICK.get(method if retain == "none" else f"{method}-{retain}")
    if told.from_data and given.get("objective") == "neighbours":
        return None  # made for real models, and not measured on the embedded worlds
    if told.from_data:
        return YARDSTICK["rounds" if given.get("objective") == "negate" else "subspace"]
    if told.edit == "project":
        kept = [role for role in record.inputs if is_kept(role)]
        if any(role.startswith("keep_inputs") for role in kept):
            return YARDSTICK["activations"]
        rows = {"right": "right", "soft": "weights-ridge"}
        row = rows.get(str(given.get("side", "right")))
        return None if row is None else YARDSTICK[row]
    return YARDSTICK["negate"]
