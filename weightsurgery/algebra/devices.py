"""From the name of a device to the device."""

from __future__ import annotations

from weightsurgery.deferred import torch
from weightsurgery.errors import EditError

__all__ = ["pick_device"]


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
