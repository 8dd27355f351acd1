"""SHA-256 of files that grow side by side: two at a time where the processor can.

The digests are those of :mod:`hashlib`, which ``ws verify`` uses: an output that passes has been
hashed by two independent programs.
"""

from __future__ import annotations

import contextlib
import hashlib
import struct
from collections.abc import Callable, Sequence
from importlib import import_module

__all__ = ["PAIRED", "Sha256", "update_each"]

_update: Callable[..., None] | None = None
with contextlib.suppress(ImportError):
    _update = import_module("weightsurgery.checkpoint._sha256").update

# Whether two streams can be hashed at a time.
PAIRED = _update is not None

_BLOCK = 64
_START = (
    0x6A09E667, 0xBB67AE85, 0x3C6EF372, 0xA54FF53A, 0x510E527F, 0x9B05688C, 0x1F83D9AB, 0x5BE0CD19,
)  # fmt: skip


class Sha256:
    """A running SHA-256, as :func:`hashlib.sha256` but for what :func:`update_each` does."""

    def __init__(self) -> None:
        self._plain = hashlib.sha256() if _update is None else None
        self._state = bytearray(struct.pack("=8I", *_START))
        self._rest = b""
        self._length = 0

    def update(self, data: memoryview | bytes) -> None:
        """Add bytes."""
        if _update is None or self._plain is not None:
            assert self._plain is not None
            self._plain.update(data)
            return
        self._length += len(data)
        view = memoryview(data)
        if self._rest:
            missing = _BLOCK - len(self._rest)
            self._rest += bytes(view[:missing])
            view = view[missing:]
            if len(self._rest) < _BLOCK:
                return
            _update(self._state, self._rest)
        whole = len(view) // _BLOCK * _BLOCK
        _update(self._state, view[:whole])
        self._rest = bytes(view[whole:])

    def hexdigest(self) -> str:
        """The digest of what was added so far."""
        if _update is None or self._plain is not None:
            assert self._plain is not None
            return self._plain.hexdigest()
        end = self._rest + b"\x80"
        end += bytes(-(len(end) + 8) % _BLOCK) + struct.pack(">Q", 8 * self._length)
        state = bytearray(self._state)
        _update(state, end)
        return struct.pack(">8I", *struct.unpack("=8I", state)).hex()


def update_each(pairs: Sequence[tuple[Sha256, memoryview]]) -> None:
    """Add to each hash its bytes; two of them together as far as both have whole blocks."""
    rest = list(pairs)
    while len(rest) > 1 and _update is not None:
        (one, first), (two, second), *rest = rest
        together = min(len(first), len(second)) // _BLOCK * _BLOCK
        if one._rest or two._rest or one._plain or two._plain:
            together = 0
        _update(one._state, first[:together], two._state, second[:together])
        for digest, data in ((one, first), (two, second)):
            digest._length += together
            digest.update(data[together:])
    for digest, data in rest:
        digest.update(data)
