"""Arithmetic of elementwise edits, on the processor or on GPUs, and its memory.

Both give the same bits. Moving the bytes is what takes time, so the processor is the default; a GPU
pays where the processor has other work, or is slower than the disk.
"""

from __future__ import annotations

import itertools
import mmap
import threading
from collections.abc import Hashable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

from weightsurgery.algebra.elementwise import Term, combine
from weightsurgery.algebra.rounding import ChangeStats
from weightsurgery.checkpoint.reader import torch_dtype
from weightsurgery.deferred import torch

__all__ = ["Arithmetic", "Buffers", "OnDevices", "OnHost", "arithmetic_on", "devices_named"]


class Buffers(threading.local):
    """Page-aligned memory by name, one set per thread; it ends with the thread."""

    def __init__(self) -> None:
        self._memory: dict[Hashable, Any] = {}

    def get(self, name: Hashable, size: int) -> memoryview:
        """``size`` writable bytes; the same memory for the same name."""
        if name not in self._memory or len(self._memory[name]) < size:
            self._memory[name] = self._allocate(max(size, mmap.PAGESIZE))
        return memoryview(self._memory[name])[:size]

    def _allocate(self, size: int) -> Any:
        return mmap.mmap(-1, size)


class Arithmetic(Protocol):
    """Adds terms to weights; see :func:`weightsurgery.algebra.elementwise.combine`."""

    def buffers(self) -> Buffers:
        """Memory for operands and results."""
        ...

    def combine(self, base: Any, dtype: str, terms: Sequence[Term], out: Any) -> ChangeStats:
        """Write ``base`` plus the terms to ``out``, which may be ``base``."""
        ...


class OnHost:
    """One pass on the processor, in the calling thread."""

    def buffers(self) -> Buffers:
        """See :class:`Arithmetic`."""
        return Buffers()

    def combine(self, base: Any, dtype: str, terms: Sequence[Term], out: Any) -> ChangeStats:
        """See :class:`Arithmetic`."""
        return combine(base, dtype, terms, out)


class _PinnedBuffers(Buffers):
    """Page-locked memory, which a GPU copies from and to by itself."""

    def _allocate(self, size: int) -> Any:
        return torch.empty(size, dtype=torch.uint8, pin_memory=True).numpy().data


class OnDevices:
    """The same, operation by operation, on GPUs (or, for tests, on the CPU through torch).

    A thread has its own stream on one of the devices, so that the copies of one window run beside
    the arithmetic of another; the threads' buffers bound what is in flight.

    Args:
        devices: At least one; threads take them in turn.
    """

    def __init__(self, devices: Sequence[torch.device]) -> None:
        self._devices = tuple(devices)
        self._turn = itertools.count()
        self._local = threading.local()

    def buffers(self) -> Buffers:
        """See :class:`Arithmetic`."""
        return _PinnedBuffers() if self._devices[0].type == "cuda" else Buffers()

    def combine(self, base: Any, dtype: str, terms: Sequence[Term], out: Any) -> ChangeStats:
        """See :class:`Arithmetic`; no operation is fused with another, so every one rounds."""
        device, stream = self._device_and_stream()
        with stream:
            stored = _copied(base, dtype, device)
            weights = stored.float()
            meant: torch.Tensor | None = None
            for term in terms:
                addend = _copied(term.data, term.dtype, device).float()
                if term.relative:
                    addend = addend - weights
                addend = addend * term.factor
                meant = addend if meant is None else meant + addend
            assert meant is not None
            after = torch.where(meant != 0, (weights + meant).to(stored.dtype), stored)
            sums = _sums(weights, meant, after.float())
            result = torch.frombuffer(out, dtype=torch.uint8)
            result.copy_(after.view(torch.uint8), non_blocking=True)
            totals = sums.tolist()  # waits for the stream, and so for the copy before it
        counts = int(totals[5]), int(totals[6])
        return ChangeStats(totals[0], totals[1], totals[2], totals[3], totals[4], *counts)

    def _device_and_stream(self) -> tuple[torch.device, AbstractContextManager[Any]]:
        """This thread's device, and its stream to enter."""
        if not hasattr(self._local, "device"):
            device = self._devices[next(self._turn) % len(self._devices)]
            self._local.device = device
            stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
            self._local.stream = stream
        device, stream = self._local.device, self._local.stream
        return device, torch.cuda.stream(stream) if stream is not None else nullcontext()


def _copied(data: Any, dtype: str, device: torch.device) -> torch.Tensor:
    raw = torch.frombuffer(data, dtype=torch.uint8).to(device, non_blocking=True, copy=True)
    return raw.view(torch_dtype(dtype))


def _sums(weights: torch.Tensor, meant: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    """The seven sums of :class:`ChangeStats` as float64, on the device."""
    w, d, r = weights.double(), meant.double(), (after - weights).double()
    wanted = d != 0
    sums = [w @ w, d @ d, r @ r, (r - d) @ (r - d), w @ d]
    counts = [wanted.sum().double(), (wanted & (r != 0)).sum().double()]
    return torch.stack([*sums, *counts])


def devices_named(device: str) -> list[str]:
    """``cuda`` is all GPUs there are, ``cuda:1`` that one, ``cpu`` the processor."""
    if device != "cuda":
        return [device]
    return [f"cuda:{number}" for number in range(torch.cuda.device_count())]


def arithmetic_on(device: str) -> Arithmetic:
    """On the processor for ``cpu``, else on the GPUs of this name."""
    if device == "cpu":
        return OnHost()
    return OnDevices([torch.device(name) for name in devices_named(device)])
