"""Where a training runs: what machines with GPUs would do, told on one without."""

from __future__ import annotations

import dataclasses
import functools
import os
from contextlib import nullcontext

import pytest
import torch
from transformers import TrainingArguments
from transformers.utils.import_utils import enable_tf32

from tests.conftest import same_bytes
from tests.learning.tiny import FACTS, byte_tokenizer, tiny
from weightsurgery.errors import EditError
from weightsurgery.learning import placement
from weightsurgery.learning.adapter import factors
from weightsurgery.learning.attacks import relearn
from weightsurgery.learning.data import Collator, encode_all, padding_token
from weightsurgery.learning.identify import adapted
from weightsurgery.learning.method import Stage
from weightsurgery.learning.placement import on_device, pinned, repeatable
from weightsurgery.learning.settings import Training
from weightsurgery.learning.stages import process_device
from weightsurgery.learning.trainer import StageTrainer
from weightsurgery.learning.training import EncodedRows, train_stage

WEIGHT = "model.layers.0.mlp.down_proj.weight"
SHORT = Training(steps=3, learning_rate=1e-2, batch_size=2, extra={"dataloader_drop_last": True})


@pytest.fixture
def two_gpus(monkeypatch):
    """TrainingArguments count two GPUs; tensors stay where they are."""
    original = TrainingArguments._setup_devices.func

    def counted(self):
        place = original(self)
        self._n_gpu = 2
        return place

    fake = functools.cached_property(counted)
    fake.__set_name__(TrainingArguments, "_setup_devices")
    monkeypatch.setattr(TrainingArguments, "_setup_devices", fake)
    assert TrainingArguments(output_dir="unused", use_cpu=True).n_gpu == 2


def staged(model, **more):
    """A stage of one weight, on three examples in batches of two, whole ones alone."""
    tokenizer = byte_tokenizer()
    rows = EncodedRows(encode_all(tokenizer, FACTS[:3]), Collator(padding_token(tokenizer)))
    return train_stage(model, Stage("one", (WEIGHT,)), rows, SHORT, device=model.device, **more)


def weight(model) -> torch.Tensor:
    return model.get_parameter(WEIGHT).detach().clone()


def trained(model, how) -> torch.Tensor:
    """How far a training moved the weight."""
    before = weight(model)
    if how == "attack":
        relearn(model, byte_tokenizer(), FACTS[:3], 3, 1e-2, batch_size=2)
    else:
        assert staged(model).steps == 3
    return weight(model) - before


# --- several GPUs ---------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["attack", "stage"])
def test_a_training_is_on_one_of_several_gpus(two_gpus, how):
    model = tiny("llama")
    moved = trained(model, how)
    assert float(moved.norm()) > 0.01


@pytest.mark.parametrize(("how", "where"), [("attack", "fitting"), ("stage", "training")])
def test_a_training_that_took_too_few_steps_is_none(two_gpus, how, where, monkeypatch):
    """Unpinned, as it was: a whole batch of twice two is more than there is."""
    monkeypatch.setattr(f"weightsurgery.learning.{where}.pinned", lambda given, device: given)
    with pytest.raises(EditError, match=r"0 of 3 steps were taken"):
        trained(tiny("llama"), how)


def test_a_training_is_on_the_gpu_that_was_asked_for(monkeypatch):
    made = TrainingArguments(output_dir="unused", use_cpu=True)
    assert str(made.device) == "cpu"
    current = []
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    pinned(made, torch.device("cpu"))
    assert (current, str(made.device)) == ([], "cpu")
    second = torch.device("cuda:1")
    pinned(made, second)
    assert (made.device, made.distributed_state.device, current) == (second, second, [second])
    # Another training asks anew.
    made = TrainingArguments(output_dir="unused", use_cpu=True)
    assert str(made.device) == str(made.distributed_state.device) == "cpu"


def test_each_process_has_the_gpu_of_its_rank(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert process_device("cuda:1") == torch.device("cuda:1")
    assert process_device("auto") == torch.device("cuda")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    for name in ("auto", "cuda"):
        assert process_device(name) == torch.device("cuda:1")
    assert process_device("cpu") == torch.device("cpu")
    with pytest.raises(EditError, match="'cuda:1' for 2 processes"):
        process_device("cuda:1")
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(EditError, match="torch sees 2"):
        process_device("auto")


def test_what_is_not_for_several_processes_is_refused(monkeypatch):
    placement.refuse_distributed("ws project", "Run it alone.")
    monkeypatch.setenv("WORLD_SIZE", "1")
    placement.refuse_distributed("ws project", "Run it alone.")
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(EditError, match="ws project in 3 processes"):
        placement.refuse_distributed("ws project", "Run it alone.")


# --- an adapter's base ----------------------------------------------------------------------------


def adapter_trained(monkeypatch, narrowed):
    """An adapter's change in mixed precision, and how many rounded weights were held for it."""
    held = {}
    whole = 32 * 48  # of a matrix of the tiny model's MLPs, which nothing else there is as large as

    def saved(tensor):
        if tensor.dtype == torch.bfloat16 and tensor.numel() == whole and tensor.ndim == 2:
            held[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    model = tiny("llama")
    model.to(torch.bfloat16).float()
    before = {name: each.clone() for name, each in model.state_dict().items()}
    names = [f"model.layers.{n}.mlp.{m}_proj.weight" for n in (0, 1) for m in ("up", "down")]
    how = dataclasses.replace(SHORT, precision="bfloat16")
    tokenizer = byte_tokenizer()
    rows = EncodedRows(encode_all(tokenizer, FACTS[:3]), Collator(padding_token(tokenizer)))
    if not narrowed:
        monkeypatch.setattr("weightsurgery.learning.training.narrow", lambda *_: nullcontext())
    with adapted(model, names, 4, 4, 0) as with_adapter:
        inside = tuple(n for n, each in with_adapter.named_parameters() if each.requires_grad)
        with torch.autograd.graph.saved_tensors_hooks(saved, lambda tensor: tensor):
            train_stage(with_adapter, Stage("one", inside), rows, how, device=model.device)
        change = factors(with_adapter, names)
    assert all(same_bytes(before[name], each) for name, each in model.state_dict().items())
    return change, len(held)


def test_an_adapters_base_is_held_once_in_mixed_precision(monkeypatch):
    """Of four matrices the inputs have gradients: rounded anew in each of three steps, or once."""
    one, held = adapter_trained(monkeypatch, narrowed=True)
    other, copied = adapter_trained(monkeypatch, narrowed=False)
    assert all(float(each.S.sum()) > 0 for each in one.values())
    assert all(same_bytes(each.matrix(), other[name].matrix()) for name, each in one.items())
    assert (held, copied) == (4, 12)


def test_a_base_that_is_no_bfloat16_stays_as_it_is():
    model = tiny("llama")
    names = [WEIGHT]
    with adapted(model, names, 4, 4, 0) as with_adapter:
        layer = with_adapter.get_submodule("base_model.model.model.layers.1.mlp.up_proj")
        for rounds, inside in ((False, torch.float32), (True, torch.bfloat16)):
            if rounds:
                layer.weight.data = layer.weight.data.bfloat16().float()
            with placement.narrow(with_adapter, "bfloat16"):
                assert layer.weight.dtype == inside
            assert layer.weight.dtype == torch.float32
            with placement.narrow(with_adapter, "float32"):
                assert layer.weight.dtype == torch.float32
    with placement.narrow(model, "bfloat16"):
        assert all(each.dtype == torch.float32 for each in model.parameters())


# --- the process's settings -----------------------------------------------------------------------


def test_tf32_of_a_training_ends_with_it():
    place = torch.backends.cuda.matmul
    before = place.fp32_precision
    for _ in range(2):  # Trainer remembers that it set it, and would not do so again
        with on_device(torch.device("cpu")):
            enable_tf32(True)
            assert place.fp32_precision == "tf32" != before
        assert place.fp32_precision == before


def scattered(times: list[bool]) -> float:
    """A sum by an operation that has no kernel with a fixed order."""
    times.append(torch.are_deterministic_algorithms_enabled())
    out = torch.zeros(3)
    out.put_(torch.tensor([0, 0]), torch.tensor([1.0, 1.0]))
    return float(out.sum())


def test_sums_on_a_gpu_come_out_the_same_or_it_is_said(caplog, monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")  # put back in the end, whatever it was
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    modes: list[bool] = []

    def mode() -> int:
        modes.append(torch.are_deterministic_algorithms_enabled())
        return 7

    assert repeatable(torch.device("cpu"), mode) == repeatable(torch.device("cuda"), mode) == 7
    assert modes == [False, True]
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    assert not torch.are_deterministic_algorithms_enabled()
    assert not caplog.records

    times: list[bool] = []
    assert repeatable(torch.device("cuda"), lambda: scattered(times)) == 1
    assert times == [True, False]
    (said,) = caplog.records
    assert said.getMessage().startswith("put_ adds up in no fixed order")

    def wrong() -> int:
        raise RuntimeError("shapes")

    with pytest.raises(RuntimeError, match="shapes"):
        repeatable(torch.device("cuda"), wrong)
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.utils.deterministic.fill_uninitialized_memory


def test_a_training_that_begins_again_is_as_if_it_had_not_begun_before(monkeypatch):
    """Its first step meets an operation without a fixed order, on what counts as a GPU here."""

    class Scattering(StageTrainer):
        def compute_loss(self, model, inputs, *given, **named):
            scattered(times)
            return super().compute_loss(model, inputs, *given, **named)

    def moved() -> torch.Tensor:
        model = tiny("llama")
        before = weight(model)
        assert staged(model, kind=Scattering).steps == 3
        return weight(model) - before

    times: list[bool] = []
    plain = moved()
    assert times == [False] * 3
    monkeypatch.setattr(
        "weightsurgery.learning.training.repeatable",
        lambda device, train: repeatable(torch.device("cuda"), train),
    )
    times = []
    again = moved()
    assert times == [True] + [False] * 3
    assert float(plain.norm()) > 0.01
    assert same_bytes(plain, again)


def test_a_training_that_has_begun_does_not_begin_again(monkeypatch):
    """Its second step meets such an operation; looks after a step may."""

    class Scattering(StageTrainer):
        def compute_loss(self, model, inputs, *given, **named):
            if self.state.global_step == 1 and second:
                scattered([])
            return super().compute_loss(model, inputs, *given, **named)

    def looked(step: int) -> bool:
        scattered(looks)
        return False

    monkeypatch.setattr(
        "weightsurgery.learning.training.repeatable",
        lambda device, train: repeatable(torch.device("cuda"), train),
    )
    looks: list[bool] = []
    second = False
    assert staged(tiny("llama"), kind=Scattering, enough=looked).steps == 3
    assert looks == [False] * 3
    second = True
    with pytest.raises(EditError, match="put_, which step 2 needs") as refused:
        staged(tiny("llama"), kind=Scattering)
    assert "--device cpu" in refused.value.remedy
    assert not torch.are_deterministic_algorithms_enabled()


def test_the_current_gpu_is_the_former_one_again(monkeypatch):
    entered = []

    def device(place):
        entered.append(place)
        return nullcontext()

    monkeypatch.setattr(torch.cuda, "device", device)
    with on_device(torch.device("cpu")):
        pass
    assert entered == []
    with on_device(torch.device("cuda:1")):
        pass
    assert entered == [torch.device("cuda:1")]
    monkeypatch.setenv("LOCAL_RANK", "1")
    with on_device(torch.device("cuda:1")):
        pass
    assert len(entered) == 1


def test_random_numbers_of_a_gpu_that_is_not_in_use_are_left_alone(monkeypatch):
    """To save them would start CUDA, for trainings on the CPU too."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    assert list(placement.gpus_in_use()) == []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    assert list(placement.gpus_in_use()) == [0, 1]
