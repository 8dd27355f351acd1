"""Forgetting or learning by neighbours, from a data set to a low-rank change: gather and train.

1. Find wordings of the request, and neighbours of its subjects (both written by the model itself).
2. Find the places where the truth would come, and the predictions there of a model that never knew;
   to learn, the answers themselves.
3. Gather texts that are to stay, with the model's predictions for them.
4. Find where in each matrix the request stands out (:mod:`weightsurgery.learning.directions`).
5. Train from there (:mod:`weightsurgery.learning.forgetting`).

The training data and points of the training are saved in a workspace: a killed run goes on.
"""

from __future__ import annotations

import random
import shutil
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from weightsurgery.algebra.lowrank import LowRank
from weightsurgery.errors import DataError, EditError
from weightsurgery.learning.data import Example, padding_token
from weightsurgery.learning.directions import directions, start
from weightsurgery.learning.forgetting import Forgetting, train_forgetting
from weightsurgery.learning.identify import adapted
from weightsurgery.learning.lessons import learning_targets
from weightsurgery.learning.looks import Look
from weightsurgery.learning.material import (
    Material,
    kept_texts,
    language_texts,
    neighbour_texts,
    read_material,
    rows_of,
    subject_texts,
    taught_rows,
    write_material,
)
from weightsurgery.learning.method import Stage
from weightsurgery.learning.models import for_writing, halved, in_halves, quiet
from weightsurgery.learning.neighbours import alike, find_neighbours
from weightsurgery.learning.never_knew import never_knew_targets
from weightsurgery.learning.parsed import ParsedExample, parse_examples, prompted
from weightsurgery.learning.training import Trained, isolated
from weightsurgery.learning.truths import TruthPosition, places_of
from weightsurgery.learning.unknown import Target, forget_targets
from weightsurgery.learning.wordings import Wording, find_wordings
from weightsurgery.progress import Progress

__all__ = ["ByNeighbours", "Changed", "change_by_neighbours"]


@dataclass(frozen=True)
class ByNeighbours:
    """The settings of forgetting and learning by neighbours.

    Attributes:
        training: See :class:`~weightsurgery.learning.forgetting.Forgetting`.
        rank: Of the change of each matrix; less where a matrix has less.
        wordings: Rewordings to look for, to forget; 0 for the request's own words, and a chat.
        neighbours: Subjects to look for.
        draws: Neighbours that each target is the mean of.
        own: Share, in the targets, of the model's own prediction but for the truth; the rest is
            its mean prediction for neighbours.
        texts: Ordinary texts to write; a quarter as many again are not trained on.
        most: Places to forget at, at most, beyond the request's own words.
        k: Tokens by which a distribution is held.
        whole_answers: Answers of more than 12 tokens are to be forgotten word by word, not where
            they begin: by the settings :data:`~weightsurgery.learning.forgetting.WHOLE`, say.

    Raises:
        EditError: A value that makes no sense.
    """

    training: Forgetting = field(default_factory=Forgetting)
    rank: int = 16
    wordings: int = 6
    neighbours: int = 120
    draws: int = 16
    own: float = 1.0
    texts: int = 48
    most: int = 600
    k: int = 256
    whole_answers: bool = False

    def __post_init__(self) -> None:
        for name in ("rank", "neighbours", "draws", "texts", "most", "k"):
            if getattr(self, name) < 1:
                raise EditError(f"{name} {getattr(self, name)}", "Give a whole number from 1.")
        if self.wordings < 0:
            raise EditError(f"wordings {self.wordings}", "Give a whole number from 0.")

    def described(self) -> dict[str, Any]:
        """Every setting, for a record."""
        values = asdict(self)
        return {**values.pop("training"), **values}


@dataclass(frozen=True)
class Changed:
    """The trained factors, with the losses and looks of their training.

    Attributes:
        change: ``W' − W`` of each parameter, in factors, float32 on the CPU.
        trained: First and last loss, steps.
        looks: Evaluations during training; the first before any step.
        chosen: The look whose values the change is; None where none was inside the budget.
        notes: For the record: wordings, and counts of texts by kind.
    """

    change: dict[str, LowRank]
    trained: Trained
    looks: Sequence[Look]
    chosen: Look | None
    notes: dict[str, Any]


def change_by_neighbours(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    keep: Sequence[Sequence[Example]],
    names: Sequence[str],
    settings: ByNeighbours,
    *,
    learning: bool = False,
    never_knew: Callable[[], PreTrainedModel] | None = None,
    workspace: Path | None = None,
    progress: Progress | None = None,
) -> Changed:
    """Finds a change after which the model never knew some data, or knows it, and little else.

    Args:
        model: On the device to work on; left as it was, to the bit.
        tokenizer: Its tokenizer.
        examples: What to forget, or to learn.
        keep: Data sets to keep; may be empty.
        names: Parameters that may change, each the weight of a linear layer.
        settings: Of the training and its data.
        learning: The change is to be one after which the model knows the examples.
        never_knew: Loads a model that never knew them, which then says what is to be said instead;
            None for neighbours and strangers to say it.
        workspace: Where a killed run finds what it had; None for one that need not go on.
        progress: Called as ``progress(text, done, total)``.

    Returns:
        The change and its training.

    Raises:
        DataError: Examples that the model cannot take, or that name nobody.
        EditError: No matrix to change.
        UnsupportedCheckpointError: A parameter that takes no adapter.
        NonFiniteError: The training ran away.
        OutputError: The workspace cannot be written.
    """
    from weightsurgery.learning.adapter import factors

    if not examples:
        raise DataError(f"no examples to {'learn' if learning else 'forget'}", "Give at least one.")
    was_training = model.training
    thawed = {name: each.requires_grad for name, each in model.named_parameters()}
    shapes = [model.get_parameter(name).shape for name in names]
    rank = min([settings.rank, *(min(shape) for shape in shapes if len(shape) == 2)])
    with ExitStack() as stack:
        stack.enter_context(isolated())
        stack.enter_context(quiet())
        if workspace is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        else:
            folder = workspace
        try:
            file, seed = folder / "material.safetensors", settings.training.seed
            model.requires_grad_(False)
            with halved(model):
                if file.is_file():
                    material = read_material(file)
                else:
                    torch.manual_seed(seed)
                    material = gather(
                        model,
                        tokenizer,
                        examples,
                        keep,
                        names,
                        settings,
                        learning,
                        never_knew,
                        progress,
                    )
                    write_material(material, file)
                rows = directions(model, names, material, rank, seed=seed, progress=progress)
            with adapted(model, names, rank, rank, seed) as with_adapter:
                start(with_adapter, rows)
                inside = tuple(
                    name for name, each in with_adapter.named_parameters() if each.requires_grad
                )
                with halved(with_adapter):
                    trained, looks = train_forgetting(
                        with_adapter,
                        Stage("learning" if learning else "forgetting", inside),
                        material,
                        settings.training,
                        folder,
                        padding_token(tokenizer),
                        device=model.device,
                        progress=progress,
                    )
                change = factors(with_adapter, names)
            return Changed(
                change,
                trained,
                tuple(looks.history),
                looks.best(),
                {**material.notes, "rank": rank},
            )
        finally:
            model.train(was_training)
            for name, parameter in model.named_parameters():
                # Interrupted while an adapter goes in, it has names that were not there before.
                parameter.requires_grad_(thawed.get(name, parameter.requires_grad))


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


def clear(workspace: Path) -> None:
    """Remove the files of a finished run."""
    shutil.rmtree(workspace, ignore_errors=True)
