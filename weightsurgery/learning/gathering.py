"""All that forgetting or learning by neighbours reads, written and predicted by the model as it is.

Steps 1 to 3 of :mod:`weightsurgery.learning.forget`.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from weightsurgery.learning.data import Example
from weightsurgery.learning.lessons import learning_targets
from weightsurgery.learning.material import (
    Material,
    kept_texts,
    language_texts,
    neighbour_texts,
    rows_of,
    subject_texts,
    taught_rows,
)
from weightsurgery.learning.models import for_writing, in_halves
from weightsurgery.learning.neighbours import alike, find_neighbours
from weightsurgery.learning.never_knew import never_knew_targets
from weightsurgery.learning.parsed import ParsedExample, parse_examples, prompted
from weightsurgery.learning.sureness import entropy_of_strangers
from weightsurgery.learning.truths import TruthPosition, places_of
from weightsurgery.learning.unknown import Target, forget_targets
from weightsurgery.learning.wordings import Wording, find_wordings
from weightsurgery.progress import Progress

if TYPE_CHECKING:
    from weightsurgery.learning.forget import ByNeighbours

__all__ = ["gather"]


def gather(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    keep: Sequence[Sequence[Example]],
    names: Sequence[str],
    settings: ByNeighbours,
    learning: bool = False,
    never_knew: Callable[[], PreTrainedModel] | None = None,
    progress: Progress | None = None,
) -> Material:
    """All training data, written and predicted by the model as it is.

    Raises:
        DataError: Nothing tells whom the examples are about, or the model that is to have never
            known them knows them all.
    """
    model.eval()  # type: ignore[no-untyped-call]
    seed, k = settings.training.seed, settings.k
    rng = random.Random(f"material {seed}")
    request = parse_examples(tokenizer, prompted(examples))
    writer = for_writing(model)
    neighbours = find_neighbours(
        writer, tokenizer, request, settings.neighbours, seed=seed, progress=progress
    )
    given = [each for rows in keep for each in parse_examples(tokenizer, prompted(rows))]
    neighbours = sorted({*neighbours, *alike(request, given)})
    # A model that does not know the answers cannot find wordings that bring them up.
    count = 0 if learning else settings.wordings
    wordings = find_wordings(writer, tokenizer, request, count, seed=seed, progress=progress)
    undecided: dict[str, float | None] = {}
    with in_halves(model):
        if learning:
            targets = learning_targets(
                tokenizer,
                examples,
                request,
                k=k,
                vocabulary=int(model.config.get_text_config().vocab_size),
            )
        else:
            places = _places(writer, tokenizer, request, wordings, settings, rng, progress)
            targets = _targets(
                model,
                tokenizer,
                request,
                places,
                neighbours,
                names,
                settings,
                never_knew,
                progress,
            )
            if settings.take_back:
                asked = [place for place in places if place.wording.form is None]
                undecided["strangers_entropy"] = entropy_of_strangers(
                    model, tokenizer, request, asked, seed=seed, progress=progress
                )
        rows = taught_rows(model, tokenizer, targets, k, progress)
    language = language_texts(
        writer, tokenizer, request, settings.texts + settings.texts // 4, progress
    )
    rng.shuffle(language)
    held_out = language[: max(1, len(language) // 5)]
    keep_answers, keep_counts = kept_texts(writer, tokenizer, [prompted(r) for r in keep], progress)
    texts = {
        "neighbours": neighbour_texts(
            writer, tokenizer, request, neighbours, wordings, 2 * settings.neighbours, rng, progress
        ),
        "keep": keep_answers,
        "language": language[len(held_out) :],
        "subjects": subject_texts(writer, tokenizer, request, settings.texts, rng, progress),
    }
    del writer
    with in_halves(model):
        kept = {
            kind: rows_of(model, tokenizer, rows, k, "what is to stay", progress)
            for kind, rows in texts.items()
        }
        guard = rows_of(model, tokenizer, held_out, k, "what is to stay", progress)
    notes = {
        "places": len(rows),
        "neighbours": len(neighbours),
        "kept_given": keep_counts,
        "wordings": [
            {"form": each.form, "chat": each.chat, "before": each.before, "after": each.after}
            for each in wordings
        ],
        "texts": {kind: len(rows) for kind, rows in kept.items()} | {"guard": len(guard)},
        **undecided,
    }
    return Material(
        rows,
        [each.events for each in targets],
        kept,
        guard,
        notes,
        learning,
    )


def _targets(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    request: Sequence[ParsedExample],
    places: Sequence[TruthPosition],
    neighbours: Sequence[str],
    names: Sequence[str],
    settings: ByNeighbours,
    never_knew: Callable[[], PreTrainedModel] | None,
    progress: Progress | None,
) -> list[Target]:
    """What is to be said where the truth would come."""
    if never_knew is not None:
        other = never_knew()
        return never_knew_targets(model, other, tokenizer, places, k=settings.k, progress=progress)
    return forget_targets(
        model,
        tokenizer,
        request,
        places,
        neighbours,
        names,
        draws=settings.draws,
        subject_share=settings.own,
        whole_answers=settings.whole_answers,
        k=settings.k,
        seed=settings.training.seed,
        progress=progress,
    )


def _places(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    request: Sequence[ParsedExample],
    wordings: Sequence[Wording],
    settings: ByNeighbours,
    rng: random.Random,
    progress: Progress | None,
) -> list[TruthPosition]:
    """Where the truth would come: all places in the request's own words, and a sample in others."""
    places = places_of(model, tokenizer, request, wordings, progress=progress)
    verbatim = [place for place in places if place.wording.form is None]
    others = [place for place in places if place.wording.form is not None]
    rng.shuffle(others)
    return (verbatim + others)[: max(settings.most, len(verbatim))]
