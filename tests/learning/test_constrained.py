"""Training inside a subspace: where weights may change, Adam there, and what the inputs feel."""

import io
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import same_bytes
from tests.learning.tiny import FACTS, OTHER, byte_tokenizer, loss, state, tiny
from weightsurgery.errors import EditError, NonFiniteError
from weightsurgery.learning import constrained
from weightsurgery.learning.constrained import (
    Confinement,
    SubspaceAdam,
    confine,
    train_confined,
)
from weightsurgery.learning.data import Collator, Example, encode_all
from weightsurgery.learning.settings import Training
from weightsurgery.learning.statistics import gather
from weightsurgery.learning.training import EncodedRows

CPU = torch.device("cpu")


def gram_of(seed, width, count, spread=0.0):
    """``Σ x xᵀ`` of so many inputs, float64; their sizes spread over so many powers of ten."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(count, width, generator=draw, dtype=torch.float64)
    x *= 10 ** (-spread * torch.linspace(0, 1, width, dtype=torch.float64))
    return x.T @ x


def orthonormal(seed, width, count):
    draw = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(width, count, generator=draw, dtype=torch.float64)).Q


def matrix(inside):
    """``M`` of ``W₀ + A M``."""
    q = inside.Q.double()
    return q * inside.damping.double() @ q.T


def ridge_matrix(gram, epsilon, v=None):
    """``ρ (C + ρ I)⁻¹`` on the complement of ``V``, by NumPy in float64."""
    c = gram.numpy()
    width = len(c)
    n = np.eye(width)
    if v is not None:
        n = np.linalg.svd(v.double().numpy(), full_matrices=True)[0][:, v.shape[1] :]
    inner = n.T @ c @ n
    rho = epsilon * np.trace(inner) / width
    if rho == 0:
        return torch.from_numpy(n @ n.T)
    return torch.from_numpy(n @ np.linalg.inv(inner / rho + np.eye(n.shape[1])) @ n.T)


def assert_orthonormal(q):
    assert q.dtype == torch.float32
    torch.testing.assert_close(q.T @ q, torch.eye(len(q)), atol=2e-6, rtol=0)


# --- where a weight may change -------------------------------------------------------------------


@given(st.integers(0, 50), st.integers(1, 12), st.integers(0, 20), st.sampled_from([1e-3, 0.1, 1]))
def test_without_directions_it_is_the_ridge(seed, width, count, epsilon):
    gram = gram_of(seed, width, count)
    inside = confine(gram, epsilon)
    assert_orthonormal(inside.Q)
    assert inside.damping.dtype == torch.float32
    assert 0 <= float(inside.damping.min()) <= float(inside.damping.max()) <= 1
    torch.testing.assert_close(matrix(inside), ridge_matrix(gram, epsilon), atol=1e-5, rtol=0)


@given(
    st.integers(0, 50), st.integers(1, 12), st.integers(0, 20), st.data(),
    st.sampled_from([1e-3, 0.1]),
)  # fmt: skip
def test_with_directions_it_is_the_ridge_of_what_is_left(seed, width, count, data, epsilon):
    gram = gram_of(seed, width, count)
    v = orthonormal(seed + 1, width, data.draw(st.integers(1, width)))
    inside = confine(gram, epsilon, v.float())
    assert_orthonormal(inside.Q)
    assert 0 <= float(inside.damping.min()) <= float(inside.damping.max()) <= 1
    torch.testing.assert_close(matrix(inside), ridge_matrix(gram, epsilon, v), atol=1e-5, rtol=0)
    # Along span V nothing may change at all: as many directions as V has are shut.
    assert int((inside.damping == 0).sum()) == v.shape[1]
    assert float((inside.damping[:, None] * (inside.Q.T @ v.float())).norm()) < 1e-5


@pytest.mark.parametrize("epsilon", [1e-3, 0.0])
def test_without_inputs_all_is_free_but_the_directions(epsilon):
    nothing = torch.zeros(6, 6, dtype=torch.float64)
    assert torch.equal(confine(nothing, epsilon).damping, torch.ones(6))
    v = orthonormal(0, 6, 2)
    expected = torch.eye(6, dtype=torch.float64) - v @ v.T
    torch.testing.assert_close(matrix(confine(nothing, epsilon, v)), expected, atol=1e-6, rtol=0)


def test_no_directions_are_none():
    gram = gram_of(0, 5, 9)
    bare, empty = confine(gram, 0.1), confine(gram, 0.1, torch.zeros(5, 0))
    assert torch.equal(bare.Q, empty.Q)
    assert torch.equal(bare.damping, empty.damping)


def test_all_directions_leave_nothing_free():
    inside = confine(gram_of(0, 5, 9), 0.1, orthonormal(0, 5, 5))
    assert torch.equal(inside.damping, torch.zeros(5))


@pytest.mark.parametrize("overlap", [0, 1, 2])
def test_directions_may_lie_in_the_null_space_of_the_inputs(overlap):
    # Inputs in the first 4 of 8 coordinates; V of two coordinates, some of them in the others.
    gram = torch.zeros(8, 8, dtype=torch.float64)
    gram[:4, :4] = gram_of(3, 4, 30)
    eye = torch.eye(8, dtype=torch.float64)
    v = torch.cat([eye[:, 4 : 4 + overlap], eye[:, : 2 - overlap]], dim=1)
    inside = confine(gram, 1e-3, v)
    torch.testing.assert_close(matrix(inside), ridge_matrix(gram, 1e-3, v), atol=1e-6, rtol=0)
    assert int((inside.damping == 1).sum()) == 4 - overlap  # the rest of the null space is free
    assert int((inside.damping == 0).sum()) == 2


def test_directions_may_be_askew_to_the_null_space():
    gram = torch.zeros(8, 8, dtype=torch.float64)
    gram[:4, :4] = gram_of(3, 4, 30)
    v = orthonormal(5, 8, 3)
    inside = confine(gram, 1e-3, v)
    torch.testing.assert_close(matrix(inside), ridge_matrix(gram, 1e-3, v), atol=1e-6, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("extra", [0, 2])
def test_directions_may_span_all_inputs(dtype, extra):
    # What rounding leaves of the inputs is of either sign, and no input.
    basis = orthonormal(1, 9, 3 + extra)
    gram = basis[:, :3] @ gram_of(2, 3, 10) @ basis[:, :3].T
    v = (basis @ orthonormal(4, 3 + extra, 3 + extra)).to(dtype)
    inside = confine(gram, 1e-3, v)
    expected = torch.eye(9, dtype=torch.float64) - basis @ basis.T
    torch.testing.assert_close(matrix(inside), expected, atol=1e-6, rtol=0)


def test_inputs_of_very_different_sizes_are_told_apart():
    gram = gram_of(0, 10, 200, spread=2.5)
    v = orthonormal(1, 10, 2)
    for directions in (None, v):
        inside = confine(gram, 1e-3, directions)
        expected = ridge_matrix(gram, 1e-3, directions)
        torch.testing.assert_close(matrix(inside), expected, atol=1e-4, rtol=0)


def test_a_confinement_says_what_it_is_for():
    gram = gram_of(0, 4, 9)
    assert not confine(gram, 0.1).transposed
    assert confine(gram, 0.1, transposed=True).transposed
    assert confine(gram, 0.1, orthonormal(0, 4, 1), True).transposed
    assert confine(gram, 0.1, transposed=True).to(CPU).transposed


def test_statistics_that_are_none_are_refused():
    for directions in (None, orthonormal(0, 4, 1)):
        with pytest.raises(EditError, match="negative eigenvalue"):
            confine(-torch.eye(4, dtype=torch.float64), 0.1, directions)
        with pytest.raises(EditError, match="epsilon -1"):
            confine(gram_of(0, 4, 9), -1.0, directions)
        with pytest.raises(NonFiniteError):
            confine(torch.full((4, 4), math.nan, dtype=torch.float64), 0.1, directions)


# --- Adam inside it ------------------------------------------------------------------------------

RATE = 0.03


def weight_of(seed, *shape):
    draw = torch.Generator().manual_seed(seed)
    return torch.nn.Parameter(torch.randn(*shape, generator=draw) * 0.2)


def gradients(seed, steps, *shape):
    draw = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, generator=draw) * 10 ** (-n / 2) for n in range(steps)]


def unit(weight):
    return float(weight.detach().double().square().mean().sqrt())


def run(optimizer, weight, wanted):
    for gradient in wanted:
        weight.grad = gradient.to(weight.dtype)
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("betas", [(0.9, 0.95), (0.8, 0.999)])
def test_unconfined_it_is_adam(betas):
    ours, theirs = weight_of(0, 5, 7), weight_of(0, 5, 7)
    free = Confinement(torch.eye(7), torch.ones(7))
    adam = torch.optim.Adam([theirs], lr=RATE * unit(theirs), betas=betas, eps=1e-10)
    optimizer = SubspaceAdam([("w", ours)], {"w": free}, RATE, betas)
    before = ours.detach().clone()
    for gradient in gradients(1, 6, 5, 7):
        run(optimizer, ours, [gradient])
        run(adam, theirs, [gradient])
        torch.testing.assert_close(ours.detach(), theirs.detach(), atol=1e-6, rtol=1e-5)
    assert float((ours.detach() - before).norm()) > 0.01


def oracle(weight, inside, wanted, lr, eps, betas=(0.9, 0.95)):
    """Adam on ``B`` of ``W = W₀ + B diag(r) Qᵀ``, in NumPy's float64."""
    start = weight.detach().double().numpy()
    q, r = inside.Q.double().numpy(), inside.damping.double().numpy()
    size = lr * np.sqrt((start**2).mean())
    b = first = second = np.zeros((len(start), len(q)))
    for step, gradient in enumerate(wanted, start=1):
        g = (gradient.double().numpy() @ q) * r
        first = betas[0] * first + (1 - betas[0]) * g
        second = betas[1] * second + (1 - betas[1]) * g**2
        ratio = first / (1 - betas[0] ** step)
        ratio = ratio / (np.sqrt(second / (1 - betas[1] ** step)) + eps)
        b = b - size * ratio
    return torch.from_numpy(start + b * r @ q.T)


@given(st.integers(0, 50), st.integers(1, 6), st.integers(1, 8), st.sampled_from([1e-10, 0.1]))
def test_it_is_adam_on_the_factor(seed, rows, columns, eps):
    inside = confine(gram_of(seed, columns, 3, spread=1), 0.01)
    weight = weight_of(seed + 1, rows, columns)
    before = weight.detach().clone()
    wanted = gradients(seed + 2, 5, rows, columns)
    expected = oracle(weight, inside, wanted, RATE, eps)
    run(SubspaceAdam([("w", weight)], {"w": inside}, RATE, eps=eps), weight, wanted)
    torch.testing.assert_close(weight.detach().double(), expected, atol=2e-5, rtol=0)
    assert not torch.equal(weight.detach(), before)


def test_a_transposed_weight_goes_the_same_way():
    inside = confine(gram_of(0, 6, 4), 0.01)
    plain, turned = weight_of(1, 4, 6), torch.nn.Parameter(weight_of(1, 4, 6).detach().T.clone())
    wanted = gradients(2, 4, 4, 6)
    run(SubspaceAdam([("w", plain)], {"w": inside}, RATE), plain, wanted)
    held = Confinement(inside.Q, inside.damping, transposed=True)
    optimizer = SubspaceAdam([("w", turned)], {"w": held}, RATE)
    run(optimizer, turned, [each.T.contiguous() for each in wanted])
    torch.testing.assert_close(turned.detach().T, plain.detach(), atol=1e-6, rtol=0)
    assert not torch.equal(plain.detach(), weight_of(1, 4, 6).detach())


@given(st.integers(0, 50), st.booleans())
def test_shut_directions_feel_no_step(seed, transposed):
    v = orthonormal(seed, 8, 3)
    inside = confine(gram_of(seed, 8, 20), 1e-2, v, transposed)
    weight = weight_of(seed, *((8, 5) if transposed else (5, 8)))
    optimizer = SubspaceAdam([("w", weight)], {"w": inside}, 0.5)
    for gradient in gradients(seed, 4, *weight.shape):
        before = weight.detach().clone()
        run(optimizer, weight, [gradient])
        change = (weight.detach() - before).double()
        change = change.T if transposed else change
        assert float(change.norm()) > 1e-3
        assert float((change @ v).norm()) < 2e-6 * float(weight.detach().norm())


def test_a_step_is_as_long_as_the_damping_allows():
    damping = torch.tensor([1.0, 0.25, 0.01, 0.0])
    weight = weight_of(0, 3, 4)
    before, size = weight.detach().clone(), RATE * unit(weight)
    inside = Confinement(torch.eye(4), damping)
    run(SubspaceAdam([("w", weight)], {"w": inside}, RATE), weight, gradients(1, 1, 3, 4))
    moved = (weight.detach() - before).abs()
    torch.testing.assert_close(moved, (size * damping).expand(3, 4), atol=1e-6, rtol=1e-4)


def test_a_weight_of_zeros_takes_steps_of_the_rate_itself():
    weight = torch.nn.Parameter(torch.zeros(3, 4))
    free = Confinement(torch.eye(4), torch.ones(4))
    (gradient,) = gradients(1, 1, 3, 4)
    run(SubspaceAdam([("w", weight)], {"w": free}, RATE), weight, [gradient])
    torch.testing.assert_close(weight.detach(), -RATE * gradient.sign(), atol=1e-6, rtol=0)


def test_a_gradient_of_zero_moves_nothing():
    weight = weight_of(0, 3, 4)
    before = weight.detach().clone()
    free = Confinement(torch.eye(4), torch.ones(4))
    run(SubspaceAdam([("w", weight)], {"w": free}, RATE), weight, [torch.zeros(3, 4)])
    assert torch.equal(weight.detach(), before)


def test_bfloat16_weights_are_moved_as_float32_ones_and_rounded():
    inside = confine(gram_of(0, 6, 4), 0.01)
    narrow = torch.nn.Parameter(weight_of(1, 4, 6).detach().bfloat16())
    wide = torch.nn.Parameter(narrow.detach().float())
    wanted = [each.bfloat16() for each in gradients(2, 1, 4, 6)]
    run(SubspaceAdam([("w", narrow)], {"w": inside}, 0.3), narrow, wanted)
    run(SubspaceAdam([("w", wide)], {"w": inside}, 0.3), wide, wanted)
    assert narrow.dtype == torch.bfloat16
    error = (narrow.detach().float() - wide.detach()).abs()
    # Two roundings, of the step and of the sum.
    assert bool((error <= 2.0**-7 * (wide.detach().abs() + 0.1)).all())
    assert not torch.equal(narrow.detach(), weight_of(1, 4, 6).detach().bfloat16())


def test_weights_without_gradient_stay_and_a_closure_is_called():
    one, other = weight_of(0, 2, 3), weight_of(1, 2, 3)
    before = other.detach().clone()
    free = Confinement(torch.eye(3), torch.ones(3))
    optimizer = SubspaceAdam([("a", one), ("b", other)], {"a": free, "b": free}, RATE)

    def closure():
        optimizer.zero_grad()
        total = (one**2).sum()
        total.backward()
        return total

    first = optimizer.step(closure)
    assert optimizer.step(closure).item() < first.item()
    assert torch.equal(other.detach(), before)


def test_training_goes_on_from_a_saved_state():
    confinements = {"a": confine(gram_of(0, 6, 4), 0.01), "b": confine(gram_of(1, 3, 4), 0.01)}
    wanted = [gradients(2, 6, 4, 6), gradients(3, 6, 2, 3)]

    def start():
        return weight_of(1, 4, 6), weight_of(2, 2, 3)

    def optimizer_of(weights):
        return SubspaceAdam(list(zip("ab", weights, strict=True)), confinements, RATE)

    def steps(optimizer, weights, first, last):
        for n in range(first, last):
            for weight, each in zip(weights, wanted, strict=True):
                weight.grad = each[n]
            optimizer.step()

    whole = start()
    steps(optimizer_of(whole), whole, 0, 6)
    weights = start()
    optimizer = optimizer_of(weights)
    steps(optimizer, weights, 0, 3)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    assert file.tell() < 10_000  # moments alone, not where the weights may change
    file.seek(0)
    resumed = optimizer_of(weights)  # whose units, of the weights by now, are not those
    resumed.load_state_dict(torch.load(file, weights_only=True))
    steps(resumed, weights, 3, 6)
    for one, other in zip(whole, weights, strict=True):
        assert torch.equal(one.detach(), other.detach())
    forgetful = start()
    steps(optimizer_of(forgetful), forgetful, 0, 3)
    steps(optimizer_of(forgetful), forgetful, 3, 6)
    assert not torch.equal(forgetful[0].detach(), whole[0].detach())


def test_weights_of_one_input_share_what_they_are_confined_to():
    shared = confine(gram_of(0, 6, 4), 0.01)
    weights = {name: weight_of(n, 4, 6) for n, name in enumerate("qkv")}

    class Moved(Confinement):
        count = 0

        def to(self, device):
            Moved.count += 1
            return super().to(device)

    inside = Moved(shared.Q, shared.damping)
    SubspaceAdam(list(weights.items()), dict.fromkeys(weights, inside), RATE)
    assert Moved.count == 1


# --- training a model ----------------------------------------------------------------------------

NAMES = [f"model.layers.0.self_attn.{each}_proj.weight" for each in "qkvo"] + [
    f"model.layers.1.mlp.{each}_proj.weight" for each in ("gate", "up", "down")
]
EPSILON = 1e-3


def rows_of(examples, validation=()):
    tokenizer = byte_tokenizer()
    return EncodedRows(
        encode_all(tokenizer, examples), Collator(2), encode_all(tokenizer, list(validation))
    )


def statistics(model):
    return gather(model, byte_tokenizer(), OTHER, NAMES)


def confinements(grams):
    return {name: confine(gram, EPSILON) for name, gram in grams.items()}


STEPS, RATE_INSIDE = 30, 0.4


def train(model, inside, steps=STEPS, rate=RATE_INSIDE, **settings):
    training = Training(steps=steps, learning_rate=rate, batch_size=8)
    return train_confined(model, rows_of(FACTS), inside, training, device=CPU, **settings)


def test_training_lowers_the_loss_and_the_kept_inputs_hardly_feel_it():
    model = tiny("llama")
    grams = statistics(model)
    before, loss_before = state(model), loss(model, FACTS)
    inside = confinements(grams)
    trained = train(model, inside)
    assert trained.steps == 30
    assert trained.first_loss == pytest.approx(loss_before, rel=1e-4)
    assert loss(model, FACTS) < 0.7 * loss_before
    after = state(model)
    free = tiny("llama")
    width = {name: len(gram) for name, gram in grams.items()}
    train(free, {n: Confinement(torch.eye(w), torch.ones(w)) for n, w in width.items()})
    loose = state(free)
    for name in NAMES:
        change, gram = (after[name] - before[name]).double(), grams[name]
        felt = float(((change @ gram) * change).sum())
        # Entries of B grow by at most 1.2 rates a step (Cauchy-Schwarz on Adam's two moments),
        # and λ r² ≤ ρ / 4.
        largest = 1.2 * STEPS * RATE_INSIDE * float(before[name].double().square().mean().sqrt())
        ridge = EPSILON * float(gram.trace()) / len(gram)
        bound = ridge / 4 * largest**2 * change.numel()
        assert 0 < felt <= bound
        without = (loose[name] - before[name]).double()
        assert float(((without @ gram) * without).sum()) > 100 * felt


def test_what_is_not_named_stays_to_the_bit():
    model = tiny("llama")
    before = state(model)
    train(model, confinements(statistics(model)), steps=3)
    after = state(model)
    changed = {name for name, value in before.items() if not same_bytes(value, after[name])}
    assert changed == set(NAMES)


def test_directions_of_keep_vectors_are_left_alone_by_training():
    model = tiny("llama")
    grams, before = statistics(model), state(model)
    v = {name: orthonormal(n, len(grams[name]), 4) for n, name in enumerate(NAMES)}
    train(model, {name: confine(grams[name], EPSILON, v[name].float()) for name in NAMES})
    for name in NAMES:
        change = (model.get_parameter(name).detach() - before[name]).double()
        assert float(change.norm()) > 1e-2
        assert float((change @ v[name]).norm()) < 2e-5 * float(change.norm())


def test_gpt2_whose_weights_are_transposed_is_trained():
    model = tiny("gpt2")
    kinds = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    names = [f"transformer.h.{layer}.{kind}.weight" for layer in (0, 1) for kind in kinds]
    grams = gather(model, byte_tokenizer(), OTHER, names)
    before, loss_before = state(model), loss(model, FACTS)
    inside = {name: confine(grams[name], 0.1, transposed=True) for name in names}
    train(model, inside)
    assert loss(model, FACTS) < 0.95 * loss_before
    for name in names:
        change = (model.get_parameter(name).detach() - before[name]).double().T
        felt = float(((change @ grams[name]) * change).sum())
        ridge = 0.1 * float(grams[name].trace()) / len(grams[name])
        largest = 1.2 * STEPS * RATE_INSIDE * float(before[name].double().square().mean().sqrt())
        assert 0 < felt <= ridge / 4 * largest**2 * change.numel()


def test_it_ends_when_it_is_enough():
    asked = []

    def enough(step):
        asked.append(step)
        return step == 4

    model = tiny("llama")
    trained = train(model, confinements(statistics(model)), steps=10, enough=enough)
    assert trained.steps == 4
    assert asked == [1, 2, 3, 4]


@pytest.mark.parametrize("steps", [1, 4, 7])
def test_the_rate_stays_for_half_of_the_steps_and_falls_as_a_cosine(steps, monkeypatch):
    rates = []

    class Telling(SubspaceAdam):
        def step(self, closure=None):
            rates.append({group["lr"] for group in self.param_groups})
            return super().step(closure)

    monkeypatch.setattr(constrained, "SubspaceAdam", Telling)
    model = tiny("llama")
    train(model, confinements(statistics(model)), steps=steps, rate=0.2)
    falling = steps - steps // 2
    expected = [0.2] * (steps // 2) + [
        0.1 * (1 + math.cos(math.pi * n / falling)) for n in range(falling)
    ]
    assert [max(each) for each in rates] == pytest.approx(expected)
    assert all(len(each) == 1 for each in rates)


def test_training_is_the_same_each_time_and_tells_its_progress():
    told, found = [], []
    for _ in range(2):
        model = tiny("llama")
        inside = confinements(statistics(model))
        torch.manual_seed(len(found))
        train(model, inside, steps=3, progress=lambda *each: told.append(each))
        found.append(state(model))
    assert all(same_bytes(found[0][name], found[1][name]) for name in found[0])
    assert [(done, total) for _, done, total in told] == [(1, 3), (2, 3), (3, 3)] * 2
    assert all(text.startswith("inside the subspace") for text, _, _ in told)


def test_the_model_is_left_frozen_in_evaluation_mode_without_gradients():
    model = tiny("llama").train()
    train(model, confinements(statistics(model)), steps=2)
    assert not model.training
    assert all(p.grad is None and not p.requires_grad for p in model.parameters())


def test_validation_data_choose_the_best_weights():
    model = tiny("llama")
    inside = confinements(statistics(model))
    training = Training(steps=40, learning_rate=RATE_INSIDE, batch_size=4, save_every=4)
    # Whoever learns the colours unlearns these: the earliest weights are the best.
    contrary = [Example(each.prompt, "ZXJQ") for each in FACTS]
    rows = rows_of(FACTS, contrary)
    trained = train_confined(model, rows, inside, training, device=CPU)
    assert trained.best_validation == pytest.approx(loss(model, contrary), rel=1e-3)
    late = tiny("llama")
    train_confined(late, rows_of(FACTS), inside, training, device=CPU)
    assert loss(late, contrary) > trained.best_validation


def test_epochs_are_refused():
    model = tiny("llama")
    inside = confinements(statistics(model))
    with pytest.raises(EditError, match="for epochs"):
        train_confined(model, rows_of(FACTS), inside, Training(), device=CPU)


def test_a_rate_beyond_all_bounds_is_an_error():
    model = tiny("llama")
    inside = confinements(statistics(model))
    with pytest.raises(NonFiniteError, match=r"loss is (nan|inf)|holds NaN"):
        train(model, inside, steps=10, rate=1e30)
