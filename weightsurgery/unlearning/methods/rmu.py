"""RMU: hidden states on what to forget are steered to a random vector."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from weightsurgery.checkpoint.naming import is_mlp_output, layer_of
from weightsurgery.deferred import torch
from weightsurgery.errors import EditError
from weightsurgery.learning.settings import Training
from weightsurgery.learning.unlearners.losses import exact
from weightsurgery.unlearning.by_loss import BenchGrid, ByLoss, check_not_negative, check_positive

if TYPE_CHECKING:
    from torch import Tensor

    from weightsurgery.learning.models import PreTrainedModel
    from weightsurgery.learning.unlearners.batch_outputs import BatchOutputs
    from weightsurgery.learning.unlearners.work import Preparation


__all__ = ["RMU", "distance"]


@dataclass(frozen=True)
class RMUSettings:
    """The settings of RMU.

    Attributes:
        coefficient: ``c``, the length of the vector that states are steered to.
        alpha: Weight of what to keep.
        layer: Whose output is steered, from 0; None for 7, or the last but one of a model that has
            no such layer with another behind it.
        span: Number of trained layers: that one and those before it.

    Raises:
        EditError: Values that make no sense.
    """

    coefficient: float = 6.5
    alpha: float = 1200.0
    layer: int | None = None
    span: int = 3

    def __post_init__(self) -> None:
        check_positive(self, "coefficient")
        check_not_negative(self, "alpha")
        if self.layer is not None and self.layer < 0:
            raise EditError(f"layer = {self.layer}", "Give a number from 0.")
        if self.span < 1:
            raise EditError(f"span = {self.span}", "Give a whole number from 1.")

    def steered(self, model: PreTrainedModel) -> int:
        """The layer, in a model.

        Raises:
            EditError: There is no such layer, or nothing behind it.
        """
        count = int(model.config.get_text_config().num_hidden_layers)
        if count < 2:
            raise EditError(
                f"RMU in a model of {count} layer: none has another behind it",
                "Choose another method.",
            )
        if self.layer is None:
            return min(7, count - 2)
        if self.layer > count - 2:
            raise EditError(
                f"layer = {self.layer}: the model has layers 0 to {count - 1}, and the last one's"
                " output is normalised",
                f"Choose from 0 to {count - 2}.",
            )
        return self.layer


def distance(states: Tensor, wanted: Tensor, count: Tensor | int) -> Tensor:
    """``‖h − h'‖²``, the mean over ``count`` positions and over hidden units.

    Args:
        states: Hidden states, shape (positions, hidden).
        wanted: What they should be, of the same shape or (hidden,).
        count: Positions that the mean is over.
    """
    return (exact(states) - exact(wanted)).square().sum() / (count * states.shape[-1])


class RMU(ByLoss):
    """``L = ‖h(D_f) − c u‖² + α ‖h(D_r) − h₀(D_r)‖²``, h the output of one layer at every token.

    Li et al. 2024, arXiv 2403.03218. ``u`` is ``r / |r|``, with every entry of ``r`` drawn from 0
    to 1 by the seed, once. As in the authors' code both terms are means over tokens and hidden
    units. Trained is the last matrix of the feed-forward network of the layer and of the two
    before it. Published, for Zephyr 7B: layer 7 of 32, c = 6.5, α = 1200, learning rate 5e-5,
    batches of 4, 250 of them at most. They depend on the model: the size of its hidden states
    above all. In a model of few layers the layer is ours.
    """

    name = "rmu"
    about = "hidden states on forget steered to a random vector, held on keep"
    paper = "Li et al. 2024, arXiv 2403.03218"
    published = Training(steps=250, learning_rate=5e-5, batch_size=4)
    Settings = RMUSettings
    references = 1
    needs_keep = True
    needs_hidden_states = True
    bench = (
        BenchGrid(
            "RMU: states of the middle layer steered to c = 300, five times their size",
            rates=(3e-3,),
            settings=tuple({"coefficient": 300.0, "alpha": a} for a in (10.0, 100.0)),
        ),
    )

    @classmethod
    def parameters(
        cls, model: PreTrainedModel, names: Sequence[str], settings: Any, chosen: bool
    ) -> list[str]:
        """The last matrices of three feed-forward networks; those chosen by hand, up to the layer.

        Raises:
            EditError: None of them feeds the layer's output.
        """
        last = settings.steered(model)
        first = 0 if chosen else max(0, last - settings.span + 1)
        inside = [name for name in names if first <= _layer(name) <= last]
        if not chosen:
            ends = [name for name in inside if is_mlp_output(name)]
            inside = ends or inside
        if not inside:
            raise EditError(
                f"RMU at layer {last}: no selected matrix is in it or before it",
                "Widen --targets, --include or --layers, or leave them out.",
            )
        return inside

    @classmethod
    def prepare(cls, work: Preparation) -> dict[str, Any]:
        """The model before, the layer, and the vector."""
        width = int(work.plain.config.get_text_config().hidden_size)
        drawn = torch.rand(width, generator=torch.Generator().manual_seed(work.training.seed))
        control = work.settings.coefficient * drawn / drawn.norm()
        layer = work.settings.steered(work.plain)
        work.notes["layer"] = layer
        return {**super().prepare(work), "control": control.to(work.device), "layer": layer}

    @override
    def loss(self, forget: BatchOutputs, keep: BatchOutputs | None) -> Tensor:
        assert keep is not None
        layer: int = self.prepared["layer"]
        before = self.reference_outputs("base", keep.inputs).states(layer)
        steered = distance(forget.states(layer), self.prepared["control"], forget.whole.positions)
        held = distance(keep.states(layer), before, keep.whole.positions)
        alpha: float = self.settings.alpha
        return steered + alpha * held


def _layer(name: str) -> int:
    layer = layer_of(name)
    return -1 if layer is None else layer
