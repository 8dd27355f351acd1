"""Which files beside the weights belong to a model: one rule, for copying and for listing them.

The name decides: configs, tokenizers, templates and licences are companions. Any other file of a
directory is not; nor are weights under any name, nor Python files, unless the model's config names
them and the user allows it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weightsurgery.checkpoint.header import parse_json
from weightsurgery.checkpoint.plain_files import is_plain_within
from weightsurgery.errors import CorruptCheckpointError

__all__ = ["WEIGHT_ENDINGS", "Companions", "check_companion", "companion_kind", "companions"]

# Endings of files that some library might load as weights. Never companions.
WEIGHT_ENDINGS = (
    ".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".gguf", ".ggml", ".onnx",
    ".pkl", ".pickle", ".npz", ".npy", ".joblib", ".dduf",
)  # fmt: skip

_KINDS = {
    "config": re.compile(
        r"(\w[\w-]*[_-])?config([_-][\w-]+)?\.json|(modules|params|configuration)\.json"
    ),
    "tokenizer": re.compile(
        r"tokenizer[\w.-]*\.json|(added_tokens|special_tokens(_map)?|tekken|normalizer)\.json"
        r"|[\w-]*(vocab|merges|bpe|spiece|sentencepiece)[\w.-]*\.(json|txt)|dict\.txt"
        r"|[\w.-]+\.(model|tiktoken|vocab|bpe|spm|codes)"
    ),
    "template": re.compile(r"[\w.-]+\.jinja|chat_template[\w-]*\.json|system_prompt\.txt", re.I),
    # Not whatever begins so: LICENSE.desktop or NOTICE.pth is run where it comes to lie.
    "licence": re.compile(
        r"(licen[sc]es?|notices?|use_policy|copying)([-_ ][^.]*)?"
        r"((\.[^.]+)*\.(\d+|txt|md|rst|pdf|html?|mit|apache|bsd|lesser|gpl))?",
        re.I,
    ),
    "code": re.compile(r"\w[\w-]*\.py"),
}
# These describe the base alone; an adapter's config would make libraries load its base.
_NOT_COMPANIONS = ("weightsurgery.json", "adapter_config.json")
_INDEX = re.compile(r"\.index(\.[^.]+)?\.json$")
_NOT_FOLDERS = ("runs", "original", "onnx", "openvino", "__pycache__", "coreml", "logs")
# The length of the longest name worth matching.
_LONGEST = 255
# The largest config worth looking into for code; larger ones name none.
_LARGEST_CONFIG = 16 << 20


def companion_kind(name: str) -> str | None:
    """``config``, ``tokenizer``, ``template``, ``licence`` or ``code``; None for no companion.

    Args:
        name: Path relative to the model's directory.
    """
    *folders, file = name.split(os.sep)
    if any(
        folder.startswith((".", "checkpoint-")) or folder in _NOT_FOLDERS or not folder
        for folder in folders
    ):
        return None
    if file.startswith(".") or file in _NOT_COMPANIONS or _INDEX.search(file):
        return None
    if file.lower().endswith(WEIGHT_ENDINGS) or len(file) > _LONGEST:
        return None
    for kind, pattern in _KINDS.items():
        if pattern.fullmatch(file):
            return kind
    return None


@dataclass(frozen=True)
class Companions:
    """The files beside a model's weights.

    Attributes:
        files: Companions but for code, relative to the directory, sorted.
        code: Python files that the model's config names, and what those import beside them.
        others: Other text files that somebody may miss in an output.
    """

    files: tuple[str, ...]
    code: tuple[str, ...]
    others: tuple[str, ...]


def companions(base: Path) -> Companions:
    """The companions in a model's directory.

    Weights in any format, optimizer and trainer state, logs, hidden files and the model card (which
    speaks of the base) are no companions.

    Raises:
        CorruptCheckpointError: A companion leads out of the directory, or is no plain file.
    """
    kinds = {name: companion_kind(name) for name in _names(base)}
    files = [name for name, kind in kinds.items() if kind not in (None, "code")]
    for name in files:
        check_companion(base, name)
    declared = list(_declared(base, files)) if "code" in kinds.values() else []
    code = _reached(base, declared, {name for name, kind in kinds.items() if kind == "code"})
    others = [
        name
        for name, kind in kinds.items()
        if name not in code and (kind == "code" or (kind is None and _may_be_missed(name)))
    ]
    return Companions(tuple(sorted(files)), tuple(sorted(code)), tuple(sorted(others)))


def check_companion(base: Path, name: str) -> None:
    """Refuse a companion that is no file of the directory's own.

    Raises:
        CorruptCheckpointError: It leads elsewhere, nowhere, or to no plain file.
    """
    path = base / name
    if is_plain_within(path, base):
        return
    leads = f"a link to {os.path.realpath(path)}" if path.is_symlink() else "no plain file"
    where = ", which is not in the checkpoint" if path.is_symlink() else ""
    raise CorruptCheckpointError(
        f"{path}: {leads}{where}",
        "Put the file itself in its place if it belongs to the model, or remove it.",
    )


def _names(base: Path) -> Iterator[str]:
    for folder, folders, files in os.walk(base):
        folders[:] = [
            name
            for name in folders
            if not name.startswith((".", "checkpoint-")) and name not in _NOT_FOLDERS
        ]
        for file in files:
            yield os.path.relpath(os.path.join(folder, file), base)


# Training state and our own files, which nobody misses.
_KNOWN = re.compile(r"(trainer_state|\w*_results|weightsurgery|adapter_config|train\w*)\.json")


def _may_be_missed(name: str) -> bool:
    """Whether somebody may miss a file that was not copied."""
    file = os.path.basename(name)
    if file.startswith(".") or _INDEX.search(file) or _KNOWN.fullmatch(file):
        return False
    return file.endswith((".json", ".txt", ".jinja"))


def _declared(base: Path, files: list[str]) -> Iterator[str]:
    """Modules that configs name for transformers to run, as files of the top directory."""
    for name in files:
        path = base / name
        if not name.endswith(".json") or path.stat().st_size > _LARGEST_CONFIG:
            continue
        try:
            config = parse_json(path.read_bytes())
        except (ValueError, OSError):
            continue  # reported where it is read
        for text in _classes(config):
            module, dot, _ = text.rpartition(".")
            if dot and "--" not in text:  # which would name another repository
                yield f"{module.replace('.', '/')}.py"


def _classes(config: Any) -> Iterator[str]:
    if not isinstance(config, dict):
        return
    named = config.get("auto_map")
    pipelines = config.get("custom_pipelines")
    entries = list(named.values()) if isinstance(named, dict) else [named]
    if isinstance(pipelines, dict):
        entries += [task.get("impl") for task in pipelines.values() if isinstance(task, dict)]
    for entry in entries:
        yield from (text for text in (entry if isinstance(entry, list) else [entry])
                    if isinstance(text, str))  # fmt: skip


_IMPORT = re.compile(rb"^[ \t]*(?:from|import)[ \t]+\.([\w.]+)", re.M)
_FROM_HERE = re.compile(rb"^[ \t]*from[ \t]+\.[ \t]+import[ \t]+\(?([\w, \t]+)", re.M)


def _reached(base: Path, declared: list[str], there: set[str]) -> set[str]:
    """The declared code files, and those that they import from the same repository."""
    reached: set[str] = set()
    todo = [name for name in declared if name in there]
    while todo:
        name = todo.pop()
        if name in reached:
            continue
        check_companion(base, name)
        reached.add(name)
        text = (base / name).read_bytes()[:_LARGEST_CONFIG]
        modules = _IMPORT.findall(text)
        modules += [part.strip() for line in _FROM_HERE.findall(text) for part in line.split(b",")]
        folder = os.path.dirname(name)
        for module in modules:
            relative = module.decode("ascii", "replace").replace(".", "/")
            todo += [file for file in (os.path.join(folder, f"{relative}.py"),) if file in there]
    return reached
