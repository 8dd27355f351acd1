"""Builders of tiny checkpoints, and the settings every test runs under."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Before NumPy is loaded: threads inside small operations only wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Before torch is loaded: what tests compare was worked out on processors. With WS_TEST_GPU=1 those
# that are marked `gpu` run, and no others.
os.environ.update({} if os.environ.get("WS_TEST_GPU") == "1" else {"CUDA_VISIBLE_DEVICES": ""})

import hypothesis
import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

torch.set_num_threads(1)

ON_GPU = os.environ.get("WS_TEST_GPU") == "1"

hypothesis.settings.register_profile(
    "theorems",
    derandomize=True,
    deadline=None,
    max_examples=25,
    database=None,
    suppress_health_check=list(hypothesis.HealthCheck),
)
hypothesis.settings.load_profile("theorems")

# Distance to the neighbour, relative: half of it is one rounding.
EPS = {
    torch.bfloat16: 2.0**-7,
    torch.float16: 2.0**-10,
    torch.float32: 2.0**-23,
    torch.float64: 2.0**-52,
}
TINY = {  # spacing of the subnormals, which bounds the rounding near zero
    torch.bfloat16: 2.0**-133,
    torch.float16: 2.0**-24,
    torch.float32: 2.0**-149,
    torch.float64: 2.0**-1074,
}


# Files that take longest by themselves: begun first, so that no process waits for them at the end.
LONG = ("test_readme.py", "test_world.py", "test_unlearn.py", "test_bench.py", "test_rounds.py")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "gpu: needs a GPU; runs with WS_TEST_GPU=1 alone")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Long files first; all others in their order. Tests of GPUs with WS_TEST_GPU=1, and alone."""
    for item in items:
        if item.get_closest_marker("gpu") and not (ON_GPU and torch.cuda.is_available()):
            item.add_marker(pytest.mark.skip(reason="needs a GPU, and WS_TEST_GPU=1"))
    if ON_GPU:
        others = [item for item in items if not item.get_closest_marker("gpu")]
        config.hook.pytest_deselected(items=others)
        items[:] = [item for item in items if item.get_closest_marker("gpu")]
    items.sort(key=lambda item: LONG.index(item.path.name) if item.path.name in LONG else len(LONG))


@pytest.fixture(autouse=True)
def _fixed_seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="session")
def _no_lines_of_progress():
    """A busy machine makes a short command long: lines come where a test asks for them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("weightsurgery.cli.lines.FIRST", float("inf"))
        yield


def write_checkpoint(
    directory: Path,
    tensors: Mapping[str, torch.Tensor],
    shards: int | Sequence[Sequence[str]] = 1,
    config: Mapping[str, Any] | None = None,
    metadata: Mapping[str, str] | None = None,
) -> Path:
    """Write tensors as a safetensors checkpoint: one file, or shards with an index.

    Args:
        directory: Where; made if needed.
        tensors: By name.
        shards: Names of each shard, or how many shards to deal the tensors out to in turn.
        config: ``config.json``; none is written for None.
        metadata: ``__metadata__`` of every shard.
    """
    directory.mkdir(parents=True, exist_ok=True)
    names = list(tensors)
    groups = [names[i::shards] for i in range(shards)] if isinstance(shards, int) else shards
    groups = [group for group in groups if group]
    metadata = {"format": "pt", **(metadata or {})}
    weight_map: dict[str, str] = {}
    for number, group in enumerate(groups, 1):
        shard = f"model-{number:05d}-of-{len(groups):05d}.safetensors"
        shard = "model.safetensors" if len(groups) == 1 else shard
        save_file(
            {name: tensors[name].clone().contiguous() for name in group},
            directory / shard,
            metadata,
        )
        weight_map |= dict.fromkeys(group, shard)
    if len(groups) > 1:
        total = sum(t.numel() * t.element_size() for t in tensors.values())
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (directory / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
    if config is not None:
        (directory / "config.json").write_text(json.dumps(config, indent=2))
    return directory


def read_tensors(directory: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a directory's shards, read by the safetensors library."""
    found = {}
    for path in sorted(directory.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            found |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return found


def same_bytes(first: torch.Tensor, second: torch.Tensor) -> bool:
    """Whether two tensors agree in dtype, shape and every bit."""
    if first.dtype != second.dtype or first.shape != second.shape:
        return False
    a, b = (t.contiguous().reshape(-1).view(torch.uint8) for t in (first, second))
    return torch.equal(a, b)


def exact(tensor: torch.Tensor) -> np.ndarray:
    """A tensor as float64 NumPy: the oracle's arithmetic."""
    return tensor.double().numpy()


def assert_rounded(
    result: torch.Tensor, oracle: np.ndarray, scratch: float | np.ndarray = 0.0
) -> None:
    """Result is the oracle within one rounding to its dtype, plus ``scratch`` absolute."""
    error = np.abs(exact(result) - oracle)
    bound = np.abs(oracle) * EPS[result.dtype] / 2 + TINY[result.dtype] + scratch
    assert (error <= bound * (1 + 1e-6)).all(), f"{np.max(error / bound):.3g} times the bound"


def snapshot(directory: Path) -> dict[str, bytes]:
    """Every file of a directory with its content."""
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


def left_behind(out: Path) -> list[str]:
    """What stands at or beside an output's name."""
    return [path.name for path in out.parent.iterdir() if out.name in path.name]


def low_rank(m: int, n: int, values: Sequence[float], seed: int) -> np.ndarray:
    """A float64 matrix with given singular values and random singular vectors."""
    rng = np.random.default_rng(seed)
    u, _ = np.linalg.qr(rng.standard_normal((m, len(values))))
    v, _ = np.linalg.qr(rng.standard_normal((n, len(values))))
    return (u * np.asarray(values)) @ v.T


@dataclass(frozen=True)
class Trio:
    """A real model and two fine-tunes of it, saved sharded."""

    base: Path
    forget: Path
    keep: Path


def _save(model: Any, directory: Path, shard_size: str) -> Path:
    model.save_pretrained(directory, max_shard_size=shard_size)
    return directory


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Trio:
    """A tiny Llama in bfloat16, and two fine-tunes that differ from it by seeded noise."""
    from transformers import LlamaConfig, LlamaForCausalLM

    root = tmp_path_factory.mktemp("llama")
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=96,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    base = _save(model, root / "base", "20KB")
    paths = []
    for name, size in (("forget", "33KB"), ("keep", "1GB")):
        model = LlamaForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.005 * torch.randn_like(parameter))
        paths.append(_save(model, root / name, size))
    return Trio(base, *paths)


@pytest.fixture(scope="session")
def smollm() -> Path:
    """SmolLM2-135M-Instruct in float32, made once and kept in the cache; not to be changed."""
    from weightsurgery.errors import WeightSurgeryError
    from weightsurgery.lab.demo.smollm import smollm as made

    try:
        return made()
    except WeightSurgeryError as problem:
        if problem.remedy.startswith("Install"):
            pytest.skip(f"{problem.what}. {problem.remedy}")
        raise


@pytest.fixture(scope="session")
def known() -> Any:
    """A small model that knows what some people like; tests leave it as it is."""
    from tests.learning.known import teach

    return teach()
