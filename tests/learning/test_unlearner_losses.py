"""What each unlearner minimises: on a batch whose figures are fractions, and in a real training."""

import numpy as np
import pytest
import torch

from tests.learning.losses import UNLEARNERS
from tests.learning.tiny import FACTS, OTHER, UNSEEN, logits, loss
from weightsurgery.learning.data import Collator
from weightsurgery.learning.identify import train_vector
from weightsurgery.learning.method import IdentifyMode
from weightsurgery.learning.settings import Training
from weightsurgery.learning.stages import encode_rows
from weightsurgery.learning.unlearners.batch_outputs import BatchOutputs
from weightsurgery.learning.unlearners.run import train_unlearner
from weightsurgery.learning.unlearners.settings import settings_of
from weightsurgery.unlearning.methods import kul as kul_module
from weightsurgery.unlearning.scale_choice import with_change

LOG2, LOG15 = np.log(2), np.log(1.5)
SILENT = [9.0, -9.0, 5.0]  # what is said where no loss falls


def said(rows, labels, mask=None, hidden=()):
    """Logits of the probabilities given, or of nothing that counts."""
    values = [[SILENT if p is None else np.log(p).tolist() for p in row] for row in rows]
    inputs = {"labels": torch.tensor(labels), "attention_mask": torch.tensor(mask or labels)}
    return BatchOutputs(inputs, torch.tensor(values, dtype=torch.float64), hidden)


H, Q, E, T = 1 / 2, 1 / 4, 1 / 8, 3 / 8
# Two answers to forget: tokens 0 and 1 after one of a prompt, and 0 after two. Of the model that
# is trained they have 1/2 · 1/4 and 1/8; of the one before, 1/4 · 1/4 and 1/2.
LABELS = [[-100, 0, 1], [-100, -100, 0]]
FORGET = said([[(H, Q, Q), (Q, Q, H), None], [None, (E, T, H), None]], LABELS)
BASE = said([[(Q, H, Q), (Q, Q, H), None], [None, (H, Q, Q), None]], LABELS)
MORE = said([[(H, Q, Q), (E, T, H), None], [None, (0.75, E, E), None]], LABELS)
# One answer to keep: 1/2 · 1/2.
KEPT = [[-100, 0, 1]]
KEEP = said([[(H, Q, Q), (Q, H, Q), None]], KEPT)
KEEP_BASE = said([[(E, T, H), (Q, H, Q), None]], KEPT)

CE_FORGET, CE_KEEP = 2 * LOG2, LOG2  # 3 + 3 halvings over 3 tokens, 2 over 2
KL_FORGET = (LOG2 / 4 + (LOG2 / 4 + 0.375 * LOG15)) / 3  # now from before
KL_KEEP = (0.75 * LOG2 - LOG15 / 4) / 2  # now from before
KL_KEEP_BACK = (LOG2 / 4 + 0.375 * LOG15) / 2  # before from now
# Now from the helper: nothing, 1/4 log 2 + 1/4 log 2/3, and the third by its three terms.
KL_MORE = (LOG2 / 4 - LOG15 / 4 - np.log(6) / 8 + 0.375 * np.log(3) + LOG2) / 3
# π/π_ref is 2 and 1/4.
NPO = 20 * (np.log1p(2**0.1) + np.log1p(4**-0.1)) / 2
SIMNPO = (2 / 4.5) * np.mean(np.log1p(np.exp([0.2 - 4.5 * 1.5 * LOG2, 0.2 - 4.5 * 3 * LOG2])))


def labels_of_au():
    """``p · min(1, p/r)⁵``, made a distribution, and the cross-entropy of it, by position."""
    first = np.array([1, 64, 32]) / 97  # (1/4 · 1/32, 1/2, 1/4)
    second, third = np.array([Q, Q * (2 / 3) ** 5, H]), np.array([H * (2 / 3) ** 5, Q, Q])
    wanted = [first, second / second.sum(), third / third.sum()]
    found = [(H, Q, Q), (Q, Q, H), (E, T, H)]
    return -np.mean([p @ np.log(q) for p, q in zip(wanted, found, strict=True)])


TOYS = {
    "gradient-ascent": ({}, -CE_FORGET),
    "kul": ({}, -CE_FORGET),
    "gradient-difference": ({"keep_weight": 3}, 3 * CE_KEEP - CE_FORGET),
    "npo": ({}, NPO),
    "npo gdr": ({"retain": "gdr", "keep_weight": 2}, NPO + 2 * CE_KEEP),
    "npo klr": ({"retain": "klr", "keep_weight": 2}, NPO + 2 * KL_KEEP_BACK),
    "simnpo": ({"delta": 0.2, "forget_weight": 0.5, "keep_weight": 2}, SIMNPO / 2 + 2 * CE_KEEP),
    "kga": ({"alpha": 0.3}, abs(KL_MORE - 0.7) + 0.3 * KL_KEEP),
    "eul": (
        {"alpha": 0.8, "task": 0.5, "gamma": 0.1},
        0.8 * KL_KEEP - KL_FORGET + 0.5 * CE_KEEP - 0.1 * CE_FORGET,
    ),
    "au": ({"alpha": 5}, labels_of_au()),
}


def toy(name, settings, **prepared):
    """An unlearner without a model: helpers say what is written above."""
    kind = UNLEARNERS[name.split()[0]]
    made = object.__new__(kind)
    made.settings, made.prepared = settings_of(kind, settings), prepared
    table = {"base": (BASE, KEEP_BASE), "helper": (MORE, None), "reinforced": (MORE, None)}
    made.reference_outputs = lambda which, batch: table[which][batch is KEEP.inputs]
    made.sum_over_processes = lambda value: value
    keep = KEEP if kind.keeps(made.settings) else None
    return made, keep


@pytest.mark.parametrize("name", TOYS)
def test_the_loss_by_hand(name):
    settings, hand = TOYS[name]
    made, keep = toy(name, settings, gap=0.7)
    assert float(made.loss(FORGET, keep)) == pytest.approx(hand, rel=1e-7)


@pytest.mark.parametrize("gap", [0.01, 0.9])
def test_too_little_and_too_much_of_a_gap_count(gap):
    made, keep = toy("kga", {"alpha": 0}, gap=gap)
    assert (gap < KL_MORE) == (gap == 0.01)
    assert float(made.loss(FORGET, keep)) == pytest.approx(abs(KL_MORE - gap), rel=1e-7)


def test_the_loss_of_rmu_by_hand():
    """The layer's own output, at every token that is no padding, of prompts too."""
    made, _ = toy("rmu", {"alpha": 10}, layer=1, control=torch.tensor([3.0, 4.0]))
    away = torch.full((1, 3, 2), 99.0)  # the layers around it
    inputs = {
        "attention_mask": torch.tensor([[1, 1, 0]]),
        "labels": torch.tensor([[-100, 0, -100]]),
    }
    forget, keep, before = (
        BatchOutputs(inputs, torch.zeros(1), (away, away, each, away))
        for each in torch.tensor(
            [
                [[[1.0, 0.0], [0.0, 2.0], [50.0, 50.0]]],
                [[[1.0, 1.0], [0.0, 0.0], [70.0, 0.0]]],
                [[[0.0, 3.0], [0.0, 1.0], [-80.0, 0.0]]],
            ]
        )
    )
    made.reference_outputs = lambda which, batch: before
    # (4 + 16 + 9 + 4) / 4 and (1 + 4 + 0 + 1) / 4.
    assert float(made.loss(forget, keep)) == pytest.approx(33 / 4 + 10 * 6 / 4)


def halves(rows):
    """Float64 log-probabilities of logits."""
    return rows.double().log_softmax(-1)


def kl(first, second):
    first, second = halves(first), halves(second)
    return float((first.exp() * (first - second)).sum(-1).mean())


def nll(model, example):
    tokens = logits(model, [example]).shape[0]
    return tokens * loss(model, [example]), tokens


class Seen:
    """All that the equations are made of: the model before, one that moved, and helpers."""

    def __init__(self, model, tokenizer, training, change, helpers):
        self.model, self.tokenizer, self.change = model, tokenizer, change
        self.helpers = {
            name: train_vector(
                model, tokenizer, examples,
                Training(steps=3, learning_rate=1e-3, batch_size=16,
                         weight_decay=training.weight_decay),
                IdentifyMode("joint"),
            )
            for name, examples in helpers.items()
        }  # fmt: skip

    def at(self, change, what, *given):
        with with_change(self.model, change):
            return what(self.model, *given)

    def now(self, what, *given):
        return self.at(self.change, what, *given)

    def before(self, what, *given):
        return self.at({}, what, *given)


def npo_loss(seen):
    def ratios(each):
        return np.array([nll(seen.model, example)[0] for example in each])

    with with_change(seen.model, seen.change):
        after = ratios(FACTS)
    return np.mean(20 * np.log1p(np.exp(0.1 * (ratios(FACTS) - after))))


def simnpo_loss(seen):
    with with_change(seen.model, seen.change):
        rewards = [4.5 * total / count for total, count in (nll(seen.model, e) for e in FACTS)]
    return 0.125 * np.mean(2 / 4.5 * np.log1p(np.exp(-np.array(rewards)))) + seen.now(loss, OTHER)


def kga_loss(seen):
    news = seen.at(seen.helpers["unseen"], logits, UNSEEN)
    gap = kl(news, seen.before(logits, UNSEEN))
    own = kl(seen.now(logits, FACTS), seen.at(seen.helpers["forget"], logits, FACTS))
    return abs(own - gap) + 0.1 * kl(seen.now(logits, OTHER), seen.before(logits, OTHER))


def eul_loss(seen):
    apart = [kl(seen.now(logits, each), seen.before(logits, each)) for each in (OTHER, FACTS)]
    return apart[0] - apart[1] + seen.now(loss, OTHER) - 0.1 * seen.now(loss, FACTS)


def au_loss(seen):
    base, more = seen.before(logits, FACTS), seen.at(seen.helpers["forget"], logits, FACTS)
    wanted = halves(base - 5 * (more - base).clamp(min=0)).exp()
    return -float((wanted * halves(seen.now(logits, FACTS))).sum(-1).mean())


def rmu_loss(seen):
    drawn = torch.rand(32, generator=torch.Generator().manual_seed(0))

    @torch.no_grad()
    def states(model, examples):
        batch = Collator(2)(encode_rows(model, seen.tokenizer, examples, None))
        mask = batch.pop("labels") is not None and batch["attention_mask"].bool()
        return model(**batch, output_hidden_states=True).hidden_states[1][mask].double()

    forget, keep = (seen.now(states, each) for each in (FACTS, OTHER))
    steered = (forget - 6.5 * drawn / drawn.norm()).square().mean()
    return float(steered + 1200 * (keep - seen.before(states, OTHER)).square().mean())


def apart_from(retain):
    def found(seen):
        kept = seen.now(loss, OTHER)
        if retain == "klr":
            kept = kl(seen.before(logits, OTHER), seen.now(logits, OTHER))
        return npo_loss(seen) + kept

    return found


EQUATIONS = {
    "gradient-ascent": ({}, lambda seen: -seen.now(loss, FACTS)),
    "kul": ({}, lambda seen: -seen.now(loss, FACTS)),
    "gradient-difference": ({}, lambda seen: seen.now(loss, OTHER) - seen.now(loss, FACTS)),
    "npo": ({}, npo_loss),
    "npo gdr": ({"retain": "gdr"}, apart_from("gdr")),
    "npo klr": ({"retain": "klr"}, apart_from("klr")),
    "simnpo": ({}, simnpo_loss),
    "kga": ({"helper_steps": 3, "helper_rate": 1e-3}, kga_loss),
    "eul": ({}, eul_loss),
    "au": ({"helper_steps": 3, "helper_rate": 1e-3}, au_loss),
    "rmu": ({}, rmu_loss),
}


@pytest.mark.parametrize("name", EQUATIONS)
def test_a_training_minimises_its_equation(trained_tiny, name):
    """Its first and second loss are the equation's of the model before and after one step, worked
    out from what the models say: references stand still, padding and prompts do not count."""
    model, tokenizer = trained_tiny
    settings, equation = EQUATIONS[name]
    kind = UNLEARNERS[name.split()[0]]
    weight_decay = kind.published.weight_decay
    helpers = {"kga": {"unseen": UNSEEN, "forget": FACTS}, "au": {"forget": FACTS}}

    def train(steps):
        how = Training(
            steps=steps, learning_rate=1e-3, batch_size=16, weight_decay=weight_decay
        )  # a batch is all there is
        return train_unlearner(
            kind, model, tokenizer, FACTS, OTHER, how, settings_of(kind, settings), unseen=UNSEEN
        )

    once, more = train(1), train(6)
    change = {
        key: t if isinstance(t, torch.Tensor) else t.matrix() for key, t in once.change.items()
    }
    assert any(t.any() for t in change.values())
    seen = Seen(model, tokenizer, kind.published, {}, helpers.get(name, {}))
    assert once.trained.first_loss == pytest.approx(equation(seen), rel=1e-4, abs=1e-5)
    seen.change = change
    second = train(2).trained.last_loss
    assert second == pytest.approx(equation(seen), rel=1e-3, abs=1e-4)
    assert abs(second - once.trained.first_loss) > 1e-3 * abs(second)  # it moved
    if name not in ("kga", "rmu"):  # which overshoot at this rate
        assert more.trained.last_loss < once.trained.first_loss


def test_nothing_is_under_a_limit_of_nothing(trained_tiny, monkeypatch):
    """Where unseen data are never continued right, a request that is not either is as strange."""
    model, tokenizer = trained_tiny
    kind, told = UNLEARNERS["kul"], []

    def memorised(work, examples, names):
        told.append(list(names))
        value = {"ma": 0.2, "el": 0.0} if len(told) == 1 else {"ma": 0.5, "el": 0.0}
        if len(told) > 3:
            value["ma"] = 0.1
        return {name: value[name] for name in names}

    monkeypatch.setattr(kul_module, "_memorised", memorised)
    found = train_unlearner(
        kind, model, tokenizer, FACTS, (), Training(epochs=9, learning_rate=1e-4),
        kind.Settings(), unseen=UNSEEN,
    )  # fmt: skip
    # Limits, whether EL is defined, then epochs: 0.5 and not under 0.2, then 0.1.
    assert told == [["ma", "el"], ["el"], ["ma", "el"], ["ma", "el"]]
    assert found.trained.steps == 2
    # A share that is left is still too much.
    assert not kul_module._under(0.1, 0.0)
    assert not kul_module._under(0.2, 0.2)
    assert not kul_module._under(None, 0.2)
