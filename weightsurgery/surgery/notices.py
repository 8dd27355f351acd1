"""What the user should know of an edit that was done, told from its record, a line each."""

from __future__ import annotations

from weightsurgery.checkpoint.record import EditRecord

__all__ = ["edit_notices", "held_back_notices", "input_notices", "size_notices"]

# Of ‖W‖ over the edited tensors. Fine-tunes of real models change 0.1 to 3 % of it; on SmolLM2-135M
# a task vector that was taken away at 4 % raised the perplexity of prose a hundredfold, at 8 % a
# millionfold (scripts/reproduce/LOG.md). So whatever is beyond all fine-tunes deserves a look.
_BEYOND_FINE_TUNES = 0.05


def edit_notices(record: EditRecord) -> list[str]:
    """All of an edited checkpoint."""
    summary = record.summary
    notices = []
    if summary["edit_check"] < 0.9 or summary["edit_check"] > 1.1:
        notices.append(
            f"Rounding kept {summary['edit_check']:.0%} of the intended change "
            "(edit check; 100 % is meant): consider --rounding stochastic or --dtype float32."
        )
    if summary["relative_change"] == 0:
        notices.append("Nothing changed: nothing of the vector is left on the selected tensors.")
    return input_notices(record) + notices + size_notices(record) + held_back_notices(record)


def input_notices(record: EditRecord) -> list[str]:
    """What was done to the inputs, or is odd about them, each thing once."""
    told = [note for each in record.inputs.values() for note in each.get("notes", ())]
    return list(dict.fromkeys(told))


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
    """Where nothing was held back for a task to keep, and what is not known to fit the base."""
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
