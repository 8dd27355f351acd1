"""A checkpoint that is read through another one, and has its files."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from typing_extensions import override

from weightsurgery.checkpoint.layout import Layout
from weightsurgery.checkpoint.reader import Checkpoint

__all__ = ["Derived"]


class Derived(Checkpoint):
    """Other tensors of the same files.

    Args:
        inner: As it is stored; closed with this one.
        layout: Its tensors as they are read here.
    """

    as_stored = False

    def __init__(self, inner: Checkpoint, layout: Layout) -> None:
        super().__init__(inner.source, layout)
        self.inner = inner

    def inner_names(self, names: Iterable[str]) -> list[str]:
        """The stored tensors that these are read from."""
        return list(names)

    @property
    @override
    def config(self) -> dict[str, Any]:
        return self.inner.config

    @property
    @override
    def remote(self) -> bool:
        return self.inner.remote

    @property
    @override
    def fetched(self) -> int:
        return self.inner.fetched

    @property
    @override
    def to_download(self) -> int:
        return self.inner.to_download

    @override
    def absent(self, names: Iterable[str]) -> int:
        return self.inner.absent(self.inner_names(names))

    @override
    def prefetch(self, names: Iterable[str]) -> None:
        self.inner.prefetch(self.inner_names(names))

    @override
    def file(self, name: str) -> Path | None:
        return self.inner.file(name)

    @override
    def files_read(self) -> list[Path]:
        return self.inner.files_read()

    @override
    def close(self) -> None:
        self.inner.close()
        super().close()
