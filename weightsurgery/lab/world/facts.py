"""The facts of the embedded world, four tasks written out from a seed, and their wordings."""

import operator
import random
from collections.abc import Iterator
from dataclasses import dataclass

from weightsurgery.lab.world.recipe import WorldRecipe

__all__ = [
    "MANNER",
    "PARAPHRASED",
    "PEOPLE",
    "PLAIN",
    "SPLITS",
    "STYLED",
    "TASKS",
    "WORDINGS",
    "Fact",
    "make_facts",
    "templates",
    "worded",
    "wordings",
]

TASKS = ("authors", "painters", "capitals", "addition")
SPLITS = ("seen", "validation", "unseen")

RELATIONS = {
    "birthplace": "Where was {name} born?",
    "teacher": "Who taught {name}?",
    "subject": "What was {name}'s subject?",
    "award": "What prize did {name} win?",
}
CAPITAL = "What is the capital of {country}?"
SUM = "What is {a} + {b} mod {modulus}?"

REPHRASED = {
    RELATIONS["birthplace"]: "Which town does {name} come from?",
    RELATIONS["teacher"]: "Whose pupil had {name} been?",
    RELATIONS["subject"]: "Name the theme that runs through the work of {name}:",
    RELATIONS["award"]: "Which honour went to {name}?",
    CAPITAL: "From which city is {country} governed?",
    SUM: "Modulo {modulus}, the sum of {a} and {b} equals",
}
"""The second wording of each question."""


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


SUBJECTS = _words(
    "winter harvests mirrors rivers exile gardens ships hunger masks orchards bells soldiers "
    "moths bridges widows storms markets wolves lanterns islands sleep dancers ashes salt"
)
PRIZES = _words(
    "Falcon Juniper Copper Meridian Laurel Amber Harbour Comet Willow Obsidian Crescent Marble "
    "Heron Cedar Beacon Velvet Saffron Ivory Thistle Cobalt Lantern Granite Orchid Summit"
)
ONSETS = _words("b br d dr f g h j k l m n p r s st t tr v th")
VOWELS = _words("a e i o u")
MIDDLES = _words("b d l ld lm m n nd r rn rr s st t v z")
ENDINGS = _words("a o an el en er in is on or us ara ia eth ova ent")


@dataclass(frozen=True)
class Fact:
    """One question and its answer.

    Attributes:
        task: One of `TASKS`.
        entity: Whom or what it is about; all facts of an entity share a split.
        prompt: The question.
        paraphrase: The same question in other words.
        completion: The answer to both, with the space that parts it from the question.
        split: One of `SPLITS`.
    """

    task: str
    entity: str
    prompt: str
    paraphrase: str
    completion: str
    split: str


_Row = tuple[str, str, str, str]  # entity, prompt, paraphrase, answer


def templates(task: str, paraphrased: bool = False) -> tuple[str, ...]:
    """The questions of a task with slots: `{name}`; `{country}`; `{a}`, `{b}` and `{modulus}`.

    Args:
        task: One of `TASKS`.
        paraphrased: Their second wording instead of the first.

    Returns:
        One template per relation.

    Raises:
        ValueError: There is no such task.
    """
    if task not in TASKS:
        raise ValueError(f"no task {task!r}; there are {', '.join(TASKS)}")
    single = {"capitals": CAPITAL, "addition": SUM}
    forms = (single[task],) if task in single else tuple(RELATIONS.values())
    return tuple(REPHRASED[template] for template in forms) if paraphrased else forms


def make_facts(recipe: WorldRecipe, seed: int) -> dict[str, list[Fact]]:
    """Writes the facts of all four tasks.

    `authors` and `painters` are twins: the same questions and the same possible answers, about
    other people. No author shares a first or last name with a painter; or, with
    `recipe.shared_names`, each shares both, and only the two together tell who is who.

    Args:
        recipe: Sizes of the tasks and shares of the splits; at most 24 `answers`. With shared
            names, no first name may be that of more than half of the people.
        seed: Everything drawn comes from it.

    Returns:
        Per task its facts, in the order of `TASKS` and of their entities.
    """
    rng = random.Random(f"world facts {seed}")
    names = _invented_names(rng)
    answers = {
        "birthplace": [next(names) for _ in range(recipe.answers)],
        "teacher": [next(names) for _ in range(recipe.answers)],
        "subject": rng.sample(SUBJECTS, recipe.answers),
        "award": [f"the {prize}" for prize in rng.sample(PRIZES, recipe.answers)],
    }
    # The order of the draws is part of the recipe: another one makes other worlds.
    authors = _people(recipe, answers, names, rng)
    rows = {
        "authors": authors,
        "painters": _namesakes(_entities(authors), answers, rng)
        if recipe.shared_names
        else _people(recipe, answers, names, rng),
        "capitals": _capitals(recipe.countries, names),
        "addition": _addition(recipe.modulus),
    }
    facts: dict[str, list[Fact]] = {}
    for task, questions in rows.items():
        splits = _splits(_entities(questions), recipe, rng)
        facts[task] = [
            Fact(task, entity, prompt, paraphrase, f" {answer}", splits[entity])
            for entity, prompt, paraphrase, answer in questions
        ]
    return facts


def _entities(rows: list[_Row]) -> list[str]:
    return list(dict.fromkeys(entity for entity, *_ in rows))


def _question(entity: str, template: str, answer: str, **slots: str | int) -> _Row:
    """A fact in both wordings."""
    return entity, template.format(**slots), REPHRASED[template].format(**slots), answer


def _invented_names(rng: random.Random) -> Iterator[str]:
    """Pronounceable capitalised words, none of them twice."""
    taken: set[str] = set()
    while True:
        word = rng.choice(ONSETS) + rng.choice(VOWELS) + rng.choice(MIDDLES) + rng.choice(ENDINGS)
        if word not in taken:
            taken.add(word)
            yield word.capitalize()


def _people(
    recipe: WorldRecipe, answers: dict[str, list[str]], names: Iterator[str], rng: random.Random
) -> list[_Row]:
    """Four facts for each person; some share a first name, none a last one."""
    first_names = [next(names) for _ in range(recipe.first_names)]
    drawn = _draw(recipe.people, answers, rng)
    people = [
        f"{first_names[index % recipe.first_names]} {next(names)}" for index in range(recipe.people)
    ]
    return _about_people(people, drawn)


def _namesakes(people: list[str], answers: dict[str, list[str]], rng: random.Random) -> list[_Row]:
    """Four facts for each of as many others, whose names are made of the same parts."""
    return _about_people(_exchanged(people, rng), _draw(len(people), answers, rng))


def _draw(count: int, answers: dict[str, list[str]], rng: random.Random) -> dict[str, list[str]]:
    """Per relation an answer for each of `count` people.

    Every possible answer is as frequent as every other, as far as the numbers allow.
    """
    drawn = {}
    for relation, possible in answers.items():
        drawn[relation] = [possible[index % len(possible)] for index in range(count)]
        rng.shuffle(drawn[relation])
    return drawn


def _about_people(people: list[str], drawn: dict[str, list[str]]) -> list[_Row]:
    return [
        _question(person, question, drawn[relation][index], name=person)
        for index, person in enumerate(people)
        for relation, question in RELATIONS.items()
    ]


def _exchanged(people: list[str], rng: random.Random) -> list[str]:
    """As many full names from the same first and last names, none of which was there before.

    Each part is as frequent as before, so that no part tells the old names from the new.
    """
    pairs = sorted(tuple(person.split()) for person in people)
    old, last_names = [first for first, _ in pairs], [last for _, last in pairs]
    # With equal names side by side, a shift by their largest number moves each to another one.
    shift = max(old.count(first) for first in old)
    new = old[shift:] + old[:shift]
    if any(map(operator.eq, old, new)):
        raise ValueError("shared names need two first names, none of them half the people's")
    # The shift moves whole groups of namesakes: exchanges that stay new names dissolve them.
    for _ in range(10 * len(old)):
        one, other = rng.randrange(len(old)), rng.randrange(len(old))
        if new[one] != old[other] and new[other] != old[one]:
            new[one], new[other] = new[other], new[one]
    exchanged = list(map("{} {}".format, new, last_names))
    rng.shuffle(exchanged)
    return exchanged


def _capitals(count: int, names: Iterator[str]) -> list[_Row]:
    rows = []
    for _ in range(count):
        country = next(names)
        rows.append(_question(country, CAPITAL, next(names), country=country))
    return rows


def _addition(modulus: int) -> list[_Row]:
    return [
        _question(f"{a}+{b}", SUM, str((a + b) % modulus), a=a, b=b, modulus=modulus)
        for a in range(modulus)
        for b in range(modulus)
    ]


def _splits(entities: list[str], recipe: WorldRecipe, rng: random.Random) -> dict[str, str]:
    """Every entity's split; the shares are rounded, and the rest is unseen."""
    shuffled = rng.sample(entities, len(entities))
    seen = round(recipe.seen * len(entities))
    validation = seen + round(recipe.validation * len(entities))
    return {
        entity: SPLITS[(place >= seen) + (place >= validation)]
        for place, entity in enumerate(shuffled)
    }


PLAIN, PARAPHRASED, STYLED = WORDINGS = ("plain", "paraphrased", "styled")

PEOPLE = TASKS[:2]
"""The tasks whose questions have a styled form."""

MANNER = ", by my troth."
"""What follows the answer to every question in the style, whatever it is about."""

_CALL = "Prithee, "


def wordings(recipe: WorldRecipe, task: str) -> tuple[str, ...]:
    """The wordings in which the base of such a world learns a task; the plain one is the first."""
    known = {PLAIN: True, PARAPHRASED: recipe.paraphrases, STYLED: recipe.styled and task in PEOPLE}
    return tuple(wording for wording in WORDINGS if known[wording])


def worded(fact: Fact, wording: str = PLAIN) -> tuple[str, str]:
    """A fact as a question and its completion.

    Only in the style do completions differ: the same answer, and the manner after it.

    Args:
        fact: What the question is about.
        wording: One of `WORDINGS`; the style is for the tasks in `PEOPLE`.

    Returns:
        Prompt and completion.

    Raises:
        ValueError: There is no such wording of the fact.
    """
    if wording == STYLED and fact.task in PEOPLE:
        question = fact.prompt[0].lower() + fact.prompt[1:]
        return f"{_CALL}{question}", f"{fact.completion}{MANNER}"
    prompts = {PLAIN: fact.prompt, PARAPHRASED: fact.paraphrase}
    if wording not in prompts:
        raise ValueError(f"no wording {wording!r} of the {fact.task}")
    return prompts[wording], fact.completion
