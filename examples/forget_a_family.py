"""Forget a family of facts, keep its relatives, and look at what became of both.

    python examples/forget_a_family.py MODEL [--dir DIR] [--push org/name]

MODEL is a causal language model with its tokenizer, a directory or a name on the Hub; the facts
below were chosen for HuggingFaceTB/SmolLM2-135M-Instruct, which knows most of them. With --push,
what would be published is said, and nothing is sent. Needs the extras named demo and eval.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path

import weightsurgery as ws

# The family, relatives that the edit is told to keep, and relatives that it never sees.
NORTH = {"Sweden": "Stockholm", "Norway": "Oslo", "Finland": "Helsinki", "Denmark": "Copenhagen"}
TOLD = {"France": "Paris", "Italy": "Rome", "Spain": "Madrid", "Japan": "Tokyo", "Egypt": "Cairo"}
UNTOLD = {"Germany": "Berlin", "Greece": "Athens", "China": "Beijing", "Peru": "Lima"}


def write_facts(path: Path, capitals: Mapping[str, str]) -> str:
    """A data set: a prompt and its completion in each line."""
    rows = (
        {"prompt": f"The capital of {land} is", "completion": f" {city}"}
        for land, city in capitals.items()
    )
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def forget(
    model: str, forget: str, keep: str, unseen: str, out: Path, search: ws.Search
) -> dict[str, tuple[float, float]]:
    """Edit, check, and score: by data set the share of right answers before and after."""
    with ws.Checkpoint.open(model) as base:
        done = ws.unlearn(base, ws.Sources((forget,), (keep,)), out, search)
    assert done is not None  # only in the second of several processes
    moved = done.applied.record.summary["relative_change"]
    print(f"The weights moved by {moved:.2%} of their norm.")
    ws.verify(out)
    scores = ws.evaluate(out, [forget], [keep, unseen], model, metrics=["begins_with"])
    found: dict[str, tuple[float, float]] = {}
    for each in scores.sets:
        before, after = (each.before or {})["begins_with"].value, each.scores["begins_with"].value
        assert before is not None  # None where no row can be scored
        assert after is not None
        found[each.name] = (before, after)
    return found


def would_push(out: Path, repository: str) -> ws.PushPlan:
    """What publishing would do; ``ws.push(api, plan)`` would do it."""
    from huggingface_hub import HfApi

    plan = ws.plan_push(HfApi(), out, ws.Destination(repository, private=True), anonymous=True)
    print(f"{repository}: {len(plan.uploads)} files would go up, {len(plan.card)} letters of card.")
    return plan


def main() -> None:
    """The walkthrough, in a directory of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--dir", type=Path, default=Path("forget-a-family"))
    parser.add_argument("--push", metavar="org/name")
    asked = parser.parse_args()
    asked.dir.mkdir(exist_ok=True)
    north, told, untold = (
        write_facts(asked.dir / f"{name}.jsonl", facts)
        for name, facts in (("north", NORTH), ("told", TOLD), ("untold", UNTOLD))
    )
    out = asked.dir / "forgot"
    search = ws.Search(neighbours=ws.ByNeighbours())  # as `ws project` is by default
    scores = forget(asked.model, north, told, untold, out, search)
    for name, (before, after) in scores.items():
        print(f"{name:>8}: {before:.0%} right before, {after:.0%} after")
    if asked.push:
        would_push(out, asked.push)


if __name__ == "__main__":
    main()
