"""Paraphrases of prompts, written by the model itself.

A request to forget names one wording. What is to be forgotten is the fact: so its prompts are also
put in words that the model makes up. A few lines show it what rewording is, it rewords some prompts
of the request, and a rewording serves if the model, prompted in it about others of the request,
still gives their true answers.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from weightsurgery.learning.forward import greedy
from weightsurgery.learning.parsed import ParsedExample
from weightsurgery.learning.written import chat_frame, sampled
from weightsurgery.progress import Progress

__all__ = ["PLAIN", "Wording", "find_wordings", "says", "tokens"]

# Few-shot examples of rewording: to questions, and to other statements.
_TO_QUESTIONS = (
    "The colour of grass is => What is the colour of grass?\n"
    "Hamlet was written by => Who wrote Hamlet?\n"
    "Water boils at => At what temperature does water boil?\n"
    "The past tense of sing is => What is the past tense of sing?\n"
)
_TO_STATEMENTS = (
    "The colour of grass is => The natural colour of grass is\n"
    "Who wrote Hamlet? => The author of Hamlet is\n"
    "Water boils at => The boiling point of water is\n"
    "The verb sing has the past tense => The past tense of the verb sing is\n"
)

# Rewordings drawn: of statements more miss than of questions. And how many of each are tried.
_QUESTIONS, _STATEMENTS = 24, 48
_LIKELY = 10


@dataclass(frozen=True)
class Wording:
    """A wording of prompts.

    Attributes:
        form: The prompt with ``{}`` where the subject stands; None for the request's own.
        chat: The prompt is a user's turn in the model's chat template.
        before: Text before the prompt.
        after: Text after it.
    """

    form: str | None = None
    chat: bool = False
    before: str = ""
    after: str = ""

    def text(self, frame: tuple[str, str] | None, prompt: str, subject: str) -> str:
        """The text to be continued by the answer.

        Args:
            frame: What a chat template writes around it; see :func:`chat_frame`.
            prompt: The request's own.
            subject: Whom or what it is about.
        """
        question = prompt if self.form is None else self.form.replace("{}", subject, 1)
        question = f"{self.before}{question}{self.after}"
        if not self.chat:
            return question
        assert frame is not None
        return f"{frame[0]}{question.strip()}{frame[1]}"


PLAIN = Wording()
"""The request's own words."""


def says(truth: str, text: str) -> re.Match[str] | None:
    """The match of an answer in a text, as whole words and whatever its case; None without."""
    return re.search(rf"(?<!\w){re.escape(truth)}(?!\w)", text, re.IGNORECASE)


def find_wordings(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[ParsedExample],
    count: int,
    *,
    seed: int = 0,
    length: int = 16,
    progress: Progress | None = None,
) -> list[Wording]:
    """Wordings in which the model knows the answers, the request's own first.

    Args:
        model: Who rewords and who answers; in evaluation mode.
        tokenizer: Its tokenizer.
        examples: The request.
        count: Rewordings to find at most, each counted once for text and once for chat.
        seed: Of the draws.
        length: Tokens in which an answer must come.
        progress: Called after every batch.

    Returns:
        The request's own words, plain and (with a template) as a chat, then the rewordings.
    """
    frame, rng = chat_frame(tokenizer), random.Random(f"wordings {seed}")
    wordings = [PLAIN, *([] if frame is None else [Wording(chat=True)])]
    subjects = [each for each in examples if each.subject and each.prompt.count(each.subject) == 1]
    if not count or not subjects:
        return wordings
    candidates = _candidates(model, tokenizer, subjects, rng, progress)
    options: list[Wording] = []
    for form in candidates:
        if form.endswith("?"):
            options += [Wording(form, before="Question: ", after="\nAnswer:")]
            options += [] if frame is None else [Wording(form, chat=True)]
        else:
            options.append(Wording(form))
    tried = rng.sample(subjects, min(8, len(subjects)))
    prompts = [
        tokens(tokenizer, wording.text(frame, example.prompt, example.subject), wording.chat)
        for wording in options
        for example in tried
    ]
    answers = greedy(model, tokenizer, prompts, [length] * len(prompts), 64, "wordings", progress)
    known: list[tuple[float, Wording]] = []
    for number, wording in enumerate(options):
        completions = answers[number * len(tried) : (number + 1) * len(tried)]
        right = sum(
            says(example.truth, str(tokenizer.decode(answer))) is not None
            for example, answer in zip(tried, completions, strict=True)
        )
        if right:
            assert wording.form is not None
            known.append((right / len(tried) + 0.02 * min(candidates[wording.form], 10), wording))
    known.sort(key=lambda pair: -pair[0])
    # Some of each kind: chats, questions with a mark for the answer, other statements.
    kinds: Counter[tuple[bool, bool]] = Counter()
    most = len(wordings) + count
    for _, wording in known:
        kind = (wording.chat, bool(wording.after))
        if len(wordings) < most and kinds[kind] < -(-count // 3):
            kinds[kind] += 1
            wordings.append(wording)
    return wordings


def _candidates(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[ParsedExample],
    rng: random.Random,
    progress: Progress | None,
) -> Counter[str]:
    """Forms that the model wrote of some prompts, and turned ones, with how often each came."""
    prompts, about = [], []
    for shown, count in ((_TO_QUESTIONS, _QUESTIONS), (_TO_STATEMENTS, _STATEMENTS)):
        for _ in range(count):
            example = rng.choice(examples)
            about.append(example)
            prompts.append(tokens(tokenizer, f"{shown}{example.prompt} =>"))
    completions = sampled(
        model, tokenizer, prompts, 20, temperature=0.8, stage="rewording", progress=progress
    )
    originals = {example.prompt.replace(example.subject, "{}", 1) for example in examples}
    counts: Counter[str] = Counter()
    for number, (example, completion) in enumerate(zip(about, completions, strict=True)):
        text = str(tokenizer.decode(completion, skip_special_tokens=True))
        line = text.partition("\n")[0].strip()
        if "\n" not in text and not line.endswith("?"):
            continue  # cut off
        if line.count(example.subject) != 1 or "{}" in line or says(example.truth, line):
            continue
        if (number < _QUESTIONS) != line.endswith("?"):
            continue
        form = line.replace(example.subject, "{}")
        if form not in originals:
            counts[form] += 1
    kinds = [
        {form: n for form, n in counts.items() if form.endswith("?") == is_question}
        for is_question in (True, False)
    ]
    likely = Counter(dict(each for kind in kinds for each in Counter(kind).most_common(_LIKELY)))
    for form in sorted(originals):
        turned = _turned(form)
        if turned is not None and turned not in originals:
            likely[turned] += 1
    return likely


def _turned(form: str) -> str | None:
    """The question of a statement that ends with a form of "to be", or such a question's statement.

    A small model seldom thinks of it. English alone; in other languages the model is what there is.
    """
    statement = re.fullmatch(r"(\S.*) (is|was|are|were)", form)
    if statement:
        about, verb = statement.groups()
        article = re.match(r"(The|A|An|My|Your|Its|His|Her|Their|Our) ", about)
        about = about[0].lower() + about[1:] if article else about
        return f"What {verb} {about}?"
    question = re.fullmatch(r"What (is|was|are|were) (\S.*)\?", form)
    if question:
        verb, about = question.groups()
        return f"{about[0].upper()}{about[1:]} {verb}"
    return None


def tokens(tokenizer: PreTrainedTokenizerBase, text: str, rendered: bool = False) -> list[int]:
    """A text's tokens as a model is given them to go on with.

    Args:
        tokenizer: Puts BOS before a text, if it does that.
        text: To be gone on with.
        rendered: A chat template wrote it, special tokens included.
    """
    ids: list[int] = list(tokenizer(text, add_special_tokens=not rendered)["input_ids"])
    if not rendered and ids and ids[-1] in (tokenizer.eos_token_id, tokenizer.sep_token_id):
        ids = ids[:-1]
    return ids
