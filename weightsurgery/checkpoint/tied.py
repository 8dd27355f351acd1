"""Tied weights: two names for one matrix, as input embedding and output head often are.

A file may store both names, or one of them; base and fine-tuned need not agree on that. This module
decides which stored names are copies of each other, and where a name that is not stored can be
read.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

from weightsurgery.checkpoint.naming import kind_of, twin_candidates
from weightsurgery.checkpoint.reader import Checkpoint

__all__ = ["is_tied", "same_bytes", "stored_name", "tied_copies"]

_BLOCK = 1 << 22

# Heads up to which each is compared with each embedding, up to the first difference.
_FEW = 16


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

    Reads both tensors where a head and an embedding of one shape are stored, up to the first
    difference, once per checkpoint.

    Returns:
        Copy → the name it is tied to (the input embedding): pairs of equal bytes, unless the
        config says that they are not tied. A head that was trained apart is not tied, whatever
        the config says.
    """
    return checkpoint.remember("tied copies", lambda: _find_copies(checkpoint))


def _find_copies(checkpoint: Checkpoint) -> dict[str, str]:
    if checkpoint.text_config.get("tie_word_embeddings") is False:
        return {}
    names, copies = list(checkpoint.entries), {}
    heads = [name for name in names if kind_of(name) == "head"]
    if len(heads) > _FEW:
        return _copies_among(checkpoint, heads, names)
    for name in heads:
        for other in twin_candidates(name, names):
            if same_bytes(checkpoint, name, other):
                copies[name] = other
                break
    return copies


def _copies_among(
    checkpoint: Checkpoint, heads: Sequence[str], names: Sequence[str]
) -> dict[str, str]:
    """The same by digests: each tensor is read once, however many there are to compare it with."""
    first: dict[object, str] = {}
    for name in twin_candidates("lm_head.weight", names):  # the same for every head
        first.setdefault(_content(checkpoint, name), name)
    originals = {
        name: first.get(_content(checkpoint, name))
        for name in heads
        if twin_candidates(name, ["embed_tokens.weight"])
    }
    return {name: other for name, other in originals.items() if other is not None}


def _content(checkpoint: Checkpoint, name: str) -> object:
    entry, digest = checkpoint.entry(name), hashlib.sha256()
    for start in range(0, entry.nbytes, _BLOCK):
        digest.update(checkpoint.read_bytes(name, start, min(start + _BLOCK, entry.nbytes)))
    return entry.dtype, entry.shape, digest.digest()


def is_tied(checkpoint: Checkpoint, name: str) -> bool:
    """Whether a stored tensor is input embedding and output head in one, in memory.

    Where one of the two is stored they are one, unless the config says otherwise; where both are,
    they are one if they are copies. In models of an encoder and a decoder both halves share the
    embedding, and the head with them unless the config says otherwise.
    """
    if kind_of(name) != "head" and not twin_candidates(name, ["lm_head.weight"]):
        return False
    config = checkpoint.text_config
    untied = config.get("tie_word_embeddings") is False
    if config.get("is_encoder_decoder"):
        return kind_of(name) != "head" or not untied
    if not twin_candidates(name, list(checkpoint.entries)):
        return not untied
    copies = tied_copies(checkpoint)
    return name in copies or name in copies.values()


def stored_name(checkpoint: Checkpoint, name: str, like: Checkpoint) -> str | None:
    """Where a tensor can be read: its own name, or its twin's when that stands for both.

    A twin stands for a name that is not stored if the config ties them; if ``like`` holds both as
    copies of each other; or if ``like`` stores only one of the two, as this checkpoint does, and
    the config does not say that they are apart.

    Args:
        checkpoint: Where the tensor is to be read.
        name: A tensor of ``like``.
        like: The checkpoint this one is compared with.

    Returns:
        None when the tensor is missing.
    """
    if name in checkpoint.entries:
        return name
    twins = twin_candidates(name, list(checkpoint.entries))
    if len(twins) != 1:
        return None
    declared = checkpoint.text_config.get("tie_word_embeddings")
    copies = tied_copies(like)
    theirs = twin_candidates(name, list(like.entries))
    tied = (
        declared is True
        or any({name, twin} == {copy, original} for twin in theirs
               for copy, original in copies.items())
        or (not theirs and declared is None)
    )  # fmt: skip
    return twins[0] if tied else None
