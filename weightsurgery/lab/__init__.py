"""The lab: a small world with known facts, the yardstick on it, and the demo.

Nothing but the commands ``ws bench`` and ``ws demo`` imports this room.
"""

__all__: list[str] = []
