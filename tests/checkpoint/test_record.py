import hashlib
import json
import os
import random
import shutil
import subprocess

import pytest

from weightsurgery.checkpoint.digests import content_sha256, file_sha256
from weightsurgery.checkpoint.layout import INDEX_NAME
from weightsurgery.checkpoint.record import (
    FORMAT_VERSION,
    EditRecord,
    read_record,
    verify,
    versions,
)
from weightsurgery.checkpoint.staging import RECORD_NAME
from weightsurgery.errors import CorruptCheckpointError, SourceError, VerificationError

from .handmade import TWO, directory, file_bytes, frame, index, says, sharded


def facts(path):
    data = path.read_bytes()
    return {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}


def record_of(root):
    """Write the record of everything in a directory."""
    files = {
        path.relative_to(root).as_posix(): facts(path)
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.name != RECORD_NAME
    }
    record = EditRecord("checkpoint", command=["ws", "negate"], files=files)
    (root / RECORD_NAME).write_text(record.to_json())
    return record


@pytest.fixture
def out(tmp_path):
    root = sharded(tmp_path / "out", "one.safetensors", "part/two.safetensors")
    directory(root, {"config.json": {"model_type": "x"}, "tokenizer.json": "{}"})
    record_of(root)
    return root


def refused(out, *words):
    with pytest.raises(VerificationError) as error:
        verify(out)
    says(error, str(out), *words)
    return error.value


def test_a_record_is_read_back(out):
    written = record_of(out)
    assert read_record(out).to_json() == written.to_json()
    assert read_record(out).command == ["ws", "negate"]
    assert written.version == FORMAT_VERSION
    assert written.to_json() == record_of(out).to_json()
    assert set(versions()) == {"python", "weightsurgery", "torch", "safetensors"}
    assert "not installed" not in "".join(versions().values())


def test_an_untouched_output_passes(out):
    seen = []
    record = verify(out, lambda done, total: seen.append((done, total)))
    assert record.to_json() == read_record(out).to_json()
    total = sum(each["bytes"] for each in record.files.values())
    assert len(record.files) == 5
    assert len(seen) == 5
    assert seen == sorted(seen)
    assert seen[-1] == (total, total)
    directory(out, {"README.md": "a model card, written later"})
    verify(out)


def test_any_flipped_bit_is_found(out):
    rng = random.Random(0)
    flips = 0
    for name in verify(out).files:
        path = out / name
        good = path.read_bytes()
        bits = range(8 * len(good)) if len(good) < 60 else rng.sample(range(8 * len(good)), 60)
        for bit in bits:
            bad = bytearray(good)
            bad[bit // 8] ^= 1 << bit % 8
            path.write_bytes(bad)
            refused(out, f"{name}: content differs")
            flips += 1
        path.write_bytes(good)
    assert flips > 200
    verify(out)


def test_missing_and_shortened_files_are_all_named(out):
    verify(out)
    (out / "config.json").unlink()
    (out / "tokenizer.json").write_bytes(b"{} ")
    (out / "part" / "two.safetensors").unlink()
    refused(
        out,
        "config.json: missing",
        "tokenizer.json: 3 bytes, recorded 2",
        "part/two.safetensors: missing",
    )


def test_a_directory_in_place_of_a_file(out):
    verify(out)
    (out / "config.json").unlink()
    (out / "config.json").mkdir()
    refused(out, "config.json: missing")


@pytest.mark.parametrize(
    "name",
    ["extra.safetensors", "part/extra.safetensors", "pytorch_model.bin", "x/y/model.gguf", "a.pt"],
)
def test_weights_the_record_does_not_know(out, name):
    verify(out)
    directory(out, {name: b"x"})
    refused(out, f"{name}: weights that the record does not know")


def test_an_edited_index(out):
    verify(out)
    directory(out, {INDEX_NAME: index(dict.fromkeys(TWO, "one.safetensors"))})
    refused(out, INDEX_NAME)


def test_a_record_of_weights_that_are_no_model(out):
    """The record agrees with the files, and the files do not agree with each other."""
    verify(out)
    directory(out, {INDEX_NAME: index(dict.fromkeys(TWO, "one.safetensors"))})
    record_of(out)
    refused(out, "'b.weight' is not in one.safetensors")


def test_an_index_slipped_in(tmp_path):
    out = directory(tmp_path, {"model.safetensors": TWO})
    record_of(out)
    verify(out)
    directory(out, {INDEX_NAME: index({"a.weight": "model.safetensors"})})
    refused(out, "'b.weight' is missing from")


@pytest.mark.parametrize(
    "name", ["../outside.txt", "/etc/hostname", "part/../config.json", "./config.json", ".."]
)
def test_names_that_leave_the_directory(out, name):
    record = verify(out)
    directory(out.parent, {"outside.txt": "x"})
    record.files = {**record.files, name: {"sha256": "0" * 64, "bytes": 1}}
    (out / RECORD_NAME).write_text(record.to_json())
    refused(out, f"{name}: leaves the directory")


DAMAGED = {
    "nothing": "",
    "half": '{"kind": "checkpoint", "vers',
    "a list": "[]",
    "text": '"record"',
    "null": "null",
    "bytes": b"\xff\xfe",
    "nested": "[" * 99999,
    "no version": '{"kind": "checkpoint"}',
    "a version of text": '{"kind": "checkpoint", "version": "1"}',
    "no kind": '{"version": 1}',
    "an unknown field": '{"kind": "checkpoint", "version": 1, "extra": 1}',
    "files as a list": '{"kind": "checkpoint", "version": 1, "files": ["config.json"]}',
    "files as null": '{"kind": "checkpoint", "version": 1, "files": null}',
    "facts of a file as text": '{"kind": "checkpoint", "version": 1, "files": {"a": "x"}}',
    "no size": '{"kind": "checkpoint", "version": 1, "files": {"a": {"sha256": "0"}}}',
    "no digest": '{"kind": "checkpoint", "version": 1, "files": {"a": {"bytes": 0}}}',
    "size as text": '{"kind": "c", "version": 1, "files": {"a": {"bytes": "0", "sha256": ""}}}',
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_record(out, case):
    assert read_record(out).kind == "checkpoint"
    text = DAMAGED[case]
    (out / RECORD_NAME).write_bytes(text if isinstance(text, bytes) else text.encode())
    for check in (read_record, verify):
        with pytest.raises(VerificationError) as error:
            check(out)
        says(error, str(out / RECORD_NAME), "damaged")


def test_a_newer_record(out):
    data = json.loads((out / RECORD_NAME).read_text())
    data |= {"version": FORMAT_VERSION + 1, "of_the_future": True}
    (out / RECORD_NAME).write_text(json.dumps(data))
    with pytest.raises(VerificationError) as error:
        read_record(out)
    says(error, str(out / RECORD_NAME), f"format {FORMAT_VERSION + 1}")
    assert "Update" in error.value.remedy


def test_no_record(tmp_path, out):
    verify(out)
    (out / RECORD_NAME).unlink()
    with pytest.raises(SourceError) as error:
        verify(out)
    says(error, str(out), RECORD_NAME)


def test_a_file_that_cannot_be_read(out, monkeypatch):
    verify(out)

    def fail(path):
        if path.name == "tokenizer.json":
            raise OSError(5, "Input/output error")
        return hashlib.sha256(path.read_bytes()).hexdigest()

    monkeypatch.setattr("weightsurgery.checkpoint.record.content_sha256", fail)
    refused(out, "tokenizer.json: cannot be read: Input/output error")


# Checksums


def test_checksums_are_of_the_bytes(tmp_path):
    data = random.Random(0).randbytes(9_000_001)  # over two blocks
    path = directory(tmp_path, {"x": data}) / "x"
    wanted = hashlib.sha256(data).hexdigest()
    assert file_sha256(path) == content_sha256(path) == wanted
    assert content_sha256(directory(tmp_path, {"e": b""}) / "e") == hashlib.sha256().hexdigest()


def linked(root, target, folder="blobs"):
    blob = root / folder / target
    directory(root, {f"{folder}/{target}": file_bytes(TWO)})
    snapshot = root / "snapshots" / "0"
    snapshot.mkdir(parents=True, exist_ok=True)
    link = snapshot / "model.safetensors"
    link.unlink(missing_ok=True)
    link.symlink_to(os.path.relpath(blob, snapshot))
    return link


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def test_the_name_of_a_blob_in_the_hub_cache_is_looked_at(hub_cache):
    """Whoever fetched it looked at its size alone."""
    wanted = hashlib.sha256(file_bytes(TWO)).hexdigest()
    assert file_sha256(linked(hub_cache / "models--org--name", wanted)) == wanted
    link = linked(hub_cache / "models--org--other", "a" * 64)
    with pytest.raises(CorruptCheckpointError) as error:
        file_sha256(link)
    says(error, str(link), wanted[:12], "aaaaaaaaaaaa")
    assert str(link.resolve()) in error.value.remedy
    assert content_sha256(link) == wanted


def test_so_is_that_of_a_small_one(hub_cache):
    """Git's SHA-1, by which the Hub names what is not in LFS; or, of a mirror, the bytes' own."""
    data = file_bytes(TWO)
    named = subprocess.run(["git", "hash-object", "--stdin"], input=data, stdout=subprocess.PIPE)
    for good in (named.stdout.decode().strip(), hashlib.sha1(data).hexdigest()):
        assert len(good) == 40
        link = linked(hub_cache / "models--org--name", good)
        assert file_sha256(link) == hashlib.sha256(data).hexdigest()
    with pytest.raises(CorruptCheckpointError) as error:
        file_sha256(linked(hub_cache / "models--org--name", "a" * 40))
    says(error, named.stdout.decode()[:12], "aaaaaaaaaaaa")


@pytest.mark.parametrize(
    ("target", "folder"),
    [("a" * 39, "blobs"), ("A" * 64, "blobs"), ("a" * 65, "blobs"), ("a" * 64, "x")],
)
def test_other_links_are_read(hub_cache, target, folder):
    link = linked(hub_cache / "models--org--name", target, folder)
    assert file_sha256(link) == hashlib.sha256(file_bytes(TWO)).hexdigest()


def test_a_name_alone_is_no_checksum(tmp_path, hub_cache):
    """A directory that looks like the cache, or links into it or out of it, proves nothing."""
    wanted = hashlib.sha256(file_bytes(TWO)).hexdigest()
    inside = linked(hub_cache / "models--org--name", "b" * 64)
    assert file_sha256(linked(tmp_path / "base", "a" * 64)) == wanted
    assert file_sha256(linked(tmp_path / "models--org--name", "a" * 64)) == wanted
    assert file_sha256(linked(hub_cache, "a" * 64)) == wanted
    assert file_sha256(linked(hub_cache / "deep" / "models--org--name", "a" * 64)) == wanted
    elsewhere = directory(tmp_path / "x" / "blobs", {"c" * 64: file_bytes(TWO)}) / ("c" * 64)
    inside.unlink()
    inside.symlink_to(elsewhere)
    assert file_sha256(inside) == wanted
    outside = tmp_path / "model.safetensors"
    outside.symlink_to(hub_cache / "models--org--name" / "blobs" / ("b" * 64))
    assert file_sha256(outside) == wanted
    blob = hub_cache / "models--org--name" / "blobs" / ("d" * 64)
    blob.symlink_to(elsewhere)  # a blob that is a link again
    inside.unlink()
    inside.symlink_to(blob)
    assert file_sha256(inside) == wanted


def test_verify_reads_what_a_link_leads_to(tmp_path):
    out = directory(tmp_path / "out", {"model.safetensors": TWO})
    record = record_of(out)
    verify(out)
    digest = record.files["model.safetensors"]["sha256"]
    forged = bytearray(file_bytes(TWO))
    forged[-1] ^= 1
    directory(tmp_path, {f"blobs/{digest}": bytes(forged)})
    (out / "model.safetensors").unlink()
    (out / "model.safetensors").symlink_to(f"../blobs/{digest}")
    assert file_sha256(out / "model.safetensors") == hashlib.sha256(forged).hexdigest()
    refused(out, "model.safetensors: content differs")
    directory(tmp_path, {f"blobs/{digest}": file_bytes(TWO)})
    verify(out)  # a link to the right bytes is the right bytes


def test_a_copy_elsewhere_passes(out, tmp_path):
    shutil.copytree(out, tmp_path / "elsewhere" / "model")
    verify(tmp_path / "elsewhere" / "model")
    (tmp_path / "elsewhere" / "model" / "one.safetensors").write_bytes(frame({}))
    refused(tmp_path / "elsewhere" / "model", "one.safetensors")
    verify(out)


@pytest.mark.parametrize(
    "name",
    ["chat_template.jinja", "additional_chat_templates/x.jinja", "tokenization_x.py", "x.py",
     "tokenizer_config.json", "generation_config.json", "adapter_config.json", "sub/config.json",
     "custom_generate/generate.py", "vocab.json", "LICENSE", "x.pkl", "MODEL.SAFETENSORS",
     "spiece.model"],
)  # fmt: skip
def test_what_was_added_is_named(out, name):
    verify(out)
    path = out / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"{}")
    refused(out, f"{name}: ")
    path.unlink()
    path.symlink_to("nowhere")
    refused(out, f"{name}: ")


@pytest.mark.parametrize("name", ["README.md", "notes.txt", "scores.json", "picture.svg"])
def test_what_loads_nothing_may_lie_beside(out, name):
    (out / name).write_bytes(b"mine")
    verify(out)
