"""A distribution that a model is to predict at a place, held by its likeliest tokens.

A vocabulary has 30,000 to 260,000 tokens, a handful of which hold nearly all of the probability
at any one place. The likeliest ``k`` are held, and all others as one: a divergence over these
``k + 1`` outcomes is a lower bound of the whole one, and close to it. So what a model says of
thousands of places fits in megabytes, and no second model is run beside the one that is trained.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Expected", "divergences", "log_probability_of", "truth_divergences"]

_NONE = math.log(1e-12)  # for a token that is not to come
_LEAST = 1e-6  # probability of all others together, at least: float32 rounds less away


@dataclass(frozen=True)
class Expected:
    """Distributions over the next token, one per place.

    Attributes:
        tokens: The likeliest tokens, int32, shape (places, k).
        logs: Logarithms of their probabilities in nats, float32, shape (places, k).
    """

    tokens: Tensor
    logs: Tensor

    @classmethod
    def of(cls, probabilities: Tensor, k: int, always: Tensor | None = None) -> Expected:
        """Of whole distributions; a token that is always held comes first.

        Args:
            probabilities: Shape (places, vocabulary), float32 or float64; rows sum to 1.
            k: Tokens to hold, or all where there are fewer.
            always: A token of each place that is held whatever its probability, int64, shape
                (places,).
        """
        k = min(k, probabilities.shape[1])
        ranked = probabilities
        if always is not None:
            ranked = probabilities.scatter(1, always[:, None], 2.0)
        tokens = ranked.topk(k, dim=1).indices
        logs = probabilities.gather(1, tokens).clamp_min(1e-12).log()
        return cls(tokens.to(torch.int32), logs.float())

    @classmethod
    def sure(cls, tokens: Tensor, k: int, vocabulary: int) -> Expected:
        """Of one token at each place, which is first of those held.

        Args:
            tokens: int64, shape (places,).
            k: Tokens to hold, or all where there are fewer.
            vocabulary: How many there are.
        """
        held = (tokens[:, None] + torch.arange(min(k, vocabulary))) % vocabulary
        logs = torch.full(held.shape, _NONE, dtype=torch.float32)
        logs[:, 0] = 0
        return cls(held.to(torch.int32), logs)

    def __len__(self) -> int:
        return self.tokens.shape[0]

    def __getitem__(self, places: slice) -> Expected:
        return Expected(self.tokens[places], self.logs[places])

    @classmethod
    def joined(cls, parts: Sequence[Expected]) -> Expected:
        """The places of all parts, in order; all hold as many tokens."""
        return cls(torch.cat([p.tokens for p in parts]), torch.cat([p.logs for p in parts]))

    def to(self, device: torch.device) -> Expected:
        """The same on a device."""
        return Expected(self.tokens.to(device), self.logs.to(device))


def divergences(expected: Expected, logits: Tensor) -> Tensor:
    """``KL(expected ‖ logits)`` at each place in nats, over the tokens held and the rest as one.

    Args:
        expected: Of as many places, on the same device.
        logits: What a model says, shape (places, vocabulary).

    Returns:
        Float32, shape (places,); from 0.
    """
    logs = logits.float().log_softmax(-1).gather(1, expected.tokens.long())
    known = expected.logs.exp()
    rest = (1 - known.sum(1)).clamp_min(_LEAST)
    rest_predicted = (1 - logs.exp().sum(1)).clamp_min(_LEAST)
    return (known * (expected.logs - logs)).sum(1) + rest * (rest.log() - rest_predicted.log())


def truth_divergences(
    logits: Tensor, truths: Sequence[Sequence[int]], wanted: Sequence[float]
) -> Tensor:
    """``KL(predicted ‖ wanted)`` in nats of one event: a token that begins the truth, or none.

    :func:`divergences` asks that all that is expected be predicted, and hardly feels what is
    predicted besides: 0.06 of a token that is to have 0.003 costs it 0.06, and this 0.12.

    Args:
        logits: What a model says, shape (places, vocabulary).
        truths: Of each place the tokens that begin the truth, at least one.
        wanted: Of each place the probability that they are to have together.

    Returns:
        Float32, shape (places,); from 0.
    """
    log_p = log_probability_of(logits, truths)
    goal = torch.tensor(wanted, dtype=torch.float32, device=log_p.device).clamp_min(1e-12).log()
    other, other_wanted = ((1 - each.exp()).clamp_min(_LEAST).log() for each in (log_p, goal))
    return log_p.exp() * (log_p - goal) + other.exp() * (other - other_wanted)


def log_probability_of(logits: Tensor, truths: Sequence[Sequence[int]]) -> Tensor:
    """Logarithm of the probability that one of some tokens comes next, of each place.

    Args:
        logits: Shape (places, vocabulary).
        truths: Of each place the tokens, at least one.

    Returns:
        Float32 in nats, shape (places,).
    """
    most = max(map(len, truths))
    # A token stands as often as it takes to fill the row, and counts once.
    tokens = torch.tensor([[*each, *[each[0]] * (most - len(each))] for each in truths])
    blank = torch.tensor([[n >= len(each) for n in range(most)] for each in truths])
    logs = logits.float().log_softmax(-1).gather(1, tokens.to(logits.device))
    return logs.masked_fill(blank.to(logits.device), -math.inf).logsumexp(1)
