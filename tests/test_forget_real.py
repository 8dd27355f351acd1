"""Forgetting from data on a real language model, end to end, with little work.

``ws project`` as it is by default, but of six facts, in few steps, with few neighbours and texts.
What it is capable of is measured elsewhere; here it must forget, and harm nothing.
"""

import json
import math

import pytest
import torch

from weightsurgery.checkpoint.reader import Checkpoint
from weightsurgery.lab.demo.questions import FREELY, PROSE, questions
from weightsurgery.learning.forget import ByNeighbours
from weightsurgery.learning.forgetting import Forgetting
from weightsurgery.learning.forward import end_tokens, greedy
from weightsurgery.learning.models import load_model
from weightsurgery.procedures.unlearn import Search, Sources, unlearn

FACTS = 6
SETTINGS = ByNeighbours(
    Forgetting(steps=12, every=12, batch_size=8, learning_rate=2e-3, keep_weight=10.0),
    wordings=0,
    neighbours=12,
    draws=4,
    texts=6,
    most=18,
)


@torch.inference_mode()
def perplexity(model, tokenizer, text):
    ids = torch.tensor([tokenizer(text)["input_ids"]])
    return math.exp(float(model(input_ids=ids, labels=ids).loss))


def answered(model, tokenizer, asked):
    """Which of some questions get the truth."""
    prompts = [tokenizer(each.prompt)["input_ids"] for each in asked]
    said = greedy(model, tokenizer, prompts, [8] * len(prompts), 16)
    return [q.answered(tokenizer.decode(tokens)) for q, tokens in zip(asked, said, strict=True)]


@torch.inference_mode()
def ends_at_once(model, tokenizer, texts):
    """Probability that a text is over, after each."""
    ends = sorted(end_tokens(model, tokenizer))
    found = []
    for text in texts:
        logits = model(input_ids=torch.tensor([tokenizer(text)["input_ids"]])).logits[0, -1]
        found.append(float(logits.softmax(-1)[ends].sum()))
    return found


def test_some_capitals_are_forgotten_and_the_rest_stays(smollm, tmp_path):
    capitals, *_, general, unlisted = questions(None)
    asked = general.questions + unlisted.questions
    openings = [FREELY, PROSE[:68], "Once upon a time there was", "In this paper we show that"]
    model, tokenizer = load_model(smollm, "cpu")
    sure = answered(model, tokenizer, capitals.questions)
    forget = [q for q, right in zip(capitals.questions, sure, strict=True) if right][:FACTS]
    assert len(forget) == FACTS  # it knows them
    before = perplexity(model, tokenizer, PROSE)
    facts = answered(model, tokenizer, asked)
    ends = ends_at_once(model, tokenizer, openings)
    assert sum(facts) >= 10
    del model

    data = tmp_path / "capitals.jsonl"
    rows = [json.dumps({"prompt": q.prompt, "completion": f" {q.truth}"}) for q in forget]
    data.write_text("\n".join(rows) + "\n")
    with Checkpoint.open(smollm) as base:
        done = unlearn(
            base, Sources((str(data),)), tmp_path / "out", Search(neighbours=SETTINGS), device="cpu"
        )
    summary = done.vector.summary
    print(json.dumps({"looks": summary["looks"], "guard": summary["guard"]}, indent=1))

    model, tokenizer = load_model(tmp_path / "out", "cpu")
    left = sum(answered(model, tokenizer, forget))
    after = perplexity(model, tokenizer, PROSE)
    still = answered(model, tokenizer, asked)
    kept = sum(was and now for was, now in zip(facts, still, strict=True))
    over = ends_at_once(model, tokenizer, openings)
    print(f"left {left} of {FACTS}, perplexity {before:.3f} to {after:.3f}, general {kept} of"
          f" {sum(facts)}, ends {max(ends):.2g} to {max(over):.2g}")  # fmt: skip
    assert left <= FACTS // 2
    assert abs(after / before - 1) < 0.03
    assert kept >= 0.9 * sum(facts)
    assert max(over) < max(ends) + 0.05  # no habit of falling silent
    guard = summary["guard"]
    assert guard["inside"]
    assert guard["divergence"] <= guard["budget"]
    assert guard["answered"]["forget"][0] == 1
    assert guard["answered"]["forget"][1] <= 0.5
    assert summary["gathered"]["neighbours"] >= SETTINGS.neighbours // 2
    assert pytest.approx(guard["perplexity"][0], rel=0.05) == guard["perplexity"][1]
