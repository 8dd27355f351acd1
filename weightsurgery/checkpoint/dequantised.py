"""A float8 checkpoint read as the numbers that its codes and scales stand for.

``W = code · scale``, with a scale for the whole matrix, for each row, or for each block; computed
in float32 and rounded once, to the dtype of the model's config. Nothing is copied: rows are worked
out when they are read. Scales are no tensors of the model's any more, and its config no longer
says that it is quantised.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

from typing_extensions import override

from weightsurgery.checkpoint.derived import Derived
from weightsurgery.checkpoint.header import (
    BITS,
    ShardHeader,
    TensorEntry,
    encode_header,
    parse_header,
)
from weightsurgery.checkpoint.layout import Layout
from weightsurgery.checkpoint.quantised import (
    FP8,
    INPUT_SCALES,
    MARKERS,
    known_scale,
    matrices,
    quantisation,
)
from weightsurgery.checkpoint.reader import Checkpoint, torch_dtype
from weightsurgery.deferred import torch
from weightsurgery.errors import UnsupportedCheckpointError

__all__ = ["Dequantised", "dequantised", "without_quantisation"]

_BLOCK = 128  # of those whose config names none and whose last block is cut off
_DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
_CONFIGS = ("quantization_config", "compression_config")


def dequantised(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint, read as numbers if it holds float8 codes, and itself if it holds numbers.

    Raises:
        UnsupportedCheckpointError: It is quantised in another way, or not all scales are known.
    """
    if quantisation(checkpoint) is None:
        checkpoint.dequantises = True
        return checkpoint
    codes = list(matrices(checkpoint.entries))
    names = {entry.name: known_scale(checkpoint.entries, entry) for entry in codes}
    without = [name for name, scale in names.items() if scale is None]
    declared = any(checkpoint.text_config.get(key) for key in _CONFIGS)
    if not codes or (without and (declared or len(without) < len(names))):
        what = f"tensor {without[0]!r} has no scales beside it" if without else "no float8 weights"
        raise UnsupportedCheckpointError(
            f"{checkpoint.source.name}: quantised, {quantisation(checkpoint)}; {what}",
            "Use the unquantised checkpoint it was made from, or load it with the library that"
            " wrote it, dequantise it there and save it.",
        )
    scales = {name: _Scale(checkpoint, checkpoint.entry(name), key) for name, key in names.items()}
    beside = {each.name for each in scales.values()}
    left = {name for name in checkpoint.entries if name in beside or _is_no_weight(name)}
    for name, entry in checkpoint.entries.items():
        if name in left or name in scales or entry.dtype not in ("U8", "I8", "I32", *FP8):
            continue
        if len(entry.shape) > 1:
            raise UnsupportedCheckpointError(
                f"{checkpoint.source.name}: tensor {name!r} is {entry.dtype}, beside float8"
                " weights: codes of another kind",
                "Use the unquantised checkpoint it was made from.",
            )
    return Dequantised(checkpoint, scales, left)


def _is_no_weight(name: str) -> bool:
    return name in MARKERS or name.rpartition(".")[2] in INPUT_SCALES


class _Scale:
    """The scales that the codes of one matrix are multiplied by.

    Args:
        checkpoint: Where both are stored.
        entry: The codes, ``(..., rows, columns)``.
        name: The scales; None for codes that are the numbers themselves.
    """

    def __init__(self, checkpoint: Checkpoint, entry: TensorEntry, name: str | None) -> None:
        self._checkpoint, self._entry, self.name = checkpoint, entry, name
        self._rows, self._columns = entry.shape[-2:]
        self._stack = math.prod(entry.shape[:-2])
        self._grid = (1, 1, 1)
        if name is not None:
            self._grid = self._fit(checkpoint.entry(name).shape)
        self._block = tuple(
            self._step(size, count, axis)
            for axis, (size, count) in enumerate(
                zip((self._rows, self._columns), self._grid[1:], strict=True)
            )
        )

    def _fit(self, shape: tuple[int, ...]) -> tuple[int, int, int]:
        """The scales as (matrices, rows, columns) of blocks."""
        stack, count = self._stack, math.prod(shape)
        if count == 1:
            return 1, 1, 1
        if len(shape) == len(self._entry.shape) and shape[:-2] == self._entry.shape[:-2]:
            return stack, shape[-2], shape[-1]
        if shape == (*self._entry.shape[:-2], self._rows):
            return stack, self._rows, 1
        if shape == self._entry.shape[:-2]:
            return stack, 1, 1
        raise self._unfit(shape)

    def _step(self, size: int, count: int, axis: int) -> int:
        """Rows or columns of a block."""
        for key in _CONFIGS:
            settings = self._checkpoint.text_config.get(key)
            block = settings.get("weight_block_size") if isinstance(settings, dict) else None
            if isinstance(block, list) and len(block) == 2 and count > 1:
                step = block[axis]
                if isinstance(step, int) and step > 0 and -(-size // step) == count:
                    return step
        if 0 < count <= size and size % count == 0:
            return size // count
        if -(-size // _BLOCK) == count:
            return _BLOCK
        assert self.name is not None
        raise self._unfit(self._checkpoint.entry(self.name).shape)

    def _unfit(self, shape: tuple[int, ...]) -> UnsupportedCheckpointError:
        return UnsupportedCheckpointError(
            f"{self._checkpoint.source.name}: scales {self.name!r} {list(shape)} are none of"
            f" {self._entry.name!r} {list(self._entry.shape)}",
            "Use the unquantised checkpoint it was made from.",
        )

    def times(self, codes: torch.Tensor, start: int) -> torch.Tensor:
        """Codes of some rows, float32, times their scales; in place.

        Args:
            codes: Shape ``(n, columns)``.
            start: The first of these rows, of all matrices' rows.
        """
        if self.name is None:
            return codes
        grid = self._checkpoint.remember(f"scale of {self._entry.name}", self._read)
        rows = torch.arange(start, start + codes.shape[0])
        matrix = rows // self._rows if grid.shape[0] > 1 else torch.zeros_like(rows)
        chosen = grid[matrix, (rows % self._rows) // self._block[0]]  # (n, blocks of columns)
        return codes.mul_(chosen.repeat_interleave(self._block[1], 1)[:, : self._columns])

    def _read(self) -> torch.Tensor:
        assert self.name is not None
        entry = self._checkpoint.entry(self.name)
        if entry.dtype in ("F8_E8M0", "U8"):  # exponents
            raw = torch.frombuffer(self._checkpoint.read_bytes(self.name), dtype=torch.uint8)
            return (raw.float() - 127).exp2().reshape(self._grid)
        return self._checkpoint.tensor(self.name).float().reshape(self._grid)


class Dequantised(Derived):
    """A float8 checkpoint read as numbers; see the module's text.

    Args:
        inner: As it is stored.
        scales: By the names of the matrices.
        left: Tensors that are not the model's, such as scales.
    """

    dequantises = True

    def __init__(self, inner: Checkpoint, scales: Mapping[str, _Scale], left: set[str]) -> None:
        declared = inner.text_config.get("torch_dtype") or inner.text_config.get("dtype")
        dtype = _DTYPES.get(str(declared).removeprefix("torch."), "BF16")
        shards: dict[str, ShardHeader] = {}
        entries: dict[str, TensorEntry] = {}
        for name, header in inner.shards.items():
            wanted = [
                (entry.name, dtype if entry.name in scales else entry.dtype, entry.shape)
                for entry in header.entries
                if entry.name not in left
            ]
            if not wanted:
                continue
            raw = encode_header(wanted, header.metadata)
            size = len(raw) + sum(math.prod(shape) * BITS[new] // 8 for _, new, shape in wanted)
            converted = parse_header(name, size, partial(_part, raw))
            shards[name] = converted
            entries |= {entry.name: entry for entry in converted.entries}
        super().__init__(inner, Layout(shards, entries, inner.layout.index_name))
        self._scales = scales
        scaled = sum(scale.name is not None for scale in scales.values())
        codes = f"times their scales ({scaled})" if scaled else "as they are, there being no scales"
        self.notes = (
            f"{inner.source.name}: {len(scales)} float8 matrices are read as {dtype}:"
            f" codes {codes}.",
        )

    @property
    def config(self) -> dict[str, Any]:
        """``config.json`` without its quantisation settings."""
        return without_quantisation(self.inner.config)

    def read_into(self, entry: TensorEntry, offset: int, buffer: memoryview) -> None:
        """See :meth:`Checkpoint.read_into`; works out the rows that the bytes lie in."""
        if entry.name not in self._scales:
            self.inner.read_into(self.inner.entry(entry.name), offset, buffer)
            return
        if offset < 0 or offset + len(buffer) > entry.nbytes:
            raise ValueError(f"bytes {offset}+{len(buffer)} outside tensor {entry.name!r}")
        if not len(buffer):
            return
        start, stop = offset // entry.row_bytes, -(-(offset + len(buffer)) // entry.row_bytes)
        codes = self.inner.rows(entry.name, start, stop).float()
        rows = self._scales[entry.name].times(codes, start).to(torch_dtype(entry.dtype))
        first = offset - start * entry.row_bytes
        view = memoryview(rows.contiguous().view(-1).view(torch.uint8).numpy().data)
        buffer[:] = view[first : first + len(buffer)]

    def read_shard_into(self, shard: str, offset: int, buffer: memoryview) -> None:
        """There is no such file.

        Raises:
            NotImplementedError: Always.
        """
        raise NotImplementedError(f"{shard} is not stored as it is read")

    @override
    def inner_names(self, names: Iterable[str]) -> list[str]:
        wanted = list(names)
        scales = [self._scales[name].name for name in wanted if name in self._scales]
        return [*wanted, *(scale for scale in scales if scale is not None)]


def _part(raw: bytes, start: int, length: int) -> bytes:
    return raw[start : start + length]


def without_quantisation(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config without quantisation settings, nested ones included."""
    return {
        key: without_quantisation(value) if isinstance(value, dict) else value
        for key, value in config.items()
        if key not in _CONFIGS
    }
