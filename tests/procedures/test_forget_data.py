"""Edits that forget by neighbours: killed and gone on with, harmful, as adapters, and again."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tests.conftest import read_tensors, same_bytes, snapshot
from tests.learning.killed import killed
from tests.learning.known import FORGET, REST
from tests.learning.tiny import write
from weightsurgery.algebra.lowrank import Rank
from weightsurgery.checkpoint.reader import Checkpoint
from weightsurgery.checkpoint.record import verify
from weightsurgery.checkpoint.selection import Selection
from weightsurgery.errors import EditError, HarmError
from weightsurgery.learning.exact import score_checkpoint
from weightsurgery.learning.forget import ByNeighbours
from weightsurgery.learning.forgetting import Forgetting
from weightsurgery.learning.rounds import Rounds
from weightsurgery.procedures.unlearn import Output, Search, Sources, plan, unlearn
from weightsurgery.surgery.apply import AdapterStorage, apply
from weightsurgery.surgery.edits import Negate
from weightsurgery.vectors.sources import open_vector

# Every setting that counts is given: defaults are for real models, and may change.
SETTINGS = ByNeighbours(
    Forgetting(steps=24, learning_rate=4e-3, batch_size=6, keep_weight=5.0, language_weight=2.0,
               every=6),
    rank=8, wordings=0, neighbours=12, draws=12, own=0.5, texts=40, k=64,
)  # fmt: skip
SEARCH = Search(neighbours=SETTINGS, budget=0.3)
BRIEF = Search(
    neighbours=replace(
        SETTINGS, training=replace(SETTINGS.training, steps=3, every=2), texts=8, neighbours=4
    ),
    budget=0.3,
    allow_harm=True,
)

KILLED = """
from tests.procedures.test_forget_data import SEARCH, edit
edit(*sys.argv[1:], SEARCH, progress=strike)
"""


ALL = Selection("all-linear")


def edit(base, forget, out, search, selection=ALL, **options):
    with Checkpoint.open(base) as opened:
        return unlearn(
            opened, Sources((str(forget),)), out, search,
            selection=selection, device="cpu", **options,
        )  # fmt: skip


def test_to_forget_the_ends_of_mlps_are_changed_alone(given, tmp_path):
    base, forget = given
    before = read_tensors(base)
    changed = {}
    for name, selection in (("all", ALL), ("default", None)):
        edit(base, forget, tmp_path / name, BRIEF, selection)
        after = read_tensors(tmp_path / name)
        changed[name] = {each for each in before if not same_bytes(before[each], after[each])}
    assert any(".self_attn." in each for each in changed["all"])
    assert changed["default"] == {each for each in changed["all"] if "down_proj" in each} != set()
    # To learn takes all linear layers.
    assert Search(Rounds(objective="learn"), BRIEF.neighbours).targets == "all-linear"


@pytest.fixture(scope="module")
def given(known, tmp_path_factory):
    """The model as a checkpoint in two shards, and what is to be forgotten."""
    place = tmp_path_factory.mktemp("given")
    known.model.save_pretrained(place / "base", max_shard_size="200KB")
    known.tokenizer.save_pretrained(place / "base")
    assert len(list((place / "base").glob("*.safetensors"))) > 1
    return place / "base", write(place / "forget.jsonl", FORGET)


@pytest.fixture(scope="module")
def done(given, tmp_path_factory):
    """A whole run."""
    out = tmp_path_factory.mktemp("done") / "out"
    return edit(*given, out, SEARCH), out


def test_the_output_forgets_and_its_records_tell_how(given, done, tmp_path):
    made, out = done
    base, forget = given
    rest = write(tmp_path / "rest.jsonl", REST)
    sets = {"forget": str(forget), "rest": str(rest)}
    assert score_checkpoint(base, sets) == {"forget": 1, "rest": 1}
    after = score_checkpoint(out, sets)
    assert after["forget"] <= 0.34
    assert after["rest"] >= 0.9
    record, vector = verify(out), verify(made.place)
    for found in (record.parameters, vector.parameters):
        assert (found["edit"], found["objective"], found["budget"]) == (
            "project",
            "neighbours",
            0.3,
        )
        assert (found["lora_rank"], found["neighbours"], found["steps"]) == (8, 12, 24)
        assert found["keep_weight"] == 5.0
    summary = vector.summary
    assert summary["looks"][0]["known"] == 1
    (kept,) = [look for look in summary["looks"] if look["step"] == summary["steps"]]
    assert kept["known"] <= 0.34
    assert summary["guard"]["answered"]["forget"][0] == 1
    assert summary["guard"]["answered"]["forget"][1] <= 0.34
    assert summary["guard"]["inside"]
    assert "peft" in vector.versions
    assert set(read_tensors(made.place)) == {
        f"{name}::{part}" for name in vector.tensors for part in "USV"
    }
    assert {each["rank"] for each in vector.tensors.values()} == {8}


def test_negation_of_the_saved_vector_writes_the_same_bytes(given, done, tmp_path):
    made, out = done
    with Checkpoint.open(given[0]) as base:
        apply(Negate(open_vector(base, [str(made.place)])), base, tmp_path / "negated")
    edited, negated = snapshot(out), snapshot(tmp_path / "negated")
    assert edited.pop("weightsurgery.json") != negated.pop("weightsurgery.json")
    assert edited == negated
    assert edited != snapshot(given[0])


@pytest.mark.parametrize(("kills", "resumed"), [([9], 7), ([5, 20], 19)])
def test_a_killed_run_goes_on_to_the_same_bytes(given, done, tmp_path, kills, resumed):
    """Killed for real, once or twice, in mid-training."""
    for when in kills:
        killed(KILLED, *given, tmp_path / "out", when=when)
        assert [each.name for each in tmp_path.iterdir()] == [".out.vector.ws-partial"]
    steps = []
    again = edit(
        *given, tmp_path / "out", SEARCH,
        progress=lambda text, at, total: "loss" in text and steps.append(at),
    )  # fmt: skip
    assert steps == list(range(resumed, 25))
    assert sorted(each.name for each in tmp_path.iterdir()) == ["out", "out.vector"]
    made, out = done
    for wrote, whole in ((again.place, made.place), (tmp_path / "out", out)):
        found, wanted = snapshot(wrote), snapshot(whole)
        found.pop("weightsurgery.json"), wanted.pop("weightsurgery.json")
        assert found == wanted
    assert again.vector.summary == made.vector.summary


def test_an_adapter_of_the_rank_that_was_trained(given, done, tmp_path):
    """No rank need be given: the change is of low rank as it is."""
    made, out = done
    options = {"storage": AdapterStorage(dtype="float32"), "vector": made.place}
    with Checkpoint.open(given[0]) as base:
        planned = plan(
            base, Sources((str(given[1]),)), Output(tmp_path / "a", **options), SEARCH, ALL, "cpu"
        )  # fmt: skip
        assert planned.finished
        assert set(planned.edit.summary()["ranks"].values()) == {8}
    adapter = edit(*given, tmp_path / "a", SEARCH, **options)
    assert adapter.reused
    config = json.loads((tmp_path / "a/adapter_config.json").read_text())
    assert config["r"] == 8
    with Checkpoint.open(given[0]) as base:
        from weightsurgery.surgery.edits import Add

        apply(Add(open_vector(base, [str(tmp_path / "a")])), base, tmp_path / "added")
    was, wanted, found = (read_tensors(each) for each in (given[0], out, tmp_path / "added"))
    assert any(not same_bytes(was[name], wanted[name]) for name in was)
    for name in was:
        change = float((wanted[name] - was[name]).norm())
        assert float((found[name] - wanted[name]).norm()) <= 1e-5 * change + 1e-6, name


def test_a_rank_truncates_what_was_trained(given, tmp_path):
    made = edit(*given, tmp_path / "out", replace(BRIEF, rank=Rank(2)))
    assert {each["rank"] for each in made.vector.tensors.values()} == {2}
    assert 0 < made.vector.summary["kept_energy"] < 1


def test_what_harms_is_not_written_unless_that_is_allowed(given, tmp_path):
    """And if it is, in a second run, nothing is trained again."""
    strict = replace(SEARCH, budget=1e-9)
    with pytest.raises(HarmError) as refused:
        edit(*given, tmp_path / "out", strict)
    assert "nothing was forgotten inside the budget" in refused.value.what
    assert "--allow-harm" in refused.value.remedy
    assert [each.name for each in tmp_path.iterdir()] == [".out.vector.ws-partial"]
    steps = []
    made = edit(
        *given, tmp_path / "out", replace(strict, allow_harm=True),
        progress=lambda text, at, total: "loss" in text and steps.append(at),
    )  # fmt: skip
    assert steps == []
    assert sorted(each.name for each in tmp_path.iterdir()) == ["out", "out.vector"]
    assert not made.vector.summary["guard"]["inside"]
    assert made.vector.summary["steps"] == 24
    was, now = (read_tensors(each) for each in (given[0], tmp_path / "out"))
    assert any(not same_bytes(was[name], now[name]) for name in was)


def test_the_guard_looks_at_every_edit_from_data(given, tmp_path):
    from weightsurgery.learning.rounds import Rounds

    wild = Rounds(steps=4, batch_size=6, prompts=20, learning_rate=3.0)
    with pytest.raises(HarmError, match="costs ordinary language"):
        edit(*given, tmp_path / "out", Search(wild))
    assert not Path(tmp_path / "out").exists()
    made = edit(*given, tmp_path / "out", Search(wild, allow_harm=True))
    before, after = made.vector.summary["guard"]["perplexity"]
    assert after > before
    assert not made.vector.summary["guard"]["inside"]


def test_vectors_and_validation_data_are_for_other_objectives(given, done, tmp_path):
    base, forget = given
    other = str(write(tmp_path / "other.jsonl", REST))
    for more in ({"keep": (str(done[0].place),)}, {"validation_keep": (other,)},
                 {"validation_target": other}):  # fmt: skip
        with Checkpoint.open(base) as opened, pytest.raises(EditError) as refused:
            unlearn(opened, Sources((str(forget),), **more), tmp_path / "o", BRIEF, device="cpu")
        assert "--objective strangers" in refused.value.remedy
    for budget in (0, -1, float("inf"), float("nan")):
        with pytest.raises(EditError, match="budget"):
            Search(budget=budget)
