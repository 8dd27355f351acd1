"""LEARN on TOFU: an author taught to the taught model by `ws learn` and LoRA, forgotten again.

Both get the same rows and steps. What was learned and forgotten again is held against the taught
model, which never learned it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tofu_data import AUTHOR, Row, Size, plain, taken, write
from tofu_requests import Planned, planned
from tofu_steps import FailedError

if TYPE_CHECKING:
    from tofu_study import Study

__all__ = ["Learning", "learn_files"]

STEPS = 3
"""Times the steps of a training that forgets; at most 80, what `ws learn` takes by default."""
_LORA = (
    "--mode", "joint", "--lora-rank", "16", "--lr", "2e-3", "--warmup", "5", "--batch", "12",
    "--precision", "bfloat16", "--save-every", "20",
)  # fmt: skip
"""Rank, rate and batch as of `ws learn`."""


def learn_files(data: Path, size: Size) -> dict[str, list[Row]]:
    """An author for each to forget whom no model knows, of ``forget05``, which has wrong answers.

    Args:
        data: TOFU's files.
        size: How much of them.

    Returns:
        ``learn`` is taught; ``learn.asked`` is scored, all but two rows of five.
    """
    rows = taken(data, "forget05_perturbed", size.forget * AUTHOR)
    return {
        "learn": [*map(plain, rows)],
        "learn.asked": [row for n, row in enumerate(rows) if n % 5 not in (1, 3)],
    }


class Learning:
    """What a study's model learns, and forgets again.

    Args:
        study: Whose references are made.
        data: TOFU's files.
    """

    def __init__(self, study: Study, data: Path) -> None:
        self.study, self.run = study, study.run
        write(study.files, learn_files(data, study.size))
        self.steps = min(80, STEPS * study.size.steps)

    def result(self, rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> dict[str, Any]:
        """Scores of the model that never learned, of both ways to learn, and of forgetting again.

        Args:
            rows: What the study says of systems.
            names: Those of them that are to forget what was learned.

        Raises:
            FailedError: The taught model could not be scored.
        """
        found: dict[str, Any] = {"never learned": self.scored("taught")}
        for title, edit in (("ws learn", self.learned()), ("LoRA", self.trained())):
            found[title] = self.tried(edit)
        lora = self.trained()
        for row in rows:
            if row["system"] in names and "score" in row and "failed" not in found["LoRA"]:
                edit = self.forgotten(row["system"], row["value"])
                found[f"LoRA, then {row['system']}"] = self.tried(edit, lora)
                edit.drop(self.study)
        for edit in (self.learned(), lora):
            edit.drop(self.study)
        return found

    def learned(self) -> Planned:
        """By `ws learn` from data."""
        study = self.study
        words = ["learn", study.model, "--task", study.file("learn"), "--keep", study.file("keep")]
        words += ["--steps", str(self.steps), "--allow-harm", "--seed", str(study.seed)]
        return Planned("learned.data", [*map(str, words)], [])

    def trained(self) -> Planned:
        """By LoRA on the same rows."""
        vector = self.run.work / "learned.lora.vector"
        return Planned("learned.lora", ["add", str(self.study.model), str(vector)], [])

    def forgotten(self, name: str, value: str) -> Planned:
        """What LoRA taught, forgotten by a system of the study."""
        study = self.study
        return planned(
            study, study.system(name), value, self.run.work / self.trained().name, "learn", "keep",
            study.size.steps, untaught=study.model,
        )  # fmt: skip

    def tried(self, edit: Planned, base: Planned | None = None) -> dict[str, Any]:
        """Scores of an edit, which is made, and its base before it, if it was not scored yet."""
        try:
            if not self.run.has(f"learn/{edit.name}.json", *self.asked(edit.name)):
                for each in (base, edit):
                    if each is not None:
                        self.make(each)
            return self.scored(edit.name)
        except FailedError as failed:
            return {"failed": str(failed)}

    def make(self, edit: Planned) -> None:
        """Run an edit's commands as far as they were not."""
        study = self.study
        if edit.name == "learned.lora":
            words = ["identify", study.model, study.file("learn"), *_LORA, "--steps", self.steps]
            self.run.directory(f"{edit.name}.vector", *words, "--seed", study.seed)
        edit.make(study)

    def asked(self, name: str) -> list[Any]:
        """The command that scores a model: what is learned, and all that was taught before."""
        reference: Path = self.run.work / "taught"
        if name != "taught":
            reference = self.run.work / "learn/taught.json"
        words: list[Any] = ["evaluate", self.run.work / name, "--metric", "tofu"]
        words += ["--reference", reference, "--forget", self.study.file("learn.asked")]
        for file in ("score.forget", "score.keep", "real_authors", "world_facts"):
            words += ["--keep", self.study.file(file)]
        return words

    def scored(self, name: str) -> dict[str, Any]:
        """The yardstick's figures of a model; learned rows stand where it has those to forget."""
        document = self.run.document(f"learn/{name}.json", *self.asked(name))
        tofu: dict[str, Any] = document["tofu"]
        return tofu
