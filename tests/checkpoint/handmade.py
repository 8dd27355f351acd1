"""safetensors files written byte by byte, so that they can be written wrong."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from weightsurgery.checkpoint.layout import BITS, INDEX_NAME
from weightsurgery.errors import WeightSurgeryError

# name -> (dtype, shape); data is seeded by the name.
Tensors = Mapping[str, tuple[str, tuple[int, ...]]]


def nbytes(dtype: str, shape: tuple[int, ...]) -> int:
    bits = BITS[dtype]
    for axis in shape:
        bits *= axis
    assert bits % 8 == 0
    return bits // 8


def content(name: str, dtype: str, shape: tuple[int, ...]) -> bytes:
    return random.Random(f"{name} {dtype} {shape}").randbytes(nbytes(dtype, shape))


def describe(tensors: Tensors) -> dict[str, Any]:
    header, position = {}, 0
    for name, (dtype, shape) in tensors.items():
        stop = position + nbytes(dtype, shape)
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [position, stop]}
        position = stop
    return header


def frame(header: Any, data: bytes = b"") -> bytes:
    """Length, header (an object, or the JSON text itself), data."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def file_bytes(tensors: Tensors, metadata: Mapping[str, str] | None = None) -> bytes:
    header = describe(tensors)
    if metadata is not None:
        header = {"__metadata__": dict(metadata), **header}
    return frame(header, b"".join(content(name, *facts) for name, facts in tensors.items()))


def directory(root: Path, files: Mapping[str, bytes | str | Tensors | dict[str, Any]]) -> Path:
    """Files by path: bytes, text, tensors (for .safetensors), or an object (for .json)."""
    for name, what in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(what, str):
            what = what.encode()
        elif not isinstance(what, bytes):
            what = json.dumps(what).encode() if name.endswith(".json") else file_bytes(what)
        path.write_bytes(what)
    return root


def index(weight_map: Mapping[str, Any]) -> dict[str, Any]:
    return {"metadata": {}, "weight_map": dict(weight_map)}


TWO = {"a.weight": ("F32", (2, 3)), "b.weight": ("BF16", (4,))}


def sharded(root: Path, first: str = "one.safetensors", second: str = "two.safetensors") -> Path:
    """``a.weight`` in one shard, ``b.weight`` in another."""
    files = {
        first: {"a.weight": TWO["a.weight"]},
        second: {"b.weight": TWO["b.weight"]},
        INDEX_NAME: index({"a.weight": first, "b.weight": second}),
    }
    return directory(root, files)


def says(error: pytest.ExceptionInfo[WeightSurgeryError], *words: str) -> None:
    """Both lines are there, and the first names what it is about."""
    for word in words:
        assert word in error.value.what
    assert len(error.value.remedy) > 10
    assert error.value.remedy[-1] in ".'\""
    assert "\n" not in error.value.what + error.value.remedy


def run_python(code: str, *arguments: str | Path, **environment: str) -> str:
    """Standard output of another Python process."""
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
