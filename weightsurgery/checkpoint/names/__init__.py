"""One model under two namings: what another checkpoint's tensors are in the base's words."""

from __future__ import annotations

__all__: list[str] = []
