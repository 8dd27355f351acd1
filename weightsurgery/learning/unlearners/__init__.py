"""Unlearning by training on another loss: one Trainer subclass each, and the table of them.

=======================  =======================================================================
``gradient-ascent``      ``CE(forget)`` maximised (Jang et al. 2023, arXiv 2210.01504)
``gradient-difference``  the same, and ``CE(keep)`` minimised (Liu et al. 2022, arXiv 2203.12817)
``kul``                  gradient ascent until the request is as strange as unseen data (Jang et
                         al. 2023, arXiv 2210.01504)
``npo``                  negative preference (Zhang et al. 2024, arXiv 2404.05868)
``simnpo``               the same by length, without the model before (Fan et al. 2024, arXiv
                         2410.07163)
``kga``                  knowledge-gap alignment (Wang et al. 2023, arXiv 2305.06535)
``eul``                  an unlearning adapter (Chen and Yang 2023, arXiv 2310.20150)
``au``                   generic labels, Who's Harry Potter (Eldan and Russinovich 2023, arXiv
                         2310.02238)
``rmu``                  hidden states misdirected (Li et al. 2024, arXiv 2403.03218)
=======================  =======================================================================
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from weightsurgery.algebra.lowrank import LowRank
from weightsurgery.checkpoint.selection import Selection
from weightsurgery.errors import EditError
from weightsurgery.learning.data import Example
from weightsurgery.learning.models import PreTrainedModel, PreTrainedTokenizerBase
from weightsurgery.learning.settings import Training
from weightsurgery.learning.unlearners.ascent import (
    GradientAscent,
    GradientDifference,
    KnowledgeUnlearning,
)
from weightsurgery.learning.unlearners.base import Unlearner
from weightsurgery.learning.unlearners.misdirection import RMU
from weightsurgery.learning.unlearners.preference import NPO, SimNPO
from weightsurgery.learning.unlearners.run import Look, Unlearned, settings_of, train_unlearner
from weightsurgery.learning.unlearners.teachers import (
    EfficientUnlearning,
    GenericLabels,
    KnowledgeGapAlignment,
)

__all__ = [
    "NPO",
    "RMU",
    "UNLEARNERS",
    "EfficientUnlearning",
    "GenericLabels",
    "GradientAscent",
    "GradientDifference",
    "KnowledgeGapAlignment",
    "KnowledgeUnlearning",
    "Look",
    "SimNPO",
    "Unlearned",
    "Unlearner",
    "settings_of",
    "train_unlearner",
    "unlearn",
]

UNLEARNERS: Mapping[str, type[Unlearner]] = {
    "gradient-ascent": GradientAscent,
    "gradient-difference": GradientDifference,
    "kul": KnowledgeUnlearning,
    "npo": NPO,
    "simnpo": SimNPO,
    "kga": KnowledgeGapAlignment,
    "eul": EfficientUnlearning,
    "au": GenericLabels,
    "rmu": RMU,
}


def unlearn(
    name: str,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    forget: Sequence[Example],
    keep: Sequence[Example],
    training: Training | None = None,
    *,
    settings: Mapping[str, Any] | None = None,
    selection: Selection | None = None,
    unseen: Sequence[Example] = (),
    lora_rank: int | None = None,
    look: Look | None = None,
) -> dict[str, torch.Tensor]:
    """Trains with one of :data:`UNLEARNERS`; the model is as before in the end, to the bit.

    Args:
        name: Which.
        model: Float32.
        tokenizer: Its tokenizer.
        forget: What to forget.
        keep: What to keep; not used by all.
        training: How; by default as published.
        settings: The method's own, by name; the others are as published.
        selection: Which parameters to train; by default all linear layers, of which a method may
            take fewer.
        unseen: What the model never saw; not used by all.
        lora_rank: Train an adapter of this rank instead.
        look: Called after each step with the steps taken and what tells the change so far; true
            ends the training.

    Returns:
        Parameter → its change, float32 on the CPU.

    Raises:
        EditError: An unknown name or setting, or no examples where they are needed.
        NonFiniteError: The loss or a weight is NaN or infinite, as gradient ascent ends if it
            goes on long enough.
    """
    if name not in UNLEARNERS:
        raise EditError(f"method {name!r}", f"Choose one of: {', '.join(UNLEARNERS)}.")
    kind = UNLEARNERS[name]
    found = train_unlearner(
        kind,
        model,
        tokenizer,
        forget,
        keep,
        training or kind.published,
        settings_of(kind, settings),
        selection=selection,
        unseen=unseen,
        lora_rank=lora_rank,
        chosen=selection is not None,
        look=look,
    )
    return {
        name: each.matrix() if isinstance(each, LowRank) else each
        for name, each in found.change.items()
    }
