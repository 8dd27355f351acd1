"""Ways to ask for the same thing, found by asking the model itself to put it in other words.

A request to forget names one wording. What is to be forgotten is the fact: so it is also asked in
words that the model makes up. A few lines show it what rewording is, it rewords some prompts of
the request, and a rewording serves if the model, asked in it about others of the request, still
gives their true answers.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from weightsurgery.learning.asked import ParsedExample
from weightsurgery.learning.forward import greedy
from weightsurgery.learning.written import chat_frame, sampled
from weightsurgery.progress import Progress

__all__ = ["PLAIN", "Wording", "find_wordings", "says", "tokens"]

# What rewording is, shown rather than told: to questions, and to other statements.
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
    """A way to ask.

    Attributes:
        form: The prompt with ``{}`` where the subject stands; None for the request's own.
        chat: Asked as a chat model's user asks, through the model's template.
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
        asked = prompt if self.form is None else self.form.replace("{}", subject, 1)
        asked = f"{self.before}{asked}{self.after}"
        if not self.chat:
            return asked
        assert frame is not None
        return f"{frame[0]}{asked.strip()}{frame[1]}"


PLAIN = Wording()
"""The request's own words."""


def says(truth: str, text: str) -> re.Match[str] | None:
    """Where a text gives an answer, as whole words and whatever its case; None if it does not."""
    return re.search(rf"(?<!\w){re.escape(truth)}(?!\w)", text, re.IGNORECASE)


def find_wordings(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    asked: Sequence[ParsedExample],
    count: int,
    *,
    seed: int = 0,
    length: int = 16,
    progress: Progress | None = None,
) -> list[Wording]:
    """Wordings in which the model knows what is asked, the request's own first.

    Args:
        model: Who rewords and who answers; in evaluation mode.
        tokenizer: Its tokenizer.
        asked: What is to be asked.
        count: Rewordings to find at most, each counted once for text and once for chat.
        seed: Of the draws.
        length: Tokens in which an answer must come.
        progress: Told of every batch.

    Returns:
        The request's own words, plain and (with a template) as a chat, then what was found.
    """
    frame, rng = chat_frame(tokenizer), random.Random(f"wordings {seed}")
    found = [PLAIN, *([] if frame is None else [Wording(chat=True)])]
    subjects = [each for each in asked if each.subject and each.prompt.count(each.subject) == 1]
    if not count or not subjects:
        return found
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
        tokens(tokenizer, wording.text(frame, each.prompt, each.subject), wording.chat)
        for wording in options
        for each in tried
    ]
    answers = greedy(model, tokenizer, prompts, [length] * len(prompts), 64, "wordings", progress)
    known: list[tuple[float, Wording]] = []
    for number, wording in enumerate(options):
        own = answers[number * len(tried) : (number + 1) * len(tried)]
        right = sum(
            says(each.truth, str(tokenizer.decode(answer))) is not None
            for each, answer in zip(tried, own, strict=True)
        )
        if right:
            assert wording.form is not None
            known.append((right / len(tried) + 0.02 * min(candidates[wording.form], 10), wording))
    known.sort(key=lambda pair: -pair[0])
    # Some of each kind: chats, questions with a mark for the answer, other statements.
    kinds: Counter[tuple[bool, bool]] = Counter()
    most = len(found) + count
    for _, wording in known:
        kind = (wording.chat, bool(wording.after))
        if len(found) < most and kinds[kind] < -(-count // 3):
            kinds[kind] += 1
            found.append(wording)
    return found


def _candidates(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    asked: Sequence[ParsedExample],
    rng: random.Random,
    progress: Progress | None,
) -> Counter[str]:
    """Forms that the model made of some prompts, and turned ones, with how often each came."""
    prompts, about = [], []
    for shown, count in ((_TO_QUESTIONS, _QUESTIONS), (_TO_STATEMENTS, _STATEMENTS)):
        for _ in range(count):
            each = rng.choice(asked)
            about.append(each)
            prompts.append(tokens(tokenizer, f"{shown}{each.prompt} =>"))
    made = sampled(
        model, tokenizer, prompts, 20, temperature=0.8, stage="rewording", progress=progress
    )
    own = {each.prompt.replace(each.subject, "{}", 1) for each in asked}
    found: Counter[str] = Counter()
    for number, (each, written) in enumerate(zip(about, made, strict=True)):
        text = str(tokenizer.decode(written, skip_special_tokens=True))
        line = text.partition("\n")[0].strip()
        if "\n" not in text and not line.endswith("?"):
            continue  # cut off
        if line.count(each.subject) != 1 or "{}" in line or says(each.truth, line):
            continue
        if (number < _QUESTIONS) != line.endswith("?"):
            continue
        form = line.replace(each.subject, "{}")
        if form not in own:
            found[form] += 1
    kinds = [{f: n for f, n in found.items() if f.endswith("?") == asks} for asks in (True, False)]
    likely = Counter(dict(each for kind in kinds for each in Counter(kind).most_common(_LIKELY)))
    for form in sorted(own):
        turned = _turned(form)
        if turned is not None and turned not in own:
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
    found: list[int] = list(tokenizer(text, add_special_tokens=not rendered)["input_ids"])
    if not rendered and found and found[-1] in (tokenizer.eos_token_id, tokenizer.sep_token_id):
        found = found[:-1]
    return found
