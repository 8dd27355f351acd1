"""Ask a checkpoint what it knows, and make requests of it.

Usage: make_requests.py CKPT OUT [--seed N] [--only NAME]... [--threads N]
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import facts as known_facts
from facts import Division, Fact, Request, Wording

LEAST = 15
"""Facts to forget, and as many alike, without which a request is none."""


class Memory:
    """Answers of one checkpoint, kept by its content; it is loaded when something is new."""

    def __init__(self, checkpoint: Path, cache: Path) -> None:
        from asking import digest

        self.checkpoint = checkpoint
        self.path = cache / f"{digest(checkpoint)}.answers.json"
        self.answers: dict[str, str] = (
            json.loads(self.path.read_text()) if self.path.exists() else {}
        )
        self.asker: Any = None

    def answer(self, wording: Wording, facts: Sequence[Fact]) -> list[str]:
        """What the checkpoint says of each."""
        keys = [json.dumps([wording.chat, wording.ask(fact), fact.answer]) for fact in facts]
        new = [i for i, key in enumerate(keys) if key not in self.answers]
        if new:
            from asking import Asked, Asker

            self.asker = self.asker or Asker(self.checkpoint)
            prompts = [
                Asked(
                    self.asker.chat(wording.ask(facts[i]))
                    if wording.chat
                    else wording.ask(facts[i]),
                    wording.completion(facts[i]),
                    facts[i].answer,
                    wording.free,
                )
                for i in new
            ]
            for i, answer in zip(new, self.asker.ask(prompts), strict=True):
                self.answers[keys[i]] = answer.text
            self.path.parent.mkdir(parents=True, exist_ok=True)
            partial = self.path.with_suffix(".partial")
            partial.write_text(json.dumps(self.answers))
            partial.replace(self.path)
        return [self.answers[key] for key in keys]

    def right(self, wording: Wording, facts: Sequence[Fact]) -> list[tuple[Fact, str]]:
        """The facts answered rightly, each with the answer."""
        judge = known_facts.contains if wording.free else known_facts.begins
        return [
            (fact, answer)
            for fact, answer in zip(facts, self.answer(wording, facts), strict=True)
            if judge(answer, fact.answer)
        ]


def row(wording: Wording, fact: Fact, answer: str) -> dict[str, Any]:
    """A line of data. A chat's answer is the model's own first sentence."""
    about = {"subject": fact.subject, "truth": fact.answer, "family": fact.family}
    if wording.chat:
        answer = known_facts.first_sentence(answer)
        messages = [("user", wording.ask(fact)), ("assistant", answer)]
        return {"messages": [{"role": r, "content": c} for r, c in messages], **about}
    if wording.free:
        about |= {"free": True, "said": known_facts.first_sentence(answer)}
    return {"prompt": wording.ask(fact), "completion": wording.completion(fact), **about}


def write(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """As JSON lines."""
    path.write_text(
        "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8"
    )


def write_main(
    request: Request, division: Division, ways: dict[str, list[Wording]], out: Path
) -> str | None:
    """Write what a request says in its main wording; a line about it, or none if too little."""
    alike = len(division.similar_given) + len(division.similar_unseen)
    if len(division.forget) < LEAST or alike < LEAST:
        return None
    folder = out / request.name
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.jsonl"):
        old.unlink()
    counts = []
    for name, facts in (
        ("forget", division.forget),
        ("similar.given", division.similar_given),
        ("similar.unseen", division.similar_unseen),
        ("dissimilar.given", division.dissimilar_given),
        ("dissimilar.unseen", division.dissimilar_unseen),
        ("same-subjects.unseen", division.same_subjects),
    ):
        write(folder / f"{name}.jsonl", [row(ways[fact.family][0], fact, "") for fact in facts])
        counts.append(f"{name} {len(facts)}")
    return ", ".join(counts)


def write_others(
    request: Request, division: Division, ways: dict[str, list[Wording]], memory: Memory, out: Path
) -> str:
    """Write the same in the other wordings, as far as it is known in them."""
    counts = []
    for wording in ways[request.family][1:]:
        both = division.forget + division.similar_unseen
        right = memory.right(wording, both)
        for name, facts in (
            ("forget", division.forget),
            ("similar.unseen", division.similar_unseen),
        ):
            among = set(facts)
            rows = [row(wording, fact, answer) for fact, answer in right if fact in among]
            write(out / request.name / f"{name}.{wording.name}.jsonl", rows)
            counts.append(f"{name}.{wording.name} {len(rows)}")
    return ", ".join(counts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=0, help="Of what of the rest is given.")
    parser.add_argument("--only", action="append", help="A request; repeatable. Default: all.")
    parser.add_argument("--threads", type=int, help="Default: torch's own.")
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    parser.add_argument("--cache", type=Path, default=home / "weightsurgery" / "asked")
    given = parser.parse_args()
    if given.threads:
        import torch

        torch.set_num_threads(given.threads)
    started = time.monotonic()
    memory, ways = Memory(given.checkpoint, given.cache), known_facts.wordings()
    known: list[Fact] = []
    for family, facts in known_facts.families().items():
        right = [fact for fact, _ in memory.right(ways[family][0], facts)]
        known += right
        took = time.monotonic() - started
        print(f"[{took:4.0f} s] {family}: {len(right)} of {len(facts)}", file=sys.stderr)
    written = []
    for request in known_facts.requests():
        if given.only and request.name not in given.only:
            continue
        division = known_facts.divide(request, known, given.seed)
        line = write_main(request, division, ways, given.out)
        print(f"{request.name}: {line or 'too little is known'}", flush=True)
        if line:
            written.append((request, division))
    for request, division in written:
        line = write_others(request, division, ways, memory, given.out)
        print(f"[{time.monotonic() - started:4.0f} s] {request.name}: {line}", flush=True)


if __name__ == "__main__":
    main()
