"""The table of what was measured on a real model, in Markdown.

Usage: table.py [RESULTS_DIR]
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

HEAD = (
    "system", "runs", "forgotten", "in other words", "in chat", "truth before → after (stranger)",
    "similar given / unseen", "unseen, sure", "unseen, in other words", "dissimilar given / unseen",
    "same subjects", "perplexity", "KL, nats", "ended", "repeated", "minutes", "GB",
)  # fmt: skip


def pooled(document: dict[str, Any], takes: Callable[[str], bool]) -> tuple[float, int]:
    """How many facts of the sets whose names are taken are still answered, and of how many."""
    rows = [row for row in document["rows"] if takes(row["name"]) and row["count"]]
    return sum(row["kept"] * row["count"] for row in rows), sum(row["count"] for row in rows)


def share(documents: Sequence[dict[str, Any]], takes: Callable[[str], bool]) -> float:
    """Of the facts of all runs together, those still answered; not a number for none."""
    pairs = [pooled(document, takes) for document in documents]
    count = sum(count for _, count in pairs)
    return sum(known for known, _ in pairs) / count if count else math.nan


def surely(documents: Sequence[dict[str, Any]], name: str) -> float:
    """The same of a set's facts that the base is sure of."""
    pairs = [
        row["sure"] for document in documents for row in document["rows"] if row["name"] == name
    ]
    count = sum(count for count, _ in pairs)
    return sum(count * known for count, known in pairs if count) / count if count else math.nan


def wording(name: str) -> str:
    """Of a set such as `forget.chat`; empty for the main one."""
    last = name.split(".")[-1]
    return "" if last in ("forget", "given", "unseen") else last


def percent(value: float) -> str:
    """Of a share."""
    return "" if math.isnan(value) else f"{100 * value:.1f}"


def mean(values: Sequence[float]) -> float:
    """Of those that are numbers."""
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan


def line(system: str, rows: Sequence[dict[str, Any]]) -> list[str]:
    """The cells of a system over its runs of a request."""
    done = [row for row in rows if "score" in row]
    failed = len(rows) - len(done)
    runs = f"{len(done)}" + (f", {failed} failed" if failed else "")
    if not done:
        return [system, runs, *[""] * (len(HEAD) - 2)]
    scores = [row["score"] for row in done]

    def still_known(takes: Callable[[str], bool]) -> str:
        return percent(share(scores, takes))

    def forgotten(takes: Callable[[str], bool]) -> str:
        return percent(1 - share(scores, takes))

    def forget(name: str) -> bool:
        return name.split(".")[0] == "forget"

    main = [row for score in scores for row in score["rows"] if row["name"] == "forget"]
    before, after = (mean([row["first"][i] for row in main]) for i in (0, 1))
    apart = mean([row["stranger"][0] for row in main if row["stranger"]])
    free = [score["free"] for score in scores]
    return [
        system,
        runs,
        forgotten(lambda name: name == "forget"),
        forgotten(
            lambda name: forget(name) and wording(name) != "" and "chat" not in wording(name)
        ),
        forgotten(lambda name: forget(name) and "chat" in wording(name)),
        f"{before:.3f} → {after:.4f} ({apart:.4f})",
        f"{still_known(lambda name: name == 'similar.given')} / "
        f"{still_known(lambda name: name == 'similar.unseen')}",
        percent(surely(scores, "similar.unseen")),
        still_known(lambda name: name.startswith("similar.unseen.")),
        f"{still_known(lambda name: name == 'dissimilar.given')} / "
        f"{still_known(lambda name: name == 'dissimilar.unseen')}",
        still_known(lambda name: name == "same-subjects.unseen"),
        f"× {mean([score['prose']['ratio'] for score in scores]):.4g}",
        f"{mean([score['prose']['kl'] for score in scores]):.4f}",
        *(
            f"{100 * mean([pair['base'][key] for pair in free]):.0f} → "
            f"{100 * mean([pair['edited'][key] for pair in free]):.0f}"
            for key in ("ended", "repeated")
        ),
        f"{mean([row['seconds'] for row in done]) / 60:.1f}",
        f"{mean([row['memory'] for row in done]):.1f}",
    ]


def render(rows: Sequence[dict[str, Any]], order: Sequence[str] = ()) -> str:
    """A table for each request, its systems in the order given, others after them.

    Percent are of the facts that the base answers rightly, over all seeds together; the rest are
    means over seeds.
    """
    tables = []
    for request in sorted({row["request"] for row in rows}):
        of_request = [row for row in rows if row["request"] == request]
        names = [name for name in order if any(row["system"] == name for row in of_request)]
        names += sorted({row["system"] for row in of_request} - set(names))
        cells = [line(name, [row for row in of_request if row["system"] == name]) for name in names]
        text = ["| " + " | ".join(cells_of_row) + " |" for cells_of_row in (HEAD, *cells)]
        text.insert(1, "|---|" + "--:|" * (len(HEAD) - 1))
        tables.append(f"### {request}\n\n" + "\n".join(text) + "\n")
    return "\n".join(tables)


if __name__ == "__main__":
    place = Path(sys.argv[1]) if sys.argv[1:] else Path(__file__).resolve().parent / "results"
    print(
        render(
            [
                row
                for path in sorted(place.glob("*.json"))
                for row in json.loads(path.read_text(encoding="utf-8"))
            ],
            list(json.loads((Path(__file__).resolve().parent / "systems.json").read_text())),
        )
    )
