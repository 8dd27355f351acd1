"""UNDIAL: its target and loss by hand, and that training on it forgets."""

import math

import pytest
import torch

from tests.learning.test_unlearner_losses import BASE, FORGET
from tests.learning.test_unlearners import forgets
from tests.learning.tiny import FACTS, logits
from weightsurgery.errors import EditError
from weightsurgery.learning.data import Collator
from weightsurgery.learning.settings import Training
from weightsurgery.learning.stages import encode_rows
from weightsurgery.learning.unlearners.run import train_unlearner
from weightsurgery.learning.unlearners.settings import settings_of
from weightsurgery.unlearning.methods.undial import Undial, adjusted

LOG2 = math.log(2)


def test_only_the_logit_of_the_token_falls():
    before = torch.tensor([[1.0, 2.0, 3.0], [0.0, -1.0, 5.0]], dtype=torch.float64)
    found = adjusted(before, torch.tensor([2, 0]), 10.0)
    assert (found - before).tolist() == [[0, 0, -10], [-10, 0, 0]]
    # Among the others the odds are as they were.
    p, q = before.softmax(-1), found.softmax(-1)
    torch.testing.assert_close(q[0, 0] / q[0, 1], p[0, 0] / p[0, 1])


def test_the_loss_by_hand():
    """γ = log 4: of (1/4, 1/2, 1/4), (1/4, 1/4, 1/2) and (1/2, 1/4, 1/4) the first, second and
    first share fall to a quarter, which leaves (1, 8, 4)/13, (4, 1, 8)/13 and (1, 2, 2)/5."""
    assert FORGET.wanted.tolist() == [0, 1, 0]
    made = Undial(settings_of(Undial, {"strength": math.log(4)}))
    made.reference_outputs = lambda which, batch: {"base": BASE}[which]
    first = (1 * 1 + 8 * 2 + 4 * 2) / 13 * LOG2  # now (1/2, 1/4, 1/4)
    second = (4 * 2 + 1 * 2 + 8 * 1) / 13 * LOG2  # now (1/4, 1/4, 1/2)
    third = (1 * 3 * LOG2 + 2 * math.log(8 / 3) + 2 * LOG2) / 5  # now (1/8, 3/8, 1/2)
    found = float(made.loss(FORGET, None))
    assert found == pytest.approx((first + second + third) / 3, rel=1e-6)


def test_a_training_minimises_its_equation(trained_tiny):
    """Its first loss is that of the model before, worked out in float64; and it falls."""
    model, tokenizer = trained_tiny
    how = Training(steps=6, learning_rate=1e-3, batch_size=16)
    found = train_unlearner(Undial, model, tokenizer, FACTS, (), how, settings_of(Undial))
    said = logits(model, FACTS).double()
    labels = Collator(2)(encode_rows(model, tokenizer, FACTS, None))["labels"][:, 1:]
    target = said.clone()
    target[torch.arange(len(said)), labels[labels != -100]] -= 10
    loss = -(target.softmax(-1) * said.log_softmax(-1)).sum(-1).mean()
    assert found.trained.first_loss == pytest.approx(float(loss), rel=1e-4)
    assert found.trained.last_loss < found.trained.first_loss


def test_training_forgets_and_spares(trained_tiny):
    # It has no term of what to keep: later what is like it goes, too.
    forgets(*trained_tiny, "undial", Training(steps=5, learning_rate=1e-3), {}, 0.7, 0.3)


def test_a_strength_that_is_none_is_refused():
    for strength in (0, -1, math.inf, math.nan):
        with pytest.raises(EditError, match="strength"):
            settings_of(Undial, {"strength": strength})
