"""The recipe of an embedded world: every size and hyperparameter that its bytes depend on."""

import dataclasses
import hashlib
import json
from dataclasses import dataclass

__all__ = ["FORMAT_VERSION", "Recipe"]

FORMAT_VERSION = 1
"""Raise it when the code changes what the same recipe makes: cached worlds are then rebuilt."""


@dataclass(frozen=True)
class Recipe:
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

    def describe(self) -> dict[str, float]:
        """All fields, ready for JSON."""
        return dataclasses.asdict(self)

    def key(self) -> str:
        """A short name of this recipe: equal recipes of one format version have equal keys."""
        fields = dataclasses.asdict(self) | {"format": FORMAT_VERSION}
        text = json.dumps(fields, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]
