"""The callback by which long work reports its progress."""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["Progress"]

Progress = Callable[[str, int, int], None]
"""Called as ``progress(text, done, total)``: the stage, and how much of it is done."""
