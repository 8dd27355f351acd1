"""Training inside a subspace: changes that the inputs to keep hardly feel, at every step.

With ``C = Q diag(λ) Qᵀ`` the activation statistics of a layer's keep inputs and
``M = ρ (C + ρ I)⁻¹`` their ridge (see :mod:`weightsurgery.algebra.activations`), a weight is
trained as ``W = W₀ + A M`` with ``A`` free: identification and discrimination in one. In the
eigenbasis this is

    ``W = W₀ + B diag(r) Qᵀ``,  ``r = ρ / (λ + ρ)``,

and Adam (Kingma & Ba 2015, arXiv 1412.6980, Algorithm 1) runs on ``B``: the gradient is
``(∂L/∂W) Q diag(r)``, and a step moves each direction by at most about the learning rate times
``r``. Projecting a finished vector instead would throw most of it away and must be scaled up
blindly; here the training sees what is left.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from weightsurgery.algebra.activations import InputSpace, outside
from weightsurgery.algebra.precision import exact_products
from weightsurgery.errors import EditError
from weightsurgery.learning.method import Stage
from weightsurgery.learning.settings import Training
from weightsurgery.learning.sharding import (
    by_rows,
    from_rows,
    is_sharded,
    piece,
    resharded,
    scattered,
    total,
    whole,
)
from weightsurgery.learning.training import EncodedRows, Trained, train_stage
from weightsurgery.progress import Progress

__all__ = ["Confinement", "SubspaceAdam", "confine", "train_confined"]

# Inputs less a span that holds all of them: above the rounding of float64, which has eigenvalues
# of either sign, and what float32 directions miss of their span.
_ROUNDING = 1e-8


@dataclass(frozen=True)
class Confinement:
    """The inputs along which one weight may change.

    Attributes:
        Q: Orthonormal directions of the input space in columns, ``(n, n)``, float32; of a sharded
            model in pieces, which are put together while they are used.
        damping: How freely it may change along each, in [0, 1], ``(n,)``, float32.
        transposed: The weight is held (in, out), as GPT-2's are.
    """

    Q: Tensor
    damping: Tensor
    transposed: bool = False

    def to(self, device: torch.device) -> Confinement:
        """The same on another device."""
        return Confinement(self.Q.to(device), self.damping.to(device), self.transposed)

    def held_for(self, model: PreTrainedModel) -> Confinement:
        """The same, on the CPU; for a sharded model in pieces like its own, those of process 0."""
        if not is_sharded(model):
            return self.to(torch.device("cpu"))
        directions, damping = (scattered(model, each) for each in (self.Q, self.damping))
        return Confinement(directions, whole(damping), self.transposed)

    def left(self, change: Tensor) -> Tensor:
        """What is left of a weight's change, whole or in pieces, where it must not be felt."""
        rows, q = by_rows(change, self.transposed), whole(self.Q)
        return from_rows(((rows @ q) * self.damping) @ q.T, change, self.transposed)


def confine(
    gram: Tensor, epsilon: float, directions: Tensor | None = None, transposed: bool = False
) -> Confinement:
    """The confinement by activation statistics, and by the directions of keep vectors.

    Args:
        gram: ``C``, ``(n, n)``; zero where there are no keep inputs.
        epsilon: Ridge relative to the mean eigenvalue.
        directions: ``V``, ``(n, q)``, orthonormal: the span of the keep tasks' input directions,
            along which nothing may change.
        transposed: See :class:`Confinement`.

    Returns:
        On the device of ``gram``.

    Raises:
        EditError: A senseless ε, or no sum of ``x xᵀ``.
        NonFiniteError: NaN or infinity in ``C``.
    """
    if directions is None or not directions.shape[1]:
        space = InputSpace.of(gram)
        return Confinement(space.Q.float(), space.damping(epsilon).float(), transposed)
    v = torch.linalg.qr(directions.to(gram.device, torch.float64)).Q
    left = outside(gram, v)
    if float(left.norm()) <= _ROUNDING * float(gram.norm()):
        left = torch.zeros_like(left)
    space = InputSpace.of(left)
    damping = space.damping(epsilon)
    # The span of V is an eigenspace with eigenvalue 0. With other null directions mixed in, a
    # basis that tells them apart comes from the eigenvectors of Q_0ᵀ V Vᵀ Q_0.
    null = space.values <= space.floor
    q0 = space.Q[:, null]
    share, rotation = torch.linalg.eigh((q0.T @ v) @ (v.T @ q0))
    basis = space.Q.clone()
    basis[:, null] = q0 @ rotation
    damping = damping.clone()
    damping[null] = torch.where(share > 0.5, torch.zeros_like(share), damping[null])
    return Confinement(basis.float(), damping.float(), transposed)


class SubspaceAdam(torch.optim.Optimizer):
    """Adam on ``B`` of ``W = W₀ + B diag(r) Qᵀ``; the weights themselves are moved.

    Its state is the moments of ``B``, of the shape that ``W`` has as ``(m, n)``, of a sharded
    weight this process's rows; where a weight may change is no part of it: whoever loads a state
    gives the same confinements.

    Args:
        parameters: Name and weight of each matrix to train, ``(m, n)``, or ``(n, m)`` where the
            confinement says that it is transposed; float32, as small steps are lost below.
        confinements: By name; moved to the weights' device, shared ones once.
        lr: Largest step of an unconfined direction, relative to the root mean square of the
            weight's entries at the start (to 1 for a weight of zeros).
        betas: Decay of the first and second moment.
        eps: Added to the root of the second moment.
    """

    def __init__(
        self,
        parameters: Sequence[tuple[str, torch.nn.Parameter]],
        confinements: Mapping[str, Confinement],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-10,
    ) -> None:
        self._inside: dict[torch.nn.Parameter, Confinement] = {}
        moved: dict[tuple[int, torch.device], Confinement] = {}
        groups = []
        for name, weight in parameters:
            inside = confinements[name]
            key = (id(inside), weight.device)
            if key not in moved:
                moved[key] = inside.to(weight.device)
            self._inside[weight] = moved[key]
            squares = weight.detach().double().square()
            unit = float((total(squares) / weight.numel()).sqrt()) or 1.0
            groups.append({"params": [weight], "unit": unit})
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": eps})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of every weight that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    self._step(weight, group)
        return loss

    @exact_products()
    def _step(self, weight: torch.nn.Parameter, group: dict[str, Any]) -> None:
        inside = self._inside[weight]
        assert weight.grad is not None
        q = whole(inside.Q)
        gradient = (by_rows(weight.grad, inside.transposed).float() @ q) * inside.damping
        state = self.state[weight]
        if not state:
            state["step"] = 0
            state["first"] = torch.zeros_like(gradient)
            state["second"] = torch.zeros_like(gradient)
        state["step"] += 1
        first, second = group["betas"]
        state["first"].lerp_(gradient, 1 - first)
        state["second"].mul_(second).addcmul_(gradient, gradient, value=1 - second)
        root = state["second"].div(1 - second ** state["step"]).sqrt_().add_(group["eps"])
        move = state["first"].div(1 - first ** state["step"]).div_(root).mul_(inside.damping)
        move = from_rows(move @ q.T, weight, inside.transposed)
        size = group["lr"] * group["unit"]
        piece(weight).add_(piece(move).to(weight.dtype), alpha=-size)


def train_confined(
    model: PreTrainedModel,
    rows: EncodedRows,
    confinements: Mapping[str, Confinement],
    training: Training,
    *,
    device: torch.device,
    enough: Callable[[int], bool] | None = None,
    progress: Progress | None = None,
) -> Trained:
    """Trains the confined weights in place, all else frozen, with :class:`SubspaceAdam`.

    The learning rate stays for the first half of the steps and falls to zero in the second, as a
    cosine does from its top to its bottom.

    Args:
        model: Float32; left in evaluation mode, all of it frozen.
        rows: On what.
        confinements: By parameter name: which weights, and along which inputs.
        training: How; ``learning_rate`` is relative, see :class:`SubspaceAdam`, and ``steps``
            must be given.
        device: Where.
        enough: Asked after every step, with the number of steps taken, whether to end.
        progress: Called as ``progress(text, done, total)`` in steps.

    Returns:
        What came of it.

    Raises:
        EditError: No number of steps.
        NonFiniteError: The loss, or a trained weight, is NaN or infinite.
    """
    if training.steps is None:
        raise EditError(
            "training inside the subspace for epochs: its learning rate falls with the steps",
            "Give a number of steps.",
        )
    names = list(confinements)
    if not is_sharded(model):
        model.to(device)  # type: ignore[arg-type]
    falling = {
        "lr_scheduler_type": "warmup_stable_decay",
        "lr_scheduler_kwargs": {"num_decay_steps": training.steps - training.steps // 2},
    }
    resharded(model)
    optimizer = SubspaceAdam(
        [(name, model.get_parameter(name)) for name in names], confinements, training.learning_rate
    )
    return train_stage(
        model,
        Stage("inside the subspace", tuple(names)),
        rows,
        replace(training, extra={**falling, **training.extra}),
        device=device,
        optimizer=optimizer,
        enough=enough,
        progress=progress,
    )
