"""An edit applied to a checkpoint: which tensors, which change, and the streaming of both."""

from __future__ import annotations

__all__: list[str] = []
