from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.conftest import left_behind, write_checkpoint
from weightsurgery import Negate, apply, open_vector
from weightsurgery.checkpoint.reader import Checkpoint
from weightsurgery.checkpoint.record import EditRecord
from weightsurgery.errors import LineageError, VectorError
from weightsurgery.surgery.compare import diff
from weightsurgery.vectors.lineage import kinship, samples_of
from weightsurgery.vectors.saved import VectorWriter
from weightsurgery.vectors.sources import open_change

NAMES = [f"model.layers.{i}.{m}.weight" for i in range(4) for m in ("self_attn.q_proj", "mlp.up")]


def weights(seed: int, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    tensors = {name: torch.randn(24, 16, generator=generator).to(dtype) for name in NAMES}
    # What any two models of a family have in common, related or not.
    return tensors | {
        "model.norm.weight": torch.ones(16),
        "model.embed_tokens.weight": torch.ones(9, 16),
    }


def finetuned(of: dict[str, torch.Tensor], size: float) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(99)
    return {
        n: (t + size * torch.randn(t.shape, generator=generator)).to(t.dtype) for n, t in of.items()
    }


@pytest.fixture
def base(tmp_path: Path) -> Checkpoint:
    return Checkpoint.open(write_checkpoint(tmp_path / "base", weights(1), 2))


def saved_from(base: Checkpoint, target: Path, samples: bool = True) -> Path:
    with VectorWriter(target, [base.path]) as writer:
        writer.add(NAMES[0], torch.ones(24, 16))
        parameters = {"base_samples": samples_of(base)} if samples else {}
        writer.commit(EditRecord("task-vector", parameters=parameters))
    return target


def adapter_of(name: str, directory: Path) -> Path:
    directory.mkdir()
    module = f"base_model.model.{NAMES[0].removesuffix('.weight')}"
    factors = {
        f"{module}.lora_A.weight": torch.ones(2, 16),
        f"{module}.lora_B.weight": torch.ones(24, 2),
    }
    save_file(factors, directory / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "base_model_name_or_path": name}
    (directory / "adapter_config.json").write_text(json.dumps(config))
    return directory


def refused_then_allowed(base: Checkpoint, vector: Path, out: Path) -> None:
    opened = open_vector(base, [str(vector)])
    with pytest.raises(LineageError, match="not derived from"):
        apply(Negate(opened), base, out)
    assert left_behind(out) == []
    done = apply(Negate(opened), base, out, allow_unrelated=True)
    assert done.record.lineage[0]["verdict"] == "unrelated"
    assert any("unrelated" in line for line in done.notices)


def accepted(base: Checkpoint, vector: Path, out: Path) -> None:
    done = apply(Negate(open_vector(base, [str(vector)])), base, out)
    assert done.record.lineage[0]["verdict"] == "related"
    assert not any("lineage" in line for line in done.notices)


@pytest.mark.parametrize("size", [1e-3, 0.1, 1.0])
def test_a_fine_tune_is_related(base: Checkpoint, tmp_path: Path, size: float) -> None:
    accepted(base, write_checkpoint(tmp_path / "ft", finetuned(weights(1), size)), tmp_path / "out")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_fine_tune_in_another_dtype_is_related(
    base: Checkpoint, tmp_path: Path, dtype: torch.dtype
) -> None:
    tensors = {name: t.to(dtype) for name, t in finetuned(weights(1), 0.01).items()}
    accepted(base, write_checkpoint(tmp_path / "ft", tensors), tmp_path / "out")


def test_random_weights_of_the_same_shapes_are_not(base: Checkpoint, tmp_path: Path) -> None:
    refused_then_allowed(base, write_checkpoint(tmp_path / "ft", weights(2)), tmp_path / "out")


def test_a_vector_is_known_by_the_samples_of_its_base(base: Checkpoint, tmp_path: Path) -> None:
    accepted(base, saved_from(base, tmp_path / "mine"), tmp_path / "out")
    other = Checkpoint.open(write_checkpoint(tmp_path / "other", weights(2)))
    refused_then_allowed(base, saved_from(other, tmp_path / "theirs"), tmp_path / "out2")


def test_without_samples_the_answer_is_unknown(base: Checkpoint, tmp_path: Path) -> None:
    vector = saved_from(base, tmp_path / "v", samples=False)
    done = apply(Negate(open_vector(base, [str(vector)])), base, tmp_path / "out")
    assert done.record.lineage[0]["verdict"] == "unknown"
    assert any("lineage unknown" in line for line in done.notices)


def test_an_adapter_is_known_by_the_base_it_names(base: Checkpoint, tmp_path: Path) -> None:
    accepted(base, adapter_of(base.source.name, tmp_path / "same"), tmp_path / "out1")
    copy = write_checkpoint(tmp_path / "copy", weights(1))
    accepted(base, adapter_of(str(copy), tmp_path / "of copy"), tmp_path / "out2")
    other = write_checkpoint(tmp_path / "other", weights(2))
    refused_then_allowed(base, adapter_of(str(other), tmp_path / "theirs"), tmp_path / "out3")


@pytest.mark.parametrize("name", ["", "nobody/has-this-model"])
def test_an_adapter_whose_base_is_not_here_is_unknown(
    base: Checkpoint, tmp_path: Path, name: str
) -> None:
    found = kinship(base, open_change(base, str(adapter_of(name, tmp_path / "a"))))
    assert (found.verdict, found.cosine) == ("unknown", None)


def test_kinship_measures_the_fine_tune(base: Checkpoint, tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "ft", finetuned(weights(1), 0.1))
    found = kinship(base, open_change(base, str(path)))
    assert found.relative == pytest.approx(0.1, rel=0.1)  # 256 samples of a unit normal
    assert found.cosine == pytest.approx(1 / (1 + 0.1**2) ** 0.5, abs=2e-3)


def test_a_base_of_nothing_but_vectors_cannot_be_told(tmp_path: Path) -> None:
    base = Checkpoint.open(write_checkpoint(tmp_path / "b", {"norm.weight": torch.ones(8)}))
    path = write_checkpoint(tmp_path / "ft", {"norm.weight": torch.full((8,), 2.0)})
    assert kinship(base, open_change(base, str(path))).verdict == "unknown"


def gpt2(seed: int) -> dict[str, torch.Tensor]:
    """Five matrices in each of 48 layers, the first of them a mask that all models share."""
    generator = torch.Generator().manual_seed(seed)
    names = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
    tensors = {}
    for layer in range(48):
        tensors[f"h.{layer}.attn.causal"] = torch.ones(8, 8).tril()
        for name in names:
            tensors[f"h.{layer}.{name}"] = torch.randn(8, 8, generator=generator)
    return tensors


def verdict(root: Path, ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> str:
    root.mkdir()
    base = Checkpoint.open(write_checkpoint(root / "base", ours))
    write_checkpoint(root / "ft", theirs)
    return kinship(base, open_change(base, str(root / "ft"))).verdict


def test_masks_and_strides_do_not_hide_other_weights(tmp_path: Path) -> None:
    assert verdict(tmp_path / "a", gpt2(1), finetuned(gpt2(1), 0.1)) == "related"
    assert verdict(tmp_path / "b", gpt2(1), gpt2(2)) == "unrelated"


def test_zeroed_scaled_and_partly_other_weights_are_unrelated(tmp_path: Path) -> None:
    ours = weights(1)
    assert verdict(tmp_path / "a", ours, finetuned(ours, 0.1)) == "related"
    zero = {name: 0 * tensor for name, tensor in ours.items()}
    assert verdict(tmp_path / "b", ours, zero) == "unrelated"
    large = {name: 1000 * tensor for name, tensor in ours.items()}
    assert verdict(tmp_path / "c", ours, large) == "unrelated"
    partly = {**ours, **{name: weights(2)[name] for name in NAMES[:3]}}
    assert verdict(tmp_path / "d", ours, partly) == "unrelated"
    one = {**ours, NAMES[0]: weights(2)[NAMES[0]]}
    assert verdict(tmp_path / "e", ours, one) == "related"


def test_a_damaged_sample_is_an_error_that_leaves_nothing(base: Checkpoint, tmp_path: Path) -> None:
    saved = saved_from(base, tmp_path / "vector")
    assert kinship(base, open_change(base, str(saved))).verdict == "related"
    record = json.loads((saved / "weightsurgery.json").read_text())
    record["parameters"]["base_samples"][NAMES[0]] = "no base64"
    (saved / "weightsurgery.json").write_text(json.dumps(record))
    vector = open_vector(base, [str(saved)])
    with pytest.raises(VectorError, match="base_samples"):
        diff(base, vector, save_to=tmp_path / "again")
    assert left_behind(tmp_path / "again") == []
