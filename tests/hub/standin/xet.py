"""A xet content store in a directory: what the real client keeps there, read back."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

RECORD = 48  # bytes of every record in a shard's file section
HEAD = 48
VERIFIED, DESCRIBED = 1 << 31, 1 << 30

# Run apart: the client keeps threads and locks of its own as long as its process lives.
PUSH = """
import sys, hf_xet
with hf_xet.XetSession().new_upload_commit(endpoint=sys.argv[1]) as commit:
    commit.start_upload_file(sys.argv[2], sha256=hf_xet.COMPUTE_SHA256)
"""
FETCH = """
import sys, hf_xet
info = hf_xet.XetFileInfo(sys.argv[2], int(sys.argv[3]))
stream = hf_xet.XetSession().new_download_stream_group(endpoint=sys.argv[1]).download_stream(info)
with open(sys.argv[4], "wb") as file:
    for chunk in stream:
        file.write(chunk)
"""


@dataclass(frozen=True)
class XetFile:
    """The xet name of a file and its size in bytes."""

    hash: str
    size: int


def _hex(raw: bytes) -> str:
    """A hash as xet writes it: four little-endian words."""
    return "".join(f"{word:016x}" for word in struct.unpack("<4Q", raw))


def read_shard(raw: bytes) -> dict[str, XetFile]:
    """The files a shard describes, by SHA-256."""
    found, at = {}, HEAD
    while raw[at : at + 32] != b"\xff" * 32:
        name = _hex(raw[at : at + 32])
        flags, count = struct.unpack("<II", raw[at + 32 : at + 40])
        at += RECORD
        parts = [raw[at + RECORD * i : at + RECORD * (i + 1)] for i in range(count)]
        size = sum(struct.unpack("<I", part[36:40])[0] for part in parts)
        at += RECORD * count * (2 if flags & VERIFIED else 1)
        if flags & DESCRIBED:
            found[_hex(raw[at : at + 32])] = XetFile(name, size)
            at += RECORD
    return found


class Cas:
    """The directory behind ``local://``. One process at a time may hold it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.url = f"local://{root}"
        self._read: dict[Path, dict[str, XetFile]] = {}

    @property
    def xorbs(self) -> Path:
        return self.root / "xet" / "xorbs"

    def known(self) -> dict[str, XetFile]:
        """Every file ever pushed, by SHA-256."""
        for path in (self.xorbs / "shards").glob("*.mdb"):
            if path not in self._read:
                self._read[path] = read_shard(path.read_bytes())
        return {name: file for each in self._read.values() for name, file in each.items()}

    def stored(self) -> int:
        """Bytes of content in the store, without its bookkeeping."""
        return sum(p.stat().st_size for p in (self.xorbs / "xorbs").glob("*") if p.is_file())

    def push(self, path: Path) -> None:
        """Store a file."""
        _run(PUSH, self.url, path)

    def fetch(self, sha256: str, path: Path) -> None:
        """Write a stored file's content, even while a client holds the store."""
        file = self.known()[sha256]
        with tempfile.TemporaryDirectory(prefix="cas-") as name:
            # The lock lies on the lookup table alone: read through a copy of that.
            beside = Path(name) / "xet" / "xorbs"
            beside.mkdir(parents=True)
            for each in ("xorbs", "shards"):
                shutil.copytree(self.xorbs / each, beside / each, copy_function=os.symlink)
            for table in self.xorbs.glob("*.redb"):
                shutil.copy(table, beside)
            aside = path.with_name(f"{path.name}.{Path(name).name}")
            _run(FETCH, f"local://{name}", file.hash, file.size, aside)
        if aside.stat().st_size != file.size:
            raise RuntimeError(f"the CAS gave {aside.stat().st_size} of {file.size} bytes")
        aside.replace(path)


def _run(code: str, *arguments: object) -> None:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr)
