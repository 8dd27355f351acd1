"""What ``ws demo`` shows: the main job on a real language model, or all edits on a small world."""

__all__: list[str] = []
