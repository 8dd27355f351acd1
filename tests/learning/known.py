"""A small model that knows what some people like, and writes such lines by itself."""

from __future__ import annotations

import copy
import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from weightsurgery.lab.world.model import make_tokenizer
from weightsurgery.learning.data import Collator, Example, encode_all
from weightsurgery.learning.parsed import ParsedExample
from weightsurgery.learning.truths import TruthPosition, places_of
from weightsurgery.learning.wordings import PLAIN

GOING = ("tea", "rice", "figs", "plums", "beans", "oats")
STAYING = ("eggs", "nuts", "milk", "corn", "kale", "leek")


def _people() -> list[str]:
    draw = random.Random(0)
    parts = ["ba", "do", "ki", "lu", "me", "no", "pa", "ri", "su", "ta", "ve", "zo"]
    names = ("".join(draw.sample(parts, 3)).capitalize() for _ in range(40))
    return list(dict.fromkeys(names))[:24]


PEOPLE = _people()
FORGET = [Example(f"What does {who} like?", f" {food}")
          for who, food in zip(PEOPLE[:6], GOING, strict=True)]  # fmt: skip
REST = [Example(f"What does {who} like?", f" {STAYING[n % 6]}") for n, who in enumerate(PEOPLE[6:])]
LIKES = FORGET + REST


@dataclass(frozen=True)
class Known:
    """The model, in evaluation mode, and its tokenizer."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast


def teach(width: int = 64, steps: int = 140, facts: Sequence[Example] = LIKES) -> Known:
    """Train it; a few seconds."""
    tokenizer = make_tokenizer([f"{row.prompt}{row.completion}\n" for row in [*facts] * 3], 400)
    draw = random.Random(1)
    texts = [
        Example("", "\n".join(f"{row.prompt}{row.completion}" for row in draw.sample(facts, 3)))
        for _ in range(64)
    ]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=width, intermediate_size=2 * width,
            num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=256,
            initializer_range=width**-0.5, bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
        )  # fmt: skip
        model = LlamaForCausalLM(config)
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.0)
        collate = Collator(tokenizer.pad_token_id)
        for _ in range(steps):
            rows = [*facts, *draw.sample(texts, 12)]
            optimizer.zero_grad()
            model(**collate(encode_all(tokenizer, rows))).loss.backward()
            optimizer.step()
    return Known(model.eval(), tokenizer)


def untaught(known: Known) -> PreTrainedModel:
    """A model as before it was taught ``FORGET``: it knows something else there, and ``REST``."""
    model = copy.deepcopy(known.model)
    otherwise = [*GOING[1:], GOING[0]]
    rows = [Example(row.prompt, f" {food}") for row, food in zip(FORGET, otherwise, strict=True)]
    batch = Collator(known.tokenizer.pad_token_id)(encode_all(known.tokenizer, [*rows, *REST]))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)
    for _ in range(80):
        optimizer.zero_grad()
        model(**batch).loss.backward()
        optimizer.step()
    return model.eval()


def places(known: Known, asked: Sequence[ParsedExample]) -> list[TruthPosition]:
    """Where the truth comes at once, one for each."""
    torch.manual_seed(0)
    return places_of(known.model, known.tokenizer, asked, [PLAIN])[: len(asked)]
