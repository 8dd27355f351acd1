"""Notices for the user about a finished edit, from its record, one line per notice."""

from __future__ import annotations

from weightsurgery.checkpoint.record import EditRecord
from weightsurgery.vectors.fitted import LITTLE, fit_notices

__all__ = ["edit_notices", "held_back_notices", "input_notices", "selected_notices", "size_notices"]

# Of ‖W‖ over the edited tensors. Fine-tunes of real models change 0.1 to 3 % of it; on SmolLM2-135M
# a task vector that was subtracted at 4 % raised the perplexity of prose a hundredfold, at 8 % a
# millionfold (scripts/reproduce/LOG.md). So whatever is beyond all fine-tunes deserves a look.
_BEYOND_FINE_TUNES = 0.05


def edit_notices(record: EditRecord) -> list[str]:
    """All notices of an edited checkpoint."""
    summary = record.summary
    notices = []
    if summary["edit_check"] < 0.9 or summary["edit_check"] > 1.1:
        notices.append(
            f"Rounding kept {summary['edit_check']:.0%} of the intended change "
            "(edit check; 100 % is meant): consider --rounding stochastic or --dtype float32."
        )
    if summary["relative_change"] == 0:
        notices.append("Nothing changed: nothing of the vector is left on the selected tensors.")
    return (
        input_notices(record)
        + selected_notices(record)
        + notices
        + size_notices(record)
        + held_back_notices(record)
    )


def input_notices(record: EditRecord) -> list[str]:
    """What was done to the inputs, is odd about them, or is left out of them; no duplicates."""
    notices: list[str] = []
    for source in record.inputs.values():
        if "fitted" in source:
            notices += fit_notices(
                str(source["name"]).rstrip("/").rsplit("/", 1)[-1], source["fitted"]
            )
        notices += source.get("notes", ())
    return list(dict.fromkeys(notices))


def selected_notices(record: EditRecord) -> list[str]:
    """Where much of the vector lies in tensors that were not selected."""
    selected = record.summary.get("selected")
    if selected is None or selected["share"] >= LITTLE:
        return []
    about = "about " if selected["estimated"] else ""
    return [
        f"Only {about}{selected['share']:.0%} of the vector's squared norm is in the selected"
        f" tensors ({selected['tensors']} of {selected['of']}); --targets and --layers select more."
    ]


def size_notices(record: EditRecord) -> list[str]:
    """Where the whole edit changes more of the weights than fine-tunes do."""
    relative = record.summary["relative_change"]
    if relative <= _BEYOND_FINE_TUNES:
        return []
    return [
        f"The edit changes the weights by {relative:.0%} of their norm; fine-tunes of real models"
        " change 0.1 to 3 %. Score the output before you use it (ws evaluate); a smaller --scale"
        " changes less."
    ]


def held_back_notices(record: EditRecord) -> list[str]:
    """Tensors where nothing was held back for a task to keep, and inputs of uncertain lineage."""
    notices = []
    unkept = sum(
        facts.get("keep_ranks") == [] and "response" not in facts
        for facts in record.tensors.values()
    )
    if unkept:
        notices.append(
            f"{unkept} edited tensors are changed by no task to keep: there, nothing was held back."
        )
    for kin in record.lineage:
        if kin["verdict"] != "related":
            notices.append(f"{kin['vector']}: lineage {kin['verdict']} ({kin['evidence']}).")
    return notices
