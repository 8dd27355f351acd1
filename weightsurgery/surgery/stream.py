"""One tensor at a time: copy its bytes, or compute its change and add it in row blocks."""

from __future__ import annotations

import threading
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from weightsurgery.algebra.elementwise import DTYPES, Term, combine
from weightsurgery.algebra.rounding import ChangeStats, compute_dtype, generator_for, round_to
from weightsurgery.checkpoint.layout import TensorEntry
from weightsurgery.checkpoint.reader import Checkpoint, torch_dtype
from weightsurgery.deferred import torch
from weightsurgery.errors import NonFiniteError
from weightsurgery.progress import Progress
from weightsurgery.surgery.arithmetic import devices_named
from weightsurgery.surgery.edit import Edit, Prepared, refuse_non_finite
from weightsurgery.surgery.plan import EditPlan

if TYPE_CHECKING:
    from weightsurgery.surgery.as_checkpoint import Storage

__all__ = ["Stream", "TensorWriter"]


class TensorWriter(Protocol):
    """Where a tensor's bytes go; see :class:`weightsurgery.checkpoint.writer.CheckpointWriter`."""

    @property
    def entries(self) -> Mapping[str, TensorEntry]:
        """The output's tensors."""
        ...

    def write(self, name: str, offset: int, data: memoryview | bytes) -> None:
        """Write a part of a tensor's bytes; those of one tensor come in order."""
        ...

    def copy(self, name: str, base: Checkpoint) -> None:
        """Copy a tensor's bytes from the base."""
        ...

    def finish(self, name: str, facts: dict[str, Any]) -> None:
        """Mark a tensor as written."""
        ...


_W = TypeVar("_W", bound=TensorWriter)


def _bytes(tensor: torch.Tensor) -> memoryview:
    return memoryview(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)


@dataclass
class Stream(Generic[_W]):
    """One run over a checkpoint's tensors.

    Attributes:
        edit: What to do.
        base: The checkpoint to edit.
        plan: The tensors to edit, and the output's headers.
        storage: dtype and rounding of the result.
        device: Where matrices are decomposed.
        writer: Where results go.
        progress: Called as ``progress(stage, done, total)`` in bytes.
        total: Bytes of work in all.
        done: Bytes done so far.
    """

    edit: Edit
    base: Checkpoint
    plan: EditPlan
    storage: Storage
    device: str
    writer: _W
    progress: Progress | None
    total: int
    done: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def advance(self, stage: str, count: int) -> None:
        """Count bytes as done."""
        with self.lock:
            self.done += count
            if self.progress is not None:
                self.progress(stage, self.done, self.total)

    def tensor(self, name: str) -> None:
        """Copy or edit one tensor."""
        entry = self.base.entry(name)
        original = self.plan.copies.get(name, name)
        factor = self.plan.edited.get(name)
        prepared = self.prepared(name) if factor is not None and entry.numel else None
        facts: dict[str, Any] = {}
        target = self.writer.entries[name]
        if prepared is not None and factor is not None:
            scale = self.edit.sign * self.edit.scale * factor
            stats = self._edit(entry, target, prepared, original, scale)
            facts = {"stats": asdict(stats), "factor": factor, **prepared.facts}
        elif target.dtype == entry.dtype:
            self.writer.copy(name, self.base)
            self.advance(self.edit.name, entry.nbytes)
        else:
            self._edit(entry, target, None, original, 0.0)
        self.writer.finish(name, facts)

    def prepared(self, name: str) -> Prepared | None:
        """Compute one tensor's change; None where there is none."""
        original = self.plan.copies.get(name, name)
        return self.edit.prepare(self.base, original, self.device_for(original))

    def device_for(self, name: str) -> str:
        """The GPU of a tensor, by a hash of its name; a tied copy goes where its original went."""
        devices = devices_named(self.device)
        return devices[zlib.crc32(name.encode()) % len(devices)]

    def _edit(
        self,
        entry: TensorEntry,
        target: TensorEntry,
        prepared: Prepared | None,
        original: str,
        scale: float,
    ) -> ChangeStats:
        """Add a tensor's change block by block; also converts where only the dtype changes."""
        stats = ChangeStats()
        stored = torch_dtype(target.dtype)
        wide = compute_dtype(torch_dtype(entry.dtype))
        if stored == torch.float64:
            wide = torch.float64
        for start, stop in entry.blocks():
            raw = self.base.rows(entry.name, start, stop)
            before = raw.to(wide)
            meant = torch.zeros_like(before)
            generator = None
            if prepared is not None:
                prepared.delta.add_rows(meant, start, stop, scale, before)
                if self.storage.rounding == "stochastic":
                    generator = generator_for(self.storage.seed, original, start)
            if raw.dtype == stored and entry.dtype in DTYPES and generator is None:
                after = torch.empty_like(raw)
                terms = [Term(_bytes(meant), "F32", 1.0, relative=False)]
                stats.merge(combine(_bytes(raw), entry.dtype, terms, _bytes(after)))
            else:
                after = round_to(before + meant, stored, generator)
                # Against what would be stored without the change: a narrower dtype rounds that too.
                unchanged = before if raw.dtype == stored else before.to(stored).to(wide)
                stats.add(unchanged, meant, after.to(wide))
                if raw.dtype == stored:
                    after = torch.where(meant != 0, after, raw)  # −0 + 0 would lose its sign
            if prepared is None:
                self._check_conversion(entry, target, before, after)
            elif not stats.finite:
                self._check_finite(entry, target, before, meant, after)
            self.writer.write(entry.name, start * target.row_bytes, _bytes(after))
            self.advance(self.edit.name, (stop - start) * entry.row_bytes)
        return stats

    def _check_conversion(
        self, entry: TensorEntry, target: TensorEntry, before: torch.Tensor, after: torch.Tensor
    ) -> None:
        """Masks may hold infinity; a finite weight may not become infinite."""
        if (torch.isfinite(before) & ~torch.isfinite(after.to(before.dtype))).any():
            raise NonFiniteError(
                f"tensor {entry.name!r} ({self.base.path / entry.shard}): its weights overflow"
                f" {target.dtype}",
                "Use --dtype float32 or bfloat16.",
            )

    def _check_finite(
        self,
        entry: TensorEntry,
        target: TensorEntry,
        before: torch.Tensor,
        meant: torch.Tensor,
        after: torch.Tensor,
    ) -> None:
        checks = [
            bool(torch.isfinite(part).all()) for part in (before, meant, after.to(meant.dtype))
        ]
        if not all(checks):
            refuse_non_finite(self.edit, self.base, entry, target.dtype, checks[0], checks[1])
