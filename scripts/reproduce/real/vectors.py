"""Edits by vectors alone on a real model: negate, project by hard sides, and side soft.

    vectors.py CKPT --forget F.jsonl --keep K.jsonl ... [--unseen U.jsonl ...] --prose P.txt
        --work DIR --results R.json

Fine-tunes a LoRA on each set (``ws identify --mode joint``), in ``DIR``, then sets every edit in
memory and scores it: the share of answers that still begin with the truth, of those that the base
gives, and the perplexity of prose that no edit saw. Goes on where it was killed: vectors and cells
that are there are not made again.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from weightsurgery.checkpoint.reader import Checkpoint
from weightsurgery.checkpoint.selection import Selection
from weightsurgery.learning.data import Example, encode_all, read_examples
from weightsurgery.learning.forward import teacher_forced
from weightsurgery.learning.models import load_tokenizer
from weightsurgery.learning.parameters import load_float32
from weightsurgery.procedures.grid import Changes, Grid, Setting
from weightsurgery.procedures.in_memory import EditedInMemory
from weightsurgery.surgery.discriminating import Project
from weightsurgery.vectors.deltas import FactorDelta
from weightsurgery.vectors.sources import open_vector

# By edit: from next to nothing to all of the request gone.
SCALES = {
    "negate": (0.03, 0.06, 0.1, 0.15, 0.25),
    "right": (0.25, 0.4, 0.5, 0.6, 0.75, 1.0),
    "both": (0.5, 1.0, 1.5, 2.0, 2.5, 3.0),
    "soft": (0.15, 0.25, 0.4, 0.5, 0.6, 0.75),
}
EPSILONS = (1e-3, 1e-2, 1e-1, 1.0)


def main() -> None:
    """Do what is not done yet, and print the table."""
    given = _arguments()
    given.work.mkdir(parents=True, exist_ok=True)
    for path in (given.forget, *given.keep):
        _train(given, path)
    results = _read(given.results) if given.results.exists() else {"base": {}, "cells": []}
    with Checkpoint.open(given.base) as base:
        _score(given, base, results)
    print("\n".join(_table(results)))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("base")
    parser.add_argument("--forget", type=Path, required=True)
    parser.add_argument("--keep", type=Path, action="append", required=True)
    parser.add_argument("--unseen", type=Path, action="append", default=[])
    parser.add_argument("--prose", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--lora-rank", type=int, default=16)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--lr", default="1e-3")
    parser.add_argument("--epsilons", type=float, nargs="*", default=EPSILONS)
    return parser.parse_args()


def _train(given: argparse.Namespace, path: Path) -> None:
    out = given.work / path.stem
    if out.exists():
        return
    subprocess.run(
        [sys.executable, "-m", "weightsurgery", "identify", given.base, str(path), "-o", str(out),
         "--mode", "joint", "--lora-rank", str(given.lora_rank), "--steps", str(given.steps),
         "--lr", given.lr, "--device", "cpu"],
        check=True,
    )  # fmt: skip


def _read(path: Path) -> dict[str, Any]:
    results: dict[str, Any] = json.loads(path.read_text())
    return results


class Scorer:
    """What a model still answers, and how well it writes prose."""

    def __init__(self, model: Any, tokenizer: Any, given: argparse.Namespace) -> None:
        self.model, self.tokenizer = model, tokenizer
        paths = (given.forget, *given.keep, *given.unseen)
        self.sets = {path.stem: read_examples(path, tokenizer) for path in paths}
        self.prose = tokenizer(given.prose.read_text(), return_tensors="pt")["input_ids"]

    def keep_known(self) -> dict[str, int]:
        """Leave out of every set what the model does not answer; how many are left."""
        for name, rows in self.sets.items():
            right, _ = self.answers(rows)
            self.sets[name] = [row for row, ok in zip(rows, right, strict=True) if ok]
        return {name: len(rows) for name, rows in self.sets.items()}

    def answers(self, rows: list[Example]) -> tuple[list[bool], float]:
        """Which answers begin with the truth, and its negative log-likelihood: mean, in nats."""
        encoded = encode_all(self.tokenizer, rows)
        forced = list(teacher_forced(self.model, self.tokenizer, encoded, 32))
        right = [bool(row.answer(row.right).all()) for row in forced]
        return right, sum(float(row.answer(row.nll).sum()) for row in forced) / len(rows)

    @torch.no_grad()
    def scores(self) -> dict[str, Any]:
        """Percent still answered of each set, nats the truth costs there, and perplexity."""
        percent, nats = {}, {}
        for name, rows in self.sets.items():
            right, nll = self.answers(rows)
            percent[name] = round(100 * sum(right) / len(rows), 1)
            nats[name] = round(nll, 3)
        loss = float(self.model(self.prose, labels=self.prose).loss)
        perplexity = float(f"{math.exp(min(loss, 60)):.4g}")
        return {**percent, "nats": nats, "perplexity": perplexity}


def _score(given: argparse.Namespace, base: Checkpoint, results: dict[str, Any]) -> None:
    def vector(path: Path) -> Any:
        return open_vector(base, [str(given.work / path.stem)])

    edit = Project(vector(given.forget), tuple(vector(path) for path in given.keep))
    names = {
        name: factor
        for name, factor in Selection("all-linear").resolve(base.entries).items()
        if edit.task.at(name) is not None
    }
    grid = Grid((1.0,), (64,), ("right", "both", "soft"), tuple(given.epsilons))
    model: Any = load_float32(base).eval()
    scorer = Scorer(model, load_tokenizer(base.path), given)
    known = scorer.keep_known()
    results["base"] = {"known": known, **scorer.scores()}
    weights = math.sqrt(sum(_energy(base, name) for name in names))
    done = {(c["edit"], c["epsilon"], c["scale"]) for c in results["cells"]}
    todo = [
        (kind, setting, scale)
        for kind, setting in _edits(grid)
        for scale in SCALES[kind]
        if (kind, setting.epsilon, scale) not in done
    ]
    if not todo:
        return
    changes = Changes(edit, base, grid, torch.device("cpu"))
    plain = replace(edit, rank=replace(edit.rank, k=10_000))
    ladders: dict[Setting | None, dict[str, FactorDelta]] = {s: {} for s in grid.settings()}
    ladders[None] = {}
    for name in names:
        for setting, delta in changes.at(name).items():
            ladders[setting][name] = delta
        whole = plain.decompose(base, name, "cpu")
        assert whole is not None
        ladders[None][name] = whole.stored(whole.task.factors)
    with EditedInMemory(model, base, names) as edited:
        for kind, setting, scale in todo:
            ladder = ladders[None if kind == "negate" else setting]
            edited.set(ladder, -scale)
            size = scale * math.sqrt(sum(_factor_energy(factors) for factors in ladder.values()))
            cell = {"edit": kind, "epsilon": setting.epsilon, "scale": scale,
                    "relative_change": float(f"{size / weights:.3g}")}  # fmt: skip
            results["cells"].append({**cell, **scorer.scores()})
            given.results.write_text(json.dumps(results, indent=1) + "\n")
            print(results["cells"][-1], file=sys.stderr, flush=True)


def _edits(grid: Grid) -> Iterator[tuple[str, Setting]]:
    yield "negate", Setting(0, "right", None)
    for setting in grid.settings():
        yield setting.side, setting


def _energy(base: Checkpoint, name: str) -> float:
    return float(base.tensor(name).double().square().sum())


def _factor_energy(delta: FactorDelta) -> float:
    left, right = delta.left.double(), delta.right.double()
    return max(0.0, float(((left.T @ left) * (right.T @ right)).sum()))


def _table(results: dict[str, Any]) -> Iterator[str]:
    names = list(results["base"]["known"])
    nats = [f"{name}, nats" for name in names]
    columns = ["edit", "ε", "λ", *names, *nats, "prose", "‖ΔW‖/‖W‖"]
    yield "| " + " | ".join(columns) + " |"
    yield "|---|" + "--:|" * (len(columns) - 1)
    rows = [{"edit": "untouched", "epsilon": None, "scale": 0, "relative_change": 0,
             **results["base"]}, *results["cells"]]  # fmt: skip
    for row in rows:
        epsilon = "" if row["epsilon"] is None else f"{row['epsilon']:g}"
        values = [row["edit"], epsilon, f"{row['scale']:g}", *(f"{row[n]:g}" for n in names),
                  *(f"{row['nats'][n]:.2f}" for n in names),
                  f"{row['perplexity']:g}", f"{100 * row['relative_change']:.2g} %"]  # fmt: skip
        yield "| " + " | ".join(values) + " |"


if __name__ == "__main__":
    main()
