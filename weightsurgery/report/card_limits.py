"""What an edit does not guarantee, and what the yardstick measured of its kind, for the card."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.resources import files
from typing import TYPE_CHECKING, NamedTuple

from weightsurgery.report.card_method import is_kept, provenance_of

if TYPE_CHECKING:
    from weightsurgery.checkpoint.record import EditRecord

__all__ = ["YARDSTICK", "Measured", "limits", "measured"]


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
    provenance = provenance_of(record)
    if not provenance.removes:
        return None
    parameters = record.parameters
    if provenance.edit == "unlearn":
        settings = parameters.get("settings")
        retain = settings.get("retain", "none") if isinstance(settings, dict) else "none"
        method = str(parameters.get("method"))
        return YARDSTICK.get(method if retain == "none" else f"{method}-{retain}")
    if provenance.from_data and parameters.get("objective") == "neighbours":
        return None  # made for real models, and not measured on the embedded worlds
    if provenance.from_data:
        return YARDSTICK["rounds" if parameters.get("objective") == "negate" else "subspace"]
    if provenance.edit == "project":
        keep_roles = [role for role in record.inputs if is_kept(role)]
        if any(role.startswith("keep_inputs") for role in keep_roles):
            return YARDSTICK["activations"]
        rows = {"right": "right", "soft": "weights-ridge"}
        row = rows.get(str(parameters.get("side", "right")))
        return None if row is None else YARDSTICK[row]
    return YARDSTICK["negate"]


_SURVEY = "[Si et al., 2023](https://arxiv.org/abs/2311.15766)"
_REMOVED = (
    f"**No guarantee of erasure.** An edit of weights, like the other methods that the survey of"
    f" {_SURVEY} compares, lowers what a model says; it proves nothing about what can still be got"
    " out of it.",
    "**It can come back.** A few steps of fine-tuning may bring removed knowledge back, and so may"
    " quantisation, which can round a small change away. Test the form that you deploy, after"
    " whatever you do to it.",
    "**Only what was tested was tested.** Other wordings, other languages and what follows from the"
    " removed facts may still answer, and things nobody scored may have suffered.",
    "**Dual use.** What takes knowledge out of a model can as well take out its refusals, and who"
    " holds the base and this model can read the difference of the two. Do not rely on it to keep a"
    " secret.",
)
_ADDED = (
    "**Only what was tested was tested.** Adding a change may alter answers that nobody scored,"
    " refusals among them; score what matters to you.",
    "**It may fade.** Further fine-tuning may undo the change, and quantisation may round a small"
    " one away.",
)


def limits(record: EditRecord) -> str:
    """Limits and warnings as a Markdown list."""
    provenance = provenance_of(record)
    lines = list(_ADDED if provenance.sign > 0 else _REMOVED)
    if (row := measured(record)) is not None:
        lines.insert(2, _elsewhere(row))
    elif provenance.sign == 0:
        lines = ["This is no model: what is said here is of models made with it."]
        lines += _REMOVED
    return "\n".join(f"- {line}" for line in lines)


def _elsewhere(row: Measured) -> str:
    never = YARDSTICK["retrained"].relearned
    return (
        "**Measured elsewhere.** On WeightSurgery's own yardstick (`ws bench`: a small Llama,"
        f" synthetic facts, three worlds, settings chosen there), {row.label} left {row.left} %"
        f" accuracy on what was to go and {row.quantised} % after 4-bit quantisation (NF4), while"
        f" the worst of the tasks to keep lost {row.drift} %; 40 steps of fine-tuning on half of"
        f" the people brought the other half to {row.relearned} %, where a model that never saw"
        f" them stays at {never} %. It says nothing about this model: score it."
    )
