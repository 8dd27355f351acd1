"""Three requests to forget, one after another and in one go, by systems of the TOFU study.

The requests are half of the first taught author, the other half, and the second author. What is to
stay is scored on authors that no request names. After each request the reference is a model that
was taught all but what has been requested until then.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tofu_data import AUTHOR, Row, Size, plain, taken, write
from tofu_steps import FailedError, save

if TYPE_CHECKING:
    from tofu_study import Study, System

__all__ = ["ENDS", "Planned", "Requests", "planned", "request_files"]

ENDS = (AUTHOR // 2, AUTHOR, 2 * AUTHOR)
"""Rows requested until then, after each request."""


@dataclass(frozen=True)
class Planned:
    """An edit that is not made yet.

    Attributes:
        name: Of its output.
        words: Its command.
        vectors: What it takes besides: each a name, and the base and file that it is trained on.
    """

    name: str
    words: Sequence[str]
    vectors: Sequence[tuple[str, Path, str]]

    def make(self, study: Study) -> Path:
        """Train the vectors and run the command, as far as that was not done."""
        for name, base, data in self.vectors:
            study.train(name, base, data)
        return study.run.directory(self.name, *self.words)

    def drop(self, study: Study) -> None:
        """Remove all that it made."""
        study.run.drop(self.name)
        for name, _, _ in self.vectors:
            study.run.drop(f"{name}.vector")


def planned(
    study: Study,
    system: System,
    value: str,
    base: Path,
    forget: str,
    keep: str,
    steps: int,
    *,
    untaught: Path,
) -> Planned:
    """An edit by a system of the study.

    Args:
        study: Whose folder and seed it has.
        system: How.
        value: At ``{x}``.
        base: What is edited.
        forget: File of what is to go.
        keep: File of what is to stay.
        steps: Of training, where the system takes them.
        untaught: The model before it was taught what is to go, where the system takes that.
    """
    files = {"forget": forget, "keep": keep}
    places: dict[str, object] = {role: study.file(file) for role, file in files.items()}
    places |= {"base": base, "untaught": untaught, "steps": steps, "seed": study.seed}
    vectors = []
    for role, file in files.items():
        if f"{{{role}_vector}}" in system.command:
            name = f"{base.name}.{file}"
            vectors.append((name, base, file))
            places[f"{role}_vector"] = study.run.work / f"{name}.vector"
    words = system.words(places, value)
    return Planned(f"request.{system.name_of(value, words)}", words, vectors)


def request_files(data: Path, size: Size, dealt: Mapping[str, list[Row]]) -> dict[str, list[Row]]:
    """What the requests work on, by name of the file.

    Args:
        data: TOFU's files.
        size: How much of them.
        dealt: What the study works on.

    Returns:
        Of each request, from 1: ``request.N`` is to be forgotten; ``request.keep.N`` is every
        second row of all that stays, for the edit; ``request.taught.N`` is all that stays;
        ``request.asked.N`` is scored of all requested until then. ``request.all`` holds all three;
        ``request.score.keep`` is scored of what no request names.
    """
    rows = [
        *taken(data, "forget01_perturbed", size.forget * AUTHOR),
        *taken(data, "retain_perturbed", size.keep * AUTHOR),
    ]
    files: dict[str, list[Row]] = {"request.all": [*map(plain, rows[: ENDS[-1]])]}
    for n, (start, end) in enumerate(zip((0, *ENDS), ENDS, strict=False), 1):
        files[f"request.{n}"] = [*map(plain, rows[start:end])]
        files[f"request.taught.{n}"] = dealt["taught"][end:]  # which begins with these rows
        files[f"request.keep.{n}"] = [*map(plain, rows[end::2])]
        files[f"request.asked.{n}"] = [
            row for place, row in enumerate(rows[:end]) if place % 5 not in (1, 3)
        ]
    requested = {row["question"] for row in files["request.all"]}
    files["request.score.keep"] = [
        row for row in dealt["score.keep"] if row["question"] not in requested
    ]
    return files


class Requests:
    """The requests of a study.

    Args:
        study: Whose references are made.
        data: TOFU's files.
    """

    def __init__(self, study: Study, data: Path) -> None:
        self.study, self.run = study, study.run
        self.files = request_files(data, study.size, study.dealt)
        write(study.files, self.files)

    def result(self, rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> dict[str, Any]:
        """Scores after each request, and after all in one go, by model.

        Args:
            rows: What the study says of systems.
            names: Those of them that are to do it.

        Raises:
            FailedError: A reference could not be taught or scored.
        """
        numbers = range(1, len(ENDS) + 1)
        found: dict[str, Any] = {
            "retrained": [self.scored(self.reference(n).name, n) for n in numbers],
            "taught": [self.scored("taught", n) for n in numbers],
        }
        for row in rows:
            if row["system"] not in names or "score" not in row:
                continue
            found[row["system"]] = self.chain(row["system"], row["value"])
        return found

    def reference(self, number: int) -> Path:
        """The model that was taught all but what has been requested until then."""
        name = f"request.taught.{number}"
        same = self.files[name] == self.study.dealt["retrained"]
        return self.study.taught("retrained" if same else name)

    def scored(self, name: str, number: int) -> dict[str, Any]:
        """The yardstick's figures of a model after so many requests."""
        reference: Path = self.run.work / self.reference(number).name
        if name != reference.name:
            self.scored(reference.name, number)
            reference = self.run.work / f"requests/{number}/{reference.name}.json"
        words: list[Any] = ["evaluate", self.run.work / name, "--metric", "tofu"]
        words += ["--reference", reference]
        words += ["--forget", self.study.file(f"request.asked.{number}")]
        for file in ("request.score.keep", "real_authors", "world_facts"):
            words += ["--keep", self.study.file(file)]
        tofu: dict[str, Any] = self.run.document(f"requests/{number}/{name}.json", *words)["tofu"]
        return tofu

    def chain(self, name: str, value: str) -> list[dict[str, Any]]:
        """Scores after one, two and three requests, and after all in one go."""
        edits = self.plans(name, value)
        saved = self.run.work / "requests" / f"{name}.json"
        if saved.exists():
            document: dict[str, Any] = json.loads(saved.read_text(encoding="utf-8"))
            if document["edits"] == [edit.name for edit in edits]:
                return list(document["scores"])
        scores: list[dict[str, Any]] = []
        for number, edit in zip((*range(1, len(ENDS) + 1), len(ENDS)), edits, strict=True):
            try:
                edit.make(self.study)
                scores.append(self.scored(edit.name, number))
            except FailedError as failed:
                scores.append({"failed": str(failed)})
        save(saved, {"edits": [edit.name for edit in edits], "scores": scores})
        for edit in edits:
            edit.drop(self.study)
        return scores

    def plans(self, name: str, value: str) -> list[Planned]:
        """The edits: each request of what the one before made of the model, and all in one go."""
        system = self.study.system(name)
        base, edits = self.study.model, []
        for number in range(1, len(ENDS) + 1):
            edits.append(self.plan(system, value, base, f"request.{number}", number))
            base = self.run.work / edits[-1].name
        whole = self.plan(system, value, self.study.model, "request.all", len(ENDS))
        return [*edits, whole]

    def plan(self, system: System, value: str, base: Path, forget: str, number: int) -> Planned:
        """An edit of as many steps for each row as the study's."""
        size, dealt = self.study.size, self.study.dealt
        steps = round(size.steps * len(self.files[forget]) / len(dealt["forget"]))
        return planned(
            self.study, system, value, base, forget, f"request.keep.{number}", max(1, steps),
            untaught=self.study.base,
        )  # fmt: skip
