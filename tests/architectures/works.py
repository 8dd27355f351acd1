"""What is done to each architecture, beside the same arithmetic on parameters of its loaded model.

Every claim is checked where it is made: a row of the table stands for checks that passed.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import PeftModel
from transformers import AutoConfig
from transformers.core_model_loading import revert_weight_conversion
from transformers.pytorch_utils import Conv1D

from tests.architectures.configs import Architecture
from tests.conftest import read_tensors, same_bytes, write_checkpoint
from weightsurgery import Negate, Project, Rank, Selection, TaskVector, apply, open_vector
from weightsurgery.checkpoint.inspection import inspect
from weightsurgery.checkpoint.reader import Checkpoint
from weightsurgery.errors import (
    MismatchError,
    SelectionError,
    UnsupportedCheckpointError,
    VectorError,
    WeightSurgeryError,
)
from weightsurgery.learning.models import quiet
from weightsurgery.surgery.compare import diff
from weightsurgery.vectors.export import export_adapter

__all__ = ["Exported", "Trial", "close"]

Tensors = dict[str, torch.Tensor]

RANK, SCALE = 2, 0.5


def close(found: torch.Tensor, expected: torch.Tensor, name: str) -> None:
    """Equal within a few roundings of float32."""
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=2e-6, msg=lambda m: f"{name}: {m}")


def differ(found: Mapping[str, torch.Tensor], before: Mapping[str, torch.Tensor]) -> set[str]:
    """Names of what is other than before."""
    return {name for name, tensor in found.items() if not torch.equal(tensor, before[name])}


@dataclass(frozen=True)
class Exported:
    """What of a vector became an adapter.

    Attributes:
        targets: The widest selection that did; None where none did.
        layers: How many layers it holds.
        refused: Why wider ones did not.
    """

    targets: str | None
    layers: int
    refused: str


class Trial:
    """One architecture: a base and two fine-tunes of it, on disk and loaded.

    Args:
        of: What it is.
        root: An empty directory.
    """

    def __init__(self, of: Architecture, root: Path) -> None:
        self.of, self.root = of, root
        self._class = getattr(transformers, of.made_by)
        torch.manual_seed(0)
        config = AutoConfig.for_model(of.kind, **of.settings)
        model = self._class(config).float()
        with torch.no_grad(), quiet():
            for parameter in model.parameters():  # ones and zeros are weights like others
                parameter.add_(0.1 * torch.randn_like(parameter))
            model.save_pretrained(root / "base", max_shard_size="16KB")
            before = {name: tensor.clone() for name, tensor in model.named_parameters()}
            for tuned in ("forget", "keep"):
                for name, parameter in model.named_parameters():
                    parameter.copy_(before[name] + 0.01 * torch.randn_like(parameter))
                model.save_pretrained(root / tuned, max_shard_size="16KB")
        self.models = {name: self.loaded(root / name) for name in ("base", "forget", "keep")}
        self.base = Checkpoint.open(root / "base")

    def loaded(self, directory: Path) -> Any:
        """What transformers makes of a directory: whole, and of nothing else."""
        with quiet():
            model, told = self._class.from_pretrained(directory, output_loading_info=True)
        assert not any(told.values()), told
        return model.eval()

    def vector(self, name: str) -> TaskVector:
        """A fine-tune as it is on disk."""
        return open_vector(self.base, [str(self.root / name)])

    def parameters(self, name: str) -> Tensors:
        """Of one of the loaded models, each once."""
        return {key: each.detach() for key, each in self.models[name].named_parameters()}

    def on_disk(self, tensors: Mapping[str, torch.Tensor], model: Any = None) -> Tensors:
        """Parameters by the names and in the pieces in which transformers saves them."""
        return revert_weight_conversion(model or self.models["base"], dict(tensors))

    # --- the claims -----------------------------------------------------------------------------

    @cached_property
    def inspected(self) -> int:
        """How many tensors ``ws inspect`` finds: those of the model, with all their numbers."""
        found = inspect(self.base)
        state = self.models["base"].state_dict()
        buffers = {n: t for n, t in self.models["base"].named_buffers() if n in state}
        stored = self.on_disk({**self.parameters("base"), **buffers})
        assert set(self.base.entries) == set(stored)
        assert found.tensors == len(stored)
        assert found.parameters == sum(each.numel() for each in stored.values())
        assert found.architecture == self.of.made_by
        assert found.quantised is None
        assert len(found.shards) > 1
        return found.tensors

    @cached_property
    def compared(self) -> float:
        """``‖T‖`` as ``ws diff`` has it: that of the loaded parameters."""
        found = diff(self.base, self.vector("forget")).norm
        before, after = self.parameters("base"), self.parameters("forget")
        expected = sum(float((after[n] - before[n]).double().square().sum()) for n in before) ** 0.5
        assert expected > 0.1
        assert abs(found - expected) < 1e-4 * expected
        return found

    @cached_property
    def negated(self) -> Tensors:
        """The tensors that ``ws negate`` writes: ``W − λ T`` once they are loaded."""
        apply(Negate(self.vector("forget"), SCALE), self.base, self.root / "negated")
        after = dict(self.loaded(self.root / "negated").named_parameters())
        before, tuned = self.parameters("base"), self.parameters("forget")
        assert differ(after, before) == set(before)
        for name, tensor in after.items():
            close(tensor, before[name] - SCALE * (tuned[name] - before[name]), name)
        return read_tensors(self.root / "negated")

    @cached_property
    def projected(self) -> int:
        """How many matrices ``ws project`` changes: all linear layers, and each as it should."""
        edit = Project(self.vector("forget"), (self.vector("keep"),), Rank(RANK))
        apply(edit, self.base, self.root / "projected")
        model = self.loaded(self.root / "projected")
        after = self.on_disk(dict(model.named_parameters()), model)
        before, forget, keep = (
            self.on_disk(self.parameters(name)) for name in ("base", "forget", "keep")
        )
        linear = self.linear
        assert differ(after, before) == set(linear)
        count = 0
        for name, in_out in linear.items():
            task, kept = forget[name] - before[name], keep[name] - before[name]
            if in_out:
                task, kept = task.mT, kept.mT
            u, s, vh = torch.linalg.svd(task.double(), full_matrices=False)
            inputs = torch.linalg.svd(kept.double())[2][..., :RANK, :]
            low = (u[..., :RANK] * s[..., None, :RANK]) @ vh[..., :RANK, :]
            change = low - low @ inputs.mT @ inputs
            assert float(change.norm()) > 1e-3
            close(after[name], before[name] - (change.mT if in_out else change).float(), name)
            count += task.shape[0] if task.ndim == 3 else 1
        return count

    @cached_property
    def linear(self) -> dict[str, bool]:
        """What is multiplied with as a matrix between embeddings and head, and whether (in, out).

        By the model's own modules: their weights, by the names they are saved under.
        """
        model = self.models["base"]
        ends = [id(m.weight) for m in model.modules() if isinstance(m, torch.nn.Embedding)]
        head = getattr(model, "lm_head", getattr(model, "proj_out", None))
        ends += [] if head is None else [id(head.weight)]
        found: dict[str, bool] = {}
        for name, module in model.named_modules():
            for key, parameter in module.named_parameters(recurse=False):
                stack = parameter.ndim == 3 and "experts" in name
                layer = isinstance(module, torch.nn.Linear | Conv1D) and key == "weight"
                layer |= type(module).__name__.endswith("Router") and key == "weight"
                layer |= key == "in_proj_weight"  # of torch's own attention
                turned = isinstance(module, Conv1D) or (stack and self.of.experts_in_out)
                if key == "mm_input_projection_weight":  # x @ W
                    layer = turned = True
                if (layer or stack) and id(parameter) not in ends:
                    stored = self.on_disk({f"{name}.{key}": parameter.detach()})
                    found |= dict.fromkeys(stored, turned)
        return found

    @cached_property
    def restated(self) -> str:
        """How a fine-tune that a trainer wrote by its names in memory is taken.

        Where it is read, it gives the same edit, byte for byte.
        """
        tensors = self.parameters("forget")
        state = self.models["forget"].state_dict()
        tensors |= {n: t for n, t in self.models["forget"].named_buffers() if n in state}
        config = self.models["forget"].config.to_dict()
        write_checkpoint(self.root / "memory", tensors, config=config)
        if set(tensors) == set(self.base.entries):
            return "as on disk"
        try:
            vector = self.vector("memory")
        except MismatchError as error:
            return f"renamed: {'refused' if 'missing; the base' in error.what else error.what}"
        apply(Negate(vector, SCALE), self.base, self.root / "by-memory")
        found = read_tensors(self.root / "by-memory")
        assert found.keys() == self.negated.keys()
        assert all(same_bytes(found[name], self.negated[name]) for name in found)
        (change,) = (each for _, each in vector.terms)
        assert change.fitted.facts()["names"]
        assert change.fitted.share == 1
        return "regrouped" if "experts" in change.fitted.names else "renamed"

    @cached_property
    def exported(self) -> Exported:
        """The adapter of a vector: peft loads it, and merged it is the vector at low rank."""
        refused: list[str] = []
        for targets, include in (("all-linear", ()), ("all-linear", ("*attn*",))):
            try:
                record = export_adapter(
                    self.base,
                    self.vector("forget"),
                    self.root / "adapter",
                    selection=Selection(targets, include),
                    rule=Rank(RANK),
                    dtype="float32",
                )
            except SelectionError:  # of an architecture that has no such layers
                continue
            except (VectorError, UnsupportedCheckpointError) as error:
                refused += _reasons(error)
                continue
            self._check_merged(set(record.tensors))
            chosen = " ".join([targets, *include])
            return Exported(chosen, len(record.tensors), _joined(refused))
        assert not (self.root / "adapter").exists()
        return Exported(None, 0, _joined(refused))

    def _check_merged(self, adapted: set[str]) -> None:
        model = copy.deepcopy(self.models["base"])
        merged = PeftModel.from_pretrained(model, self.root / "adapter").merge_and_unload()
        after = self.on_disk({n: p.detach() for n, p in merged.named_parameters()}, merged)
        before, tuned = (self.on_disk(self.parameters(name)) for name in ("base", "forget"))
        assert differ(after, before) == adapted
        for name in adapted:
            u, s, vh = torch.linalg.svd((tuned[name] - before[name]).double(), full_matrices=False)
            low = (u[:, :RANK] * s[:RANK]) @ vh[:RANK]
            close(after[name], before[name] + low.float(), name)


def _reasons(error: WeightSurgeryError) -> list[str]:
    """Why tensors were refused, without their names."""
    assert error.remedy
    found = re.findall(r"(?:^|; )(?:[^;:]*: )?'[^']+'(?: and \d+ more)?: ([^;]+)", error.what)
    return found or [error.what.partition(": ")[2]]


def _joined(reasons: Iterable[str]) -> str:
    return "; ".join(dict.fromkeys(reasons))
