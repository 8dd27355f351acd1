"""The check that an output on an object store is what its record says."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from weightsurgery.checkpoint.object_staging import record_of
from weightsurgery.checkpoint.object_store import ObjectPlace, ObjectStore
from weightsurgery.checkpoint.record import EditRecord, refuse_problems, stray
from weightsurgery.checkpoint.staging import RECORD_NAME

__all__ = ["verify_objects"]


def verify_objects(
    place: ObjectPlace, progress: Callable[[int, int], None] | None = None
) -> EditRecord:
    """See :func:`weightsurgery.checkpoint.record.verify`; every object is read in whole.

    Raises:
        SourceError: There is no record.
        VerificationError: Objects are missing, changed, or there are some the record does not know.
        OutputError: The store does not answer, or refuses.
    """
    store = ObjectStore(place)
    record, sizes = record_of(store), store.sizes()
    total, checked = sum(facts["bytes"] for facts in record.files.values()), 0
    problems = []
    for name, facts in record.files.items():
        size = sizes.get(name)
        if size != facts["bytes"]:
            found = "missing" if size is None else f"{size} bytes, recorded {facts['bytes']}"
            problems.append(f"{name}: {found}")
            continue
        digest = hashlib.sha256()
        for block in store.blocks(name):
            digest.update(block)
            checked += len(block)
            if progress is not None:
                progress(checked, total)
        if digest.hexdigest() != facts["sha256"]:
            problems.append(f"{name}: content differs from the recorded SHA-256")
    strays = (stray(name) for name in sorted(set(sizes) - {*record.files, RECORD_NAME}))
    refuse_problems(place, [*problems, *(each for each in strays if each is not None)])
    return record
