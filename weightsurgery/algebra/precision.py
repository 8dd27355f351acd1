"""Float32 products that are float32: what is worked out here does not depend on TF32 being allowed.

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

# For the whole process, where it can be told, and for each place that has its own.
_Settings = tuple[str | None, dict[str, str]]

_lock = threading.Lock()
_before: list[_Settings] = []  # one for each that is inside; the first is what was set before


@contextmanager
def exact_products() -> Iterator[None]:
    """Products of float32 matrices are IEEE float32 inside; what was set before is set after.

    The settings are the process's: of several threads inside, the last one to leave puts them back.
    Serves as a decorator too.
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
    """What is set inside, as Trainer does for its ``tf32``, is as before after."""
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
    return whole, {name: each.fp32_precision for name, each in _places().items()}


def _set(settings: _Settings) -> None:
    whole, own = settings
    if whole is not None:
        torch.set_float32_matmul_precision(whole)
    for name, place in _places().items():
        if place.fp32_precision != own[name]:
            place.fp32_precision = own[name]


def _places() -> dict[str, Any]:
    """Where torch keeps the setting; before 2.9 it had no such places."""
    found = {
        "all": torch.backends,
        "cuda": torch.backends.cuda.matmul,
        "mkldnn": getattr(torch.backends.mkldnn, "matmul", None),
    }
    return {name: each for name, each in found.items() if hasattr(each, "fp32_precision")}
