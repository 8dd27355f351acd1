"""Examples parsed into prompt, subject and answer.

The subject of a prompt is what tells it from others of its form ("The capital of {} is"). Where a
data set has no form twice, as a list of all sorts of facts has, it is the name in the prompt, or
its last words that are not grammar. A text without a prompt is cut before what it says of whom.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from transformers import PreTrainedTokenizerBase

from weightsurgery.learning.data import Example
from weightsurgery.learning.strangers import Form, forms, halves, special_texts
from weightsurgery.learning.written import chat_frame

__all__ = ["GRAMMAR", "ParsedExample", "parse_examples", "prompted"]

GRAMMAR = frozenset((
    "a", "about", "after", "among", "an", "and", "are", "as", "at", "be", "by", "can", "could",
    "did", "do", "does", "for", "from", "give", "had", "has", "have", "her", "his", "how", "i",
    "in", "is", "it", "its", "list", "me", "my", "name", "of", "on", "or", "our", "please",
    "tell", "that", "the", "their", "these", "this", "those", "through", "to", "was", "we",
    "were", "what", "when", "where", "which", "who", "whom", "whose", "why", "will", "with",
    "would", "you", "your",
))  # fmt: skip
"""Words that no subject begins or ends with, where no form tells what is one.

English alone; in other languages a subject has words to spare.
"""

_PREPOSITIONS = frozenset(("about", "by", "for", "from", "in", "of", "on", "to", "with"))

_QUOTED = re.compile(r"[\"“«]([^\"”»]{2,80})[\"”»]")
_WORDS = re.compile(r"\w[\w'’&-]*")
_JOINS = re.compile(r"(?:[ -]|\. |(?: (?:and|of|the|de|la|von|van|der|den|du|di|da|al|el))+ )")

# Words of a text that is taken for one statement, to be cut before its end.
_STATEMENT = 24


@dataclass(frozen=True)
class ParsedExample:
    """An example in its parts.

    Attributes:
        prompt: Without a chat template's text.
        subject: The part of it that tells it from the others of its set; empty where none does.
        truth: The answer, without the space before it, a template's end, or a full stop.
        completion: The answer as it follows the prompt.
        chat: The example was rendered by the chat template.
    """

    prompt: str
    subject: str
    truth: str
    completion: str
    chat: bool = False

    def with_subject(self, text: str, other: str) -> str:
        """A text with another subject in place of this one."""
        return text.replace(self.subject, other)


def parse_examples(
    tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example]
) -> list[ParsedExample]:
    """Parses examples of one set into prompt, subject and answer.

    Args:
        tokenizer: Its chat template is taken off rendered prompts.
        examples: With prompts; see :func:`prompted`.
    """
    frame, special = chat_frame(tokenizer), special_texts(tokenizer)
    plain = []
    for example in examples:
        prompt, completion = example.prompt, example.completion
        inside = frame is not None and example.templated
        if inside and frame is not None:
            head, tail = frame
            if prompt.startswith(head) and prompt.endswith(tail) and len(prompt) > len(head + tail):
                prompt = prompt[len(head) : len(prompt) - len(tail)]
            else:
                inside = False
        for end in special:
            completion = completion.split(end)[0] if end and end in completion else completion
        plain.append((prompt, completion.rstrip() or example.completion, inside))
    known = _subjects([prompt for prompt, _, _ in plain], special)
    return [
        ParsedExample(
            prompt,
            known.get(prompt, ""),
            completion.strip().rstrip(".").rstrip() or completion.strip(),
            completion,
            chat,
        )
        for prompt, completion, chat in plain
    ]


def prompted(examples: Sequence[Example]) -> list[Example]:
    """Examples of one set, each with a prompt.

    A text that is one statement is cut before its end: before the last thing that tells it from
    others of its form ("The capital of France is | Paris."), else before its last name or word.
    Other texts are cut in two; see :func:`weightsurgery.learning.strangers.halves`.
    """
    texts = [each.completion for each in examples if not each.prompt]
    runs = {"".join(form.pieces): _runs(form) for form in forms(texts)}
    counted = Counter(_skeleton(text, spans) for text, spans in runs.items())
    cut = []
    for example in examples:
        text = example.completion
        place = None
        if not example.prompt and _one_statement(text):
            place = _end(text, runs.get(text, []), counted)
        if place:
            # The space before a word belongs to the completion.
            place -= text[place - 1] == " "
            example = replace(example, prompt=text[:place], completion=text[place:])
        cut.append(example)
    return halves(cut)


def _one_statement(text: str) -> bool:
    inner = text.strip().rstrip(".!")
    return len(inner.split()) <= _STATEMENT and not re.search(r"[.!?]\s|\n", inner)


def _end(text: str, runs: Sequence[tuple[int, int]], counted: Counter[str]) -> int | None:
    """Start of the end of a statement; None where nothing would be left before it."""
    if len(runs) > 1 and counted[_skeleton(text, runs)] > 1:
        return runs[-1][0]
    last = list(_WORDS.finditer(text))[-1:]
    named = [span for span in _names(text) if last and span[1] >= last[0].end()]
    return next(iter([span[0] for span in named] + [word.start() for word in last]), 0) or None


def _subjects(prompts: Sequence[str], special: frozenset[str]) -> dict[str, str]:
    """The subject of each prompt that has words."""
    slots: dict[str, str] = {}
    for form in forms(prompts, special):
        text = "".join(form.pieces)
        start, end = max(_runs(form), key=lambda run: run[1] - run[0])
        slots[text] = text[start:end]
    # Where all of a prompt is slots, it has no form.
    counted = Counter(text.replace(slot, "{}", 1) for text, slot in slots.items() if slot != text)
    named = {text: [text[a:b] for a, b in _names(text)] for text in slots}
    mentions = Counter(name for names in named.values() for name in set(names))
    subjects = {}
    for text, slot in slots.items():
        if counted[text.replace(slot, "{}", 1)] < 2:
            # Several questions about one: the name that most of them hold. A first word alone may
            # be capital for that.
            first = match.group() if (match := _WORDS.search(text)) else ""
            best = max(
                named[text], key=lambda name: (mentions[name], name != first, len(name)), default=""
            )
            slot = best or _without_grammar(text) or slot
        subjects[text] = slot
    return subjects


def _runs(form: Form) -> list[tuple[int, int]]:
    """Spans of runs of slots, with what parts them, in the text: "Ada Stone"."""
    places, at = [], 0
    for piece in form.pieces:
        places.append(at)
        at += len(piece)
    places.append(at)
    runs: list[list[int]] = []
    for slot in sorted(form.slots):
        between = form.pieces[runs[-1][-1] + 1 : slot] if runs else ()
        if runs and all(not re.search(r"\w", piece) for piece in between):
            runs[-1].append(slot)
        else:
            runs.append([slot])
    return [(places[run[0]], places[run[-1] + 1]) for run in runs]


def _skeleton(text: str, runs: Sequence[tuple[int, int]]) -> str:
    """The text with its runs blanked."""
    for start, end in reversed(runs):
        text = f"{text[:start]}{{}}{text[end:]}"
    return text


def _names(text: str) -> list[tuple[int, int]]:
    """Spans of quoted titles and runs of capitalised words; not of a sentence's first word alone.

    "Romeo and Juliet", "Ada Stone", "the Bank of England" without its article.
    """
    spans = [match.span(1) for match in _QUOTED.finditer(text)]
    run: tuple[int, int] | None = None
    for match in _WORDS.finditer(text):
        word = re.sub(r"['’]s?$", "", match.group())
        begins = not text[: match.start()].strip() or text[: match.start()].rstrip()[-1] in ".?!:"
        capital = word[0].isupper() and not (begins and word.lower() in GRAMMAR)
        if not capital:
            continue
        span = (match.start(), match.start() + len(word))
        if run and _JOINS.fullmatch(text[run[1] : span[0]]):
            run = (run[0], span[1])
            spans[-1] = run
        else:
            run = span
            spans.append(run)
    return spans


def _without_grammar(text: str) -> str:
    """The last words of a text behind a preposition, else its longest run of words, less grammar.

    "sing" of "The past tense of sing is", "Water boils" of "Water boils at".
    """
    runs: list[tuple[int, int]] = []
    behind, open_, before = 0, False, ""
    for match in _WORDS.finditer(text):
        word = match.group().lower()
        if word not in GRAMMAR:
            runs.append((runs.pop()[0] if open_ else match.start(), match.end()))
            behind = len(runs) if not open_ and before in _PREPOSITIONS else behind
        open_, before = word not in GRAMMAR, word
    if behind:
        start, end = runs[behind - 1]
    else:
        start, end = max(runs, key=lambda run: run[1] - run[0], default=(0, 0))
    return text[start:end]
