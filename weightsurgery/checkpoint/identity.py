"""A digest of an output's inputs and settings, by which a run recognises an earlier one's work."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from weightsurgery.checkpoint.record import versions

__all__ = ["identity_of"]


def identity_of(
    inputs: Mapping[str, tuple[Mapping[str, Any], Sequence[Path]]], **described: Any
) -> str:
    """A digest of everything an output depends on.

    Args:
        inputs: By role: a description, and the files, which count by size and modification time;
            files on the Hub count by name.
        described: The other settings of the output.
    """
    read = {
        role: [about, [_state(path) for path in paths]] for role, (about, paths) in inputs.items()
    }
    facts = {**described, "versions": versions(), "inputs": read}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _state(path: Path) -> list[Any]:
    if not path.exists():
        return [str(path)]
    facts = path.stat()
    return [str(path), facts.st_size, facts.st_mtime_ns]
