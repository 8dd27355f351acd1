"""Changes are prefetched in order, a bounded number beyond the one that is needed."""

import threading

import pytest

from weightsurgery.surgery.ordering import Prefetch

NAMES = [f"t{number}" for number in range(12)]


@pytest.mark.parametrize("workers", [1, 3])
def test_in_order_and_bounded(workers):
    begun = []
    lock = threading.Lock()

    def prepare(name):
        with lock:
            begun.append(name)
        return name

    prefetch = Prefetch(prepare, NAMES, workers)
    for number, name in enumerate(NAMES):
        assert prefetch.get(name) == prefetch.get(name) == name
        assert set(begun) <= set(NAMES[: number + workers + 1])
        prefetch.release(name)
        assert len(prefetch._futures) <= workers
    assert sorted(begun) == sorted(NAMES)  # each once
    prefetch.close()


def test_an_error_comes_to_who_asks_and_nothing_more_begins():
    begun = []

    def prepare(name):
        begun.append(name)
        if name == "t1":
            raise ValueError("bad tensor")
        return name

    prefetch = Prefetch(prepare, NAMES, 1)
    assert prefetch.get("t0") == "t0"
    with pytest.raises(ValueError, match="bad tensor"):
        prefetch.get("t1")
    prefetch.close()
    assert len(begun) <= 3
