"""A Hub for the tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hub.client import HubClient
from tests.hub.server import StandIn


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
