"""The demo's questions: capitals to forget, capitals and other facts to keep, and a page of prose.

Facts that small models answer; the demo puts those aside that its model does not know. The prose is
of this project's own making, so that no model has read it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files

__all__ = ["FREELY", "PROSE", "Question", "QuestionGroup", "questions"]

_ASKED = "The capital of {} is"  # the request's words
_OTHERWISE = "The capital city of {} is called"
_CHAT = "What is the capital of {}?"

_OPENING = " \t\n\"'*“‘«"  # what may stand before an answer

# Of capitals elsewhere and of general facts every second one is given to the edit, to be kept; the
# others tell what became of the rest.
_DATA = json.loads((files(__package__) / "questions.json").read_text("utf-8"))

FREELY = "The best way to learn a language is"
"""The beginning of a text to go on with."""

PROSE: str = _DATA["prose"]
"""A text that nothing is trained on; its perplexity says what became of ordinary language."""


@dataclass(frozen=True)
class Question:
    """A prompt with its answer.

    Attributes:
        prompt: As the model reads it.
        truth: What it should say.
        shown: The prompt for people, without the marks of a chat.
        chat: Asked in chat: the answer is a sentence that holds the truth.
    """

    prompt: str
    truth: str
    shown: str
    chat: bool = False

    def answered(self, text: str) -> bool:
        """Whether a text begins with the truth, in quotes or not; in chat, whether it holds it."""
        answer, truth = text.lstrip(_OPENING).casefold(), self.truth.casefold()
        return truth in answer if self.chat else answer.startswith(truth)


@dataclass(frozen=True)
class QuestionGroup:
    """Questions of one kind.

    Attributes:
        name: What they ask for.
        given: Whether the edit is given them, and as what: ``"to forget"``, ``"to keep"``, or
            ``"never"``.
        questions: At least one.
        reworded: They ask for the facts to forget, one for one, in another wording.
        right: How many each model answers, before and after.
    """

    name: str
    given: str
    questions: tuple[Question, ...]
    reworded: bool = False
    right: tuple[int, ...] = ()


def questions(chat: Callable[[str], str] | None) -> tuple[QuestionGroup, ...]:
    """All there is to ask, what is to be forgotten first.

    Args:
        chat: Renders a question by the chat template; None for a model without one.
    """

    def typed(facts: Sequence[tuple[str, str]], form: str = "{}") -> tuple[Question, ...]:
        prompts = [(form.format(subject), truth) for subject, truth in facts]
        return tuple(Question(prompt, truth, prompt) for prompt, truth in prompts)

    europe = _DATA["europe"]
    elsewhere, general = typed(_DATA["elsewhere"], _ASKED), typed(_DATA["general"])
    given, never = "to keep", "never"
    groups = [
        QuestionGroup("capitals of Europe", "to forget", typed(europe, _ASKED)),
        QuestionGroup("– in other words", never, typed(europe, _OTHERWISE), reworded=True),
        QuestionGroup("other capitals", given, elsewhere[::2]),
        QuestionGroup("other capitals", never, elsewhere[1::2]),
        QuestionGroup("general facts", given, general[::2]),
        QuestionGroup("general facts", never, general[1::2]),
    ]
    if chat is not None:
        in_chat = [
            replace(q, prompt=chat(q.prompt), shown=f"{q.prompt} (in chat)", chat=True)
            for q in typed(europe, _CHAT)
        ]
        groups.insert(2, QuestionGroup("– asked in chat", never, tuple(in_chat), reworded=True))
    return tuple(groups)
