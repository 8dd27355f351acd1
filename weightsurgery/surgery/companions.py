"""The files beside the weights: config, tokenizer, templates, licences, index."""

from __future__ import annotations

import json
import os
import re
import shutil
from typing import TYPE_CHECKING, Any

from weightsurgery.checkpoint.companions import Companions, check_companion, companions
from weightsurgery.checkpoint.digests import content_sha256
from weightsurgery.checkpoint.header import BITS
from weightsurgery.checkpoint.plain_files import new_file
from weightsurgery.checkpoint.reader import Checkpoint
from weightsurgery.checkpoint.remarks import declared_total
from weightsurgery.checkpoint.staging import RECORD_NAME, Staging, output_errors
from weightsurgery.checkpoint.weight_files import shard_stem
from weightsurgery.errors import OutputError

if TYPE_CHECKING:
    from weightsurgery.surgery.as_checkpoint import Storage

__all__ = ["companion_notices", "companions_of", "copy_companions"]


def companions_of(base: Checkpoint, storage: Storage) -> list[str]:
    """The files to copy from beside the base's weights: companions, code on request, the index.

    Raises:
        CorruptCheckpointError: One leads out of the base, or is no plain file.
        OutputError: One has the name of a shard or of the record.
    """
    available = companions(base.path)
    names = [*available.files, *(available.code if storage.code else ())]
    if base.layout.index_name is not None:
        check_companion(base.path, base.layout.index_name)
        names.append(base.layout.index_name)
    # By letters of one case: there are disks on which two such names are one file.
    taken = {os.path.normpath(name).casefold() for name in (*base.shards, RECORD_NAME)}
    for name in names:
        if name.casefold() in taken:
            raise OutputError(
                f"{base.path / name}: would be copied over the output's own {name}",
                "Rename it, or remove it from the base.",
            )
    return names


def companion_notices(base: Checkpoint, storage: Storage) -> list[str]:
    """Which files of the base were not copied, one line per notice."""
    available: Companions = companions(base.path)
    notices = []
    if available.code and not storage.code:
        notices.append(
            f"{base.source.name} brings Python code of its own, which was not copied"
            f" ({_first_names(available.code)}): read it; --with-code copies it."
        )
    if available.others:
        notices.append(
            "Not copied, since no model needs a file of such a name:"
            f" {_first_names(available.others)}."
        )
    return notices


def _first_names(names: tuple[str, ...]) -> str:
    more = f" and {len(names) - 3} more" if names[3:] else ""
    return ", ".join(names[:3]) + more


def copy_companions(
    base: Checkpoint, storage: Storage, staging: Staging
) -> dict[str, dict[str, Any]]:
    """Copy the base's companion files and index byte for byte into a growing output.

    With another storage dtype, ``config.json`` and the index, which name the old one, name the new;
    for a base that is read as numbers neither mentions its codes.

    Returns:
        SHA-256 and size of the copies, for the record.

    Raises:
        CorruptCheckpointError: One leads out of the base, or is no plain file.
        OutputError: One has the name of a shard, or the disk failed.
    """
    converts = any(storage.stored(entry) != entry.dtype for entry in base.entries.values())
    # A wrong total is corrected: the output would otherwise be as odd as its base.
    converts |= not base.as_stored or declared_total(base) not in (None, base.layout.nbytes)
    copied = {}
    for name in companions_of(base, storage):
        source, target = base.path / name, staging.files / name
        with output_errors(staging.target):
            target.parent.mkdir(parents=True, exist_ok=True)
            with source.open("rb") as read, new_file(target) as file:
                redeclares = storage.dtype is not None or not base.as_stored
                if (name == "config.json" and redeclares) or (
                    name == base.layout.index_name and converts
                ):
                    file.write(_redeclared(name, read.read(), storage, base))
                else:
                    shutil.copyfileobj(read, file, 1 << 22)
            copied[name] = {"sha256": content_sha256(target), "bytes": target.stat().st_size}
    return {**copied, **_new_index(base, storage, staging)}


def _new_index(base: Checkpoint, storage: Storage, staging: Staging) -> dict[str, dict[str, Any]]:
    """An index for shards that had none, without which no library would load them."""
    if base.layout.index_name is not None or len(base.shards) < 2:
        return {}
    stem = shard_stem(next(iter(base.shards))) or "model"
    target = staging.files / f"{stem}.safetensors.index.json"
    entries = base.entries.values()
    total = sum(entry.numel * BITS[storage.stored(entry)] // 8 for entry in entries)
    index = {
        "metadata": {"total_size": total},
        "weight_map": {entry.name: entry.shard for entry in entries},
    }
    with output_errors(staging.target), new_file(target) as file:
        file.write((json.dumps(index, indent=2) + "\n").encode())
    facts = {"sha256": content_sha256(target), "bytes": target.stat().st_size}
    return {target.name: facts}


def _redeclared(name: str, content: bytes, storage: Storage, base: Checkpoint) -> bytes:
    """The config or index, with the new storage dtype in place of the old one.

    Only that value is replaced in the config's text; the rest keeps its bytes, since a config
    that is parsed and written anew may mean something else to an older reader.
    """
    if name == "config.json":
        if not base.as_stored:  # its entries about codes do not hold any more
            content = (json.dumps(base.config, indent=2) + "\n").encode()
        if storage.dtype is None:
            return content
        pattern = rb'("(?:torch_)?dtype"\s*:\s*)"(?:torch\.)?(?:float|bfloat)\d+"'
        return re.sub(pattern, rb'\g<1>"' + storage.dtype.encode() + b'"', content)
    if name == base.layout.index_name:
        index = json.loads(content)
        if not base.as_stored:
            index["weight_map"] = {name: entry.shard for name, entry in base.entries.items()}
        if isinstance(index.get("metadata"), dict):
            entries = base.entries.values()
            index["metadata"]["total_size"] = sum(
                entry.numel * BITS[storage.stored(entry)] // 8 for entry in entries
            )
        return (json.dumps(index, indent=2) + "\n").encode()
    return content
