"""Forgetting and learning from data sets, on a world whose model knows all its facts."""

import hashlib
import json
import re
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from tests.conftest import read_tensors, same_bytes, snapshot
from weightsurgery.algebra.lowrank import Rank
from weightsurgery.checkpoint.reader import Checkpoint
from weightsurgery.checkpoint.record import read_record, verify
from weightsurgery.checkpoint.selection import Selection
from weightsurgery.errors import (
    DataError,
    EditError,
    MismatchError,
    OutputError,
    SelectionError,
    SourceError,
    UnsupportedCheckpointError,
    WeightSurgeryError,
)
from weightsurgery.lab.world import VARIANTS, build_world
from weightsurgery.learning.exact import score_checkpoint
from weightsurgery.learning.rounds import Rounds
from weightsurgery.learning.statistics import gather_to
from weightsurgery.procedures.unlearn import Output, Search, Sources, plan, unlearn
from weightsurgery.surgery.apply import apply
from weightsurgery.surgery.edits import Add, Negate
from weightsurgery.unlearning import method, run
from weightsurgery.unlearning.methods import rounds
from weightsurgery.vectors.sources import open_vector

TRAINED = Rounds(steps=60, batch_size=16, prompts=400)
BRIEF = Rounds(steps=3, batch_size=16, prompts=60)

# The world's model writes no prose, and its facts are all that it has: the guard's budget is not
# for it. What the guard does is tested in test_forget_data.py and tests/learning/test_guard.py.
search = partial(Search, allow_harm=True)
UNSEEN = ("painters.unseen", "capitals.unseen", "addition.unseen")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    recipe = replace(VARIANTS["small"], tuning_steps=4)
    return build_world(tmp_path_factory.mktemp("world"), recipe=recipe, threads=1)


@pytest.fixture
def base(world):
    with Checkpoint.open(world.directory / "base") as opened:
        yield opened


def data(world, name):
    return str(world.directory / "data" / f"{name}.jsonl")


def sources(world, *keep, target="authors.seen", **others):
    return Sources((data(world, target),), tuple(data(world, each) for each in keep), **others)


def scores(checkpoint, world, *names):
    return score_checkpoint(checkpoint, {name: data(world, name) for name in names})


def facts(path, pairs):
    lines = [json.dumps({"prompt": prompt, "completion": end}) for prompt, end in pairs]
    path.write_text("\n".join(lines) + "\n")
    return str(path)


@pytest.fixture(scope="module")
def forgot(world, tmp_path_factory):
    """A long run, with everything watched; most tests look at what it left."""
    out = tmp_path_factory.mktemp("forgot") / "out"
    told = []
    with Checkpoint.open(world.directory / "base") as opened:
        done = unlearn(
            opened,
            sources(
                world, "painters.seen", "capitals.seen", "addition.seen",
                validation_keep=(data(world, "painters.validation"),),
            ),
            out,
            search(TRAINED),
            command=["ws", "project"],
            progress=lambda text, done, total: told.append(text),
        )  # fmt: skip
    return out, done, told


def test_what_is_named_is_forgotten_and_what_nobody_listed_stays(world, forgot):
    out, done, told = forgot
    before = scores(world.directory / "base", world, "authors.seen", *UNSEEN)
    assert min(before.values()) >= 0.95  # it knew all of them
    after = scores(out, world, "authors.seen", *UNSEEN)
    assert after["authors.seen"] <= 0.25
    assert min(after[name] for name in UNSEEN) >= 0.9
    assert not done.reused
    assert done.notices == ()
    assert any("loss" in text for text in told)
    assert sorted(path.name for path in out.parent.iterdir()) == ["out", "out.vector"]


def test_negation_of_the_saved_vector_writes_the_same_bytes(world, base, forgot, tmp_path):
    out, done, _ = forgot
    apply(Negate(open_vector(base, [str(done.place)])), base, tmp_path / "negated")
    edited, negated = snapshot(out), snapshot(tmp_path / "negated")
    assert edited.pop("weightsurgery.json") != negated.pop("weightsurgery.json")
    assert edited == negated
    was, now, vector = (read_tensors(each) for each in (base.path, out, done.place))
    assert not any(same_bytes(was[name], now[name]) for name in vector)
    assert all(same_bytes(now[name], was[name] - task) for name, task in vector.items())
    assert {name for name in was if not same_bytes(was[name], now[name])} == vector.keys()


def test_the_records_tell_data_settings_and_course(world, base, forgot):
    out, done, _ = forgot
    record, vector = verify(out), verify(done.place)
    assert (record.kind, vector.kind) == ("checkpoint", "task-vector")
    assert record.command == vector.command == ["ws", "project"]
    for found in (record.parameters, vector.parameters):
        assert (found["edit"], found["objective"], found["steps"]) == ("project", "strangers", 60)
        assert found["learning_rate"] == 0.4
    assert record.parameters["scale"] == 1.0
    digest = hashlib.sha256((world.directory / "data/authors.seen.jsonl").read_bytes()).hexdigest()
    assert record.parameters["data"]["forget"]["sha256"] == {"authors.seen.jsonl": digest}
    assert vector.inputs["forget"]["files"] == {"authors.seen.jsonl": digest}
    assert {"keep_data1", "keep_data2", "keep_data3", "validation_keep1"} < vector.inputs.keys()
    assert "tokenizer.json" in vector.inputs["base"]["files"]
    assert vector.summary["rounds"][0]["last_loss"] < vector.summary["rounds"][0]["first_loss"]
    assert read_record(out).lineage[0]["verdict"] == "related"


def test_the_watch_sees_forgetting_and_the_best_weights_count(world, forgot):
    out, done, _ = forgot
    looks = done.vector.summary["watched"]
    assert looks[0] == {"step": 0, "target": 1.0,
                        "keep": {data(world, "painters.validation"): 1.0}}  # fmt: skip
    assert [look["step"] for look in looks] == [10 * n for n in range(len(looks))]
    fit = [look["target"] for look in looks if min(look["keep"].values()) >= 0.975]
    assert min(fit) < 0.5 < fit[0]
    assert scores(out, world, "authors.seen")["authors.seen"] == min(fit)


def test_a_finished_vector_is_used_again_and_no_other(world, base, forgot, tmp_path, monkeypatch):
    given = sources(world, "painters.seen")
    first = unlearn(base, given, tmp_path / "out", search(BRIEF))
    before = snapshot(tmp_path)
    assert not first.reused
    with pytest.raises(OutputError, match="exists"):
        unlearn(base, given, tmp_path / "out", search(BRIEF))

    def never(*args, **kwargs):
        raise AssertionError("trained again")

    monkeypatch.setattr(rounds, "find_change", never)
    again = unlearn(base, given, tmp_path / "out", search(BRIEF), overwrite=True)
    assert again.reused
    assert any("nothing was trained" in text for text in again.notices)
    assert snapshot(tmp_path) == before
    assert plan(base, given, Output(tmp_path / "b", first.place), search(BRIEF)).finished
    # Another scale is another edit of the same vector.
    half = unlearn(base, given, tmp_path / "half", search(BRIEF), vector=first.place, scale=0.5)
    was, whole, part = (read_tensors(each) for each in
                        (base.path, tmp_path / "out", tmp_path / "half"))  # fmt: skip
    name = "model.layers.0.mlp.up_proj.weight"
    torch.testing.assert_close(2 * (was[name] - part[name]), was[name] - whole[name])
    assert half.applied.record.parameters["scale"] == 0.5
    other = search(replace(BRIEF, seed=1))
    with pytest.raises(OutputError, match=r"out\.vector: exists"):
        unlearn(base, given, tmp_path / "c", other, vector=first.place)
    with pytest.raises(AssertionError, match="trained again"):
        unlearn(base, given, tmp_path / "c", other, vector=first.place, overwrite=True)
    lines = (world.directory / "data/authors.seen.jsonl").read_text().splitlines()
    fewer = tmp_path / "authors.seen.jsonl"
    fewer.write_text("\n".join(lines[1:]) + "\n")
    changed = replace(given, target=(str(fewer),))
    assert not plan(
        base, changed, Output(tmp_path / "c", first.place, overwrite=True), search(BRIEF)
    ).finished
    shard = first.place / "vector-00001.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    with pytest.raises(OutputError, match=r"out\.vector: exists"):  # damaged
        unlearn(base, given, tmp_path / "c", search(BRIEF), vector=first.place)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_training_leaves_nothing(world, base, tmp_path, monkeypatch, error):
    real = rounds.find_change

    def interrupted(*args, **kwargs):
        assert any(tmp_path.iterdir())  # the vector's place is held
        real(*args, **kwargs)
        raise error

    monkeypatch.setattr(rounds, "find_change", interrupted)
    with pytest.raises(error):
        unlearn(base, sources(world, "painters.seen"), tmp_path / "out",
                search(replace(BRIEF, steps=1)))  # fmt: skip
    assert list(tmp_path.iterdir()) == []


def test_a_failed_edit_leaves_the_vector_to_the_next_run(world, base, tmp_path, monkeypatch):
    given = sources(world, "painters.seen")

    def full(*args, **kwargs):
        raise OutputError("full", "")

    with monkeypatch.context() as patch:
        patch.setattr(run, "apply", full)
        with pytest.raises(OutputError, match="full"):
            unlearn(base, given, tmp_path / "out", search(BRIEF))
    assert [path.name for path in tmp_path.iterdir()] == ["out.vector"]
    assert unlearn(base, given, tmp_path / "out", search(BRIEF)).reused
    verify(tmp_path / "out")


def test_a_truncated_vector_is_of_low_rank_and_the_best_of_it(world, base, tmp_path):
    given = sources(world, "painters.seen")
    unlearn(base, given, tmp_path / "whole", search(BRIEF))
    done = unlearn(base, given, tmp_path / "low", search(BRIEF, rank=Rank(2)))
    was, whole, low = (read_tensors(each) for each in
                       (base.path, tmp_path / "whole", tmp_path / "low"))  # fmt: skip
    stored = read_tensors(done.place)
    held = energy = 0.0
    for name in read_tensors(tmp_path / "whole.vector"):
        full = (was[name].double() - whole[name].double()).numpy()
        part = (was[name].double() - low[name].double()).numpy()
        u, s, vt = np.linalg.svd(full, full_matrices=False)
        assert s[2] > 1e-3 * s[0]  # the vector itself is not of rank 2
        best = (u[:, :2] * s[:2]) @ vt[:2]
        assert np.linalg.norm(part - best) < 1e-4 * s[0]
        assert stored[f"{name}::S"].shape == (2,)
        held, energy = held + (s[:2] ** 2).sum(), energy + (s**2).sum()
    assert done.vector.summary["kept_energy"] == pytest.approx(held / energy, rel=1e-3)
    assert done.vector.parameters["rank"] == "2"


def test_new_facts_are_learned_and_old_ones_stay(world, base, tmp_path):
    new = facts(tmp_path / "new.jsonl", [
        (f"Question: What is the capital of {land}? Answer:", f" {town}")
        for land, town in zip(("Red", "Blue", "Green", "Gold"), ("One", "Two", "Six", "Ten"),
                              strict=True)
    ])  # fmt: skip
    assert score_checkpoint(base.path, {"new": new})["new"] == 0
    old = tuple(data(world, f"{name}.seen") for name in ("authors", "painters", "addition"))
    rounds = Rounds("learn", steps=40, batch_size=4, prompts=400)
    done = unlearn(base, Sources((new,), old), tmp_path / "out", search(rounds))
    assert score_checkpoint(tmp_path / "out", {"new": new})["new"] >= 0.75
    kept = ("authors.unseen", "painters.unseen", "addition.unseen")
    assert min(scores(tmp_path / "out", world, *kept).values()) >= 0.9
    apply(Add(open_vector(base, [str(done.place)])), base, tmp_path / "added")
    written, added = read_tensors(tmp_path / "out"), read_tensors(tmp_path / "added")
    assert all(same_bytes(written[name], added[name]) for name in added)
    assert done.applied.record.parameters["edit"] == "learn"
    assert "task" in done.vector.inputs


def response(directory, grams):
    """How much a saved vector moves what it is given, relative to its size."""
    tasks = read_tensors(directory)
    felt = sum(float(torch.trace(t.double() @ grams[n].double() @ t.double().T))
               for n, t in tasks.items())  # fmt: skip
    return felt / sum(float(t.double().square().sum()) for t in tasks.values())


def test_directions_and_statistics_are_kept(world, base, tmp_path):
    painters = world.directory / "finetuned/painters"
    gather_to(tmp_path / "stats", base.path, data(world, "capitals.seen"))
    three = search(BRIEF, keep_rank=Rank(3))
    alone = unlearn(base, sources(world), tmp_path / "alone", three)
    assert "random words" in alone.notices[-1]
    by_vector = unlearn(base, replace(sources(world), keep=(str(painters),)), tmp_path / "v", three)
    assert len(by_vector.notices) == 1
    assert "hardly fell" in by_vector.notices[0]  # in three steps
    was, tuned = read_tensors(base.path), read_tensors(painters)
    for place, most in ((alone.place, None), (by_vector.place, 1e-4)):
        felt = []
        for name, task in read_tensors(place).items():
            difference = (tuned[name].double() - was[name].double()).numpy()
            v = np.linalg.svd(difference, full_matrices=False)[2][:3].T
            t = task.double().numpy()
            felt.append(np.linalg.norm(t @ v) / np.linalg.norm(t))
        assert max(felt) < most if most else max(felt) > 0.05
    record = json.loads((tmp_path / "stats/weightsurgery.json").read_text())
    stored = read_tensors(tmp_path / "stats")
    grams = {name: stored[each["input"]] for name, each in record["tensors"].items()}
    by_statistics = unlearn(
        base, replace(sources(world), keep=(f"{tmp_path / 'stats'}:100",)), tmp_path / "s", three
    )
    assert by_statistics.vector.inputs["keep_inputs1"]["weight"] == 100
    assert by_statistics.vector.lineage[0]["verdict"] == "related"
    assert response(by_statistics.place, grams) < 0.2 * response(alone.place, grams)


def test_negation_in_rounds_forgets_too(world, base, tmp_path):
    rounds = Rounds(
        "negate",
        rounds=2,
        steps=10,
        batch_size=16,
        prompts=60,
        round_scale=200.0,
        learning_rate=5e-3,
    )
    done = unlearn(
        base,
        sources(world, "painters.seen", validation_keep=(data(world, "painters.validation"),)),
        tmp_path / "out",
        search(rounds, threshold=0.01),
        selection=Selection("mlp", scales=(("*", 0.5),)),
    )
    assert len(done.vector.summary["rounds"]) == 2
    looks = done.vector.summary["watched"]
    assert [look["step"] for look in looks] == [0, 10, 20]
    assert looks[0]["target"] == 1 > min(look["target"] for look in looks)
    was, now, vector = (read_tensors(each) for each in (base.path, tmp_path / "out", done.place))
    assert len(vector) == 6
    assert all(".mlp." in name for name in vector)
    for name, task in vector.items():  # the selection's scale is the edit's
        torch.testing.assert_close(was[name] - now[name], 0.5 * task)


def test_a_plan_trains_and_writes_nothing(world, base, tmp_path, monkeypatch):
    def never(*args, **kwargs):
        raise AssertionError("loaded")

    monkeypatch.setattr(method, "load_float32", never)
    found = plan(base, sources(world, "painters.seen"), Output(tmp_path / "out"), search(BRIEF))
    sizes = [entry for name, entry in base.entries.items() if "proj" in name]
    assert found.trained == sum(entry.numel for entry in sizes)
    assert found.vector_bytes == 4 * found.trained
    # Sums and eigenvectors, once for matrices that are given the same; and one decomposition.
    given = [entry.shape[1] for entry in sizes if not re.search("[kv]_proj|up_proj", entry.name)]
    assert found.statistics == sum(12 * width**2 for width in given) + 28 * max(given) ** 2
    assert (found.examples, found.keep_examples) == (32, 32)
    assert found.vector == str(tmp_path / "out.vector")
    json.dumps(found.summary())
    assert list(tmp_path.iterdir()) == []


def refused(base, given, out, settings=None, **options):
    with pytest.raises(WeightSurgeryError) as caught:
        unlearn(base, given, out, settings or search(BRIEF), **options)
    assert caught.value.remedy
    return caught.type, caught.value.what


def test_what_makes_no_sense_is_refused_before_training(world, base, tmp_path, monkeypatch):
    def never(*args, **kwargs):
        raise AssertionError("trained")

    monkeypatch.setattr(rounds, "find_change", never)
    out, given = tmp_path / "out", sources(world, "painters.seen")
    copy = tmp_path / "held-back.jsonl"
    copy.write_bytes((world.directory / "data/painters.seen.jsonl").read_bytes())
    authors = (world.directory / "data/authors.seen.jsonl").read_text().splitlines()
    mixed = tmp_path / "mixed.jsonl"
    mixed.write_text("\n".join([*authors[:2], '{"prompt": "x", "completion": " y"}']) + "\n")
    long = facts(tmp_path / "long.jsonl", [("word " * 400, " end")])
    before = snapshot(tmp_path)
    seen, validation = data(world, "painters.seen"), data(world, "painters.validation")
    missing = str(tmp_path / "none.jsonl")
    for changes, kind, said in (
        ({"validation_keep": (str(copy),)}, DataError, "the edit sees it"),
        ({"validation_keep": (seen,)}, DataError, "the edit sees it"),
        ({"validation_target": seen}, DataError, "the edit sees it"),
        ({"validation_keep": (data(world, "authors.seen"),)}, DataError, "the edit sees it"),
        ({"validation_keep": (validation, validation)}, DataError, "the same data"),
        ({"keep": (seen, str(copy))}, DataError, "the same data"),
        ({"keep": (str(mixed),)}, DataError, "2 of 3 examples are also in"),
        ({"validation_keep": (str(mixed),)}, DataError, "2 of 3 examples are also in"),
        ({"keep": (f"{seen}:2",)}, EditError, "with a factor"),
        ({"keep": (missing,)}, DataError, "cannot be read"),
        ({"keep": (str(tmp_path / "nowhere"),)}, SourceError, "no such directory"),
        ({"target": ()}, EditError, "no data set"),
        ({"target": (str(base.path),)}, EditError, "no data set"),
        ({"target": (long,)}, DataError, "long.jsonl, line 1: "),
        ({"keep": (long,)}, DataError, "long.jsonl, line 1: "),
    ):
        found = refused(base, replace(given, **changes), out)
        assert found[0] is kind, changes
        assert said in found[1], changes
    nothing_said = search(replace(BRIEF, prompts=0))
    assert "no prompts" in refused(base, replace(given, keep=()), out, nothing_said)[1]
    assert refused(base, given, out, selection=Selection("all", ("*embed*",)))[0] is (
        UnsupportedCheckpointError
    )
    assert refused(base, given, out, selection=Selection("all", ("*norm*",)))[0] is SelectionError
    assert refused(base, given, out, device="tpu")[0] is EditError
    for threshold in (0, 1.5, float("nan")):
        with pytest.raises(EditError, match="threshold"):
            Search(threshold=threshold)
    for places in ({"out": base.path / "x"}, {"out": out, "vector": out},
                   {"out": out, "vector": out / "v"}, {"out": out, "vector": base.path},
                   {"out": out / "x", "vector": out},
                   {"out": tmp_path, "overwrite": True}):  # fmt: skip
        assert refused(base, given, **places)[0] is OutputError, places
    assert snapshot(tmp_path) == before


def test_a_vector_that_keeps_nothing_here_is_refused(world, base, tmp_path):
    painters = str(world.directory / "finetuned/painters")
    given = replace(sources(world), keep=(painters,))
    unlearn(base, given, tmp_path / "mlp", search(BRIEF), selection=Selection("mlp", layers="0"))
    # The vector found there changes layer 0 alone.
    given = replace(sources(world), keep=(str(tmp_path / "mlp.vector"),))
    kind, what = refused(base, given, tmp_path / "o", selection=Selection("mlp", layers="1"))
    assert kind is MismatchError
    assert "none of the selected tensors" in what


def test_nothing_found_is_an_error_and_leaves_nothing(world, base, tmp_path):
    wild = Rounds(steps=5, batch_size=16, prompts=2, learning_rate=50.0)
    given = sources(world, validation_keep=(data(world, "painters.validation"),))
    assert scores(base.path, world, "painters.validation")["painters.validation"] == 1
    kind, what = refused(base, given, tmp_path / "out", search(wild))
    assert kind is EditError
    assert "nothing was found" in what
    unknown = facts(tmp_path / "unknown.jsonl", [("Question: Who? Answer:", " Nobody")])
    given = replace(given, validation_keep=(unknown,))
    kind, what = refused(base, given, tmp_path / "out", search(BRIEF))
    assert kind is DataError
    assert "answers none of it" in what
    assert [path.name for path in tmp_path.iterdir()] == ["unknown.jsonl"]


def test_a_full_disk_is_told_before_training(world, base, tmp_path, monkeypatch):
    import shutil

    real = shutil.disk_usage
    monkeypatch.setattr(rounds, "find_change", None)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: real(path)._replace(free=1000))
    kind, what = refused(base, sources(world, "painters.seen"), tmp_path / "out")
    assert kind is OutputError
    assert "needed for the output and its vector, 0.0 MB free" in what
    assert list(tmp_path.iterdir()) == []
