"""Training on losses that forget: what the methods that are such a loss share.

The methods are in :mod:`weightsurgery.unlearning.methods`, a file each.
"""

__all__: list[str] = []
