"""Inputs of edits, and what edits of them write on one machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.surgery.inputs import digests, edits, write_inputs
from weightsurgery import Checkpoint, apply


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("inputs")
    write_inputs(root)
    return root


@pytest.fixture(scope="module")
def wanted(inputs: Path) -> dict[str, dict[str, str]]:
    """What runs on one machine write into directories, by edit."""
    base = Checkpoint.open(inputs / "base")
    found = {}
    for name, (edit, storage) in edits(inputs, base).items():
        apply(edit, base, inputs / name, storage=storage)
        found[name] = digests(inputs / name)
    before = digests(inputs / "base")
    for each in found.values():
        assert not set(each.values()) & {before[name] for name in before if "-of-" in name}
    return found
