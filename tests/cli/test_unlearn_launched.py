"""``accelerate launch`` of ``ws unlearn``: two processes, one result."""

import json
import os
import subprocess
import sys

import torch

from tests.conftest import read_tensors
from tests.learning.tiny import FACTS, UNSEEN, save, trained_tiny, write
from weightsurgery.checkpoint.reader import Checkpoint
from weightsurgery.checkpoint.record import verify
from weightsurgery.procedures.unlearn import MethodSettings, Sources, unlearn

# Answers of several lengths: a mean of two halves' means is not the mean of all.
GOING = FACTS[:6]


def test_two_launched_processes_stop_together_and_write_once(tmp_path):
    """KUL, whose rule must end both, beside one process that sees the same batches."""
    torch.set_num_threads(1)
    assert len({len(each.completion) for each in GOING}) == 3
    base = save(trained_tiny(), tmp_path / "base")
    going, unseen = write(tmp_path / "f.jsonl", GOING), write(tmp_path / "u.jsonl", UNSEEN)
    (tmp_path / "ws.py").write_text("from weightsurgery.cli.main import main\n\nmain()\n")
    launch = ["-m", "accelerate.commands.launch", "--multi_gpu"]
    launch += ["--num_processes", "2", "--num_machines", "1", "--main_process_port", "0"]
    launch += ["--mixed_precision", "no", "--dynamo_backend", "no"]
    words = ["unlearn", base, "--method", "kul", "--forget", going, "--unseen", unseen]
    words += ["--set", "n=3", "--lr", "5e-4", "--batch", "3", "--device", "cpu", "--json"]
    done = subprocess.run(
        [sys.executable, *launch, str(tmp_path / "ws.py"), *map(str, words),
         "-o", str(tmp_path / "two")],
        capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)  # one of them told
    assert document["vector"]["parameters"]["processes"] == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "base", "f.jsonl", "two", "two.vector", "u.jsonl", "ws.py",
    ]  # fmt: skip
    verify(tmp_path / "two")

    how = MethodSettings("kul", {"n": 3}, {"learning_rate": 5e-4, "batch_size": 6})
    with Checkpoint.open(base) as opened:
        sources = Sources([str(going)], unseen=[str(unseen)])
        alone = unlearn(opened, sources, tmp_path / "one", how, device="cpu")
    one, two = alone.vector.summary["training"], verify(tmp_path / "two.vector").summary["training"]
    assert 1 < two["steps"] == one["steps"] < 20
    assert two["limits"] == one["limits"]
    assert all(two["reached"][name] < limit for name, limit in two["limits"].items())
    together, single = (read_tensors(tmp_path / each) for each in ("two.vector", "one.vector"))
    size = sum(float((t**2).sum()) for t in single.values()) ** 0.5
    apart = sum(float(((together[n] - t) ** 2).sum()) for n, t in single.items()) ** 0.5
    assert size > 0.05
    assert apart < 2e-2 * size
