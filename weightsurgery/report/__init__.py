"""What people look at: terminal tables, and one self-contained HTML page."""

from __future__ import annotations

__all__: list[str] = []
