"""Scores of the reference: the model that never saw what is to be forgotten."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from weightsurgery.errors import DataError

__all__ = ["Reference", "read_reference"]


@dataclass(frozen=True)
class Reference:
    """Scores of the model that never saw what is to be forgotten.

    Attributes:
        name: As given.
        rows: Digest of the rows it was scored on.
        log_truth_ratios: Of the rows to forget, in order.
        membership: AUC by attack; empty without held-out rows.
    """

    name: str
    rows: str
    log_truth_ratios: Sequence[float]
    membership: Mapping[str, float]


def read_reference(path: str | Path) -> Reference:
    """The scores that an earlier run measured of a reference.

    Args:
        path: A file with what ``ws evaluate --metric tofu --json`` printed.

    Raises:
        DataError: The file holds no such scores.
    """
    try:
        document = json.loads(Path(path).expanduser().read_text(encoding="utf-8"))
        scores = document["tofu"]
        return Reference(
            str(path), scores["rows"], list(scores["log_truth_ratios"]), dict(scores["membership"])
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path}: no reference: {type(error).__name__}: {error}",
            "Name a checkpoint, or the output of 'ws evaluate REFERENCE --metric tofu --json'.",
        ) from error
