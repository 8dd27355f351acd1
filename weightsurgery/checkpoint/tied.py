"""Tied weights: two names for one matrix, as input embedding and output head often are.

A file may store both names, or one of them; base and fine-tuned need not agree on that. What is
decided here: which stored names are copies of each other, and where a name that is not stored
can be read.
"""

from __future__ import annotations

from collections.abc import Mapping

from weightsurgery.checkpoint.naming import kind_of, twin_candidates
from weightsurgery.checkpoint.reader import Checkpoint

__all__ = ["same_bytes", "stored_name", "tied_copies"]

_BLOCK = 1 << 22


def same_bytes(checkpoint: Checkpoint, first: str, second: str) -> bool:
    """Whether two tensors of a checkpoint hold the same bytes; stops at the first difference."""
    a, b = checkpoint.entry(first), checkpoint.entry(second)
    if (a.dtype, a.shape) != (b.dtype, b.shape):
        return False
    return all(
        checkpoint.read_bytes(first, start, min(start + _BLOCK, a.nbytes))
        == checkpoint.read_bytes(second, start, min(start + _BLOCK, a.nbytes))
        for start in range(0, a.nbytes, _BLOCK)
    )


def tied_copies(checkpoint: Checkpoint) -> Mapping[str, str]:
    """Names that are stored although they are tied to another stored name.

    Returns:
        Copy → the name it is tied to (the input embedding). Only when the config says
        ``tie_word_embeddings`` and the bytes are equal: a head that was trained apart is not
        tied, whatever the config says.
    """
    if not checkpoint.text_config.get("tie_word_embeddings", False):
        return {}
    names, copies = list(checkpoint.entries), {}
    for name in names:
        if kind_of(name) != "head":
            continue
        for other in twin_candidates(name, names):
            if same_bytes(checkpoint, name, other):
                copies[name] = other
                break
    return copies


def stored_name(checkpoint: Checkpoint, name: str) -> str | None:
    """Where a tensor can be read: its own name, or its twin's when only that is stored.

    Returns:
        None when the checkpoint has neither.
    """
    if name in checkpoint.entries:
        return name
    if checkpoint.text_config.get("tie_word_embeddings", True) is False:
        return None
    twins = twin_candidates(name, list(checkpoint.entries))
    return twins[0] if len(twins) == 1 else None
