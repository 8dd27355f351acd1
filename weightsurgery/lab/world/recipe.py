"""The recipe of an embedded world: every size and hyperparameter that its bytes depend on."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

__all__ = ["FORMAT_VERSION", "LATER", "VARIANTS", "WorldRecipe"]

FORMAT_VERSION = 1
"""Raise it when the code changes what the same recipe makes: cached worlds are then rebuilt."""

LATER = frozenset({"paraphrases", "shared_names", "styled"})
"""Fields younger than the format. Left out of key and description at their defaults, which change
nothing, so that worlds made before they existed are still found and are still the same."""


@dataclass(frozen=True)
class WorldRecipe:
    """Sizes of the facts, shape of the model and the two training runs.

    Attributes:
        people: People in each of the twin tasks `authors` and `painters`, four facts each.
        first_names: First names in each of them; last names are all different.
        answers: Possible answers per relation; chance is 1 / `answers`.
        countries: Countries with a capital.
        modulus: Modulus of the `addition` task, which has `modulus` squared facts.
        seen: Share of a task's entities that an edit may see.
        validation: Share on which settings are chosen; the rest is unseen.
        vocabulary: Upper bound of the tokenizer's vocabulary.
        width: Hidden size of the model.
        layers: Decoder layers.
        heads: Attention heads.
        mlp_width: Width of the gated MLP.
        weight_spread: Standard deviation of the initial weights. 1 / sqrt(width) rather than the
            customary 0.02, with which attention starts so flat that `addition` takes four times
            the steps.
        shard_bytes: Largest shard of a saved checkpoint.
        batch: Examples per step of the base run.
        learning_rate: Peak of the base run's AdamW.
        final_learning_rate: Where its cosine ends, as a share of the peak.
        weight_decay: AdamW weight decay of the base run.
        warmup: Steps of linear warm-up.
        steps: Steps over which the learning rate falls; training may end earlier or go on.
        step_cap: Steps after which the base run is given up.
        first_check: First step at which the base run's accuracy is measured.
        check_every: Steps between later measurements.
        stop_at: Accuracy, in every task, at which the base run ends before `steps`.
        required: Accuracy, in every task, at which it ends from `steps` on; no world without it.
        tuning_batch: Examples per step of a fine-tune.
        tuning_learning_rate: Constant learning rate of a fine-tune, after its warm-up.
        tuning_weight_decay: AdamW weight decay of a fine-tune.
        tuning_warmup: Steps of a fine-tune's linear warm-up.
        tuning_steps: Steps of a fine-tune.
        paraphrases: The base learns every question in two wordings; fine-tunes see the first.
        shared_names: Painters bear the first and last names of the authors, in other pairs, so
            that no part of a name tells the twins apart.
        styled: The base learns every question about a person in a second, marked form as well,
            in which a closing phrase follows the answer; fine-tunes see the plain form.
    """

    people: int = 80
    first_names: int = 20
    answers: int = 16
    countries: int = 120
    modulus: int = 17
    seen: float = 0.5
    validation: float = 0.15
    vocabulary: int = 1024
    width: int = 384
    layers: int = 3
    heads: int = 6
    mlp_width: int = 1024
    weight_spread: float = 0.05
    shard_bytes: int = 8_000_000
    batch: int = 64
    learning_rate: float = 1e-3
    final_learning_rate: float = 0.1
    weight_decay: float = 0.01
    warmup: int = 30
    steps: int = 300
    step_cap: int = 900
    first_check: int = 200
    check_every: int = 25
    stop_at: float = 1.0
    required: float = 0.99
    tuning_batch: int = 64
    tuning_learning_rate: float = 5e-4
    tuning_weight_decay: float = 0.0
    tuning_warmup: int = 5
    tuning_steps: int = 30
    paraphrases: bool = False
    shared_names: bool = False
    styled: bool = False

    def describe(self) -> dict[str, float]:
        """The fields, ready for JSON; those of `LATER` only where they are not the default."""
        return {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name not in LATER or getattr(self, field.name) != field.default
        }

    def key(self) -> str:
        """A short name of this recipe: equal recipes of one format version have equal keys."""
        fields = self.describe() | {"format": FORMAT_VERSION}
        text = json.dumps(fields, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


# Learning rates grow as the width shrinks, and initial weights as its root.
# fmt: off
_NARROW = WorldRecipe(
    width=192, heads=6, mlp_width=512, weight_spread=0.072, learning_rate=2e-3, steps=500,
    step_cap=1500, tuning_learning_rate=1e-3,
)
# Knows all it should after seconds of training: for trying things out.
_SMALL = WorldRecipe(
    people=16, first_names=4, answers=4, countries=12, modulus=5, vocabulary=512, width=64,
    layers=2, heads=2, mlp_width=176, weight_spread=0.125, shard_bytes=200_000, batch=32,
    learning_rate=5e-3, warmup=10, steps=200, step_cap=600, first_check=100, tuning_batch=16,
    tuning_learning_rate=2e-3,
)

VARIANTS: Mapping[str, WorldRecipe] = MappingProxyType(
    {
        "default": WorldRecipe(),
        "narrow": _NARROW,
        "narrower": WorldRecipe(
            width=128, heads=4, mlp_width=352, weight_spread=0.088, learning_rate=3e-3,
            steps=700, step_cap=2100, tuning_learning_rate=1.5e-3,
        ),
        "shared-names": WorldRecipe(shared_names=True, steps=500, step_cap=1500),
        "paraphrased": WorldRecipe(paraphrases=True, steps=500, step_cap=1500),
        "styled": WorldRecipe(styled=True, steps=500, step_cap=1500),
        "narrow-styled": replace(_NARROW, styled=True, steps=800, step_cap=2400),
        "small": _SMALL,
        "small-styled": replace(_SMALL, styled=True, steps=300, step_cap=900),
    }
)
# fmt: on
"""Named recipes; see `WorldRecipe` for what they differ in."""
