"""The files beside the weights: config, tokenizer, templates, licences, index."""

from __future__ import annotations

import json
import re
import shutil
from typing import Any

from weightsurgery.checkpoint.header import BITS
from weightsurgery.checkpoint.reader import Checkpoint
from weightsurgery.checkpoint.record import content_sha256
from weightsurgery.checkpoint.staging import Staging, output_errors
from weightsurgery.checkpoint.writer import companion_files
from weightsurgery.errors import CorruptCheckpointError
from weightsurgery.surgery.plan import Storage

__all__ = ["copy_companions"]


def copy_companions(
    base: Checkpoint, storage: Storage, staging: Staging
) -> dict[str, dict[str, Any]]:
    """Copy the base's companion files and index byte for byte into a growing output.

    With another storage dtype, ``config.json`` and the index, which name the old one, say the new.

    Returns:
        SHA-256 and size of each copy, for the record.

    Raises:
        CorruptCheckpointError: A link of the base leads nowhere.
        OutputError: The disk failed.
    """
    names = companion_files(base.path)
    if base.layout.index_name is not None:
        names.append(base.layout.index_name)
    converts = any(storage.stored(entry) != entry.dtype for entry in base.entries.values())
    copied = {}
    for name in names:
        source, target = base.path / name, staging.files / name
        if not source.is_file():
            raise CorruptCheckpointError(
                f"{source}: a link that leads nowhere", "Restore the file, or remove the link."
            )
        with output_errors(staging.target):
            target.parent.mkdir(parents=True, exist_ok=True)
            if (name == "config.json" and storage.dtype is not None) or (
                name == base.layout.index_name and converts
            ):
                target.write_bytes(_redeclared(name, source.read_bytes(), storage, base))
            else:
                shutil.copyfile(source, target)
            copied[name] = {"sha256": content_sha256(target), "bytes": target.stat().st_size}
    return copied


def _redeclared(name: str, content: bytes, storage: Storage, base: Checkpoint) -> bytes:
    """With another storage dtype, the files that name the old one: config and index.

    Only that value is replaced in the config's text; the rest keeps its bytes, since a config
    that is parsed and written anew may mean something else to an older reader.
    """
    if name == "config.json":
        pattern = rb'("(?:torch_)?dtype"\s*:\s*)"(?:torch\.)?(?:float|bfloat)\d+"'
        return re.sub(pattern, rb'\g<1>"' + (storage.dtype or "").encode() + b'"', content)
    if name == base.layout.index_name:
        index = json.loads(content)
        if isinstance(index.get("metadata"), dict):
            entries = base.entries.values()
            index["metadata"]["total_size"] = sum(
                entry.numel * BITS[storage.stored(entry)] // 8 for entry in entries
            )
        return (json.dumps(index, indent=2) + "\n").encode()
    return content
