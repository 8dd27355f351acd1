"""Forgetting or learning by neighbours, from a data set to a low-rank change: gather and train.

1. Find wordings of the request, and neighbours of its subjects (both written by the model itself).
2. Find the places where the truth would come, and the predictions there of a model that never knew;
   to learn, the answers themselves.
3. Gather texts that are to stay, with the model's predictions for them.
4. Find where in each matrix the request stands out (:mod:`weightsurgery.learning.directions`).
5. Train from there (:mod:`weightsurgery.learning.forgetting`); or, where the model that never knew
   is the one that this was tuned from, take back in closed form what was taught
   (:mod:`weightsurgery.learning.untaught`), and make the model as sure of what it says instead as
   it is of strangers (:mod:`weightsurgery.learning.sureness`).

The training data and points of the training are saved in a workspace: a killed run goes on.
"""

from __future__ import annotations

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
from weightsurgery.learning.gathering import gather
from weightsurgery.learning.identify import adapted
from weightsurgery.learning.looks import Look, Looks
from weightsurgery.learning.material import (
    read_material,
    write_material,
)
from weightsurgery.learning.method import Stage
from weightsurgery.learning.models import halved, quiet
from weightsurgery.learning.sureness import RANK, made_sure
from weightsurgery.learning.training import Trained, isolated
from weightsurgery.learning.untaught import before_it_was_taught, take_back
from weightsurgery.learning.values import restored
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
        take_back: What the model was taught of the request is taken back, in closed form, from what
            it was before (:mod:`weightsurgery.learning.untaught`), a model that is given; what is
            trained makes it sure (:mod:`weightsurgery.learning.sureness`).

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
    take_back: bool = False

    @property
    def change_rank(self) -> int:
        """Of the change of a matrix, at most; what makes sure is trained beside what is taken."""
        return self.rank + (RANK if self.take_back else 0)

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
        trained: First and last loss, steps; None where nothing was trained.
        looks: Evaluations during training, the first before any step; or before and after.
        chosen: The look whose values the change is; None where none was inside the budget.
        notes: For the record: wordings, and counts of texts by kind.
    """

    change: dict[str, LowRank]
    trained: Trained | None
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
    language: Callable[[PreTrainedModel], float] | None = None,
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
            None for neighbours and strangers to say it. The one that this was tuned from, where
            ``settings`` are to take back what was taught.
        language: Divergence of a changed model on other texts, which is to be inside the budget,
            too, where what was taught is taken back.
        workspace: Where a killed run finds what it had; None for one that need not go on.
        progress: Called as ``progress(text, done, total)``.

    Returns:
        The change and its training.

    Raises:
        DataError: Examples that the model cannot take, or that name nobody.
        EditError: No matrix to change; nothing that could be taken back.
        UnsupportedCheckpointError: A parameter that takes no adapter.
        NonFiniteError: The training ran away.
        OutputError: The workspace cannot be written.
    """
    from weightsurgery.learning.adapter import factors

    if not examples:
        raise DataError(f"no examples to {'learn' if learning else 'forget'}", "Give at least one.")
    shapes = [model.get_parameter(name).shape for name in names]
    rank = min([settings.rank, *(min(shape) for shape in shapes if len(shape) == 2)])
    with ExitStack() as stack:
        stack.enter_context(isolated())
        stack.enter_context(quiet())
        stack.enter_context(restored(model))
        other = before_it_was_taught(model, names, never_knew) if settings.take_back else None
        if workspace is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        else:
            folder = workspace
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
                    never_knew if other is None else lambda: other,
                    progress,
                )
                write_material(material, file)
        padding = padding_token(tokenizer)
        if other is not None:
            looks = Looks(folder / "looks", material, settings.training.budget, padding)
            change, strength = take_back(
                model,
                other,
                names,
                material,
                rank,
                looks,
                language=language,
                seed=seed,
                progress=progress,
            )
            found = made_sure(
                model,
                tokenizer,
                names,
                material,
                change,
                settings.training,
                looks,
                folder / "sure",
                language=language,
                progress=progress,
            )
            notes = {**material.notes, "rank": rank, "strength": strength, "sure": found.notes}
            last = looks.history[-1]
            chosen = last if last.inside(looks.budget) else None
            return Changed(found.change, found.trained, tuple(looks.history), chosen, notes)
        with halved(model):
            rows = directions(model, names, material, rank, seed=seed, progress=progress)
        with adapted(model, names, rank, rank, seed) as with_adapter:
            start(with_adapter, {name: each.rows for name, each in rows.items()})
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
                    padding,
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


def clear(workspace: Path) -> None:
    """Remove the files of a finished run."""
    shutil.rmtree(workspace, ignore_errors=True)
