"""The equations of the unlearners, on tensors: no model, no data.

Logits are of shape (positions, vocabulary): those positions alone whose next token counts.
Arithmetic is float32, or float64 where all that is given is.

Means are over a whole, of which what is given may be a part: a micro-step's share of a step, or a
process's. ``count`` is then how much the whole holds, and the parts' means add up to its mean.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from weightsurgery.deferred import torch

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["completion_nll", "exact", "kl", "soft_cross_entropy", "weighted_ascent"]


def exact(values: Tensor) -> Tensor:
    """As float32, or as it is where it is float64."""
    return values if values.dtype == torch.float64 else values.float()


def completion_nll(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Negative log-likelihood of each row's completion, and its number of tokens.

    Args:
        logits: Shape (rows, tokens, vocabulary).
        labels: Shape (rows, tokens); ``IGNORED`` where no loss falls.

    Returns:
        ``−log π(y|x)`` in nats and ``|y|``, each of shape (rows,).
    """
    from weightsurgery.learning.data import IGNORED  # which loads tokenizers

    wanted = labels[:, 1:]
    each = torch.nn.functional.cross_entropy(
        exact(logits[:, :-1]).transpose(1, 2), wanted, ignore_index=IGNORED, reduction="none"
    )
    return each.sum(1), (wanted != IGNORED).sum(1)


def kl(first: Tensor, second: Tensor, count: Tensor | int) -> Tensor:
    """``KL(first ‖ second)`` in nats, the mean over ``count`` positions, of logits."""
    p, q = exact(first).log_softmax(-1), exact(second).log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1).sum() / count


def soft_cross_entropy(target: Tensor, current: Tensor, count: Tensor | int) -> Tensor:
    """``−mean Σ softmax(target) log softmax(current)``, of logits, over ``count`` positions."""
    each = (exact(target).softmax(-1) * exact(current).log_softmax(-1)).sum(-1)
    return -(each.sum() / count)


def weighted_ascent(
    logits: Tensor, tokens: Tensor, count: Tensor | int, saturation: float, importance: float = 0
) -> Tensor:
    """``Σ p^s (1 − p)^i log p / count`` over tokens, in nats; weights take no gradient.

    Args:
        logits: Shape (positions, vocabulary).
        tokens: Whose probability is ``p``, int64, shape (positions,).
        count: Positions that the mean is over.
        saturation: ``s``.
        importance: ``i``.
    """
    logs = exact(logits).log_softmax(-1).gather(-1, tokens[:, None])[:, 0]
    p = logs.detach().exp()
    return (p**saturation * (1 - p) ** importance * logs).sum() / count
