"""IdkDPO and AltPO: loss and gradient by hand, their pairs, and that training on them forgets."""

import json
import math
from dataclasses import replace

import pytest
import torch

from tests.learning.test_unlearner_losses import KEEP, LOG2, E, H, Q, T, said
from tests.learning.test_unlearners import forgets
from tests.learning.tiny import FACTS, OTHER, byte_tokenizer, loss
from weightsurgery.errors import EditError
from weightsurgery.learning.data import Collator, Encoded, Example, encode
from weightsurgery.learning.method import Stage
from weightsurgery.learning.settings import Training
from weightsurgery.learning.unlearners.pairs import (
    Pair,
    PairCollator,
    answered_otherwise,
    written_alternates,
)
from weightsurgery.learning.unlearners.run import train_unlearner
from weightsurgery.learning.unlearners.settings import settings_of
from weightsurgery.learning.unlearners.work import Preparation
from weightsurgery.unlearning.by_preference import dpo
from weightsurgery.unlearning.methods.altpo import AltPO
from weightsurgery.unlearning.methods.idk_dpo import ANSWERS, IdkDPO

# One pair: token 0 then 1 is to go, at 1/2 · 1/4, before 1/4 · 1/4; token 0 is preferred, at 1/8,
# before 1/2.
LABELS = [[-100, 0, 1], [-100, -100, 0]]
NOW = said([[(H, Q, Q), (Q, Q, H), None], [None, (E, T, H), None]], LABELS)
BEFORE = said([[(Q, H, Q), (Q, Q, H), None], [None, (H, Q, Q), None]], LABELS)


def made(kind, **settings):
    found = kind(settings_of(kind, settings))
    found.reference_outputs = lambda which, batch: {"base": BEFORE}[which]
    return found


@pytest.mark.parametrize("kind", [IdkDPO, AltPO])
def test_the_loss_by_hand(kind):
    """The odds of what goes have doubled, of what is preferred are a quarter: a gain of 1/8."""
    for beta in (0.1, 1.0):
        wanted = 2 / beta * math.log1p(8**beta)
        assert float(made(kind, beta=beta).loss(NOW, KEEP)) == pytest.approx(wanted + LOG2)
    half = float(made(kind, keep_weight=0.5).loss(NOW, KEEP))
    assert half == pytest.approx(20 * math.log1p(8**0.1) + LOG2 / 2)


def test_the_gradient_by_hand():
    """``∂L/∂nll`` is ``2 σ(−β gain)`` of the preferred and less that of the rejected."""
    now = torch.tensor([3.0, 1.0, 2.0, 5.0], dtype=torch.float64, requires_grad=True)
    before = torch.tensor([2.0, 2.0, 2.0, 4.0], dtype=torch.float64)
    dpo((now[::2], before[::2]), (now[1::2], before[1::2]), 0.5, 2).backward()
    gains = torch.tensor([1.0 + 1.0, -1.0 + 0.0], dtype=torch.float64)
    each = 2 * torch.sigmoid(-0.5 * gains) / 2
    wanted = torch.stack([-each, each], 1).flatten()
    torch.testing.assert_close(now.grad, wanted)


def test_the_half_that_rejects_is_npo():
    from weightsurgery.unlearning.methods.npo import npo

    nll, before = torch.tensor([3.0, 0.5]), torch.tensor([2.0, 1.0])
    same = torch.tensor([1.0, 4.0])
    found = dpo((nll, before), (same, same), 0.3, 2)
    torch.testing.assert_close(found, npo(nll, before, 0.3, 2))


def test_parts_of_a_step_add_up_to_it():
    whole = replace(NOW, part_of=replace(NOW.whole, rows=torch.tensor(6)))  # of three pairs
    kept = LOG2
    part = float(made(IdkDPO).loss(whole, KEEP)) - kept
    assert part == pytest.approx((float(made(IdkDPO).loss(NOW, KEEP)) - kept) / 3)


def test_a_pair_is_two_rows_one_after_another():
    pairs = [Pair([5, 6, 7, 1], 2, 1, Encoded([5, 6, 9, 9, 1], 2, 1)), Pair([3, 4], 1, 0,
             Encoded([3, 8], 1))]  # fmt: skip
    batch = PairCollator(2)(pairs)
    assert batch["input_ids"].tolist() == [
        [5, 6, 7, 1, 2], [5, 6, 9, 9, 1], [3, 4, 2, 2, 2], [3, 8, 2, 2, 2],
    ]  # fmt: skip
    assert batch["labels"][1].tolist() == [-100, -100, 9, 9, 1]


def test_an_alternate_has_the_rows_own_prompt_and_end():
    tokenizer = byte_tokenizer()
    example = Example("The colour of a is", " red")
    row = encode(tokenizer, example)
    other = answered_otherwise(tokenizer, example, row, "I do not know.")
    assert other == encode(tokenizer, Example(example.prompt, " I do not know."))
    short = answered_otherwise(tokenizer, example, row, "x" * 99, limit=30)
    assert len(short.input_ids) == 30
    assert short.input_ids[-1] == tokenizer.eos_token_id
    turn = Example("<s>a?", "b</s>", templated=True)
    row = encode(tokenizer, turn)
    other = answered_otherwise(tokenizer, turn, row, "cd")
    assert other == encode(tokenizer, Example("<s>a?", "cd</s>", templated=True))


def preparation(trained_tiny, kind, workspace=None, **settings):
    model, tokenizer = trained_tiny
    return Preparation(
        model, tokenizer, Stage("all", ()), FACTS[:4], OTHER, (), Training(seed=3),
        settings_of(kind, settings), model.device, Collator(2), workspace=workspace,
    )  # fmt: skip


def test_alternates_are_drawn_from_the_model_by_the_seed(trained_tiny):
    work = preparation(trained_tiny, AltPO)
    found, lacking = written_alternates(work, 3, 1.0)
    assert (len(found), lacking) == (4, 12 - sum(map(len, found)))
    assert sum(map(len, found)) > 0
    for example, texts in zip(FACTS, found, strict=False):
        assert all(text.strip() and "\n" not in text for text in texts)
        assert example.completion.strip() not in texts
    assert written_alternates(work, 3, 1.0)[0] == found
    work.training = Training(seed=4)
    assert written_alternates(work, 3, 1.0)[0] != found


def test_a_run_that_goes_on_trains_on_the_same_alternates(trained_tiny, tmp_path):
    work = preparation(trained_tiny, AltPO, tmp_path / "work", alternates=2)
    found = AltPO.alternates(work)
    assert json.loads((tmp_path / "work/alternates.json").read_text()) == found
    assert work.notes["alternates"]["made"] == sum(map(len, found))
    (tmp_path / "work/alternates.json").write_text(json.dumps([["kept"]] * 4))
    assert AltPO.alternates(work) == [["kept"]] * 4
    (tmp_path / "work/alternates.json").write_text(json.dumps([[]] * 4))
    with pytest.raises(EditError, match="no other answer"):
        AltPO.alternates(work)


def test_not_knowing_is_drawn_for_each_example(trained_tiny):
    work = preparation(trained_tiny, IdkDPO)
    found = IdkDPO.alternates(work)
    assert all(len(texts) == 1 and texts[0] in ANSWERS for texts in found)
    assert found == IdkDPO.alternates(work)
    rows = IdkDPO.rows(work, {"alternates": found})
    assert [row.input_ids for row in rows.train] == [
        encode(byte_tokenizer(), each).input_ids for each in FACTS[:4]
    ]
    said = byte_tokenizer().decode(rows.train[0].alternate.input_ids, skip_special_tokens=True)
    assert said.startswith(FACTS[0].prompt + " " + found[0][0][:20])


def test_the_first_loss_is_that_of_no_gain(trained_tiny):
    """Before a step nothing is preferred: ``(2/β) log 2``, and the cross-entropy of what stays."""
    model, tokenizer = trained_tiny
    how = Training(steps=4, learning_rate=1e-3, batch_size=8)
    settings = settings_of(IdkDPO, {"beta": 0.5})
    found = train_unlearner(IdkDPO, model, tokenizer, FACTS, OTHER, how, settings)
    assert found.trained.first_loss == pytest.approx(4 * LOG2 + loss(model, OTHER), rel=1e-3)
    assert found.trained.last_loss < found.trained.first_loss


@pytest.mark.parametrize(("name", "settings"), [
    ("idk-dpo", {}), ("altpo", {"alternates": 2}),
])  # fmt: skip
def test_training_forgets_and_spares(trained_tiny, name, settings):
    how = Training(steps=12, learning_rate=1e-3, batch_size=8)
    forgets(*trained_tiny, name, how, settings, 0.5, 0.3)


def test_senseless_settings_are_refused():
    wrong = [("beta", 0), ("keep_weight", -1.0), ("alternates", 0), ("temperature", 0.0)]
    for name, value in wrong:
        with pytest.raises(EditError, match=name):
            settings_of(AltPO, {name: value})
