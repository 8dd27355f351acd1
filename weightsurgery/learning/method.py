"""The modes of subspace identification, which finds the task vector of a data set."""

from __future__ import annotations

import math
from dataclasses import dataclass

from weightsurgery.checkpoint.naming import layer_of
from weightsurgery.errors import EditError
from weightsurgery.suggestions import one_of

__all__ = ["MODES", "ORDERS", "IdentifyMode", "Stage", "stages_of"]

MODES = ("delta", "literal", "joint")
ORDERS = ("ascending", "descending")


@dataclass(frozen=True)
class IdentifyMode:
    """A mode and what belongs to it.

    Attributes:
        mode: ``"delta"``, ``"literal"`` or ``"joint"``; see `weightsurgery.learning.identify`.
        order: Of the layers, where they are trained one after another.
        lora_rank: Train a LoRA adapter of this rank; mode ``joint`` alone. None to train in full.
        lora_alpha: The adapter's change is ``alpha / rank · B A``; None for the rank.
        keep_weight: Factor of ``KL(base ‖ current)`` on keep data, where there are any.

    Raises:
        EditError: Values that make no sense, or not together.
    """

    mode: str = "delta"
    order: str = "ascending"
    lora_rank: int | None = None
    lora_alpha: float | None = None
    keep_weight: float = 1.0

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise EditError(f"mode {self.mode!r}", one_of(self.mode, MODES))
        if self.order not in ORDERS:
            raise EditError(f"order {self.order!r}", one_of(self.order, ORDERS))
        if self.lora_rank is not None and self.mode != "joint":
            raise EditError(
                f"a LoRA adapter in mode {self.mode}", "Use --mode joint, or leave out --lora-rank."
            )
        if self.lora_rank is not None and self.lora_rank < 1:
            raise EditError(f"LoRA rank {self.lora_rank}", "Give a whole number from 1.")
        if self.lora_alpha is not None and self.lora_rank is None:
            raise EditError("a LoRA alpha without a rank", "Give --lora-rank too.")
        if self.lora_alpha is not None and not 0 < self.lora_alpha < math.inf:
            raise EditError(f"LoRA alpha {self.lora_alpha}", "Give a number above 0.")
        if not 0 <= self.keep_weight < math.inf:
            raise EditError(f"keep weight {self.keep_weight}", "Give a number from 0.")

    @property
    def layerwise(self) -> bool:
        """Whether one layer is trained at a time."""
        return self.mode != "joint"


@dataclass(frozen=True)
class Stage:
    """Parameters that are trained at once.

    Attributes:
        name: For messages: ``"layer 3"``.
        parameters: Names within the model.
    """

    name: str
    parameters: tuple[str, ...]


def stages_of(names: list[str], method: IdentifyMode) -> list[Stage]:
    """The stages of a training: each layer alone, or everything at once.

    Args:
        names: Tensors or parameters.
        method: Says which, and in what order.

    Raises:
        EditError: A tensor outside the layers is to be trained layer by layer.
    """
    if not method.layerwise:
        return [Stage("all layers", tuple(names))]
    layers: dict[int, list[str]] = {}
    for name in names:
        layer = layer_of(name)
        if layer is None:
            raise EditError(
                f"{name!r} belongs to no layer, so it has no turn layer by layer",
                f"Leave it out with --exclude '{name}', or use --mode joint.",
            )
        layers.setdefault(layer, []).append(name)
    numbers = sorted(layers, reverse=method.order == "descending")
    return [Stage(f"layer {number}", tuple(layers[number])) for number in numbers]
