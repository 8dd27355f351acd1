"""Opens whatever a user calls a vector, told apart by what is in it."""

from __future__ import annotations

import os
from collections.abc import Sequence

from weightsurgery.checkpoint.reader import Checkpoint
from weightsurgery.checkpoint.source import resolve_source
from weightsurgery.errors import SourceError, VectorError
from weightsurgery.vectors.adapters import AdapterChange, is_adapter
from weightsurgery.vectors.finetuned import FinetunedChange
from weightsurgery.vectors.saved import SavedChange, is_saved_vector
from weightsurgery.vectors.task_vector import Change, TaskVector

__all__ = ["open_change", "open_vector", "split_scale"]


def split_scale(text: str) -> tuple[str, float]:
    """``"path:0.5"`` as path and factor; the factor is 1 where none is given.

    An existing path wins over the reading of its last part as a number.
    """
    head, colon, tail = text.rpartition(":")
    if not colon or os.path.exists(os.path.expanduser(text)):
        return text, 1.0
    try:
        return head, float(tail)
    except ValueError:
        return text, 1.0


def open_change(
    base: Checkpoint, name: str, vocab: str = "error", missing: str = "error"
) -> Change:
    """Open a fine-tuned checkpoint, a saved task vector or a PEFT adapter as a change of a base.

    Args:
        base: The base.
        name: A directory or ``org/name[@revision]``.
        vocab: For fine-tuned checkpoints; see :class:`FinetunedChange`.
        missing: See :class:`FinetunedChange` and :class:`SavedChange`.

    Raises:
        SourceError: Nothing there.
        VectorError: Not a change of weights.
        MismatchError: It does not fit the base.
    """
    if name.endswith((".jsonl", ".json", ".csv", ".parquet")):
        raise VectorError(
            f"{name}: a data set, not a change of weights",
            "Fine-tune the base on it first, and pass the fine-tuned checkpoint or its adapter.",
        )
    source = resolve_source(name)
    if is_adapter(source.path):
        return AdapterChange(base, source)
    if is_saved_vector(source.path):
        return SavedChange(base, source, missing)
    adapters = sorted(path.parent.name for path in source.path.glob("*/adapter_config.json"))
    if adapters and not any(source.path.glob("*.safetensors")):
        raise SourceError(
            f"{name}: holds adapters in folders of their own: {', '.join(adapters)}",
            f"Name one of them:  {os.path.join(name, adapters[0])}",
        )
    return FinetunedChange(base, Checkpoint.open(name), vocab, missing)


def open_vector(
    base: Checkpoint, names: Sequence[str], vocab: str = "error", missing: str = "error"
) -> TaskVector:
    """The sum of several vectors, each optionally scaled: ``["a", "b:0.5"]``."""
    terms = []
    for text in names:
        name, factor = split_scale(text)
        terms.append((factor, open_change(base, name, vocab, missing)))
    return TaskVector(tuple(terms))
