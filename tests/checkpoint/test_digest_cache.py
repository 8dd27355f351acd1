"""Digests are recalled only for files that did not change."""

import os
import time

import pytest

from weightsurgery.checkpoint import digest_cache, digests
from weightsurgery.checkpoint.digest_cache import LEAST_BYTES, cached_digest, stamp, store_digest
from weightsurgery.checkpoint.digests import content_sha256, file_sha256


@pytest.fixture
def big(tmp_path, monkeypatch):
    monkeypatch.setenv("WEIGHTSURGERY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(digest_cache, "_SETTLED_NS", 0)
    path = tmp_path / "model.safetensors"
    path.write_bytes(os.urandom(LEAST_BYTES))
    return path


def test_a_file_is_read_once(big, monkeypatch):
    read = []
    monkeypatch.setattr(digests, "content_sha256", lambda p: read.append(p) or content_sha256(p))
    first = file_sha256(big)
    assert read == [big]
    assert file_sha256(big) == first == content_sha256(big)
    assert read == [big]
    again = big.parent / "link.safetensors"
    again.symlink_to(big)
    assert file_sha256(again) == first  # another name of the same file
    assert read == [big]


@pytest.mark.parametrize("change", ["byte", "kept times", "length", "other file"])
def test_a_changed_file_is_read_again(big, change):
    first = file_sha256(big)
    assert cached_digest(big) == first
    before = os.stat(big)
    time.sleep(0.01)
    if change == "other file":
        other = big.with_name("other")
        other.write_bytes(os.urandom(LEAST_BYTES))
        os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
        other.replace(big)
    else:
        with big.open("r+b") as file:
            file.seek(1000)
            file.write(bytes([file.read(1)[0] ^ 1]))
            if change == "length":
                file.truncate(LEAST_BYTES - 1)
    if change == "kept times":  # a program can set the modification time back, not the change time
        os.utime(big, ns=(before.st_atime_ns, before.st_mtime_ns))
        assert os.stat(big).st_mtime_ns == before.st_mtime_ns
    assert cached_digest(big) is None
    assert file_sha256(big) == content_sha256(big) != first


def test_what_changes_while_it_is_read_is_not_remembered(big):
    before = stamp(big)
    time.sleep(0.01)
    big.write_bytes(os.urandom(LEAST_BYTES))
    store_digest(big, before, "0" * 64)
    assert cached_digest(big) is None


def test_fresh_and_small_files_are_not_remembered(big, monkeypatch):
    store_digest(big, stamp(big), "0" * 64)
    assert cached_digest(big) is not None  # before
    monkeypatch.setattr(digest_cache, "_SETTLED_NS", 10**12)
    fresh = big.with_name("fresh")
    fresh.write_bytes(big.read_bytes())
    small = big.with_name("small")
    small.write_bytes(b"x" * (LEAST_BYTES - 1))
    for path in (fresh, small):
        store_digest(path, stamp(path), "0" * 64)
        assert cached_digest(path) is None


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"stamp": 1, "sha256": "x"}', b"\xff\xfe"])
def test_a_damaged_cache_is_no_cache(big, damage):
    first = file_sha256(big)
    (place,) = (big.parent / "cache" / "sha256").iterdir()
    place.write_bytes(damage)
    assert cached_digest(big) is None
    assert file_sha256(big) == first
    assert cached_digest(big) == first


def test_a_cache_that_cannot_be_written_does_no_harm(big, tmp_path):
    (tmp_path / "cache").write_text("a file, not a directory")
    assert file_sha256(big) == content_sha256(big)


def test_a_declared_digest_gives_way_to_a_file_of_that_name(tmp_path, monkeypatch):
    """What the Hub says of a remote file is not believed of a local one that is called the same."""
    monkeypatch.setattr(digest_cache, "_declared", {})
    path = tmp_path / "org" / "name@0123456789ab" / "model.safetensors"
    digest_cache.declare(path, "a" * 64)
    assert file_sha256(path) == "a" * 64
    path.parent.mkdir(parents=True)
    path.write_bytes(b"here")
    assert file_sha256(path) == content_sha256(path) != "a" * 64


def test_a_cache_that_others_can_write_is_not_believed(big, monkeypatch):
    first = file_sha256(big)
    folder = big.parent / "cache" / "sha256"
    assert folder.stat().st_mode & 0o022 == 0
    (place,) = folder.iterdir()
    place.write_text(place.read_text().replace(first, "a" * 64))
    assert cached_digest(big) == "a" * 64  # this user's own forgery is nobody's business
    folder.chmod(0o775)
    assert cached_digest(big) is None
    assert file_sha256(big) == first  # and written anew, where nobody else can
    assert folder.stat().st_mode & 0o022 == 0
    assert cached_digest(big) == first
    mine = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: mine + 1)
    assert cached_digest(big) is None
    store_digest(big, stamp(big), "b" * 64)
    assert "b" * 64 not in place.read_text()
