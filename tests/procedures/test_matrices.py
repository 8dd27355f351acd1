"""The linear layers that a checkpoint's matrices become in memory."""

from __future__ import annotations

import re

import pytest

from tests.learning.tiny import save, tiny
from weightsurgery.checkpoint.reader import Checkpoint
from weightsurgery.checkpoint.selection import Selection
from weightsurgery.errors import UnsupportedCheckpointError
from weightsurgery.learning.parameters import load_float32
from weightsurgery.unlearning.matrices import matrices, stored_matrices


def test_one_remedy_serves_for_all_layers(tmp_path):
    base = Checkpoint.open(save(tiny("mixtral"), tmp_path / "base"))
    model = load_float32(base)
    linear = Selection("all-linear")
    with pytest.raises(
        UnsupportedCheckpointError, match=r"and [0-9]+ more are other mat"
    ) as refused:
        stored_matrices(model, base, matrices(base, linear))
    assert "'*experts*'" in refused.value.remedy
    exclude = re.findall(r"--exclude '(.+?)'", refused.value.remedy)
    rest = matrices(base, Selection("all-linear", exclude=tuple(exclude)))
    assert 0 < len(rest) < len(matrices(base, linear))
    assert sorted(stored_matrices(model, base, rest).values()) == sorted(rest)


def test_matrices_that_are_no_layers_are_told_at_once(tmp_path):
    base = Checkpoint.open(save(tiny("mixtral"), tmp_path / "base"))
    model = load_float32(base)
    routers = [name for name in base.entries if name.endswith("gate.weight")]
    assert len(routers) > 1
    with pytest.raises(UnsupportedCheckpointError, match="1 more are no linear layers") as refused:
        stored_matrices(model, base, routers)
    assert refused.value.remedy.count("--exclude") == 1
    assert re.search(r"layers\.\*\..*gate\.weight", refused.value.remedy)
    with pytest.raises(UnsupportedCheckpointError, match=f"{routers[0]!r} is no linear layer, "):
        stored_matrices(model, base, routers[:1])
