"""What is fetched of a remote file: each byte once, in bounded parallel, none after the end."""

import threading
import time

import pytest

from weightsurgery.checkpoint import remote
from weightsurgery.checkpoint.remote import CONNECTIONS, _Fetcher
from weightsurgery.checkpoint.repository import RemoteFile, Repository
from weightsurgery.errors import CheckpointError, SourceError

CONTENT = bytes(range(256)) * 40  # 10 240 bytes


class Wire:
    """Stands where the network is: serves ranges of CONTENT, and remembers them."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, int]] = []
        self.served = 0
        self.busy, self.busiest = 0, 0
        self.fail_at: int | None = None
        self.pause = 0.0
        self._lock = threading.Lock()

    def __call__(self, repository, commit, name, start, stop, take, wait) -> None:
        assert (repository, commit, name) == ("org/name", "c0ffee", "model.safetensors")
        with self._lock:
            self.asked.append((start, stop))
            self.busy += 1
            self.busiest = max(self.busy, self.busiest)
        try:
            for at in range(start, stop, 100):
                time.sleep(self.pause)
                if self.fail_at is not None and at <= self.fail_at < min(stop, at + 100):
                    self.fail_at = None
                    raise SourceError("cut")
                take(at, CONTENT[at : min(stop, at + 100)])
                with self._lock:
                    self.served += min(stop, at + 100) - at
        finally:
            with self._lock:
                self.busy -= 1


@pytest.fixture
def wire(monkeypatch, tmp_path):
    monkeypatch.setenv("WEIGHTSURGERY_CACHE", str(tmp_path))
    monkeypatch.setattr(remote, "PIECE", 500)
    wire = Wire()
    monkeypatch.setattr(remote, "fetch_range", wire)
    return wire


@pytest.fixture
def fetcher(wire):
    files = {"model.safetensors": RemoteFile("model.safetensors", len(CONTENT), "ab" * 32)}
    found = _Fetcher(Repository("org/name", "org/name", "c0ffee", files))
    yield found
    found.close()


def test_overlapping_wishes_fetch_each_byte_once(fetcher, wire):
    wire.pause = 0.001
    fetcher.request("model.safetensors", 1000, 4000)
    threads = [
        threading.Thread(target=fetcher.wait, args=("model.safetensors", a, a + 2000))
        for a in range(0, 6000, 500)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert fetcher.read("model.safetensors", 0, 7500) == CONTENT[:7500]
    assert fetcher.fetched == wire.served == 7500
    assert fetcher.read("model.safetensors", 10_200, 100) == CONTENT[10_200:]  # its end
    assert 1 < wire.busiest <= CONNECTIONS


def test_what_came_before_a_failure_is_kept(fetcher, wire):
    wire.fail_at = 250
    with pytest.raises(SourceError):
        fetcher.wait("model.safetensors", 0, 500)
    assert wire.served == 200
    assert fetcher.read("model.safetensors", 0, 500) == CONTENT[:500]
    assert wire.asked == [(0, 500), (200, 500)]
    assert fetcher.fetched == 500


def test_an_end_gives_up_what_is_in_flight(fetcher, wire):
    wire.pause = 0.01
    waiting = fetcher.request("model.safetensors", 0, len(CONTENT))
    assert len(waiting) == 21
    fetcher.close()
    assert all(each.done() for each in waiting)
    assert wire.served < len(CONTENT) / 2
    assert any(each.cancelled() for each in waiting)
    failed = [each for each in waiting if not each.cancelled() and each.exception()]
    assert failed
    assert isinstance(failed[0].exception(), CheckpointError)
