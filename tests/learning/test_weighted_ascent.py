"""WGA and SatImp: their losses and gradients by hand, and that training on them forgets."""

import math

import pytest
import torch

from tests.learning.test_unlearner_losses import FORGET, KEEP, LOG2
from tests.learning.test_unlearners import forgets
from weightsurgery.errors import EditError
from weightsurgery.learning.settings import Training
from weightsurgery.learning.unlearners.losses import weighted_ascent
from weightsurgery.learning.unlearners.settings import settings_of
from weightsurgery.unlearning.methods.gradient_difference import GradientDifference
from weightsurgery.unlearning.methods.satimp import SatImp
from weightsurgery.unlearning.methods.wga import WGA

KEPT = LOG2  # cross-entropy of the batch to keep


def loss(kind, **settings):
    return float(kind(settings_of(kind, settings)).loss(FORGET, KEEP))


def test_losses_by_hand():
    """The tokens to forget have 1/2, 1/4 and 1/8, so 1, 2 and 3 halvings."""
    assert loss(WGA) == pytest.approx(KEPT - LOG2 * (1 / 2 + 2 / 4 + 3 / 8) / 3)
    assert loss(WGA, beta=2.0, keep_weight=0.5) == pytest.approx(
        KEPT / 2 - LOG2 * (1 / 4 + 2 / 16 + 3 / 64) / 3
    )
    weights = [1 / 2**5 * 1 / 2, 1 / 4**5 * 3 / 4, 1 / 8**5 * 7 / 8]
    assert loss(SatImp) == pytest.approx(
        0.1 * KEPT - LOG2 * sum(w * n for w, n in zip(weights, (1, 2, 3), strict=True)) / 3
    )


def test_without_weights_it_is_gradient_ascent():
    plain = loss(GradientDifference)
    assert loss(WGA, beta=0.0) == pytest.approx(plain)
    assert loss(SatImp, saturation=0.0, importance=0.0, keep_weight=1.0) == pytest.approx(plain)
    assert loss(WGA) != pytest.approx(plain)


def test_weights_take_no_gradient():
    """``∂L/∂z = w (1 − p)`` at the token and ``−w p`` at the others: that of ascent, times w."""
    logits = torch.randn(4, 7, dtype=torch.float64, requires_grad=True)
    tokens = torch.tensor([0, 3, 3, 6])
    weighted_ascent(logits, tokens, 4, 2.0, 1.0).backward()
    p = logits.detach().softmax(-1)
    own = p.gather(1, tokens[:, None])
    wanted = own**2 * (1 - own) * (torch.nn.functional.one_hot(tokens, 7) - p) / 4
    torch.testing.assert_close(logits.grad, wanted)


@pytest.mark.parametrize("name", ["wga", "satimp"])
def test_training_forgets_and_spares(trained_tiny, name):
    forgets(*trained_tiny, name, Training(steps=15, learning_rate=1e-3), {}, 0.7, 0.3)


def test_senseless_settings_are_refused():
    for kind, name in ((WGA, "beta"), (WGA, "keep_weight"), (SatImp, "importance")):
        for value in (-1, math.inf, math.nan):
            with pytest.raises(EditError, match=name):
                settings_of(kind, {name: value})
