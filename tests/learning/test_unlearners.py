"""The unlearners: their equations by hand, and that training on them does what their papers say."""

from dataclasses import asdict, fields

import numpy as np
import pytest
import torch

from tests.learning.losses import UNLEARNERS
from tests.learning.tiny import FACTS, OTHER, UNSEEN, loss, tiny
from weightsurgery.checkpoint.selection import Selection
from weightsurgery.errors import EditError, NonFiniteError, SelectionError
from weightsurgery.learning.scores import score
from weightsurgery.learning.settings import Training
from weightsurgery.learning.stages import set_values, values_of
from weightsurgery.learning.unlearners import losses as equations
from weightsurgery.learning.unlearners.base import Unlearner
from weightsurgery.learning.unlearners.run import train_unlearner
from weightsurgery.learning.unlearners.settings import settings_of
from weightsurgery.unlearning.by_loss import unlearn
from weightsurgery.unlearning.methods.au import generic_labels
from weightsurgery.unlearning.methods.npo import npo
from weightsurgery.unlearning.methods.rmu import distance
from weightsurgery.unlearning.methods.simnpo import simnpo


def exact(rows):
    return torch.tensor(rows, dtype=torch.float64)


def log_softmax(rows):
    rows = np.asarray(rows, dtype=np.float64)
    return rows - np.log(np.exp(rows).sum(-1, keepdims=True))


def kl(p, q):
    """By hand: the mean over positions of Σ p (log p − log q)."""
    p, q = log_softmax(p), log_softmax(q)
    return (np.exp(p) * (p - q)).sum(-1).mean()


# Two positions, three words each: what is trained, the model before, and helpers.
NOW, BEFORE = [[2.0, 0.0, -1.0], [0.5, 0.5, 0.0]], [[1.0, 1.0, 0.0], [0.0, 2.0, -0.5]]
MORE = [[3.0, 0.5, -2.0], [0.0, 2.5, -1.0]]


def test_completions_count_and_prompts_and_padding_do_not():
    logits = exact([[[0, 0], [9, 0], [1, 0], [0, 3]], [[0, 0], [5, 5], [0, 0], [7, 7]]])
    labels = torch.tensor([[-100, -100, 1, 0], [-100, 0, -100, -100]])
    nll, tokens = equations.completion_nll(logits, labels)
    # Row 1: token 1 from logits (9, 0), token 0 from (1, 0); row 2: token 0 from (0, 0).
    hand = [-log_softmax([9, 0])[1] - log_softmax([1, 0])[0], np.log(2)]
    np.testing.assert_allclose(nll, hand, rtol=1e-12)
    assert tokens.tolist() == [2, 1]
    assert hand[0] == pytest.approx(9.000123402 + 0.313261688, abs=1e-8)


def test_divergence_is_the_first_from_the_second():
    found = equations.kl(exact(NOW), exact(BEFORE), 2), equations.kl(exact(BEFORE), exact(NOW), 2)
    np.testing.assert_allclose(found, [kl(NOW, BEFORE), kl(BEFORE, NOW)], rtol=1e-12)
    assert abs(float(found[0] - found[1])) > 0.005  # the order counts
    assert float(equations.kl(exact([[np.log(3), 0.0]]), exact([[0.0, 0.0]]), 1)) == pytest.approx(
        0.75 * np.log(1.5) + 0.25 * np.log(0.5)
    )
    assert float(equations.kl(exact(NOW), exact(NOW), 2)) == 0


def test_npo():
    nll, reference, beta = exact([3.0, 0.5]), exact([1.0, 1.5]), 0.1
    # 2/β log(1 + (π/π_ref)^β), as the paper has it too.
    hand = np.mean([20 * np.log1p(np.exp(-2.0) ** 0.1), 20 * np.log1p(np.exp(1.0) ** 0.1)])
    assert float(npo(nll, reference, beta, 2)) == pytest.approx(hand, rel=1e-12)
    assert hand == pytest.approx((11.962778 + 14.887933) / 2, abs=1e-5)
    # At the model before it is 2 log 2 / β; as β falls its slope becomes gradient ascent's.
    assert float(npo(reference, reference, beta, 2)) == pytest.approx(20 * np.log(2))
    nll = nll.requires_grad_()
    npo(nll, reference, 1e-6, 2).backward()
    torch.testing.assert_close(nll.grad, exact([-0.5, -0.5]), rtol=1e-4, atol=0)
    # Where the answer has become unlikely the slope fades, and ascent's does not: no collapse.
    far = exact([101.0, 1.0]).requires_grad_()
    npo(far, exact([1.0, 1.0]), 0.1, 2).backward()
    torch.testing.assert_close(far.grad, exact([-1 / (1 + np.exp(10)), -0.5]), rtol=1e-9, atol=0)


def test_simnpo():
    nll, tokens = exact([6.0, 0.5]), torch.tensor([4, 1])
    rewards = np.array([4.5 * 1.5 - 0.2, 4.5 * 0.5 - 0.2])
    hand = np.mean(2 / 4.5 * np.log1p(np.exp(-rewards)))
    assert float(simnpo(nll, tokens, 4.5, 0.2, 2)) == pytest.approx(hand, rel=1e-12)
    # Length counts: the same likelihood over more tokens is less forgotten.
    short, long = (simnpo(exact([6.0]), torch.tensor([n]), 4.5, 0.0, 1) for n in (2, 6))
    assert float(short) < float(long)


def test_generic_labels():
    found = generic_labels(exact(BEFORE), exact(MORE), 5.0)
    # What rose, falls fivefold; what fell, stays.
    hand = [[1 - 5 * 2.0, 1.0, 0.0], [0.0, 2 - 5 * 0.5, -0.5]]
    np.testing.assert_allclose(found, hand, rtol=1e-12)
    loss_ = equations.soft_cross_entropy(found, exact(NOW), 2)
    by_hand = -(np.exp(log_softmax(hand)) * log_softmax(NOW)).sum(-1).mean()
    assert float(loss_) == pytest.approx(by_hand, rel=1e-12)
    # Least where the model says the labels.
    assert float(equations.soft_cross_entropy(found, found, 2)) < float(loss_)


def test_distance():
    control = exact([3.0, 4.0])
    # (4 + 16 + 9 + 4) / 4 and (1 + 4) / 2.
    assert float(distance(exact([[1.0, 0.0], [0.0, 2.0]]), control, 2)) == 33 / 4
    assert float(distance(exact([[1.0, 1.0]]), exact([[0.0, 3.0]]), 1)) == 2.5


def test_means_of_parts_of_a_whole_add_up():
    parts = [equations.kl(exact(NOW[i:][:1]), exact(BEFORE[i:][:1]), 2) for i in (0, 1)]
    assert float(sum(parts)) == pytest.approx(kl(NOW, BEFORE), rel=1e-12)
    assert abs(float(parts[0] - parts[1])) > 0.01


HELPERS = {"helper_steps": 30, "helper_rate": 1e-3}

# Method → its training and settings, here; how far the loss on what to forget must rise, and how
# far that on what to keep may.
MOVES = {
    "gradient-ascent": (Training(steps=10, learning_rate=1e-3), {}, 1.0, 2.0),
    "gradient-difference": (Training(steps=15, learning_rate=1e-3), {}, 2.0, 0.3),
    "kul": (Training(epochs=20, learning_rate=1e-3), {"n": 3}, 0.3, 1.0),
    "npo": (Training(steps=8, learning_rate=1e-3), {"retain": "klr"}, 1.0, 0.3),
    "simnpo": (Training(steps=15, learning_rate=1e-3), {}, 0.3, 0.1),
    "kga": (Training(steps=20, learning_rate=1e-3), HELPERS, 0.1, 0.1),
    "eul": (Training(steps=10, learning_rate=3e-3), {}, 0.5, 0.2),
    "au": (Training(steps=20, learning_rate=1e-3), HELPERS, 0.2, 0.1),
    "rmu": (Training(steps=20, learning_rate=1e-2), {"coefficient": 20, "alpha": 100}, 0.2, 0.1),
}  # fmt: skip


@pytest.mark.parametrize("name", MOVES)
def test_training_forgets_and_the_model_is_as_before(trained_tiny, name):
    forgets(*trained_tiny, name, *MOVES[name])


def forgets(model, tokenizer, name, training, settings, rises, spared):
    """Training forgets, spares what is kept, repeats itself, and leaves the model as it was."""
    state = {key: value.clone() for key, value in model.state_dict().items()}
    thawed = [each.requires_grad for each in model.parameters()]
    losses = loss(model, FACTS), loss(model, OTHER)
    drawn = torch.get_rng_state()

    def train(seed):
        return unlearn(
            name, model, tokenizer, FACTS, OTHER,
            Training(**{**asdict(training), "seed": seed}), settings=settings, unseen=UNSEEN,
        )  # fmt: skip

    change = train(0)
    after = model.state_dict()
    assert all(torch.equal(after[key], value) for key, value in state.items())
    assert [each.requires_grad for each in model.parameters()] == thawed
    assert torch.equal(torch.get_rng_state(), drawn)
    assert not any("lora" in key for key in after)
    before = values_of(model, list(change))
    try:
        set_values(model, {key: before[key] + t for key, t in change.items()})
        found = loss(model, FACTS), loss(model, OTHER)
    finally:
        set_values(model, before)
    assert found[0] > losses[0] + rises, found
    assert found[1] < losses[1] + spared, found
    if name in ("npo", "eul", "rmu"):
        again = train(0)
        assert all(torch.equal(again[key], t) for key, t in change.items())
        other = train(1)
        assert any(not torch.equal(other[key], t) for key, t in change.items())


def test_a_term_of_what_to_keep_spares_it(trained_tiny):
    """NPO alone, with the cross-entropy, and with the divergence."""
    model, tokenizer = trained_tiny
    lost = {}
    for retain in ("none", "gdr", "klr"):
        change = unlearn(
            "npo", model, tokenizer, FACTS, OTHER, Training(steps=15, learning_rate=1e-3),
            settings={"retain": retain},
        )  # fmt: skip
        before = values_of(model, list(change))
        set_values(model, {key: before[key] + t for key, t in change.items()})
        lost[retain] = loss(model, OTHER)
        set_values(model, before)
    assert max(lost["gdr"], lost["klr"]) < 0.7 * lost["none"], lost


def test_kul_ends_as_soon_as_the_request_is_as_strange_as_unseen_data(trained_tiny):
    model, tokenizer = trained_tiny
    kind = UNLEARNERS["kul"]

    def run(n, epochs):
        return train_unlearner(
            kind, model, tokenizer, FACTS, (), Training(epochs=epochs, learning_rate=5e-4),
            kind.Settings(n), unseen=UNSEEN, look=look,
        )  # fmt: skip

    seen = []

    def look(step, change):
        if step > len(seen):
            found = score(model, tokenizer, FACTS, ("ma", "el"), n=3)
            seen.append({name: each.mean() for name, each in found.items()})
            model.train()
        return False

    limits = {k: v.mean() for k, v in score(model, tokenizer, UNSEEN, ("ma", "el"), n=3).items()}
    now = {k: v.mean() for k, v in score(model, tokenizer, FACTS, ("ma", "el"), n=3).items()}
    assert now["ma"] > limits["ma"]
    assert now["el"] > limits["el"]
    found = run(3, 20)
    assert found.notes["limits"] == limits
    under = [all(each[k] < limits[k] for k in limits) for each in seen]
    assert under == [False] * (len(under) - 1) + [True]
    assert found.trained.steps == len(under) < 20
    assert found.notes["reached"] == seen[-1]
    # A completion shorter than n tokens has no EL_n: MA alone decides, and the record says so.
    seen.clear()
    short = run(10, 20)
    assert short.notes["limits"]["el"] is None
    assert short.notes["reached"].keys() == {"ma"}
    # Without reaching the limits it trains to the end.
    assert run(3, 1).trained.steps == 1


def test_kga_ends_when_the_gap_is_closed(trained_tiny):
    model, tokenizer = trained_tiny
    kind = UNLEARNERS["kga"]

    def run(stop):
        return train_unlearner(
            kind, model, tokenizer, FACTS, OTHER, Training(steps=16, learning_rate=1e-3),
            kind.Settings(stop=stop, **HELPERS), unseen=UNSEEN,
        )  # fmt: skip

    early, late = run(0.5), run(0.0)
    assert early.trained.steps < late.trained.steps == 16
    apart = early.notes["apart"]
    assert apart["last"] <= 0.5 * apart["first"]
    assert early.notes["gap"] > 0.1  # unseen data taught its helper something
    helpers = [early.notes[f"helper of {what}"] for what in ("unseen data", "what to forget")]
    assert all(each["last_loss"] < each["first_loss"] for each in helpers)


def test_rmu_trains_the_ends_of_feed_forward_networks_up_to_its_layer():
    kind = UNLEARNERS["rmu"]
    for family in ("llama", "gpt2"):
        model = tiny(family)
        names = [n for n, each in model.named_parameters() if each.ndim == 2 and ".0" in n]
        names += [n.replace(".0.", ".1.") for n in names]
        (only,) = kind.parameters(model, names, kind.Settings(), False)
        assert ".0.mlp." in only
        assert only.endswith(("down_proj.weight", "c_proj.weight"))
        by_hand = kind.parameters(model, names, kind.Settings(), True)
        assert set(by_hand) == {name for name in names if ".0." in name}
    deep = tiny("llama")
    deep.config.num_hidden_layers = 32
    assert kind.Settings().steered(deep) == 7
    names = [f"model.layers.{n}.mlp.{m}_proj.weight" for n in range(32) for m in ("up", "down")]
    assert kind.parameters(deep, names, kind.Settings(), False) == names[11:16:2]
    with pytest.raises(EditError, match="layer = 31"):
        kind.Settings(layer=31).steered(deep)
    with pytest.raises(EditError, match="no selected matrix"):
        kind.parameters(deep, names[-4:], kind.Settings(), True)


def test_states_are_steered_to_the_control_vector(trained_tiny):
    """The hidden states themselves, not the loss alone."""
    model, tokenizer = trained_tiny
    asked = {"input_ids": torch.tensor([tokenizer(FACTS[0].prompt)["input_ids"]])}
    drawn = torch.rand(32, generator=torch.Generator().manual_seed(0))
    control = 20 * drawn / drawn.norm()

    @torch.no_grad()
    def cosine():
        states = model.eval()(**asked, output_hidden_states=True).hidden_states[1][0]
        return float(torch.nn.functional.cosine_similarity(states, control[None]).mean())

    before = cosine()
    change = unlearn(
        "rmu", model, tokenizer, FACTS, OTHER, Training(steps=20, learning_rate=1e-2),
        settings={"coefficient": 20.0, "alpha": 1.0},
    )  # fmt: skip
    assert list(change) == ["model.layers.0.mlp.down_proj.weight"]
    values = values_of(model, list(change))
    set_values(model, {key: values[key] + t for key, t in change.items()})
    after = cosine()
    set_values(model, values)
    assert before < 0.3
    assert after > 0.8


@pytest.mark.parametrize("name", ["npo", "rmu"])
def test_an_adapter_instead_of_the_weights(trained_tiny, name):
    model, tokenizer = trained_tiny
    kind = UNLEARNERS[name]
    found = train_unlearner(
        kind, model, tokenizer, FACTS, OTHER, Training(steps=12, learning_rate=2e-2),
        settings_of(kind, MOVES[name][1]), unseen=UNSEEN, lora_rank=3,
    )  # fmt: skip
    assert all(each.rank <= 3 for each in found.change.values())
    assert all(each.energy > 0 for each in found.change.values())
    before, was = values_of(model, list(found.change)), loss(model, FACTS)
    set_values(model, {n: before[n] + each.matrix() for n, each in found.change.items()})
    assert loss(model, FACTS) > was + 0.05
    set_values(model, before)


def test_accumulated_batches_weigh_as_one(trained_tiny):
    """Two micro-steps of half a batch are a step of it, for losses that are means over rows."""
    model, tokenizer = trained_tiny
    # Rows of one length, so that means over tokens are means over rows.
    facts = [each for each in FACTS if len(each.completion) == 5]
    sizes = [
        Training(steps=1, learning_rate=1e-3, batch_size=len(facts) // count, accumulation=count)
        for count in (1, 2)
    ]
    assert len(facts) % 2 == 0
    for name in ("gradient-ascent", "npo", "simnpo"):
        own = {"keep_weight": 0.0} if name == "simnpo" else {}
        whole, halves = (
            unlearn(name, model, tokenizer, facts, (), how, settings=own) for how in sizes
        )
        for key, t in whole.items():
            torch.testing.assert_close(halves[key], t, rtol=1e-2, atol=1e-5)


def test_looks_see_the_change_so_far(trained_tiny):
    model, tokenizer = trained_tiny
    kind, sizes = UNLEARNERS["npo"], []

    def look(step, change):
        sizes.append(sum(float(each.norm()) for each in change().values()))
        return step == 4

    found = train_unlearner(
        kind, model, tokenizer, FACTS, (), Training(steps=9, learning_rate=1e-3), kind.Settings(),
        look=look,
    )  # fmt: skip
    assert found.trained.steps == len(sizes) == 4
    assert sizes == sorted(sizes)
    assert sizes[-1] == pytest.approx(sum(float(t.norm()) for t in found.change.values()))


def test_every_unlearner_says_where_it_comes_from():
    for kind in UNLEARNERS.values():
        assert "arXiv 2" in kind.paper
        assert kind.paper.split("arXiv ")[1][:10] in kind.__doc__
        assert kind.published is not Unlearner.published
        assert {each.name for each in fields(kind.Settings)} == asdict(settings_of(kind)).keys()
    # As published.
    assert UNLEARNERS["kul"].published.learning_rate == 5e-5
    assert UNLEARNERS["npo"].Settings().beta == 0.1
    assert asdict(UNLEARNERS["simnpo"].Settings()) == {
        "beta": 4.5, "delta": 0.0, "forget_weight": 0.125, "keep_weight": 1.0,
    }  # fmt: skip
    rmu = UNLEARNERS["rmu"].Settings()
    assert (rmu.coefficient, rmu.alpha) == (6.5, 1200.0)


def test_refusals(trained_tiny):
    model, tokenizer = trained_tiny
    brief = Training(steps=1)
    state = {key: value.clone() for key, value in model.state_dict().items()}

    def refused(name, said, forget=FACTS, keep=OTHER, error=EditError, **others):
        with pytest.raises(error, match=said):
            unlearn(name, model, tokenizer, forget, keep, brief, **others)

    refused("forget-it", "method 'forget-it'")
    refused("npo", "nothing to forget", forget=[])
    refused("simnpo", "without examples to keep", keep=[])
    refused("npo", "without examples to keep", keep=[], settings={"retain": "gdr"})
    refused("kul", "never saw")
    refused("npo", "setting 'gamma'", settings={"gamma": 1})
    refused("npo", "beta = 0", settings={"beta": 0})
    refused("npo", "beta = 'x'", settings={"beta": "x"})
    refused("npo", "retain = all", settings={"retain": "all"})
    refused("kul", "n = 0", settings={"n": 0}, unseen=UNSEEN)
    refused("kul", "n = 1.5", settings={"n": 1.5}, unseen=UNSEEN)
    refused("kga", "stop = 1", settings={"stop": 1}, unseen=UNSEEN)
    refused("au", "helper_steps = 0", settings={"helper_steps": 0})
    refused("eul", "gamma = -1", settings={"gamma": -1})
    refused("rmu", "layer = 1", settings={"layer": 1})
    refused("npo", "no tensor", error=SelectionError, selection=Selection("all", ("nothing*",)))
    refused("npo", "rank 99", lora_rank=99)
    with pytest.raises(NonFiniteError):
        unlearn(
            "gradient-ascent", model, tokenizer, FACTS, (),
            Training(steps=30, learning_rate=1e30, extra={"max_grad_norm": 0}),
        )  # fmt: skip
    after = model.state_dict()
    assert all(torch.equal(after[key], value) for key, value in state.items())
    model.half()
    try:
        refused("npo", "float16")
    finally:
        model.float()
        model.load_state_dict(state)
