"""AltPO: another plausible answer, which the model makes up, is preferred to the one to forget."""

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
        alternates: Other answers per example.
        temperature: Sampling temperature of the alternates.

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
    wording of the prompt for them is ours.
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

        path = work.workspace and work.workspace / "alternates.json"
        if path is not None and path.exists():  # a run that goes on trains on the same
            alternates: list[list[str]] = json.loads(path.read_text(encoding="utf-8"))
        else:
            settings: AltPOSettings = work.settings
            alternates, _ = written_alternates(work, settings.alternates, settings.temperature)
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
                partial = path.with_suffix(".partial")
                partial.write_text(json.dumps(alternates), encoding="utf-8")
                partial.replace(path)
        texts = [text for answers in alternates for text in answers]
        if not texts:
            raise EditError(
                "the model makes up no other answer to what is to be forgotten",
                "Raise --set temperature=, or prefer not knowing: --method idk-dpo.",
            )
        lacking = work.settings.alternates * len(alternates) - len(texts)
        work.notes["alternates"] = {"made": len(texts), "lacking": lacking, "first": texts[0]}
        return alternates
