"""Rounds: a model that knows two kinds of facts forgets or learns some, and keeps the others."""

import random
import re

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.conftest import same_bytes
from tests.learning.tiny import FACTS, OTHER, byte_tokenizer, state, tiny
from weightsurgery.checkpoint.selection import Selection
from weightsurgery.errors import DataError, EditError, MismatchError, SelectionError
from weightsurgery.lab.world.model import make_tokenizer
from weightsurgery.learning import keep_span as module
from weightsurgery.learning.constrained import Confinement
from weightsurgery.learning.data import Example, encode, read_examples
from weightsurgery.learning.exact import exact_match
from weightsurgery.learning.fitting import Schedule, fit
from weightsurgery.learning.identify import train_vector
from weightsurgery.learning.keep_span import Kept, keep_texts
from weightsurgery.learning.rounds import OBJECTIVES, Rounds, find_change
from weightsurgery.learning.settings import Training
from weightsurgery.learning.statistics import gather, tokens_of
from weightsurgery.learning.watch import Rule, Watch

WIDTH = 64


def _people():
    draw = random.Random(0)
    parts = ["ba", "do", "ki", "lu", "me", "no", "pa", "ri", "su", "ta", "ve", "zo"]
    names = ("".join(draw.sample(parts, 3)).capitalize() for _ in range(200))
    return list(dict.fromkeys(names))


PEOPLE = _people()


def likes(people):
    foods = ("tea", "rice", "figs", "plums")
    return [Example(f"What does {who} like?", f" {foods[n % 4]}") for n, who in enumerate(people)]


TOWNS = ("Rome", "Oslo", "Lima", "Bonn")
FORGET = likes(PEOPLE[:12])
LIVES = [Example(f"Where does {who} live?", f" {TOWNS[n % 4]}")
         for n, who in enumerate(PEOPLE[12:36])]  # fmt: skip
SEEN, UNSEEN = LIVES[:12], LIVES[12:]
NEW = likes(PEOPLE[36:40])
OTHERS = PEOPLE[40:]  # whom the tokenizer has heard of, and the model has not
SETTINGS = {
    "strangers": Rounds("strangers", steps=20, prompts=200),
    "negate": Rounds("negate", rounds=10, steps=6, prompts=200, round_scale=128.0),
    "learn": Rounds("learn", steps=20, prompts=200),
}


@pytest.fixture(scope="module")
def taught():
    """A model that has learned likes and lives, and its tokenizer."""
    everything = FORGET + LIVES
    text = [row.prompt + row.completion for row in everything]
    tokenizer = make_tokenizer([*text, *(f" {name}" for name in OTHERS * 3)], 700)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=WIDTH, intermediate_size=2 * WIDTH,
        num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=64,
        initializer_range=WIDTH**-0.5, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    schedule = Schedule(36, 3e-3, 0.1, 5, 0.0, 200, 200)
    known = {"": 0.0}

    def learned(step):
        if step >= 100 and step % 20 == 0:
            known[""] = exact_match(model, tokenizer, everything)
        return known[""] == 1

    fit(model, tokenizer, everything, schedule, 0, learned)
    return model, tokenizer


def scores(taught, change, *sets):
    """Accuracy of the model with a change."""
    model, tokenizer = taught
    before = state(model)
    with torch.no_grad():
        for name, each in change.items():
            model.get_parameter(name).add_(each)
    try:
        return [exact_match(model, tokenizer, rows) for rows in sets]
    finally:
        model.load_state_dict(before)


def unconfined(gram, epsilon, directions=None, transposed=False):
    return Confinement(torch.eye(len(gram)), torch.ones(len(gram)), transposed)


def linear_names(model):
    return [name for name, _ in model.named_parameters() if "_proj" in name]


# --- it forgets or learns, and the rest stays ----------------------------------------------------


def test_the_model_knows_what_it_was_taught(taught):
    model, tokenizer = taught
    assert [exact_match(model, tokenizer, rows) for rows in (FORGET, SEEN, UNSEEN)] == [1, 1, 1]
    assert exact_match(model, tokenizer, NEW) < 0.6


@pytest.mark.parametrize("objective", ["strangers", "negate"])
def test_it_forgets_while_the_rest_stays(taught, objective, monkeypatch):
    settings = SETTINGS[objective]
    found = find_change(*taught, FORGET, Kept([SEEN]), settings)
    assert set(found.change) == set(linear_names(taught[0]))
    forgotten, seen, unseen = scores(taught, found.change, FORGET, SEEN, UNSEEN)
    assert forgotten <= 0.25
    assert seen >= 0.9
    assert unseen >= 0.9
    # The same without the confinement forgets everything.
    monkeypatch.setattr(module, "confine", unconfined)
    free = find_change(*taught, FORGET, Kept([SEEN]), settings)
    assert max(scores(taught, free.change, SEEN, UNSEEN)) < 0.5


def test_it_learns_while_the_rest_stays(taught, monkeypatch):
    found = find_change(*taught, NEW, Kept([FORGET, SEEN]), SETTINGS["learn"])
    assert found.losses[0][0] > 0.5 > 0.05 > found.losses[0][1]
    learned, likes_kept, seen, unseen = scores(taught, found.change, NEW, FORGET, SEEN, UNSEEN)
    assert learned == 1
    assert min(likes_kept, seen) >= 0.9
    assert unseen >= 0.9
    monkeypatch.setattr(module, "confine", unconfined)
    free = find_change(*taught, NEW, Kept([FORGET, SEEN]), SETTINGS["learn"])
    assert min(scores(taught, free.change, FORGET, SEEN, UNSEEN)) < 0.5


def test_strangers_prompts_protect_what_no_file_names(taught):
    bare = find_change(*taught, FORGET, Kept([SEEN]), Rounds(steps=20, prompts=0)).change
    forgotten, seen, unseen = scores(taught, bare, FORGET, SEEN, UNSEEN)
    assert forgotten <= 0.25
    assert unseen < 0.6 < 0.9 <= seen
    settings = Rounds(steps=20, prompts=400)
    protected = find_change(*taught, FORGET, Kept([SEEN]), settings).change
    forgotten, unseen = scores(taught, protected, FORGET, UNSEEN)
    assert forgotten <= 0.25
    assert unseen >= 0.9


def test_without_anything_to_keep_random_words_stand_for_it(taught):
    settings = Rounds(steps=40, prompts=400)
    found = find_change(*taught, FORGET, Kept(), settings)
    forgotten, unseen = scores(taught, found.change, FORGET, UNSEEN)
    assert forgotten < 0.5
    assert unseen >= 0.9


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_plain_texts_are_data_too(taught, objective):
    texts = [Example("", row.prompt + row.completion) for row in FORGET]
    keep = [Example("", row.prompt + row.completion) for row in SEEN]
    settings = Rounds(objective, steps=3, prompts=20)
    found = find_change(*taught, texts, Kept([keep]), settings)
    assert any(each.any() for each in found.change.values())


# --- the model is as before ----------------------------------------------------------------------


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_model_is_as_before(taught, objective):
    model, tokenizer = taught
    before = state(model)
    frozen = model.get_parameter("model.norm.weight")
    frozen.requires_grad_(False)
    model.train()
    torch.manual_seed(7)
    drawn = torch.rand(3)
    torch.manual_seed(7)
    try:
        found = find_change(model, tokenizer, FORGET, Kept([SEEN]), Rounds(objective, steps=2))
        assert torch.equal(torch.rand(3), drawn)
        assert any(each.any() for each in found.change.values())
        assert model.training
        assert not frozen.requires_grad
        assert all(p.requires_grad for p in model.parameters() if p is not frozen)
        assert all(same_bytes(value, before[name]) for name, value in model.state_dict().items())
    finally:
        frozen.requires_grad_(True)
        model.eval()


class StoppedError(Exception):
    pass


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_model_is_as_before_also_after_an_error(taught, objective):
    model, tokenizer = taught
    before = state(model)
    changed = []

    def stop(text, done, total):
        if "loss" in text and done == 3:
            changed.append(not same_bytes(before[name], model.get_parameter(name)))
            raise StoppedError

    name = linear_names(model)[0]
    with pytest.raises(StoppedError):
        find_change(
            model, tokenizer, FORGET, Kept([SEEN]), Rounds(objective, steps=5), progress=stop
        )
    assert changed == [True]
    assert all(same_bytes(value, before[n]) for n, value in model.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert not model.training


def test_the_same_settings_find_the_same_change(taught):
    def find(seed):
        return find_change(
            *taught, FORGET, Kept([SEEN]), Rounds(steps=4, batch_size=4, prompts=50, seed=seed)
        ).change

    one = find(0)
    torch.manual_seed(99)
    random.seed(99)
    again, other = find(0), find(1)
    assert all(same_bytes(one[name], again[name]) for name in one)
    assert not any(same_bytes(one[name], other[name]) for name in one)


def test_only_what_is_selected_changes(taught):
    name = "model.layers.1.mlp.down_proj.weight"
    for objective in OBJECTIVES:
        found = find_change(
            *taught, FORGET, Kept([SEEN]), Rounds(objective, steps=2, prompts=20),
            selection=Selection("all", (name,)),
        )  # fmt: skip
        assert list(found.change) == [name]
        assert found.change[name].any()


def test_norms_stay_also_where_all_is_selected(taught):
    head = "lm_head.weight"
    selection = Selection("all", exclude=("*embed_tokens*",))
    for objective in OBJECTIVES:
        found = find_change(
            *taught, FORGET, Kept([SEEN]), Rounds(objective, steps=2, prompts=20),
            selection=selection,
        )  # fmt: skip
        assert set(found.change) == {*linear_names(taught[0]), head}


# --- what a round does ---------------------------------------------------------------------------


def ridge_matrix(gram, epsilon):
    rho = epsilon * float(gram.trace()) / len(gram)
    return rho * torch.linalg.inv(gram + rho * torch.eye(len(gram), dtype=torch.float64))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_negating_takes_away_the_discriminated_vector(family):
    model, tokenizer = tiny(family), byte_tokenizer()
    settings = Rounds(
        "negate", steps=3, prompts=0, round_scale=5.0, epsilon=0.1, batch_size=4, seed=3
    )
    found = find_change(model, tokenizer, FACTS, Kept([OTHER]), settings)
    training = Training(steps=3, learning_rate=5e-4, batch_size=4, seed=3)
    vector = train_vector(model, tokenizer, FACTS, training)
    grams = gather(model, tokenizer, OTHER, list(vector))
    assert set(found.change) == set(vector)
    for name, task in vector.items():
        wide = task.double().T if family == "gpt2" else task.double()
        expected = -5.0 * wide @ ridge_matrix(grams[name], 0.1)
        change = found.change[name].double()
        change = change.T if family == "gpt2" else change
        assert float(expected.norm()) > 1e-3
        # Weights of size 0.1 in float32, and factors of the eigenbasis.
        torch.testing.assert_close(change, expected, atol=2e-6, rtol=1e-4)


@pytest.mark.parametrize("objective", ["learn", "negate"])
def test_rounds_are_found_each_on_the_model_of_the_one_before(objective):
    model, tokenizer = tiny("llama"), byte_tokenizer()

    def find(rounds, seed):
        settings = Rounds(
            objective, rounds, 3, batch_size=4, prompts=0, seed=seed, round_scale=5.0, epsilon=0.1
        )
        return find_change(model, tokenizer, FACTS, Kept([OTHER]), settings)

    both, first = find(2, 0), find(1, 0)
    assert len(both.losses) == 2
    assert both.losses[0] == first.losses[0]
    with torch.no_grad():
        for name, each in first.change.items():
            model.get_parameter(name).add_(each)
    second = find(1, 1)
    assert both.losses[1] == pytest.approx(second.losses[0], rel=1e-3)
    for name, each in both.change.items():
        total = first.change[name] + second.change[name]
        assert float((each - total).norm()) < 1e-2 * float(each.norm())
        assert float((each - first.change[name]).norm()) > 0.1 * float(each.norm())


def test_gpt2_forgets_inside_the_subspace_of_its_transposed_weights():
    model, tokenizer = tiny("gpt2"), byte_tokenizer()
    settings = Rounds("learn", steps=10, prompts=0, epsilon=0.1)
    found = find_change(model, tokenizer, FACTS, Kept([OTHER]), settings)
    assert found.losses[0][1] < found.losses[0][0]
    grams = gather(model, tokenizer, OTHER, list(found.change))
    assert any(each.shape[0] != each.shape[1] for each in found.change.values())
    for name, each in found.change.items():
        change, gram = each.double().T, grams[name]
        # As in test_constrained: Adam's steps bound B, and the ridge what the inputs feel of it.
        largest = (
            1.2
            * 10
            * settings.rate
            * float(model.get_parameter(name).detach().square().mean().sqrt())
        )
        ridge = 0.1 * float(gram.trace()) / len(gram)
        felt = float(((change @ gram) * change).sum())
        assert 0 < felt <= ridge / 4 * largest**2 * change.numel()


# --- what is kept --------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_directions_of_keep_vectors_are_left_alone(family, objective):
    model, tokenizer = tiny(family), byte_tokenizer()
    bare = find_change(
        model, tokenizer, FACTS, Kept([OTHER]), Rounds(objective, steps=3, prompts=20)
    )
    directions = {}
    for n, (name, each) in enumerate(bare.change.items()):
        width = each.shape[0] if family == "gpt2" else each.shape[1]
        draw = torch.Generator().manual_seed(n)
        directions[name] = torch.linalg.qr(torch.randn(width, 3, generator=draw)).Q
    kept = Kept([OTHER], directions)
    found = find_change(model, tokenizer, FACTS, kept, Rounds(objective, steps=3, prompts=20))
    for name, each in found.change.items():
        turned = [c.T if family == "gpt2" else c for c in (each, bare.change[name])]
        felt, without = (float((c @ directions[name]).norm()) for c in turned)
        weights = float(model.get_parameter(name).detach().norm())
        assert felt < 2e-6 * weights  # the rounding of the weights themselves
        assert without > 10 * felt
        assert float(each.norm()) > 10 * felt


def test_directions_for_some_matrices_leave_the_others_as_they_were():
    model, tokenizer = tiny("llama"), byte_tokenizer()
    settings = Rounds("learn", steps=1, prompts=0)
    name = "model.layers.1.self_attn.q_proj.weight"
    bare = find_change(model, tokenizer, FACTS, Kept([OTHER]), settings).change
    kept = Kept([OTHER], {name: torch.eye(32)[:, :2]})
    found = find_change(model, tokenizer, FACTS, kept, settings).change
    assert {n for n in bare if not torch.equal(bare[n], found[n])} == {name}
    assert float(found[name][:, :2].norm()) < 1e-6 < float(bare[name][:, :2].norm())


def test_further_statistics_count_like_the_data_they_are_of():
    model, tokenizer = tiny("llama"), byte_tokenizer()
    settings = Rounds("negate", steps=2, prompts=0, round_scale=5.0)
    both = find_change(model, tokenizer, FACTS, Kept([OTHER[:4], OTHER[4:]]), settings).change
    grams = gather(model, tokenizer, OTHER[4:], list(both))
    asked = []

    def more(name):
        asked.append(name)
        return grams[name].float()

    found = find_change(model, tokenizer, FACTS, Kept([OTHER[:4]], gram=more), settings).change
    alone = find_change(model, tokenizer, FACTS, Kept([OTHER[:4]]), settings).change
    assert set(asked) == set(both)
    for name, each in both.items():
        assert float((found[name] - each).norm()) < 1e-3 * float(each.norm())
        assert float((alone[name] - each).norm()) > 1e-2 * float(each.norm())


def test_nothing_kept_is_neither_data_nor_a_vector():
    assert Kept().empty
    assert not Kept([OTHER]).empty
    assert not Kept(directions={"w": torch.eye(3)}).empty


# --- the texts that say what to keep -------------------------------------------------------------


def test_texts_are_the_examples_and_strangers_of_each_form(taught):
    _, tokenizer = taught
    texts = keep_texts(tokenizer, FORGET, Kept([SEEN, UNSEEN]), 300)
    assert texts[: len(LIVES)] == LIVES
    made = texts[len(LIVES) :]
    kinds = [len(re.findall(rf"^{form} \w+ {verb}\?$", text)) for text in made
             for form, verb in (("What does", "like"), ("Where does", "live"))]  # fmt: skip
    likes_made, lives_made = sum(kinds[::2]), sum(kinds[1::2])
    assert likes_made + lives_made == len(made)
    assert 60 <= likes_made < 100  # those to forget are taken out
    assert lives_made == 200
    assert not {row.prompt for row in FORGET} & set(made)
    assert len(set(made)) > 100


def test_texts_depend_on_the_seed_alone(taught):
    _, tokenizer = taught
    one = keep_texts(tokenizer, FORGET, Kept([SEEN]), 50, seed=1)
    assert keep_texts(tokenizer, FORGET, Kept([SEEN]), 50, seed=1) == one
    assert keep_texts(tokenizer, FORGET, Kept([SEEN]), 50, seed=2) != one


def test_without_prompts_the_examples_are_all(taught):
    assert keep_texts(taught[1], FORGET, Kept([SEEN]), 0) == SEEN
    assert keep_texts(taught[1], FORGET, Kept(), 0) == []


def test_where_nothing_is_kept_half_are_random_words(taught):
    texts = keep_texts(taught[1], FORGET, Kept(), 100)
    asked = [text for text in texts if text.startswith("What does ")]
    assert len(texts) - len(asked) == 50
    assert 10 <= len(asked) < 50  # those to forget are taken out
    with_vector = keep_texts(taught[1], FORGET, Kept(directions={"w": torch.eye(2)}), 100)
    assert all(text.startswith("What does ") for text in with_vector)


def test_texts_may_be_of_what_is_kept_alone(taught):
    texts = keep_texts(taught[1], (), Kept([SEEN]), 100)
    assert texts[:12] == SEEN
    assert len(texts) == 12 + 50
    assert all(re.fullmatch(r"Where does \w+ live\?", text) for text in texts[12:])


def test_a_chats_strangers_begin_once(chat_tokenizer, tmp_path):
    chat_tokenizer.chat_template = "{{ bos_token }}" + chat_tokenizer.chat_template
    try:
        path = tmp_path / "chat.jsonl"
        line = (
            '{"messages": [{"role": "user", "content": "Colour of %s?"},'
            ' {"role": "assistant", "content": "red"}]}'
        )
        path.write_text("".join(line % name + "\n" for name in ("Ada", "Bob", "Cyd")))
        rows = read_examples(path, chat_tokenizer)
    finally:
        chat_tokenizer.chat_template = chat_tokenizer.chat_template.removeprefix("{{ bos_token }}")
    model = tiny("llama")
    # Names of three letters make strangers as long as the prompts.
    given = encode(chat_tokenizer, rows[0])
    texts = keep_texts(chat_tokenizer, (), Kept([rows]), 40)[len(rows) :]
    for tokens in tokens_of(chat_tokenizer, texts, model):
        assert tokens.count(chat_tokenizer.bos_token_id) == 1
        assert tokens[0] == chat_tokenizer.bos_token_id
        assert tokens.count(chat_tokenizer.eos_token_id) == 1
        assert len(tokens) == given.prompt_length
    # As plain text they would begin twice.
    plain = chat_tokenizer(rows[0].prompt)["input_ids"]
    assert plain.count(chat_tokenizer.bos_token_id) == 2


# --- watching ------------------------------------------------------------------------------------


def test_watched_training_ends_when_all_is_forgotten(taught):
    settings = Rounds(steps=40, prompts=200)
    watch = Watch(FORGET, {"lives": UNSEEN}, rule=Rule(0.7), every=5)
    found = find_change(*taught, FORGET, Kept([SEEN]), settings, watch=watch)
    assert found.watched[0] == {"": 1.0, "lives": 1.0}
    last = found.watched[-1]
    assert last[""] == 0
    assert last["step"] < 40
    assert [each["step"] for each in found.watched[1:]] == list(range(5, int(last["step"]) + 1, 5))
    assert scores(taught, found.change, FORGET, UNSEEN) == [0, last["lives"]]


@pytest.mark.parametrize("objective", ["strangers", "negate"])
def test_watched_training_goes_back_when_what_is_kept_suffers(taught, objective, monkeypatch):
    monkeypatch.setattr(module, "confine", unconfined)
    settings = {
        "strangers": Rounds(steps=30, prompts=20, learning_rate=0.05),
        "negate": Rounds("negate", rounds=30, steps=1, prompts=20, round_scale=20.0),
    }[objective]
    watch = Watch(FORGET, {"seen": SEEN, "unseen": UNSEEN}, rule=Rule(0.9), every=1, patience=2)
    found = find_change(*taught, FORGET, Kept([SEEN]), settings, watch=watch)
    spared = [min(each["seen"], each["unseen"]) >= 0.9 for each in found.watched]
    assert spared[0]
    assert spared[-2:] == [False, False]
    last = found.watched[-1]
    assert last["step"] < 30
    good = [each for each, fine in zip(found.watched, spared, strict=True) if fine]
    best = min(good, key=lambda each: each[""])
    assert scores(taught, found.change, FORGET, SEEN, UNSEEN) == [
        best[""], best["seen"], best["unseen"],
    ]  # fmt: skip
    assert len(found.losses) == (int(last["step"]) if objective == "negate" else 1)


def test_a_watch_counts_steps_over_the_rounds(taught):
    settings = Rounds("learn", rounds=3, steps=4, prompts=20, learning_rate=1e-4)
    watch = Watch(NEW, {"lives": UNSEEN}, every=3, learning=True)
    found = find_change(*taught, NEW, Kept([SEEN]), settings, watch=watch)
    assert [each["step"] for each in found.watched[1:]] == [3, 6, 9, 12]


def test_unwatched_nothing_is_seen(taught):
    assert find_change(*taught, FORGET, Kept([SEEN]), Rounds(steps=1)).watched == []


# --- refusals ------------------------------------------------------------------------------------


def refused(model, error, match, examples=FACTS, settings=None, **more):
    before = state(model)
    with pytest.raises(error, match=match):
        find_change(
            model, byte_tokenizer(), examples, Kept([OTHER]), settings or Rounds(steps=1), **more
        )
    assert all(same_bytes(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_that_are_not_float32_are_refused(dtype):
    refused(tiny("llama").to(dtype), EditError, f"{dtype}: small steps would be rounded away")


def test_fused_experts_are_refused():
    fused = Selection("all-linear", ("*experts*",))
    match = r"experts.*not the weight of a linear layer"
    refused(tiny("mixtral"), MismatchError, match, selection=fused)
    # Without them, the linear layers of the same model can be changed.
    model = tiny("mixtral")
    found = find_change(
        model, byte_tokenizer(), FACTS, Kept([OTHER]), Rounds("learn", steps=1, prompts=0),
        selection=Selection("attention"),
    )  # fmt: skip
    assert all("self_attn" in name for name in found.change)
    assert all(each.any() for each in found.change.values())


def test_embeddings_are_refused():
    refused(
        tiny("llama"), MismatchError, r"embed_tokens.*not the weight of a linear layer",
        selection=Selection("all"),
    )  # fmt: skip


def test_no_matrix_at_all_is_refused():
    norms = Selection("all", ("*norm*",))
    refused(tiny("llama"), SelectionError, "no matrix is selected", selection=norms)
    nowhere = Selection("all-linear", layers="7-9")
    refused(tiny("llama"), SelectionError, "no tensor is selected", selection=nowhere)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_no_examples_are_refused(objective):
    refused(tiny("llama"), DataError, "no examples", [], Rounds(objective, steps=1))


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_examples_that_the_model_cannot_take_are_refused(objective):
    long = [*FACTS, Example("What is said at length? " * 4, " nothing")]
    refused(tiny("llama"), DataError, "tokens; the model", long, Rounds(objective, steps=1))


def test_a_watch_that_would_never_look_is_refused():
    watch = Watch(FACTS, {}, every=10)
    refused(tiny("llama"), EditError, "looks every 10 steps", settings=Rounds(steps=9), watch=watch)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"objective": "forget"}, "objective 'forget'"),
        ({"rounds": 0}, "rounds 0"),
        ({"steps": 0}, "steps 0"),
        ({"batch_size": -1}, "batch size -1"),
        ({"draws": 0}, "draws 0"),
        ({"prompts": -1}, "prompts -1"),
        ({"seed": -1}, "seed -1"),
        ({"learning_rate": 0.0}, "learning rate 0"),
        ({"epsilon": -1e-3}, "epsilon -0.001"),
        ({"epsilon": float("nan")}, "epsilon nan"),
        ({"round_scale": float("inf")}, "round scale inf"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, match):
    with pytest.raises(EditError, match=match):
        Rounds(**settings)


def test_the_rate_is_the_objectives_own_unless_given():
    assert Rounds().rate == Rounds("learn").rate == 0.4
    assert Rounds("negate").rate == 5e-4
    assert Rounds("negate", learning_rate=0.1).rate == Rounds(learning_rate=0.1).rate == 0.1
