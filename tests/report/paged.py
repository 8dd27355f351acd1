"""What a page holds, read back out of its HTML; and documents to make pages of."""

from __future__ import annotations

import json
import random
import re
from html.parser import HTMLParser
from pathlib import Path

HOSTILE = "</script><img src=x onerror=alert(1)>\x1b[2J\u202e'\""
"""A name that would run, clear the screen and turn the line."""


class _Parts(HTMLParser):
    """The elements of a page: tags with attributes, and the text of each script and style."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        if self.tags and self.tags[-1][0] in ("script", "style"):
            self.texts.append((self.tags[-1][0], data))


def parts(page: str) -> _Parts:
    found = _Parts()
    found.feed(page)
    return found


def data_of(page: Path | str) -> dict:
    """The JSON of a page."""
    text = page if isinstance(page, str) else page.read_text()
    (found,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)
    return json.loads(found)


def section(page: Path | str, kind: str, number: int = 0) -> dict:
    """The section of a type."""
    return [each for each in data_of(page)["sections"] if each["type"] == kind][number]


def tensors(layers: int, experts: int, hostile: bool = False) -> list[dict]:
    """Differences like those of a mixture-of-experts model of that depth."""
    rng = random.Random(0)
    names = ["model.embed_tokens.weight", "lm_head.weight"]
    for layer in range(layers):
        stem = f"model.layers.{layer}."
        names += [f"{stem}self_attn.{each}_proj.weight" for each in "qkvo"]
        names += [
            f"{stem}mlp.experts.{expert}.{each}_proj.weight"
            for expert in range(experts) for each in ("gate", "up", "down")
        ]  # fmt: skip
    names += [HOSTILE] if hostile else []
    return [
        {
            "name": name, "kind": "", "layer": None, "shape": [64, 64 + number % 7],
            "norm": rng.lognormvariate(0, 1), "relative": rng.lognormvariate(-4, 1),
            "cosine": 1 - rng.random() / 1000, "effective_rank": 1 + 60 * rng.random(),
            "sparsity": rng.random(), "surviving": rng.random(),
            "rank": 1 + number % 16, "kept": rng.random(), "residual": 0.0,
        }
        for number, name in enumerate(names)
    ]  # fmt: skip


def difference(rows: list[dict]) -> dict:
    """As ``ws diff --json`` prints it."""
    kin = {"vector": HOSTILE, "verdict": "related", "cosine": 0.5, "relative": 0.1, "evidence": ""}
    return {"tensors": rows, "norm": 1.5, "relative": 0.0123, "lineage": [kin], "saved": None}


def tried() -> dict:
    """As ``ws try --json`` prints it."""
    pairs = [
        ("Capital of France?", " Paris. So it is.", " Lyon. So it is."),
        ("Same?", "the same", "the same"),
        (HOSTILE, HOSTILE, "plain"),
        ("", "", "something"),
    ]
    return {
        "checkpoint": "./edited", "against": "./base", "chat": False, "tokens": 9,
        "prompts": [
            {"prompt": prompt, "completion": None, "said": {
                "./base": {"text": before, "ended": True},
                "./edited": {"text": after, "ended": True},
            }}
            for prompt, before, after in pairs
        ],
    }  # fmt: skip


def evaluated() -> dict:
    """As ``ws evaluate --json`` prints it."""

    def one(value, low=None, high=None):
        interval = None if low is None else [low, high]
        return {"value": value, "interval": interval, "examples": 9, "why": ""}

    return {
        "checkpoint": "edited", "against": "base", "content": None, "tasks": [],
        "sets": [
            {
                "name": name, "path": name, "role": role, "examples": 9, "chance": 0.0,
                "scores": {"begins_with": one(after, after / 2, 1.0), "perplexity": one(3.25)},
                "before": {"begins_with": one(0.75, 0.5, 1.0), "perplexity": one(2.5)},
                "forgetting": None, "normalised_forgetting": None, "drift": None,
            }
            for name, role, after in (("authors", "forget", 0.125), (HOSTILE, "keep", 0.7))
        ],
    }  # fmt: skip
