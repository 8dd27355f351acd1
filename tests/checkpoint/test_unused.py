"""What no command used for a month leaves the cache; what is in use, or not ours, stays."""

import fcntl
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from weightsurgery.checkpoint import digest_cache, mirror
from weightsurgery.checkpoint.digest_cache import (
    LEAST_BYTES,
    UNUSED_DAYS,
    cached_digest,
    remove_unused,
)
from weightsurgery.checkpoint.digests import file_sha256
from weightsurgery.checkpoint.mirror import Mirror

DAY = 24 * 60 * 60
OLD, FRESH, OTHER, NEW = ("a" * 64, "b" * 64, "c" * 64, "d" * 64)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    """An empty cache; every command of a test looks through it anew."""
    monkeypatch.setenv("WEIGHTSURGERY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(digest_cache, "_cleaned", set())
    return tmp_path / "cache"


def another_process() -> None:
    digest_cache._cleaned.clear()


def aged(path: Path, days: float) -> Path:
    at = time.time() - days * DAY
    os.utime(path, (at, at), follow_symlinks=False)
    return path


def part(key: str, days: float) -> Path:
    """A part of which ten bytes are here, used so many days ago."""
    cached = Mirror(key, 100)
    cached.write(0, b"0123456789")
    cached.note(0, 10)
    cached.close()
    for path in (cached.path, cached.path.with_name(f"{key}.ranges")):
        aged(path, days)
    return cached.path


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_parts_that_nobody_used_for_a_month_go(cache):
    part(OLD, UNUSED_DAYS + 1)
    part(FRESH, UNUSED_DAYS - 1)
    parts = cache / "parts"
    assert names(parts) == {OLD, f"{OLD}.ranges", FRESH, f"{FRESH}.ranges"}
    another_process()
    Mirror(NEW, 100).close()
    assert names(parts) == {FRESH, f"{FRESH}.ranges", NEW}
    again = Mirror(OLD, 100)  # and begins anew where it is wanted after all
    assert again.missing(0, 100) == [(0, 100)]
    again.close()


def test_what_a_command_reads_stays_for_another_month(cache):
    path = part(OLD, UNUSED_DAYS + 1)
    digest_cache._cleaned.add(path.parent)  # this one does not look yet
    used = Mirror(OLD, 100)
    assert used.missing(0, 100) == [(10, 100)]
    used.close()
    another_process()
    Mirror(NEW, 100).close()
    assert {OLD, f"{OLD}.ranges"} <= names(cache / "parts")  # the list is as old as it was


HOLDS = """
import sys
from weightsurgery.checkpoint.mirror import Mirror
held = Mirror(sys.argv[1], 100)
print(flush=True)
input()
held.write(10, b"more")
held.note(10, 14)
"""


def test_what_another_process_has_open_stays_however_old(cache):
    path = part(OLD, 0)
    running = subprocess.Popen(
        [sys.executable, "-c", HOLDS, OLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert running.stdout.readline() == "\n"
    aged(path, UNUSED_DAYS + 1)  # as one that has run for so long
    another_process()
    Mirror(NEW, 100).close()
    assert OLD in names(path.parent)
    running.communicate("\n")
    assert running.returncode == 0
    aged(path, UNUSED_DAYS + 1)
    another_process()
    Mirror(NEW, 100).close()
    assert names(path.parent) == {NEW}  # its lock ended with it


def test_one_that_opens_while_another_removes_begins_a_file_of_its_own(cache, monkeypatch):
    path = part(OLD, UNUSED_DAYS + 1)
    held = []

    def late(file: int) -> None:
        """Between opening and holding, the other process removes the file."""
        if not held:
            digest_cache._remove(path, time.time() - DAY, ".ranges")
            assert not path.exists()
        held.append(file)
        digest_cache.hold(file)

    monkeypatch.setattr(mirror, "hold", late)
    cached = Mirror(OLD, 100)
    assert cached.missing(0, 100) == [(0, 100)]
    cached.write(0, b"x")
    cached.note(0, 1)
    cached.close()
    assert len(held) == 2
    assert path.read_bytes()[:1] == b"x"


def test_a_cache_deleted_under_a_command_leaves_no_list_behind(cache):
    """A list without its bytes would vouch for those of whoever comes next."""
    path = part(OLD, 0)
    first = Mirror(OLD, 100)
    for each in path.parent.iterdir():
        each.unlink()
    second = Mirror(OLD, 100)
    first.write(20, b"first")
    first.note(20, 25)
    buffer = bytearray(5)
    first.read_into(20, memoryview(buffer))
    assert bytes(buffer) == b"first"  # it has what it fetched
    second.close()
    third = Mirror(OLD, 100)
    assert third.missing(0, 100) == [(0, 100)]
    for each in (first, third):
        each.close()


def test_what_is_not_ours_is_not_touched(cache, tmp_path):
    part(OLD, UNUSED_DAYS + 1)
    parts = cache / "parts"
    (tmp_path / "elsewhere").write_text("kept")
    (parts / OTHER).symlink_to(tmp_path / "elsewhere")
    (parts / NEW).mkdir()
    foreign = ["notes.txt", "model.safetensors", f"{OLD}.bak", f"{OLD[:-1]}", f"{OLD}0", "A" * 64]
    for name in foreign:
        (parts / name).write_text("kept")
    for name in (*foreign, OTHER, NEW):
        aged(parts / name, 400)
    aged(tmp_path / "elsewhere", 400)
    another_process()
    Mirror(FRESH, 100).close()
    assert names(parts) == {*foreign, OTHER, NEW, FRESH}
    assert (tmp_path / "elsewhere").read_text() == "kept"


def test_a_list_alone_goes_too(cache):
    path = part(OLD, UNUSED_DAYS + 1)
    path.unlink()
    another_process()
    Mirror(FRESH, 100).close()
    assert names(path.parent) == {FRESH}


def test_what_cannot_be_locked_stays(cache, monkeypatch):
    path = part(OLD, UNUSED_DAYS + 1)

    def never(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", never)
    another_process()
    Mirror(NEW, 100).close()  # and is used without
    assert OLD in names(path.parent)


def test_a_folder_is_looked_through_once_per_process(tmp_path):
    ours = re.compile("x")
    remove_unused(tmp_path, ours)
    (tmp_path / "x").write_text("")
    aged(tmp_path / "x", 400)
    remove_unused(tmp_path, ours)
    assert (tmp_path / "x").exists()
    another_process()
    remove_unused(tmp_path, ours)
    assert not (tmp_path / "x").exists()


def test_digests_that_nobody_asked_for_go(cache, tmp_path, monkeypatch):
    monkeypatch.setattr(digest_cache, "_SETTLED_NS", 0)
    paths = [tmp_path / name for name in ("asked", "unasked", "new")]
    for path in paths:
        path.write_bytes(os.urandom(LEAST_BYTES))
    used, unused_path, new = paths
    entries = {}
    for path in (used, unused_path):
        file_sha256(path)
        entries[path] = aged(digest_cache._place(path), UNUSED_DAYS + 1)
    draft = entries[unused_path].with_name(f"{entries[unused_path].name}.4711")
    draft.write_text("of one that was killed")
    aged(draft, UNUSED_DAYS + 1)
    assert cached_digest(used) is not None
    another_process()
    file_sha256(new)
    assert names(cache / "sha256") == {entries[used].name, digest_cache._place(new).name}
    assert cached_digest(unused_path) is None
