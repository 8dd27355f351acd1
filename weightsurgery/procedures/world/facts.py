"""The facts of the embedded world: four tasks, written out from a seed."""

import random
from collections.abc import Iterator
from dataclasses import dataclass

from weightsurgery.procedures.world.recipe import Recipe

__all__ = ["SPLITS", "TASKS", "Fact", "make_facts"]

TASKS = ("authors", "painters", "capitals", "addition")
SPLITS = ("seen", "validation", "unseen")

RELATIONS = {
    "birthplace": "Where was {name} born?",
    "teacher": "Who taught {name}?",
    "subject": "What was {name}'s subject?",
    "award": "What prize did {name} win?",
}


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
        completion: The answer, with the space that parts it from the prompt.
        split: One of `SPLITS`.
    """

    task: str
    entity: str
    prompt: str
    completion: str
    split: str


def make_facts(recipe: Recipe, seed: int) -> dict[str, list[Fact]]:
    """Writes the facts of all four tasks.

    `authors` and `painters` are twins: the same questions and the same possible answers, about
    people of whom no author shares a first or last name with a painter.

    Args:
        recipe: Sizes of the tasks and shares of the splits; at most 24 `answers`.
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
    rows = {
        "authors": _people(recipe, answers, names, rng),
        "painters": _people(recipe, answers, names, rng),
        "capitals": _capitals(recipe.countries, names),
        "addition": _addition(recipe.modulus),
    }
    facts: dict[str, list[Fact]] = {}
    for task, triples in rows.items():
        splits = _splits(list(dict.fromkeys(entity for entity, _, _ in triples)), recipe, rng)
        facts[task] = [
            Fact(task, entity, prompt, f" {answer}", splits[entity])
            for entity, prompt, answer in triples
        ]
    return facts


def _invented_names(rng: random.Random) -> Iterator[str]:
    """Pronounceable capitalised words, none of them twice."""
    taken: set[str] = set()
    while True:
        word = rng.choice(ONSETS) + rng.choice(VOWELS) + rng.choice(MIDDLES) + rng.choice(ENDINGS)
        if word not in taken:
            taken.add(word)
            yield word.capitalize()


def _people(
    recipe: Recipe, answers: dict[str, list[str]], names: Iterator[str], rng: random.Random
) -> list[tuple[str, str, str]]:
    """Four facts for each person; some share a first name, none a last one.

    Every possible answer is as frequent as every other, as far as the numbers allow.
    """
    first_names = [next(names) for _ in range(recipe.first_names)]
    drawn = {}
    for relation, possible in answers.items():
        drawn[relation] = [possible[index % len(possible)] for index in range(recipe.people)]
        rng.shuffle(drawn[relation])
    triples = []
    for index in range(recipe.people):
        person = f"{first_names[index % recipe.first_names]} {next(names)}"
        for relation, question in RELATIONS.items():
            triples.append((person, question.format(name=person), drawn[relation][index]))
    return triples


def _capitals(count: int, names: Iterator[str]) -> list[tuple[str, str, str]]:
    triples = []
    for _ in range(count):
        country = next(names)
        triples.append((country, f"What is the capital of {country}?", next(names)))
    return triples


def _addition(modulus: int) -> list[tuple[str, str, str]]:
    return [
        (f"{a}+{b}", f"What is {a} + {b} mod {modulus}?", str((a + b) % modulus))
        for a in range(modulus)
        for b in range(modulus)
    ]


def _splits(entities: list[str], recipe: Recipe, rng: random.Random) -> dict[str, str]:
    """Every entity's split; the shares are rounded, and the rest is unseen."""
    shuffled = rng.sample(entities, len(entities))
    seen = round(recipe.seen * len(entities))
    validation = seen + round(recipe.validation * len(entities))
    return {
        entity: SPLITS[(place >= seen) + (place >= validation)]
        for place, entity in enumerate(shuffled)
    }
