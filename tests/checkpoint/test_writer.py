import dataclasses
import errno
import hashlib
import os
import random
import stat
from concurrent.futures import ThreadPoolExecutor

import pytest
from safetensors import safe_open

from weightsurgery.checkpoint import writer as writer_module
from weightsurgery.checkpoint.layout import INDEX_NAME, read_layout
from weightsurgery.checkpoint.reader import Checkpoint
from weightsurgery.checkpoint.staging import RECORD_NAME, Staging
from weightsurgery.checkpoint.writer import (
    CheckpointWriter,
    free_space_needed,
    mirrored,
)
from weightsurgery.errors import CorruptCheckpointError, OutputError

from ..conftest import left_behind
from .handmade import (
    TWO,
    content,
    describe,
    directory,
    file_bytes,
    frame,
    says,
    sharded,
)

THREE = {"a": ("F32", (4, 5)), "m": ("BF16", (40, 30)), "empty": ("F32", (0, 3)), "z": ("I8", (7,))}


def weights(root):
    return (root / "model.safetensors").read_bytes()


def untouched(entry):
    return entry.dtype


def start(base, out, dtype=untouched, **options):
    """A staging and a writer with the base's headers."""
    staging = Staging(out, "me", [base.path], **options)
    return staging, CheckpointWriter(staging, [mirrored(h, dtype) for h in base.shards.values()])


@pytest.fixture
def base(tmp_path):
    root = directory(tmp_path / "base", {"model.safetensors": file_bytes(THREE, {"format": "pt"})})
    with Checkpoint.open(root) as checkpoint:
        yield checkpoint


def write_all(writer, tensors=THREE):
    for name, facts in tensors.items():
        writer.write(name, 0, content(name, *facts))
        writer.finish(name, {})


# Headers


def test_the_header_is_mirrored_byte_for_byte(tmp_path):
    """With spaces, another order of fields and padding of its own."""
    odd = b' { "a.weight" : ' + str(describe(TWO)["a.weight"]).replace("'", '"').encode()
    odd += b',\n"__metadata__":{"k":"\\u00e9"}, "b.weight": '
    odd += b'{"data_offsets":[24,32],"shape":[4],"dtype":"BF16"}}' + b" " * 13
    data = frame(odd, b"".join(content(n, *f) for n, f in TWO.items()))
    with Checkpoint.open(directory(tmp_path / "base", {"model.safetensors": data})) as base:
        header = base.shards["model.safetensors"]
        assert mirrored(header, untouched) is header
        assert header.metadata == {"k": "é"}
        staging, writer = start(base, tmp_path / "out")
        write_all(writer, TWO)
        writer.seal()
        assert (staging.files / "model.safetensors").read_bytes() == data
        staging.close()


@pytest.mark.parametrize("dtype", ["F32", "BF16", "F64"])
def test_another_dtype_gives_a_header_safetensors_reads(tmp_path, base, dtype):
    def stored(entry):
        return dtype if entry.dtype in ("F32", "BF16") else entry.dtype

    staging, writer = start(base, tmp_path / "out", stored)
    wanted = {name: (stored(entry), entry.shape) for name, entry in base.entries.items()}
    assert {n: (e.dtype, e.shape) for n, e in writer.entries.items()} == wanted
    write_all(writer, wanted)
    writer.seal()
    with safe_open(staging.files / "model.safetensors", "pt") as theirs:
        assert list(theirs.offset_keys()) == list(base.entries)
        assert theirs.metadata() == {"format": "pt"}
        slices = {name: theirs.get_slice(name) for name in wanted}
        found = {name: (s.get_dtype(), tuple(s.get_shape())) for name, s in slices.items()}
        assert found == wanted
    with Checkpoint.open(staging.files) as mine:
        for name, facts in wanted.items():
            assert bytes(mine.read_bytes(name)) == content(name, *facts)
    staging.close()


# Writing


@pytest.mark.parametrize("seed", range(3))
def test_disjoint_writes_from_threads_in_random_order(tmp_path, base, seed):
    rng = random.Random(seed)
    staging, writer = start(base, tmp_path / "out")
    pieces = []
    for name, facts in THREE.items():
        data, position = content(name, *facts), 0
        while position < len(data):
            stop = min(len(data), position + rng.randint(1, 200))
            pieces.append((name, position, data[position:stop]))
            position = stop
    rng.shuffle(pieces)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda piece: writer.write(*piece), pieces))
    for name in THREE:
        writer.finish(name, {})
    assert not (staging.files / "model.safetensors").exists()
    writer.seal()
    assert weights(staging.files) == weights(base.path)
    staging.close()


def test_shards_in_subdirectories(tmp_path):
    root = sharded(tmp_path / "base", "part/one.safetensors", "part/deep/two.safetensors")
    with Checkpoint.open(root) as base:
        staging, writer = start(base, tmp_path / "out")
        write_all(writer, TWO)
        writer.seal()
        directory(staging.files, {INDEX_NAME: (root / INDEX_NAME).read_bytes(), RECORD_NAME: "{}"})
        staging.commit()
    assert set(read_layout(tmp_path / "out").entries) == set(TWO)
    for shard in ("part/one.safetensors", "part/deep/two.safetensors"):
        assert (tmp_path / "out" / shard).read_bytes() == (root / shard).read_bytes()


def test_writes_out_of_range_are_refused(tmp_path, base):
    staging, writer = start(base, tmp_path / "out")
    write_all(writer)
    for name, offset, count in [
        ("a", -1, 1),
        ("a", 80, 1),
        ("a", 0, 81),
        ("a", 79, 2),
        ("empty", 0, 1),
    ]:
        with pytest.raises(ValueError, match=f"outside tensor '{name}'"):
            writer.write(name, offset, bytes(count))
    writer.write("a", 80, b"")
    writer.seal()
    assert weights(staging.files) == weights(base.path)
    staging.close()


@pytest.mark.parametrize("kernel", ["whole", "in pieces", "not at all", "stops half-way"])
def test_copying_a_tensor(tmp_path, base, monkeypatch, kernel):
    real, calls = getattr(os, "copy_file_range"), []  # noqa: B009

    def copy(source, target, count, *offsets):
        calls.append(count)
        if kernel == "not at all" or (kernel == "stops half-way" and len(calls) > 3):
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        return real(source, target, count if kernel == "whole" else min(count, 300), *offsets)

    monkeypatch.setattr(os, "copy_file_range", copy)
    staging, writer = start(base, tmp_path / "out")
    for name in THREE:
        writer.copy(name, base)
        writer.finish(name, {})
    writer.seal()
    assert weights(staging.files) == weights(base.path)
    assert calls
    staging.close()


def test_copying_from_a_base_cut_short(tmp_path, base):
    staging, writer = start(base, tmp_path / "out")
    writer.copy("z", base)
    path = base.path / "model.safetensors"
    os.truncate(path, path.stat().st_size - 3)
    writer.copy("m", base)
    with pytest.raises(CorruptCheckpointError) as error:
        writer.copy("z", base)
    says(error, str(path), "'z'")
    writer.abandon()
    staging.close()


def test_sealing_needs_every_tensor(tmp_path, base):
    staging, writer = start(base, tmp_path / "out")
    write_all(writer, {name: facts for name, facts in THREE.items() if name != "m"})
    with pytest.raises(OutputError) as error:
        writer.seal()
    says(error, str(tmp_path / "out"), "'m'")
    writer.abandon()
    assert [p.name for p in staging.files.iterdir()] == ["model.safetensors.part"]
    staging.leave()
    _, again = start(base, tmp_path / "out")
    assert set(again.done) == {"a", "z", "empty"}
    again.write("m", 0, content("m", *THREE["m"]))
    again.finish("m", {"x": 1})
    again.seal()
    assert again.done["m"] == {"x": 1}
    again.staging.close()


def test_half_written_files_do_not_look_like_models(tmp_path, base):
    staging, writer = start(base, tmp_path / "out")
    write_all(writer)
    assert [path.name for path in staging.files.rglob("*")] == ["model.safetensors.part"]
    assert not (tmp_path / "out").exists()
    writer.abandon()
    writer.abandon()
    staging.close()
    assert left_behind(tmp_path / "out") == []


@pytest.mark.parametrize("mask", [0o002, 0o027, 0o077])
def test_weights_honour_the_umask(tmp_path, base, mask):
    before = os.umask(mask)
    try:
        staging, writer = start(base, tmp_path / "out")
        write_all(writer)
        writer.seal()
        staging.commit()
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "out" / "model.safetensors").stat().st_mode) == 0o666 & ~mask
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o777 & ~mask


# The journal


def test_only_flushed_tensors_are_in_the_journal(tmp_path, base, monkeypatch):
    monkeypatch.setattr(CheckpointWriter, "FLUSH_SECONDS", 3600)
    events = []
    real = os.fdatasync
    monkeypatch.setattr(os, "fdatasync", lambda handle: (events.append("flush"), real(handle)))
    staging, writer = start(base, tmp_path / "out")
    note = staging.note
    monkeypatch.setattr(staging, "note", lambda lines: (events.append("note"), note(lines)))
    writer.write("a", 0, content("a", *THREE["a"]))
    writer.finish("a", {"x": 1})
    assert (events, writer.done) == ([], {})
    writer._flush()
    assert events == ["flush", "note"]
    assert writer.done == {"a": {"x": 1}}
    writer.finish("z", {})
    writer.abandon()
    staging.leave()
    again = Staging(tmp_path / "out", "me", [])
    (noted,) = again.finished
    weights = hashlib.sha256(content("a", *THREE["a"])).hexdigest()
    digest = hashlib.sha256(f'{{"x": 1}}\n{weights}'.encode()).hexdigest()
    assert noted == {"tensor": "a", "facts": {"x": 1}, "sha256": digest}
    again.close()


def test_the_journal_is_flushed_while_work_goes_on(tmp_path, base, monkeypatch):
    import threading

    monkeypatch.setattr(CheckpointWriter, "FLUSH_SECONDS", 0.001)
    staging, writer = start(base, tmp_path / "out")
    noted, note = threading.Event(), staging.note
    monkeypatch.setattr(staging, "note", lambda lines: (note(lines), noted.set()))
    writer.finish("a", {})
    assert noted.wait(30)
    writer.abandon()
    staging.leave()
    (noted,) = Staging(tmp_path / "out", "me", []).finished
    assert (noted["tensor"], noted["facts"]) == ("a", {})


@pytest.mark.parametrize("damage", ["removed", "shortened"])
def test_a_journal_whose_files_are_not_whole_is_not_trusted(tmp_path, base, damage):
    staging, writer = start(base, tmp_path / "out")
    write_all(writer, {"a": THREE["a"]})
    writer._flush()
    writer.abandon()
    staging.leave()
    _, again = start(base, tmp_path / "out")
    assert set(again.done) == {"a"}
    again.abandon()
    again.staging.leave()
    part = staging.files / "model.safetensors.part"
    if damage == "removed":
        part.unlink()
    else:
        os.truncate(part, 50)
    _, third = start(base, tmp_path / "out")
    assert third.done == {}
    write_all(third)
    third.seal()
    assert weights(staging.files) == weights(base.path)
    third.staging.close()


def test_killed_after_sealing(tmp_path, base):
    staging, writer = start(base, tmp_path / "out")
    write_all(writer)
    writer.seal()
    staging.leave()
    _, again = start(base, tmp_path / "out")
    assert set(again.done) == set(THREE)
    again.seal()
    again.staging.commit()
    assert weights(tmp_path / "out") == weights(base.path)


# Full disks


def full(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


def handles_in(directory):
    links = [f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd")]
    paths = [os.readlink(link) for link in links if os.path.lexists(link)]
    return [path for path in paths if str(directory) in path]


def test_no_space_to_allocate(tmp_path, monkeypatch):
    with Checkpoint.open(sharded(tmp_path / "base")) as base:
        real, calls = os.posix_fallocate, []

        def second(*arguments):
            calls.append(arguments)
            return real(*arguments) if len(calls) == 1 else full()

        monkeypatch.setattr(os, "posix_fallocate", second)
        staging = Staging(tmp_path / "out", "me", [base.path])
        with pytest.raises(OutputError) as error:
            CheckpointWriter(staging, list(base.shards.values()))
        says(error, str(tmp_path / "out"), "No space left")
        assert "Free some space" in error.value.remedy
        assert len(calls) == 2
        staging.close()
        assert left_behind(tmp_path / "out") == []
        assert handles_in(tmp_path / ".out.ws-partial") == []  # or the space would stay taken


def test_no_space_to_write(tmp_path, base, monkeypatch):
    staging, writer = start(base, tmp_path / "out")
    writer.write("a", 0, content("a", *THREE["a"]))
    monkeypatch.setattr(os, "pwrite", full)
    monkeypatch.setattr(os, "copy_file_range", full)
    for write in (lambda: writer.write("a", 0, b"xyz"), lambda: writer.copy("m", base)):
        with pytest.raises(OutputError) as error:
            write()
        says(error, str(tmp_path / "out"), "No space left")
        assert "Free some space" in error.value.remedy
    writer.abandon()
    staging.close()
    assert left_behind(tmp_path / "out") == []
    assert handles_in(tmp_path / ".out.ws-partial") == []


def test_no_space_to_flush(tmp_path, base, monkeypatch):
    monkeypatch.setattr(CheckpointWriter, "FLUSH_SECONDS", 0.001)
    staging, writer = start(base, tmp_path / "out")
    monkeypatch.setattr(os, "fdatasync", full)
    writer.finish("a", {})
    writer._flusher.join(30)
    assert not writer._flusher.is_alive()
    for step in (lambda: writer.finish("z", {}), writer.seal):
        with pytest.raises(OutputError) as error:
            step()
        says(error, str(tmp_path / "out"), "No space left")
    assert writer.done == {}
    writer.abandon()
    staging.close()
    assert left_behind(tmp_path / "out") == []


def test_sealing_fails_half_way(tmp_path, monkeypatch):
    with Checkpoint.open(sharded(tmp_path / "base")) as base:
        staging, writer = start(base, tmp_path / "out")
        write_all(writer, TWO)
        real, calls = os.fsync, []

        def second(handle):
            calls.append(handle)
            return real(handle) if len(calls) <= 2 else full()  # the journal, then the shards

        monkeypatch.setattr(os, "fsync", second)
        with pytest.raises(OutputError) as error:
            writer.seal()
        says(error, "No space left")
        writer.abandon()
        staging.close()
        assert left_behind(tmp_path / "out") == []
        assert handles_in(tmp_path / ".out.ws-partial") == []


def test_an_interruption_leaves_what_is_needed_to_resume(tmp_path, base, monkeypatch):
    staging, writer = start(base, tmp_path / "out")
    write_all(writer, {"a": THREE["a"]})
    writer._flush()

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "pwrite", interrupt)
    with pytest.raises(KeyboardInterrupt):
        writer.write("m", 0, b"xx")
    monkeypatch.undo()
    writer.abandon()
    staging.leave()
    _, again = start(base, tmp_path / "out")
    assert set(again.done) == {"a"}
    part = again.staging.files / "model.safetensors.part"
    assert part.stat().st_size == len(weights(base.path))
    again.abandon()
    again.staging.close()


def test_space_needed(tmp_path):
    with Checkpoint.open(sharded(tmp_path / "base", "part/one.safetensors")) as base:
        shards = list(base.shards.values())
        size = sum(header.size for header in shards)
        assert free_space_needed(shards) == size
        assert free_space_needed(shards, tmp_path / "absent") == size
        staging, writer = start(base, tmp_path / "out")
        assert free_space_needed(shards, staging.files) == 0  # all of it is allocated
        (staging.files / "two.safetensors.part").unlink()
        part = staging.files / "part" / "one.safetensors.part"
        os.truncate(part, 0)
        assert free_space_needed(shards, staging.files) == size
        writer.abandon()
        staging.close()


@pytest.mark.parametrize("code", [errno.EINVAL, errno.EFAULT, errno.EIO])
def test_what_cannot_go_past_the_page_cache_goes_through_it(code, base, tmp_path, monkeypatch):
    """Memory that is locked for a GPU may be refused there; a failing disk is one anywhere."""
    staging, writer = start(base, tmp_path / "out")
    shard = writer._shards["model.safetensors"]
    handle = os.dup(shard.handle)
    writer._shards["model.safetensors"] = dataclasses.replace(shard, direct=handle)
    tried, original = [], writer_module.write_all

    def refused(to, data, offset):
        tried.append(to == handle)
        if to == handle:
            raise OSError(code, os.strerror(code))
        original(to, data, offset)

    monkeypatch.setattr(writer_module, "write_all", refused)
    data = memoryview(bytes(range(256)) * 16)
    try:
        if code == errno.EIO:
            with pytest.raises(OutputError):
                writer.write_window("model.safetensors", 0, data)
            return
        writer.write_window("model.safetensors", 0, data)
        assert tried == [True, False]
        buffer = memoryview(bytearray(len(data)))
        writer.read_window("model.safetensors", 0, buffer)
        assert buffer == data
    finally:
        writer.abandon()
        staging.close()
