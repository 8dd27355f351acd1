"""Distributions held by their likeliest tokens: a lower bound of the divergence, and exact."""

import pytest
import torch

from weightsurgery.learning.expected import (
    Expected,
    divergences,
    log_probability_of,
    truth_divergences,
)

VOCABULARY = 40


def drawn(seed, spread=2.0):
    generator = torch.Generator().manual_seed(seed)
    return spread * torch.randn(6, VOCABULARY, generator=generator)


def exact(before, after):
    """The whole divergence, float64."""
    p, q = before.double().log_softmax(-1), after.double().log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1)


def held(before, k, always=None):
    return Expected.of(before.double().softmax(-1), k, always)


@pytest.mark.parametrize("seed", range(3))
def test_with_all_tokens_held_it_is_the_divergence(seed):
    before, after = drawn(seed), drawn(seed + 10)
    wanted = exact(before, after)
    assert float(wanted.min()) > 0.1
    found = divergences(held(before, VOCABULARY), after)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), wanted, atol=1e-5, rtol=1e-5)
    assert len(held(before, 1000)) == 6  # more than there are is all there are


@pytest.mark.parametrize("seed", range(3))
def test_it_is_a_lower_bound_that_rises_with_what_is_held(seed):
    """Joining outcomes never adds to a divergence."""
    before, after = drawn(seed), drawn(seed + 10)
    wanted = exact(before, after)
    rows = torch.stack([divergences(held(before, k), after).double() for k in (1, 2, 5, 15, 40)])
    assert (rows[1:] >= rows[:-1] - 1e-5).all()
    assert (rows <= wanted + 1e-5).all()
    assert float(rows[0].sum()) < 0.9 * float(wanted.sum())


def test_it_is_zero_of_the_same_and_of_nothing_else():
    before = drawn(0)
    for k in (1, 7, VOCABULARY):
        assert divergences(held(before, k), before).abs().max() < 2e-6
        # Logits are the same distribution whatever is added to all of them.
        assert divergences(held(before, k), before + 3).abs().max() < 2e-6
        moved = before.clone()
        moved[:, int(before.mean(0).argmax())] += 1
        assert divergences(held(before, k), moved).max() > 1e-3


def test_its_gradient_is_the_divergences():
    """``softmax(after) − p`` at each place."""
    before, after = drawn(1), drawn(2).requires_grad_()
    divergences(held(before, VOCABULARY), after).sum().backward()
    wanted = after.detach().double().softmax(-1) - before.double().softmax(-1)
    assert float(wanted.abs().max()) > 0.1
    torch.testing.assert_close(after.grad.double(), wanted, atol=1e-5, rtol=1e-4)


def test_the_gradient_of_the_rest_pushes_all_others_alike():
    """Of the tokens that are not held, none is told from another: relative to what it has."""
    before, after = drawn(3), drawn(4).requires_grad_()
    few = held(before, 5)
    divergences(few, after).sum().backward()
    said = after.detach().softmax(-1)
    rest = torch.ones_like(said, dtype=torch.bool).scatter(1, few.tokens.long(), False)
    for grad, own, other in zip(after.grad, said, rest, strict=True):
        ratio = (grad / own)[other]
        assert float(ratio.abs().max()) > 1e-3
        torch.testing.assert_close(ratio, ratio.mean().expand_as(ratio), atol=1e-3, rtol=1e-3)


def test_a_token_is_held_whatever_its_probability():
    before = drawn(5)
    least = before.argmin(1)
    assert not (held(before, 4).tokens == least[:, None]).any()
    found = held(before, 4, least)
    place = found.tokens == least[:, None]
    assert place.any(1).all()
    wanted = before.double().log_softmax(-1).gather(1, least[:, None])[:, 0]
    torch.testing.assert_close(found.logs[place].double(), wanted, atol=1e-5, rtol=1e-5)


def test_places_are_taken_and_joined():
    whole = held(drawn(6), 8)
    again = Expected.joined([whole[0:2], whole[2:6]])
    assert torch.equal(again.tokens, whole.tokens)
    assert torch.equal(again.logs, whole.logs)
    assert (len(whole[1:3]), len(again)) == (2, 6)


@pytest.mark.parametrize("k", [1, 5, 1000])
def test_what_is_sure_costs_its_cross_entropy(k):
    tokens, said = torch.tensor([3, VOCABULARY - 1, 0]), drawn(0)[:3]
    found = Expected.sure(tokens, k, VOCABULARY)
    assert found.tokens[:, 0].tolist() == tokens.tolist()
    assert all(len(set(row)) == min(k, VOCABULARY) for row in found.tokens.tolist())
    wanted = torch.nn.functional.cross_entropy(said, tokens, reduction="none")
    assert float(wanted.min()) > 0.1
    torch.testing.assert_close(divergences(found, said), wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("seed", range(3))
def test_what_remains_is_the_divergence_of_one_event(seed):
    before, after = drawn(seed), drawn(seed + 10)
    truths = [(1,), (2, 7), (3,), (4, 8, 9), (5,), (6, 0)]  # as it is spelt here or there
    p, u = (
        torch.stack([each[list(t)].sum() for each, t in zip(said.double().softmax(-1), truths,
                                                            strict=True)])
        for said in (after, before)
    )  # fmt: skip
    exact = p * (p / u).log() + (1 - p) * ((1 - p) / (1 - u)).log()
    assert float(exact.max()) > 1e-3
    torch.testing.assert_close(
        log_probability_of(after, truths).exp().double(), p, atol=1e-6, rtol=1e-4
    )
    found = truth_divergences(after, truths, u.tolist())
    torch.testing.assert_close(found.double(), exact, atol=1e-5, rtol=1e-4)
    assert float(truth_divergences(before, truths, u.tolist()).abs().max()) < 1e-6


def test_a_remainder_is_felt_that_the_divergence_hardly_feels():
    wanted = torch.full((1, VOCABULARY), 0.997 / (VOCABULARY - 1))
    wanted[0, 0] = 0.003
    expected = Expected.of(wanted, 5, torch.tensor([0]))
    logits = torch.zeros(1, VOCABULARY)
    logits[0, 0] = torch.tensor(0.25 / 0.75 * (VOCABULARY - 1)).log()  # a quarter, not 0.003
    assert float(divergences(expected, logits)) < 0.3
    assert float(truth_divergences(logits, [(0,)], [0.003])) > 0.8
