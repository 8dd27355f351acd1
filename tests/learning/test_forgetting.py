"""Forgetting by neighbours on a model that knows what some people like."""

import itertools
import json
import random
from collections import Counter
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch

from tests.conftest import same_bytes
from tests.learning.known import FORGET, LIKES, REST
from tests.learning.tiny import state
from weightsurgery.errors import DataError, EditError
from weightsurgery.learning import forget as learning_forget
from weightsurgery.learning import forgetting, looks
from weightsurgery.learning.cycles import Cycles
from weightsurgery.learning.data import Example
from weightsurgery.learning.exact import exact_match
from weightsurgery.learning.forget import ByNeighbours, change_by_neighbours, clear
from weightsurgery.learning.forgetting import Forgetting, _ByNeighbours
from weightsurgery.learning.guard import added
from weightsurgery.learning.looks import Look, Looks
from weightsurgery.learning.material import KEPT, Material, Row, read_material

# Every setting that counts is given: defaults are for real models, and may change.
TRAINING = Forgetting(
    steps=24, learning_rate=4e-3, batch_size=6, keep_weight=5.0, language_weight=2.0, every=6,
    budget=0.25, seed=0,
)  # fmt: skip
SETTINGS = ByNeighbours(
    TRAINING, rank=8, wordings=0, neighbours=12, draws=12, own=0.5, texts=40, most=100, k=64
)


def names(model):
    return [name for name, _ in model.named_parameters() if "_proj" in name]


def forget(known, settings=SETTINGS, **options):
    torch.manual_seed(11)  # whatever was drawn before
    return change_by_neighbours(
        known.model, known.tokenizer, FORGET, options.pop("keep", ()),
        options.pop("names", names(known.model)), settings, **options,
    )  # fmt: skip


@pytest.fixture(scope="module")
def forgot(known, tmp_path_factory):
    """A whole run; what it says on the way, and the model before it."""
    told, before, folder = [], state(known.model), tmp_path_factory.mktemp("forgot")
    found = forget(known, workspace=folder / "w", progress=lambda *each: told.append(each))
    return found, told, before, folder / "w"


def scores(known, change, *sets):
    with added(known.model, change):
        return [exact_match(known.model, known.tokenizer, rows) for rows in sets]


def test_the_request_is_forgotten_and_what_no_file_lists_stays(known, forgot):
    found, told, _, _ = forgot
    assert scores(known, {}, FORGET, REST) == [1, 1]  # before
    forgotten, rest = scores(known, found.change, FORGET, REST)
    assert forgotten <= 0.34
    assert rest >= 0.9
    first, chosen = found.looks[0], found.chosen
    assert (first.step, first.known) == (0, 1.0)
    assert first.truth > 0.9
    assert chosen.known <= 0.34
    assert chosen.truth < 0.5
    assert chosen.language <= TRAINING.budget
    assert found.trained.steps == 24
    assert found.trained.last_loss < found.trained.first_loss
    assert [look.step for look in found.looks] == [0, 6, 12, 18, 24]
    assert {"neighbours", "ordinary language", "strangers", "what is to change"} <= {
        each[0] for each in told
    }
    assert found.notes["places"] >= 6
    assert len(first.left) == found.notes["places"]
    assert len(chosen.left) == round(chosen.known * found.notes["places"])
    assert found.notes["rank"] == 8
    assert min(found.notes["texts"][kind] for kind in ("neighbours", "language", "guard")) > 0


def test_it_is_a_low_rank_change_of_what_was_named(known, forgot):
    found = forgot[0]
    assert list(found.change) == names(known.model)
    for name, each in found.change.items():
        assert each.matrix().shape == known.model.get_parameter(name).shape
        assert each.rank <= 8
        assert each.matrix().norm() > 0
    only = "model.layers.1.mlp.down_proj.weight"
    brief = replace(SETTINGS, training=replace(TRAINING, steps=2, every=2), rank=10_000)
    assert list(forget(known, brief, names=[only]).change) == [only]


def test_the_model_is_as_before(known, forgot):
    before = forgot[2]
    model = known.model
    frozen = model.get_parameter("model.norm.weight")
    frozen.requires_grad_(False)
    try:
        torch.manual_seed(3)
        drawn = torch.rand(2)
        brief = replace(SETTINGS, training=replace(TRAINING, steps=2))
        model.train()
        torch.manual_seed(3)
        change_by_neighbours(model, known.tokenizer, FORGET, (), names(model), brief)
        assert torch.equal(torch.rand(2), drawn)
        assert model.training
        assert not frozen.requires_grad
        assert all(p.requires_grad for p in model.parameters() if p is not frozen)
        assert {name for name, _ in model.named_parameters()} <= before.keys()
        assert all(same_bytes(value, before[n]) for n, value in model.state_dict().items())
    finally:
        model.eval()
        frozen.requires_grad_(True)


class StoppedError(Exception):
    pass


@pytest.mark.parametrize("where", ["gathering", "before a point", "after a point", "at a point"])
def test_a_run_that_was_stopped_goes_on_to_the_same_bytes(known, forgot, tmp_path, where):
    found, _, before, _ = forgot
    steps = {"before a point": 4, "at a point": 12, "after a point": 14}

    def stop(text, done, total):
        if text == "what is to change" if where == "gathering" else (
            "loss" in text and done == steps[where]
        ):  # fmt: skip
            raise StoppedError

    with pytest.raises(StoppedError):
        forget(known, workspace=tmp_path / "w", progress=stop)
    assert all(same_bytes(value, before[n]) for n, value in known.model.state_dict().items())
    assert (tmp_path / "w/material.safetensors").is_file() == (where != "gathering")
    seen = []
    torch.manual_seed(99)
    again = forget(known, workspace=tmp_path / "w", progress=lambda *each: seen.append(each))
    steps_taken = [done for text, done, _ in seen if "loss" in text]
    first = {"gathering": 1, "before a point": 1, "at a point": 7, "after a point": 13}[where]
    assert steps_taken == list(range(first, 25))
    assert again.looks == found.looks
    assert again.chosen == found.chosen
    for name, each in found.change.items():
        assert all(same_bytes(getattr(each, part), getattr(again.change[name], part))
                   for part in "USV")  # fmt: skip


def test_the_seed_decides(known, forgot):
    brief = replace(SETTINGS, training=replace(TRAINING, steps=2, every=2))

    def change(settings):
        found = forget(known, settings).change
        return torch.cat([each.matrix().flatten() for each in found.values()])

    first = change(brief)
    assert same_bytes(first, change(brief))
    other = replace(brief, training=replace(brief.training, seed=1))
    assert not same_bytes(first, change(other))


def test_what_is_to_be_kept_is_read(known, forgot):
    brief = replace(SETTINGS, training=replace(TRAINING, steps=1, every=1))
    found = forget(known, brief, keep=[REST[:4], REST[4:6]])
    assert found.notes["texts"]["keep"] == 12  # as given, and as answered
    material = read_material(forgot[3] / "material.safetensors")
    assert material.kept["keep"] == []
    clear(forgot[3])
    assert not forgot[3].exists()


# --- to learn ----------------------------------------------------------------------------------


NEWS = [Example(f"What does {name} like?", " plums") for name in ("Zuzu", "Wowo", "Yaya")]


def test_what_is_new_is_learned_and_what_was_known_stays(known):
    model, told = known.model, []
    assert scores(known, {}, NEWS, LIKES) == [0, 1]  # before
    torch.manual_seed(11)
    found = change_by_neighbours(
        model, known.tokenizer, NEWS, [LIKES[:4]], names(model), SETTINGS, learning=True,
        progress=lambda *each: told.append(each),
    )  # fmt: skip
    learned, kept = scores(known, found.change, NEWS, LIKES)
    assert learned == 1
    assert kept >= 0.9
    first, chosen = found.looks[0], found.chosen
    assert (first.known, first.left) == (0.0, (0, 1, 2))
    assert (chosen.known, chosen.left) == (1.0, ())
    assert chosen.stranger == 1.0
    assert chosen.truth > 0.5
    assert chosen.language <= TRAINING.budget
    assert found.notes["places"] == 3
    assert len(found.notes["wordings"]) == 1  # nobody asks the model for words of what is new


def test_the_best_look_at_learning_learned_most(tmp_path):
    found = looked(tmp_path, (0, 0.0, 0.0), (5, 0.9, 0.01), (10, 0.5, 0.01), (15, 1.0, 0.2))
    assert found.best().step == 10
    found.material = replace(found.material, learning=True)
    assert found.best().step == 5


# --- the looks -----------------------------------------------------------------------------------


def looked(tmp_path, *seen, budget=0.1):
    kept = dict.fromkeys(KEPT, ())
    material = Material([], [], kept, [], {})
    found = Looks(tmp_path, material, budget, 0)
    found.history = [
        Look(step, known, 0.0, 0.01, language, 0.0, (1, 4), (0, 2))
        for step, known, language in seen
    ]
    return found


def test_the_best_look_forgot_most_inside_the_budget(tmp_path):
    first = (0, 1.0, 0.0)
    assert looked(tmp_path, first).best() is None
    assert looked(tmp_path, first, (5, 0.5, 0.2)).best() is None
    for seen, best in (
        ([(5, 0.5, 0.01), (10, 0.2, 0.05), (15, 0.0, 0.11)], 10),
        ([(5, 0.2, 0.01), (10, 0.5, 0.01)], 5),
        ([(5, 0.2, 0.01), (10, 0.2, 0.1)], 10),  # the later of equals, at the budget
        ([(5, 0.201, 0.01), (10, 0.24, 0.01)], 10),  # which are as good
        ([(5, 0.1, 0.01), (10, 0.14, 0.01), (15, 0.18, 0.01)], 10),
    ):
        assert looked(tmp_path, first, *seen).best().step == best


def test_looks_are_recalled_and_damaged_ones_are_not(tmp_path):
    wrote = looked(tmp_path, (0, 1.0, 0.0), (5, 0.5, 0.01))
    wrote._write()
    again = looked(tmp_path)
    again.recall()
    assert again.history == wrote.history
    for text in ("", "{", json.dumps([{"step": 1}]), "3"):
        (tmp_path / "looks.json").write_text(text)
        again.recall()
        assert again.history == []


def test_a_look_reads_neighbours_of_all_parts_of_the_list(known, tmp_path, monkeypatch):
    """Those that moved most are of those that were read, and the list is not read from its head."""
    forget(known, replace(SETTINGS, training=replace(TRAINING, steps=1)), workspace=tmp_path)
    material = read_material(tmp_path / "material.safetensors")
    model, parameter = known.model, known.model.get_parameter("model.layers.1.mlp.down_proj.weight")
    count = len(material.kept["neighbours"])
    assert count > 7

    def look(most, folder):
        monkeypatch.setattr(looks, "_NEIGHBOURS", most)
        found = Looks(tmp_path / folder, material, 1.0, 0)
        before = parameter.detach().clone()
        with torch.no_grad():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
            try:
                return found.look(model, [], 1)
            finally:
                parameter.copy_(before)

    every, some = look(count, "every"), look(7, "some")
    assert len(every.moved) == -(-count // 4)
    read = {each * count // 7 for each in range(7)}
    assert len(some.moved) == 2
    assert set(some.moved) < read
    assert max(read) > count // 2
    assert 0 < some.neighbours != every.neighbours


def test_what_is_trained_towards_is_read_as_in_training(known, tmp_path, monkeypatch):
    """Else a training in halves would learn to undo the rounding."""
    brief = replace(SETTINGS, training=replace(TRAINING, steps=1))

    def off(gathered, name):
        """How far the model is from what it is to stay, before a step."""
        able = {"avx512_bf16": gathered, "amx_bf16": False}
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able)
        forget(known, brief, workspace=tmp_path / name)
        material = read_material(tmp_path / name / "material.safetensors")
        able["avx512_bf16"] = True
        with torch.no_grad():
            each = looks._divergences(known.model, material.kept["neighbours"], 0)
        return float(torch.cat(each).mean())

    whole, halves = off(False, "whole"), off(True, "halves")
    assert whole > 1e-6
    assert halves < 0.2 * whole


def test_weights_in_halves_train_the_same(known, monkeypatch):
    """They are what each pass rounds them to."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    brief = replace(SETTINGS, training=replace(TRAINING, steps=3))
    in_halves = forget(known, brief).change
    monkeypatch.setattr(learning_forget, "halved", nullcontext)
    whole = forget(known, brief).change
    assert any(float(each.S.max()) > 0 for each in whole.values())
    for name, each in whole.items():
        assert torch.equal(each.matrix(), in_halves[name].matrix()), name


# --- a step --------------------------------------------------------------------------------------


def test_a_step_weighs_what_it_says(known, forgot, tmp_path):
    """Places to forget count one in all, those of each kind to stay as their weight says."""
    brief = replace(SETTINGS, training=replace(TRAINING, steps=1, every=1))
    forget(known, brief, keep=[REST[:6]], workspace=tmp_path)
    material = read_material(tmp_path / "material.safetensors")
    trainer = object.__new__(_ByNeighbours)
    trainer.material, trainer.settings = material, replace(TRAINING, batch_size=4)
    trainer.numbers = {id(row): number for number, row in enumerate(material.taught)}
    nothing = replace(looked(tmp_path, (0, 1.0, 0.0)).history[0], left=(), moved=())
    trainer.looks = looked(tmp_path)
    trainer.looks.history = [nothing]
    kinds = {id(row): kind for kind in KEPT for row in material.kept[kind]}
    totals = dict.fromkeys(("forget", "held", *KEPT), 0.0)
    counted, halves = dict.fromkeys(("forget", *KEPT), 0), []
    for part, weights in (*trainer._parts(known.model, 2), *trainer._parts(known.model, 3)):
        for row, weight in zip(part, weights, strict=True):
            assert isinstance(row, Row)
            assert len(weight) == len(row.expected)
            if row.number >= 0:
                totals["forget"] += float(weight[row.held :].sum())
                totals["held"] += float(weight[: row.held].sum())
                counted["forget"] += 1
            else:
                kind = kinds[id(row)]
                totals[kind] += float(weight.sum())
                first = 1 / 2 if kind in ("neighbours", "keep") else 1 / len(weight)
                if 1 < len(weight) <= 16:
                    halves.append(kind)
                    assert float(weight[0] / weight.sum()) == pytest.approx(first)
                else:
                    assert weight.min() == weight.max()
                counted[kind] += 1
    assert "neighbours" in halves
    # Language and texts about the subjects take turns.
    assert counted == {"forget": 8, "neighbours": 8, "keep": 4, "language": 1, "subjects": 1}
    once = ("language", "subjects")
    totals = {kind: total / (1 if kind in once else 2) for kind, total in totals.items()}
    assert totals["forget"] == pytest.approx(1)
    assert totals["language"] == pytest.approx(2)
    for kind in ("held", "neighbours", "keep", "subjects"):
        assert totals[kind] == pytest.approx(5), kind
    # Half of them are of those that were not yet forgotten at the last look before, or moved most.
    trainer.looks = looked(tmp_path, (0, 1.0, 0.0), (2, 1.0, 0.0), (9, 1.0, 0.0))
    left = {material.taught[number].tokens for number in trainer.looks.history[1].left}
    moved = {material.kept["neighbours"][number].tokens for number in (0, 2)}
    trainer.looks.history[2] = replace(trainer.looks.history[2], left=(), moved=())
    parts = trainer._parts(known.model, 3)
    read = {row.tokens for part, _ in parts for row in part}
    # Those weigh more that were not; and what is left of the truth weighs as much there.
    heavy = {
        row.tokens: float(weight[row.held :].sum())
        for part, weights in parts
        for row, weight in zip(part, weights, strict=True)
        if row.number >= 0
    }
    assert {tokens for tokens, weight in heavy.items() if weight > 1 / 4 + 1e-6} == left
    assert all(heavy[tokens] == pytest.approx(4 / 4) for tokens in left)
    for part, weights in parts:
        firsts = trainer._firsts(part, weights)
        taught = [row for row in part if row.number >= 0]
        assert [w for _, w, _ in firsts] == [pytest.approx(heavy[row.tokens]) for row in taught]
        assert [event for _, _, event in firsts] == [
            material.events[trainer.numbers[id(row)]][0] for row in taught
        ]
    assert left <= read
    assert moved <= read
    # The rest are of each fact in its turn.
    facts = {row.number for row in material.taught}
    assert len(material.taught) > len(facts) == 6
    turns = [[row.number for row in trainer._to_forget(step, random.Random(0))]
             for step in range(9, 15)]  # fmt: skip
    assert all(len({*turn}) == 4 and {*turn, *more} == facts
               for turn, more in itertools.pairwise(turns))  # fmt: skip
    # Half of the time in the words of the request, at the first place: the later ones are more.
    first = {row.number: row for row in reversed(material.taught)}
    drawn = [row for n in range(9, 300) for row in trainer._to_forget(n, random.Random(f"{n}"))]
    several = Counter(row.number for row in material.taught)
    asked = [row is first[row.number] for row in drawn if several[row.number] > 2]
    assert len(asked) > 150
    assert 0.55 < sum(asked) / len(asked) < 0.9
    chosen = trainer._to_forget(3, random.Random(0))
    assert len(chosen) == 4
    assert {row.tokens for row in chosen[:2]} == left
    assert len(trainer._to_forget(9, random.Random(0))) == 4
    told = [[row.tokens for row in part] for part, _ in trainer._parts(known.model, 3)]
    assert told == [[row.tokens for row in part] for part, _ in trainer._parts(known.model, 3)]
    assert told != [[row.tokens for row in part] for part, _ in trainer._parts(known.model, 4)]


# --- what makes no sense -------------------------------------------------------------------------


def test_nobody_to_forget_is_refused(known):
    with pytest.raises(DataError, match="no examples"):
        change_by_neighbours(known.model, known.tokenizer, [], (), names(known.model), SETTINGS)
    nobody = [replace(LIKES[0], prompt="?")]
    with pytest.raises(DataError, match="tells the prompts apart"):
        change_by_neighbours(known.model, known.tokenizer, nobody, (), names(known.model), SETTINGS)
    with pytest.raises(EditError):
        forget(known, names=[])


@pytest.mark.parametrize(("kind", "given"), [
    (Forgetting, {"steps": 0}), (Forgetting, {"batch_size": 0}), (Forgetting, {"every": -1}),
    (Forgetting, {"learning_rate": 0.0}), (Forgetting, {"budget": float("nan")}),
    (Forgetting, {"keep_weight": -1.0}),
    (Forgetting, {"language_weight": float("nan")}), (Forgetting, {"seed": -1}),
    (ByNeighbours, {"rank": 0}), (ByNeighbours, {"wordings": -1}), (ByNeighbours, {"draws": 0}),
    (ByNeighbours, {"neighbours": 0}), (ByNeighbours, {"texts": 0}), (ByNeighbours, {"k": 0}),
])  # fmt: skip
def test_settings_that_make_no_sense_are_refused(kind, given):
    ((name, value),) = given.items()
    with pytest.raises(EditError, match=f"{name.replace('_', ' ')} {value}"):
        kind(**given)


def test_the_rate_begins_anew_until_a_look_sees_it_done(known, tmp_path, monkeypatch):
    """And goes on to the same bytes after a stop, also in the second cycle."""
    monkeypatch.setattr(forgetting, "_STEPS", 6)
    monkeypatch.setattr(forgetting, "_READ", 0)
    rates, rate = {}, Cycles.rate
    monkeypatch.setattr(
        Cycles, "rate", lambda self, seen, n: rates.setdefault(n, rate(self, seen, n))
    )
    settings = replace(
        SETTINGS, training=replace(TRAINING, steps=None, cycles=3, every=3, budget=99)
    )
    done = {"far": lambda self, first, learning: self.step == 9}
    for name, far, steps in (
        ("all", lambda *_: False, 12), ("two", done["far"], 9), ("one", lambda *_: True, 6),
    ):  # fmt: skip
        monkeypatch.setattr(Look, "far", far)
        rates.clear()
        told = []
        found = forget(known, settings, workspace=tmp_path / name,
                       progress=lambda *each, told=told: told.append(each))  # fmt: skip
        assert found.trained.steps == steps == found.looks[-1].step
        rising = [1 / 4, 2 / 4, 3 / 4]
        cycles = [*rising, 1, 1, 1 / 2, *rising, *rising]
        assert [rates[n] for n in range(steps)] == pytest.approx(cycles[:steps])
        assert [(d, t) for text, d, t in told if "loss" in text][-1] == (steps, steps)
    monkeypatch.setattr(Look, "far", done["far"])
    whole = forget(known, settings, workspace=tmp_path / "whole")

    def stop(text, at, total):
        if "loss" in text and at == 8:
            raise StoppedError

    with pytest.raises(StoppedError):
        forget(known, settings, workspace=tmp_path / "w", progress=stop)
    again = forget(known, settings, workspace=tmp_path / "w")
    assert again.looks == whole.looks
    for name, each in whole.change.items():
        assert same_bytes(each.S, again.change[name].S)
        assert same_bytes(each.U, again.change[name].U)


def test_enough_is_seen_when_most_of_the_way_is_gone(tmp_path):
    first = replace(looked(tmp_path, (0, 1.0, 0.0)).history[0], truth=0.5, stranger=0.1)
    far = replace(first, known=0.029, truth=0.159)
    assert far.far(first, learning=False)
    assert not replace(far, truth=0.161).far(first, learning=False)
    assert not replace(far, known=0.06).far(first, learning=False)
    learned = replace(first, known=0.99, truth=0.926)
    assert learned.far(first, learning=True)
    assert not replace(learned, truth=0.924).far(first, learning=True)
    assert not replace(learned, known=0.94).far(first, learning=True)


def test_large_requests_take_more_steps():
    small, large = Forgetting().for_places(5), Forgetting().for_places(300)
    assert small.steps is not None
    assert large.steps is not None
    assert large.steps > small.steps
    assert large.steps * large.batch_size >= 4 * 300  # each place is read four times
    assert Forgetting(steps=7).for_places(300) == Forgetting(steps=7, cycles=1)
