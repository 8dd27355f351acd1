"""The local part of a remote file: what it holds, and that only listed bytes count."""

import itertools
import os
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weightsurgery.checkpoint.mirror import Mirror, Ranges
from weightsurgery.errors import CheckpointError

pair = st.tuples(st.integers(0, 60), st.integers(0, 60)).map(sorted)


@given(added=st.lists(pair, max_size=12), wanted=pair)
def test_ranges_are_sets_of_bytes(added, wanted):
    ranges, oracle = Ranges(), set()
    for start, stop in added:
        ranges.add(start, stop)
        oracle |= set(range(start, stop))
    missing = ranges.missing(*wanted)
    assert {b for start, stop in missing for b in range(start, stop)} == (
        set(range(*wanted)) - oracle
    )
    assert all(start < stop for start, stop in missing)
    assert all(a[1] < b[0] for a, b in itertools.pairwise(missing))


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("WEIGHTSURGERY_CACHE", str(tmp_path / "cache"))


def read(mirror: Mirror, start: int, stop: int) -> bytes:
    buffer = bytearray(stop - start)
    mirror.read_into(start, memoryview(buffer))
    return bytes(buffer)


def test_what_was_noted_is_here_again(tmp_path):
    first = Mirror("abc", 100)
    assert first.missing(0, 100) == [(0, 100)]
    first.write(10, b"hello")
    first.note(10, 15)
    first.write(50, b"never noted")  # as after a kill: written, and nobody can be sure of it
    first.close()

    second = Mirror("abc", 100)
    assert second.missing(0, 100) == [(0, 10), (15, 100)]
    assert read(second, 10, 15) == b"hello"
    second.close()


def test_a_torn_or_foreign_list_is_not_believed(tmp_path):
    mirror = Mirror("abc", 100)
    mirror.write(0, bytes(100))
    mirror.note(0, 20)
    mirror.close()
    listed = mirror.path.with_name("abc.ranges")
    with listed.open("a") as file:
        file.write("30 20\n90 101\n-5 8\nx y\n\n20 2")  # the last one was torn from "20 25"
    again = Mirror("abc", 100)
    assert again.missing(0, 100) == [(20, 100)]
    again.close()


def test_a_file_of_another_size_begins_anew(tmp_path):
    mirror = Mirror("abc", 100)
    mirror.note(0, 100)
    mirror.close()
    os.truncate(mirror.path, 60)
    again = Mirror("abc", 100)
    assert again.missing(0, 100) == [(0, 100)]
    again.close()


def test_many_threads_write_one_file(tmp_path):
    mirror = Mirror("abc", 64 * 100)

    def put(number: int) -> None:
        mirror.write(100 * number, bytes([number]) * 100)
        mirror.note(100 * number, 100 * number + 100)

    threads = [threading.Thread(target=put, args=(n,)) for n in range(64)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert mirror.missing(0, 6400) == []
    assert read(mirror, 0, 6400) == b"".join(bytes([n]) * 100 for n in range(64))
    mirror.close()
    again = Mirror("abc", 6400)
    assert again.missing(0, 6400) == []
    again.close()


def test_a_cache_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("WEIGHTSURGERY_CACHE", str(tmp_path / "file"))
    with pytest.raises(CheckpointError) as error:
        Mirror("abc", 100)
    assert str(tmp_path / "file") in error.value.what
    assert "WEIGHTSURGERY_CACHE" in error.value.remedy


def test_a_full_disk_is_an_error_and_nothing_is_listed(tmp_path, monkeypatch):
    mirror = Mirror("abc", 100)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(CheckpointError, match="No space left"):
        mirror.write(0, b"x")
    assert mirror.missing(0, 100) == [(0, 100)]
    mirror.close()
