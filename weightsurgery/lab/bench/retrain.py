"""The control that every method is held against: a model that never saw what is to be forgotten."""

from __future__ import annotations

import torch

from weightsurgery.lab.bench.subject import Change, Subject
from weightsurgery.lab.world.build import train_base
from weightsurgery.lab.world.model import make_model
from weightsurgery.learning.fitting import isolated
from weightsurgery.learning.stages import values_of

__all__ = ["retrain"]


def retrain(subject: Subject) -> Change:
    """Trains a base from the same first weights on all that the base knows but the target.

    Returns:
        By parameter the difference to the subject's base, embeddings and norms included.

    Raises:
        WeightSurgeryError: It does not learn the rest within the recipe's cap of steps.
    """
    examples = subject.request.survivors(subject)
    with isolated(subject.seed, torch.get_num_threads()):
        model = make_model(subject.recipe, subject.tokenizer)
        train_base(
            model, subject.tokenizer, examples, subject.recipe, subject.seed,
            lambda stage, done, total: None,
        )  # fmt: skip
    after = values_of(model, list(subject.before))
    return {name: after[name] - subject.before[name] for name in after}
