"""What the plan of an edit from data says that is held, against formulas of its own."""

from __future__ import annotations

import pytest
import torch

from tests.learning.tiny import FACTS, OTHER, UNSEEN, save, tiny, write
from weightsurgery.checkpoint.reader import Checkpoint
from weightsurgery.learning.forget import ByNeighbours
from weightsurgery.learning.rounds import Rounds
from weightsurgery.procedures import unlearn
from weightsurgery.report.plans import data_plan_lines

D, F, LAYERS = 32, 48, 2  # of the tiny Llama, whose keys and values are as wide as its inputs
LINEAR = LAYERS * (4 * D * D + 3 * D * F)
Q = 4 * LAYERS * (3 * D * D + F * F)  # q, k and v are given the same, and so are gate and up
GATHERED = 2 * Q + 28 * F * F
ROUNDS = unlearn.Search(Rounds(objective="strangers"))


@pytest.fixture
def planned(tmp_path, monkeypatch):
    """Plans for a tiny model, on a machine that has two GPUs."""
    base = save(tiny("llama"), tmp_path / "base", torch.bfloat16)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    rows = {"forget": FACTS, "keep": OTHER, "watched": UNSEEN}
    files = {name: str(write(tmp_path / f"{name}.jsonl", some)) for name, some in rows.items()}

    def plan(how, device, watched=False):
        watch = (files["watched"],) if watched else ()
        sources = unlearn.Sources((files["forget"],), (files["keep"],), validation_keep=watch)
        with Checkpoint.open(base) as opened:
            return unlearn.plan(
                opened, sources, unlearn.Output(tmp_path / "out"), how, device=device
            )

    return plan


def test_rounds_on_the_processor_hold_all_in_one_memory(planned):
    plan = planned(ROUNDS, "cpu")
    # Beside the linear layers: embedding, head and five norms.
    assert (plan.trained, plan.weights) == (LINEAR, 4 * (LINEAR + 2 * 259 * D + 5 * D))
    assert (plan.training, plan.copies) == (20 * LINEAR, 0)
    assert plan.held == plan.weights + max(GATHERED + Q, 20 * LINEAR + Q)


def test_rounds_on_a_gpu_hold_copies_on_the_processor(planned):
    plan, watched = (planned(ROUNDS, "cuda:1", each) for each in (False, True))
    assert plan.held == watched.held == plan.weights + max(GATHERED, 12 * LINEAR + Q)
    assert plan.copies == 8 * LINEAR + Q
    assert watched.copies == 12 * LINEAR + Q
    assert plan.summary()["copies"] == plan.copies


@pytest.mark.parametrize("rank", [None, 4])
def test_a_system_holds_whole_copies_on_the_processor(planned, rank):
    """Also of an adapter, whose base is put back to the bit."""
    trained = LINEAR if rank is None else rank * LAYERS * (4 * 2 * D + 3 * (D + F))
    plan = planned(unlearn.MethodSettings("npo", lora_rank=rank), "cuda")
    assert plan.trained == trained
    # Gradients, two moments, and the model before.
    assert (plan.training, plan.copies) == (16 * trained, 4 * LINEAR + 4 * trained)
    alone = planned(unlearn.MethodSettings("npo", lora_rank=rank), "cpu")
    assert (alone.training, alone.copies) == (plan.training + plan.copies, 0)


def test_by_neighbours_a_look_is_copied_to_the_processor(planned):
    how = unlearn.Search(neighbours=ByNeighbours(rank=4))
    plan, alone = planned(how, "cuda"), planned(how, "cpu")
    assert (plan.training, plan.copies) == (16 * plan.trained, 4 * plan.trained)
    assert (alone.training, alone.copies) == (20 * plan.trained, 0)
    assert plan.held == plan.weights + max(plan.statistics, plan.training + plan.activations)


@pytest.mark.parametrize(("device", "said"), [("cpu", "and copies"), ("cuda", "by the processor")])
def test_a_plan_says_where(planned, device, said):
    table = data_plan_lines(planned(ROUNDS, device), "out")
    text = " ".join(
        str(each) for line in table for row in getattr(line, "rows", ()) for each in row
    )
    assert said in text
    assert "come on top" in text
