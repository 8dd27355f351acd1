"""All or nothing, on an object store: parts are uploaded, and become objects once all are there.

Until then nobody sees anything below the prefix but unfinished uploads. Which they are, and what
has come, stands in a journal on the machine that drives the run, in ``$XDG_STATE_HOME`` (or
``~/.local/state``), where the small files wait, too. After a kill the same command goes on with the
parts that the store still has. The record is written last: an output without one is none.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from weightsurgery.checkpoint.object_store import CONNECTIONS, ObjectPlace, ObjectStore
from weightsurgery.checkpoint.staging import RECORD_NAME, Staging
from weightsurgery.checkpoint.targets import beside
from weightsurgery.errors import OutputError, SourceError, VerificationError

if TYPE_CHECKING:
    from weightsurgery.checkpoint.record import EditRecord

__all__ = ["ObjectStaging", "check_objects", "record_of"]


def _state(place: ObjectPlace) -> Path:
    """Where the journal of an output is; made, for this user alone, by :class:`Staging`."""
    configured = os.environ.get("XDG_STATE_HOME")
    folder = Path(configured) if configured else Path.home() / ".local/state"
    name = hashlib.sha256(f"{place.endpoint}\n{place}".encode()).hexdigest()[:32]
    return folder / "weightsurgery/uploads" / name


def check_objects(
    store: ObjectStore, overwrite: bool, ours: Iterable[tuple[str, str]] = ()
) -> None:
    """Refuse a prefix below which something is that would be lost.

    Args:
        store: Of the output.
        overwrite: Whether the user asked to replace an existing output.
        ours: Name and id of this run's uploads.

    Raises:
        OutputError: There are objects, or another run's uploads, and ``overwrite`` is not set; or
            objects that were not written by this tool.
    """
    place, names = store.place, list(store.sizes())
    if not overwrite and names:
        raise OutputError(f"{place}: exists", "Choose another prefix, or pass --overwrite.")
    others = store.uploads() - set(ours)
    if not overwrite and others:
        raise OutputError(
            f"{place}: unfinished uploads of another run are there ({len(others)})",
            "If none is at work there, --overwrite aborts them; or choose another prefix.",
        )
    if names:
        _check_ours(store, names)


def _check_ours(store: ObjectStore, names: Sequence[str]) -> None:
    place, remedy = store.place, "Remove it yourself, or choose another prefix."
    try:
        record = record_of(store)
    except (SourceError, VerificationError) as error:
        why = f"{place}: was not written by ws, as far as can be told ({error.what})"
        raise OutputError(why, f"{remedy} --overwrite replaces ws outputs only.") from None
    foreign = sorted(set(names) - {*record.files, RECORD_NAME})
    if foreign:
        more = f" and {len(foreign) - 1} more" if foreign[1:] else ""
        why = f"{place}: holds {foreign[0]}{more}, which ws did not write there"
        raise OutputError(why, f"{remedy} --overwrite replaces what ws wrote.")


def record_of(store: ObjectStore) -> EditRecord:
    """The record of an output.

    Raises:
        SourceError: There is none.
        VerificationError: It is damaged, or of a newer format.
    """
    from weightsurgery.checkpoint.record import parse_record

    text = store.read(RECORD_NAME)
    if text is None:
        raise SourceError(f"{store.place}: no {RECORD_NAME}", "Name an output of ws.")
    return parse_record(text, f"{store.place}/{RECORD_NAME}")


class ObjectStaging(Staging):
    """The journal of an output on an object store, and what makes it one.

    Args:
        place: Where.
        identity: What is being made, as a digest. A journal with the same identity is resumed.
        shards: The files that are uploaded in parts.
        overwrite: Replace an existing output, and abort other runs' uploads.

    Attributes:
        files: Directory for the small files.
        finished: Journal lines of an earlier run; of shards, those whose parts the store has.
        uploads: The uploads' ids, by shard.
    """

    kept_after = (*Staging.kept_after, OutputError, OSError, MemoryError)

    def __init__(
        self, place: ObjectPlace, identity: str, shards: Sequence[str], overwrite: bool
    ) -> None:
        self.place, self.store = place, ObjectStore(place)
        self.uploads: dict[str, str] = {}
        self._shards = shards
        self._noted: list[dict[str, Any]] = []
        self._whole: set[str] = set()
        self._etags: dict[str, dict[int, str]] = {}
        super().__init__(_state(place), identity, [], overwrite)
        try:
            self._open()
        except BaseException:
            self.leave()
            raise

    @staticmethod
    def begun(place: ObjectPlace) -> bool:
        """Whether there is a journal, so that there may be something to go on with."""
        return beside(Path(os.path.realpath(_state(place)))).exists()

    @override
    def record(self) -> EditRecord:
        return record_of(self.store)

    @override
    def _shown(self) -> object:
        return self.place

    @override
    def _read_journal(self) -> list[dict[str, Any]]:
        self._noted = super()._read_journal()
        return self._noted

    def _of(self, key: str) -> Iterator[Any]:
        """What the journal holds under a key, the oldest first."""
        return (line[key] for line in self._noted if key in line)

    def _journaled(self) -> list[tuple[str, str]]:
        return [(shard, upload) for shard, upload in self._of("upload")]

    @override
    def _check_target(self) -> None:
        if not any(self._of("commit")):  # else what is there may be this run's
            check_objects(self.store, self._overwrite, self._our_uploads())

    def _our_uploads(self) -> set[tuple[str, str]]:
        """Those in the journal, and one that had begun when a run was killed before it knew."""
        ours = {*self._journaled(), *self.uploads.items()}
        begun = {name for names in self._of("begin") for name in names}
        unsure = begun - {shard for shard, _ in ours}
        if unsure:
            ours |= {(shard, upload) for shard, upload in self.store.uploads() if shard in unsure}
        return ours

    @override
    def _begin(self) -> None:
        if any(self._of("commit")):  # of another output, of which something is there
            try:
                check_objects(self.store, self._overwrite, self._our_uploads())
            except OutputError:
                self.leave()
                raise
        for shard, upload in self._our_uploads():
            self.store.abort(shard, upload)
        self._noted = []
        super()._begin()

    def _open(self) -> None:
        """Find what an earlier run has done, and begin the uploads that there are not."""
        self.run = next(self._of("run"), "") or secrets.token_hex(16)
        if any(self._of("commit")) and self.store.run_of(RECORD_NAME) == self.run:
            self.complete = True
            super().close()
            return
        journaled = self._journaled()
        others = self.store.uploads() if self._overwrite else self._our_uploads()
        for shard, upload in others - set(journaled):
            self.store.abort(shard, upload)
        has: dict[str, Mapping[int, tuple[str, int]]] = {}
        for shard, upload in dict(journaled).items():  # the last of each
            parts = self.store.parts(shard, upload)
            if parts is not None:
                self.uploads[shard], has[shard] = upload, parts
            elif self.store.run_of(shard) == self.run:
                self._whole.add(shard)
        self.finished = [line for line in self._noted if self._is_there(line, has)]
        missing = [s for s in self._shards if s not in self._whole and s not in self.uploads]
        self.note([{"run": self.run, "begin": missing}])
        for shard in missing:
            self.uploads[shard] = self.store.begin(shard, self.run)
            self.note([{"upload": [shard, self.uploads[shard]]}])

    def _is_there(
        self, line: Mapping[str, Any], has: Mapping[str, Mapping[int, tuple[str, int]]]
    ) -> bool:
        """Whether the store has what a line says was uploaded."""
        shard, parts = line.get("shard"), has.get(line.get("shard", ""), {})
        if shard in self._whole:
            return True
        return "parts" in line and all(
            parts.get(number) == (etag, size) for number, etag, size in line["parts"]
        )

    def take(self, line: Mapping[str, Any], new: bool) -> None:
        """Take parts of a shard as its own.

        Args:
            line: With ``shard`` and its ``parts``: number, ETag and size.
            new: Whether they came now, and the journal is to know them.
        """
        if new:
            self.note([dict(line)])
        of_shard = self._etags.setdefault(line["shard"], {})
        of_shard.update((number, etag) for number, etag, _ in line["parts"])

    @override
    def commit(self, names: Iterable[str] | None = None) -> None:
        """Make objects of the uploads and of the small files; the record comes last.

        Args:
            names: The output's files. Others below the prefix, of an output that is replaced, are
                removed.
        """
        assert names is not None
        wanted = list(names)
        self._check_target()  # again: hours may have passed
        self.note([{"commit": True}])
        before = set(self.store.sizes())
        if RECORD_NAME in before:  # what is there is no output from here on
            self.store.remove([RECORD_NAME])
        with ThreadPoolExecutor(CONNECTIONS, "ws-complete") as pool:
            list(pool.map(self._complete, list(self.uploads)))
        self.store.remove(before - set(wanted))
        small = [name for name in wanted if name not in self._shards and name != RECORD_NAME]
        for name in (*small, RECORD_NAME):
            self.store.put(name, (self.files / name).read_bytes(), self.run)
        self.uploads = {}
        self.close()

    def _complete(self, shard: str) -> None:
        try:
            self.store.complete(shard, self.uploads[shard], self._etags[shard])
        except OutputError:  # its answer may have been lost
            if self.store.run_of(shard) != self.run:
                raise

    @override
    def close(self) -> None:
        """Drop what was uploaded, and the journal; after a commit, the journal alone."""
        with contextlib.suppress(OutputError):  # then the journal stays, which knows the uploads
            for shard, upload in self.uploads.items():
                self.store.abort(shard, upload)
            super().close()
        self.leave()
