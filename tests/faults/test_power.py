"""The power fails: what was flushed is there, and the same command makes the same bytes of it."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.faults.disk import Disk, lay
from tests.faults.running import Faults, Server
from tests.faults.trials import (
    Trial,
    Whole,
    digests,
    judge,
    killed,
    power_lost,
    reset,
    visible,
    whole,
)

NEGATE = "negate IN/base IN/tuned -o out"
TRIALS = [
    Trial("replaced", f"{NEGATE} --overwrite", f"{NEGATE} --scale 0.5"),
    Trial("vector", "subspace IN/base IN/tuned -o out --rank 2"),
    Trial("page", "diff IN/base IN/tuned --html page.html"),
    Trial("page of an edit", f"{NEGATE} --html page.html"),
    Trial("page of a vector", "diff IN/base IN/tuned -o out --html page.html"),
    Trial("page of an adapter", f"{NEGATE} --as adapter --rank 2 --html page.html"),
]  # fmt: skip


@pytest.fixture(scope="module")
def runs(server: Server, inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Whole]:
    """Each command undisturbed."""
    return [whole(each, server, inputs, tmp_path_factory.mktemp("trial") / "it") for each in TRIALS]


def moments(found: Whole, letters: str) -> list[int]:
    """Calls of these kinds in the undisturbed run; the first, the middle and the last one."""
    assert found.disk is not None
    calls = [n for n, kind in found.disk.kinds.items() if kind in letters]
    return sorted({calls[0], calls[len(calls) // 2], calls[-1]})


@pytest.mark.parametrize("number", range(len(TRIALS)), ids=[each.name for each in TRIALS])
def test_the_power_fails(runs: list[Whole], number: int) -> None:
    found, draw = runs[number], random.Random(number)
    assert found.disk is not None
    power_lost(found, found.disk.calls, "scattered", draw)  # it had said that it was done
    for call in moments(found, "RFM"):
        power_lost(found, call, "ordered", draw)
        power_lost(found, call - 1, "scattered", draw)


def test_killed_before_a_rename(runs: list[Whole]) -> None:
    for found in (runs[0], *runs[2:]):  # the last is a page's, where there is one
        for call in moments(found, "R"):
            assert killed(found, Faults(found.here, kill_at=call)).code == -9


PRESSED = """
import pathlib
from weightsurgery.checkpoint import staging
def pressed(path, flush=staging.sync_directory, out=pathlib.Path("out")):
    flush(path)
    if out.exists():
        raise KeyboardInterrupt
staging.sync_directory = pressed
"""


def test_ctrl_c_when_the_output_has_just_got_its_name(runs: list[Whole]) -> None:
    for found in runs[3:]:
        reset(found)
        done = found.server.run(found.argv, found.here, before=PRESSED)
        assert (done.code, done.stderr.count("Interrupted")) == (130, 1), done
        assert {each.split("/")[0] for each in visible(digests(found.here))} == {"out"}
        assert judge(found) is not None  # its page comes with the same command


def test_an_unflushed_file_is_lost(tmp_path: Path, runs: list[Whole]) -> None:
    """The model itself: a name without a flush is no content, and a flush of one is no name."""
    log = tmp_path / "log"
    (tmp_path / "log.d").mkdir()
    (tmp_path / "log.d/3").write_bytes(b"whole")
    (tmp_path / "before").mkdir()
    log.write_text("C\t1\t7\t/a.part\t\nW\t2\t7\t/a.part\t\nF\t3\t7\t/a.part\t\n"
                   "R\t4\t7\t/a.part\t/a\nC\t5\t8\t/b\t\nW\t6\t8\t/b\t\nD\t7\t9\t\t\n")  # fmt: skip
    disk = Disk(tmp_path / "before", log)
    for seed in range(20):
        draw = random.Random(seed)
        assert disk.after(7, "scattered", draw).get("a") == b"whole"
        assert not (disk.after(7, "scattered", draw)["b"] or b"").strip(b"\0")
        found = disk.after(2, "ordered", draw)
        assert not (found.get("a.part") or b"").strip(b"\0")
    ends = [sorted(disk.after(6, "scattered", random.Random(s))) for s in range(60)]
    assert [] in ends
    assert ["a", "b"] in ends
    assert ["a.part"] in ends
    lay(tmp_path / "before", {"x": None, "x/y": b"1"})
    assert digests(tmp_path / "before").keys() == {"x", "x/y"}
    reset(runs[0])
    assert digests(runs[0].here) == runs[0].old
