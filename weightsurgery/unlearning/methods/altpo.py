"""AltPO: another plausible answer, which the model makes up, is preferred to the one to go."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from typing_extensions import override

from weightsurgery.errors import EditError
from weightsurgery.learning.settings import Training
from weightsurgery.unlearning.by_loss import BenchGrid, check_positive
from weightsurgery.unlearning.by_preference import ByPreference, PreferenceSettings

if TYPE_CHECKING:
    from weightsurgery.learning.unlearners.work import Preparation

__all__ = ["AltPO", "AltPOSettings"]


@dataclass(frozen=True)
class AltPOSettings(PreferenceSettings):
    """The settings of AltPO.

    Attributes:
        beta: Inverse temperature.
        keep_weight: Factor of the cross-entropy on what to keep.
        alternates: Other answers for each example.
        temperature: By which they are drawn.

    Raises:
        EditError: Values that make no sense.
    """

    alternates: int = 5
    temperature: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.alternates < 1:
            raise EditError(f"alternates = {self.alternates}", "Give a whole number from 1.")
        check_positive(self, "temperature")


class AltPO(ByPreference):
    """DPO of an alternate over the answer ``+ w CE(D_r)``; see :func:`by_preference.dpo`.

    Mekala et al. 2024, arXiv 2409.13474. The model before writes the alternates itself, shown
    question and answer. Five of them at temperature 1, two passes over these, batches of 32; β,
    w and the rate are of the ranges that the authors give (0.05 to 0.5, 1 to 5, 1e-5 to 5e-5). The
    wording by which they are asked for is ours.
    """

    name = "altpo"
    about = "prefers plausible other answers, which the model makes up (DPO), CE(keep)"
    paper = "Mekala et al. 2024, arXiv 2409.13474"
    published = Training(epochs=2, learning_rate=2e-5, batch_size=32, weight_decay=0.01)
    Settings = AltPOSettings
    bench = (BenchGrid("DPO of made-up answers, β=0.1, + CE(keep)", rates=(3e-5, 1e-4)),)

    @classmethod
    @override
    def alternates(cls, work: Preparation) -> list[list[str]]:
        from weightsurgery.learning.unlearners.pairs import written_alternates

        kept = work.workspace and work.workspace / "alternates.json"
        if kept is not None and kept.exists():  # a run that goes on trains on the same
            found: list[list[str]] = json.loads(kept.read_text(encoding="utf-8"))
        else:
            how: AltPOSettings = work.settings
            found, _ = written_alternates(work, how.alternates, how.temperature)
            if kept is not None:
                kept.parent.mkdir(parents=True, exist_ok=True)
                partial = kept.with_suffix(".partial")
                partial.write_text(json.dumps(found), encoding="utf-8")
                partial.replace(kept)
        made = [text for texts in found for text in texts]
        if not made:
            raise EditError(
                "the model makes up no other answer to what is to be forgotten",
                "Raise --set temperature=, or prefer not knowing: --method idk-dpo.",
            )
        lacking = work.settings.alternates * len(found) - len(made)
        work.notes["alternates"] = {"made": len(made), "lacking": lacking, "first": made[0]}
        return found
