"""A tiny model that was taught two kinds of facts, and a fine-tune of it on each."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from tests.learning.tiny import FACTS, OTHER, byte_tokenizer, save, write
from weightsurgery.learning.data import Collator, Example, encode_all
from weightsurgery.learning.statistics import gather_to


@dataclass(frozen=True)
class Taught:
    """Files of a model, fine-tunes, statistics, and data.

    The vectors and the statistics have seen ``forget`` and ``keep``; the tests are others.
    """

    base: Path
    forget: Path
    keep: Path
    statistics: Path
    forget_data: Path
    keep_data: Path
    test_forget: Path
    test_keep: Path


def train(model: PreTrainedModel, rows: list[Example], steps: int, rate: float) -> PreTrainedModel:
    """A copy of a model, trained on all rows at once."""
    model = copy.deepcopy(model).train()
    batch = Collator(2)(encode_all(byte_tokenizer(), rows))
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.0)
    for _ in range(steps):
        optimizer.zero_grad()
        model(**batch).loss.backward()
        optimizer.step()
    return model.eval()


def teach(root: Path) -> Taught:
    """Train and save everything; two seconds."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=259,
                hidden_size=64,
                intermediate_size=96,
                num_hidden_layers=2,
                num_attention_heads=2,
                max_position_embeddings=64,
                initializer_range=0.1,
                bos_token_id=0,
                eos_token_id=1,
                pad_token_id=2,
            )
        )
    model = train(model, FACTS + OTHER, 120, 5e-3)
    write(root / "forget.jsonl", FACTS[:6])
    write(root / "keep.jsonl", OTHER[:5])
    write(root / "test-forget.jsonl", FACTS[6:])
    write(root / "test-keep.jsonl", OTHER[5:])
    save(model, root / "base")
    for name, rows in (("forget", FACTS[:6]), ("keep", OTHER[:5])):
        save(train(model, rows, 15, 1e-3), root / name)
    gather_to(root / "statistics", root / "base", root / "keep.jsonl")
    return Taught(
        root / "base",
        root / "forget",
        root / "keep",
        root / "statistics",
        root / "forget.jsonl",
        root / "keep.jsonl",
        root / "test-forget.jsonl",
        root / "test-keep.jsonl",
    )
