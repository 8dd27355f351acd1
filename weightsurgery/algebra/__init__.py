"""Tensors in, tensors out: no files, and no names of models."""

from __future__ import annotations

__all__: list[str] = []
