"""The task vector of a data set: what is trained, when, and what is saved of it."""

from __future__ import annotations

import gc
import os
import random
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tests.conftest import left_behind, read_tensors, same_bytes, snapshot
from tests.learning.tiny import FACTS, OTHER, byte_tokenizer, logits, loss, save, tiny, write
from weightsurgery.checkpoint.digests import content_sha256
from weightsurgery.checkpoint.reader import Checkpoint
from weightsurgery.checkpoint.record import read_record, verify
from weightsurgery.checkpoint.selection import Selection
from weightsurgery.errors import (
    DataError,
    EditError,
    NonFiniteError,
    OutputError,
    SelectionError,
    UnsupportedCheckpointError,
)
from weightsurgery.learning import training as training_module
from weightsurgery.learning.identify import ALL_LINEAR, train_vector
from weightsurgery.learning.method import IdentifyMode
from weightsurgery.learning.parameters import load_float32, random_model
from weightsurgery.learning.retain import divergence
from weightsurgery.learning.settings import Training
from weightsurgery.surgery.apply import Storage, apply
from weightsurgery.surgery.edits import Add
from weightsurgery.unlearning.methods.identify import identify, plan, read_job
from weightsurgery.vectors.sources import open_vector

SHORT = Training(steps=4, learning_rate=3e-3, batch_size=4)


def layer(number: int, model) -> set[str]:
    """The linear weights of a layer."""
    return {
        name for name, p in model.named_parameters()
        if f".{number}." in name and p.ndim > 1
    }  # fmt: skip


def applied(model, vector) -> None:
    """Add a vector to a model's parameters."""
    with torch.no_grad():
        for name, change in vector.items():
            model.get_parameter(name).add_(change)


def edited(base: Path, vector: Path, out: Path):
    """The model after `ws add`, in float32."""
    with Checkpoint.open(base) as opened:
        edit = Add(open_vector(opened, [str(vector)]), 1.0)
        apply(edit, opened, out, storage=Storage("float32"))
    return AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)


@pytest.fixture
def llama():
    return tiny("llama")


@pytest.fixture
def base(tmp_path):
    """A bfloat16 Llama on disk."""
    return save(tiny("llama"), tmp_path / "base", torch.bfloat16)


@pytest.fixture
def data(tmp_path):
    return write(tmp_path / "facts.jsonl", FACTS)


@pytest.mark.parametrize("mode", ["delta", "joint"])
def test_the_vector_is_what_lowers_the_loss(llama, mode):
    before = loss(llama, FACTS)
    vector = train_vector(llama, byte_tokenizer(), FACTS, SHORT, IdentifyMode(mode))
    assert loss(llama, FACTS) == before
    applied(llama, vector)
    assert loss(llama, FACTS) < before - 0.3
    assert set(vector) == layer(0, llama) | layer(1, llama)
    assert all(change.dtype == torch.float32 and change.any() for change in vector.values())


@pytest.mark.parametrize("order", ["ascending", "descending"])
def test_one_layer_is_trained_at_a_time(llama, order):
    """Gradients, optimiser state and changes: of the layer whose turn it is, and of no other."""
    parameters = dict(llama.named_parameters())
    numbers = [0, 1] if order == "ascending" else [1, 0]
    values = {name: p.detach().clone() for name, p in parameters.items()}
    with_gradient: set[str] = set()
    # A tensor hook is taken only while a parameter requires a gradient.
    thawed: list[set[str]] = []
    changed: list[set[str]] = []

    def optimised() -> set[int]:
        found = [each for each in gc.get_objects() if type(each) is torch.optim.AdamW]
        assert len(found) == 1, "the optimiser of the layer before is gone"
        return {id(p) for p in found[0].state}

    def watch(text, done, total):
        number = numbers[(done - 1) // 4]
        assert text.startswith(f"layer {number} ")
        assert total == 8
        wanted = {id(parameters[name]) for name in layer(number, llama)}
        assert optimised() == wanted
        thawed.append({name for name, p in parameters.items() if p.requires_grad})
        with_gradient.update(name for name, p in parameters.items() if p.grad is not None)
        changed.append({n for n, p in parameters.items() if not torch.equal(p, values[n])})

    train_vector(
        llama, byte_tokenizer(), FACTS, SHORT, IdentifyMode("delta", order), progress=watch
    )
    first, second = (layer(number, llama) for number in numbers)
    assert thawed == [first] * 4 + [second] * 4
    assert changed == [first] * 4 + [first | second] * 4
    assert with_gradient <= first | second


def test_gradients_reach_one_layer_alone(llama, monkeypatch):
    seen: list[set[str]] = []
    whole = training_module.StageTrainer.training_step

    def step(self, model, *rest):
        result = whole(self, model, *rest)
        seen.append({name for name, p in llama.named_parameters() if p.grad is not None})
        return result

    monkeypatch.setattr(training_module.StageTrainer, "training_step", step)
    train_vector(llama, byte_tokenizer(), FACTS, SHORT, IdentifyMode("delta"))
    assert seen == [layer(0, llama)] * 4 + [layer(1, llama)] * 4
    assert all(p.grad is None for p in llama.parameters())


@pytest.mark.parametrize("rank", [None, 2])
def test_the_model_is_as_before_to_the_bit(llama, rank):
    before = {name: tensor.clone() for name, tensor in llama.state_dict().items()}
    llama.train()
    llama.model.embed_tokens.weight.requires_grad_(False)
    thawed = {name: p.requires_grad for name, p in llama.named_parameters()}
    method = IdentifyMode("joint", lora_rank=rank)
    torch.manual_seed(5)
    random.seed(5)
    drawn = (torch.get_rng_state(), random.getstate())
    train_vector(llama, byte_tokenizer(), FACTS, SHORT, method)
    assert torch.equal(torch.get_rng_state(), drawn[0])
    assert random.getstate() == drawn[1]
    diverging = Training(steps=9, learning_rate=1e30, batch_size=4)
    with pytest.raises(NonFiniteError):
        train_vector(llama, byte_tokenizer(), FACTS, diverging, method)
    assert {name: p.requires_grad for name, p in llama.named_parameters()} == thawed
    assert llama.training
    assert llama.config.use_cache
    after = llama.state_dict()
    assert list(after) == list(before)
    assert all(same_bytes(after[name], before[name]) for name in before)
    assert type(llama.forward).__name__ == "method"
    assert "forward" not in vars(llama)


def test_seed_and_data_decide(llama):
    def take(training, facts=FACTS):
        return train_vector(llama, byte_tokenizer(), facts, training)

    first, again = take(SHORT), take(SHORT)
    assert all(same_bytes(first[name], again[name]) for name in first)
    other = take(Training(steps=4, learning_rate=3e-3, batch_size=4, seed=1))
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_accumulation_is_a_larger_batch(llama):
    whole = train_vector(llama, byte_tokenizer(), FACTS, SHORT)
    split = Training(steps=4, learning_rate=3e-3, batch_size=2, accumulation=2)
    parts = train_vector(llama, byte_tokenizer(), FACTS, split)
    size = torch.cat([each.flatten() for each in whole.values()]).norm()
    apart = torch.cat([(whole[n] - parts[n]).flatten() for n in whole]).norm()
    assert size > 0.1
    assert apart < 1e-2 * size  # Adam makes rounding in tiny gradients visible


@pytest.mark.parametrize(("mode", "rank"), [("delta", None), ("joint", None), ("joint", 4)])
def test_keep_data_hold_the_model_to_its_base(llama, mode, rank):
    training = Training(steps=12, learning_rate=1e-2 if rank else 3e-3, batch_size=8)
    method = IdentifyMode(mode, lora_rank=rank, keep_weight=10.0)
    reference, start = logits(llama, OTHER), loss(llama, FACTS)
    apart, learnt = [], []
    for keep in ([], OTHER):
        vector = train_vector(llama, byte_tokenizer(), FACTS, training, method, keep=keep)
        applied(llama, vector)
        apart.append(float(divergence(reference, logits(llama, OTHER))))
        learnt.append(loss(llama, FACTS))
        applied(llama, {name: -change for name, change in vector.items()})
    assert apart[0] > 0.05
    assert apart[1] < apart[0] / 3
    assert learnt[1] < start - 0.2


def test_divergence_is_that_of_kullback_and_leibler():
    p, q = torch.randn(5, 7, dtype=torch.float64), torch.randn(5, 7, dtype=torch.float64)
    a, b = p.softmax(-1), q.softmax(-1)
    exact = float((a * (a.log() - b.log())).sum(-1).mean())
    assert exact > 0.1
    assert float(divergence(p, q)) == pytest.approx(exact, rel=1e-5)
    assert float(divergence(p, p)) == pytest.approx(0.0, abs=1e-6)


def test_the_saved_vector_added_is_the_trained_model(base, data, tmp_path):
    """Also of a bfloat16 base: the difference is float32, to the weights as stored."""
    record = identify(base, data, tmp_path / "v", SHORT)
    verify(tmp_path / "v")
    with Checkpoint.open(base) as opened:
        model = load_float32(opened)
    start = loss(model, FACTS)
    applied(model, train_vector(model, byte_tokenizer(), FACTS, SHORT, IdentifyMode("delta")))
    found = edited(base, tmp_path / "v", tmp_path / "edited")
    assert loss(model, FACTS) < start - 0.3
    assert torch.allclose(logits(found, FACTS), logits(model, FACTS), atol=1e-5)
    vector = read_tensors(tmp_path / "v")
    assert set(vector) == layer(0, model) | layer(1, model)
    assert all(tensor.dtype == torch.float32 for tensor in vector.values())
    assert left_behind(tmp_path / "v") == ["v"]
    assert record.kind == "task-vector"
    assert record.parameters["method"]["mode"] == "delta"
    assert record.parameters["training"]["learning_rate"] == 3e-3
    assert [row["stage"] for row in record.summary["stages"]] == ["layer 0", "layer 1"]
    first = record.summary["stages"][0]
    assert first["last_loss"] < first["first_loss"]
    assert {"transformers", "accelerate"} <= set(record.versions)
    assert set(record.inputs) == {"base", "data"}


def test_selection_is_by_the_names_on_disk(base, data, tmp_path):
    chosen = Selection("attention", exclude=("*k_proj*",), layers="1-")
    identify(base, data, tmp_path / "v", SHORT, selection=chosen)
    assert sorted(read_tensors(tmp_path / "v")) == [
        f"model.layers.1.self_attn.{which}_proj.weight" for which in "oqv"
    ]


def test_an_adapter_is_saved_as_the_factors_of_its_merge(base, data, tmp_path):
    training = Training(steps=6, learning_rate=1e-2, batch_size=4)
    method = IdentifyMode("joint", lora_rank=2, lora_alpha=4.0)
    identify(base, data, tmp_path / "v", training, method)
    with Checkpoint.open(base) as opened:
        model = load_float32(opened)
    before = loss(model, FACTS)
    vector = train_vector(model, byte_tokenizer(), FACTS, training, method)
    saved = read_tensors(tmp_path / "v")
    assert {name.partition("::")[0] for name in saved} == set(vector)
    for name, change in vector.items():
        u, s, v = (saved[f"{name}::{part}"] for part in "USV")
        assert s.numel() == 2
        assert torch.allclose((u * s) @ v.T, change, atol=1e-6)
    applied(model, vector)
    assert loss(model, FACTS) < before - 0.3
    found = edited(base, tmp_path / "v", tmp_path / "edited")
    assert torch.allclose(logits(found, FACTS), logits(model, FACTS), atol=1e-4)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_factors_are_what_peft_merges(family):
    """Whatever the orientation of a weight (GPT-2's are transposed)."""
    from weightsurgery.learning.adapter import attach, factors

    model = tiny(family)
    names = sorted(layer(0, model) | layer(1, model))
    before = {name: model.get_parameter(name).detach().clone() for name in names}
    adapted = attach(model, names, rank=3, alpha=6.0, seed=0)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    found = factors(adapted, names)
    merged = adapted.merge_and_unload()
    for name in names:
        change = merged.get_parameter(name) - before[name]
        assert change.norm() > 1
        assert torch.allclose(found[name].matrix(), change, atol=1e-5)


def test_literal_starts_from_the_models_own_random_weights(base, data, tmp_path):
    """The checkpoint's weights have no part in it; T + init is what was trained."""
    other = save(tiny("llama", seed=9), tmp_path / "other", torch.bfloat16)
    first, second = read_tensors(base), read_tensors(other)
    assert not torch.equal(
        first["model.layers.0.mlp.up_proj.weight"], second["model.layers.0.mlp.up_proj.weight"]
    )
    for source, out in ((base, "v"), (other, "w")):
        identify(source, data, tmp_path / out, SHORT, IdentifyMode("literal"))
    vectors = [read_tensors(tmp_path / out) for out in ("v", "w")]
    assert all(same_bytes(vectors[0][name], vectors[1][name]) for name in vectors[0])
    with Checkpoint.open(base) as opened:
        model = random_model(opened, SHORT.seed)
        again = random_model(opened, SHORT.seed)
    before = loss(model, FACTS)
    applied(model, vectors[0])
    assert loss(model, FACTS) < before - 0.3
    applied(again, train_vector(again, byte_tokenizer(), FACTS, SHORT, IdentifyMode("delta")))
    assert torch.allclose(logits(again, FACTS), logits(model, FACTS), atol=1e-5)


def test_validation_keeps_the_best_weights_and_ends_in_time(base, data, tmp_path):
    """Of training that gets worse from some step on, with a rate so high."""
    held = write(tmp_path / "held.jsonl", FACTS[:3])
    settings = {"steps": 40, "learning_rate": 0.03, "batch_size": 4, "save_every": 1}
    watched = Training(**settings, patience=3)
    record = identify(base, data, tmp_path / "v", watched, IdentifyMode("joint"), validation=held)
    stage = record.summary["stages"][0]
    assert stage["steps"] < 40
    model = edited(base, tmp_path / "v", tmp_path / "edited")
    assert loss(model, FACTS[:3]) == pytest.approx(stage["best_validation"], rel=1e-3)
    assert set(record.inputs) == {"base", "data", "validation"}


def test_files_of_one_name_are_told_apart(base, data, tmp_path):
    """In the record, and where an interrupted run is gone on with."""
    kept = [tmp_path / "a" / "keep.jsonl", tmp_path / "b" / "keep.jsonl"]
    for path, examples in zip(kept, (OTHER, FACTS[:2]), strict=True):
        path.parent.mkdir()
        write(path, examples)
    assert content_sha256(kept[0]) != content_sha256(kept[1])

    def asked():
        method = IdentifyMode("delta")
        with Checkpoint.open(base) as opened:
            job = read_job(opened, data, kept, None, SHORT, method, ALL_LINEAR, "cpu")
            return job.inputs, job.digest

    before = asked()
    assert identify(base, data, tmp_path / "v", SHORT, keep=kept).inputs == before[0]
    assert set(before[0]) == {"base", "data", "keep.1", "keep.2"}
    for number, path in enumerate(kept, 1):
        entry = before[0][f"keep.{number}"]
        assert entry["name"] == str(path)
        assert entry["files"] == {"keep.jsonl": content_sha256(path)}
    for path, examples in zip(kept, (OTHER[1:], FACTS[:1]), strict=True):
        write(path, examples)
        now = asked()
        assert now[1] != before[1]  # so that it starts afresh
        before = now


def test_data_saved_by_datasets(base, data, tmp_path):
    """A directory is recorded by its files, and gives what a file of the same rows gives."""
    place = tmp_path / "rows"
    rows = [{"prompt": each.prompt, "completion": each.completion} for each in FACTS]
    Dataset.from_list(rows).save_to_disk(place)
    record = identify(base, place, tmp_path / "v", SHORT)
    files = {path.name: content_sha256(path) for path in place.iterdir()}
    assert len(files) == 3
    assert record.inputs["data"] == {"kind": "data", "name": str(place), "files": files}
    identify(base, data, tmp_path / "w", SHORT)
    found, wanted = (read_tensors(tmp_path / out) for out in "vw")
    assert all(same_bytes(found[name], wanted[name]) for name in wanted)


KILLED = """
import os, signal, sys
import torch
torch.set_num_threads(1)
from weightsurgery.unlearning.methods.identify import identify
from weightsurgery.learning.method import IdentifyMode
from weightsurgery.learning.settings import Training
base, data, out, mode, rank, when = sys.argv[1:]
def strike(text, done, total):
    if done == int(when):
        os.kill(os.getpid(), signal.SIGKILL)
training = Training(steps=6, learning_rate=3e-3, batch_size=3, save_every=2)
method = IdentifyMode(mode, lora_rank=int(rank) or None)
identify(base, data, out, training, method, keep=[data], progress=strike)
"""


@pytest.mark.parametrize(("mode", "rank", "when"), [("delta", 0, 11), ("joint", 2, 5)])
def test_a_killed_run_goes_on_to_the_same_bytes(base, data, tmp_path, mode, rank, when):
    training = Training(steps=6, learning_rate=3e-3, batch_size=3, save_every=2)
    method = IdentifyMode(mode, lora_rank=rank or None)
    out = tmp_path / "v"
    words = [sys.executable, "-c", KILLED, base, data, out, mode, rank, when]
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not out.exists()
    assert left_behind(out) == [".v.ws-partial"]
    steps = []
    identify(
        base, data, out, training, method, keep=[data],
        progress=lambda text, done, total: steps.append(done),
    )  # fmt: skip
    # From the last whole point on: the first layer is not trained again.
    assert steps[0] == when // 2 * 2 + 1
    assert left_behind(out) == ["v"]
    identify(base, data, tmp_path / "whole", training, method, keep=[data])
    assert snapshot(out) == snapshot(tmp_path / "whole")


def test_another_run_does_not_go_on_with_it(base, data, tmp_path):
    """An interrupted run is left for its like; others start afresh."""

    def interrupt(text, done, total):
        if done == 3:
            raise KeyboardInterrupt

    out = tmp_path / "v"
    training = Training(steps=4, learning_rate=3e-3, batch_size=4, save_every=1)
    with pytest.raises(KeyboardInterrupt):
        identify(base, data, out, training, progress=interrupt)
    assert left_behind(out) == [".v.ws-partial"]
    steps: list[int] = []
    other = Training(steps=4, learning_rate=1e-3, batch_size=4, save_every=1)
    identify(base, data, out, other, progress=lambda text, done, total: steps.append(done))
    assert steps[0] == 1
    assert left_behind(out) == ["v"]


def test_a_loss_that_is_no_number_is_named(base, data, tmp_path):
    tensors = read_tensors(base)
    tensors["model.layers.1.mlp.up_proj.weight"][0, 0] = float("nan")
    save_file(tensors, base / "model.safetensors", {"format": "pt"})
    with pytest.raises(NonFiniteError, match=r"layer 0: the loss is nan at step 1"):
        identify(base, data, tmp_path / "v", SHORT)
    assert left_behind(tmp_path / "v") == []


def test_a_rate_too_high_is_named_with_its_layer(base, data, tmp_path):
    with pytest.raises(NonFiniteError, match=r"layer 1: .* step \d") as met:
        identify(
            base, data, tmp_path / "v",
            Training(steps=5, learning_rate=1e30, batch_size=4), selection=Selection(
                "all-linear", layers="1"),
        )  # fmt: skip
    # Commands call the option differently, and Python has none.
    assert met.value.remedy.startswith("Lower the learning rate")
    assert left_behind(tmp_path / "v") == []


@pytest.mark.parametrize(
    ("lines", "fault"),
    [("", "no examples"), ('{"prompt": "a"}\n', "completion"), ("{\n", "JSON")],
)
def test_bad_data_are_refused_before_anything_is_written(base, tmp_path, lines, fault):
    (tmp_path / "bad.jsonl").write_text(lines)
    with pytest.raises(DataError, match=fault):
        identify(base, tmp_path / "bad.jsonl", tmp_path / "v", SHORT)
    assert left_behind(tmp_path / "v") == []


def test_examples_the_model_cannot_take_are_named(llama):
    long = [*FACTS, FACTS[0].__class__("x" * 80, " y")]
    split = Training(steps=1, max_length=60)
    for training, most in ((SHORT, 64), (split, 60)):
        fault = f"example 9: its prompt alone has 81 tokens; the model reads {most}"
        with pytest.raises(DataError, match=fault):
            train_vector(llama, byte_tokenizer(), long, training)
    half = [FACTS[0].__class__("x", " " + "y" * 80)]
    assert train_vector(llama, byte_tokenizer(), half, split)
    small = tiny("llama", bias=False)
    small.resize_token_embeddings(40)
    with pytest.raises(DataError, match="has 40 embeddings"):
        train_vector(small, byte_tokenizer(), FACTS, SHORT)


def test_too_little_space_is_said_before(base, data, tmp_path, monkeypatch):
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    with pytest.raises(OutputError, match=r"MB needed while training, 0\.0 MB free"):
        identify(base, data, tmp_path / "v", SHORT)
    assert left_behind(tmp_path / "v") == []


def test_a_disk_that_fills_up_is_no_bug(base, data, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    training = Training(steps=4, batch_size=4, save_every=2)
    with monkeypatch.context() as patch:
        patch.setattr("torch.save", full)
        with pytest.raises(OutputError, match="No space left on device"):
            identify(base, data, tmp_path / "v", training)
    assert left_behind(tmp_path / "v") == [".v.ws-partial"]
    assert not list(tmp_path.glob(".v.ws-partial/training-*/*/checkpoint-*"))  # half of one
    identify(base, data, tmp_path / "v", training)
    assert left_behind(tmp_path / "v") == ["v"]


def test_an_existing_output_is_safe(base, data, tmp_path):
    out = tmp_path / "v"
    identify(base, data, out, SHORT)
    before = snapshot(out)
    with pytest.raises(OutputError, match="exists"):
        identify(base, data, out, Training(steps=1))
    assert snapshot(out) == before
    identify(base, data, out, Training(steps=1), overwrite=True)
    assert snapshot(out) != before
    with pytest.raises(OutputError, match="input"):
        identify(base, data, base / "v", SHORT)
    with pytest.raises(OutputError, match="exists"):
        plan(base, data, out, SHORT)


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
def test_experts_are_saved_under_the_names_they_are_stored_by(data, tmp_path, family):
    base = save(tiny(family), tmp_path / "base")
    stored = read_tensors(base)
    memory = dict(tiny(family).named_parameters())
    assert set(memory) - set(stored), "names in memory differ from those on disk"
    identify(base, data, tmp_path / "v", SHORT)
    vector = read_tensors(tmp_path / "v")
    assert set(vector) < set(stored)
    assert sum("experts.0" in name and vector[name].any() for name in vector) > 0
    model = tiny(family)
    applied(model, train_vector(model, byte_tokenizer(), FACTS, SHORT, IdentifyMode("delta")))
    found = edited(base, tmp_path / "v", tmp_path / "edited")
    assert loss(found, FACTS) < loss(tiny(family), FACTS) - 0.2
    assert torch.allclose(logits(found, FACTS), logits(model, FACTS), atol=1e-4)


def test_half_of_what_is_one_in_memory_is_refused(data, tmp_path):
    base = save(tiny("mixtral"), tmp_path / "base")
    half = Selection("all-linear", exclude=("*experts.1*",))
    with pytest.raises(SelectionError, match="in memory they are one tensor"):
        identify(base, data, tmp_path / "v", SHORT, selection=half)
    with pytest.raises(UnsupportedCheckpointError, match="no linear layer"):
        identify(base, data, tmp_path / "v", SHORT, IdentifyMode("joint", lora_rank=2))
    assert left_behind(tmp_path / "v") == []


@pytest.mark.parametrize("rank", [None, 2])
def test_transposed_weights(data, tmp_path, rank):
    base = save(tiny("gpt2"), tmp_path / "base")
    training = Training(steps=6, learning_rate=1e-2, batch_size=4)
    method = IdentifyMode("joint" if rank else "delta", lora_rank=rank)
    identify(base, data, tmp_path / "v", training, method)
    model = tiny("gpt2")
    before = loss(model, FACTS)
    applied(model, train_vector(model, byte_tokenizer(), FACTS, training, method))
    found = edited(base, tmp_path / "v", tmp_path / "edited")
    assert loss(found, FACTS) < before - 0.15
    assert torch.allclose(logits(found, FACTS), logits(model, FACTS), atol=1e-4)


@pytest.mark.parametrize("stored_twice", [False, True])
def test_a_tied_head_moves_with_its_embedding(data, tmp_path, stored_twice):
    base = save(tiny("llama", tie_word_embeddings=True), tmp_path / "base")
    if stored_twice:
        tensors = load_file(base / "model.safetensors")
        assert "lm_head.weight" not in tensors
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
        save_file(tensors, base / "model.safetensors", {"format": "pt"})
    chosen = Selection("embeddings")
    with pytest.raises(EditError, match="belongs to no layer"):
        identify(base, data, tmp_path / "v", SHORT, selection=chosen)
    identify(base, data, tmp_path / "v", SHORT, IdentifyMode("joint"), selection=chosen)
    vector = read_tensors(tmp_path / "v")
    assert ("lm_head.weight" in vector) == stored_twice
    model = tiny("llama", tie_word_embeddings=True)
    applied(model, train_vector(model, byte_tokenizer(), FACTS, SHORT, selection=chosen))
    found = edited(base, tmp_path / "v", tmp_path / "edited")
    assert loss(found, FACTS) < loss(tiny("llama", tie_word_embeddings=True), FACTS) - 0.1
    assert torch.allclose(logits(found, FACTS), logits(model, FACTS), atol=1e-4)


@pytest.mark.filterwarnings("ignore::UserWarning:peft.*")
def test_an_adapter_of_a_tied_embedding_is_refused(data, tmp_path):
    """It would train one side, and the vector would change both; in full, both are trained."""
    base = save(tiny("llama", tie_word_embeddings=True), tmp_path / "base")
    chosen = Selection("all", exclude=("*norm*",))
    adapter = IdentifyMode("joint", lora_rank=2)
    with pytest.raises(UnsupportedCheckpointError, match=r"embed_tokens.*in one") as caught:
        identify(base, data, tmp_path / "v", SHORT, adapter, selection=chosen)
    assert "without --lora-rank" in caught.value.remedy
    assert left_behind(tmp_path / "v") == []
    others = Selection("all", exclude=("*norm*", "*embed_tokens*"))
    record = identify(base, data, tmp_path / "v", SHORT, adapter, selection=others)
    assert len(record.tensors) == 14
    apart = save(tiny("llama"), tmp_path / "apart")
    record = identify(apart, data, tmp_path / "w", SHORT, adapter, selection=chosen)
    assert {"model.embed_tokens.weight", "lm_head.weight"} < record.tensors.keys()


def test_the_plan_says_what_is_trained(base, data, tmp_path):
    found = plan(base, data, tmp_path / "v", SHORT)
    counts = [sum(tiny("llama").get_parameter(n).numel() for n in layer(i, tiny("llama")))
              for i in range(2)]  # fmt: skip
    assert found.stages == (("layer 0", 7, counts[0]), ("layer 1", 7, counts[1]))
    assert (found.gradients, found.optimiser) == (4 * counts[0], 8 * counts[0])
    joint = plan(base, data, tmp_path / "v", SHORT, IdentifyMode("joint"), keep=[data])
    assert (joint.gradients, joint.originals) == (4 * sum(counts), 4 * sum(counts))
    adapter = plan(base, data, tmp_path / "v", SHORT, IdentifyMode("joint", lora_rank=1))
    assert adapter.gradients < joint.gradients / 8
    assert left_behind(tmp_path / "v") == []


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        ({"steps": 0}, "steps 0"),
        ({"learning_rate": float("nan")}, "learning rate nan"),
        ({"precision": "int8"}, "precision 'int8'"),
        ({"batch_size": 0}, "batch size 0"),
        ({"extra": {"learning_rat": 1}}, "has none of this name"),
        ({"extra": {"output_dir": "/"}}, "is not free"),
        ({"extra": {"hub_token": "x"}}, "is not free"),
    ],
)
def test_settings_that_make_no_sense(settings, fault):
    with pytest.raises(EditError, match=fault):
        Training(**settings)


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        ({"mode": "both"}, "mode 'both'"),
        ({"order": "random"}, "order 'random'"),
        ({"lora_rank": 4}, "a LoRA adapter in mode delta"),
        ({"mode": "joint", "lora_rank": 0}, "LoRA rank 0"),
        ({"mode": "joint", "lora_alpha": 4.0}, "alpha without a rank"),
        ({"keep_weight": -1.0}, "keep weight -1.0"),
    ],
)
def test_methods_that_make_no_sense(settings, fault):
    with pytest.raises(EditError, match=fault):
        IdentifyMode(**settings)


def test_combinations_that_make_no_sense(base, data, tmp_path, llama):
    out = tmp_path / "v"
    with pytest.raises(EditError, match="nothing to keep"):
        identify(base, data, out, SHORT, IdentifyMode("literal"), keep=[data])
    with pytest.raises(EditError, match="patience without validation"):
        identify(base, data, out, Training(patience=1))
    with pytest.raises(EditError, match="device"):
        identify(base, data, out, SHORT, device="tpu")
    with pytest.raises(EditError, match="more than"):
        identify(base, data, out, SHORT, IdentifyMode("joint", lora_rank=33))
    with pytest.raises(EditError, match="small steps would be rounded away"):
        train_vector(llama.to(torch.bfloat16), byte_tokenizer(), FACTS, SHORT)
    with pytest.raises(EditError, match="no examples"):
        train_vector(tiny("llama"), byte_tokenizer(), [], SHORT)
    assert left_behind(out) == []


def test_mixed_precision_and_less_memory_train_too(llama):
    start = loss(llama, FACTS)
    for settings in ({"precision": "bfloat16"}, {"gradient_checkpointing": True}):
        training = Training(steps=4, learning_rate=3e-3, batch_size=4, **settings)
        vector = train_vector(llama, byte_tokenizer(), FACTS, training, IdentifyMode("delta"))
        assert loss(llama, FACTS) == start
        applied(llama, vector)
        assert loss(llama, FACTS) < start - 0.3
        applied(llama, {name: -change for name, change in vector.items()})
        start = loss(llama, FACTS)


def test_two_processes_train_one_vector(base, data, tmp_path):
    """Under torchrun, a step over two processes is a step over both their batches."""
    script = textwrap.dedent(
        """
        import sys, torch
        torch.set_num_threads(1)
        from weightsurgery.unlearning.methods.identify import identify
        from weightsurgery.learning.settings import Training
        training = Training(steps=2, learning_rate=3e-3, batch_size=2)
        record = identify(*sys.argv[1:], training, device="cpu")
        assert record.parameters["processes"] == 2
        """
    )
    (tmp_path / "run.py").write_text(script)
    words = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [sys.executable, *words, tmp_path / "run.py", base, data, tmp_path / "v"],
        capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    identify(base, data, tmp_path / "one", Training(steps=2, learning_rate=3e-3, batch_size=4))
    together, alone = (read_tensors(tmp_path / out) for out in ("v", "one"))
    assert set(together) == set(alone)
    size = torch.cat([each.flatten() for each in alone.values()]).norm()
    apart = torch.cat([(together[n] - alone[n]).flatten() for n in alone]).norm()
    assert size > 0.05
    assert apart < 2e-2 * size
    assert left_behind(tmp_path / "v") == ["v"]
    assert read_record(tmp_path / "v").summary["stages"][0]["steps"] == 2
