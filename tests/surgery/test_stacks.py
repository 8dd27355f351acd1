"""Experts in one tensor: a discriminating edit does to a stack what it does to its matrices."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.checkpoint.namings import stored, truth
from tests.conftest import read_tensors, same_bytes, write_checkpoint
from weightsurgery import Learn, Project, Rank, apply, open_vector
from weightsurgery.checkpoint.reader import Checkpoint
from weightsurgery.checkpoint.selection import Selection
from weightsurgery.checkpoint.stacks import input_width, is_in_out, is_matrix, is_stack
from weightsurgery.errors import EditError, MismatchError
from weightsurgery.procedures.sweep import _factors
from weightsurgery.surgery.apply import Storage, plan_edit
from weightsurgery.vectors.deltas import Delta, FactorDelta, StackDelta
from weightsurgery.vectors.statistics import MappedStatistics
from weightsurgery.vectors.task_vector import MappedChange, TaskVector

Tensors = dict[str, torch.Tensor]
BLOCK = "model.layers.0.mlp.experts"


def models(root: Path, layout: str, **size: int) -> Path:
    """A base and two fine-tunes of it, stored in a layout."""
    base = truth(1, **size)
    for number, name in enumerate(("base", "forget", "keep")):
        tensors = base
        if number:
            moved = truth(1, **size, seed=number)
            tensors = {key: base[key] + 0.01 * moved[key] for key in base}
        write_checkpoint(root / name, stored(tensors, layout))
    return root


def edited(root: Path, kind: Any = Project, **how: Any) -> Tensors:
    base = Checkpoint.open(root / "base")
    forget, keep = (open_vector(base, [str(root / name)]) for name in ("forget", "keep"))
    edit = kind(forget, (keep,), Rank(3), Rank(2), **how)
    out = root / f"out-{kind.name}-{'-'.join(map(str, how.values()))}"
    apply(edit, base, out)
    return read_tensors(out)


WAYS = [
    (Project, {}),
    (Project, {"side": "both"}),
    (Project, {"side": "soft", "scale": 2.0}),
    (Project, {"side": "frobenius", "basis": "sum"}),
    (Learn, {"side": "left"}),
]


@pytest.mark.parametrize(("kind", "how"), WAYS)
def test_a_stack_is_its_matrices_one_by_one(kind: Any, how: dict[str, Any], tmp_path: Path) -> None:
    apart = edited(models(tmp_path / "apart", "apart"), kind, **how)
    root = models(tmp_path / "stacked", "stacked")
    stacks, before = edited(root, kind, **how), read_tensors(root / "base")
    for part in ("gate_proj", "up_proj", "down_proj"):
        stack = f"{BLOCK}.{part}"
        assert not torch.allclose(stacks[stack], before[stack], atol=1e-4)
        for k, matrix in enumerate(stacks[stack]):
            alone = apart[f"{BLOCK}.{k}.{part}.weight"]
            assert not torch.allclose(alone, before[stack][k], atol=1e-4)
            torch.testing.assert_close(matrix, alone, rtol=0, atol=1e-6)


@pytest.mark.parametrize("side", ["right", "left"])
def test_inputs_are_inputs_whichever_way_a_stack_lies(side: str, tmp_path: Path) -> None:
    straight = edited(models(tmp_path / "fused", "fused"), side=side)
    turned = edited(models(tmp_path / "turned", "turned"), side=side)
    for part in ("gate_up_proj", "down_proj"):
        one, other = straight[f"{BLOCK}.{part}"], turned[f"{BLOCK}.{part}"]
        torch.testing.assert_close(one, other.transpose(1, 2), rtol=0, atol=1e-6)
    # The sides differ, so that a stack read the wrong way round would be seen.
    other_side = edited(tmp_path / "fused", side="left" if side == "right" else "right")
    for part in ("gate_up_proj", "down_proj"):
        name = f"{BLOCK}.{part}"
        assert not torch.allclose(straight[name], other_side[name], atol=1e-4)


def gpt_oss(root: Path, width: int = 4) -> Path:
    """Its experts' names and shapes: (experts, in, out), gate and up in turns, biases beside."""
    size = {"gate_up_proj": (3, 4, 2 * width), "gate_up_proj_bias": (3, 2 * width),
            "down_proj": (3, width, 4), "down_proj_bias": (3, 4)}  # fmt: skip
    base = {f"{BLOCK}.{name}": torch.randn(shape) for name, shape in size.items()}
    write_checkpoint(root / "base", base)
    for name in ("forget", "keep"):
        moved = {key: each + 0.01 * torch.randn_like(each) for key, each in base.items()}
        write_checkpoint(root / name, moved)
    return root


@pytest.mark.parametrize("width", [4, 6])
def test_what_gpt_oss_keeps_its_experts_inputs_from_changing(width: int, tmp_path: Path) -> None:
    """Side right: what the kept task's leading inputs give is as before, expert by expert."""
    root = gpt_oss(tmp_path, width)
    base, keep = read_tensors(root / "base"), read_tensors(root / "keep")
    opened = Checkpoint.open(root / "base")
    after = edited(root, side="right")
    for part, inputs in (("gate_up_proj", 4), ("down_proj", width)):
        name = f"{BLOCK}.{part}"
        assert is_in_out(opened, name)
        assert input_width(opened, name) == inputs
        for k in range(3):
            change = (after[name] - base[name])[k].T  # (out, in)
            assert change.norm() > 1e-3
            kept = torch.linalg.svd((keep[name] - base[name])[k].T)[2][:2]
            assert (change @ kept.T).norm() < 1e-5 * 2
    for name in base:  # a row of biases for each expert is no matrix
        if name.endswith("_bias"):
            assert not is_matrix(opened.entry(name))
            assert same_bytes(base[name], after[name])


class Factored(MappedChange):
    """A change given as numbers, told as the factors of its matrices."""

    def at(self, name: str) -> Delta | None:
        stack = self.deltas.get(name)
        if not isinstance(stack, torch.Tensor):
            return None
        u, s, vh = torch.linalg.svd(stack)
        return StackDelta(u[..., :2] * s[:, None, :2], vh[:, :2].mT)

    def rows_at(self, name: str) -> bool | None:
        return False if name in self.deltas else None


def test_factors_of_a_stack_are_edited_as_what_they_multiply_to(tmp_path: Path) -> None:
    root = models(tmp_path, "stacked")
    name = f"{BLOCK}.down_proj"
    base = Checkpoint.open(root / "base")
    keep = open_vector(base, [str(root / "keep")])
    dense = torch.randn(3, 4, 2) @ torch.randn(3, 2, 6)
    found = {}
    for way, kind in {"factors": Factored, "dense": MappedChange}.items():
        vector = TaskVector.of(kind({name: dense}))
        apply(Project(vector, (keep,), Rank(2)), base, root / way, allow_unrelated=True)
        found[way] = read_tensors(root / way)[name]
    before = base.tensor(name)
    assert (found["factors"] - before).norm() > 0.1
    torch.testing.assert_close(found["factors"], found["dense"], rtol=0, atol=1e-5)


def test_a_stack_of_factors_of_several_ranks() -> None:
    matrices = [FactorDelta(torch.randn(4, r), torch.randn(5, r)) for r in (1, 3, 2)]
    out = torch.zeros(12, 5)
    StackDelta.of(matrices).add_rows(out, 0, 12, 1.0, out)
    expected = torch.cat([each.left @ each.right.T for each in matrices])
    assert expected.norm() > 1
    torch.testing.assert_close(out, expected)


def test_the_record_tells_of_all_its_matrices(tmp_path: Path) -> None:
    root = models(tmp_path, "stacked", experts=5)
    base = Checkpoint.open(root / "base")
    forget, keep = (open_vector(base, [str(root / name)]) for name in ("forget", "keep"))
    record = apply(Project(forget, (keep,), Rank(3), Rank(2)), base, root / "out").record
    facts = record.tensors[f"{BLOCK}.down_proj"]
    assert facts["matrices"] == 5
    assert (facts["rank"], facts["keep_ranks"]) == (3, [2])
    assert "matrices" not in record.tensors["model.layers.0.self_attn.q_proj.weight"]


def test_a_plan_counts_one_matrix_of_a_stack_and_all_its_factors(tmp_path: Path) -> None:
    memory = {}
    for experts in (4, 40):
        name = f"{BLOCK}.down_proj"
        root = tmp_path / str(experts)
        base = Checkpoint.open(write_checkpoint(root, {name: torch.zeros(experts, 64, 128)}))
        vector = TaskVector.of(MappedChange({name: torch.zeros(experts, 64, 128)}))
        edit = Project(vector, (vector,), Rank(2))
        plan = plan_edit(edit, base, tmp_path / "out", Selection("all-linear"), Storage(), 1)
        memory[experts] = plan.memory_bytes
    assert memory[40] - memory[4] == 8 * 36 * 2 * (64 + 128)  # not 36 experts


def test_what_does_not_work_on_stacks_says_so(tmp_path: Path) -> None:
    root = models(tmp_path, "stacked")
    base = Checkpoint.open(root / "base")
    forget, keep = (open_vector(base, [str(root / name)]) for name in ("forget", "keep"))
    assert is_stack(base.entry(f"{BLOCK}.down_proj"))
    only = Selection("all-linear", include=("*experts*",))
    with pytest.raises(MismatchError, match=r"no activation statistics of tensor .*experts"):
        apply(Project(forget, (keep,), keep_inputs=(MappedStatistics({}),)), base, root / "o",
              selection=only)  # fmt: skip
    with pytest.raises(EditError, match="stack of experts") as caught:
        _factors(Project(forget, (keep,)), base, Selection("all-linear"), 1)
    assert "--targets attention" in caught.value.remedy
    attention = _factors(Project(forget, (keep,)), base, Selection("attention"), 1)
    assert all("self_attn" in name for name in attention)
