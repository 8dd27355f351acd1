"""A checkpoint on the Hub whose tensors are fetched when they are read.

Headers come first, exactly their bytes; then whole tensors, as they are needed, in parallel ranges.
Fetched bytes stay in the cache (:mod:`weightsurgery.checkpoint.mirror`) by server and the file's
SHA-256, so that they serve other revisions with the same file, and a killed run goes on.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path

from typing_extensions import override

from weightsurgery.checkpoint.digest_cache import declare
from weightsurgery.checkpoint.header import ShardHeader, TensorEntry
from weightsurgery.checkpoint.layout import Layout, layout_of, missing_shards, named_header
from weightsurgery.checkpoint.mirror import Mirror
from weightsurgery.checkpoint.ranges import fetch_range
from weightsurgery.checkpoint.reader import Checkpoint
from weightsurgery.checkpoint.repository import Repository, look_up
from weightsurgery.checkpoint.source import Source, is_hub_name
from weightsurgery.errors import CheckpointError

__all__ = ["RemoteCheckpoint", "open_remote"]

# Ranges in flight for one checkpoint, and the most bytes of one: small enough to be spread over
# the connections, large enough that asking for it costs little beside sending it.
CONNECTIONS = 4
PIECE = 32 << 20

# Bytes after which a range that is still growing is flushed and listed: what a kill can cost.
NOTED = 8 << 20

# Files that configs and tokenizers consist of.
_BESIDE = (".json", ".jinja", ".txt", ".model", ".tiktoken", ".vocab", ".bpe", ".spm")


def open_remote(name: str | os.PathLike[str]) -> Checkpoint:
    """Like :meth:`Checkpoint.open`, but of a Hub repository only headers are fetched at first.

    A directory, a repository that huggingface_hub's cache holds in whole, and any name in offline
    mode are opened as always.

    Raises:
        WeightSurgeryError: See :meth:`Checkpoint.open`.
    """
    text = os.fspath(name)
    repository = look_up(text) if is_hub_name(text) else None
    if repository is None:
        return Checkpoint.open(name)
    return RemoteCheckpoint.of(repository)


class _Fetcher:
    """Byte ranges of a repository's files, each fetched once."""

    def __init__(self, repository: Repository) -> None:
        self._repository = repository
        self._mirrors: dict[str, Mirror] = {}
        self._in_flight: dict[str, list[tuple[int, int, Future[None]]]] = {}
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._pool = ThreadPoolExecutor(CONNECTIONS, "ws-range")
        self.fetched = 0

    def mirror(self, name: str) -> Mirror:
        """Where the bytes of a file are kept."""
        with self._lock:
            if name not in self._mirrors:
                self._mirrors[name] = Mirror(*self._key(name))
            return self._mirrors[name]

    def _key(self, name: str) -> tuple[str, int]:
        """The key of a file's bytes in the cache, and its size.

        The hash comes from the server, and a part cannot be checked against it: so one server's
        hash never stands for the bytes of another.
        """
        from huggingface_hub.constants import ENDPOINT

        file = self._repository.files[name]
        content = file.sha256 or f"{self._repository.commit}/{name}"
        text = f"{ENDPOINT}\n{content}\n{file.size}"
        return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest(), file.size

    def request(self, name: str, start: int, stop: int) -> list[Future[None]]:
        """Start fetching the missing parts of a range; returns the futures to wait for."""
        mirror = self.mirror(name)
        with self._lock:
            in_flight = self._in_flight.setdefault(name, [])
            wanted = mirror.missing(start, stop)
            waited = [
                piece
                for piece in in_flight
                if any(piece[0] < b and a < piece[1] for a, b in wanted)
            ]
            # A failure stays until it was raised to whoever waits for it.
            in_flight[:] = [
                piece for piece in in_flight if not piece[2].done() or piece[2].exception()
            ]
            for first, last in wanted:
                for a, b in _without(first, last, waited):
                    for begin in range(a, b, PIECE):
                        end = min(b, begin + PIECE)
                        done = self._pool.submit(self._fetch, name, mirror, begin, end)
                        in_flight.append((begin, end, done))
                        waited.append((begin, end, done))
        return [future for _, _, future in waited]

    def _fetch(self, name: str, mirror: Mirror, start: int, stop: int) -> None:
        noted = position = start

        def take(offset: int, data: bytes) -> None:
            nonlocal noted, position
            mirror.write(offset, data)
            position = offset + len(data)
            if position - noted >= NOTED:
                mirror.note(noted, position)
                noted = position
            if self._ended.is_set() and position < stop:  # the received bytes are kept
                raise CheckpointError(f"{name}: the checkpoint was closed while it was fetched")

        try:
            fetch_range(
                self._repository.name, self._repository.commit, name, start, stop,
                take, self._ended.wait,
            )  # fmt: skip
        finally:  # bytes received before a failure are not fetched again
            mirror.note(noted, position)
            with self._lock:
                self.fetched += position - start

    def wait(self, name: str, start: int, stop: int) -> None:
        """Return when a range is here."""
        for future in self.request(name, start, stop):
            try:
                future.result()
            except BaseException:
                with self._lock:  # the next one tries again
                    in_flight = self._in_flight[name]
                    in_flight[:] = [piece for piece in in_flight if piece[2] is not future]
                raise

    def read(self, name: str, start: int, length: int) -> bytes:
        """Bytes of a file; fewer at its end."""
        stop = min(start + length, self._repository.files[name].size)
        self.wait(name, start, stop)
        buffer = bytearray(stop - start)
        self.mirror(name).read_into(start, memoryview(buffer))
        return bytes(buffer)

    def whole(self, name: str) -> Path | None:
        """Where all bytes of a file are; None while some are missing."""
        mirror = self.mirror(name)
        return None if mirror.missing(0, self._repository.files[name].size) else mirror.path

    def close(self) -> None:
        """Cancel the requests in flight, and close the files."""
        self._ended.set()
        self._pool.shutdown(wait=True, cancel_futures=True)
        for mirror in self._mirrors.values():
            mirror.close()


def _without(
    start: int, stop: int, ranges: Iterable[tuple[int, int, object]]
) -> Iterator[tuple[int, int]]:
    """The parts of ``start:stop`` that no range covers."""
    for first, last, _ in sorted(ranges, key=lambda covered: covered[:2]):
        if start < min(first, stop):
            yield start, min(first, stop)
        start = max(start, last)
    if start < stop:
        yield start, stop


class _RemoteFiles:
    """See :class:`weightsurgery.checkpoint.layout.Files`."""

    def __init__(self, repository: Repository, fetcher: _Fetcher) -> None:
        self.root = Path(f"{repository.name}@{repository.commit[:12]}")
        self._repository, self._fetcher = repository, fetcher

    def names(self) -> Sequence[str]:
        return list(self._repository.files)

    def read(self, name: str) -> bytes:
        return self._repository.download(name).read_bytes()

    def headers(self, names: Sequence[str]) -> list[ShardHeader]:
        missing = [name for name in names if name not in self._repository.files]
        if missing:
            raise missing_shards(self.root, missing, names)

        def header(name: str) -> ShardHeader:
            def read(offset: int, length: int) -> bytes:
                return self._fetcher.read(name, offset, length)

            return named_header(self.root, name, self._repository.files[name].size, read)

        with ThreadPoolExecutor(2 * CONNECTIONS, "ws-header") as pool:
            return list(pool.map(header, names))


class RemoteCheckpoint(Checkpoint):
    """A checkpoint on the Hub; its tensors are fetched when they are read.

    A stored head is compared on its own, whether or not it is tied to the embedding: to know
    that, both would have to be fetched.
    """

    def __init__(
        self, source: Source, layout: Layout, repository: Repository, fetcher: _Fetcher
    ) -> None:
        super().__init__(source, layout)
        self._repository, self._fetcher = repository, fetcher
        self.remember("tied copies", dict)
        for shard in self.shards:
            digest = repository.files[shard].sha256
            if digest is not None:
                declare(self.path / shard, digest, partial(fetcher.whole, shard))

    @classmethod
    def of(cls, repository: Repository) -> Checkpoint:
        """Open a repository; from huggingface_hub's cache if that holds it in whole."""
        cached = [
            repository.cached(name) for name in repository.files if name.endswith(".safetensors")
        ]
        if all(cached):
            return Checkpoint.open(f"{repository.name}@{repository.commit}")
        fetcher = _Fetcher(repository)
        try:
            files = _RemoteFiles(repository, fetcher)
            source = Source(repository.requested, files.root, repository.commit)
            return cls(source, layout_of(files), repository, fetcher)
        except BaseException:
            fetcher.close()
            raise

    @property
    @override
    def remote(self) -> bool:
        return True

    @property
    def fetched(self) -> int:
        """See :attr:`Checkpoint.fetched`; headers included."""
        return self._fetcher.fetched

    @property
    @override
    def to_download(self) -> int:
        files = self._repository.files
        missing = (name for name in self.shards if self._repository.cached(name) is None)
        return sum(files[name].size for name in missing)

    @override
    def absent(self, names: Iterable[str]) -> int:
        gaps = 0
        for entry in map(self.entry, names):
            missing = self._fetcher.mirror(entry.shard).missing(entry.start, entry.stop)
            gaps += sum(stop - start for start, stop in missing)
        return gaps

    @override
    def file(self, name: str) -> Path | None:
        return self._repository.download(name) if name in self._repository.files else None

    @override
    def beside(self) -> Path:
        """See :meth:`Checkpoint.beside`; fetches config and tokenizer: kilobytes, or a few MB."""
        folders = [
            self._repository.download(name).parent
            for name in self._repository.files
            if name.endswith(_BESIDE) and "/" not in name and not name.endswith(".index.json")
        ]
        return folders[0] if folders else self.path

    def prefetch(self, names: Iterable[str]) -> None:
        """See :meth:`Checkpoint.prefetch`: ranges that touch each other are fetched as one."""
        entries = sorted((self.entry(name) for name in names), key=lambda e: (e.shard, e.start))
        runs: list[tuple[str, int, int]] = []
        for entry in entries:
            if runs and runs[-1][0] == entry.shard and runs[-1][2] == entry.start:
                runs[-1] = (entry.shard, runs[-1][1], entry.stop)
            else:
                runs.append((entry.shard, entry.start, entry.stop))
        for shard, start, stop in runs:
            self._fetcher.request(shard, start, stop)

    def read_into(self, entry: TensorEntry, offset: int, buffer: memoryview) -> None:
        """See :meth:`Checkpoint.read_into`; fetches the whole tensor first."""
        self._fetcher.wait(entry.shard, entry.start, entry.stop)
        super().read_into(entry, offset, buffer)

    def _fill(self, shard: str, position: int, buffer: memoryview, what: str) -> None:
        self._fetcher.wait(shard, position, position + len(buffer))
        self._fetcher.mirror(shard).read_into(position, buffer)

    def handle(self, shard: str) -> int:
        """There is none.

        Raises:
            CheckpointError: Always.
        """
        raise CheckpointError(
            f"{self.path / shard}: only parts of this file are here",
            "Open the checkpoint without --remote.",
        )

    def close(self) -> None:
        """Cancel the requests in flight, and close the files."""
        self._fetcher.close()
        super().close()
