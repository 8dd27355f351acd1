"""Exact float32 matrix products, whether or not TF32 is allowed.

Environments allow it (``TORCH_ALLOW_TF32_CUBLAS_OVERRIDE``, as NVIDIA's images set it), programs do
(``torch.set_float32_matmul_precision``), and so do Trainer's settings, for the whole process. Ten
bits of a product are enough to train by, not for a decomposition that goes on until its residuals
are small.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from weightsurgery.deferred import torch

__all__ = ["exact_products", "kept_precision"]

# For the whole process, where it is consistent, and for each backend with a setting of its own.
_Settings = tuple[str | None, dict[str, str]]

_lock = threading.Lock()
_before: list[_Settings] = []  # one for each context inside; all hold the setting before the first


@contextmanager
def exact_products() -> Iterator[None]:
    """A context with IEEE float32 matrix products; restores the previous setting at its end.

    The setting is the process's: with more than one thread inside, the last one to leave restores
    it. Serves as a decorator too.
    """
    with _lock:
        _before.append(_before[0] if _before else _settings())
        torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        with _lock:
            before = _before.pop()
            if not _before:
                _set(before)


@contextmanager
def kept_precision() -> Iterator[None]:
    """A context whose changes of the setting, as Trainer's for its ``tf32``, are undone."""
    before = _settings()
    try:
        yield
    finally:
        _set(before)


def _settings() -> _Settings:
    try:
        whole: str | None = torch.get_float32_matmul_precision()
    except RuntimeError:  # set in ways that contradict each other; then each place's own counts
        whole = None
    return whole, {name: place.fp32_precision for name, place in _places().items()}


def _set(settings: _Settings) -> None:
    whole, by_place = settings
    if whole is not None:
        torch.set_float32_matmul_precision(whole)
    for name, place in _places().items():
        if place.fp32_precision != by_place[name]:
            place.fp32_precision = by_place[name]


def _places() -> dict[str, Any]:
    """The backends that hold the setting; before 2.9 torch had none."""
    places = {
        "all": torch.backends,
        "cuda": torch.backends.cuda.matmul,
        "mkldnn": getattr(torch.backends.mkldnn, "matmul", None),
    }
    return {name: place for name, place in places.items() if hasattr(place, "fp32_precision")}
