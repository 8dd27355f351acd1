"""Processor and GPU give the same bits; the GPU's code is also run on the CPU through torch."""

import mmap
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from tests.conftest import read_tensors, same_bytes, snapshot, write_checkpoint
from weightsurgery import Negate, Project, Rank, apply, open_vector
from weightsurgery.algebra.elementwise import Term
from weightsurgery.checkpoint.reader import Checkpoint
from weightsurgery.surgery import windows
from weightsurgery.surgery.arithmetic import OnDevices, OnHost, arithmetic_on

TORCH = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
gpu = pytest.param("cuda", marks=pytest.mark.gpu)


def raw(tensor):
    view = memoryview(mmap.mmap(-1, max(1, tensor.numel() * tensor.element_size())))
    view[: tensor.numel() * tensor.element_size()] = tensor.view(torch.uint8).numpy().tobytes()
    return view


@pytest.mark.parametrize("device", ["cpu", gpu])
@pytest.mark.parametrize("dtype", list(TORCH))
@pytest.mark.parametrize("other", list(TORCH))
def test_bits_are_those_of_the_host(device, dtype, other):
    base = (torch.randn(70_001) * 0.02).to(TORCH[dtype])
    base[:3] = torch.tensor([0.0, -0.0, 1e-7])
    tuned = (base.float() + 1e-3 * torch.randn(70_001)).to(TORCH[other])
    terms = [
        Term(raw(tuned), other, -0.7, True),
        Term(raw(torch.randn(70_001)), "F32", 0.01, False),
    ]
    results = []
    for arithmetic in (OnHost(), OnDevices([torch.device(device)])):
        data = raw(base)
        stats = arithmetic.combine(data, dtype, terms, data)
        results.append((bytes(data), stats))
    assert results[0][0] == results[1][0] != bytes(raw(base))
    for name in ("base", "meant", "written", "missed", "along"):
        one, two = (getattr(stats, name) for _, stats in results)
        assert one == pytest.approx(two, rel=1e-5, abs=1e-5 * results[0][1].meant)
    assert results[0][1].wanted == results[1][1].wanted
    assert results[0][1].moved == results[1][1].moved


def test_threads_take_devices_in_turn():
    there = OnDevices([torch.device("cpu"), torch.device("cpu", 0)])
    with ThreadPoolExecutor(1) as one, ThreadPoolExecutor(1) as two:
        assert one.submit(there._device_and_stream).result()[0] == torch.device("cpu")
        assert two.submit(there._device_and_stream).result()[0] == torch.device("cpu", 0)
        assert one.submit(there._device_and_stream).result()[0] == torch.device("cpu")


def pair(tmp_path):
    w = {f"layers.{i}.mlp.up_proj.weight": torch.randn(96, 640).bfloat16() for i in range(4)}
    write_checkpoint(tmp_path / "base", w, 2)
    for number, name in enumerate(("a", "b")):
        change = [torch.randn(96, 4) @ torch.randn(4, 640) * 0.05 * (number + 1) for _ in w]
        tuned = {n: (t.float() + d).bfloat16() for (n, t), d in zip(w.items(), change, strict=True)}
        write_checkpoint(tmp_path / name, tuned, 2)
    return Checkpoint.open(tmp_path / "base")


def test_an_edit_through_torch_writes_the_same_shards(tmp_path, monkeypatch):
    base = pair(tmp_path)
    edit = Negate(open_vector(base, [str(tmp_path / "a")]), 0.7)
    apply(edit, base, tmp_path / "host")
    made = []

    def through_torch(device):
        made.append(device)
        return OnDevices([torch.device("cpu")])

    monkeypatch.setattr(windows, "arithmetic_on", through_torch)
    apply(edit, base, tmp_path / "torch")
    assert made == ["cpu"]
    host, other = snapshot(tmp_path / "host"), snapshot(tmp_path / "torch")
    shards = [name for name in host if name.endswith(".safetensors")]
    assert len(shards) == 2
    assert all(host[name] == other[name] for name in shards)


@pytest.mark.gpu
def test_edits_on_a_gpu(tmp_path):
    """Elementwise: the same shards. Decomposed: within the tolerance of float32 factors."""
    assert isinstance(arithmetic_on("cuda"), OnDevices)
    base = pair(tmp_path)
    forget, keep = (open_vector(base, [str(tmp_path / name)]) for name in "ab")
    for device in ("cpu", "cuda"):
        apply(Negate(forget), base, tmp_path / f"n-{device}", device=device)
        edit = Project(forget, (keep,), Rank(4))
        apply(edit, base, tmp_path / f"p-{device}", device=device)
    before = read_tensors(tmp_path / "base")
    for name in before:
        cpu, cuda = (read_tensors(tmp_path / f"n-{d}")[name] for d in ("cpu", "cuda"))
        assert same_bytes(cpu, cuda)
        assert not same_bytes(cpu, before[name])
        cpu, cuda = (read_tensors(tmp_path / f"p-{d}")[name].float() for d in ("cpu", "cuda"))
        moved = (cpu - before[name].float()).norm()
        assert (cpu - cuda).norm() < 0.02 * moved
