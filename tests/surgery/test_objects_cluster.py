"""Edits on a Ray cluster of two nodes whose output is objects of an S3-compatible store."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.surgery.inputs import digests, edits, write_inputs
from tests.surgery.nodes import two_nodes
from tests.surgery.stores import Store
from tests.surgery.stores import store as store
from weightsurgery import apply
from weightsurgery.checkpoint.object_store import ObjectStore
from weightsurgery.checkpoint.reader import Checkpoint
from weightsurgery.surgery import objects

pytest.importorskip("ray")


@pytest.fixture(scope="module")
def nodes(store: Store) -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch, two_nodes() as cluster:
        patch.setattr("moto.s3.models.S3_UPLOAD_PART_MIN_SIZE", objects.WINDOW)  # from 5 MiB
        for name in ("PART", "TASK", "LEAST"):
            patch.setattr(objects, name, objects.WINDOW)
        yield cluster


@pytest.mark.parametrize("name", ["stretches", "matrices"])
def test_two_nodes_upload_the_same_bytes(
    nodes: Any, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    write_inputs(tmp_path)
    base = Checkpoint.open(tmp_path / "base")
    edit, storage = edits(tmp_path, base)[name]
    apply(edit, base, tmp_path / "wanted", storage=storage)
    seen: list[dict[str, str]] = []

    def here(*_: Any) -> str:
        raise AssertionError("a part was uploaded by the process that asked")

    monkeypatch.setattr(ObjectStore, "put_part", here)
    apply(
        edit, base, f"s3://models/{name}", storage=storage, cluster="ray",
        progress=lambda *_: seen.append(store.objects(name)),
    )  # fmt: skip
    assert store.objects(name) == digests(tmp_path / "wanted")
    assert len(seen) >= 4
    assert not any(seen)
    assert store.uploads(name) == []
