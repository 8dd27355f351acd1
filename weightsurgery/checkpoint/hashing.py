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

# Whole blocks into a state; and the same where the processor does it faster than hashlib.
_blocks: Callable[..., None] | None = None
_update: Callable[..., None] | None = None
with contextlib.suppress(ImportError):
    _compiled = import_module("weightsurgery.checkpoint._sha256")
    _blocks = _compiled.update
    _update = _blocks if getattr(_compiled, "native", True) else None

# Whether two streams can be hashed at a time.
PAIRED = _update is not None

_BLOCK = 64
_START = (
    0x6A09E667, 0xBB67AE85, 0x3C6EF372, 0xA54FF53A, 0x510E527F, 0x9B05688C, 0x1F83D9AB, 0x5BE0CD19,
)  # fmt: skip


class Sha256:
    """A running SHA-256, as :func:`hashlib.sha256` but for what :func:`update_each` does.

    Args:
        state: What :meth:`state` gave, to go on from there; ``""`` to begin a hash of which it may
            be asked. None for one of this process alone.

    Raises:
        NotImplementedError: A state is wanted, and the compiled part is not here.
    """

    def __init__(self, state: str | None = None) -> None:
        if state is not None and _blocks is None:
            raise NotImplementedError("the package was installed without its compiled SHA-256")
        self._plain = hashlib.sha256() if _update is None and state is None else None
        self._state = bytearray(struct.pack("=8I", *_START))
        self._rest = b""
        self._length = 0
        if state:
            words, rest, length = state.split(":")
            self._state = bytearray(struct.pack("=8I", *struct.unpack(">8I", bytes.fromhex(words))))
            self._rest, self._length = bytes.fromhex(rest), int(length)

    def state(self) -> str:
        """What was added so far, for a hash that goes on from here, on any machine."""
        words = struct.pack(">8I", *struct.unpack("=8I", self._state)).hex()
        return f"{words}:{self._rest.hex()}:{self._length}"

    def update(self, data: memoryview | bytes) -> None:
        """Add bytes."""
        if self._plain is not None:
            self._plain.update(data)
            return
        assert _blocks is not None
        self._length += len(data)
        view = memoryview(data)
        if self._rest:
            missing = _BLOCK - len(self._rest)
            self._rest += bytes(view[:missing])
            view = view[missing:]
            if len(self._rest) < _BLOCK:
                return
            _blocks(self._state, self._rest)
        whole = len(view) // _BLOCK * _BLOCK
        _blocks(self._state, view[:whole])
        self._rest = bytes(view[whole:])

    def hexdigest(self) -> str:
        """The digest of what was added so far."""
        if self._plain is not None:
            return self._plain.hexdigest()
        assert _blocks is not None
        end = self._rest + b"\x80"
        end += bytes(-(len(end) + 8) % _BLOCK) + struct.pack(">Q", 8 * self._length)
        state = bytearray(self._state)
        _blocks(state, end)
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
