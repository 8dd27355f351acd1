"""TOFU by its own yardstick: teach, retrain, unlearn by every system, score, print.

Usage: tofu_study.py --data DIR --work DIR [--small] [--seed N] [--system NAME]...
           [--robust] [--requests] [--learn] CKPT

Every system gets all there is to forget, half of what is to stay, and as many candidates as any
other. A candidate counts if it keeps 90 % of the taught model's utility on rows that choose; of
those that count, the one of the best forget quality there is scored, once, on rows that chose
nothing. Where none counts, the one that keeps most is shown and marked *.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tofu_data import FULL, SMALL, Size, deal, write
from tofu_learn import Learning
from tofu_requests import Requests
from tofu_robust import Robust
from tofu_robust_tables import render_learned, render_requests, render_robust
from tofu_steps import FailedError, Runner, save
from tofu_tables import draw, render

HERE = Path(__file__).resolve().parent
KEPT = 0.9
"""Share of the taught model's utility that a candidate must keep."""
AGAIN = ("npo", "negate")
"""Systems that forget several requests, and what was learned."""
Part = Callable[[], dict[str, Any]]
Rendered = Callable[[Mapping[str, Any]], str]

TEACH = (
    "--mode", "joint", "--lora-rank", "32", "--lr", "1e-3", "--warmup", "10", "--batch", "4",
    "--precision", "bfloat16", "--save-every", "20",
)  # fmt: skip
"""How both models are taught, and the vectors of single sets."""


@dataclass(frozen=True)
class System:
    """A way to forget: a command of ws with places, and what is tried at ``{x}``."""

    name: str
    about: str
    command: str
    values: Sequence[str]
    small: bool = False

    def name_of(self, value: str, words: Sequence[str]) -> str:
        """A candidate's: of another command it is another."""
        digest = hashlib.sha256(json.dumps([*words]).encode()).hexdigest()
        return f"{self.name}.{value}.{digest[:8]}"

    def words(self, places: Mapping[str, object], value: str) -> list[str]:
        """The command, without its output."""
        filled = [word.format(**places, x=value, out="") for word in self.command.split()]
        index = filled.index("-o")
        return filled[:index] + filled[index + 2 :]


def systems() -> list[System]:
    """Those of tofu_systems.json, in its order."""
    read = json.loads((HERE / "tofu_systems.json").read_text(encoding="utf-8"))
    return [System(name, **fields) for name, fields in read.items()]


def chosen(candidates: Sequence[Mapping[str, Any]], taught: float) -> tuple[int | None, bool]:
    """Which candidate is scored, and whether it counts.

    Args:
        candidates: Each with ``forget_quality`` and ``model_utility`` on rows that choose, or with
            ``failed``.
        taught: The taught model's utility there.
    """
    able = [n for n, candidate in enumerate(candidates) if "failed" not in candidate]
    if not able:
        return None, False
    counting = [n for n in able if candidates[n]["model_utility"] >= KEPT * taught]
    if counting:
        return max(counting, key=lambda n: (candidates[n]["forget_quality"], -n)), True
    return max(able, key=lambda n: (candidates[n]["model_utility"], -n)), False


class Study:
    """One seed of everything.

    Args:
        base: The checkpoint.
        data: TOFU's files.
        work: Where everything goes.
        size: How much of it.
        seed: Of every training.
        keeping: Keep the chosen candidates, which :class:`Robust` asks more.
    """

    def __init__(
        self, base: Path, data: Path, work: Path, size: Size, seed: int, keeping: bool = False
    ) -> None:
        self.base, self.size, self.seed, self.keeping = base, size, seed, keeping
        # A folder for each size: the same names hold other rows.
        self.run = Runner(work / size.name / f"seed{seed}")
        self.files = work / size.name / "data"
        self.dealt = deal(data, size)
        write(self.files, self.dealt)

    def file(self, name: str) -> Path:
        """One of the files that TOFU was dealt out to."""
        return self.files / f"{name}.jsonl"

    def train(self, name: str, base: Path, data: str) -> Path:
        """The task vector of a file."""
        epochs = ("--epochs", self.size.epochs, "--seed", self.seed)
        return self.run.directory(
            f"{name}.vector", "identify", base, self.file(data), *TEACH, *epochs
        )

    def taught(self, name: str) -> Path:
        """The base that was taught a file."""
        vector = self.train(name, self.base, name)
        return self.run.directory(name, "add", self.base, vector)

    def score(self, name: str, model: Path, reference: Path, choosing: bool) -> dict[str, Any]:
        """The yardstick's figures of a model, on rows that choose or on those that are scored."""
        words: list[Any] = ["evaluate", model, "--metric", "tofu", "--reference", reference]
        if choosing:
            words += ["--forget", self.file("choose.forget"), "--keep", self.file("choose.keep")]
        else:
            words += ["--forget", self.file("score.forget"), "--keep", self.file("score.keep")]
            words += ["--keep", self.file("real_authors"), "--keep", self.file("world_facts")]
            words += ["--holdout", self.file("holdout"), "--judge", self.base]
        part = "choose" if choosing else "score"
        document = self.run.document(f"{part}/{name}.json", *words)
        tofu: dict[str, Any] = document["tofu"]
        return tofu

    def references(self) -> None:
        """Make the taught and the retrained model, and score both and the base."""
        self.model, retrained = self.taught("taught"), self.taught("retrained")
        for choosing in (True, False):
            self.score("retrained", retrained, retrained, choosing)
        self.score("taught", self.model, self.reference(True), True)
        for name, model in (("taught", self.model), ("base", self.base)):
            self.score(name, model, self.reference(False), False)

    def reference(self, choosing: bool) -> Path:
        """The file of the retrained model's scores."""
        return self.run.work / ("choose" if choosing else "score") / "retrained.json"

    def measure(self, system: System) -> dict[str, Any]:
        """A row: every candidate made and judged, the chosen one scored; models are dropped."""
        row: dict[str, Any] = {"system": system.name, "about": system.about}
        values = list(system.values)[: self.size.candidates]
        commands = self.commands(system, values)
        names = [system.name_of(*pair) for pair in zip(values, commands, strict=True)]
        saved = self.run.work / "rows" / f"{system.name}.json"
        if saved.exists():
            saved_row: dict[str, Any] = json.loads(saved.read_text(encoding="utf-8"))
            if saved_row["names"] == names:
                return saved_row
        candidates, seconds = [], 0.0
        for value, name, words in zip(values, names, commands, strict=True):
            candidate: dict[str, Any] = {"value": value}
            try:
                candidate |= self.judged(name, words)
            except FailedError as failed:
                candidate["failed"] = str(failed)
            seconds += self.run.seconds(name)
            candidates.append(candidate)
        taught = self.score("taught", self.model, self.reference(True), True)["model_utility"]
        index, counts = chosen(candidates, taught)
        row |= {"candidates": candidates, "seconds": seconds, "counts": counts}
        if index is not None:
            row["value"] = values[index]
            row["score"] = self.scored(names[index], commands[index])
        row["names"] = names
        save(saved, row)
        for name, value in zip(names, values, strict=True):
            if not (self.keeping and value == row.get("value")):
                self.run.drop(name)
        return row

    def commands(self, system: System, values: Sequence[str]) -> list[list[str]]:
        """A system's command for each value; the vectors that it takes are trained."""
        places = {
            "base": self.model, "untaught": self.base,
            "forget": self.file("forget"), "keep": self.file("keep"),
            "steps": self.size.steps, "seed": self.seed,
        }  # fmt: skip
        for role in ("forget", "keep"):
            if f"{{{role}_vector}}" in system.command:
                places[f"{role}_vector"] = self.train(f"more-{role}", self.model, role)
        return [system.words(places, value) for value in values]

    def system(self, name: str) -> System:
        """A system by its name."""
        return next(each for each in systems() if each.name == name)

    def chosen_of(self, row: Mapping[str, Any]) -> tuple[str, list[str]]:
        """Name and command of the candidate that was chosen."""
        system = self.system(row["system"])
        (words,) = self.commands(system, [row["value"]])
        return system.name_of(row["value"], words), words

    def judged(self, name: str, words: Sequence[str]) -> dict[str, Any]:
        """A candidate's figures on rows that choose; it is made unless they are there."""
        path = self.run.work / "choose" / f"{name}.json"
        if not path.exists():
            self.run.directory(name, *words)
        figures = self.score(name, self.run.work / name, self.reference(True), True)
        return {key: figures[key] for key in ("forget_quality", "model_utility")}

    def scored(self, name: str, words: Sequence[str]) -> dict[str, Any]:
        """The chosen candidate on rows that are scored; made again if it was dropped already."""
        path = self.run.work / "score" / f"{name}.json"
        if not path.exists():
            self.run.directory(name, *words)
        return self.score(name, self.run.work / name, self.reference(False), False)

    def result(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """All results, as they are printed."""
        models = {}
        for name in ("base", "taught", "retrained"):
            path = self.run.work / "score" / f"{name}.json"
            models[name] = json.loads(path.read_text(encoding="utf-8"))["tofu"]
        return {"size": asdict(self.size), "seed": self.seed, "models": models, "rows": list(rows)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("base", type=Path, metavar="CKPT", help="A small causal language model.")
    parser.add_argument("--data", type=Path, required=True, help="TOFU's files as JSONL.")
    parser.add_argument("--work", type=Path, required=True, help="Where everything goes.")
    parser.add_argument("--small", action="store_true", help="One author, few systems.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--system", action="append", help="Repeatable. Default: all.")
    parser.add_argument("--robust", action="store_true", help="Attack what was chosen, too.")
    parser.add_argument("--requests", action="store_true", help="Forget in three requests.")
    parser.add_argument("--learn", action="store_true", help="Learn, and forget again.")
    parser.add_argument(
        "--again", action="append", help=f"Systems for these two. Default: {', '.join(AGAIN)}."
    )
    parser.add_argument("--figure", type=Path, help="Where the frontier is drawn.")
    given = parser.parse_args()
    size = SMALL if given.small else FULL
    wanted = [system for system in systems() if system.small or not given.small]
    if given.system:
        wanted = [system for system in systems() if system.name in given.system]
        lacking = set(given.system) - {system.name for system in wanted}
        if lacking:
            parser.error(f"no such system: {', '.join(sorted(lacking))}")
    again = given.again or AGAIN
    if (given.requests or given.learn) and (lacking := {*again} - {each.name for each in wanted}):
        parser.error(f"--again is no system that is run: {', '.join(sorted(lacking))}")
    study = Study(
        given.base.resolve(), given.data, given.work.resolve(), size, given.seed, given.robust
    )
    with study.run.alone():
        run(study, wanted, again, given)


def run(
    study: Study, wanted: Sequence[System], again: Sequence[str], given: argparse.Namespace
) -> None:
    """Make and score all that was asked for, and print it."""
    try:
        study.references()
    except FailedError as failed:
        raise SystemExit(str(failed)) from failed
    rows = []
    path = study.run.work / "results.json"
    for system in wanted:
        rows.append(study.measure(system))
        save(path, study.result(rows))
        print(render(study.result(rows)), file=sys.stderr, flush=True)
    print(render(study.result(rows)))
    figure = given.figure or study.run.work / "frontier.svg"
    draw(study.result(rows), figure)
    print(f"The frontier: {figure}", file=sys.stderr)
    parts = list[tuple[str, Part, Rendered]]()
    if given.robust:
        parts.append(("robust", lambda: Robust(study, given.data).models(rows), render_robust))
    if given.requests:
        requests = Requests(study, given.data)
        parts.append(("requests", lambda: requests.result(rows, again), render_requests))
    if given.learn:
        learning = Learning(study, given.data)
        parts.append(("learn", lambda: learning.result(rows, again), render_learned))
    for name, measure, rendered in parts:
        found = measure()
        save(study.run.work / f"{name}.json", found)
        print(rendered(found), flush=True)


if __name__ == "__main__":
    main()
