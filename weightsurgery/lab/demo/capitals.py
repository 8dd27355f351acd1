"""The demo: a real language model forgets the capitals of Europe, and is asked before and after.

Every step is the library call behind a command, and names that command, so that it can be
repeated by hand.
"""

from __future__ import annotations

import json
import os
import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import compress, count
from pathlib import Path
from typing import Any

from weightsurgery.checkpoint.reader import Checkpoint
from weightsurgery.checkpoint.source import resolve_source
from weightsurgery.checkpoint.staging import output_errors
from weightsurgery.errors import DataError, OutputError
from weightsurgery.lab.demo.questions import FREELY, PROSE, QuestionGroup, questions
from weightsurgery.lab.demo.smollm import smollm
from weightsurgery.progress import Progress

__all__ = ["Chosen", "DemoFiles", "DemoOutcome", "Sample", "Step", "demo", "project"]

# Tokens to answer with: a name; a sentence with one; a few lines.
_SHORT, _SENTENCE, _LONG = 8, 24, 32


@dataclass(frozen=True)
class Step:
    """One step, done.

    Attributes:
        command: The command line that does the same; empty where there is none.
        text: What it is for, in a sentence.
        result: What the library returned; its type says which.
        seconds: How long it took.
    """

    command: str
    text: str
    result: Any
    seconds: float


@dataclass(frozen=True)
class DemoFiles:
    """Where the demo's files are.

    Attributes:
        base: The checkpoint as commands name it.
        checkpoint: Its directory.
        directory: What is written goes here.
    """

    base: str
    checkpoint: Path
    directory: Path

    @property
    def forget(self) -> Path:
        """The request."""
        return self.directory / "europe.jsonl"

    @property
    def keep(self) -> tuple[Path, Path]:
        """What is to stay: capitals, and facts of other kinds."""
        return self.directory / "elsewhere.jsonl", self.directory / "general.jsonl"

    @property
    def edited(self) -> Path:
        """The edited checkpoint."""
        return self.directory / "edited"

    @property
    def command(self) -> str:
        """The command line of the edit."""
        keep = [word for path in self.keep for word in ("--keep", str(path))]
        words = ["ws", "project", self.base, "--forget", str(self.forget), *keep]
        return shlex.join([*words, "-o", str(self.edited)])

    @property
    def onward(self) -> tuple[tuple[str, str], ...]:
        """What can be done next; see `DemoOutcome`."""
        edited, forget, keep = (str(p) for p in (self.edited, self.forget, self.keep[0]))
        lines = (
            ("what was done, file by file", ["ws", "verify", edited]),
            ("scores with intervals", ["ws", "evaluate", edited, "--against", self.base,
                                       "--forget", forget, "--keep", keep]),
            ("does it stay forgotten", ["ws", "attack", "relearn", edited, "--forget", forget,
                                        "--against", self.base]),
            ("the same change at half its size", ["ws", "negate", self.base, f"{edited}.vector",
                                                  "--scale", "0.5", "-o", f"{edited}-half"]),
            ("publish it", ["ws", "push", edited, "org/name"]),
        )  # fmt: skip
        return tuple((what, shlex.join(words)) for what, words in lines)


@dataclass(frozen=True)
class Chosen:
    """What the model is to forget and to keep, of what it knows.

    Attributes:
        groups: By kind; of the facts to forget also in wordings that the edit does not see.
    """

    groups: tuple[QuestionGroup, ...]


@dataclass(frozen=True)
class Sample:
    """What the model says to a prompt, before and after."""

    prompt: str
    before: str
    after: str


@dataclass(frozen=True)
class DemoOutcome:
    """The model before and after.

    Attributes:
        groups: With what was right.
        perplexity: Of prose that nothing was trained on.
        samples: A few answers side by side.
        onward: What can be done next: what for, and the command line.
    """

    groups: tuple[QuestionGroup, ...]
    perplexity: tuple[float, float]
    samples: tuple[Sample, ...]
    onward: tuple[tuple[str, str], ...]


Edit = Callable[[DemoFiles, str, Progress | None], Any]
"""Writes `DemoFiles.edited`; takes the device too, and returns its result."""


def project(files: DemoFiles, device: str, progress: Progress | None) -> Any:
    """``ws project BASE --forget DATA --keep DATA... -o OUT``, with its default settings."""
    from weightsurgery.learning.forget import ByNeighbours
    from weightsurgery.procedures.unlearn import Search, Sources, unlearn

    with Checkpoint.open(files.base) as base:
        return unlearn(
            base,
            Sources((str(files.forget),), tuple(map(str, files.keep))),
            files.edited,
            Search(neighbours=ByNeighbours()),
            device=device,
            overwrite=True,
            command=shlex.split(files.command),
            progress=progress,
        )


def demo(
    model: str | None = None,
    directory: Path = Path("demo-capitals"),
    *,
    device: str = "auto",
    progress: Progress | None = None,
    edit: Edit | None = None,
) -> Iterator[Step]:
    """Ask, forget, and ask again.

    Args:
        model: A checkpoint of a causal language model; SmolLM2-135M-Instruct by default.
        directory: Where request and output are left.
        device: Where the model runs.
        progress: Called as ``progress(stage, done, total)``.
        edit: What forgets; `project` by default.

    Yields:
        The steps as they are done; results are `DemoFiles`, `Chosen`, the edit's and `DemoOutcome`.

    Raises:
        WeightSurgeryError: See :mod:`weightsurgery.errors`.
    """
    begun = time.monotonic()
    files = _place(model, Path(directory), progress)
    yield Step("", "A language model.", files, time.monotonic() - begun)

    begun = time.monotonic()
    before = _Answers.of(files, None, device, progress).only_known()
    _write(before.groups, files)
    chosen = Chosen(before.groups)
    yield Step("", "What it knows, and of that what is to go.", chosen, time.monotonic() - begun)

    begun = time.monotonic()
    result = (edit or project)(files, device, progress)
    text = "The edit: from data alone, at its default settings."
    yield Step(files.command, text, result, time.monotonic() - begun)

    begun = time.monotonic()
    after = _Answers.of(files, before.groups, device, progress)
    outcome = _compare(before, after, files)
    yield Step("", "The same questions, before and after.", outcome, time.monotonic() - begun)


def _place(model: str | None, directory: Path, progress: Progress | None) -> DemoFiles:
    """The checkpoint, and a place for what comes of it."""
    with output_errors(directory):
        directory.mkdir(parents=True, exist_ok=True)
        if model is not None:
            return DemoFiles(model, resolve_source(model).path, directory)
        checkpoint, link = smollm(progress=progress), directory / "base"
        if link.is_symlink():
            link.unlink()
        elif link.exists():
            raise OutputError(
                f"{link}: already holds something that the demo did not make",
                "Name another directory with --dir, or remove this one.",
            )
        link.symlink_to(os.path.abspath(checkpoint), target_is_directory=True)
    return DemoFiles(str(link), checkpoint, directory)


@dataclass(frozen=True)
class _Answers:
    """What a model answered.

    Attributes:
        groups: The questions.
        answers: Per group and question.
        prose: Perplexity of `PROSE`.
        free: How it goes on with `FREELY`.
    """

    groups: tuple[QuestionGroup, ...]
    answers: tuple[tuple[str, ...], ...]
    prose: float
    free: str

    @classmethod
    def of(
        cls,
        files: DemoFiles,
        groups: Sequence[QuestionGroup] | None,
        device: str,
        progress: Progress | None,
    ) -> _Answers:
        """Ask the edited model what is in `groups`; for None, the base all there is."""
        from weightsurgery.learning.data import Example, encode
        from weightsurgery.learning.forward import greedy, teacher_forced
        from weightsurgery.learning.models import load_model

        before = groups is None
        model, tokenizer = load_model(files.checkpoint if before else files.edited, device)
        if groups is None:
            groups = questions(_chat(tokenizer) if tokenizer.chat_template else None)
        prompts = [
            (question.prompt, question.chat, _SENTENCE if question.chat else _SHORT)
            for group in groups
            for question in group.questions
        ]
        prompts.append((FREELY, False, _LONG))
        generated = greedy(
            model,
            tokenizer,
            [
                tokenizer(text, add_special_tokens=not chat)["input_ids"]
                for text, chat, _ in prompts
            ],
            [limit for _, _, limit in prompts],
            stage="asking before" if before else "asking after",
            progress=progress,
        )
        texts = [str(tokenizer.decode(tokens, skip_special_tokens=True)) for tokens in generated]
        (prose,) = teacher_forced(model, tokenizer, [encode(tokenizer, Example("", PROSE))])
        rest = iter(texts)
        answers = tuple(tuple(next(rest) for _ in group.questions) for group in groups)
        perplexity = float(prose.answer(prose.nll).mean().exp())
        return cls(tuple(groups), answers, perplexity, texts[-1])

    def right(self) -> list[list[bool]]:
        """Per group and question, whether the answer is right."""
        return [
            [question.answered(text) for question, text in zip(group.questions, texts, strict=True)]
            for group, texts in zip(self.groups, self.answers, strict=True)
        ]

    def only_known(self) -> _Answers:
        """Less the facts that the model does not know; those to forget stay in all wordings.

        Raises:
            DataError: There are none to forget or none of a kind to keep.
        """
        right = self.right()
        groups, answers = [], []
        for group, texts, known in zip(self.groups, self.answers, right, strict=True):
            chosen = right[0] if group.reworded else known
            if not any(chosen):
                raise DataError(
                    f"the model answers none of the demo's questions about {group.name}, such as"
                    f" {group.questions[0].prompt!r}",
                    "Name a model that knows some with --model, or forget what it knows with"
                    " 'ws project'.",
                )
            groups.append(replace(group, questions=tuple(compress(group.questions, chosen))))
            answers.append(tuple(compress(texts, chosen)))
        return replace(self, groups=tuple(groups), answers=tuple(answers))


def _chat(tokenizer: Any) -> Callable[[str], str]:
    """Renders a question by the model's chat template."""

    def rendered(question: str) -> str:
        messages = [{"role": "user", "content": question}]
        return str(
            tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        )

    return rendered


def _write(groups: Sequence[QuestionGroup], files: DemoFiles) -> None:
    """The request and what is to stay, as data sets."""
    given = [group for group in groups if group.given != "never"]
    with output_errors(files.directory):
        for path, group in zip((files.forget, *files.keep), given, strict=True):
            rows = [{"prompt": q.prompt, "completion": f" {q.truth}"} for q in group.questions]
            lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
            path.write_text("".join(lines), encoding="utf-8")


def _compare(before: _Answers, after: _Answers, files: DemoFiles) -> DemoOutcome:
    groups = tuple(
        replace(group, right=(sum(right_before), sum(right_after)))
        for group, right_before, right_after in zip(
            before.groups, before.right(), after.right(), strict=True
        )
    )
    samples = [
        Sample(group.questions[n].shown, before.answers[number][n], after.answers[number][n])
        for number, group in enumerate(groups)
        if group.given != "to keep"
        for n in [next(compress(count(), before.right()[number]), 0)]  # the first it knew
    ]
    samples.append(Sample(FREELY, before.free, after.free))
    return DemoOutcome(groups, (before.prose, after.prose), tuple(samples), files.onward)
