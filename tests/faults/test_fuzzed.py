"""Files of strangers, changed at random: read as they are or refused, and nothing else."""

from pathlib import Path

import hypothesis
import pytest

from tests.faults.fuzzed import TARGETS, Sandbox, mutants, tried
from weightsurgery.errors import WeightSurgeryError


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory: pytest.TempPathFactory) -> Sandbox:
    return Sandbox(tmp_path_factory.mktemp("fuzzed"))


@pytest.mark.parametrize("target", TARGETS)
def test_what_is_whole_is_read(sandbox: Sandbox, target: str) -> None:
    assert tried(sandbox, target, sandbox.originals[TARGETS[target][0]]) == "read"


@pytest.mark.parametrize("target", TARGETS)
def test_a_mutant_is_read_or_refused(sandbox: Sandbox, target: str) -> None:
    name = TARGETS[target][0]
    ends: set[str] = set()

    @hypothesis.settings(max_examples=20)
    @hypothesis.given(mutants(sandbox.originals[name], name))
    def check(data: bytes) -> None:
        ends.add(tried(sandbox, target, data))

    check()
    assert ends - {"read"} or target in ("config", "csv", "template")
    others = {n: d for n, d in sandbox.originals.items() if (sandbox.place / n).read_bytes() != d}
    assert not others


def test_a_fault_would_be_seen(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(place: Path) -> None:
        raise KeyError("a")

    monkeypatch.setitem(TARGETS, "lines", ("data.jsonl", broken))
    with pytest.raises(KeyError):
        tried(sandbox, "lines", b"{}")
    monkeypatch.setitem(TARGETS, "lines", ("data.jsonl", lambda place: _mute()))
    with pytest.raises(AssertionError):
        tried(sandbox, "lines", b"{}")


def _mute() -> None:
    raise WeightSurgeryError("something")
