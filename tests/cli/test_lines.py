"""Progress without a terminal: few plain lines, none of a short command."""

import sys

import pytest

from weightsurgery.cli import console, lines
from weightsurgery.cli.lines import Lines
from weightsurgery.cli.options import Show


@pytest.fixture(autouse=True)
def _as_it_is(monkeypatch):
    monkeypatch.setattr(lines, "FIRST", 10.0)


def said(reports, unit="steps"):
    """What is printed of reports (seconds, stage, done, total), with the seconds."""
    log = Lines(unit, 0.0)
    return [(now, line) for now, *report in reports for line in log.report(*report, now)]


def test_a_short_run_says_nothing():
    assert said([(t, "training", t, 9) for t in range(10)]) == []


def test_first_after_ten_seconds_then_every_thirty_and_at_the_end():
    found = said([(t, f"training, loss {1 / (t + 1):.2f}", t, 100) for t in range(101)])
    assert [now for now, _ in found] == [10, 40, 70, 100]
    assert found[0][1] == "training, loss 0.09: 10/100, 1.0/s, 1 min 30 s left"
    assert found[-1][1] == "training, loss 0.01: 100/100 after 1 min 40 s"


def test_only_what_was_spoken_of_ends_aloud():
    reports = [(t, "first", t, 8) for t in range(9)]
    reports += [(8 + t, "second", t, 20) for t in range(21)]
    reports += [(29 + t, "third", t, 5) for t in range(6)]
    assert [line for _, line in said(reports)] == [
        "second: 2/20, 1.0/s, 18 s left", "second: 20/20 after 20 s",
    ]  # fmt: skip


def test_a_stage_that_is_left_says_how_far_it_came():
    reports = [(t, "training", t, 80) for t in range(21)] + [(21, "writing", 1, 9)]
    assert [line for _, line in said(reports)][-1] == "training: 20/80 after 21 s"


def test_the_next_stage_of_as_many_is_another():
    reports = [(0, "scoring", 21, 21), (15, "generating", 21, 21), (16, "scoring", 9, 21)]
    assert [line for _, line in said(reports)] == ["scoring: 9/21, 9.0/s, 1 s left"]


def test_a_run_that_goes_on_in_the_middle_tells_its_own_rate():
    reports = [(t, "training", 500 + t, 600) for t in range(1, 12)]
    assert said(reports)[0][1] == "training: 510/600, 1.0/s, 1 min 30 s left"


def test_bytes_and_slow_steps_and_hours():
    assert said([(20, "writing", 10**9, 2 * 10**9)], "bytes") == [
        (20, "writing: 1.0 GB of 2.0 GB, 50.0 MB/s, 20 s left")
    ]
    assert said([(20, "cell", 1, 1000)]) == [(20, "cell: 1/1000, 20 s each, 5 h 33 min left")]
    assert said([(20, "cell", 5, 7)]) == [(20, "cell: 5/7, 4.0 s each, 8 s left")]
    assert said([(20, "cell", 0, 7)]) == [(20, "cell: 0/7")]


def test_names_bring_no_control_characters():
    ((_, line),) = said([(20, "scoring a\x1b[31m\nb\r", 1, 2)])
    assert line.isprintable()


@pytest.fixture
def clock(monkeypatch):
    """Two seconds from each look at it to the next."""
    ticking = iter(range(0, 10**6, 2))
    monkeypatch.setattr(console.time, "monotonic", lambda: next(ticking))


def work(show):
    with console.progress(show, unit="steps") as progress:
        for step in range(40):
            if progress is not None:
                progress("training", step, 80)


@pytest.mark.parametrize("forced", [False, True])
def test_a_log_gets_plain_lines(clock, capsys, monkeypatch, forced):
    if forced:
        monkeypatch.setenv("FORCE_COLOR", "1")
    work(Show(None))
    out, err = capsys.readouterr()
    assert out == ""
    told = err.splitlines()
    assert all(line.isprintable() and line.startswith("training: ") for line in told)
    assert [line.split(",")[0] for line in told[:3]] == [
        "training: 4/80", "training: 19/80", "training: 34/80",
    ]  # fmt: skip
    assert told[3].startswith("training: 39/80 after")  # as it is left
    assert len(told) == 4


def test_quiet_is_quiet(clock, capsys):
    work(Show(None, quiet=True))
    assert capsys.readouterr() == ("", "")


def test_a_log_that_nobody_takes_is_no_reason_to_fail(clock, monkeypatch):
    class Full:
        encoding = "utf-8"

        def isatty(self):
            return False

        def write(self, text):
            raise BrokenPipeError

        def flush(self):
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stderr", Full())
    work(Show(None))
