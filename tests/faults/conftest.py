"""A server of disturbed commands, and small inputs for them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.conftest import write_checkpoint
from tests.faults.running import Server, shim
from tests.learning.tiny import FACTS, OTHER, save, tiny, write


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """Forks commands, under the shim."""
    if shim() is None:
        pytest.skip("no C compiler: the shim that disturbs commands cannot be built")
    with Server() as found:
        yield found


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``base`` and ``tuned`` in two shards; ``model``, a tiny one, with data of two kinds."""
    place = tmp_path_factory.mktemp("inputs")
    draw = torch.Generator().manual_seed(0)
    names = [f"model.layers.{n}.mlp.up_proj.weight" for n in range(4)]
    base = {n: torch.randn(40, 30, generator=draw).bfloat16() for n in names}
    write_checkpoint(place / "base", base, 2, {"model_type": "llama"})
    write_checkpoint(place / "tuned", {n: (t.float() * 1.125).bfloat16() for n, t in base.items()})
    save(tiny("llama"), place / "model")
    write(place / "forget.jsonl", FACTS[:4])
    write(place / "keep.jsonl", OTHER[:4])
    return place
