import errno
import fcntl
import json
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from weightsurgery.checkpoint.staging import RECORD_NAME, Staging, output_errors
from weightsurgery.checkpoint.targets import check_target
from weightsurgery.errors import OutputError, VerificationError

from ..conftest import left_behind, snapshot
from .handmade import directory, says

FACTS = {"content.txt": {"sha256": "0" * 64, "bytes": 3}}
RECORD = json.dumps({"kind": "checkpoint", "version": 1, "files": FACTS}).encode()


def made_by_ws(root, text="old"):
    return directory(root, {RECORD_NAME: RECORD, "content.txt": text})


def finish(staging, text="new"):
    """What a run does between beginning and end."""
    made_by_ws(staging.files, text)
    staging.commit()


def killed(staging):
    """A run that was killed: the lock is gone, everything else stays."""
    staging.leave()


# The ordinary way


def test_an_output_appears_whole(tmp_path):
    out = tmp_path / "new" / "out"
    staging = Staging(out, "me", [])
    assert not out.exists()
    assert (staging.finished, staging.complete) == ([], False)
    finish(staging)
    assert snapshot(out) == {RECORD_NAME: RECORD, "content.txt": b"new"}
    assert left_behind(out) == ["out"]


def test_giving_up_leaves_nothing(tmp_path):
    staging = Staging(tmp_path / "out", "me", [])
    assert left_behind(tmp_path / "out") == [".out.ws-partial"]
    made_by_ws(staging.files)
    staging.close()
    assert left_behind(tmp_path / "out") == []
    staging.close()  # once is enough, twice does no harm


def test_closing_twice_spares_the_next_run(tmp_path):
    first = Staging(tmp_path / "out", "me", [])
    finish(first)
    second = Staging(tmp_path / "out", "you", [], overwrite=True)
    first.close()
    finish(second, "second")
    assert (tmp_path / "out" / "content.txt").read_text() == "second"


def test_an_empty_directory_may_be_the_target(tmp_path):
    (tmp_path / "out").mkdir()
    finish(Staging(tmp_path / "out", "me", []))
    assert (tmp_path / "out" / "content.txt").read_text() == "new"


def test_a_link_to_the_target_stays_a_link(tmp_path):
    made_by_ws(tmp_path / "real")
    (tmp_path / "link").symlink_to("real")
    finish(Staging(tmp_path / "link", "me", [], overwrite=True))
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / "content.txt").read_text() == "new"


# Targets that would lose something


def refused(target, inputs, *words, overwrite=True):
    with pytest.raises(OutputError) as error:
        check_target(target, inputs, overwrite)
    says(error, str(target), *words)
    return error.value


def test_the_target_may_not_touch_an_input(tmp_path):
    base = made_by_ws(tmp_path / "models" / "base")
    other = made_by_ws(tmp_path / "models" / "other")
    check_target(tmp_path / "models" / "out", [base, other], False)
    check_target(tmp_path / "models" / "base2", [base, other], False)
    refused(base, [other, base], str(base))
    refused(base / "out", [other, base], str(base))
    refused(tmp_path / "models", [base], str(base))
    assert snapshot(base) == {RECORD_NAME: RECORD, "content.txt": b"old"}


def test_the_target_may_not_touch_an_input_through_links(tmp_path):
    base = made_by_ws(tmp_path / "base")
    (tmp_path / "link").symlink_to(base)
    refused(base, [tmp_path / "link"], str(base))
    with pytest.raises(OutputError) as error:
        Staging(tmp_path / "link", "me", [base], overwrite=True)
    says(error, str(base))
    with pytest.raises(OutputError):
        Staging(tmp_path / "link" / "out", "me", [base], overwrite=True)
    assert snapshot(base) == {RECORD_NAME: RECORD, "content.txt": b"old"}


def test_the_target_may_not_hold_what_an_input_links_to(tmp_path):
    out = made_by_ws(tmp_path / "farm" / "out")
    base = tmp_path / "base"
    base.mkdir()
    (base / "content.txt").symlink_to(out / "content.txt")
    check_target(tmp_path / "farm" / "another", [base], True)
    refused(out, [base], str(out / "content.txt"))


def test_an_input_may_not_lie_where_the_output_grows(tmp_path):
    half = made_by_ws(tmp_path / ".out.ws-partial" / "files")
    check_target(tmp_path / "other", [half], False)
    refused(tmp_path / "out", [half], str(half))


def test_an_existing_target(tmp_path):
    out = made_by_ws(tmp_path / "out")
    check_target(out, [], True)
    assert "--overwrite" in refused(out, [], "exists", overwrite=False).remedy
    finish(Staging(out, "me", [], overwrite=True))
    assert (out / "content.txt").read_text() == "new"
    (out / RECORD_NAME).unlink()
    refused(out, [], RECORD_NAME, "not written by ws")
    before = snapshot(out)
    with pytest.raises(OutputError):
        Staging(out, "me", [], overwrite=True)
    assert snapshot(out) == before
    assert left_behind(out) == ["out"]


@pytest.mark.parametrize(
    "record", [b"{}", b"", b"[]", b'{"kind": "x"}', b'{"version": 1}', b'{"version": []}',
               b"[" * 100_000, b'{"kind": "checkpoint", "version": 1, "files": {"a": 1}}',
               b'{"kind": "checkpoint", "version": 1, "files": []}']
)  # fmt: skip
def test_a_record_that_is_none_gives_nothing_away(tmp_path, record):
    out = directory(tmp_path / "out", {RECORD_NAME: record, "precious.txt": "mine"})
    refused(out, [], str(out), "not written by ws")
    assert (out / "precious.txt").read_text() == "mine"


@pytest.mark.parametrize("name", ["README.md", "notes/mine.txt", ".hidden", "link"])
def test_files_of_the_user_s_own_are_not_replaced(tmp_path, name):
    out = made_by_ws(tmp_path / "out")
    if name == "link":
        (out / name).symlink_to("nowhere")
    else:
        directory(out, {name: "mine"})
    assert "Move it away" in refused(out, [], name).remedy
    staging = None
    with pytest.raises(OutputError):
        staging = Staging(out, "me", [], overwrite=True)
    assert staging is None
    assert os.path.lexists(out / name)
    (out / name).unlink()
    check_target(out, [], True)


def test_a_file_as_target(tmp_path):
    directory(tmp_path, {"out": "precious"})
    check_target(tmp_path / "out2", [], True)
    refused(tmp_path / "out", [], "no directory")
    with pytest.raises(OutputError) as error:
        Staging(tmp_path / "out" / "below", "me", [])
    says(error, str(tmp_path / "out" / "below"))
    assert (tmp_path / "out").read_text() == "precious"


def test_a_target_that_fills_up_while_the_work_goes_on(tmp_path):
    """Somebody else's files are not replaced, and the work is not lost either."""
    out = tmp_path / "out"
    staging = Staging(out, "me", [])
    made_by_ws(staging.files)
    staging.note([{"tensor": "a"}])
    directory(out, {"notes.txt": "precious"})
    with pytest.raises(OutputError) as error:
        staging.commit()
    says(error, str(out), "exists")
    staging.close()
    assert snapshot(out) == {"notes.txt": b"precious"}
    (out / "notes.txt").unlink()
    again = Staging(out, "me", [])
    assert again.finished == [{"tensor": "a"}]
    again.commit()
    assert (out / "content.txt").exists()


@pytest.mark.parametrize("name", ["x" * 250, "x" * 300])
def test_a_name_too_long(tmp_path, name):
    Staging(tmp_path / name[:200], "me", []).close()
    with pytest.raises(OutputError) as error:
        Staging(tmp_path / name, "me", [])
    says(error, "too long")


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.ENOSPC, "Free some space"),
        (errno.EDQUOT, "Free some space"),
        (errno.EACCES, "permissions"),
        (errno.EROFS, "permissions"),
        (errno.EIO, "disk fails"),
    ],
)
def test_errors_of_the_system(tmp_path, number, remedy):
    with pytest.raises(OutputError) as error, output_errors(tmp_path / "out"):
        raise OSError(number, os.strerror(number))
    says(error, str(tmp_path / "out"), os.strerror(number))
    assert remedy in error.value.remedy
    with pytest.raises(ZeroDivisionError), output_errors(tmp_path / "out"):
        raise ZeroDivisionError
    with pytest.raises(OutputError, match="as it was"), output_errors(tmp_path / "out"):
        raise OutputError("as it was")


# Permissions


@pytest.mark.parametrize("mask", [0o027, 0o077, 0o002])
def test_the_umask_is_honoured(tmp_path, mask):
    before = os.umask(mask)
    try:
        staging = Staging(tmp_path / "out", "me", [])
        assert stat.S_IMODE(staging.root.stat().st_mode) == 0o777 & ~mask
        assert stat.S_IMODE((staging.root / "journal.jsonl").stat().st_mode) == 0o666 & ~mask
        finish(staging)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o777 & ~mask
    assert stat.S_IMODE((tmp_path / "out" / "content.txt").stat().st_mode) == 0o666 & ~mask


# Interrupted runs


def test_a_killed_run_is_resumed(tmp_path):
    first = Staging(tmp_path / "out", "me", [])
    directory(first.files, {"half.txt": "half"})
    first.note([{"tensor": "a", "facts": {}}, {"tensor": "b", "facts": {"x": 1}}])
    killed(first)
    again = Staging(tmp_path / "out", "me", [])
    assert again.finished == [{"tensor": "a", "facts": {}}, {"tensor": "b", "facts": {"x": 1}}]
    assert (again.files / "half.txt").read_text() == "half"
    again.note([{"tensor": "c", "facts": {}}])
    killed(again)
    third = Staging(tmp_path / "out", "me", [])
    assert [line["tensor"] for line in third.finished] == ["a", "b", "c"]
    third.restart()
    assert list(third.files.iterdir()) == []
    killed(third)
    assert Staging(tmp_path / "out", "me", []).finished == []


def test_another_command_starts_afresh(tmp_path):
    first = Staging(tmp_path / "out", "me", [])
    directory(first.files, {"half.txt": "half"})
    first.note([{"tensor": "a"}])
    killed(first)
    other = Staging(tmp_path / "out", "you", [])
    assert other.finished == []
    assert list(other.files.iterdir()) == []
    killed(other)
    assert Staging(tmp_path / "out", "me", []).finished == []


TORN = [b'{"tensor": "b"', b'{"tensor": "b"}', b"\0\0\0\0", b"\xff\xfe\n", b"[1]\n", b"7\n"]
TORN += [b'{"tensor": "\0"}\n{"tensor": "c"}\n']  # raw control characters are no JSON


@pytest.mark.parametrize("tail", TORN)
def test_a_torn_line_is_cut_off(tmp_path, tail):
    first = Staging(tmp_path / "out", "me", [])
    first.note([{"tensor": "a"}])
    killed(first)
    with (first.root / "journal.jsonl").open("ab") as file:
        file.write(tail)
    again = Staging(tmp_path / "out", "me", [])
    assert again.finished == [{"tensor": "a"}]
    again.note([{"tensor": "d"}])
    killed(again)
    assert Staging(tmp_path / "out", "me", []).finished == [{"tensor": "a"}, {"tensor": "d"}]


def test_a_journal_without_its_first_line(tmp_path):
    first = Staging(tmp_path / "out", "me", [])
    directory(first.files, {"half.txt": "half"})
    killed(first)
    for text in (b"", b'{"iden', b'{"other": 1}\n'):
        (first.root / "journal.jsonl").write_bytes(text)
        again = Staging(tmp_path / "out", "me", [])
        assert (again.finished, list(again.files.iterdir())) == ([], [])
        killed(again)


def test_two_runs_cannot_write_the_same_output(tmp_path):
    first = Staging(tmp_path / "out", "me", [])
    first.note([{"tensor": "a"}])
    with pytest.raises(OutputError) as error:
        Staging(tmp_path / "out", "me", [])
    says(error, str(tmp_path / "out"), "another ws process")
    finish(first)
    assert (tmp_path / "out" / "content.txt").read_text() == "new"


def test_a_lock_is_let_go_when_its_process_is_killed(tmp_path):
    code = (
        "import os, signal, sys; from weightsurgery.checkpoint.staging import Staging\n"
        "s = Staging(__import__('pathlib').Path(sys.argv[1]), 'me', [])\n"
        "s.note([{'tensor': 'a'}]); print('ready', flush=True); signal.pause()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "out")], stdout=subprocess.PIPE
    )
    try:
        assert process.stdout.readline() == b"ready\n"
        with pytest.raises(OutputError):
            Staging(tmp_path / "out", "me", [])
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
    assert Staging(tmp_path / "out", "me", []).finished == [{"tensor": "a"}]


def test_a_file_system_without_locks(tmp_path, monkeypatch):
    def flock(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(OutputError) as error:
        Staging(tmp_path / "out", "me", [])
    says(error, "No locks available")


def between_the_renames(tmp_path):
    """Killed in a commit: the old output was moved away, the new one is not there yet."""
    out = made_by_ws(tmp_path / "out")
    staging = Staging(out, "me", [], overwrite=True)
    made_by_ws(staging.files, "new")
    staging.note([{"tensor": "a"}])
    out.rename(staging.old)
    killed(staging)
    return out, staging


def test_killed_between_the_renames(tmp_path):
    out, _ = between_the_renames(tmp_path)
    staging = Staging(out, "me", [], overwrite=True)
    assert (out / "content.txt").read_text() == "old"
    assert staging.finished == [{"tensor": "a"}]
    staging.commit()
    assert (out / "content.txt").read_text() == "new"
    assert left_behind(out) == ["out"]


def test_killed_between_the_renames_and_another_command_follows(tmp_path):
    out, _ = between_the_renames(tmp_path)
    with pytest.raises(OutputError) as error:
        Staging(out, "you", [])
    says(error, str(out), "exists")
    assert snapshot(out) == {RECORD_NAME: RECORD, "content.txt": b"old"}
    other = Staging(out, "you", [], overwrite=True)
    assert (other.finished, list(other.files.iterdir())) == ([], [])
    other.close()
    assert (out / "content.txt").read_text() == "old"


def test_killed_between_the_renames_and_an_empty_directory_took_the_name(tmp_path):
    out, staging = between_the_renames(tmp_path)
    out.mkdir()
    Staging(out, "you", [], overwrite=True).close()
    assert (out / "content.txt").read_text() == "old"
    assert not staging.root.exists()


def killed_after_the_renames(tmp_path, monkeypatch):
    out = made_by_ws(tmp_path / "out")
    staging = Staging(out, "me", [], overwrite=True)

    def dies():
        raise KeyboardInterrupt

    monkeypatch.setattr(staging, "close", dies)
    with pytest.raises(KeyboardInterrupt):
        finish(staging)
    killed(staging)
    assert (out / "content.txt").read_text() == "new"
    assert left_behind(out) == [".out.ws-partial", "out"]
    return out


def test_killed_after_the_renames(tmp_path, monkeypatch):
    out = killed_after_the_renames(tmp_path, monkeypatch)
    again = Staging(out, "me", [])  # nothing is replaced, so nothing need be allowed
    assert again.complete
    assert (out / "content.txt").read_text() == "new"
    assert left_behind(out) == ["out"]


def test_another_command_finds_nothing_to_go_on_from_and_takes_it_away(tmp_path, monkeypatch):
    out = killed_after_the_renames(tmp_path, monkeypatch)
    with pytest.raises(OutputError, match="exists"):
        Staging(out, "you", [])
    assert (out / "content.txt").read_text() == "new"
    assert left_behind(out) == ["out"]


def test_an_old_output_is_not_taken_for_a_new_one(tmp_path):
    """The power failed when the journal was on disk, and the folder beside it not yet."""
    out = made_by_ws(tmp_path / "out")
    staging = Staging(out, "me", [], overwrite=True)
    killed(staging)
    staging.files.rmdir()
    again = Staging(out, "me", [], overwrite=True)
    assert not again.complete
    finish(again)
    assert (out / "content.txt").read_text() == "new"


def test_what_a_finished_run_left_is_cleared(tmp_path, monkeypatch):
    out = killed_after_the_renames(tmp_path, monkeypatch)
    Staging.clear(out, "me")
    assert left_behind(out) == ["out"]
    assert (out / "content.txt").read_text() == "new"
    staging = Staging(tmp_path / "other", "me", [])
    killed(staging)
    Staging.clear(tmp_path / "other", "me")  # there is something to go on from
    assert left_behind(tmp_path / "other") == [".other.ws-partial"]


def test_a_full_disk_leaves_what_was_worked_out(tmp_path):
    staging = Staging(tmp_path / "out", "me", [])
    staging.give_up(OutputError("full"))
    again = Staging(tmp_path / "out", "me", [])
    assert again.files.is_dir()
    again.give_up(VerificationError("wrong"))
    assert left_behind(tmp_path / "out") == []


def test_killed_while_an_interrupted_run_is_started_afresh(tmp_path, monkeypatch):
    """The old output must not pass for the new one."""
    out = made_by_ws(tmp_path / "out")
    staging = Staging(out, "me", [], overwrite=True)
    staging.note([{"tensor": "a"}])

    class Killed(BaseException):
        pass

    def mkdir(*_, **__):
        raise Killed

    monkeypatch.setattr("pathlib.Path.mkdir", mkdir)
    with pytest.raises(Killed):
        staging.restart()
    monkeypatch.undo()
    killed(staging)
    assert not staging.files.exists()
    again = Staging(out, "me", [], overwrite=True)
    assert not again.complete
    assert again.finished == []
    again.close()


def test_a_journal_on_a_full_disk(tmp_path, monkeypatch):
    """The disk is still full when the journal is closed: only the first error counts."""
    staging = Staging(tmp_path / "out", "me", [])

    class Full:
        closed = False

        def __getattr__(self, name):
            def fail(*_):
                raise OSError(errno.ENOSPC, "No space left on device")

            return fail if name in {"flush", "close", "write"} else getattr(journal, name)

    journal = staging._journal
    staging._journal = Full()
    with pytest.raises(OutputError) as error, output_errors(staging.target):
        staging.note([{"tensor": "a"}])
    says(error, "No space left")
    staging.close()
    assert left_behind(tmp_path / "out") == []
    journal.close()


def test_the_journal_is_lines_of_json(tmp_path):
    staging = Staging(tmp_path / "out", "me", [])
    staging.note([{"tensor": "é", "facts": {"x": [1]}}])
    lines = (staging.root / "journal.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"identity": "me"},
        {"tensor": "é", "facts": {"x": [1]}},
    ]
    staging.close()


def test_a_disk_that_is_full_from_the_start_keeps_nothing(tmp_path, monkeypatch):
    Staging(tmp_path / "good", "x", []).close()

    def full(self, lines):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Staging, "note", full)
    with pytest.raises(OutputError) as caught:
        Staging(tmp_path / "out", "x", [])
    assert "No space left" in caught.value.what
    assert "-o" in caught.value.remedy
    assert list(tmp_path.iterdir()) == []


def test_a_failure_between_the_renames_restores_the_old_output(tmp_path, monkeypatch):
    out = tmp_path / "out"
    first = Staging(out, "a", [])
    (first.files / "weightsurgery.json").write_bytes(RECORD)
    first.commit()
    before = snapshot(out)
    second = Staging(out, "b", [], overwrite=True)
    (second.files / "weightsurgery.json").write_text("new")
    rename = Path.rename

    def fail(self, target):
        if self == second.files:
            raise OSError(errno.EIO, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(OutputError):
        second.commit()
    assert not out.exists()  # the state before: the old output is out of the way
    second.close()
    assert snapshot(out) == before
    assert left_behind(out) == ["out"]
