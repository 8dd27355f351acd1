"""Edits whose output is objects of an S3-compatible store."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.conftest import read_tensors, write_checkpoint
from tests.surgery.here import Here
from tests.surgery.inputs import MATRICES, edits, vector
from tests.surgery.stores import REFUSALS, Gate, Store
from tests.surgery.stores import store as store
from weightsurgery import AdapterStorage, Negate, Rank, apply, verify
from weightsurgery.checkpoint.object_store import ObjectPlace, ObjectStore
from weightsurgery.checkpoint.reader import Checkpoint
from weightsurgery.errors import (
    NonFiniteError,
    OutputError,
    SourceError,
    VerificationError,
    WeightSurgeryError,
)
from weightsurgery.surgery import as_checkpoint, objects
from weightsurgery.surgery.performing import performer

# A driver that is killed in the middle, as a process of its own.
DRIVER = """
import os, signal, sys
from pathlib import Path
from tests.surgery.inputs import edits
from weightsurgery import Checkpoint, apply
from weightsurgery.surgery import objects

objects.PART = objects.TASK = objects.LEAST = objects.WINDOW
root, out, name, steps = Path(sys.argv[1]), sys.argv[2], sys.argv[3], []

def progress(stage, *_):
    steps.extend([] if stage == "checksums" else [1])
    if len(steps) == 3:
        os.kill(os.getpid(), signal.SIGKILL)

base = Checkpoint.open(root / "base")
edit, storage = edits(root, base)[name]
apply(edit, base, out, storage=storage, progress=progress, workers=1)
"""


class InOrder(Here):
    """Stands in for a cluster: this process does each task, twice."""

    def results(self, run: str, packed: bytes, work: Any, needs: Any, limit: Any) -> Iterator[Any]:
        for each in work:
            assert needs(each).gpu is False
            yield self.done(performer(run, self.versions, lambda: packed), each)


@pytest.fixture(autouse=True)
def _small(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moto.s3.models.S3_UPLOAD_PART_MIN_SIZE", objects.WINDOW)  # from 5 MiB
    for name in ("PART", "TASK", "LEAST"):
        monkeypatch.setattr(objects, name, objects.WINDOW)
    monkeypatch.setattr(as_checkpoint, "RayCluster", InOrder)


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """The parts that this process uploads: object and number."""
    found: list[tuple[str, int]] = []
    put = ObjectStore.put_part

    def counted(self: ObjectStore, name: str, upload: str, number: int, data: Any) -> str:
        found.append((f"{self.place.prefix}/{name}", number))
        return put(self, name, upload, number, data)

    monkeypatch.setattr(ObjectStore, "put_part", counted)
    return found


def write(inputs: Path, name: str, prefix: str, **more: Any) -> Any:
    base = Checkpoint.open(inputs / "base")
    edit, storage = edits(inputs, base)[name]
    return apply(edit, base, f"s3://models/{prefix}", storage=storage, **more)


@pytest.mark.parametrize(
    ("name", "cluster"),
    [
        ("stretches", None), ("matrices", None), ("blocks", None), ("stochastic", None),
        ("stretches", "ray"), ("matrices", "ray"), ("blocks", "ray"),
    ],
)  # fmt: skip
def test_the_objects_are_the_files_of_a_directory(
    store: Store, inputs: Path, wanted: Any, sent: Any, name: str, cluster: str | None
) -> None:
    prefix, seen = f"a/{name}-{cluster}", []

    def progress(*_: Any) -> None:
        seen.append(store.objects(prefix))

    assert store.objects(prefix) == {}
    write(inputs, name, prefix, progress=progress, cluster=cluster)
    assert store.objects(prefix) == wanted[name]
    assert len(seen) >= 4
    assert not any(seen)  # nothing before the end
    assert store.uploads(prefix) == []
    assert len(sent) >= 4


@pytest.mark.parametrize("name", ["stretches", "matrices"])
def test_a_killed_driver_goes_on_with_what_is_uploaded(
    store: Store, inputs: Path, wanted: Any, sent: list[Any], name: str
) -> None:
    root = str(Path(__file__).parents[2])
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([root, *sys.path])}
    command = [sys.executable, "-c", DRIVER, str(inputs), f"s3://models/killed-{name}", name]
    done = subprocess.run(command, cwd=root, env=env, check=False, timeout=500)
    assert done.returncode == -signal.SIGKILL
    before = set(store.parts(f"killed-{name}"))
    assert len(before) >= 3
    assert store.objects(f"killed-{name}") == {}
    again = write(inputs, name, f"killed-{name}")
    assert again.resumed > 0
    assert sent
    assert len(before) >= 3
    assert not before & set(sent)
    assert store.objects(f"killed-{name}") == wanted[name]
    assert store.uploads(f"killed-{name}") == []


def test_what_is_there_is_not_lost(store: Store, inputs: Path, wanted: Any, sent: Any) -> None:
    write(inputs, "stretches", "twice")
    before, count = store.objects("twice"), len(sent)
    with pytest.raises(OutputError, match=r"s3://models/twice: exists\n.*--overwrite"):
        write(inputs, "blocks", "twice")
    assert len(sent) == count
    assert store.objects("twice") == before
    store.client.put_object(Bucket="models", Key="twice/notes.txt", Body=b"mine")
    with pytest.raises(OutputError, match=r"holds notes\.txt, which ws did not write"):
        write(inputs, "blocks", "twice", overwrite=True)
    store.client.delete_object(Bucket="models", Key="twice/notes.txt")
    assert before != wanted["blocks"]
    write(inputs, "blocks", "twice", overwrite=True)
    assert store.objects("twice") == wanted["blocks"]


def test_another_runs_uploads_are_aborted_on_request_alone(
    store: Store, inputs: Path, wanted: Any, sent: Any
) -> None:
    store.client.create_multipart_upload(Bucket="models", Key="others/model.safetensors")
    with pytest.raises(OutputError, match=r"unfinished uploads of another run are there \(1\)"):
        write(inputs, "stretches", "others")
    assert store.uploads("others") == ["others/model.safetensors"]
    assert not sent
    write(inputs, "stretches", "others", overwrite=True)
    assert store.objects("others") == wanted["stretches"]
    assert store.uploads("others") == []


def test_an_edit_that_cannot_be_done_leaves_nothing(
    store: Store, inputs: Path, tmp_path: Path, sent: Any
) -> None:
    tensors = read_tensors(inputs / "tuned")
    tensors[MATRICES[6]][5, 7] = torch.nan
    write_checkpoint(tmp_path / "tuned", tensors)
    base = Checkpoint.open(inputs / "base")
    with pytest.raises(NonFiniteError):
        apply(
            Negate(vector(tmp_path, base, "tuned")), base, "s3://models/nan", allow_unrelated=True
        )
    assert sent  # it had begun
    assert store.uploads("nan") == []
    assert store.objects("nan") == {}


def test_an_end_that_was_interrupted_is_made_up_for(
    store: Store, inputs: Path, wanted: Any, sent: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = ObjectStore.put

    def refuse(self: ObjectStore, name: str, *rest: Any) -> None:
        if name == "weightsurgery.json":
            raise OutputError("full", "wait")
        put(self, name, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(ObjectStore, "put", refuse)
        with pytest.raises(OutputError, match="full"):
            write(inputs, "stretches", "end")
    assert set(wanted["stretches"]) - set(store.objects("end")) == {"weightsurgery.json"}
    sent.clear()
    write(inputs, "stretches", "end")
    assert not sent
    assert store.objects("end") == wanted["stretches"]


def test_an_upload_that_is_gone_is_made_again(
    store: Store, inputs: Path, wanted: Any, sent: Any
) -> None:
    steps: list[int] = []

    def stop(stage: str, *_: Any) -> None:
        steps.extend([] if stage == "checksums" else [1])
        if len(steps) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(inputs, "stretches", "gone", progress=stop, workers=1)
    uploads = store.client.list_multipart_uploads(Bucket="models", Prefix="gone/")["Uploads"]
    assert len(uploads) == 2
    lost = max(uploads, key=lambda each: sum(each["Key"] == name for name, _ in sent))
    store.client.abort_multipart_upload(Bucket="models", Key=lost["Key"], UploadId=lost["UploadId"])
    before = set(sent)
    sent.clear()
    write(inputs, "stretches", "gone")
    again = before & set(sent)
    assert again
    assert {name for name, _ in again} == {lost["Key"]}
    assert store.objects("gone") == wanted["stretches"]


def refusals(store: Store, patch: pytest.MonkeyPatch) -> Iterator[tuple[str, str, str]]:
    """What is wrong, made so; the bucket; and what is said."""
    yield "bucket", "nowhere", "there is no bucket 'nowhere'"
    with patch.context() as inner:
        inner.delenv("AWS_ACCESS_KEY_ID")
        inner.delenv("AWS_SECRET_ACCESS_KEY")
        yield "credentials", "models", "no credentials"
    with patch.context() as inner:
        inner.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
        yield "server", "models", "does not answer"
    with patch.context() as inner:
        inner.setenv("AWS_ENDPOINT_URL", "nothing")
        yield "endpoint", "models", "nothing"


def test_a_store_that_refuses_is_told_in_two_lines(
    store: Store, inputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from weightsurgery.checkpoint import object_store

    base = Checkpoint.open(inputs / "base")
    edit = Negate(vector(inputs, base, "tuned"))
    told = []
    for name, bucket, said in refusals(store, monkeypatch):
        object_store._client.cache_clear()
        with pytest.raises(OutputError) as found:
            apply(edit, base, f"s3://{bucket}/{name}")
        assert said in found.value.what
        assert f"s3://{bucket}/{name}" in found.value.what
        assert len(str(found.value).splitlines()) == 2
        told.append(name)
    object_store._client.cache_clear()
    assert len(told) == 4
    assert ObjectStore(ObjectPlace("models", "told")).sizes() == {}


@pytest.mark.parametrize("refusal", REFUSALS)
def test_a_store_that_refuses_in_the_middle_has_all_parts_yet(
    store: Store, inputs: Path, wanted: Any, sent: Any, refusal: str, monkeypatch: Any
) -> None:
    """Rights, a session or a server that end: two lines, and the same command goes on after."""
    prefix = f"middle-{refusal}"
    with Gate(store, refusal, after=4) as gate, monkeypatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", gate.endpoint)
        with pytest.raises(OutputError) as found:
            write(inputs, "stretches", prefix, workers=1)
        assert gate.asked  # it was in the middle
        assert f"s3://models/{prefix}" in found.value.what
        assert len(str(found.value).splitlines()) == 2
        assert store.objects(prefix) == {}
        there = set(store.parts(prefix))
        assert len(there) == 4
        gate.after = 1 << 30
        sent.clear()
        write(inputs, "stretches", prefix, workers=1)
    assert not there & set(sent)
    assert store.objects(prefix) == wanted["stretches"]
    assert store.uploads(prefix) == []


@pytest.mark.parametrize(
    "address", ["s3://", "s3://models", "s3://models/", "s3://models/a//b", "s3://models/../b"]
)
def test_an_address_that_is_none_is_refused(store: Store, inputs: Path, address: str) -> None:
    with pytest.raises(OutputError, match="no place for an output"):
        write_to(inputs, address)


def write_to(inputs: Path, out: Any, **more: Any) -> Any:
    base = Checkpoint.open(inputs / "base")
    return apply(Negate(vector(inputs, base, "tuned")), base, out, **more)


def test_what_does_not_go_to_a_store_is_refused(
    store: Store, inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OutputError, match="only edited checkpoints go to S3"):
        write_to(inputs, "s3://models/adapter", storage=AdapterStorage(rule=Rank(4)))
    with pytest.raises(WeightSurgeryError, match="nothing is read from"):
        Checkpoint.open("s3://models/a/stretches-None")
    assert list(tmp_path.iterdir()) == []


def layouts() -> Iterator[tuple[Any, Any]]:
    """Shards of random tensors, of which a share is worked out."""
    for seed in range(60):
        draw = random.Random(seed)
        at, entries = draw.randrange(100, 200_000, 8), []
        for number in range(draw.randint(0, 40)):
            stop = at + draw.choice((0, 2, 8190, 3 << 20, 40 << 20, 900 << 20, 17_000_000_002))
            entries.append(SimpleNamespace(name=str(number), start=at, stop=stop, nbytes=stop - at))
            at = stop
        share = draw.random() if seed % 4 else 0.0
        alone = {entry.name for entry in entries if draw.random() < share}
        header = SimpleNamespace(shard="s", size=at, entries=entries)
        yield SimpleNamespace(alone=alone.__contains__), header


def test_parts_cover_a_shard_and_none_is_too_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of any layout; no tensor that is worked out lies in two tasks."""
    monkeypatch.undo()
    assert objects.LEAST >= 5 << 20
    count = plain = 0
    for job, header in layouts():
        tasks = objects.object_tasks(job, header)
        at, number, parts = 0, 1, []
        for task in tasks:
            assert (task.start, task.first) == (at, number)
            whole, rest = divmod(task.stop - task.start, task.size)
            parts += [task.size] * whole + ([rest] if rest else [])
            for entry in header.entries:
                if job.alone(entry.name):
                    assert not entry.start < task.start < entry.stop
            at, number = task.stop, len(parts) + 1
        assert at == header.size == sum(parts)
        assert min([objects.LEAST, *parts[:-1]]) == objects.LEAST
        assert len(parts) <= 10_000
        assert max(parts) <= 5 << 30
        if not any(map(job.alone, (entry.name for entry in header.entries))):
            plain += 1  # some stores want parts of one size
            assert len(set(parts[:-1])) <= 1
            assert parts[-1] <= parts[0]
        count += len(tasks)
    assert count > 100
    assert plain >= 3


def test_verify_reads_the_objects(store: Store, inputs: Path, wanted: Any) -> None:
    write(inputs, "stretches", "checked")
    record = verify("s3://models/checked")
    assert set(record.files) == set(wanted["stretches"]) - {"weightsurgery.json"}
    place = {"Bucket": "models", "Key": "checked/model-00001-of-00002.safetensors"}
    data = bytearray(store.client.get_object(**place)["Body"].read())
    data[-1] ^= 1
    store.client.put_object(**place, Body=bytes(data))
    store.client.put_object(Bucket="models", Key="checked/more.safetensors", Body=b"x")
    store.client.delete_object(Bucket="models", Key="checked/config.json")
    with pytest.raises(VerificationError) as found:
        verify("s3://models/checked")
    assert "00001-of-00002.safetensors: content differs" in found.value.what
    assert "more.safetensors: weights that the record does not know" in found.value.what
    assert "config.json: missing" in found.value.what
    with pytest.raises(SourceError, match=r"no weightsurgery\.json"):
        verify("s3://models/nothing/here")
