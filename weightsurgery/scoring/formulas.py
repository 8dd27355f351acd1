"""TOFU's and open-unlearning's scores, from likelihoods: no model, no files.

Likelihoods are of a whole answer *with* its end of text, per token, as open-unlearning takes them;
those of single tokens (:func:`min_k`, :func:`min_k_plus_plus`) come without it. Definitions were
read in github.com/locuslab/open-unlearning, ``src/evals/metrics``; differences are stated here.
"""

from __future__ import annotations

import math
import statistics
import zlib
from collections.abc import Sequence

from weightsurgery.deferred import need

__all__ = [
    "MIN_K",
    "auc",
    "forget_quality",
    "min_k",
    "min_k_plus_plus",
    "model_utility",
    "normalised_probability",
    "priv_leak",
    "zlib_loss",
]

MIN_K = 0.4
"""Share of tokens that count for Min-K and Min-K++, as open-unlearning configures them for TOFU."""

_SMALLEST = 1e-6  # variance of log-likelihoods, where a model is certain


def normalised_probability(right: float, wrong: Sequence[float]) -> float:
    """``P(right) / (P(right) + Σ P(wrong))``: of real authors and world facts (Maini et al. 2024).

    Args:
        right: Likelihood per token of the right answer, in [0, 1].
        wrong: Of each wrong one.

    Returns:
        A number in [0, 1]; 0 where nothing has any likelihood.
    """
    total = right + sum(wrong)
    return right / total if total > 0 else 0.0


def forget_quality(ratios: Sequence[float], reference: Sequence[float]) -> float:
    """p-value of the two-sample Kolmogorov-Smirnov test of truth ratios (Maini et al. 2024).

    Near 1 this test cannot distinguish the model from one that never saw what is to be forgotten.

    Args:
        ratios: Truth ratios of the rows to forget, at least one; infinite ones are allowed.
        reference: Those of a model trained without these rows.

    Raises:
        WeightSurgeryError: SciPy is not installed.
    """
    need("forget quality is a test of SciPy's", "scipy", extra="eval")
    from scipy.stats import ks_2samp

    return float(ks_2samp(list(ratios), list(reference)).pvalue)


def model_utility(values: Sequence[float]) -> float:
    """Harmonic mean of what is left of everything else; 0 if any of it is 0.

    Args:
        values: In [0, 1], at least one: of each set its probability, ROUGE-L recall and truth
            ratio.
    """
    return statistics.harmonic_mean(values)


def min_k(nll: Sequence[float], share: float = MIN_K) -> float:
    """Mean negative log-likelihood of a text's least likely tokens (Shi et al. 2023).

    Args:
        nll: Of each token, in nats; at least one.
        share: Of the tokens that count: ``max(1, ⌊share · T⌋)``.
    """
    return _lowest([-loss for loss in nll], share)


def min_k_plus_plus(
    nll: Sequence[float], mean: Sequence[float], variance: Sequence[float], share: float = MIN_K
) -> float:
    """:func:`min_k` of standardised log-likelihoods ``(log p − μ)/σ`` (Zhang et al. 2024).

    Args:
        nll: Of each token, in nats; at least one.
        mean: ``μ = Σ p log p`` over the vocabulary at each token.
        variance: ``σ² = Σ p log² p − μ²`` there; below 1e-6 it counts as 1e-6.
        share: As of :func:`min_k`.
    """
    standard = [
        (-loss - m) / math.sqrt(max(v, _SMALLEST))
        for loss, m, v in zip(nll, mean, variance, strict=True)
    ]
    return _lowest(standard, share)


def _lowest(logs: Sequence[float], share: float) -> float:
    count = max(1, int(len(logs) * share))
    return -sum(sorted(logs)[:count]) / count


def zlib_loss(nll: float, text: str) -> float:
    """Loss per byte that zlib needs for the text (Carlini et al. 2021).

    Args:
        nll: Mean over the text's tokens, in nats.
        text: What was scored, without its prompt.
    """
    return nll / len(zlib.compress(text.encode("utf-8")))


def auc(members: Sequence[float], others: Sequence[float]) -> float:
    """How often a member's loss is below another's, ties half: the area under the ROC curve.

    As open-unlearning signs it: 1 where all rows to forget are likelier than all held-out ones,
    0.5 where they cannot be distinguished.

    Args:
        members: Losses of the rows to forget; at least one.
        others: Losses of rows that no model saw; at least one.

    Raises:
        WeightSurgeryError: SciPy is not installed.
    """
    need("membership inference ranks by SciPy", "scipy", extra="eval")
    from scipy.stats import mannwhitneyu

    above = mannwhitneyu(list(others), list(members), method="asymptotic").statistic
    return float(above) / (len(members) * len(others))


def priv_leak(auc_forget: float, reference: float) -> float | None:
    """PrivLeak in percent: ``100 ((1 − AUC) − (1 − AUC_ref)) / (1 − AUC_ref)`` (Shi et al. 2024).

    0 where rows to forget are as hard to tell from held-out ones as for the reference; below it
    they are easier to tell as members, above it they are avoided.

    Args:
        auc_forget: :func:`auc` of the model.
        reference: That of one which never saw the rows to forget.

    Returns:
        None where the reference's is 1 (open-unlearning divides by 1e-10 there).
    """
    return 100 * (reference - auc_forget) / (1 - reference) if reference < 1 else None
