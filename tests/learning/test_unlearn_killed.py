"""A training that was killed goes on to the same bytes, whatever it had left to remember."""

import json

import pytest
import torch

from tests.conftest import snapshot
from tests.learning.killed import killed
from tests.learning.losses import UNLEARNERS
from tests.learning.tiny import FACTS, OTHER, UNSEEN, save, trained_tiny, write
from weightsurgery.checkpoint.reader import Checkpoint
from weightsurgery.learning.models import load_model
from weightsurgery.learning.settings import Training
from weightsurgery.learning.unlearners.run import train_unlearner
from weightsurgery.learning.unlearners.settings import settings_of
from weightsurgery.procedures.unlearn import MethodSettings, Sources, unlearn

KILLED = """
import json
from weightsurgery.checkpoint.reader import Checkpoint
from weightsurgery.procedures.unlearn import MethodSettings, Sources, unlearn
base, forget, keep, unseen, out, how = sys.argv[1:]
with Checkpoint.open(base) as opened:
    sources, how = Sources([forget], [keep], unseen=[unseen]), MethodSettings(**json.loads(how))
    unlearn(opened, sources, out, how, device="cpu", progress=strike)
"""


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """A model with dropout, which draws at every step, and knows what is to go."""
    torch.set_num_threads(1)
    place = tmp_path_factory.mktemp("given")
    return [
        save(trained_tiny(attention_dropout=0.1), place / "base"),
        write(place / "forget.jsonl", FACTS),
        write(place / "keep.jsonl", OTHER),
        write(place / "unseen.jsonl", UNSEEN),
    ]


BRIEF = {"learning_rate": 1e-3, "batch_size": 3, "save_every": 2}
LONG = {"helper_steps": 3, "helper_rate": 1e-3, "stop": 0.0}

# What runs, at which steps (of all trainings together) it is killed, and where it goes on each
# time: after the last save before the kill, in the training that was running.
RUNS = {
    "in the third of four passes, in full": (
        {"method": "npo", "settings": {"retain": "klr"}, "training": {**BRIEF, "steps": 11}},
        [8], [7],
    ),
    # Every save is at the end of a pass, where the method is asked whether to end: it was, before.
    "between passes, of several micro-steps": (
        {"method": "kul", "settings": {"n": 3},
         "training": {**BRIEF, "learning_rate": 1e-4, "batch_size": 2, "accumulation": 2}},
        [5], [5],
    ),
    # The second helper is trained from the first save on, the first one not at all.
    "in a helper, then in the adapter after it": (
        {"method": "kga", "settings": LONG, "training": {**BRIEF, "steps": 7}, "lora_rank": 2},
        [6, 19], [6, 19],
    ),
}  # fmt: skip


def run(opened, given, out, how, **others):
    _, forget, keep, unseen = map(str, given)
    sources = Sources([forget], [keep], unseen=[unseen])
    return unlearn(opened, sources, out, MethodSettings(**how), device="cpu", **others)


@pytest.mark.parametrize("name", RUNS)
def test_a_killed_training_goes_on_to_the_same_bytes(given, tmp_path, name):
    how, kills, resumed = RUNS[name]
    out = tmp_path / "out"
    for when in kills:
        killed(KILLED, *given, out, json.dumps(how), when=when)
        assert [each.name for each in tmp_path.iterdir()] == [".out.vector.ws-partial"]
    steps = []
    with Checkpoint.open(given[0]) as opened:
        run(
            opened, given, out, how,
            progress=lambda text, done, total: "loss" in text and steps.append(done),
        )  # fmt: skip
        assert steps[0] == resumed[-1]
        assert sorted(each.name for each in tmp_path.iterdir()) == ["out", "out.vector"]
        whole = run(opened, given, tmp_path / "whole", how)
    assert whole.vector.summary["training"]["steps"] > resumed[-1] % 14
    assert snapshot(tmp_path / "out.vector") == snapshot(tmp_path / "whole.vector")


@pytest.mark.parametrize("name", ["kul", "kga"])
def test_what_was_saved_had_not_ended(given, tmp_path, name):
    """Killed after the last step, it takes that again, and ends there again, as if undisturbed."""
    model, tokenizer = load_model(given[0])
    settings = {"kul": {"n": 3}, "kga": {"helper_steps": 3, "helper_rate": 1e-3, "stop": 0.9}}
    steps = []

    def run(workspace):
        steps.clear()
        return train_unlearner(
            UNLEARNERS[name], model, tokenizer, FACTS, OTHER,
            Training(epochs=20, learning_rate=3e-4, batch_size=8, save_every=1),
            settings_of(UNLEARNERS[name], settings[name]), unseen=UNSEEN, workspace=workspace,
            progress=lambda text, done, total: steps.append(done),
        )  # fmt: skip

    first = run(tmp_path)
    ended = first.trained.steps
    assert 2 < ended < 20
    saved = [each.name for each in (tmp_path / "training").iterdir()]
    assert saved == [f"checkpoint-{ended - 1}"]
    again = run(tmp_path)
    assert len(steps) == 1
    for other in (again, run(None)):
        assert other.trained == first.trained
        assert other.notes == first.notes
        assert all(torch.equal(other.change[n], t) for n, t in first.change.items())
