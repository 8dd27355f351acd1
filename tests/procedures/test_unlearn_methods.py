"""Forgetting by a system of the survey: the vector, the edit, the records, and what is refused."""

import errno
import json
import os
import re
import subprocess
import sys
import textwrap
from dataclasses import asdict, replace
from functools import partial

import pytest
import torch

from tests.conftest import read_tensors, same_bytes, snapshot
from tests.learning.losses import UNLEARNERS
from tests.learning.tiny import FACTS, OTHER, UNSEEN, loss, save, tiny, trained_tiny, write
from weightsurgery.algebra.lowrank import Rank
from weightsurgery.checkpoint.plain_files import held_bytes
from weightsurgery.checkpoint.reader import Checkpoint
from weightsurgery.checkpoint.record import read_record, verify
from weightsurgery.checkpoint.selection import Selection
from weightsurgery.errors import (
    DataError,
    EditError,
    NonFiniteError,
    OutputError,
    UnsupportedCheckpointError,
    WeightSurgeryError,
)
from weightsurgery.learning.identify import train_vector
from weightsurgery.learning.models import load_model
from weightsurgery.procedures.unlearn import MethodSettings, Output, Sources, plan, unlearn
from weightsurgery.report import card_method
from weightsurgery.report.card_limits import limits
from weightsurgery.surgery.apply import AdapterStorage, Storage, apply
from weightsurgery.surgery.edits import Add, Negate
from weightsurgery.unlearning import by_loss, saving
from weightsurgery.unlearning import run as road
from weightsurgery.unlearning.by_system import BySystem
from weightsurgery.unlearning.methods import SYSTEMS
from weightsurgery.unlearning.system import SystemResult
from weightsurgery.vectors.sources import open_vector

BRIEF = {"steps": 4, "learning_rate": 3e-3}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A checkpoint that knows two sets, and data."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("place")
    save(trained_tiny(), folder / "base")
    for name, rows in (("forget", FACTS), ("keep", OTHER), ("unseen", UNSEEN)):
        write(folder / f"{name}.jsonl", rows)
    return folder


@pytest.fixture
def base(place):
    with Checkpoint.open(place / "base") as opened:
        yield opened


@pytest.fixture
def data(place):
    return {name: (str(place / f"{name}.jsonl"),) for name in ("forget", "keep", "unseen")}


def run(base, data, out, how, *, unseen=(), **others):
    sources = Sources(data["forget"], data["keep"], unseen=unseen)
    return unlearn(base, sources, out, how, **others)


def planned(base, data, out, how, **others):
    return plan(base, Sources(data["forget"], data["keep"]), Output(out, **others), how)


def test_what_is_written_is_what_the_unlearner_found(base, data, place, tmp_path):
    how = MethodSettings("npo", {"beta": 0.2, "retain": "klr"}, BRIEF)
    told = []
    done = run(
        base, data, tmp_path / "out", how, command=["ws", "unlearn"],
        progress=lambda text, *counts: told.append(text),
    )  # fmt: skip
    assert not done.reused
    # A few steps of NPO on a model this small are felt everywhere: that alone is told.
    (told_of_harm,) = done.notices
    assert "costs ordinary language" in told_of_harm
    assert not done.vector.summary["guard"]["inside"]
    assert any("NPO" in text and "loss" in text for text in told)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "out.vector"]
    # The library's own training of the model in memory.
    model, tokenizer = load_model(place / "base")
    training = replace(UNLEARNERS["npo"].published, **BRIEF)
    change = by_loss.unlearn(
        "npo", model, tokenizer, FACTS, OTHER, training, settings={"beta": 0.2, "retain": "klr"}
    )
    vector, was, now = (read_tensors(p) for p in (done.place, base.path, tmp_path / "out"))
    assert vector.keys() == change.keys()
    assert all(same_bytes(vector[name], -t) for name, t in change.items())
    assert all(same_bytes(now[name], was[name] - t) for name, t in vector.items())
    assert {name for name in was if not same_bytes(was[name], now[name])} == vector.keys()
    # And it forgot.
    edited, _ = load_model(tmp_path / "out")
    assert loss(edited, FACTS) > loss(model, FACTS) + 0.5
    apply(Negate(open_vector(base, [str(done.place)])), base, tmp_path / "negated")
    again = read_tensors(tmp_path / "negated")
    assert all(same_bytes(again[name], t) for name, t in now.items())


def test_the_records_tell_method_settings_and_course(base, data, tmp_path):
    out = tmp_path / "out"
    done = run(
        base, data, out, MethodSettings("kga", {"helper_steps": 3}, BRIEF), unseen=data["unseen"],
        command=["ws", "unlearn", "x"],
    )  # fmt: skip
    record, vector = verify(out), verify(done.place)
    assert (record.kind, vector.kind) == ("checkpoint", "task-vector")
    assert record.command == vector.command == ["ws", "unlearn", "x"]
    for found in (record.parameters, vector.parameters):
        assert (found["edit"], found["method"]) == ("unlearn", "kga")
        assert found["settings"] == asdict(UNLEARNERS["kga"].Settings(helper_steps=3))
        assert found["training"]["steps"] == 4
        assert found["training"]["batch_size"] == 16  # as published
        assert "arXiv 2305.06535" in found["source"]
    assert record.parameters["scale"] == 1.0
    assert vector.inputs.keys() == {"base", "forget", "keep_data1", "unseen1"}
    assert record.parameters["data"].keys() == {"forget", "keep_data1", "unseen1"}
    assert "tokenizer.json" in vector.inputs["base"]["files"]
    course = vector.summary["training"]
    assert course["steps"] == 4
    assert course["gap"] > 0
    assert course["helper of what to forget"]["steps"] == 3
    assert read_record(out).lineage[0]["verdict"] == "related"
    # And the model card says so, with the figures of this method.
    for found in (record, vector):
        text = " ".join(card_method.method(found))
        assert "Trained by `kga` (Wang et al. 2023, arXiv 2305.06535)" in text
        assert "`helper_steps` `3`" in text
    assert "three worlds, settings chosen there), `kga` left" in limits(record)
    assert "No guarantee of erasure" in limits(record)


def test_a_finished_vector_is_used_again_and_no_other(base, data, tmp_path, monkeypatch):
    how = MethodSettings("gradient-difference", {}, BRIEF)
    first = run(base, data, tmp_path / "out", how)
    before = snapshot(tmp_path)
    with pytest.raises(OutputError, match="exists"):
        run(base, data, tmp_path / "out", how)

    def never(*args, **kwargs):
        raise AssertionError("trained again")

    monkeypatch.setattr(BySystem, "find", never)
    again = run(base, data, tmp_path / "out", how, overwrite=True)
    assert again.reused
    assert any("nothing was trained" in text for text in again.notices)
    assert snapshot(tmp_path) == before
    half = run(base, data, tmp_path / "half", how, vector=first.place, scale=0.5)
    assert half.applied.record.parameters["scale"] == 0.5
    # A finished vector of other settings is in the way, and stays as it is.
    others = (
        replace(how, settings={"keep_weight": 2.0}),
        replace(how, training={**BRIEF, "seed": 1}),
        replace(how, method="simnpo"),
        replace(how, lora_rank=2),
    )
    for other in others:
        with pytest.raises(OutputError, match=r"out\.vector: exists"):
            run(base, data, tmp_path / "other", other, vector=first.place)
    assert verify(first.place)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError("a process is gone")])
def test_what_need_not_come_again_leaves_the_training(base, data, tmp_path, monkeypatch, error):
    how = MethodSettings("gradient-ascent", {}, {**BRIEF, "save_every": 1})
    run(base, data, tmp_path / "whole", how)
    gone = tmp_path / "gone"
    with monkeypatch.context() as patch:
        patch.setattr(saving, "save", partial(_raise, error))
        with pytest.raises(type(error) if isinstance(error, Exception) else error):
            run(base, data, gone / "out", how)
    assert [path.name for path in gone.iterdir()] == [".out.vector.ws-partial"]
    assert list(gone.rglob("checkpoint-*"))
    run(base, data, gone / "out", how)
    assert snapshot(gone / "out.vector") == snapshot(tmp_path / "whole.vector")
    assert sorted(path.name for path in gone.iterdir()) == ["out", "out.vector"]


def test_a_run_that_goes_on_is_not_asked_for_the_space_it_has(base, data, tmp_path, monkeypatch):
    how, asked = MethodSettings("npo", {}, {**BRIEF, "save_every": 1}), []

    def noted(planned, out, place, beside):
        asked.append(beside)

    monkeypatch.setattr(road, "check_space", noted)
    with monkeypatch.context() as patch:
        patch.setattr(saving, "save", partial(_raise, KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run(base, data, tmp_path / "out", how)
    there = held_bytes(next(tmp_path.glob(".out.vector.ws-partial/training-*")))
    assert there > 100_000
    run(base, data, tmp_path / "out", how)
    assert asked[0] - asked[1] == there


def test_what_would_come_again_leaves_nothing(base, data, tmp_path, monkeypatch):
    monkeypatch.setattr(saving, "save", partial(_raise, NonFiniteError("NaN", "")))
    with pytest.raises(NonFiniteError):
        run(
            base,
            data,
            tmp_path / "out",
            MethodSettings("gradient-ascent", {}, {**BRIEF, "save_every": 1}),
        )
    assert list(tmp_path.iterdir()) == []


def _raise(error, *args, **kwargs):
    raise error


def test_an_adapter_is_saved_as_factors_and_written_as_one(base, data, tmp_path):
    how = MethodSettings("eul", {}, BRIEF, lora_rank=3)
    with pytest.raises(EditError, match="--as adapter with npo in full"):
        run(base, data, tmp_path / "no", MethodSettings("npo", {}, BRIEF), storage=AdapterStorage())
    assert planned(base, data, tmp_path / "a", how, storage=AdapterStorage()
    ).lora_rank == 3  # fmt: skip
    done = run(base, data, tmp_path / "a", how, storage=AdapterStorage("float32"))
    assert {each["rank"] for each in done.vector.tensors.values()} == {3}
    assert done.applied.record.kind == "adapter"
    whole = run(base, data, tmp_path / "b", how, vector=done.place)
    assert whole.reused
    apply(Add(open_vector(base, [str(tmp_path / "a")])), base, tmp_path / "added")
    was, merged, edited = (read_tensors(p) for p in (base.path, tmp_path / "added", tmp_path / "b"))
    for name in done.vector.tensors:
        wanted = edited[name] - was[name]
        assert wanted.any()
        torch.testing.assert_close(merged[name] - was[name], wanted, atol=1e-5, rtol=1e-3)
    # EUL is an adapter without being told to be.
    assert planned(base, data, tmp_path / "c", MethodSettings("eul")).lora_rank == 16


def test_truncation_scales_dtype_and_selection(base, data, tmp_path):
    how = MethodSettings("gradient-ascent", {}, BRIEF, rank=Rank(2))
    chosen = Selection("mlp", layers="1")
    done = run(
        base, data, tmp_path / "out", how, selection=chosen, scales=(("*up_proj*", 0.0),),
        storage=Storage("bfloat16"),
    )  # fmt: skip
    rows = done.vector.tensors
    assert set(rows) == {f"model.layers.1.mlp.{n}_proj.weight" for n in ("gate", "up", "down")}
    assert all(each["rank"] == 2 and 0 < each["kept_energy"] <= 1 for each in rows.values())
    # In bfloat16 every tensor is rounded; what is scaled by 0 is the base's, rounded.
    with Checkpoint.open(tmp_path / "out") as opened:
        name = "model.layers.1.mlp.up_proj.weight"
        assert torch.equal(opened.tensor(name), base.tensor(name).bfloat16())
        other = "model.layers.1.mlp.down_proj.weight"
        assert not torch.equal(opened.tensor(other), base.tensor(other).bfloat16())


def test_rmu_takes_its_own_matrices_unless_others_are_chosen(base, data, tmp_path):
    how = MethodSettings("rmu", {"alpha": 100.0}, {"steps": 2, "learning_rate": 1e-2})
    own = run(base, data, tmp_path / "own", how)
    assert list(own.vector.tensors) == ["model.layers.0.mlp.down_proj.weight"]
    by_hand = run(base, data, tmp_path / "hand", how, selection=Selection("attention"))
    assert {name.split(".")[2] for name in by_hand.vector.tensors} == {"0"}
    assert all("self_attn" in name for name in by_hand.vector.tensors)


def test_a_row_may_be_a_function(base, data, tmp_path, monkeypatch):
    """Anything that turns a request into a change can be a system."""
    asked = []

    def change(request):
        asked.append(request)
        (name, *_) = request.names
        return SystemResult(
            {name: torch.ones_like(request.model.get_parameter(name))}, {"why": "a test"}
        )

    row = type("Ones", (SYSTEMS["npo"],), {"change": staticmethod(change), "paper": "nowhere"})
    monkeypatch.setattr("weightsurgery.unlearning.methods.SYSTEMS", {**SYSTEMS, "ones": row})
    done = run(base, data, tmp_path / "out", MethodSettings("ones", {"beta": 0.3}))
    (request,) = asked
    assert [each.prompt for each in request.forget] == [each.prompt for each in FACTS]
    assert [each.prompt for each in request.keep] == [each.prompt for each in OTHER]
    assert request.settings == {"beta": 0.3, "retain": "none", "keep_weight": 1.0}
    (name,) = done.vector.tensors
    was, now = (read_tensors(p)[name] for p in (base.path, tmp_path / "out"))
    assert same_bytes(now, was + 1)
    assert done.vector.summary["training"] == {"why": "a test"}


def test_a_row_that_changes_what_it_was_not_asked_to_is_named(base, data, tmp_path, monkeypatch):
    def change(request):
        names = [request.names[0], "model.norm.weight"]
        return SystemResult(
            {name: torch.ones_like(request.model.get_parameter(name)) for name in names}
        )

    row = type("Ones", (SYSTEMS["npo"],), {"change": staticmethod(change)})
    monkeypatch.setattr("weightsurgery.unlearning.methods.SYSTEMS", {**SYSTEMS, "ones": row})
    kind, what = refused(base, data, tmp_path / "out", MethodSettings("ones"))
    assert kind is EditError
    assert "ones changed 'model.norm.weight'" in what


def test_a_runaway_loss_is_told_by_the_options_there_are(base, data, tmp_path):
    how = MethodSettings("gradient-ascent", {}, {"steps": 30, "learning_rate": 1e30})
    with pytest.raises(NonFiniteError) as met:
        run(base, data, tmp_path / "out", how)
    assert met.value.what.startswith("gradient-ascent: ")
    assert "--lr," in met.value.remedy
    assert "--learning-rate" not in met.value.remedy
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("family", ["tied", "gpt2"])
def test_tied_heads_and_transposed_weights(family, data, tmp_path):
    settings = {"tie_word_embeddings": True} if family == "tied" else {}
    save(tiny("llama" if family == "tied" else family, **settings), tmp_path / "base")
    with Checkpoint.open(tmp_path / "base") as opened:
        for name, how in (
            ("npo", MethodSettings("npo", {"retain": "klr"}, BRIEF)),
            ("rmu", MethodSettings("rmu", {"alpha": 1.0}, BRIEF)),
            ("lora", MethodSettings("eul", {}, BRIEF, lora_rank=2)),
            ("ext", MethodSettings("ext-sub", {"scale": 1.0}, BRIEF)),
        ):
            done = run(opened, data, tmp_path / name, how)
            was, now = (read_tensors(path) for path in (opened.path, tmp_path / name))
            moved = {each for each in was if not same_bytes(was[each], now[each])}
            assert moved == set(done.vector.tensors)
            assert not any("embed" in each or "wte" in each or "head" in each for each in moved)
            # As the library's own training of the model in memory: rows are rows there too.
            if name == "npo" and family == "tied":
                model, tokenizer = load_model(opened.path)
                training = replace(UNLEARNERS["npo"].published, **BRIEF)
                change = by_loss.unlearn(
                    "npo", model, tokenizer, FACTS, OTHER, training, settings=how.settings
                )
                assert all(same_bytes(now[each], was[each] + t) for each, t in change.items())


def test_a_merging_system_goes_the_same_road(base, data, tmp_path):
    done = run(base, data, tmp_path / "out", MethodSettings("task-vector", {"scale": 0.5}, BRIEF))
    assert done.vector.parameters["settings"]["scale"] == 0.5
    verify(tmp_path / "out")
    model, tokenizer = load_model(base.path)
    vector = train_vector(
        model, tokenizer, FACTS, replace(SYSTEMS["task-vector"].published, **BRIEF)
    )
    saved = read_tensors(done.place)
    for name, t in vector.items():
        torch.testing.assert_close(saved[name], 0.5 * t)


def test_what_a_method_does_not_look_at_is_told(base, data, tmp_path):
    done = run(
        base,
        data,
        tmp_path / "out",
        MethodSettings("gradient-ascent", {}, BRIEF),
        unseen=data["unseen"],
    )
    assert any("does not look at --keep" in text for text in done.notices)
    assert any("does not look at --unseen" in text for text in done.notices)


def test_a_plan_from_headers_alone(base, data, tmp_path, monkeypatch):
    monkeypatch.setattr(BySystem, "find", None)
    found = planned(base, data, tmp_path / "out", MethodSettings("npo", {}, {"epochs": 2.0}))
    summary = found.summary()
    assert json.dumps(summary)
    assert summary["method"] == "npo"
    assert (summary["steps"], summary["epochs"]) == (None, 2.0)
    assert summary["examples"] == summary["keep_examples"] == 8
    assert summary["trained"] == 2 * (4 * 32 * 32 + 3 * 32 * 48)
    assert summary["vector_bytes"] == 4 * summary["trained"]
    assert summary["training"] == 6 * summary["vector_bytes"]  # and the model before
    # Steps that a method was published with give way to epochs.
    rmu = planned(base, data, tmp_path / "o", MethodSettings("rmu", {}, {"epochs": 1.0}))
    assert (rmu.steps, rmu.epochs) == (None, 1.0)
    assert list(tmp_path.iterdir()) == []


def refused(base, data, out, how, **others):
    """The kind and text of the error; the plan must meet the same one where it can."""
    before = snapshot(out.parent)
    with pytest.raises(WeightSurgeryError) as met:
        run(base, data, out, how, **others)
    assert met.value.remedy
    assert snapshot(out.parent) == before
    return type(met.value), met.value.what


def test_refusals_lose_nothing(base, data, place, tmp_path):
    out = tmp_path / "out"
    brief = MethodSettings("npo", {}, BRIEF)
    long = write(tmp_path / "long.jsonl", [FACTS[0], replace(FACTS[1], prompt="x" * 90)])
    copy = tmp_path / "copy.jsonl"
    copy.write_bytes((place / "forget.jsonl").read_bytes())
    mixed = write(tmp_path / "mixed.jsonl", OTHER + FACTS[:2])
    for changes, how, others, kind, said in (
        ({}, MethodSettings("forget-it"), {}, EditError, "method 'forget-it'"),
        ({}, MethodSettings("npo", {"gamma": 1}), {}, EditError, "setting 'gamma'"),
        ({}, MethodSettings("ethos", {"beta": 1}), {}, EditError, "setting 'beta'"),
        ({}, MethodSettings("npo", {}, {"learning_rate": -1}), {}, EditError, "learning rate -1"),
        ({}, replace(brief, lora_rank=0), {}, EditError, "LoRA rank 0"),
        ({"forget": ()}, brief, {}, EditError, "nothing to forget"),
        ({"forget": (str(place / "base"),)}, brief, {}, EditError, "no data set"),
        ({"forget": (str(tmp_path / "none.jsonl"),)}, brief, {}, DataError, "cannot be read"),
        ({"forget": (str(long),)}, brief, {}, DataError, "long.jsonl, line 2: its prompt alone"),
        ({"keep": ()}, MethodSettings("rmu"), {}, EditError, "rmu without data to keep"),
        ({"keep": ()}, MethodSettings("npo", {"retain": "gdr"}), {}, EditError,
         "npo without data to keep"),
        ({"keep": (str(mixed),)}, brief, {}, DataError, "2 of 10 examples are also in"),
        ({}, MethodSettings("kul"), {}, EditError, "kul without data the model never saw"),
        ({}, MethodSettings("kul"), {"unseen": (str(copy),)}, DataError, "named as unseen"),
        ({}, brief, {"device": "tpu"}, EditError, "tpu"),
        ({}, brief, {"scale": float("nan")}, EditError, "scale nan"),
        ({}, MethodSettings("cpem-ia3", {"scale": 1}, BRIEF, 4), {}, EditError,
         "cpem-ia3 as a LoRA adapter"),
        ({"keep": ()}, MethodSettings("task-vector"), {}, EditError,
         "task-vector without data to keep"),
        ({}, brief, {"selection": Selection("all", ("*embed*",))}, UnsupportedCheckpointError,
         "no linear layer"),
        ({}, brief, {"vector": out}, OutputError, "is or lies in"),
        ({}, MethodSettings("gradient-ascent", {}, {"steps": 30, "learning_rate": 1e30}), {},
         WeightSurgeryError, ""),
    ):  # fmt: skip
        found = refused(base, {**data, **changes}, out, how, **others)
        assert issubclass(found[0], kind), (how, found)
        assert said in found[1], (how, found)


def test_a_full_disk_is_told_before_training(base, data, tmp_path, monkeypatch):
    import shutil

    real = shutil.disk_usage
    monkeypatch.setattr(BySystem, "find", None)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: real(path)._replace(free=1000))
    kind, what = refused(base, data, tmp_path / "out", MethodSettings("npo", {}, BRIEF))
    assert kind is OutputError
    assert "0.0 MB free" in what


def test_a_disk_that_fills_up_while_the_vector_is_written(base, data, tmp_path, monkeypatch):
    def full(path):
        raise OSError(errno.ENOSPC, "No space left on device")

    how = MethodSettings("npo", {}, {**BRIEF, "save_every": 1})
    with monkeypatch.context() as patch:
        patch.setattr("weightsurgery.vectors.saved.file_sha256", full)
        with pytest.raises(OutputError, match="No space left on device") as met:
            run(base, data, tmp_path / "out", how)
    assert met.value.remedy
    (left,) = tmp_path.iterdir()
    assert left.name == ".out.vector.ws-partial"
    kept = sorted(path.relative_to(left).as_posix() for path in left.rglob("*") if path.is_file())
    assert [each for each in kept if each.startswith("training-")], kept  # what was trained stays
    run(base, data, tmp_path / "out", how)  # there is room again
    assert {path.name for path in tmp_path.iterdir()} == {"out", "out.vector"}


def test_a_tokenizer_of_another_vocabulary(data, tmp_path):
    model = tiny("llama")
    model.resize_token_embeddings(90)
    with Checkpoint.open(save(model, tmp_path / "base")) as opened:
        kind, what = refused(opened, data, tmp_path / "out", MethodSettings("npo", {}, BRIEF))
    assert kind is DataError
    assert re.search(r"forget.jsonl: example 1: token \d+; the model has 90 embeddings", what)


def test_other_processes_train_and_write_nothing(base, data, tmp_path, monkeypatch):
    """They refuse what the first one would, so that none waits for one that has gone."""
    how, asked = MethodSettings("gradient-ascent", {}, BRIEF), []
    monkeypatch.setattr(BySystem, "find", lambda _, job, by, __: asked.append(by.progress))
    with monkeypatch.context() as other:
        other.setattr(road, "is_main", lambda: False)
        assert run(base, data, tmp_path / "out", how, progress=print) is None
        assert asked == [None]
        (tmp_path / "there").mkdir()
        (tmp_path / "there" / "mine.txt").write_text("x")
        for out, others in (("there", {}), ("out", {"scale": float("nan")})):
            with pytest.raises(WeightSurgeryError):
                run(base, data, tmp_path / out, how, **others)
        assert asked == [None]
    assert [path.name for path in tmp_path.iterdir()] == ["there"]
    monkeypatch.undo()
    first = run(base, data, tmp_path / "out", how)
    # Nor do they train where a vector was finished, whatever the first has written since.
    monkeypatch.setattr(BySystem, "find", None)
    monkeypatch.setattr(road, "is_main", lambda: False)
    assert run(base, data, tmp_path / "out", how, vector=first.place) is None


def test_two_processes_train_one_vector(base, data, tmp_path):
    """Under torchrun, each step is over both processes' batches, and one of them writes."""
    script = textwrap.dedent(
        """
        import sys, torch
        torch.set_num_threads(1)
        from weightsurgery.checkpoint.reader import Checkpoint
        from weightsurgery.procedures.unlearn import MethodSettings, Sources, unlearn
        base, forget, keep, unseen, out = sys.argv[1:]
        training = {"steps": 2, "learning_rate": 3e-3, "batch_size": 4}
        with Checkpoint.open(base) as opened:
            for method, settings in (
                ("npo", {}), ("kga", {"helper_steps": 2, "stop": 0.9}), ("rmu", {}), ("eul", {}),
                ("au", {"helper_steps": 2}), ("task-vector", {}),
            ):
                unlearn(
                    opened, Sources([forget], [keep], unseen=[unseen]), f"{out}/{method}",
                    MethodSettings(method, settings, training), device="cpu",
                )
        """
    )
    (tmp_path / "run.py").write_text(script)
    words = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    given = [base.path, *data["forget"], *data["keep"], *data["unseen"], tmp_path / "out"]
    done = subprocess.run(
        [sys.executable, *words, tmp_path / "run.py", *map(str, given)],
        capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    methods = ("npo", "kga", "rmu", "eul", "au", "task-vector")
    for method in methods:
        verify(tmp_path / "out" / method)
        record = verify(tmp_path / "out" / f"{method}.vector")
        assert record.parameters["processes"] == 2
    alone = MethodSettings("npo", {}, {"steps": 2, "learning_rate": 3e-3, "batch_size": 8})
    run(base, data, tmp_path / "one", alone)
    together, single = (read_tensors(tmp_path / p) for p in ("out/npo.vector", "one.vector"))
    size = sum(float((t**2).sum()) for t in single.values()) ** 0.5
    apart = sum(float(((together[n] - t) ** 2).sum()) for n, t in single.items()) ** 0.5
    assert size > 0.05
    assert apart < 2e-2 * size
    left = {path.name for path in (tmp_path / "out").iterdir()}
    assert left == {name for each in methods for name in (each, f"{each}.vector")}
