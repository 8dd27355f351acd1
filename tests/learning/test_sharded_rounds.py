"""Training inside the subspace by processes that hold pieces, and what else they look at."""

import torch

from tests.learning.launched import launched
from tests.learning.test_sharded import assert_same
from tests.learning.tiny import FACTS, OTHER, save, tiny, trained_tiny, write
from weightsurgery.checkpoint.reader import Checkpoint
from weightsurgery.checkpoint.record import verify
from weightsurgery.learning.rounds import Rounds
from weightsurgery.procedures.unlearn import Search, Sources, unlearn

# By name: the model, whose GPT-2 holds its matrices the other way round, and the objective.
RUNS = {
    "strangers": ("llama", "strangers"),
    "negate": ("llama", "negate"),
    "learn": ("gpt2", "learn"),
}


def search(objective: str) -> Search:
    """A short search."""
    rounds = Rounds(objective, rounds=2, steps=3, batch_size=8, draws=1, prompts=20)
    return Search(rounds, allow_harm=True)


PROGRAM = """
from tests.learning.test_sharded_rounds import RUNS, Checkpoint, Sources, search, unlearn
folder, out = sys.argv[1:]
for name, (family, objective) in RUNS.items():
    with Checkpoint.open(f"{folder}/{family}") as base:
        sources = Sources([f"{folder}/facts.jsonl"], [f"{folder}/other.jsonl"])
        unlearn(base, sources, f"{out}/{name}", search(objective), device="cpu")
"""


def test_two_processes_with_a_half_each_find_one_change(tmp_path):
    torch.set_num_threads(1)
    save(trained_tiny(), tmp_path / "llama")
    other_way = tiny("gpt2")
    # Without dropout, which each process draws for itself.
    other_way.config.resid_pdrop = other_way.config.embd_pdrop = other_way.config.attn_pdrop = 0.0
    save(other_way, tmp_path / "gpt2")
    facts, other = (
        str(write(tmp_path / f"{name}.jsonl", rows))
        for name, rows in (("facts", FACTS), ("other", OTHER))
    )
    done = launched(tmp_path, PROGRAM, tmp_path, tmp_path / "two")
    assert done.returncode == 0, done.stderr
    for name, (family, objective) in RUNS.items():
        with Checkpoint.open(tmp_path / family) as base:
            sources, one = Sources([facts], [other]), tmp_path / "one" / name
            unlearn(base, sources, one, search(objective), device="cpu")
        verify(tmp_path / "two" / name)
        pair = (tmp_path / each / f"{name}.vector" for each in ("one", "two"))
        assert_same(tmp_path / family, *pair)
