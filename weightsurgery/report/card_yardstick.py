"""What the yardstick measured of each kind of edit, for the model card."""

from __future__ import annotations

from collections.abc import Mapping
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
YARDSTICK: Mapping[str, Measured] = {
    "negate": Measured("`negate`", "60.8 ± 23.0", "2.4 ± 2.7", "61.4 ± 22.1", "49.8 ± 18.5"),
    "right": Measured(
        "`project` by vectors (side right)",
        "51.4 ± 19.3",
        "1.8 ± 1.5",
        "50.8 ± 18.3",
        "37.9 ± 12.4",
    ),
    "weights-ridge": Measured(
        "`project` by vectors (side soft)",
        "42.1 ± 26.4",
        "0.9 ± 0.9",
        "42.8 ± 26.3",
        "31.2 ± 14.9",
    ),
    "activations": Measured(
        "`project` by activations of seen facts",
        "43.0 ± 4.3",
        "0.8 ± 1.4",
        "41.4 ± 4.8",
        "26.9 ± 3.8",
    ),
    "rounds": Measured(
        "identify, discriminate, remove in 16 rounds",
        "73.0 ± 2.4",
        "0.0 ± 0.0",
        "72.7 ± 2.7",
        "68.8 ± 3.5",
    ),
    "subspace": Measured(
        "`project` from data", "0.0 ± 0.0", "0.0 ± 0.0", "0.0 ± 0.0", "15.4 ± 3.1"
    ),
    "gradient-ascent": Measured(
        "`gradient-ascent`", "95.2 ± 3.3", "0.0 ± 0.0", "95.3 ± 3.3", "96.7 ± 2.0"
    ),
    "gradient-difference": Measured(
        "`gradient-difference`", "94.1 ± 3.8", "1.3 ± 1.5", "94.0 ± 4.0", "95.2 ± 1.3"
    ),
    "kul": Measured("`kul`", "38.4 ± 32.9", "56.2 ± 35.8", "38.2 ± 33.4", "94.6 ± 1.0"),
    "npo": Measured("`npo`", "91.8 ± 1.6", "0.9 ± 0.9", "91.8 ± 1.6", "95.8 ± 1.9"),
    "npo-gdr": Measured("`npo-gdr`", "94.5 ± 3.1", "0.0 ± 0.0", "94.5 ± 3.3", "95.8 ± 1.6"),
    "npo-klr": Measured("`npo-klr`", "92.2 ± 1.4", "0.9 ± 0.9", "92.1 ± 1.5", "95.4 ± 2.4"),
    "simnpo": Measured("`simnpo`", "98.1 ± 2.0", "1.2 ± 1.1", "98.0 ± 2.0", "94.8 ± 2.4"),
    "kga": Measured("`kga`", "92.1 ± 2.0", "0.6 ± 0.5", "91.9 ± 2.4", "94.8 ± 5.3"),
    "eul": Measured("`eul`", "99.7 ± 0.3", "0.0 ± 0.0", "99.7 ± 0.3", "97.7 ± 1.9"),
    "au": Measured("`au`", "66.7 ± 9.4", "1.8 ± 3.1", "67.0 ± 9.6", "76.2 ± 8.7"),
    "rmu": Measured("`rmu`", "77.3 ± 18.3", "1.2 ± 1.4", "77.1 ± 17.5", "97.9 ± 1.6"),
    "task-vector": Measured(
        "`task-vector`", "65.9 ± 14.8", "1.5 ± 1.9", "65.9 ± 14.3", "54.4 ± 11.5"
    ),
    "cpem-lora": Measured("`cpem-lora`", "55.9 ± 24.3", "2.1 ± 2.9", "56.8 ± 25.1", "49.2 ± 21.9"),
    "cpem-ia3": Measured("`cpem-ia3`", "99.8 ± 0.4", "0.0 ± 0.0", "99.8 ± 0.4", "93.8 ± 1.1"),
    "negmerge": Measured("`negmerge`", "61.9 ± 4.9", "0.6 ± 1.0", "61.4 ± 4.4", "54.2 ± 11.9"),
    "ethos": Measured("`ethos`", "61.5 ± 23.0", "1.8 ± 2.4", "61.6 ± 21.7", "50.6 ± 18.8"),
    "ext-sub": Measured("`ext-sub`", "93.6 ± 2.5", "2.9 ± 2.0", "93.4 ± 2.0", "81.2 ± 9.8"),
    "retrained": Measured(
        "training anew without the request", "6.1 ± 1.1", "0.0 ± 0.0", "6.2 ± 1.4", "3.1 ± 0.6"
    ),
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
