"""Does it stay forgotten? Models of the TOFU study rounded, trained on, and asked in other ways.

Of the taught and the retrained model, and of every system's chosen candidate: made again where it
is not there any more, and dropped when it has been asked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tofu_data import read, write
from tofu_probes import WRAPPINGS, attackers, prompts
from tofu_steps import FailedError

from weightsurgery.learning.metrics import first_lines, lines_of, rouge_l

if TYPE_CHECKING:
    from tofu_study import Study

__all__ = ["ROUNDINGS", "Robust", "looks"]

ROUNDINGS = ("nf4", "int8", "int4")
LOOKS = (3, 10, 30)
"""Steps after which a model that is trained on is asked, as far as the training goes."""
RATE = "1e-4"
"""AdamW's learning rate, all weights, at 4 rows a step."""
TOKENS = 80
"""Of an answer to a prompt, at most."""

_SCORES = ("--metric", "probability_per_token", "--metric", "rouge_l")


def looks(steps: int) -> list[int]:
    """Numbers of steps after which a model is asked, the last among them."""
    return sorted({step for step in LOOKS if step < steps} | {steps})


class Robust:
    """The attacks on the models of a study.

    Args:
        study: Whose references are made.
        data: TOFU's files.
    """

    def __init__(self, study: Study, data: Path) -> None:
        self.study, self.run = study, study.run
        self.commands: dict[str, list[str]] = {}
        dealt = study.dealt
        write(study.files, {**attackers(data, study.size, dealt), **prompts(dealt)})
        retrained = self.run.work / "retrained"
        self.run.document(
            "robust/reference.json", "evaluate", retrained, "--metric", "tofu", "--reference",
            retrained, "--forget", self.study.file("score.forget"), "--keep",
            self.study.file("score.keep"),
        )  # fmt: skip

    def models(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Figures of every model by name, or why it ``failed``; none of one without a candidate.

        Args:
            rows: What the study says of the systems.
        """
        found = {name: self.figures(name) for name in ("taught", "retrained")}
        for row in rows:
            if "score" not in row:
                continue
            name, words = self.study.chosen_of(row)
            self.commands[name] = words
            try:
                found[row["system"]] = self.figures(name)
            except FailedError as failed:
                found[row["system"]] = {"failed": str(failed)}
            self.run.drop(name)
        return found

    def figures(self, name: str) -> dict[str, Any]:
        """Everything about the model of that name.

        Raises:
            FailedError: A command did not succeed.
        """
        return {
            "rounded": self.rounded(name),
            "trained": {data: self.trained(name, data) for data in ("forget", "keep", "new")},
            "asked": self.answers(name),
        }

    def rounded(self, name: str) -> dict[str, dict[str, float]]:
        """Scores of the rows to forget before, and after rounding."""
        words: list[Any] = ["--reference", self.run.work / "robust/reference.json"]
        for rounding in ROUNDINGS:
            words += ["--method", rounding]
        document = self._attack(name, "quantize", "rounded", words)
        quality = document["forget_quality"]["checkpoint"]
        return {
            state: {**scores, "forget_quality": quality[state]}
            for state, scores in _states(document).items()
        }

    def trained(self, name: str, data: str) -> dict[str, dict[str, float]]:
        """The same before training on some rows, and after some steps and more."""
        steps, seed = self.study.size.steps, self.study.seed
        count = len(read(self.study.file("score.forget")))
        words: list[Any] = ["--train", self.study.file(f"attack.{data}"), "--steps", steps]
        words += ["--learning-rate", RATE, "--batch-size", 4, "--score-batch", count]
        for step in looks(steps):
            words += ["--look", step]
        states = _states(self._attack(name, "relearn", f"trained.{data}", [*words, "--seed", seed]))
        return {str(steps) if state == "relearned" else state.removeprefix("step "): scores
                for state, scores in states.items()}  # fmt: skip

    def _attack(self, name: str, kind: str, part: str, words: Sequence[Any]) -> dict[str, Any]:
        forget = ("--forget", self.study.file("score.forget"))
        return self._document(part, name, "attack", kind, self.run.work / name, *forget, *_SCORES,
                              *words)  # fmt: skip

    def _document(self, part: str, name: str, *words: Any) -> dict[str, Any]:
        """What a command says of a model, which is made if it has to be asked."""
        file = f"robust/{part}/{name}.json"
        if name in self.commands and not self.run.has(file, *words):
            self.run.directory(name, *self.commands[name])
        return self.run.document(file, *words)

    def answers(self, name: str) -> dict[str, float]:
        """ROUGE-L recall by way of asking, the worst case of each row, and of pairs both halves."""
        names = (*WRAPPINGS, "pair_forget", "pair_keep")
        files = {name: read(self.study.file(f"prompts.{name}")) for name in names}
        words: list[Any] = ["try", self.run.work / name, "--tokens", TOKENS]
        words += ["--most", max(map(len, files.values()))]
        for file in files:
            words += ["--data", self.study.file(f"prompts.{file}")]
        answered = self._document("asked", name, *words)["prompts"]
        texts = iter([next(iter(each["said"].values()))["text"] for each in answered])
        recalls = {
            file: [_recall(_truth(row), next(texts)) for row in rows]
            for file, rows in files.items()
        }
        found = {file: _mean(values) for file, values in recalls.items()}
        wrapped = [recalls[wrapping] for wrapping in WRAPPINGS]
        return {**found, "worst": _mean([max(row) for row in zip(*wrapped, strict=True)])}


def _truth(row: Mapping[str, Any]) -> str:
    return str(row["messages"][-1]["content"] if "messages" in row else row["completion"])


def _states(document: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    (scored,) = document["sets"]
    states = {"before": scored["checkpoint"]["before"], **scored["checkpoint"]["after"]}
    return {
        state: {
            "probability": scores["probability_per_token"]["value"],
            "rouge_l_recall": scores["rouge_l_recall"]["value"],
        }
        for state, scores in states.items()
    }


def _recall(truth: str, text: str) -> float:
    found = rouge_l(truth, first_lines(text, lines_of(truth)))
    return 0.0 if found is None else found[0]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
