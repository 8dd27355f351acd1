"""From the name of a device to the device; and whether its memory was enough."""

from __future__ import annotations

from weightsurgery.deferred import torch
from weightsurgery.errors import EditError

__all__ = ["pick_device", "ran_out"]


def pick_device(name: str) -> torch.device:
    """``auto``, ``cpu``, ``cuda`` or ``cuda:i`` as a device.

    Raises:
        EditError: No such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise EditError(f"device {name!r}", "Use auto, cpu, cuda or cuda:0.") from None
    if device.type not in ("cpu", "cuda"):
        raise EditError(f"device {name!r}", "Use auto, cpu, cuda or cuda:0.")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise EditError(
            f"device {name!r}: torch sees {torch.cuda.device_count()} CUDA devices",
            "Use --device cpu, or install a CUDA build of torch.",
        )
    return device


def ran_out(problem: BaseException) -> bool:
    """Whether something ended for want of memory, on a GPU or on the processor."""
    on_gpu = any(kind.__name__ == "OutOfMemoryError" for kind in type(problem).__mro__)
    return on_gpu or isinstance(problem, MemoryError) or "can't allocate memory" in str(problem)
