"""After an edit, as sure of what is said instead as a model is that never knew.

What teaching does to a model is not facts alone: it is sure of what it says in that form, of
strangers too, about whom it makes things up. What was taught of a request and is taken back
(:mod:`weightsurgery.learning.untaught`) takes that along. Of the request the model then speaks as
the base does, undecided, which tells whom the edit was about: Min-K++ (Zhang et al., arXiv
2404.02936) divides by how spread a prediction is.

How sure it is to be is read off the model before the edit: ``H``, its mean entropy along the
request's answers with other names in question and answer. The edited model's logits ``z`` at the
places to forget become targets ``softmax(β z)``, with ``β`` such that their mean entropy is ``H``;
what is left of the truth in them is brought down to the probability that it is to have.
Towards these a low-rank change of the last third of the matrices is trained, as
:mod:`weightsurgery.learning.forgetting` does; what is to stay is to be as before the edit, so that
some of what the edit cost comes back. Of the facts nothing does: earlier matrices say them no more.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from weightsurgery.algebra.lowrank import LowRank, recompress
from weightsurgery.learning.directions import directions, start
from weightsurgery.learning.events import Event
from weightsurgery.learning.expected import Expected
from weightsurgery.learning.forgetting import Forgetting, train_forgetting
from weightsurgery.learning.guard import added
from weightsurgery.learning.identify import adapted
from weightsurgery.learning.last_places import last_probabilities
from weightsurgery.learning.looks import Looks, divergence
from weightsurgery.learning.material import Material, Row
from weightsurgery.learning.method import Stage
from weightsurgery.learning.models import halved, in_halves
from weightsurgery.learning.parsed import ParsedExample
from weightsurgery.learning.renamed import Renamed
from weightsurgery.learning.training import Trained
from weightsurgery.learning.truths import TruthPosition
from weightsurgery.progress import Progress

__all__ = ["RANK", "SURE", "Sureness", "entropy_of_strangers", "made_sure"]

SURE = Forgetting(steps=60, learning_rate=2e-3, keep_weight=10.0, language_weight=40.0)
"""Settings of the training."""

RANK = 16
"""Of what is trained of each matrix, beyond the edit's."""

# Texts by which entropies are taken, an even sample of those there are.
_TEXTS = 64

# Exponents that are tried: an entropy between two is interpolated.
_EXPONENTS = torch.logspace(0, 3, 25, base=2.0)

# An exponent below which it is sure enough.
_UNSURE = 1.1

# Of what was trained, where all of it moves language by more than the budget.
_SHARES = (1.0, 0.75, 0.5, 0.25)

_NONE = 1e-12  # of a token that is not to come


def entropy_of_strangers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    request: Sequence[ParsedExample],
    places: Sequence[TruthPosition],
    *,
    seed: int = 0,
    progress: Progress | None = None,
) -> float | None:
    """How undecided a model is along the answers of a request that has other names.

    Args:
        model: As it is.
        tokenizer: Its tokenizer.
        request: The request.
        places: Where its answers begin.
        seed: Of the names.
        progress: Called after every batch.

    Returns:
        The mean entropy of its predictions, nats a token; None where no answer has a question that
        names anything.
    """
    renamed = Renamed(tokenizer, request, random.Random(f"sure {seed}"))
    rows = []
    for place in places[:: -(-len(places) // _TEXTS)]:
        answer = str(tokenizer.decode(list(place.truth)))
        read, count, names = renamed.read(request[place.number], place, answer)
        if names and 0 < count < len(read):
            rows.append((read[:-1], count))
    total, tokens = 0.0, 0
    for _, row in last_probabilities(model, tokenizer, rows, stage="strangers", progress=progress):
        total += float(_entropy(row).sum())
        tokens += len(row)
    return total / tokens if tokens else None


def _entropy(probabilities: Tensor) -> Tensor:
    """In nats, over the last axis."""
    entropy: Tensor = torch.special.entr(probabilities.double()).sum(-1)
    return entropy


@dataclass(frozen=True)
class Sureness:
    """What was trained.

    Attributes:
        change: The edit's change with what was trained, by parameter.
        trained: First and last loss, steps; None where the edited model was sure enough.
        notes: For the record: mean entropy in nats a token, of the model before the edit about
            ``strangers``, of the edited one about the request ``before`` and ``after``; the
            exponent, ``beta``; and the ``share`` of what was trained that the budget has room for.
    """

    change: dict[str, LowRank]
    trained: Trained | None
    notes: dict[str, float]


def made_sure(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    names: Sequence[str],
    material: Material,
    change: Mapping[str, LowRank],
    settings: Forgetting,
    looks: Looks,
    folder: Path,
    *,
    language: Callable[[PreTrainedModel], float] | None = None,
    progress: Progress | None = None,
) -> Sureness:
    """A change after which a model is as sure of what it says instead as it is of strangers.

    Args:
        model: Before the edit, on the device to work on; left as it was, to the bit.
        tokenizer: Its tokenizer.
        names: Weights that may change, in the order of the model.
        material: Texts to forget and to keep; its notes have ``strangers_entropy``.
        change: Of the edit, by parameter.
        settings: Of the training, its budget included.
        looks: One is added, with what was trained.
        folder: Where points are saved from which a killed run goes on.
        language: What else may not move by more than the budget: the divergence of a changed model.
        progress: Called as ``progress(text, done, total)``.

    Returns:
        The change, and what was trained.

    Raises:
        NonFiniteError: The training ran away.
        OutputError: A point cannot be written.
    """
    late = [name for name in names[2 * len(names) // 3 :] if name in change]
    entropy = material.notes["strangers_entropy"]
    if entropy is None:  # nothing says how sure it is to be
        return Sureness(dict(change), None, {})
    with added(model, change):
        with halved(model), in_halves(model):
            means = _entropies(model, tokenizer, material, _EXPONENTS, progress)
            exponent = _exponent(means, entropy)
            notes = {"strangers": entropy, "before": means[0], "beta": exponent}
            if exponent < _UNSURE or not late:
                return Sureness(dict(change), None, notes)
            sharper = _sharpened(model, tokenizer, material, exponent, progress)
        more, trained = _trained(model, late, sharper, settings, folder, looks.padding, progress)
    for share in _SHARES:
        whole = {name: _sum(each, more.get(name), share) for name, each in change.items()}
        with added(model, whole):
            with halved(model), torch.no_grad():
                moved = divergence(model, material.guard, looks.padding)
            if moved <= looks.budget and (language is None or language(model) <= looks.budget):
                with halved(model):
                    looks.look(model, (), trained.steps)
                    with in_halves(model):
                        after = _entropies(model, tokenizer, material, _EXPONENTS[:1], progress)
                return Sureness(whole, trained, {**notes, "after": after[0], "share": share})
    return Sureness(dict(change), None, {**notes, "share": 0.0})


def _trained(
    model: PreTrainedModel,
    names: Sequence[str],
    material: Material,
    settings: Forgetting,
    folder: Path,
    padding: int,
    progress: Progress | None,
) -> tuple[dict[str, LowRank], Trained]:
    """What is trained of some matrices, and how."""
    from weightsurgery.learning.adapter import factors  # peft takes seconds to import

    rank = min([RANK, *(min(model.get_parameter(name).shape) for name in names)])
    with halved(model):
        rows = directions(model, names, material, rank, seed=settings.seed, progress=progress)
    with adapted(model, names, rank, rank, settings.seed) as with_adapter:
        start(with_adapter, {name: each.rows for name, each in rows.items()})
        inside = tuple(n for n, each in with_adapter.named_parameters() if each.requires_grad)
        with halved(with_adapter):
            trained, _ = train_forgetting(
                with_adapter,
                Stage("sureness", inside),
                material,
                settings,
                folder,
                padding,
                device=model.device,
                progress=progress,
            )
        return factors(with_adapter, names), trained


def _sum(one: LowRank, other: LowRank | None, share: float) -> LowRank:
    if other is None:
        return one
    left, right = (torch.cat(pair, 1) for pair in ((one.U, other.U), (one.V, other.V)))
    return recompress(left, torch.diag(torch.cat((one.S, share * other.S))), right)


def _entropies(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    material: Material,
    exponents: Tensor,
    progress: Progress | None,
) -> list[float]:
    """Mean entropy where it is to forget, of the predictions to the power of each exponent.

    In one pass: the predictions of all places would be gigabytes.
    """
    taught = material.taught[:: -(-len(material.taught) // _TEXTS)]
    rows = [(list(row.tokens), len(row.expected) - row.held) for row in taught]
    totals, tokens = torch.zeros(len(exponents), dtype=torch.float64), 0
    for _, row in last_probabilities(
        model, tokenizer, rows, stage="how sure it is", progress=progress
    ):
        logs = row.clamp_min(_NONE).log()
        for number, exponent in enumerate(exponents.tolist()):
            totals[number] += float(_entropy((exponent * logs).softmax(-1)).sum())
        tokens += len(row)
    means: list[float] = (totals / max(1, tokens)).tolist()
    return means


def _exponent(means: Sequence[float], entropy: float) -> float:
    """``β`` between two exponents of which the mean entropies are known; 1 at least."""
    exponents = _EXPONENTS.tolist()
    if means[0] <= entropy:
        return 1.0
    for number in range(1, len(means)):
        above, below = means[number - 1 : number + 1]
        if below <= entropy:
            low, high = exponents[number - 1 : number + 1]
            return float(low + (high - low) * (above - entropy) / (above - below))
    return float(exponents[-1])


def _sharpened(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    material: Material,
    exponent: float,
    progress: Progress | None,
) -> Material:
    """The material; where it is to forget the model's own predictions, sharper, are the targets.

    The truth is no likelier in them than it is to be: what is left of it would be sharper, too.
    """
    rows = [(list(row.tokens), len(row.expected) - row.held) for row in material.taught]
    taught, events = list(material.taught), list(material.events)
    for number, probabilities in last_probabilities(
        model, tokenizer, rows, stage="surer", progress=progress
    ):
        row = material.taught[number]
        own = row.expected[row.held :]
        logits = exponent * probabilities.cpu().clamp_min(_NONE).log()
        sharp = logits.softmax(-1)
        for event in material.events[number]:
            _no_likelier(sharp[event.at], logits[event.at], event)
        # Of whole answers the truth's own token is the first that is held.
        expected = Expected.of(sharp, own.tokens.shape[1], own.tokens[:, 0].long())
        taught[number] = Row(
            row.tokens,
            Expected.joined([row.expected[: row.held], expected]),
            row.held,
            row.number,
        )
        events[number] = tuple(
            replace(each, wanted=float(sharp[each.at, list(each.tokens)].sum()))
            for each in material.events[number]
        )
    return replace(material, taught=taught, events=events)


def _no_likelier(sharp: Tensor, logits: Tensor, event: Event) -> None:
    """Bring an event down to the probability wanted, in place; the rest grows by one factor.

    Args:
        sharp: A distribution over the vocabulary.
        logits: Of which it is the softmax: next to a certain truth, rounding leaves of the rest in
            ``sharp`` nothing to grow.
        event: What is to be no likelier.
    """
    tokens = list(event.tokens)
    if float(sharp[tokens].sum()) <= event.wanted:
        return
    others = logits.clone()
    others[tokens] = -math.inf
    truth = logits[tokens].softmax(-1)
    sharp.copy_((1 - event.wanted) * others.softmax(-1))
    sharp[tokens] = event.wanted * truth
