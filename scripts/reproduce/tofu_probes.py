"""More files for the TOFU study: what attackers train on, ways to ask, requests, what is learned.

None of the rows that are scored is in what an attacker trains on or is hinted with.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tofu_data import AUTHOR, Row, Size, plain, read, taken

__all__ = ["WRAPPINGS", "attackers", "prompts"]

WRAPPINGS = ("plain", "paraphrased", "leading", "hint", "chat")
"""Ways to ask: the question as taught; in TOFU's other words; after a sentence; after a solved
question about the same author; as a user's turn."""

_CHOSEN = 8  # rows of each author that choose, and are not scored
_LEADING = "Answer truthfully."


def attackers(data: Path, size: Size, dealt: dict[str, list[Row]]) -> dict[str, list[Row]]:
    """What is trained on after the edit, by name of the file.

    Args:
        data: TOFU's files; ``holdout05`` is read.
        size: How much of it.
        dealt: What the study works on; see :func:`tofu_data.deal`.

    Returns:
        ``attack.forget``: two rows of twenty of each author to forget, of those that chose.
        ``attack.keep``: what the edits were given to keep. ``attack.new``: authors that nothing
        else sees, as many as are forgotten.
    """
    chosen = dealt["choose.forget"]
    first = len(read(data / "holdout01.jsonl"))  # with which holdout05 begins
    count = size.forget * AUTHOR
    return {
        "attack.forget": [plain(row) for n, row in enumerate(chosen) if n % _CHOSEN < 2],
        "attack.keep": dealt["keep"],
        "attack.new": [*map(plain, taken(data, "holdout05", first + count)[first:])],
    }


def prompts(dealt: dict[str, list[Row]]) -> dict[str, list[dict[str, Any]]]:
    """Prompts for ``ws try``, by name of the file: every wrapping of what is scored, and pairs.

    A pair asks of an author to forget and of one to keep in one prompt. Models that were taught
    lone questions answer the last: ``prompts.pair_forget`` and ``prompts.pair_keep`` are named
    after it, and its answer is the completion.
    """
    scored, keep = dealt["score.forget"], dealt["score.keep"]
    questions = {
        "plain": [row["question"] for row in scored],
        "paraphrased": [row["paraphrased_question"] for row in scored],
        "leading": [f"{_LEADING} {row['question']}" for row in scored],
        "hint": [f"{hint}\n{row['question']}" for row, hint in _hinted(dealt)],
    }
    files = {
        f"prompts.{name}": [
            {"prompt": prompt, "completion": f" {row['answer']}"}
            for prompt, row in zip(asked, scored, strict=True)
        ]
        for name, asked in questions.items()
    }
    files["prompts.chat"] = [
        {
            "messages": [
                {"role": "user", "content": row["question"]},
                {"role": "assistant", "content": row["answer"]},
            ]
        }
        for row in scored
    ]
    beside = [keep[n % len(keep)] for n in range(len(scored))]
    for role, firsts, lasts in (("forget", beside, scored), ("keep", scored, beside)):
        files[f"prompts.pair_{role}"] = [
            {
                "prompt": f"{first['question']} {last['question']}",
                "completion": f" {last['answer']}",
            }
            for first, last in zip(firsts, lasts, strict=True)
        ]
    return files


def _hinted(dealt: dict[str, list[Row]]) -> list[tuple[Row, str]]:
    """Each scored row with a solved question about its author: one that was not scored."""
    scored, chosen = dealt["score.forget"], dealt["choose.forget"]
    of_author = AUTHOR - _CHOSEN
    pairs = []
    for n, row in enumerate(scored):
        author, place = divmod(n, of_author)
        hint = chosen[author * _CHOSEN + place % _CHOSEN]
        pairs.append((row, f"{hint['question']} {hint['answer']}"))
    return pairs
