"""Disks that are full, fail, or read in small pieces."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import time
from pathlib import Path

import pytest

from tests.faults.running import Done, Faults, Server
from tests.faults.trials import argv, digests

NEGATE = "negate IN/base IN/tuned -o out"
SUBSPACE = "subspace IN/base IN/tuned -o out --rank 2"
TRAINED = (
    "unlearn IN/model --method gradient-ascent --forget IN/forget.jsonl -o out"
    " --steps 6 --save-every 2 --lr 1e-4"
)


@pytest.fixture
def here(tmp_path: Path) -> Path:
    place = tmp_path / "here"
    place.mkdir()
    return place


def refused(done: Done, *words: str) -> None:
    """An error of ours: two lines, the first of which says this."""
    assert done.code == 1, done
    assert "Traceback" not in done.stderr
    at = done.stderr.index("error:")
    what, remedy = done.stderr[at:].strip().splitlines()[:2]
    assert all(word in what for word in words), what
    assert remedy


@pytest.mark.parametrize("command", [NEGATE, SUBSPACE], ids=["negate", "subspace"])
@pytest.mark.parametrize(("error", "says"), [
    (errno.ENOSPC, "No space left"), (errno.EDQUOT, "quota"), (errno.EIO, "Input/output error"),
    (errno.EROFS, "Read-only"),
], ids=lambda each: each if isinstance(each, int) else "")  # fmt: skip
def test_nothing_is_left_where_a_disk_fails(
    server: Server, inputs: Path, here: Path, command: str, error: int, says: str
) -> None:
    words = argv(command, inputs)
    for first in (1, 9):
        kinds = "CWTAM" if error in (errno.ENOSPC, errno.EDQUOT) else "CWTAMFR"
        faults = Faults(here, kinds=kinds, how="e", first=first, error=error)
        refused(server.run(words, here, faults), "out", says)
        assert digests(here) == {}
    assert server.run(words, here).code == 0


def test_a_limit_of_size(server: Server, inputs: Path, here: Path) -> None:
    words = argv(NEGATE, inputs)
    refused(server.run(words, here, limits={"RLIMIT_FSIZE": 3000}), "out", "File too large")
    assert digests(here) == {}


def made(log: Path, part: str) -> list[str]:
    """Files that were made, of which the names hold this."""
    lines = [line.split("\t") for line in log.read_text().splitlines()]
    return [path for kind, _, _, path, _ in lines if kind == "C" and part in path]


def test_what_was_trained_outlives_a_full_disk(server: Server, inputs: Path, here: Path) -> None:
    words = argv(TRAINED, inputs)
    whole, log = here.parent / "whole", here.parent / "log"
    whole.mkdir()
    assert server.run(words, whole, Faults(whole, str(log))).code == 0
    assert made(log, "checkpoint-2")
    # Full while the second point is written; full while what was found is saved.
    for only, kept in (("checkpoint-4", "checkpoint-2/whole.json"), ("vector-0", "training-")):
        faults = Faults(here, kinds="CWTAM", only=only, how="e", error=errno.ENOSPC)
        refused(server.run(words, here, faults), "No space left")
        assert not (here / "out").exists()
        assert not (here / "out.vector").exists()
        assert kept in " ".join(digests(here))
    log.unlink()
    done = server.run(words, here, Faults(here, str(log)))
    assert done.code == 0, done
    assert not made(log, "checkpoint-")  # nothing was trained again
    found, wanted = digests(here), digests(whole)
    for record in (found, wanted):
        record.pop("out/weightsurgery.json")  # it names the place of the vector
    assert found == wanted


def test_reads_that_fail_or_fall_short(server: Server, inputs: Path, here: Path) -> None:
    place = here.parent / "copy"
    shutil.copytree(inputs, place)
    words = argv(NEGATE, place)
    faults = Faults(place, kinds="r", only=".safetensors", how="e", first=9, error=errno.EIO)
    refused(server.run(words, here, faults), "safetensors", "Input/output error")
    assert digests(here) == {}
    assert server.run(words, here).code == 0
    whole = digests(here)
    for root, kinds in ((place, "r"), (here, "W")):
        shutil.rmtree(here / "out")
        done = server.run(words, here, Faults(root, kinds=kinds, how="s"))
        assert done.code == 0, done
        assert digests(here) == whole


def test_a_slow_disk_changes_nothing(server: Server, inputs: Path, here: Path) -> None:
    """Each read and write waits, as one over a network does."""
    place = here.parent / "copy"
    shutil.copytree(inputs, place)
    words = argv(NEGATE, place)
    assert server.run(words, here).code == 0
    whole = digests(here)
    for root, kinds in ((place, "r"), (here, "W")):
        shutil.rmtree(here / "out")
        begun = time.monotonic()
        slow = Faults(root, kinds=kinds, how="d", times=5, error=400)
        done = server.run(words, here, slow)
        assert done.code == 0, done
        assert time.monotonic() - begun > 1.2  # three calls at least have waited
        assert digests(here) == whole


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ended_by_a_signal(server: Server, inputs: Path, here: Path, number: int) -> None:
    words, slow = argv(TRAINED, inputs), Faults(here, kinds="F", how="d", error=300)
    running = server.start(words, here, slow)
    deadline = time.monotonic() + 100
    while not list(here.glob(".out.vector.ws-partial/training-*/training/*/whole.json")):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    running.send(number)
    done = running.wait()
    assert done.code == {signal.SIGINT: 130, signal.SIGTERM: 143}[number], done
    assert "Interrupted" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (here / "out").exists()
    assert server.run(words, here).code == 0
    assert sorted(os.listdir(here)) == ["out", "out.vector"]


def test_two_at_once(server: Server, inputs: Path, here: Path) -> None:
    words = argv(NEGATE, inputs)
    first = server.start(words, here, Faults(here, kinds="F", how="d", times=6, error=1000))
    while not (here / ".out.ws-partial/files").exists():
        time.sleep(0.005)
    first.send(signal.SIGSTOP)
    refused(server.run(words, here), "another ws process is writing it")
    first.send(signal.SIGCONT)
    assert first.wait().code == 0
    assert list(digests(here))
    assert sorted(os.listdir(here)) == ["out"]


@pytest.mark.parametrize("command", [
    "export IN/base IN/tuned -o out --rank 2 --targets all-linear",
    f"{NEGATE} --as adapter --rank 2",
], ids=["export", "adapter"])  # fmt: skip
def test_factors_that_a_disk_does_not_take(
    server: Server, inputs: Path, here: Path, command: str
) -> None:
    words = argv(command, inputs)
    faults = Faults(here, kinds="W", only="/factors", how="e", error=errno.ENOSPC)
    refused(server.run(words, here, faults), "out", "No space left")
    assert digests(here) == {}
    assert server.run(words, here).code == 0


def test_data_that_cannot_be_read_twice(server: Server, inputs: Path, here: Path) -> None:
    """Read as examples, then hashed: the second reading fails."""
    words = argv(TRAINED, inputs)
    for first in (1, 2, 3):
        faults = Faults(inputs, kinds="r", only="forget", how="e", first=first, error=errno.EIO)
        refused(server.run(words, here, faults), "forget.jsonl", "Input/output error")
    assert digests(here) == {}


HALFWAY = """
from peft.tuners.lora.model import LoraModel
def pressed(*_):
    raise KeyboardInterrupt
LoraModel._mark_only_adapters_as_trainable = pressed
"""


@pytest.mark.parametrize("command", [
    "identify IN/model IN/forget.jsonl -o out --mode joint --lora-rank 2 --steps 2 --batch 2",
    f"{TRAINED} --lora-rank 2",
], ids=["identify", "unlearn"])  # fmt: skip
def test_ctrl_c_while_an_adapter_goes_in(
    server: Server, inputs: Path, here: Path, command: str
) -> None:
    done = server.run(argv(command, inputs), here, before=HALFWAY)
    assert (done.code, done.stderr.count("Interrupted")) == (130, 1), done
    assert "Traceback" not in done.stderr
