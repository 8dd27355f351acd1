"""Watches: what they see, which weights they keep, and when they end a training."""

import pytest
import torch

from tests.learning.tiny import FACTS, OTHER, byte_tokenizer, tiny
from weightsurgery.learning.watch import Rule, Watch

NAME = "model.norm.weight"


def looks(plan, patience=1, **settings):
    """A watch over scripted scores ``(target, keep)``, at steps 0, 1, 2...; ended where, and best.

    Each step fills a weight with its number, so that the weights tell their step.
    """
    model = tiny("llama")
    now = {"": 0}

    def scripted(model, tokenizer, rows):
        target, keep = plan[now[""]]
        return target if rows is FACTS else keep

    watch = Watch(FACTS, {"keep": OTHER}, every=1, patience=patience, score=scripted, **settings)
    with torch.no_grad():
        model.get_parameter(NAME).fill_(0)
        watch.begin(model, byte_tokenizer(), [NAME])
        for step in range(1, len(plan)):
            now[""] = step
            model.get_parameter(NAME).fill_(step)
            if watch.look(step):
                break
    watch.finish()
    return now[""], int(model.get_parameter(NAME)[0]), watch


@pytest.mark.parametrize(
    ("plan", "ended", "best"),
    [
        ([(1.0, 1.0), (0.8, 1.0), (0.3, 1.0), (0.5, 1.0)], 3, 2),  # the lowest counts
        ([(1.0, 1.0), (0.8, 1.0), (0.3, 0.97), (0.1, 1.0)], 2, 1),  # a keep set suffers
        ([(1.0, 1.0), (0.8, 1.0), (0.3, 0.975), (0.4, 1.0)], 3, 2),  # at the threshold it may stay
        ([(1.0, 0.8), (0.5, 0.78), (0.3, 0.77)], 2, 1),  # shares of what was known before
        ([(1.0, 1.0), (0.0, 1.0), (0.0, 1.0)], 1, 1),  # all is forgotten
        ([(0.5, 1.0), (0.5, 1.0), (0.6, 1.0)], 2, 0),  # nothing better than before
        ([(0.9, 1.0), (0.5, 1.0), (0.5, 1.0)], 2, 1),  # among equals the first
    ],
)
def test_a_watch_keeps_the_best_weights_that_spare_what_is_kept(plan, ended, best):
    assert looks(plan)[:2] == (ended, best)


@pytest.mark.parametrize(
    ("plan", "ended", "best"),
    [
        ([(0.1, 1.0), (0.5, 1.0), (0.9, 1.0), (0.7, 1.0)], 3, 2),
        ([(0.1, 1.0), (1.0, 1.0), (1.0, 1.0)], 1, 1),
        ([(0.0, 1.0), (0.5, 1.0), (1.0, 0.9)], 2, 1),
        ([(0.5, 1.0), (0.0, 1.0), (0.4, 1.0)], 2, 0),
    ],
)
def test_learning_more_is_better(plan, ended, best):
    assert looks(plan, learning=True)[:2] == (ended, best)


def test_the_threshold_can_be_chosen():
    plan = [(1.0, 1.0), (0.5, 0.7), (0.2, 0.4)]
    assert looks(plan, rule=Rule(0.6))[:2] == (2, 1)
    assert looks(plan, rule=Rule(0.3))[:2] == (2, 2)


def test_a_rule_asks_for_shares_of_what_was_known():
    rule = Rule(0.9, {"a": 0.5, "b": 1.0})
    assert rule.left({"a": 0.4, "b": 1.0, "c": 0.0}) == 0.8
    assert not rule.holds({"a": 0.4, "b": 1.0})
    assert not rule.holds({"a": 0.5, "b": 0.8})
    assert rule.holds({"a": 0.45, "b": 0.9})
    # Of nothing, nothing can be lost.
    assert Rule(1.0, {"a": 0.0}).left({"a": 0.0}) == Rule(1.0).left({"a": 0.0}) == 1.0


def test_a_watch_and_its_rule_agree_at_the_very_threshold():
    """Where a product and a quotient are rounded differently, there is still one rule."""
    sizes = range(5, 150)
    shares = [(n, m, k) for n in sizes for m in range(1, n + 1) for k in range(m + 1)
              if ((k / n) / (m / n) >= 0.975) != (k / n >= 0.975 * (m / n))]  # fmt: skip
    assert shares
    for n, m, k in shares:
        holds = Rule(0.975, {"keep": m / n}).holds({"keep": k / n})
        _, best, _ = looks([(1.0, m / n), (0.5, k / n)])
        assert best == int(holds)


def test_what_a_rule_knows_of_a_set_goes_before_what_the_model_knows():
    plan = [(1.0, 0.9), (0.5, 0.8)]
    assert looks(plan, rule=Rule(0.85))[1] == 1
    assert looks(plan, rule=Rule(0.85, {"keep": 1.0}))[1] == 0
    assert looks(plan, rule=Rule(0.85, {"other": 1.0}))[1] == 1


@pytest.mark.parametrize(
    ("patience", "ended", "best"),
    [(1, 2, 1), (2, 5, 3), (3, 8, 6)],
)
def test_a_watch_waits_for_what_suffers_to_recover(patience, ended, best):
    good, bad = 1.0, 0.5
    target = [1.0, 0.9, 0.1, 0.8, 0.1, 0.1, 0.7, 0.1, 0.1]
    keep = [good, good, bad, good, bad, bad, good, bad, bad]
    plan = list(zip(target, keep, strict=True))
    assert looks(plan, patience)[:2] == (ended, best)


def test_a_watch_tells_what_it_saw():
    *_, watch = looks([(1.0, 0.9), (0.5, 0.9), (0.25, 0.1), (0.0, 0.9)])
    assert watch.history == [
        {"": 1.0, "keep": 0.9},
        {"": 0.5, "keep": 0.9, "step": 1.0},
        {"": 0.25, "keep": 0.1, "step": 2.0},
    ]


def test_a_watch_looks_when_enough_steps_were_taken():
    model = tiny("llama")
    watch = Watch(FACTS, {}, every=10, score=lambda *_: 0.5)
    watch.begin(model, byte_tokenizer(), [NAME])
    # Rounds of seven steps: at the end of every second.
    for step in (7, 14, 21, 28, 35):
        watch.look(step)
    assert [each["step"] for each in watch.history[1:]] == [14, 28]
    watch.begin(model, byte_tokenizer(), [NAME])
    for step in range(1, 31):
        watch.look(step)
    assert [each["step"] for each in watch.history[1:]] == [10, 20, 30]


@pytest.mark.parametrize("training", [True, False])
def test_a_look_leaves_the_models_mode(training):
    model = tiny("llama").train(training)
    watch = Watch(FACTS, {}, every=1)
    watch.begin(model, byte_tokenizer(), [NAME])
    model.train(training)
    watch.look(1)
    assert model.training == training
