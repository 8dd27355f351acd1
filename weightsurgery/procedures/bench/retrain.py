"""The control that every method is held against: a model that never saw what is to be forgotten."""

from __future__ import annotations

import torch

from weightsurgery.learning.fitting import isolated
from weightsurgery.learning.stages import values_of
from weightsurgery.procedures.bench.subject import FORGET, KEEP, Change, Subject
from weightsurgery.procedures.world import SPLITS
from weightsurgery.procedures.world.build import train_base
from weightsurgery.procedures.world.training import make_model

__all__ = ["retrain"]


def retrain(subject: Subject) -> Change:
    """Trains a base from the same first weights on every task but the one to forget.

    Returns:
        By parameter the difference to the subject's base, embeddings and norms included.

    Raises:
        WeightSurgeryError: It does not learn the other tasks within the recipe's cap of steps.
    """
    wordings = (False, True) if subject.recipe.paraphrases else (False,)
    examples = {
        task: [
            fact
            for paraphrased in wordings
            for split in SPLITS
            for fact in subject.facts(task, split, paraphrased)
        ]
        for task in KEEP.values()
    }
    assert FORGET not in examples
    with isolated(subject.seed, torch.get_num_threads()):
        model = make_model(subject.recipe, subject.tokenizer)
        train_base(
            model, subject.tokenizer, examples, subject.recipe, subject.seed,
            lambda stage, done, total: None,
        )  # fmt: skip
    after = values_of(model, list(subject.before))
    return {name: after[name] - subject.before[name] for name in after}
