import sys

import pytest

from tests.cli.typed import Command
from weightsurgery.cli.main import main


@pytest.fixture
def ws(capsys, monkeypatch) -> Command:
    return Command(capsys, monkeypatch)


@pytest.fixture
def done(ws):
    """Runs what must succeed: stdout and stderr."""
    return ws.done


@pytest.fixture
def refused(ws):
    """Runs what must be refused: what was wrong, and the remedy."""
    return ws.refused


@pytest.fixture(scope="module")
def subspace(llama, tmp_path_factory):
    """A saved vector of rank 4."""
    out = tmp_path_factory.mktemp("vectors") / "subspace"
    with pytest.MonkeyPatch.context() as patch:
        command = ["subspace", llama.base, llama.forget, "-o", out, "--rank", "4", "-q"]
        patch.setattr(sys, "argv", ["ws", *map(str, command)])
        with pytest.raises(SystemExit) as stopped:
            main()
    assert not stopped.value.code
    return out
