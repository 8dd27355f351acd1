"""Whole operations that need both roads: the weights on disk and a forward pass."""

__all__: list[str] = []
