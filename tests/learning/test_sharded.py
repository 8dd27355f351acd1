"""Models in pieces (FSDP2): two processes train what one process trains, and one writes it."""

import pytest
import torch

from tests.conftest import left_behind, read_tensors
from tests.learning.launched import launched
from tests.learning.tiny import FACTS, OTHER, UNSEEN, save, trained_tiny, write
from weightsurgery.checkpoint.reader import Checkpoint
from weightsurgery.checkpoint.record import read_record, verify
from weightsurgery.errors import EditError
from weightsurgery.learning.method import IdentifyMode
from weightsurgery.learning.parameters import load_float32
from weightsurgery.learning.settings import Training
from weightsurgery.learning.training import train_stage
from weightsurgery.procedures.unlearn import MethodSettings, Sources, unlearn
from weightsurgery.unlearning.methods.identify import identify
from weightsurgery.vectors.saved import SavedChange

# Of what one process changes, the share by which two may differ: float32 sums in another order.
CLOSE = 1e-3

# By name: further settings of the training, the mode, and what may differ.
SETTINGS = {
    "checkpointed": ({"gradient_checkpointing": True, "accumulation": 2}, "joint", CLOSE),
}
MODES = {
    "lora": IdentifyMode("joint", lora_rank=4),
    "joint": IdentifyMode("joint"),
    "delta": IdentifyMode("delta"),
}
# By name: the method, its settings, and the rank of an adapter.
METHODS = {
    "npo-lora": ("npo", {}, 4),
    "kga": ("kga", {"helper_steps": 2, "stop": 0.9}, None),
    "task-vector": ("task-vector", {}, None),
}


@pytest.fixture
def places(tmp_path):
    """The base, and data to learn or forget, to keep, and never seen."""
    torch.set_num_threads(1)
    data = {"facts": FACTS, "other": OTHER, "unseen": UNSEEN}
    files = [write(tmp_path / f"{name}.jsonl", rows) for name, rows in data.items()]
    return [save(trained_tiny(), tmp_path / "base"), *files]


def changes(base, place):
    """A saved vector, multiplied out."""
    from weightsurgery.checkpoint.source import resolve_source

    change = SavedChange(base, resolve_source(place))
    found = {}
    for name, entry in base.entries.items():
        delta = change.at(name)
        if delta is not None and len(entry.shape) == 2:
            found[name] = torch.zeros(entry.shape)
            before = base.tensor(name).float()
            delta.add_rows(found[name], 0, entry.shape[0], 1.0, before)
    return found


def trained(settings, batch):
    """A short training."""
    shared = batch // settings.get("accumulation", 1)
    return Training(steps=2, learning_rate=3e-3, batch_size=shared, **settings)


def assert_same(base, one, two, close=CLOSE):
    """Two vectors are one, and something."""
    with Checkpoint.open(base) as opened:
        single, together = changes(opened, one), changes(opened, two)
    assert set(single) == set(together)
    size = sum(float((t**2).sum()) for t in single.values()) ** 0.5
    apart = sum(float(((together[n] - t) ** 2).sum()) for n, t in single.items()) ** 0.5
    assert size > 0.05
    assert apart < close * size


SHARED = """
from tests.learning.test_sharded import METHODS, MODES, SETTINGS, identify, load_float32, trained
from tests.learning.test_sharded import Checkpoint, MethodSettings, Sources, unlearn
base, facts, other, unseen, out = sys.argv[1:]
training = {"steps": 2, "learning_rate": 3e-3, "batch_size": 4}
with Checkpoint.open(base) as opened:
    model = load_float32(opened, torch.device("cpu"))
    held = sum(each.to_local().numel() for each in model.parameters())
    assert held < 0.51 * sum(each.numel() for each in model.parameters())
    for name, mode in MODES.items():
        identify(base, facts, f"{out}/{name}", trained({}, 4), mode, device="cpu")
    for name, (settings, mode, _) in SETTINGS.items():
        identify(base, facts, f"{out}/{name}", trained(settings, 4), MODES[mode], device="cpu")
    for name, (method, settings, rank) in METHODS.items():
        how = MethodSettings(method, settings, training, lora_rank=rank)
        sources = Sources([facts], [other], unseen=[unseen])
        unlearn(opened, sources, f"{out}/{name}", how, device="cpu")
"""


def test_two_processes_with_a_half_each_train_one_vector(places, tmp_path):
    done = launched(tmp_path, SHARED, *places, tmp_path / "two")
    assert done.returncode == 0, done.stderr
    base, facts, other, unseen = places
    training = {"steps": 2, "learning_rate": 3e-3, "batch_size": 8}
    runs = {name: ({}, name, CLOSE) for name in MODES} | SETTINGS
    for name, (settings, mode, close) in runs.items():
        one, two = (tmp_path / each / name for each in ("one", "two"))
        identify(base, facts, one, trained(settings, 8), MODES[mode])
        assert_same(base, one, two, close)
        assert read_record(two).parameters["processes"] == 2
    with Checkpoint.open(base) as opened:
        sources = Sources([str(facts)], [str(other)], unseen=[str(unseen)])
        for name, (method, settings, rank) in METHODS.items():
            how = MethodSettings(method, settings, training, lora_rank=rank)
            unlearn(opened, sources, tmp_path / "one" / name, how, device="cpu")
            assert_same(base, tmp_path / f"one/{name}.vector", tmp_path / f"two/{name}.vector")
            verify(tmp_path / "two" / name)
    whole, edited = read_tensors(base), read_tensors(tmp_path / "two" / "kga")
    assert any(not torch.equal(whole[name], edited[name]) for name in whole)
    left = {path.name for path in (tmp_path / "two").iterdir()}
    assert left == {*runs, *METHODS, *(f"{name}.vector" for name in METHODS)}


STOPPED = """
from dataclasses import replace
from tests.learning.test_sharded import LONG, MODES, identify
def strike(text, done, total):
    if "loss" in text and done == 5:
        os.kill(os.getpid(), signal.SIGKILL)
base, facts, out, mode = sys.argv[1:]
identify(base, facts, out, replace(LONG, batch_size=4), MODES[mode], device="cpu", progress=strike)
"""

LONG = Training(steps=6, learning_rate=3e-3, batch_size=8, save_every=2)


@pytest.mark.parametrize("mode", ["lora", "joint"])
def test_one_process_goes_on_where_two_were_stopped(mode, places, tmp_path):
    """At step 4 of 6, from weights and moments of which each had saved a half."""
    base, facts, *_ = places
    done = launched(tmp_path, STOPPED, base, facts, tmp_path / "v", mode)
    assert "SIGKILL" in done.stderr
    assert not (tmp_path / "v").exists()
    steps = []
    identify(base, facts, tmp_path / "v", LONG, MODES[mode], progress=lambda *s: steps.append(s[1]))
    assert steps == [5, 6]
    identify(base, facts, tmp_path / "whole", LONG, MODES[mode])
    assert_same(base, tmp_path / "whole", tmp_path / "v")
    assert left_behind(tmp_path / "v") == ["v"]


@pytest.mark.parametrize(
    ("name", "value", "what"),
    [
        ("FSDP_VERSION", "1", "FSDP version 1"),
        ("FSDP_ACTIVATION_CHECKPOINTING", "true", "activation checkpointing by FSDP"),
        ("FSDP_OFFLOAD_PARAMS", "true", "weights on the processor"),
    ],
)
def test_what_is_not_done_is_refused(name, value, what, places, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    for key, usual in {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", name: value}.items():
        monkeypatch.setenv(key, usual)
    with Checkpoint.open(places[0]) as opened, pytest.raises(EditError, match=what):
        load_float32(opened, torch.device("cpu"))


def test_a_model_that_is_whole_is_not_trained_where_pieces_were_asked_for(monkeypatch):
    model = trained_tiny()
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(EditError, match="a whole model under FSDP"):
        train_stage(model, None, None, Training(), device=torch.device("cpu"))
