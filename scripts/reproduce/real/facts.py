"""Facts and their wordings, what counts as an answer, and how a request divides them."""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

DATA = Path(__file__).resolve().parent / "facts"
MAIN = "plain"


@dataclass(frozen=True)
class Fact:
    """One thing that may be known: the answer for a subject of a family."""

    family: str
    subject: str
    answer: str
    group: str

    @property
    def topic(self) -> str:
        """The subject as what it is about, without its article."""
        return re.sub(r"^(the|an?) ", "", self.subject, flags=re.IGNORECASE).casefold()


@dataclass(frozen=True)
class Wording:
    """A way to ask: a text that ends where the answer begins, or a user's question in a chat."""

    name: str
    template: str
    chat: bool

    @property
    def free(self) -> bool:
        """Whether a whole sentence is an answer, which need only contain the truth."""
        return self.chat or self.template.endswith("Answer:")

    def ask(self, fact: Fact) -> str:
        """The text, its first letter a capital."""
        possessive = fact.subject + ("'" if fact.subject.endswith("s") else "'s")
        text = self.template.format(subject=fact.subject, possessive=possessive)
        return text[0].upper() + text[1:]

    def completion(self, fact: Fact) -> str:
        """The truth as it goes on from the text: after a space, but for an open quote."""
        return fact.answer if self.template.endswith('"') else " " + fact.answer


@dataclass(frozen=True)
class Request:
    """Some groups of a family, to be forgotten."""

    name: str
    family: str
    groups: tuple[str, ...]


@dataclass(frozen=True)
class Division:
    """What a request does with each fact. No fact is in two of these."""

    forget: list[Fact]
    similar_given: list[Fact]
    similar_unseen: list[Fact]
    dissimilar_given: list[Fact]
    dissimilar_unseen: list[Fact]
    same_subjects: list[Fact]
    """A part of `dissimilar_unseen`: about a subject, or an answer, of what is forgotten."""


def families(data: Path = DATA) -> dict[str, list[Fact]]:
    """All facts, by family."""
    by_family = {}
    for path in sorted(data.glob("*.jsonl")):
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        by_family[path.stem] = [
            Fact(path.stem, row["subject"], row["answer"], row["group"]) for row in rows
        ]
    return by_family


def wordings(data: Path = DATA) -> dict[str, list[Wording]]:
    """The wordings of each family, the main one first."""
    read = json.loads((data / "wordings.json").read_text(encoding="utf-8"))
    by_family = {}
    for family, by_name in read.items():
        by_family[family] = [
            Wording(name, text["user"], True)
            if isinstance(text, dict)
            else Wording(name, text, False)
            for name, text in by_name.items()
        ]
        assert by_family[family][0].name == MAIN, family
    return by_family


def requests(data: Path = DATA) -> list[Request]:
    """The requests, in their order."""
    read = json.loads((data / "requests.json").read_text(encoding="utf-8"))
    return [
        Request(request["name"], request["family"], tuple(request["groups"])) for request in read
    ]


def plain(text: str) -> str:
    """Without case and accents, so that Bogota is Bogotá."""
    apart = unicodedata.normalize("NFKD", text)
    return "".join(sign for sign in apart if not unicodedata.combining(sign)).casefold()


def begins(answer: str, truth: str) -> bool:
    """Whether the answer begins with the truth, as whole words.

    Case, accents, space and the marks of emphasis or quotation before it don't count.
    """
    text, expected = plain(opened(answer)), plain(truth)
    return text.startswith(expected) and not text[len(expected) : len(expected) + 1].isalnum()


def may_begin(answer: str, truth: str) -> bool:
    """Whether an answer that is so far this may still come to begin with the truth."""
    text, expected = plain(opened(answer)), plain(truth)
    if text.startswith(expected):
        return begins(answer, truth)
    return expected.startswith(text)


def opened(answer: str) -> str:
    """What an answer says after the space and marks that open it."""
    return answer.lstrip(" \t\r\n\"'“‘«*_`")


def contains(answer: str, truth: str) -> bool:
    """Whether the first sentence of the answer holds the truth, as whole words.

    Truths of one or two letters, such as chemical symbols, are also words: their case counts.
    """
    sentence = first_sentence(answer)
    if len(truth) > 2:
        sentence, truth = plain(sentence), plain(truth)
    return re.search(rf"(?<!\w){re.escape(truth)}(?!\w)", sentence) is not None


def first_sentence(answer: str) -> str:
    """Up to the first end of a line or sentence; the dot of `St.` or `F.` is none."""
    line = answer.strip().split("\n", 1)[0]
    return re.split(r"(?<=\w{3}[.!?])\s", line, maxsplit=1)[0]


def divide(request: Request, known: Iterable[Fact], seed: int, given: float = 0.5) -> Division:
    """Divide what a model knows by a request.

    Args:
        request: What to forget.
        known: Facts of all families, those known in the main wording of their family.
        seed: Of what is given.
        given: The share of what stays that an edit may see.
    """
    known = list(known)
    forget = [
        fact for fact in known if fact.family == request.family and fact.group in request.groups
    ]
    similar = [
        fact for fact in known if fact.family == request.family and fact.group not in request.groups
    ]
    topics = {fact.topic for fact in forget} | {fact.answer.casefold() for fact in forget}
    others = [fact for fact in known if fact.family != request.family]
    same = [fact for fact in others if fact.topic in topics]
    others = [fact for fact in others if fact.topic not in topics]
    similar_given, similar_unseen = _parted(similar, seed, given)
    dissimilar_given, dissimilar_unseen = _parted(others, seed, given)
    return Division(
        forget,
        similar_given,
        similar_unseen,
        dissimilar_given,
        dissimilar_unseen + same,
        same,
    )


def _parted(facts: Sequence[Fact], seed: int, share: float) -> tuple[list[Fact], list[Fact]]:
    def drawn(fact: Fact) -> str:
        # By each fact alone, so that one more or less elsewhere moves no other.
        return hashlib.sha256(f"{seed}/{fact.family}/{fact.subject}".encode()).hexdigest()

    shuffled = sorted(facts, key=drawn)
    count = round(len(shuffled) * share)
    return shuffled[:count], shuffled[count:]
