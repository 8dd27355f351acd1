"""What trainers' wrappers leave in the names of tensors, and the names without it.

``torch.compile``, data parallelism, FSDP, activation checkpointing and Lightning each hold the
model, or modules inside it, in a module of their own, whose name stands in every name below it.
"""

from __future__ import annotations

from collections.abc import Iterable

from weightsurgery.errors import MismatchError

__all__ = ["WRAPPERS", "plain_names", "unwrapped"]

WRAPPERS = (
    "_orig_mod",
    "_fsdp_wrapped_module",
    "_fpw_module",
    "_checkpoint_wrapped_module",
    "_forward_module",
    "module",
)


def unwrapped(name: str) -> tuple[str, tuple[str, ...]]:
    """A name without the wrappers in it, and those wrappers."""
    parts = name.split(".")
    wrappers = tuple(part for part in parts if part in WRAPPERS)
    if not wrappers or len(wrappers) == len(parts):
        return name, ()
    return ".".join(part for part in parts if part not in WRAPPERS), wrappers


def plain_names(names: Iterable[str], where: str) -> dict[str, str]:
    """Plain name → the name as stored.

    Args:
        names: As stored.
        where: The checkpoint, for messages.

    Raises:
        MismatchError: Two names are one without their wrappers.
    """
    stored: dict[str, str] = {}
    for name in names:
        plain, _ = unwrapped(name)
        if plain in stored:
            raise MismatchError(
                f"{where}: holds {stored[plain]!r} and {name!r}, which are one tensor without the"
                " wrappers of a trainer",
                "Save it again from the unwrapped model, so that each tensor is there once.",
            )
        stored[plain] = name
    return stored
