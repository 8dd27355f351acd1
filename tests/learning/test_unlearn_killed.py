"""A training that was killed goes on to the same bytes, whatever it had left to remember."""

import json

import pytest
import torch

from tests.conftest import snapshot
from tests.learning.killed import killed
from tests.learning.losses import UNLEARNERS
from tests.learning.test_unlearners import UNSEEN
from tests.learning.tiny import FACTS, OTHER, byte_tokenizer, save, tiny, write
from weightsurgery.checkpoint.reader import Checkpoint
from weightsurgery.checkpoint.selection import Selection
from weightsurgery.learning.identify import train_vector
from weightsurgery.learning.models import load_model
from weightsurgery.learning.settings import Training
from weightsurgery.learning.stages import set_values, values_of
from weightsurgery.learning.unlearners.run import train_unlearner
from weightsurgery.learning.unlearners.settings import settings_of
from weightsurgery.procedures.unlearn_by import Asked, How, unlearn_by

KILLED = """
import json
from weightsurgery.checkpoint.reader import Checkpoint
from weightsurgery.procedures.unlearn_by import Asked, How, unlearn_by
base, forget, keep, unseen, out, how = sys.argv[1:]
with Checkpoint.open(base) as opened:
    asked = Asked(opened, [forget], [keep], out, How(**json.loads(how)), unseen=[unseen],
                  device="cpu")
    unlearn_by(asked, progress=strike)
"""


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """A model with dropout, which draws at every step, and knows what is to go."""
    torch.set_num_threads(1)
    place = tmp_path_factory.mktemp("given")
    model = tiny("llama", attention_dropout=0.1)
    training = Training(steps=50, learning_rate=3e-3, batch_size=16, warmup=5)
    change = train_vector(
        model, byte_tokenizer(), FACTS + OTHER, training, selection=Selection("all")
    )
    before = values_of(model, list(change))
    set_values(model, {name: before[name] + t for name, t in change.items()})
    return [
        save(model, place / "base"),
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


def asked(opened, given, out, how):
    _, forget, keep, unseen = map(str, given)
    return Asked(opened, [forget], [keep], out, How(**how), unseen=[unseen], device="cpu")


@pytest.mark.parametrize("name", RUNS)
def test_a_killed_training_goes_on_to_the_same_bytes(given, tmp_path, name):
    how, kills, resumed = RUNS[name]
    out = tmp_path / "out"
    for when in kills:
        killed(KILLED, *given, out, json.dumps(how), when=when)
        assert [each.name for each in tmp_path.iterdir()] == [".out.vector.ws-partial"]
    steps = []
    with Checkpoint.open(given[0]) as opened:
        unlearn_by(
            asked(opened, given, out, how),
            progress=lambda text, done, total: "loss" in text and steps.append(done),
        )
        assert steps[0] == resumed[-1]
        assert sorted(each.name for each in tmp_path.iterdir()) == ["out", "out.vector"]
        whole = unlearn_by(asked(opened, given, tmp_path / "whole", how))
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
