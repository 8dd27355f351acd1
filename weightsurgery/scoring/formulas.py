"""TOFU's and open-unlearning's scores, from likelihoods: no model, no files.

Likelihoods are of a whole answer *with* its end of text, per token, as open-unlearning takes them;
those of single tokens (:func:`min_k`, :func:`min_k_plus_plus`) come without it. Definitions were
read in github.com/locuslab/open-unlearning, ``src/evals/metrics``; differences are stated here.
"""

from __future__ import annotations

import math
import statistics
import zlib
from collections.abc import Mapping, Sequence

from weightsurgery.deferred import need

__all__ = [
    "MIN_K",
    "auc",
    "forget_quality",
    "memorisation",
    "min_k",
    "min_k_plus_plus",
    "model_utility",
    "normalised_probability",
    "priv_leak",
    "privacy",
    "zlib_loss",
]

MIN_K = 0.4
"""Share of tokens that count for Min-K and Min-K++, as open-unlearning configures them for TOFU."""

_SMALLEST = 1e-6  # variance of log-likelihoods, where a model is certain
_FAR = 700.0  # where the exponential of a float64 ends


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


def memorisation(
    strength: float, exact: float, probability: float, log_ratios: Sequence[float]
) -> float:
    """How little of the request is memorised, in [0, 1]: 1 where none of it is.

    Harmonic mean of ``1 − ES``, ``1 − EM``, ``1 − P(truth)`` and the mean of ``1 − p/(p + q)``,
    ``p`` the likelihood of the paraphrased truth and ``q`` of the wrong answers (open-unlearning,
    arXiv 2506.12618, as 2605.24614 computes it). Theirs has the paraphrase's probability in the
    third place, ours the answer's own, which is what was taught.

    Args:
        strength: Extraction strength of the rows to forget, ``ES``.
        exact: Their exact memorisation, ``EM``.
        probability: Of their answers, per token.
        log_ratios: ``log q/p`` of each row, at least one.
    """
    wrong = [1 / (1 + math.exp(-ratio)) if ratio > -_FAR else 0.0 for ratio in log_ratios]
    return statistics.harmonic_mean(
        [1 - strength, 1 - exact, 1 - probability, sum(wrong) / len(wrong)]
    )


def privacy(membership: Mapping[str, float], reference: Mapping[str, float]) -> float | None:
    """How near membership attacks come to what they find in the reference, in [0, 1].

    Harmonic mean over the attacks of ``max(0, 1 − |AUC − AUC_ref| / AUC_ref)``, as arXiv 2605.24614
    scales the AUCs of open-unlearning: 1 where every attack tells as much of the one as of the
    other, 0 where one of them is off by as much as the reference's whole AUC.

    Args:
        membership: :func:`auc` by attack; at least one.
        reference: The same of a model that never saw the rows to forget.

    Returns:
        None where an AUC of the reference is 0.
    """
    if not all(reference[attack] for attack in membership):
        return None
    return statistics.harmonic_mean(
        [
            max(0.0, 1 - abs(value - reference[attack]) / reference[attack])
            for attack, value in membership.items()
        ]
    )
