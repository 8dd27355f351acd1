"""The methods of the bench, one row each: a name, what it does, and the candidates it offers.

A candidate is a setting and the change it gives. Every method offers at most :data:`BUDGET` of
them, and the bench takes the best by validation data; a method that watches validation data while
it trains spends a look for each candidate.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch

from weightsurgery.algebra.activations import InputSpace
from weightsurgery.algebra.discriminate import KeepSpace, discriminate
from weightsurgery.algebra.lowrank import LowRank, Rank
from weightsurgery.algebra.svd import truncated_svd
from weightsurgery.lab.bench.chosen import BUDGET, BenchMethod, Candidate
from weightsurgery.lab.bench.subject import Change, Subject
from weightsurgery.lab.bench.systems import MERGING, PROMPTED, TRAINED
from weightsurgery.lab.world.build import train_base
from weightsurgery.lab.world.model import make_model
from weightsurgery.learning.fitting import isolated
from weightsurgery.learning.identify import train_vector
from weightsurgery.learning.keep_span import Kept
from weightsurgery.learning.method import IdentifyMode
from weightsurgery.learning.rounds import Rounds, find_change
from weightsurgery.learning.settings import Training
from weightsurgery.learning.stages import values_of
from weightsurgery.learning.watch import Watch

__all__ = ["BUDGET", "FORGETTING", "LEARNING", "BenchMethod", "Candidate", "retrain"]

# The search for the best rank of a keep task's vector is not part of the budget: all are cut at
# the same one.
_RANK = 64


def _scaled(vector: Change, scale: float) -> Change:
    return {name: scale * t for name, t in vector.items()}


def _nothing(subject: Subject) -> Iterator[Candidate]:
    yield Candidate({}, {})


def _negate(subject: Subject) -> Iterator[Candidate]:
    for scale in (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0):
        yield Candidate({"scale": scale}, _scaled(subject.vector, -scale))


def _negate_low_rank(subject: Subject) -> Iterator[Candidate]:
    factors = _factors(subject.vector)
    for rank in (16, 64):
        cut = {name: low_rank.truncated(rank).matrix() for name, low_rank in factors.items()}
        for scale in (0.5, 1.0, 1.5, 2.0):
            yield Candidate({"rank": rank, "scale": scale}, _scaled(cut, -scale))


def _random(subject: Subject) -> Iterator[Candidate]:
    """Per matrix, normal noise of the task vector's norm."""
    generator = torch.Generator().manual_seed(subject.seed)
    noise = {}
    for name, t in subject.vector.items():
        drawn = torch.randn(t.shape, generator=generator)
        noise[name] = drawn * (t.norm() / drawn.norm())
    for scale in (0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0):
        yield Candidate({"scale": scale}, _scaled(noise, scale))


def _factors(vector: Change) -> dict[str, LowRank]:
    return {name: truncated_svd(t, Rank(_RANK)).factors for name, t in vector.items()}


def _by_weights(
    side: str, basis: str, sign: int = -1, scales: Sequence[float] = (1.5, 3.0, 6.0, 10.0)
) -> Callable[[Subject], Iterator[Candidate]]:
    def candidates(subject: Subject) -> Iterator[Candidate]:
        vector = subject.vector if sign < 0 else _news_vector(subject)
        task = _factors(vector)
        keeps = [_factors(factors) for factors in subject.keep_vectors]
        for rank in (32, 64):
            projected = {}
            for name in subject.names:
                space = KeepSpace.of([factors[name].truncated(rank) for factors in keeps], basis)
                projected[name] = discriminate(task[name].truncated(rank), space, side).matrix()
            for scale in scales:
                yield Candidate({"rank": rank, "scale": scale}, _scaled(projected, sign * scale))

    return candidates


def _ridge(
    grams: Callable[[Subject], Change], epsilons: Sequence[float], scales: Sequence[float]
) -> Callable[[Subject], Iterator[Candidate]]:
    """``T' = T ρ (C + ρ I)⁻¹``, one shot."""

    def candidates(subject: Subject) -> Iterator[Candidate]:
        statistics = grams(subject)
        spaces: dict[int, InputSpace] = {}
        for gram in statistics.values():
            if id(gram) not in spaces:
                spaces[id(gram)] = InputSpace.of(gram)
        for epsilon in epsilons:
            left = {
                name: spaces[id(statistics[name])].apply(subject.vector[name], epsilon)
                for name in subject.names
            }
            for scale in scales:
                setting = {"epsilon": epsilon, "scale": scale}
                yield Candidate(setting, _scaled(left, -scale))

    return candidates


def _watch(subject: Subject, every: int, learning: bool) -> Watch:
    """Sees what the bench chooses by, and chooses by the same rule."""
    return Watch(
        subject.new_facts if learning else subject.target,
        subject.keep_facts("validation"),
        subject.rule,
        every,
        learning,
        score=subject.request.score,
    )


def _rounds(
    *settings: Rounds, looks: int = BUDGET, keep: str = "facts"
) -> Callable[[Subject], Iterator[Candidate]]:
    """Rounds watched on validation data, ``looks`` over all settings."""

    def candidates(subject: Subject) -> Iterator[Candidate]:
        for rounds in settings:
            learning = rounds.objective == "learn"
            given = subject.new_facts if learning else subject.forget
            every = rounds.rounds * rounds.steps * len(settings) // looks
            watch = _watch(subject, every, learning)
            held = Kept(subject.seen if keep == "facts" else ())
            result = find_change(subject.model, subject.tokenizer, given, held, rounds, watch=watch)
            shown = {"epsilon": rounds.epsilon, "rounds": rounds.rounds, "steps": rounds.steps}
            # The bench looks once more at what the watch chose: the same look, at the same data.
            yield Candidate(shown, result.change, max(0, len(watch.history) - 2))

    return candidates


def _retain_aware(subject: Subject) -> Iterator[Candidate]:
    """CE on the request plus KL to the base on seen keep facts, then negated."""
    vector = train_vector(
        subject.model, subject.tokenizer, subject.forget, subject.tuning(),
        IdentifyMode("joint"), keep=subject.seen_facts,
    )  # fmt: skip
    for scale in (0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0):
        yield Candidate({"scale": scale}, _scaled(vector, -scale))


def _retrained(subject: Subject) -> Iterator[Candidate]:
    """The world's base trained again from its first weights, on all tasks but the request's."""
    yield Candidate({}, retrain(subject))


def _news_vector(subject: Subject) -> Change:
    return train_vector(subject.model, subject.tokenizer, subject.new_facts, subject.tuning())


def _fine_tuned(rank: int | None) -> Callable[[Subject], Iterator[Candidate]]:
    """LoRA or full fine-tuning for several numbers of steps and learning rates."""

    def candidates(subject: Subject) -> Iterator[Candidate]:
        rates = (5e-3, 1e-2) if rank else (5e-4, 1e-3)
        for rate in rates:
            for steps in (20, 40, 80, 160):
                training = Training(
                    steps=steps, learning_rate=rate, batch_size=subject.recipe.tuning_batch,
                    warmup=5,
                )  # fmt: skip
                change = train_vector(
                    subject.model, subject.tokenizer, subject.new_facts, training,
                    IdentifyMode("joint", lora_rank=rank),
                )  # fmt: skip
                yield Candidate({"learning_rate": rate, "steps": steps}, change)

    return candidates


_OURS = Rounds()

FORGETTING: Mapping[str, BenchMethod] = {
    "base": BenchMethod("nothing is done", _nothing),
    "negate": BenchMethod("W − λT", _negate),
    "negate-low-rank": BenchMethod("W − λT, T cut to rank 16 or 64", _negate_low_rank),
    "random": BenchMethod("W + λN, N random with the norm of T", _random),
    "right": BenchMethod(
        "UNLEARN by weights, side right, basis joint", _by_weights("right", "joint"), "vectors"
    ),
    "right-sum": BenchMethod("the same, basis sum", _by_weights("right", "sum"), "vectors"),
    "left": BenchMethod("UNLEARN by weights, side left", _by_weights("left", "joint"), "vectors"),
    "both": BenchMethod("UNLEARN by weights, both sides", _by_weights("both", "joint"), "vectors"),
    "shared": BenchMethod(
        "UNLEARN by weights, what both sides share", _by_weights("shared", "joint"), "vectors"
    ),
    "frobenius": BenchMethod(
        "UNLEARN by weights, Frobenius", _by_weights("frobenius", "joint"), "vectors"
    ),
    "weights-ridge": BenchMethod(
        "T ρ(C + ρI)⁻¹ with C = Σ TᵀT of the keep vectors",
        _ridge(lambda s: s.vector_grams, (0.03, 0.1), (4.0, 8.0, 12.0, 16.0)),
        "vectors",
    ),
    "activations": BenchMethod(
        "T ρ(C + ρI)⁻¹, C of the seen keep facts",
        _ridge(lambda s: s.seen_grams, (1e-3, 1e-2), (8.0, 16.0, 32.0, 64.0)),
        "facts",
    ),
    "activations-strangers": BenchMethod(
        "the same, C of strangers' prompts too",
        _ridge(lambda s: s.stranger_grams, (1e-3, 1e-2), (8.0, 16.0, 32.0, 64.0)),
        "facts",
    ),
    "retain-aware": BenchMethod(
        "W − λT, T trained with KL on the seen keep facts", _retain_aware, "facts"
    ),
    **TRAINED,
    "rounds": BenchMethod(
        "identify, discriminate, remove in 16 rounds (λ=32, ε=0.001)",
        _rounds(Rounds("negate", rounds=16, steps=10)),
        "facts",
    ),
    "subspace-seen": BenchMethod(
        "trained inside the subspace, statistics of the seen keep facts alone",
        _rounds(Rounds(prompts=0), Rounds(prompts=0, epsilon=1e-4)),
        "facts",
    ),
    "subspace-generic": BenchMethod(
        "trained inside the subspace, no keep data: random words and strangers of the request",
        _rounds(Rounds(steps=120), Rounds(steps=120, epsilon=2e-3), keep="nothing"),
    ),
    "subspace": BenchMethod(
        "trained inside the subspace, with strangers: the default for data",
        _rounds(_OURS, Rounds(epsilon=3e-3)),
        "facts",
    ),
    "subspace-long": BenchMethod(
        "the same for three times as many steps", _rounds(Rounds(steps=240)), "facts"
    ),
    **MERGING,
    **PROMPTED,
    "retrained": BenchMethod("trained anew without the request", _retrained, "everything"),
}

LEARNING: Mapping[str, BenchMethod] = {
    "base": BenchMethod("nothing is done", _nothing),
    "lora": BenchMethod("LoRA, rank 16", _fine_tuned(16)),
    "full": BenchMethod("all linear layers fine-tuned", _fine_tuned(None)),
    "learn-right": BenchMethod(
        "LEARN by weights, side right", _by_weights("right", "joint", 1, (0.5, 1.0, 1.5, 2.0)),
        "vectors",
    ),
    "learn-subspace": BenchMethod(
        "trained inside the subspace, with strangers",
        _rounds(Rounds("learn", steps=160), Rounds("learn", steps=160, epsilon=1e-2)),
        "facts",
    ),
}  # fmt: skip


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
