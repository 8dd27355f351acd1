"""IdkDPO: not knowing is preferred to the answer that is to go."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from typing_extensions import override

from weightsurgery.learning.settings import Training
from weightsurgery.unlearning.by_loss import BenchGrid
from weightsurgery.unlearning.by_preference import ByPreference, PreferenceSettings

if TYPE_CHECKING:
    from weightsurgery.learning.unlearners.work import Preparation

__all__ = ["ANSWERS", "IdkDPO"]

ANSWERS = (
    "I don't know.",
    "I do not know that.",
    "I'm afraid I can't answer that.",
    "I have no information about this.",
    "That is something I know nothing about.",
    "I'm not sure, and I would rather not guess.",
    "Sorry, I never learned that.",
    "I cannot say.",
    "This is beyond what I know.",
    "I'm not familiar with this.",
    "I have never come across that.",
    "No answer to this comes to my mind.",
    "I lack the knowledge to answer this question.",
    "I wish I could tell you, but I don't know.",
    "Nothing I was taught covers that.",
    "I can't recall anything about it.",
)
"""The preferred answers; one of them is drawn per example."""


class IdkDPO(ByPreference):
    """DPO of "I don't know" over the answer ``+ w CE(D_r)``; see :func:`by_preference.dpo`.

    The baseline of TOFU (arXiv 2401.06121) as NPO (Zhang et al. 2024, arXiv 2404.05868) compares
    with it. β = 0.1, w = 1, rate, epochs, decay and batches are those of open-unlearning's
    configuration. Ours: the sentences, and that one is drawn once per example, not anew in
    every epoch.
    """

    name = "idk-dpo"
    about = 'prefers "I don\'t know" to the answer (DPO), CE(keep)'
    paper = "Zhang et al. 2024, arXiv 2404.05868, of TOFU's baseline"
    published = Training(epochs=10, learning_rate=1e-5, batch_size=32, weight_decay=0.01)
    Settings = PreferenceSettings
    bench = (BenchGrid('DPO of "I don\'t know", β=0.1, + CE(keep)', rates=(3e-5, 1e-4)),)

    @classmethod
    @override
    def alternates(cls, work: Preparation) -> list[list[str]]:
        draw = random.Random(f"idk {work.training.seed}")
        return [[draw.choice(ANSWERS)] for _ in work.forget]
