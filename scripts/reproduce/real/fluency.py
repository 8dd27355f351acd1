"""How a model writes: free generations, what repeats in them, and its perplexity of plain prose."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from asking import Asker

HERE = Path(__file__).resolve().parent

LENGTH = 48
"""Tokens of a free generation."""


def prose_key() -> list[str]:
    """The content of the prose and the prompts."""
    paths = [*sorted((HERE / "prose").glob("*.txt")), HERE / "prompts.json"]
    return [path.read_text(encoding="utf-8") for path in paths]


def repeated(tokens: Sequence[int], size: int = 4) -> float:
    """The share of the runs of `size` tokens that were there before."""
    runs = [tuple(tokens[start : start + size]) for start in range(len(tokens) - size + 1)]
    return 1 - len(set(runs)) / len(runs) if runs else 0.0


def generations(model: Asker) -> dict[str, Any]:
    """Continuations of fixed prompts, every other one sampled, with the same noise for all models.

    The noise is added to the scores (Gumbel), so that a model like another says the same.
    """
    given = json.loads((HERE / "prompts.json").read_text(encoding="utf-8"))
    texts = given["plain"] + [model.chat(question) for question in given["chat"]]
    count = [0] * len(texts)

    def choose(row: int, scores: torch.Tensor) -> int:
        count[row] += 1
        if row % 2 == 0:
            return int(scores.argmax())
        source = torch.Generator().manual_seed(1000 * row + count[row])
        noise = -torch.empty_like(scores).exponential_(generator=source).log()
        return int((scores / 0.7 + noise).argmax())

    generated = model.go_on([model.tokens(text) for text in texts], LENGTH, choose=choose)
    return {
        "prompts": given["plain"] + given["chat"],
        "texts": [model.tokenizer.decode(tokens) for tokens in generated],
        "ended": sum(len(tokens) < LENGTH for tokens in generated) / len(generated),
        "repeated": sum(map(repeated, generated)) / len(generated),
        "length": sum(map(len, generated)) / len(generated),
    }


@torch.inference_mode()
def prose_states(model: Asker) -> tuple[list[list[int]], list[torch.Tensor]]:
    """Tokens of each text of the prose, and the hidden states that foretell the next."""
    texts = [path.read_text(encoding="utf-8") for path in sorted((HERE / "prose").glob("*.txt"))]
    rows = [model.tokens(text) for text in texts]
    states = [model.read([row], least=0)[0][0, :-1].clone() for row in rows]
    return rows, states


@torch.inference_mode()
def prose_scores(
    rows: Sequence[Sequence[int]],
    base: Sequence[torch.Tensor],
    base_head: torch.nn.Module,
    edited: Sequence[torch.Tensor],
    edited_head: torch.nn.Module,
) -> dict[str, float]:
    """Perplexities of both, and the mean KL(base || edited) in nats a token."""
    losses, kl, count = [0.0, 0.0], 0.0, 0
    for row, before, after in zip(rows, base, edited, strict=True):
        for start in range(0, len(before), 128):
            wanted = torch.tensor(row[1:][start : start + 128])[:, None]
            p = base_head(before[start : start + 128]).log_softmax(-1)
            q = edited_head(after[start : start + 128]).log_softmax(-1)
            losses[0] -= p.gather(1, wanted).sum().item()
            losses[1] -= q.gather(1, wanted).sum().item()
            kl += (p.exp() * (p - q)).sum().item()
        count += len(before)
    perplexity = [math.exp(min(loss / count, 700)) for loss in losses]
    return {
        "base": perplexity[0],
        "edited": perplexity[1],
        "ratio": perplexity[1] / perplexity[0],
        "kl": kl / count,
        "tokens": count,
    }
