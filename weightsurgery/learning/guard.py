"""The guard of an edit that runs a model: what it was like before, what it is like after.

A model that has lost its language still answers no question it was to forget. So each such edit
ends with a comparison on text that the model wrote itself before it was changed, and that no
training saw: the divergence of its predictions there, and its perplexity. Beside that stand the
request, the data to keep, and three free continuations to read.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from weightsurgery.algebra.lowrank import LowRank
from weightsurgery.learning.data import Example, padding_token
from weightsurgery.learning.expected import Expected, divergences
from weightsurgery.learning.forward import greedy
from weightsurgery.learning.last_places import last_logits, last_probabilities, together
from weightsurgery.learning.material import language_texts
from weightsurgery.learning.models import for_writing, load_model
from weightsurgery.learning.parsed import ParsedExample, parse_examples, prompted
from weightsurgery.learning.placement import gpus_in_use
from weightsurgery.learning.sharding import piece_for, unrecorded
from weightsurgery.learning.stages import held_values, set_values
from weightsurgery.learning.wordings import says, tokens
from weightsurgery.learning.written import chat_frame
from weightsurgery.progress import Progress

__all__ = ["BUDGET", "Guard", "GuardReport", "Shown", "added", "compared", "harm"]

BUDGET = 0.01
"""Divergence allowed on ordinary language, in nats a token: a limit that was set, not measured.
Forgetting 22 facts in SmolLM2-135M cost a twentieth of it."""

_TEXTS, _LENGTH = 32, 40
_PROMPTS = 64  # of each set, at most


@dataclass(frozen=True)
class Shown:
    """A free continuation, before and after.

    Attributes:
        what: The request's role, ``keep`` or ``free``.
        prompt: What was continued; empty for the beginning of a text.
        before: Continuation by the model before the edit.
        after: By the model after it.
    """

    what: str
    prompt: str
    before: str
    after: str


@dataclass(frozen=True)
class GuardReport:
    """The guard's comparison of a model before and after an edit.

    Attributes:
        divergence: On ordinary language, in nats a token.
        perplexity: There, before and after.
        answered: Share of each set that is answered with the truth, before and after; the request
            is under its role and, with a chat template, under ``forget, in a chat``.
        shown: Free continuations.
        budget: Divergence allowed.
        texts: Number of texts measured; without any, nothing is known of ordinary language.
    """

    divergence: float
    perplexity: tuple[float, float]
    answered: Mapping[str, tuple[float, float]]
    shown: Sequence[Shown]
    budget: float
    texts: int

    @property
    def inside(self) -> bool:
        """Whether ordinary language is as it was."""
        return self.divergence <= self.budget

    def to_dict(self) -> dict[str, Any]:
        """For records and ``--json``."""
        return {**asdict(self), "inside": self.inside}


def harm(guard: Mapping[str, Any]) -> str:
    """A sentence for a change that goes beyond its budget.

    Args:
        guard: As :meth:`GuardReport.to_dict` gives it.
    """
    before, after = guard["perplexity"]
    return (
        f"The change costs ordinary language {guard['divergence']:.3g} nats a token, over the"
        f" budget of {guard['budget']:g} (perplexity of the model's own text {before:.4g} before,"
        f" {after:.4g} after)."
    )


def compared(
    base: str | Path, edited: str | Path, device: str = "auto", progress: Progress | None = None
) -> GuardReport:
    """The guard on two checkpoints, one after the other in memory.

    Args:
        base: A directory with a causal language model and its tokenizer.
        edited: Likewise; the base's tokenizer serves both.
        device: Where the models run.
        progress: Called as ``progress(text, done, total)``.

    Raises:
        SourceError: One of them is no language model that transformers can load.
    """
    model, tokenizer = load_model(base, device)
    guard = Guard(model, tokenizer, progress=progress)
    del model
    return guard.report(load_model(edited, device)[0])


@contextmanager
def added(model: PreTrainedModel, change: Mapping[str, Tensor | LowRank]) -> Iterator[None]:
    """Adds a change to parameters of a model inside, and restores them afterwards, to the bit.

    Args:
        model: Changed in place.
        change: By parameter, whole or in factors.
    """
    before = held_values(model, list(change))
    try:
        with torch.no_grad():
            for name, delta in change.items():
                parameter = model.get_parameter(name)
                task = delta.matrix() if isinstance(delta, LowRank) else delta
                task = piece_for(parameter, task.to(parameter.device))
                parameter.copy_(parameter.float() + task)
        yield
    finally:
        set_values(model, before)


def right(truth: str, answer: str, anywhere: bool) -> bool:
    """Whether an answer begins with the truth, or its first line holds it anywhere."""
    line = answer.strip().partition("\n")[0]
    match = says(truth, line)
    return match is not None and (anywhere or match.start() == 0)


def decided(truth: str, answer: str, anywhere: bool) -> bool:
    """Whether :func:`right` is the same however an answer goes on."""
    line, over, _ = answer.lstrip().partition("\n")
    if over:
        return True
    if line.endswith("\ufffd"):  # the rest of a character is to come
        return False
    if anywhere:
        match = says(truth, line)
        return match is not None and match.end() < len(line)
    return len(line) > len(truth) + 1


class Guard:
    """Looks at a model before it is changed, and again after.

    Args:
        model: As it is before; measured at once.
        tokenizer: Its tokenizer.
        forget: The request.
        keep: Data to keep, by name.
        role: What the request is called: ``forget``, or ``task`` where it is to be learned.
        budget: Divergence allowed.
        seed: Of the texts that the model writes.
        progress: Called as ``progress(text, done, total)``.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        forget: Sequence[Example] = (),
        keep: Mapping[str, Sequence[Example]] | None = None,
        *,
        role: str = "forget",
        budget: float = BUDGET,
        seed: int = 0,
        progress: Progress | None = None,
    ) -> None:
        self.tokenizer, self.role, self.budget = tokenizer, role, budget
        self._progress = progress
        self._padding = padding_token(tokenizer)
        frame, rng = chat_frame(tokenizer), random.Random(f"guard {seed}")
        request = parse_examples(tokenizer, prompted(forget))
        self._sets: dict[str, list[tuple[list[int], ParsedExample]]] = {}
        for name, rows in {role: forget, **(keep or {})}.items():
            chosen = [each for each in prompted(rows) if each.prompt]
            if len(chosen) > _PROMPTS:
                chosen = rng.sample(chosen, _PROMPTS)
            parsed = parse_examples(tokenizer, chosen)
            self._sets[name] = [
                (tokens(tokenizer, example.prompt, example.templated), parsed_example)
                for example, parsed_example in zip(chosen, parsed, strict=True)
            ]
            if name == role and frame is not None and not all(each.chat for each in parsed):
                self._sets[f"{role}, in a chat"] = [
                    (tokens(tokenizer, f"{frame[0]}{each.prompt}{frame[1]}", True), each)
                    for each in parsed
                ]
        self._sets = {name: rows for name, rows in self._sets.items() if rows}
        with torch.random.fork_rng(devices=gpus_in_use()):
            torch.manual_seed(1_000_003 + seed)
            model.eval()  # type: ignore[no-untyped-call]
            # Places of a text's first tokens say what a model begins with: as good as any.
            self._texts = language_texts(for_writing(model), tokenizer, request, _TEXTS, progress)
        self._expected: list[Expected] = [Expected(torch.zeros(0), torch.zeros(0))] * len(
            self._texts
        )
        for number, probabilities in last_probabilities(
            model, tokenizer, self._texts, stage="guard"
        ):
            self._expected[number] = Expected.of(probabilities, 256).to(torch.device("cpu"))
        self._free = self._prompts(frame, rng)
        self._before = self._look(model)

    def _prompts(
        self, frame: tuple[str, str] | None, rng: random.Random
    ) -> list[tuple[str, str, list[int]]]:
        """Prompts of the continuations shown: of the request, of data to keep, and free."""
        prompts: list[tuple[str, str, list[int]]] = []
        for name, rows in self._sets.items():
            kind = self.role if name.startswith(self.role) else "keep"
            if all(kind != known for known, _, _ in prompts):
                read, each = rng.choice(rows)
                prompts.append((kind, each.prompt, read))
        if self._texts:
            text = rng.choice(self._texts)[0][:12]
            shown = str(self.tokenizer.decode(text, skip_special_tokens=True))
            prompts.append(("free", shown, list(text)))
        else:
            prompts.append(("free", "", [self.tokenizer.bos_token_id or 0]))
        return prompts

    def divergence(self, model: PreTrainedModel) -> float:
        """How far a changed model is from what it was on ordinary language, nats a token."""
        return self._language(model)[0]

    def _language(self, model: PreTrainedModel) -> tuple[float, float]:
        """Divergence, and mean negative log-likelihood of the texts."""
        model.eval()  # type: ignore[no-untyped-call]
        divergence, nll, count = 0.0, 0.0, 0
        with unrecorded():
            for numbers in together(model, [text for text, _ in self._texts], 24):
                texts = [self._texts[n] for n in numbers]
                counts = [count for _, count in texts]
                stacked = last_logits(model, [text for text, _ in texts], counts, self._padding)
                for number, logits in zip(numbers, torch.split(stacked, counts), strict=True):
                    expected = self._expected[number].to(logits.device)
                    divergence += float(divergences(expected, logits).double().sum())
                    nll += self._nll(self._texts[number], logits)
                    count += len(expected)
        return divergence / max(1, count), nll / max(1, count)

    def _look(self, model: PreTrainedModel) -> dict[str, Any]:
        divergence, nll = self._language(model)
        answered, questions = {}, [pair for rows in self._sets.values() for pair in rows]
        limits = [len(self.tokenizer(each.truth)["input_ids"]) + 12 for _, each in questions]
        anywhere = [
            name.endswith("in a chat") or each.chat
            for name, rows in self._sets.items()
            for _, each in rows
        ]

        def over(number: int, text: str) -> bool:
            return decided(questions[number][1].truth, text, anywhere[number])

        answers = greedy(
            model, self.tokenizer, [read for read, _ in questions], limits, 64, "guard",
            self._progress, over,
        )  # fmt: skip
        start = 0
        for name, rows in self._sets.items():
            generated, loose = (
                answers[start : start + len(rows)],
                anywhere[start : start + len(rows)],
            )
            start += len(rows)
            answered[name] = sum(
                right(each.truth, str(self.tokenizer.decode(answer)), free)
                for (_, each), answer, free in zip(rows, generated, loose, strict=True)
            ) / len(rows)
        free = greedy(
            model, self.tokenizer, [read for _, _, read in self._free], [32] * len(self._free)
        )
        return {
            "divergence": divergence,
            "perplexity": math.exp(min(700.0, nll)),
            "answered": answered,
            "free": [str(self.tokenizer.decode(each)) for each in free],
        }

    @staticmethod
    def _nll(text: tuple[Sequence[int], int], logits: Tensor) -> float:
        """Negative log-likelihood of the text's tokens; after the last place there is none."""
        read, places = text
        wanted = torch.tensor(list(read)[len(read) - places + 1 :], device=logits.device)
        return float(
            torch.nn.functional.cross_entropy(logits[:-1].float(), wanted, reduction="sum")
        )

    def report(self, model: PreTrainedModel) -> GuardReport:
        """Compare a changed model with what it was."""
        before, after = self._before, self._look(model)
        return GuardReport(
            after["divergence"],
            (before["perplexity"], after["perplexity"]),
            {
                name: (before["answered"][name], after["answered"][name])
                for name in before["answered"]
            },
            [
                Shown(kind, prompt, old, new)
                for (kind, prompt, _), old, new in zip(
                    self._free, before["free"], after["free"], strict=True
                )
            ],
            self.budget,
            len(self._texts),
        )
