"""Methods that prefer another answer to the one that is to be forgotten (DPO)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from weightsurgery.deferred import torch
from weightsurgery.unlearning.by_loss import ByLoss, check_not_negative, check_positive

if TYPE_CHECKING:
    from torch import Tensor

    from weightsurgery.learning.training import EncodedRows
    from weightsurgery.learning.unlearners.batch_outputs import BatchOutputs
    from weightsurgery.learning.unlearners.work import Preparation

__all__ = ["ByPreference", "PreferenceSettings", "dpo"]


@dataclass(frozen=True)
class PreferenceSettings:
    """The settings of a preference.

    Attributes:
        beta: Inverse temperature.
        keep_weight: Factor of the cross-entropy on what to keep.

    Raises:
        EditError: Values that make no sense.
    """

    beta: float = 0.1
    keep_weight: float = 1.0

    def __post_init__(self) -> None:
        check_positive(self, "beta")
        check_not_negative(self, "keep_weight")


def dpo(
    rejected: tuple[Tensor, Tensor],
    chosen: tuple[Tensor, Tensor],
    beta: float,
    count: Tensor | float,
) -> Tensor:
    """``mean −(2/β) log σ(β (log π/π_ref(y_w|x) − log π/π_ref(y_l|x)))``.

    Rafailov et al. 2023, arXiv 2305.18290, with the factor 2/β by which NPO (arXiv 2404.05868) is
    its half that rejects.

    Args:
        rejected: ``−log π(y_l|x)`` of the current and the original model, both of shape (pairs,).
        chosen: The same of the preferred answers ``y_w``.
        beta: Inverse temperature.
        count: Pairs that the mean is over.
    """
    gain = (chosen[1] - chosen[0]) - (rejected[1] - rejected[0])
    return -2 / beta * (torch.nn.functional.logsigmoid(beta * gain).sum() / count)


class ByPreference(ByLoss):
    """A system that prefers other answers, which it finds for every example to forget."""

    references = 1
    needs_keep = True

    @classmethod
    def alternates(cls, work: Preparation) -> list[list[str]]:
        """Per example to forget, the answers preferred to the true one; at least one in all."""
        raise NotImplementedError

    @classmethod
    @override
    def prepare(cls, work: Preparation) -> dict[str, Any]:
        return {**super().prepare(work), "alternates": cls.alternates(work)}

    @classmethod
    @override
    def rows(cls, work: Preparation, prepared: Mapping[str, Any]) -> EncodedRows:
        from weightsurgery.learning.models import context_length
        from weightsurgery.learning.training import EncodedRows
        from weightsurgery.learning.unlearners.pairs import Pair, PairCollator, answered_otherwise

        lengths = (work.training.max_length, context_length(work.plain))
        limit = min((length for length in lengths if length is not None), default=None)
        pairs = []
        for example, texts in zip(work.forget, prepared["alternates"], strict=True):
            for row in work.rows([example]):
                for text in texts:
                    other = answered_otherwise(work.tokenizer, example, row, text, limit)
                    pairs.append(Pair(row.input_ids, row.prompt_length, row.end_length, other))
        return EncodedRows(pairs, PairCollator(work.collate.pad_token_id))

    @override
    def loss(self, forget: BatchOutputs, keep: BatchOutputs | None) -> Tensor:
        assert keep is not None
        current = forget.nll[0]
        before = self.reference_outputs("base", forget.inputs).nll[0]
        settings: PreferenceSettings = self.settings
        # Of two rows the first is to go and the second is preferred.
        rejected, chosen = (current[::2], before[::2]), (current[1::2], before[1::2])
        return dpo(rejected, chosen, settings.beta, forget.whole.rows / 2) + (
            settings.keep_weight * keep.cross_entropy
        )
