"""The command ``ws``: parse, one library call, render."""

from __future__ import annotations

__all__: list[str] = []
