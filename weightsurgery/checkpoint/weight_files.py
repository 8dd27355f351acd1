"""Which of a directory's files are the model's weights, by their names alone."""

from __future__ import annotations

import re
import shlex
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from weightsurgery.errors import CorruptCheckpointError, SourceError, UnsupportedCheckpointError

__all__ = ["INDEX_NAME", "SINGLE_NAME", "find_weights", "shard_stem"]

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"

# Pickles beside a model that hold no weights.
_TRAINING_STATE = ("training_args", "optimizer", "scheduler", "rng_state", "random_states")

# Beside shards: the same weights in their publisher's layout, and files that are no model.
_BESIDE = re.compile(r"(consolidated|adapter|optimizer|.*_adapters)\b.*\.safetensors")

_SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d{1,6})-of-(?P<count>\d{1,6})\.safetensors")


def shard_stem(name: str) -> str | None:
    """The part of a shard's name before its number; None for any other file."""
    match = _SHARD.fullmatch(name)
    return None if match is None else match["stem"]


def find_weights(root: Path, names: Sequence[str]) -> tuple[str | None, list[str]]:
    """The index's name, or None and the weight files.

    Args:
        root: What messages name.
        names: Every file, relative to it.

    Raises:
        SourceError: There are no weights, or those of several models.
        CorruptCheckpointError: Shards are missing, or files are not shards of one model.
        UnsupportedCheckpointError: Weights in another format.
    """
    names = sorted(name for name in names if "/" not in name)
    indexes = [name for name in names if name.endswith(".safetensors.index.json")]
    files = [name for name in names if name.endswith(".safetensors")]
    if INDEX_NAME in indexes:
        return INDEX_NAME, []
    if SINGLE_NAME in files:
        return None, [SINGLE_NAME]
    if len(indexes) == 1:
        return indexes[0], []
    if len(indexes) > 1:
        raise SourceError(
            f"{root}: several indexes: {', '.join(indexes)}",
            f"Keep one, or name the one to use {INDEX_NAME}.",
        )
    shards = _shards(root, files)
    if shards:
        return None, shards
    if len(files) == 1:
        return None, files
    if files:
        raise CorruptCheckpointError(
            f"{root}: {len(files)} weight files and no index",
            f"Download {INDEX_NAME} too, or keep a single .safetensors file in the directory.",
        )
    _refuse_gguf(root, names)
    original = [f"original/{path.name}" for path in sorted((root / "original").glob("*.pth"))]
    _refuse_pickles(root, [*names, *original])
    raise SourceError(
        f"{root}: no .safetensors file",
        "Name a directory that holds a model's weights; other formats must be converted first.",
    )


def _shards(root: Path, files: Sequence[str]) -> list[str]:
    """Shards without an index, in the order of their numbers; none if a file is no shard."""
    sets: dict[tuple[str, int], dict[int, str]] = defaultdict(dict)
    for name in files:
        match = _SHARD.fullmatch(name)
        if match is not None:
            sets[match["stem"], int(match["count"])][int(match["number"])] = name
        elif not _BESIDE.fullmatch(name):
            return []
    if len(sets) != 1:
        return []
    ((stem, count), shards) = next(iter(sets.items()))
    first = 0 if 0 in shards else 1
    wanted = range(first, first + count)
    # With as many digits as the shards that are here; a few names are enough.
    missing = [number for number in wanted[:100_000] if number not in shards]
    if not missing and len(shards) == count:
        return [shards[number] for number in wanted]
    sample = next(iter(shards.values()))
    match = _SHARD.fullmatch(sample)
    assert match is not None
    width, of = len(match["number"]), match["count"]
    examples = ", ".join(f"{stem}-{number:0{width}d}-of-{of}.safetensors" for number in missing[:6])
    raise CorruptCheckpointError(
        f"{root}: {len(shards)} of {count} shards, and no index; missing:"
        f" {examples}{', ...' if missing[6:] else ''}",
        "Download the missing shards again, or copy them here.",
    )


def _refuse_gguf(root: Path, names: Sequence[str]) -> None:
    files = [name for name in names if name.lower().endswith(".gguf")]
    if not files:
        return
    code = (
        "from transformers import AutoModelForCausalLM as M, AutoTokenizer as T, GgufConfig as G; "
        f"d, f = {str(root)!r}, {files[0]!r}; o = d + '-numbers'; "
        "M.from_pretrained(d, gguf_file=f, quantization_config=G(dequantize=True),"
        " dtype='bfloat16').save_pretrained(o); "
        "T.from_pretrained(d, gguf_file=f).save_pretrained(o)"
    )
    raise UnsupportedCheckpointError(
        f"{root}: holds GGUF ({', '.join(files[:3])}), whose numbers are quantised codes for"
        " llama.cpp, no safetensors",
        "Use the checkpoint that it was made from, or have transformers write its numbers (needs"
        f" the package gguf):  python -c {shlex.quote(code)}",
    )


def _refuse_pickles(root: Path, names: Sequence[str]) -> None:
    pickles = [
        name
        for name in names
        if name.endswith((".bin", ".pt", ".pth")) and not name.startswith(_TRAINING_STATE)
    ]
    if not pickles:
        return
    remedy = "Load it with the library that wrote it, and save it as safetensors."
    if pickles[0].startswith("pytorch_model") and root.is_dir():
        code = (
            "import pathlib, torch; from safetensors.torch import save_file; "
            f"d = pathlib.Path({str(root)!r}); w = {{}}; "
            "[w.update(torch.load(f, map_location='cpu', weights_only=True)) "
            "for f in sorted(d.glob('pytorch_model*.bin'))]; "
            "save_file({n: w.pop(n).clone().contiguous() for n in list(w)}, "
            f"d / {SINGLE_NAME!r}, {{'format': 'pt'}})"
        )
        remedy = f"Write {SINGLE_NAME} beside it:  python -c {shlex.quote(code)}"
    raise UnsupportedCheckpointError(
        f"{root}: holds PyTorch pickles ({', '.join(pickles[:3])}), no safetensors", remedy
    )
