"""What is known of the model that never saw what is to be forgotten."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from weightsurgery.errors import DataError

__all__ = ["Reference", "read_reference"]


@dataclass(frozen=True)
class Reference:
    """What is known of the model that never saw what is to be forgotten.

    Attributes:
        name: As given.
        rows: Digest of the rows that it was asked.
        log_truth_ratios: Of each row to forget.
        membership: AUC by attack; empty without held-out rows.
    """

    name: str
    rows: str
    log_truth_ratios: Sequence[float]
    membership: Mapping[str, float]


def read_reference(path: str | Path) -> Reference:
    """What an earlier run said of a reference.

    Args:
        path: A file with what ``ws evaluate --metric tofu --json`` printed.

    Raises:
        DataError: It is none.
    """
    try:
        document = json.loads(Path(path).expanduser().read_text(encoding="utf-8"))
        found = document["tofu"]
        return Reference(
            str(path), found["rows"], list(found["log_truth_ratios"]), dict(found["membership"])
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path}: no reference: {type(error).__name__}: {error}",
            "Name a checkpoint, or the output of 'ws evaluate REFERENCE --metric tofu --json'.",
        ) from error
