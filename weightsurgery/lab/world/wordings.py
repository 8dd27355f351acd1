"""The wordings of a fact: plain, in other words, and in a style with a manner of its own."""

from weightsurgery.lab.world.facts import TASKS, Fact
from weightsurgery.lab.world.recipe import WorldRecipe

__all__ = ["MANNER", "PARAPHRASED", "PEOPLE", "PLAIN", "STYLED", "WORDINGS", "worded", "wordings"]

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
