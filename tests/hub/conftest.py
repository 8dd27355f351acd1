"""A Hub for the tests."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.typed import ws
from tests.conftest import Trio
from tests.hub.standin import HubClient, StandIn


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[HubClient]:
    """A client of an empty stand-in Hub that takes large files by LFS."""
    with StandIn() as server:
        yield HubClient(server, tmp_path / "client")


@pytest.fixture
def xet_hub(tmp_path: Path) -> Iterator[HubClient]:
    """A client of an empty stand-in Hub that takes large files by xet."""
    with StandIn(xet=tmp_path / "cas") as server:
        yield HubClient(server, tmp_path / "client")


@pytest.fixture(scope="session")
def outputs(llama: Trio, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A negation, another one, a projection and an adapter of the tiny Llama."""
    root = tmp_path_factory.mktemp("outputs")
    for name in ("base", "forget", "keep"):
        (root / name).symlink_to(getattr(llama, name))
    for command in (
        ["negate", "base", "forget", "-o", "edited"],
        ["negate", "base", "keep", "-o", "other", "--scale", "0.5"],
        ["project", "base", "--forget", "forget", "--keep", "keep", "-o", "projected"],
        ["subspace", "base", "forget", "--rank", "4", "-o", "sub"],
        ["export", "base", "sub", "-o", "adapter", "--scale", "-1", "--dtype", "float32"],
    ):  # fmt: skip
        done = ws(*command, cwd=root)
        assert done.returncode == 0, done.stderr
    return root


@pytest.fixture
def out(outputs, tmp_path) -> Path:
    """A copy of the negation that a test may change."""
    return Path(shutil.copytree(outputs / "edited", tmp_path / "edited"))
