"""What an output depends on, as a digest: by it a run knows what an earlier one left."""

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
        inputs: By role, how each is described, and its files: they stand for their sizes and times
            of change, and where they lie on the Hub for their names.
        described: What else decides the output.
    """
    read = {
        role: [about, [_state(path) for path in paths]] for role, (about, paths) in inputs.items()
    }
    facts = {**described, "versions": versions(), "inputs": read}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _state(path: Path) -> list[Any]:
    if not path.exists():
        return [str(path)]
    found = path.stat()
    return [str(path), found.st_size, found.st_mtime_ns]
