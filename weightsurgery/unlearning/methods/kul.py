"""KUL: gradient ascent until the request is memorised no more than unseen data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from weightsurgery.errors import EditError
from weightsurgery.learning.settings import Training
from weightsurgery.unlearning.by_loss import BenchGrid
from weightsurgery.unlearning.methods.gradient_ascent import GradientAscent

if TYPE_CHECKING:
    from weightsurgery.learning.data import Example
    from weightsurgery.learning.unlearners.work import Preparation


__all__ = ["KnowledgeUnlearning"]


@dataclass(frozen=True)
class KULSettings:
    """When gradient ascent has forgotten enough.

    Attributes:
        n: Length of the n-grams of the extraction likelihood.

    Raises:
        EditError: A length below 1.
    """

    n: int = 10

    def __post_init__(self) -> None:
        if self.n < 1:
            raise EditError(f"n = {self.n}", "Give the length of n-grams, at least 1.")


class KnowledgeUnlearning(GradientAscent):
    """KUL: gradient ascent until what is to be forgotten is memorised no more than unseen data.

    Jang et al. 2023, arXiv 2210.01504. After every epoch memorisation accuracy (MA) and extraction
    likelihood (EL_10) of ``D_f`` are taken; training ends when both are under their means on data
    the model never saw, as the model was before. Published: learning rate 5e-5, constant; a batch
    that is the whole forget set, 32 texts at most; up to 20 epochs; texts of 200 tokens. Ours:
    AdamW with its usual betas, where their Adam has 0.9 and 0.98, and dropout as the model has it,
    where they turn it off. EL_n is not defined for completions of fewer than n tokens: where the
    forget set or the unseen data have none longer, MA alone decides, and the record says so. A
    mean of 0 is reached by 0.
    """

    name = "kul"
    about = "gradient ascent until the request is as strange as unseen data"
    paper = "Jang et al. 2023, arXiv 2210.01504 (KUL)"
    published = Training(epochs=20, learning_rate=5e-5, batch_size=32, max_length=200)
    Settings = KULSettings
    needs_unseen = True
    bench = (
        BenchGrid(
            "gradient ascent until MA is under that of facts of another world",
            rates=(2e-5, 5e-5, 1e-4, 2e-4, 3e-4, 5e-4),
            ends_itself=True,
        ),
    )

    @classmethod
    def prepare(cls, work: Preparation) -> dict[str, Any]:
        """The thresholds, and the preparation to measure again."""
        limits = _memorised(work, work.unseen, ("ma", "el"))
        if limits["el"] is not None and _memorised(work, work.forget, ("el",))["el"] is None:
            limits["el"] = None  # EL where both sets have it
        return {"limits": limits, "work": work}

    @override
    def after_epoch(self) -> bool:
        work: Preparation = self.prepared["work"]
        limits = {
            n: threshold
            for n, threshold in self.prepared["limits"].items()
            if threshold is not None
        }
        self._last = _memorised(work, work.forget, tuple(limits))
        work.model.train()
        under = all(_under(self._last[name], limit) for name, limit in limits.items())
        return self.mean_over_processes(float(under)) >= 0.5

    @override
    def outcome(self) -> dict[str, Any]:
        return {"limits": self.prepared["limits"], "reached": getattr(self, "_last", {})}


def _under(value: float | None, limit: float) -> bool:
    # Nothing is under a limit of 0, where unseen data have none of it: none is then enough.
    return value is not None and (value < limit or value == limit == 0)


def _memorised(
    work: Preparation, examples: Sequence[Example], names: tuple[str, ...]
) -> dict[str, float | None]:
    """The mean MA and EL_n of examples; EL is None where none of them has it."""
    from weightsurgery.learning.scores import score  # which loads models

    scores = score(work.plain, work.tokenizer, examples, names, n=work.settings.n)
    return {name: values.mean() for name, values in scores.items()}
