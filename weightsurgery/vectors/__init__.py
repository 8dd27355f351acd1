"""Changes to a checkpoint, wherever they come from."""

from __future__ import annotations

__all__: list[str] = []
