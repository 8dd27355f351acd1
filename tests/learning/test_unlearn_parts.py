"""A step in parts, micro-steps or processes, is the step at once: for every unlearner."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.learning.losses import UNLEARNERS
from tests.learning.tiny import byte_tokenizer, loss, tiny
from weightsurgery.learning.data import Collator, Example, encode_all
from weightsurgery.learning.settings import Training
from weightsurgery.learning.unlearners.batch_outputs import BatchTotals
from weightsurgery.learning.unlearners.run import train_unlearner
from weightsurgery.learning.unlearners.settings import settings_of
from weightsurgery.learning.unlearners.shares import share_out

# Answers of 3 to 17 tokens: no two parts of a batch hold equally many.
GOING = [Example(f"The song of {name} is", f" {'zxqvkjwy'[i]}" * (1 + 3 * i % 8)) for i, name in
         enumerate("abcdefgh")]  # fmt: skip
STAYING = [Example(f"{a} times {a} is", f" {'AEIOUYW'[a]}" * (1 + 5 * a % 7)) for a in range(7)]
NEVER = [Example(f"The road of {name} is", " no" * (1 + i)) for i, name in enumerate("ijkl")]

HELPERS = {"helper_steps": 3, "helper_rate": 1e-3}
ROWS = {
    **{name: (name, {}, None) for name in UNLEARNERS},
    "kul": ("kul", {"n": 2}, None),
    "npo gdr": ("npo", {"retain": "gdr"}, None),
    "npo klr": ("npo", {"retain": "klr"}, None),
    "kga": ("kga", HELPERS, None),
    "au": ("au", HELPERS, None),
    "rmu": ("rmu", {"coefficient": 20, "alpha": 100}, None),
    "gradient-difference in an adapter": ("gradient-difference", {}, 4),
}


def opinionated():
    """A model that is far from indifferent: what it says of one answer is not what of another."""
    model = tiny("llama")
    with torch.no_grad():
        model.lm_head.weight.mul_(8)
    return model


def found(model, row, batch, accumulation=1):
    """The change, as one vector, and the losses; plain gradient descent, which amplifies nothing.

    Steps of six, of eight examples: every other step is smaller than the first.
    """
    name, settings, rank = ROWS[row]
    kind = UNLEARNERS[name]
    made = train_unlearner(
        kind, model, byte_tokenizer(), GOING, STAYING,
        Training(steps=4, learning_rate=0.1, batch_size=batch, accumulation=accumulation,
                 extra={"optim": "sgd", "max_grad_norm": 0.0}),  # clipping would hide a factor
        settings_of(kind, settings), unseen=NEVER, lora_rank=rank,
    )  # fmt: skip
    parts = [t if isinstance(t, torch.Tensor) else t.matrix() for t in made.change.values()]
    flat = torch.cat([each.flatten() for each in parts])
    return flat, (made.trained.first_loss, made.trained.last_loss)


def same(whole, parts):
    (change, losses), (again, told) = whole, parts
    assert float(change.norm()) > 1e-4
    assert float((again - change).norm()) < 1e-4 * float(change.norm())
    assert told == pytest.approx(losses, rel=1e-4, abs=1e-5)


def test_means_of_parts_are_another_mean():
    """What the tests below would see if each part took the mean of its own."""
    model = opinionated()
    parts = [loss(model, GOING[i : i + 3]) for i in (0, 3)]
    assert abs(sum(parts) / 2 - loss(model, GOING[:6])) > 1e-2


@pytest.mark.parametrize("row", ROWS)
def test_accumulated_is_at_once(row):
    torch.set_num_threads(1)
    model = opinionated()
    same(found(model, row, 6), found(model, row, 3, 2))


def test_two_processes_are_one(tmp_path):
    """Also where the data do not go round, and one of them has nothing left in the last step."""
    torch.set_num_threads(1)
    here = str(Path(__file__).parents[2])
    program = (
        f"import sys; sys.path.insert(0, {here!r})\n"
        "import torch\n"
        "from accelerate import PartialState\n"
        "from tests.learning.test_unlearn_parts import ROWS, found, opinionated\n"
        "torch.set_num_threads(1)\n"
        "state = PartialState(cpu=True)\n"
        "assert state.num_processes == 2\n"
        "made = {row: found(opinionated(), row, 3) for row in ROWS}\n"
        "made |= {(row,): found(opinionated(), row, 1, 3) for row in ('npo gdr', 'kga')}\n"
        "if state.is_main_process: torch.save(made, sys.argv[1])\n"
    )
    (tmp_path / "program.py").write_text(program)
    launch = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_machines", "1"]
    launch += ["--num_processes", "2", "--main_process_port", "0"]
    launch += ["--mixed_precision", "no", "--dynamo_backend", "no"]
    done = subprocess.run(
        [sys.executable, *launch, str(tmp_path / "program.py"), str(tmp_path / "made.pt")],
        capture_output=True, text=True, timeout=900,
        env={**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    made = torch.load(tmp_path / "made.pt")
    model = opinionated()
    for row in ROWS:
        whole = found(model, row, 6)
        same(whole, made[row])
        if (row,) in made:  # accumulated as well, with fewer micro-steps in every other step
            same(whole, made[row,])
    assert len(made) == len(ROWS) + 2


@pytest.mark.parametrize(("rows", "passes", "micro", "processes"), [
    (7, 1, 1, 1), (7, 2, 2, 2), (7, 3, 1, 2), (2, 2, 2, 3), (1, 4, 2, 2), (7, 2, 1, 1),
])  # fmt: skip
def test_every_row_to_keep_is_in_one_share(rows, passes, micro, processes):
    batch = Collator(2)(encode_all(byte_tokenizer(), STAYING[:rows]))
    whole = BatchTotals.of(batch)
    seen, most = [], -(-rows // (passes * processes))
    for process in range(processes):
        shares = share_out(batch, passes, micro, (process, processes))
        assert len(shares) == micro
        assert all(shares)
        for share in (each for own in shares for each in own):
            assert share.whole.counts.tolist() == whole.counts.tolist()
            assert len(share.batch["labels"]) <= most  # no pass is larger than in a full step
            seen.append(BatchTotals.of(share.batch).counts)
    assert torch.stack(seen).sum(0).tolist() == whole.counts.tolist()
    assert len(share_out(batch, 1, 1, (0, 1))[0]) == 1
