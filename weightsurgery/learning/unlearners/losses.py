"""The equations of the unlearners, on tensors: no model, no data.

Logits are of shape (positions, vocabulary): those positions alone whose next token counts.
Arithmetic is float32, or float64 where all that is given is.

Means are over a whole, of which what is given may be a part: a micro-step's share of a step, or a
process's. ``count`` is then how much the whole holds, and the parts' means add up to its mean.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from weightsurgery.learning.data import IGNORED

__all__ = [
    "completion_nll",
    "distance",
    "generic_labels",
    "kl",
    "npo",
    "simnpo",
    "soft_cross_entropy",
]


def _exact(values: Tensor) -> Tensor:
    return values if values.dtype == torch.float64 else values.float()


def completion_nll(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Negative log-likelihood of each row's completion, and its number of tokens.

    Args:
        logits: Shape (rows, tokens, vocabulary).
        labels: Shape (rows, tokens); ``IGNORED`` where no loss falls.

    Returns:
        ``−log π(y|x)`` in nats and ``|y|``, each of shape (rows,).
    """
    wanted = labels[:, 1:]
    each = functional.cross_entropy(
        _exact(logits[:, :-1]).transpose(1, 2), wanted, ignore_index=IGNORED, reduction="none"
    )
    return each.sum(1), (wanted != IGNORED).sum(1)


def kl(first: Tensor, second: Tensor, count: Tensor | int) -> Tensor:
    """``KL(first ‖ second)`` in nats, the mean over ``count`` positions, of logits."""
    p, q = _exact(first).log_softmax(-1), _exact(second).log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1).sum() / count


def npo(nll: Tensor, reference: Tensor, beta: float, count: Tensor | int) -> Tensor:
    """``mean −(2/β) log σ(−β log π/π_ref)`` (Zhang et al. 2024, arXiv 2404.05868).

    Args:
        nll: ``−log π(y|x)``, shape (rows,).
        reference: The same of the model before.
        beta: Inverse temperature; towards 0 the loss becomes gradient ascent's.
        count: Rows that the mean is over.
    """
    return -2 / beta * (functional.logsigmoid(beta * (nll - reference)).sum() / count)


def simnpo(nll: Tensor, tokens: Tensor, beta: float, delta: float, count: Tensor | int) -> Tensor:
    """``mean −(2/β) log σ(−(β/|y|) log π − δ)`` (Fan et al. 2024, arXiv 2410.07163).

    Args:
        nll: ``−log π(y|x)``, shape (rows,).
        tokens: ``|y|``, shape (rows,).
        beta: Inverse temperature.
        delta: Margin of the reward, which the paper calls γ.
        count: Rows that the mean is over.
    """
    return -2 / beta * (functional.logsigmoid(beta * nll / tokens - delta).sum() / count)


def generic_labels(base: Tensor, reinforced: Tensor, alpha: float) -> Tensor:
    """``v_base − α ReLU(v_reinforced − v_base)`` (Eldan and Russinovich 2023, arXiv 2310.02238).

    Args:
        base: Logits of the model before.
        reinforced: Those of one trained further on what to forget.
        alpha: How much of what rose is taken away.
    """
    return base - alpha * functional.relu(reinforced - base)


def soft_cross_entropy(target: Tensor, current: Tensor, count: Tensor | int) -> Tensor:
    """``−mean Σ softmax(target) log softmax(current)``, of logits, over ``count`` positions."""
    each = (_exact(target).softmax(-1) * _exact(current).log_softmax(-1)).sum(-1)
    return -(each.sum() / count)


def distance(states: Tensor, wanted: Tensor, count: Tensor | int) -> Tensor:
    """``‖h − h'‖²``, the mean over ``count`` positions and over hidden units.

    Args:
        states: Hidden states, shape (positions, hidden).
        wanted: What they should be, of the same shape or (hidden,).
        count: Positions that the mean is over.
    """
    return (_exact(states) - _exact(wanted)).square().sum() / (count * states.shape[-1])
