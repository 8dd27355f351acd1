"""``weightsurgery.json``: how an output was made, and the check that it still is that output.

A record holds no time and no host: the same command on the same inputs with the same versions
writes the same bytes, record included.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from weightsurgery import __version__
from weightsurgery.checkpoint.companions import WEIGHT_ENDINGS, companion_kind
from weightsurgery.checkpoint.digests import content_sha256
from weightsurgery.checkpoint.layout import read_layout
from weightsurgery.checkpoint.object_store import ObjectPlace
from weightsurgery.checkpoint.plain_files import is_plain_within
from weightsurgery.checkpoint.staging import RECORD_NAME
from weightsurgery.errors import SourceError, VerificationError, WeightSurgeryError

__all__ = [
    "FORMAT_VERSION",
    "EditRecord",
    "as_recorded",
    "identity_of",
    "parse_record",
    "read_record",
    "refuse_problems",
    "stray",
    "unrecorded",
    "verify",
    "versions",
]

FORMAT_VERSION = 1

# Exports are models of their own, and a push leaves them where they are.
_WEIGHTS = tuple(ending for ending in WEIGHT_ENDINGS if ending not in (".onnx", ".ggml", ".dduf"))


def versions() -> dict[str, str]:
    """Versions of the software: Python, this package, torch, safetensors."""
    installed = {"python": platform.python_version(), "weightsurgery": __version__}
    for package in ("torch", "safetensors"):
        try:
            installed[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            installed[package] = "not installed as a package"
    return installed


@dataclass
class EditRecord:
    """How an output was made.

    Attributes:
        kind: ``"checkpoint"`` or ``"task-vector"``.
        command: Name of the edit and its arguments as given, paths included.
        parameters: Every parameter, defaults included.
        inputs: By role: name, revision, and SHA-256 of each file that was read.
        files: SHA-256 and size of each file of the output, this record excepted.
        tensors: Statistics of each edited tensor.
        summary: Statistics over all tensors.
        lineage: Results of the check of the inputs' lineage.
        versions: Of the software.
        parent: The base's own record, if it was itself written by this tool.
        version: Version of this format.
    """

    kind: str
    command: Sequence[str] = ()
    parameters: Mapping[str, Any] = field(default_factory=dict)
    inputs: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    tensors: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    summary: Mapping[str, Any] = field(default_factory=dict)
    lineage: Sequence[Mapping[str, Any]] = ()
    versions: Mapping[str, str] = field(default_factory=versions)
    parent: Mapping[str, Any] | None = None
    version: int = FORMAT_VERSION

    def to_json(self) -> str:
        """The file's text."""
        return json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n"


def read_record(directory: Path) -> EditRecord:
    """Read the record of an output.

    Raises:
        SourceError: There is none.
        VerificationError: It is damaged, or of a newer format.
    """
    path = directory / RECORD_NAME
    if not path.is_file():
        raise SourceError(
            f"{directory}: no {RECORD_NAME}", "Name a directory that was written by ws."
        )
    if not is_plain_within(path, directory):
        raise VerificationError(
            f"{path}: leads out of the output", "Put the record itself in its place."
        )
    try:
        return parse_record(path.read_bytes(), path)
    except OSError as error:
        raise _damaged(path, error) from None


def parse_record(text: bytes, path: str | os.PathLike[str]) -> EditRecord:
    """The record in a file's bytes.

    Args:
        text: The bytes.
        path: Where they are from, for messages.

    Raises:
        VerificationError: They are damaged, or of a newer format.
    """
    try:
        data = json.loads(text.decode("utf-8"))
        if data["version"] > FORMAT_VERSION:
            raise VerificationError(
                f"{path}: format {data['version']}, this ws knows up to {FORMAT_VERSION}",
                "Update weightsurgery.",
            )
        record = EditRecord(**data)
        _check_shape(record)
        for name, facts in record.files.items():
            if not isinstance(facts["bytes"], int) or not isinstance(facts["sha256"], str):
                raise ValueError(f"no size and SHA-256 of {name!r}")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise _damaged(path, error) from None
    return record


def _damaged(path: str | os.PathLike[str], error: Exception) -> VerificationError:
    return VerificationError(f"{path}: damaged ({error})", "Make the output again from its inputs.")


_OBJECTS = ("parameters", "inputs", "files", "tensors", "summary", "versions")


def _check_shape(record: EditRecord) -> None:
    """Check the types of a record's parts.

    Raises:
        TypeError: A part is of another type than ws writes.
    """
    for name in _OBJECTS:
        if not isinstance(getattr(record, name), dict):
            raise TypeError(f"{name} is no object")
    if not isinstance(record.parent, dict | None):
        raise TypeError("parent is no object")
    named = (("inputs", record.inputs.items()), ("tensors", record.tensors.items()),
             ("lineage", enumerate(record.lineage)))  # fmt: skip
    for name, parts in named:
        for key, part in parts:
            if not isinstance(part, dict):
                raise TypeError(f"{name}: {key!r} is no object")
    if not all(isinstance(part, str) for part in record.command):
        raise TypeError("command holds what is no word")


@contextmanager
def as_recorded(place: str | os.PathLike[str] = RECORD_NAME) -> Iterator[None]:
    """A context in which a record is reported; a malformed one is refused.

    A record may come from somebody else, with any of its fields of another type.

    Args:
        place: Where it is, for the message.

    Raises:
        VerificationError: A field is missing or of another type than ws writes.
    """
    try:
        yield
    except (ValueError, TypeError, KeyError, AttributeError, IndexError, OverflowError) as error:
        raise VerificationError(
            f"{place}: its record is not as ws writes it ({type(error).__name__}: {error})"[:500],
            "Check the output with 'ws verify', or make it again from its inputs.",
        ) from error


def verify(
    directory: str | os.PathLike[str], progress: Callable[[int, int], None] | None = None
) -> EditRecord:
    """Check that an output is what its record says: every byte of every file.

    This detects damage and added files, but no forgery: a record is not signed, and whoever changes
    an output can write another one.

    Args:
        directory: The output; or its address on S3, where all of its bytes are read.
        progress: Called with bytes checked so far and in all.

    Returns:
        The record.

    Raises:
        SourceError: There is no record.
        VerificationError: Files are missing, changed, or there are some the record does not know
            with which a model would be loaded; all of them are named.
    """
    if (place := ObjectPlace.of(directory)) is not None:
        from weightsurgery.checkpoint.object_verify import verify_objects

        return verify_objects(place, progress)
    directory = Path(directory)
    record = read_record(directory)
    problems: list[str] = []
    total = sum(facts["bytes"] for facts in record.files.values())
    checked = 0
    for name, facts in record.files.items():
        try:
            problem = _problem(directory, name, facts)
        except OSError as error:
            problem = f"cannot be read: {error.strerror}"
        if problem is not None:
            problems.append(f"{name}: {problem}")
        checked += facts["bytes"]
        if progress is not None:
            progress(checked, total)
    for name in unrecorded(directory, record):
        if (problem := stray(name)) is not None:
            problems.append(problem)
    if not problems:
        try:
            read_layout(directory)
        except WeightSurgeryError as error:
            problems.append(error.what)
    refuse_problems(directory, problems)
    return record


def refuse_problems(place: object, problems: Sequence[str]) -> None:
    """Raise the error for an output that differs from its record, if it does.

    Raises:
        VerificationError: There are problems.
    """
    if problems:
        raise VerificationError(
            f"{place}: not what its record says: {'; '.join(problems)}",
            "Make it again with the recorded command, or download it again.",
        )


def stray(name: str) -> str | None:
    """What is wrong with a file that a record does not list; None for one that does no harm."""
    if name.lower().endswith(_WEIGHTS):
        return f"{name}: weights that the record does not know"
    if companion_kind(name) is not None or name in _LOADED:
        return f"{name}: loaded with a model, and the record does not know it"
    return None


# Loaded with a model where they lie there, and no companions of a base.
_LOADED = ("adapter_config.json",)


def unrecorded(directory: Path, record: EditRecord) -> list[str]:
    """Files in an output that its record does not list: relative names, sorted."""
    recorded = {os.path.normpath(name) for name in (*record.files, RECORD_NAME)}
    return sorted(
        name
        for path in directory.rglob("*")
        if path.is_symlink() or not path.is_dir()
        if (name := path.relative_to(directory).as_posix()) not in recorded
    )


def _problem(directory: Path, name: str, facts: Mapping[str, Any]) -> str | None:
    """How a file differs from its entry in the record; None if it does not."""
    path = directory / name
    if os.path.normpath(name) != name or name.startswith(("..", "/")):
        return "leaves the directory"
    if not os.path.isfile(path):
        return "missing"
    size = path.stat().st_size
    if size != facts["bytes"]:
        return f"{size} bytes, recorded {facts['bytes']}"
    if content_sha256(path) != facts["sha256"]:
        return "content differs from the recorded SHA-256"
    return None


def identity_of(
    inputs: Mapping[str, tuple[Mapping[str, Any], Sequence[Path]]], **described: Any
) -> str:
    """A digest of everything an output depends on.

    Args:
        inputs: By role: a description, and the files, which count by size and modification time;
            files on the Hub count by name.
        described: The other settings of the output.
    """
    read = {
        role: [about, [_state(path) for path in paths]] for role, (about, paths) in inputs.items()
    }
    facts = {**described, "versions": versions(), "inputs": read}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _state(path: Path) -> list[Any]:
    if not path.exists():
        return [str(path)]
    facts = path.stat()
    return [str(path), facts.st_size, facts.st_mtime_ns]
