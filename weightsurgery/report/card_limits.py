"""What a weight edit does not guarantee, for the model card: short, plain, with sources."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from weightsurgery.report.card_method import is_kept, tell

if TYPE_CHECKING:
    from weightsurgery.checkpoint.record import EditRecord

__all__ = ["YARDSTICK", "limits"]

# The yardstick's rows of the README: accuracy left on what was to go, the same after NF4, and what
# relearning brings back; means and standard deviations over three seeds, in percent.
YARDSTICK: Mapping[str, tuple[str, str, str]] = {
    "`negate`": ("65.4 ± 31.2", "65.7 ± 31.1", "56.9 ± 32.9"),
    "`project`, vectors (side right)": ("48.5 ± 40.5", "48.6 ± 40.7", "42.3 ± 39.4"),
    "`project`, activations of seen facts": ("50.5 ± 18.2", "50.3 ± 18.7", "32.5 ± 17.5"),
    "identify, discriminate, remove, 16 rounds": ("79.2 ± 8.7", "79.1 ± 9.3", "73.1 ± 10.1"),
    "**`project` from data** (default)": ("0.0 ± 0.0", "0.2 ± 0.2", "34.8 ± 15.4"),
    "*retrained without the request*": ("5.3 ± 1.7", "5.1 ± 1.0", "2.5 ± 0.0"),
}

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
    told = tell(record)
    lines = list(_ADDED if told.sign > 0 else _REMOVED)
    if told.removes and told.edit != "unlearn":  # whose methods have rows of their own
        lines.insert(2, _measured(record))
    elif told.sign == 0:
        lines = ["This is no model: what is said here is of models made with it."]
        lines += _REMOVED
    return "\n".join(f"- {line}" for line in lines)


def _measured(record: EditRecord) -> str:
    row = _row(record)
    left, quantised, relearned = YARDSTICK[row]
    _, _, chance = YARDSTICK["*retrained without the request*"]
    return (
        f"**Measured elsewhere.** On WeightSurgery's own yardstick (`ws bench`: a small Llama,"
        f" synthetic facts, three seeds), {row.replace('**', '')} left {left} % accuracy on what"
        f" was to go and {quantised} % after 4-bit quantisation (NF4); 40 steps of fine-tuning on"
        f" half of the people brought the other half to {relearned} %, where a model that never saw"
        f" them stays at {chance} %. It says nothing about this model: score it."
    )


def _row(record: EditRecord) -> str:
    """The yardstick's row that is nearest to this edit."""
    told = tell(record)
    if told.from_data:
        negated = record.parameters.get("objective") == "negate"
        rounds = "identify, discriminate, remove, 16 rounds"
        return rounds if negated else "**`project` from data** (default)"
    if told.edit == "project":
        kept = [role for role in record.inputs if is_kept(role)]
        by_inputs = any(role.startswith("keep_inputs") for role in kept)
        activations = "`project`, activations of seen facts"
        return activations if by_inputs else "`project`, vectors (side right)"
    return "`negate`"
