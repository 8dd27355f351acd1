"""An edit in memory is the edit on disk, and leaves nothing behind."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.conftest import read_tensors
from tests.learning.tiny import save, tiny
from weightsurgery import Negate, Rank, Selection, apply
from weightsurgery.checkpoint.reader import Checkpoint
from weightsurgery.errors import NonFiniteError, UnsupportedCheckpointError
from weightsurgery.learning.parameters import load_float32
from weightsurgery.procedures.in_memory import EditedInMemory
from weightsurgery.surgery.edits import EDITS
from weightsurgery.vectors.task_vector import MappedChange, TaskVector


def noise(base: Checkpoint, names, label: str) -> TaskVector:
    return TaskVector.of(
        MappedChange({name: 0.05 * torch.randn(base.entry(name).shape) for name in names}, label)
    )


def matrices(base: Checkpoint) -> list[str]:
    return list(Selection("all-linear").resolve(base.entries))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["project", "learn"])
def test_the_weights_are_those_that_writing_gives(tmp_path, family, dtype, name):
    base = Checkpoint.open(save(tiny(family), tmp_path / "base", dtype))
    names = matrices(base)
    edit = EDITS[name](
        noise(base, names, "forget"), (noise(base, names, "keep"),), Rank(5), scale=3.0
    )
    apply(edit, base, tmp_path / "out", device="cpu")
    model = load_float32(base)
    edited = EditedInMemory(model, base, names)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    cpu = torch.device("cpu")
    edited.set({each: edit.prepare(base, each, cpu).delta for each in names}, 3.0 * edit.sign)
    # Loaded from what was written: every tensor of it, by the model's own names.
    written = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    for key, value in written.state_dict().items():
        assert torch.equal(model.state_dict()[key], value), key
    moved = [key for key in before if not torch.equal(before[key], model.state_dict()[key])]
    assert len(moved) == len(names)  # before: the base is another


def test_every_way_out_gives_the_weights_back(tmp_path):
    base = Checkpoint.open(save(tiny("llama"), tmp_path / "base"))
    names = matrices(base)
    model = load_float32(base)
    stored = read_tensors(tmp_path / "base")
    change = {name: noise(base, names, "x").at(name) for name in names}
    for problem in (None, ValueError, KeyboardInterrupt, SystemExit):
        try:
            with EditedInMemory(model, base, names) as edited:
                edited.set(change, 1.0)
                assert not torch.equal(model.state_dict()[names[0]], stored[names[0]])
                if problem is not None:
                    raise problem
        except (ValueError, KeyboardInterrupt, SystemExit):
            assert problem is not None
        for name, value in model.state_dict().items():
            assert torch.equal(value, stored[name]), (problem, name)


def test_what_is_set_replaces_what_was_set(tmp_path):
    base = Checkpoint.open(save(tiny("llama"), tmp_path / "base"))
    names = matrices(base)
    model = load_float32(base)
    stored = read_tensors(tmp_path / "base")
    change = {name: noise(base, names, "x").at(name) for name in names}
    with EditedInMemory(model, base, names) as edited:
        edited.set(change, 1.0)
        once = {name: model.get_parameter(name).clone() for name in names}
        edited.set(change, 100.0)
        assert not torch.equal(model.get_parameter(names[0]), once[names[0]])
        edited.set(change, 1.0)
        for name in names:
            assert torch.equal(model.get_parameter(name), once[name])
        edited.set({names[0]: change[names[0]]}, 1.0)
        assert torch.equal(model.get_parameter(names[0]), once[names[0]])
        assert torch.equal(model.get_parameter(names[1]), stored[names[1]])
        edited.restore()
        assert torch.equal(model.get_parameter(names[0]), stored[names[0]])


def test_weights_that_overflow_are_refused_and_given_back(tmp_path):
    base = Checkpoint.open(save(tiny("llama"), tmp_path / "base", torch.float16))
    names = matrices(base)
    model = load_float32(base)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    change = {name: noise(base, names, "x").at(name) for name in names}
    with EditedInMemory(model, base, names) as edited:
        with pytest.raises(NonFiniteError, match="overflow F16"):
            edited.set(change, 1e7)
        edited.set(change, 1.0)  # and work goes on
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


def test_weights_of_other_names_in_memory_are_refused(tmp_path):
    base = Checkpoint.open(save(tiny("mixtral"), tmp_path / "base"))
    experts = [name for name in base.entries if "experts" in name]
    model = load_float32(base)
    assert not any(name in dict(model.named_parameters()) for name in experts)
    with pytest.raises(UnsupportedCheckpointError, match="another matrix in memory than on disk"):
        EditedInMemory(model, base, experts)
    attention = [name for name in base.entries if "self_attn" in name]
    EditedInMemory(model, base, attention)


def test_plain_edits_too(tmp_path):
    base = Checkpoint.open(save(tiny("llama"), tmp_path / "base"))
    names = matrices(base)
    edit = Negate(noise(base, names, "x"), 0.5)
    apply(edit, base, tmp_path / "out", selection=Selection("all-linear"))
    model = load_float32(base)
    cpu = torch.device("cpu")
    EditedInMemory(model, base, names).set(
        {name: edit.prepare(base, name, cpu).delta for name in names}, -0.5
    )
    written = read_tensors(tmp_path / "out")
    assert all(torch.equal(model.get_parameter(name), written[name]) for name in names)
