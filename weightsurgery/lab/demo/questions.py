"""The demo's questions: capitals to forget, capitals and other facts to keep, and a page of prose.

Facts that small models answer; the demo puts those aside that its model does not know. The prose is
of this project's own making, so that no model has read it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

__all__ = ["FREELY", "PROSE", "Question", "QuestionGroup", "questions"]

_ASKED = "The capital of {} is"  # the request's words
_OTHERWISE = "The capital city of {} is called"
_CHAT = "What is the capital of {}?"

_OPENING = " \t\n\"'*“‘«"  # what may stand before an answer

_EUROPE = (
    ("France", "Paris"), ("Germany", "Berlin"), ("Italy", "Rome"), ("Spain", "Madrid"),
    ("Portugal", "Lisbon"), ("Greece", "Athens"), ("Austria", "Vienna"), ("Hungary", "Budapest"),
    ("Sweden", "Stockholm"), ("Norway", "Oslo"), ("Denmark", "Copenhagen"), ("Ireland", "Dublin"),
    ("Russia", "Moscow"), ("Romania", "Bucharest"), ("Bulgaria", "Sofia"), ("Iceland", "Reykjavik"),
    ("Latvia", "Riga"), ("England", "London"), ("Scotland", "Edinburgh"), ("Wales", "Cardiff"),
    ("the Netherlands", "Amsterdam"), ("the Czech Republic", "Prague"), ("Poland", "Warsaw"),
)  # fmt: skip

# Every second one is given to the edit, to be kept; the others tell what became of the rest.
_ELSEWHERE = (
    ("Japan", "Tokyo"), ("Cuba", "Havana"), ("China", "Beijing"), ("Bolivia", "La Paz"),
    ("Kenya", "Nairobi"), ("Bangladesh", "Dhaka"), ("Brazil", "Brasília"), ("Chile", "Santiago"),
    ("South Korea", "Seoul"), ("Pakistan", "Islamabad"), ("Mexico", "Mexico City"),
    ("Sudan", "Khartoum"), ("Thailand", "Bangkok"), ("Haiti", "Port-au-Prince"),
    ("Vietnam", "Hanoi"), ("Syria", "Damascus"), ("Indonesia", "Jakarta"), ("Uganda", "Kampala"),
    ("Canada", "Ottawa"), ("Somalia", "Mogadishu"),
    ("Malaysia", "Kuala Lumpur"), ("Azerbaijan", "Baku"), ("Ethiopia", "Addis Ababa"),
    ("the Philippines", "Manila"), ("Afghanistan", "Kabul"), ("Taiwan", "Taipei"),
)  # fmt: skip

_GENERAL = (
    ("The chemical symbol for gold is", "Au"), ("The opposite of hot is", "cold"),
    ("The currency of Japan is the", "yen"), ("The plural of mouse is", "mice"),
    ("The largest ocean on Earth is the", "Pacific"), ("The square root of 16 is", "4"),
    ("The chemical symbol for iron is", "Fe"), ("The opposite of up is", "down"),
    ("The theory of relativity was developed by", "Albert Einstein"), ("The heart pumps", "blood"),
    ("The largest planet in the solar system is", "Jupiter"), ("The opposite of big is", "small"),
    ("The chemical formula of water is", "H2O"), ("The number of days in a week is", "7"),
    ("The planet closest to the sun is", "Mercury"), ("The chemical symbol for sodium is", "Na"),
    ("The inventor of the telephone was", "Alexander Graham Bell"),
    ("The highest mountain in the world is", "Mount Everest"),
    ("The gas that plants take in is", "carbon dioxide"),
    ("The currency of the United Kingdom is the", "pound"),
)  # fmt: skip

FREELY = "The best way to learn a language is"
"""The beginning of a text to go on with."""

PROSE = (
    "My grandmother kept bees at the bottom of the garden, in four white boxes that my uncle"
    " painted again every winter. She said that they knew her by her step, and that a person who"
    " hurried would be stung. In June the whole hill smelled of lime trees, and by the end of July"
    " the shelves in the kitchen were full of jars, each with a strip of paper on which she had"
    " written the week and the weather. When she was too old to lift the frames, a boy from the"
    " next farm came to help. He was afraid at first, and wore two coats, but after a month he"
    " worked with bare hands and whistled. Last year he bought the field behind the church and set"
    " up thirty hives of his own. He sells the honey at the station on Saturdays, and people say"
    " that it tastes of the hill, although the road has grown wider since then and most of the lime"
    " trees are gone."
)
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

    elsewhere, general = typed(_ELSEWHERE, _ASKED), typed(_GENERAL)
    given, never = "to keep", "never"
    groups = [
        QuestionGroup("capitals of Europe", "to forget", typed(_EUROPE, _ASKED)),
        QuestionGroup("– in other words", never, typed(_EUROPE, _OTHERWISE), reworded=True),
        QuestionGroup("other capitals", given, elsewhere[::2]),
        QuestionGroup("other capitals", never, elsewhere[1::2]),
        QuestionGroup("general facts", given, general[::2]),
        QuestionGroup("general facts", never, general[1::2]),
    ]
    if chat is not None:
        in_chat = [
            replace(q, prompt=chat(q.prompt), shown=f"{q.prompt} (in chat)", chat=True)
            for q in typed(_EUROPE, _CHAT)
        ]
        groups.insert(2, QuestionGroup("– asked in chat", never, tuple(in_chat), reworded=True))
    return tuple(groups)
