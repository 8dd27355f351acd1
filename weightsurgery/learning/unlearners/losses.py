"""The equations of the unlearners, on tensors: no model, no data.

Logits are of shape (positions, vocabulary): those positions alone whose next token counts.
Arithmetic is float32, or float64 where all that is given is.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from weightsurgery.learning.data import IGNORED

__all__ = [
    "completion_nll",
    "efficient_unlearning",
    "generic_labels",
    "kl",
    "knowledge_gap",
    "misdirection",
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


def kl(first: Tensor, second: Tensor) -> Tensor:
    """``KL(first ‖ second)`` in nats, the mean over positions, of logits."""
    p, q = _exact(first).log_softmax(-1), _exact(second).log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1).mean()


def npo(nll: Tensor, reference: Tensor, beta: float) -> Tensor:
    """``mean −(2/β) log σ(−β log π/π_ref)`` (Zhang et al. 2024, arXiv 2404.05868).

    Args:
        nll: ``−log π(y|x)``, shape (rows,).
        reference: The same of the model before.
        beta: Inverse temperature; towards 0 the loss becomes gradient ascent's.
    """
    return -2 / beta * functional.logsigmoid(beta * (nll - reference)).mean()


def simnpo(nll: Tensor, tokens: Tensor, beta: float, delta: float) -> Tensor:
    """``mean −(2/β) log σ(−(β/|y|) log π − δ)`` (Fan et al. 2024, arXiv 2410.07163).

    Args:
        nll: ``−log π(y|x)``, shape (rows,).
        tokens: ``|y|``, shape (rows,).
        beta: Inverse temperature.
        delta: Margin of the reward, which the paper calls γ.
    """
    return -2 / beta * functional.logsigmoid(beta * nll / tokens - delta).mean()


def knowledge_gap(
    forget: Tensor, helper: Tensor, gap: float, keep: Tensor, base: Tensor, alpha: float
) -> tuple[Tensor, Tensor]:
    """``|KL(f*‖A_f)(D_f) − gap| + α KL(f*‖A_D)(D_r)`` (Wang et al. 2023, arXiv 2305.06535).

    Args:
        forget: Logits of ``f*``, which is trained, on what to forget.
        helper: Those of ``A_f``, trained on what to forget.
        gap: ``KL(A_n‖A_D)(D_n)``, what a model gains that is trained on unseen data.
        keep: Logits of ``f*`` on what to keep.
        base: Those of ``A_D``, the model before.
        alpha: Weight of what to keep.

    Returns:
        The loss, and its first part: how far the two gaps are apart.
    """
    apart = (kl(forget, helper) - gap).abs()
    return apart + alpha * kl(keep, base), apart


def efficient_unlearning(
    forget: Tensor,
    forget_base: Tensor,
    keep: Tensor,
    keep_base: Tensor,
    task: Tensor,
    language: Tensor,
    weights: tuple[float, float, float],
) -> Tensor:
    """``α KL(f‖f₀)(D_r) − KL(f‖f₀)(D_f) + λ L_task(D_r) − γ L_LM(D_f)``.

    A reconstruction from the words of Chen and Yang 2023 (arXiv 2310.20150); their masked language
    modelling loss is a causal model's own here.

    Args:
        forget: Logits of ``f``, which is trained, on what to forget.
        forget_base: Those of ``f₀``, the model before.
        keep: Logits of ``f`` on what to keep.
        keep_base: Those of ``f₀``.
        task: Cross-entropy on what to keep.
        language: Cross-entropy on what to forget.
        weights: ``α``, ``λ`` and ``γ``.
    """
    alpha, task_weight, gamma = weights
    teacher = alpha * kl(keep, keep_base) - kl(forget, forget_base)
    return teacher + task_weight * task - gamma * language


def generic_labels(base: Tensor, reinforced: Tensor, alpha: float) -> Tensor:
    """``v_base − α ReLU(v_reinforced − v_base)`` (Eldan and Russinovich 2023, arXiv 2310.02238).

    Args:
        base: Logits of the model before.
        reinforced: Those of one trained further on what to forget.
        alpha: How much of what rose is taken away.
    """
    return base - alpha * functional.relu(reinforced - base)


def soft_cross_entropy(target: Tensor, current: Tensor) -> Tensor:
    """``−mean Σ softmax(target) log softmax(current)``, of logits."""
    return -(_exact(target).softmax(-1) * _exact(current).log_softmax(-1)).sum(-1).mean()


def misdirection(
    forget: Tensor, control: Tensor, keep: Tensor, keep_base: Tensor, alpha: float
) -> Tensor:
    """``‖h(D_f) − c u‖² + α ‖h(D_r) − h₀(D_r)‖²`` (Li et al. 2024, arXiv 2403.03218).

    Both are means over positions and hidden units, as the authors' code has them.

    Args:
        forget: Hidden states on what to forget, shape (positions, hidden).
        control: ``c u``, shape (hidden,).
        keep: Hidden states on what to keep.
        keep_base: Those of the model before.
        alpha: Weight of what to keep.
    """
    steered = (_exact(forget) - control).square().mean()
    return steered + alpha * (_exact(keep) - _exact(keep_base)).square().mean()
