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
    memorisation,
    min_k,
    min_k_plus_plus,
    model_utility,
    normalised_probability,
    priv_leak,
    privacy,
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


def test_memorisation_is_the_published_one():
    """Four parts of three models in arXiv 2605.24614, and what it makes of them."""
    published = [
        # 1 - ES, 1 - EM, 1 - P, 1 - truth ratio, memorisation
        (0.9410334254, 0.4098726256, 0.9449263802, 0.4329089433, 0.5821838393),
        (0.9359292239, 0.3956164242, 0.9403928840, 0.4687690597, 0.5888596838),
        (0.3207916756, 0.0318957777, 0.8951966056, 0.3177524389, 0.1032695737),
    ]
    for strength, exact, probability, ratio, wanted in published:
        logs = [math.log(ratio / (1 - ratio))] * 3
        found = memorisation(1 - strength, 1 - exact, 1 - probability, logs)
        assert found == pytest.approx(wanted, rel=1e-6)


def test_memorisation_by_hand():
    assert memorisation(0, 0, 0, [math.inf]) == 1
    assert memorisation(0, 0, 0, [-math.inf, -800, -math.inf]) == 0
    assert memorisation(0.5, 0.5, 0.5, [0.0]) == pytest.approx(0.5)
    assert memorisation(1, 0, 0, [0.0]) == 0


def test_privacy_is_the_published_one():
    """AltPO's scaled AUCs there, beside the retrained model's AUCs: 0.9515."""
    reference = {"loss": 0.38235, "zlib": 0.30461, "min_k": 0.37732, "min_k++": 0.47058}
    scaled = {"loss": 0.99682465, "zlib": 0.90603965, "min_k": 0.98414797, "min_k++": 0.92533814}
    above = {name: reference[name] * (2 - share) for name, share in scaled.items()}
    below = {name: reference[name] * share for name, share in scaled.items()}
    assert privacy(above, reference) == pytest.approx(0.95154646, rel=1e-6)
    assert privacy(below, reference) == pytest.approx(0.95154646, rel=1e-6)


def test_privacy_by_hand():
    assert privacy({"loss": 0.6, "zlib": 0.5}, {"loss": 0.6, "zlib": 0.5}) == 1
    assert privacy({"loss": 1.0, "zlib": 0.5}, {"loss": 0.5, "zlib": 0.5}) == 0
    assert privacy({"loss": 0.75, "zlib": 0.5}, {"loss": 0.5, "zlib": 0.5}) == pytest.approx(2 / 3)
    assert privacy({"loss": 0.5}, {"loss": 0.0}) is None
