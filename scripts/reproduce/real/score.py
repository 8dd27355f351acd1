"""Score an edited checkpoint on a request: what is forgotten, what is kept, what else it did.

Usage: score.py BASE EDITED REQUEST_DIR [--json FILE] [--most N] [--threads N]

What is asked of BASE is kept by content under ~/.cache/weightsurgery/asked.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from asking import Answer, Asked, Asker, digest, judged
from fluency import LENGTH, generations, prose_key, prose_scores, prose_states

HERE = Path(__file__).resolve().parent
VERSION = 1
"""Of what is kept; another makes it be asked anew."""

SURE = 0.3
"""A probability of the truth's first token from which on the base is said to be sure of it."""

STRANGERS = 4
"""Prompts about other subjects at which a truth's probability is that of a stranger."""


@dataclass(frozen=True)
class FactSet:
    """A file of a request."""

    name: str
    rows: tuple[dict[str, Any], ...]

    @property
    def forgets(self) -> bool:
        """Whether it is to be forgotten."""
        return self.name.split(".")[0] == "forget"


@dataclass(frozen=True)
class Row:
    """What became of a set. Shares are of the facts that the base answers rightly."""

    name: str
    count: int
    kept: float
    """Share still answered rightly."""
    first: tuple[float, float]
    """Mean probability of the truth's first token, base and edited."""
    whole: tuple[float, float]
    sure: tuple[int, float]
    """How many of them the base is sure of, and the share of those still answered rightly."""
    stranger: tuple[float, float] | None = None
    """First token and whole truth at the base, after prompts about other subjects."""


def sets(folder: Path, most: int) -> list[FactSet]:
    """The files of a request, those of dissimilar facts cut to `most` rows by a fixed draw."""
    order = ("forget", "similar", "dissimilar", "same-subjects")
    found = []
    for path in folder.glob("*.jsonl"):
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        if path.stem.startswith("dissimilar") and len(rows) > most:
            rows = random.Random(0).sample(rows, most)
        if rows:
            found.append(FactSet(path.stem, tuple(rows)))
    return sorted(found, key=lambda each: (order.index(each.name.split(".")[0]), each.name))


def asked(row: dict[str, Any], chat: Callable[[str], str]) -> Asked:
    """A line of data as a question, `chat` rendering a user's."""
    truth = row["truth"]
    if "messages" in row:
        user, assistant = (message["content"] for message in row["messages"])
        prompt, said, free = chat(user), assistant, True
        completion, lead = truth, ""
    else:
        prompt, completion = row["prompt"], row["completion"]
        said, free, lead = row.get("said", ""), row.get("free", False), ""
    place = re.search(rf"\s*(?<!\w){re.escape(truth)}(?!\w)", said, re.IGNORECASE)
    if free and place:
        lead, completion = said[: place.start()], place.group()
        if "messages" not in row and lead:
            lead = " " + lead  # a plain text goes on after a space, a chat's turn has none
    return Asked(prompt, completion, truth, free, lead)


def strangers(facts: FactSet, others: Sequence[dict[str, Any]]) -> list[Asked]:
    """Each truth after prompts of the same wording about subjects with another."""
    found = []
    for number, row in enumerate(facts.rows):
        pool = [other["prompt"] for other in others if other["truth"] != row["truth"]]
        drawn = random.Random(number).sample(pool, min(STRANGERS, len(pool)))
        found += [Asked(prompt, row["completion"], row["truth"]) for prompt in drawn]
    return found


class Base:
    """The base's answers, kept by content; the model is loaded when something is not there."""

    def __init__(self, checkpoint: Path, cache: Path) -> None:
        self.checkpoint = checkpoint
        self.folder = cache / digest(checkpoint)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._model: Asker | None = None

    @property
    def model(self) -> Asker:
        """Loaded at the first use."""
        self._model = self._model or Asker(self.checkpoint)
        return self._model

    def kept(self, name: str, key: object, make: Callable[[], Any]) -> Any:
        """What was made under a name of a key."""
        mark = hashlib.sha256(json.dumps([VERSION, name, key]).encode()).hexdigest()[:16]
        path = self.folder / f"{name}-{mark}.pt"
        if path.exists():
            return torch.load(path, weights_only=True)
        made = make()
        partial = path.with_suffix(f".{os.getpid()}")
        torch.save(made, partial)
        partial.replace(path)
        return made

    def answers(self, rows: Sequence[Asked]) -> list[Answer]:
        """To each question; each is asked once for all requests and seeds."""
        kept = self._answers()
        marks = [self._mark(row) for row in rows]
        new = {mark: row for mark, row in zip(marks, rows, strict=True) if mark not in kept}
        if new:
            found = self.model.ask(list(new.values()))
            made = {
                mark: [each.text, each.first, each.whole]
                for mark, each in zip(new, found, strict=True)
            }
            kept = self._answers() | made  # another process may have added to them
            partial = self.folder / f"answers.{os.getpid()}"
            partial.write_text(json.dumps(kept), encoding="utf-8")
            partial.replace(self.folder / "answers.json")
        return [judged(row, *kept[mark]) for mark, row in zip(marks, rows, strict=True)]

    def _answers(self) -> dict[str, Any]:
        path = self.folder / "answers.json"
        read: dict[str, Any] = json.loads(path.read_text("utf-8")) if path.exists() else {}
        return read

    @staticmethod
    def _mark(row: Asked) -> str:
        return hashlib.sha256(json.dumps([VERSION, *asdict(row).values()]).encode()).hexdigest()[
            :24
        ]


def mean(values: Sequence[float]) -> float:
    """Not a number for none."""
    return sum(values) / len(values) if values else math.nan


def compared(
    facts: FactSet, before: Sequence[Answer], after: Sequence[Answer], apart: Sequence[Answer] = ()
) -> Row:
    """A set's row, over the facts that the base answers rightly."""
    pairs = [(old, new) for old, new in zip(before, after, strict=True) if old.right]
    sure = [float(new.right) for old, new in pairs if old.first >= SURE]
    return Row(
        facts.name,
        len(pairs),
        mean([float(new.right) for _, new in pairs]),
        (mean([old.first for old, _ in pairs]), mean([new.first for _, new in pairs])),
        (mean([old.whole for old, _ in pairs]), mean([new.whole for _, new in pairs])),
        (len(sure), mean(sure)),
        (mean([each.first for each in apart]), mean([each.whole for each in apart]))
        if apart
        else None,
    )


def score(base: Base, edited: Asker, folder: Path, most: int) -> dict[str, Any]:
    """All figures of an edited model as one document."""
    found = sets(folder, most)
    by_name = {facts.name: facts for facts in found}
    questions = {facts.name: [asked(row, edited.chat) for row in facts.rows] for facts in found}
    rows = []
    # All at once, so that batches are full and questions of one wording share their beginning.
    flat = [(name, each) for name, asked_ in questions.items() for each in asked_]
    unique = list(dict.fromkeys(each for _, each in flat))
    after = dict(zip(unique, edited.ask(unique), strict=True))
    base.answers(unique)
    for facts in found:
        before = base.answers(questions[facts.name])
        apart: list[Answer] = []
        if facts.forgets and not any(each.free for each in questions[facts.name]):
            wording = facts.name.removeprefix("forget")
            others = [
                row
                for name in (f"similar.given{wording}", f"similar.unseen{wording}", facts.name)
                if name in by_name
                for row in by_name[name].rows
            ]
            apart = base.answers(strangers(facts, others))
        now = [after[each] for each in questions[facts.name]]
        rows.append(compared(facts, before, now, apart))
    texts, states = base.kept("prose", prose_key(), lambda: list(prose_states(base.model)))
    return {
        "request": folder.name,
        "rows": [asdict(row) for row in rows],
        "prose": prose_scores(texts, states, base.model.head, prose_states(edited)[1], edited.head),
        "free": {
            "base": base.kept("free", prose_key(), lambda: generations(base.model)),
            "edited": generations(edited),
        },
    }


def shown(document: dict[str, Any]) -> str:
    """The document as a table for people."""
    lines = [
        f"{'':32}{'n':>5} {'kept':>7} {'forgot':>7}   first token       whole truth       "
        f"{'kept, sure':18}stranger"
    ]
    for row in document["rows"]:
        kept = row["kept"]
        gone = f"{100 * (1 - kept):6.1f}%" if row["name"].startswith("forget") else ""
        stays = "" if gone else f"{100 * kept:6.1f}%"
        count, surely = row["sure"]
        sure = "" if gone or not count else f"{100 * surely:.1f}% of {count}"
        (a, b), (c, d) = row["first"], row["whole"]
        apart = "{:.4f} {:.4f}".format(*row["stranger"]) if row["stranger"] else ""
        lines.append(
            f"{row['name']:32}{row['count']:5} {stays:>7} {gone:>7}"
            f"   {a:.3f} → {b:<7.4f}   {c:.3f} → {d:<7.4f}   {sure:18}{apart}".rstrip()
        )
    prose = document["prose"]
    lines.append(
        f"prose ({prose['tokens']} tokens): perplexity {prose['base']:.2f} → {prose['edited']:.4g}"
        f" (× {prose['ratio']:.4f}), KL {prose['kl']:.5f} nats a token"
    )
    free, old = document["free"]["edited"], document["free"]["base"]
    lines.append(
        f"free ({len(free['texts'])} × {LENGTH}): ended {100 * old['ended']:.0f} →"
        f" {100 * free['ended']:.0f} %, repeated {100 * old['repeated']:.1f} →"
        f" {100 * free['repeated']:.1f} %, length {old['length']:.1f} → {free['length']:.1f},"
        f" the same {sum(a == b for a, b in zip(old['texts'], free['texts'], strict=True))}"
    )
    for number in (0, 7, len(free["texts"]) // 2 + 2):
        lines.append(f"  {free['prompts'][number]!r}")
        lines.append(f"    base   {old['texts'][number]!r}")
        lines.append(f"    edited {free['texts'][number]!r}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("base", type=Path)
    parser.add_argument("edited", type=Path)
    parser.add_argument("request", type=Path, help="A folder made by make_requests.py.")
    parser.add_argument("--json", type=Path, help="Also write all figures there.")
    parser.add_argument(
        "--most", type=int, default=150, help="Rows of each file of dissimilar facts."
    )
    parser.add_argument("--threads", type=int, help="Default: torch's own.")
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    parser.add_argument("--cache", type=Path, default=home / "weightsurgery" / "asked")
    given = parser.parse_args()
    if given.threads:
        torch.set_num_threads(given.threads)
    document = score(Base(given.base, given.cache), Asker(given.edited), given.request, given.most)
    if given.json:
        partial = given.json.with_suffix(".partial")
        partial.write_text(json.dumps(document, ensure_ascii=False, indent=1) + "\n")
        partial.replace(given.json)
    print(shown(document))


if __name__ == "__main__":
    main()
