"""TOFU's formulas by hand, and against the libraries that others take."""

import math
import zlib
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import hmean, ks_2samp
from sklearn.metrics import roc_auc_score

from weightsurgery.scoring.formulas import (
    auc,
    forget_quality,
    min_k,
    min_k_plus_plus,
    model_utility,
    normalised_probability,
    priv_leak,
    zlib_loss,
)

FEW = st.lists(st.floats(-20, 20).map(lambda x: round(x, 1)), min_size=1, max_size=12)


def test_a_probability_among_choices():
    assert normalised_probability(0.5, [0.25, 0.125, 0.125]) == 0.5
    assert normalised_probability(0.1, []) == 1
    assert normalised_probability(0, [0.0, 0.0]) == 0


def test_forget_quality_by_hand():
    """Two samples of three that do not overlap: 2 of the C(6, 3) = 20 orders are as extreme."""
    assert forget_quality([1, 2, 3], [4, 5, 6]) == pytest.approx(2 / 20)
    assert forget_quality([1, 2, 3], [1, 2, 3]) == 1
    assert forget_quality([1, 2, math.inf], [1, 2, math.inf]) == 1


@given(FEW, FEW)
def test_forget_quality_is_of_the_order_alone(first, second):
    """Of ratios or of their logarithms or inverses: open-unlearning tests one, TOFU the other."""
    found = forget_quality(first, second)
    assert 0 <= found <= 1
    ratios = [[math.exp(each) for each in values] for values in (first, second)]
    assert forget_quality(*ratios) == pytest.approx(found)
    inverse = [1 / (np.array(each) + 1e-10) for each in ratios]
    assert ks_2samp(*inverse).pvalue == pytest.approx(found)


def test_utility_is_the_harmonic_mean():
    assert model_utility([0.5, 1.0, 0.25]) == pytest.approx(3 / (2 + 1 + 4))
    assert model_utility([0.9, 0.0, 0.9]) == 0
    nine = [0.1 * n for n in range(1, 10)]
    assert model_utility(nine) == pytest.approx(hmean(nine))


def test_min_k_by_hand():
    """Of five tokens, 40 % are the two least likely; of two, at least one."""
    assert min_k([1.0, 5.0, 2.0, 4.0, 3.0]) == pytest.approx((5 + 4) / 2)
    assert min_k([1.0, 3.0], share=0.2) == 3
    assert min_k([1.0, 3.0], share=1.0) == 2


def test_min_k_plus_plus_by_hand():
    """log p = −2, −1 where −1 ± 1/2 and −1 ± 2 are usual: −2 and 0 standard deviations."""
    assert min_k_plus_plus([2.0, 1.0], [-1.0, -1.0], [0.25, 4.0], 1.0) == pytest.approx(1.0)
    assert min_k_plus_plus([2.0, 1.0], [-1.0, -1.0], [0.25, 4.0], 0.5) == pytest.approx(2.0)
    certain = min_k_plus_plus([1.0], [0.0], [-1e-12])
    assert certain == pytest.approx(1 / math.sqrt(1e-6))


def test_zlib_loss_is_per_byte():
    text = "aé" * 40
    assert zlib_loss(3.0, text) == 3.0 / len(zlib.compress(text.encode()))
    assert zlib_loss(3.0, text) > zlib_loss(3.0, "".join(map(chr, range(33, 113))))


def test_auc_counts_pairs():
    members, others = [1.0, 2.0, 3.0], [2.0, 4.0]
    by_hand = sum((m < o) + (m == o) / 2 for m, o in product(members, others)) / 6
    assert auc(members, others) == pytest.approx(by_hand) == pytest.approx(4.5 / 6)
    assert auc([1, 2], [3, 4]) == 1
    assert auc([3, 4], [1, 2]) == 0
    assert auc([1, 1], [1, 1]) == 0.5


@given(FEW, FEW)
def test_auc_is_the_area_under_the_curve(members, others):
    labels = [0] * len(members) + [1] * len(others)
    assert auc(members, others) == pytest.approx(roc_auc_score(labels, members + others))
    assert auc(members, others) + auc(others, members) == pytest.approx(1)


def test_priv_leak_by_hand():
    """As open-unlearning turns MUSE's AUC round: of 0.9 against 0.6, 1/10 of 4/10 is left."""
    assert priv_leak(0.9, 0.6) == pytest.approx(100 * (0.1 - 0.4) / 0.4)
    assert priv_leak(0.6, 0.6) == 0
    assert priv_leak(0.2, 0.6) == pytest.approx(100)
    assert priv_leak(0.2, 1.0) is None
