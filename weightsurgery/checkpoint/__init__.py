"""Bytes on disk: where a checkpoint is, what it holds, reading and writing it."""

from __future__ import annotations

__all__: list[str] = []
