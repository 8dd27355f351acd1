"""transformers' Trainer, saving what it trains and no other weight, whole also if it is in pieces.

Any number of processes can go on from such a point: each takes its pieces of what was saved.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import Trainer

from weightsurgery.learning.points import seal, unseal, writing
from weightsurgery.learning.sharding import is_sharded, piece_for, whole
from weightsurgery.learning.values import set_values, values_of

__all__ = ["PointsTrainer"]

# As Trainer calls those that it writes.
_WEIGHTS, _OPTIMIZER, _SCHEDULER = "model.safetensors", "optimizer.pt", "scheduler.pt"


class PointsTrainer(Trainer):
    """Saves points of a training, and goes on from them."""

    def __init__(self, *, model: Any, args: Any, **kwargs: Any) -> None:
        strategy = args.save_strategy
        if is_sharded(model):
            args.save_strategy = "no"  # of a sharded model, Trainer saves no points by itself
        super().__init__(model=model, args=args, **kwargs)
        args.save_strategy = strategy

    model: Any
    optimizer: Any
    lr_scheduler: Any

    @property
    def _in_pieces(self) -> bool:
        return is_sharded(self.model) and not hasattr(self.model, "peft_config")

    def _save(self, output_dir=None, state_dict=None):  # type: ignore[no-untyped-def]
        trained = [name for name, each in self.model.named_parameters() if each.requires_grad]
        values = values_of(self.model, trained, self.args.should_save)
        if self.args.should_save:
            os.makedirs(output_dir, exist_ok=True)
            save_file(values, os.path.join(output_dir, _WEIGHTS))

    def _save_checkpoint(self, model, trial):  # type: ignore[no-untyped-def]
        point = Path(self._get_output_dir(trial=trial)) / f"checkpoint-{self.state.global_step}"
        with writing(str(self.args.output_dir)):
            unseal(point)
            try:
                super()._save_checkpoint(model, trial)
            except BaseException:
                shutil.rmtree(point, ignore_errors=True)  # half a point only takes room
                raise
            if torch.distributed.is_available() and torch.distributed.is_initialized():
                torch.distributed.barrier()  # each writes a part of the point
            if self.args.should_save:
                best = self.state.best_model_checkpoint
                seal(point, None if best is None else Path(best))

    def _save_optimizer_and_scheduler(self, output_dir):  # type: ignore[no-untyped-def]
        if not self._in_pieces:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        optimizer, state = self.optimizer, _whole(self.optimizer.state_dict())
        self.optimizer = SimpleNamespace(state_dict=lambda: state)
        try:
            super()._save_optimizer_and_scheduler(output_dir)
        finally:
            self.optimizer = optimizer

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):  # type: ignore[no-untyped-def]
        _read_values(self.model, Path(resume_from_checkpoint) / _WEIGHTS)

    def _load_best_model(self):  # type: ignore[no-untyped-def]
        _read_values(self.model, Path(str(self.state.best_model_checkpoint)) / _WEIGHTS)

    def _load_optimizer_and_scheduler(self, checkpoint):  # type: ignore[no-untyped-def]
        if not self._in_pieces or checkpoint is None:
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        saved, scheduler = (
            torch.load(Path(checkpoint) / name, map_location="cpu", weights_only=True)
            for name in (_OPTIMIZER, _SCHEDULER)
        )
        trained = [each for group in self.optimizer.param_groups for each in group["params"]]
        for number, state in saved["state"].items():
            for name, value in state.items():
                # Moments are in pieces, steps are not.
                if isinstance(value, Tensor) and value.ndim:
                    state[name] = piece_for(trained[number], value).clone()
        self.optimizer.load_state_dict(saved)
        self.lr_scheduler.load_state_dict(scheduler)


def _whole(saved: Mapping[str, Any]) -> dict[str, Any]:
    """An optimiser's state, put together on the CPU."""
    return {
        **saved,
        "state": {
            number: {
                name: whole(value).cpu() if isinstance(value, Tensor) else value
                for name, value in state.items()
            }
            for number, state in saved["state"].items()
        },
    }


def _read_values(model: Any, file: Path) -> None:
    with safe_open(file, "pt") as saved:
        for name in saved.keys():  # noqa: SIM118
            set_values(model, {name: saved.get_tensor(name)})
