"""Target distributions read from a model that never knew the request.

What a fine-tuned model would say without some of its data is estimated best by one that was not
trained on them: the checkpoint that it was tuned from, where that is at hand. Its predictions are
the targets all along the answer. On TOFU its log-probabilities of an answer's tokens correlate with
those of a model retrained without the data by 0.7 to 0.8, those of strangers
(:mod:`weightsurgery.learning.long_answers`) by 0.5.

That it rather ends than answers is no knowledge: it ends as readily as the model to edit, at most.
A model that chats says nothing at all to many a plain question.

Distillation from a model that did not see the data is the "incompetent teacher" of Chundawat et al.
(arXiv 2205.08096), with a competent one in its stead.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from weightsurgery.errors import DataError, NonFiniteError
from weightsurgery.learning.events import Event
from weightsurgery.learning.expected import Expected
from weightsurgery.learning.last_places import last_probabilities
from weightsurgery.learning.truths import TruthPosition
from weightsurgery.learning.unknown import Target
from weightsurgery.progress import Progress

__all__ = ["never_knew_targets"]

# A token is to be forgotten where it has this probability, and so many times the other model's; and
# it counts as forgotten below so many times.
_KNOWN, _TIMES, _CLOSE = 0.1, 4.0, 2.0

_NONE = 1e-30  # of all that is said where a text ends for certain


def never_knew_targets(
    model: PreTrainedModel,
    never_knew: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    places: Sequence[TruthPosition],
    *,
    k: int = 256,
    progress: Progress | None = None,
) -> list[Target]:
    """Targets along the answers at some places: what a model says of them that never knew.

    Args:
        model: As it is.
        never_knew: Another, of the same tokens; its own padding of the vocabulary is left out.
        tokenizer: Of both.
        places: Where the truth would be said.
        k: See :class:`~weightsurgery.learning.expected.Expected`.
        progress: Called after every batch.

    Returns:
        In the order of the places, without those where the models agree.

    Raises:
        DataError: None is left: that model knows it, too.
        NonFiniteError: It computes NaN or infinity.
    """
    rows = [(place.read, len(place.truth)) for place in places]
    size, end = int(model.config.get_text_config().vocab_size), tokenizer.eos_token_id
    truths = [torch.tensor(place.truth)[:, None] for place in places]
    known: dict[int, tuple[Tensor, Tensor]] = {}
    for number, own in last_probabilities(
        model, tokenizer, rows, stage="what is known", progress=progress
    ):
        row = own.cpu()
        ends = row[:, 0 if end is None else end].clone()  # a view would hold all of the row
        known[number] = row.gather(1, truths[number])[:, 0], ends
    targets = dict[int, Target]()
    stage = "a model that never knew"
    for number, theirs in last_probabilities(
        never_knew, tokenizer, rows, stage=stage, progress=progress
    ):
        row, (before, ends) = theirs[:, :size].cpu().clone(), known[number]
        if not bool(torch.isfinite(row).all()):
            raise NonFiniteError(
                "the model that is to have never known (--never-knew) computes NaN or infinity",
                "Name a checkpoint whose weights are finite, its norms and biases too.",
            )
        if end is not None:
            _end_no_sooner(row, end, ends)
        goals = row.gather(1, truths[number])[:, 0]
        surer = before >= (_TIMES * goals).clamp_min(_KNOWN)
        events = tuple(
            Event(at, (places[number].truth[at],), float(goals[at]), _CLOSE * float(goals[at]))
            for at in surer.nonzero()[:, 0].tolist()
        )
        if events:
            expected = Expected.of(row, k, truths[number][:, 0])
            targets[number] = Target(places[number], expected, events)
    if not targets:
        raise DataError(
            "the model that is to have never known (--never-knew) is as sure of every answer as the"
            " one to edit",
            "Name the checkpoint that it was tuned from, or leave --never-knew out.",
        )
    return [targets[number] for number in sorted(targets)]


def _end_no_sooner(row: Tensor, end: int, most: Tensor) -> None:
    """Bring a token's probability at each place down to ``most``; all others grow by one factor."""
    ends = torch.minimum(row[:, end], most)
    row[:, end] = 0
    row *= ((1 - ends) / row.sum(1).clamp_min(_NONE))[:, None]
    row[:, end] = ends
