"""The two files of a PEFT LoRA adapter, all or nothing."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Mapping
from typing import Any

from weightsurgery.algebra.lowrank import LowRank
from weightsurgery.checkpoint.layout import encode_header
from weightsurgery.checkpoint.plain_files import new_file, write_whole
from weightsurgery.checkpoint.reader import Checkpoint
from weightsurgery.checkpoint.record import EditRecord, file_sha256
from weightsurgery.checkpoint.staging import RECORD_NAME, Staging, output_errors
from weightsurgery.deferred import torch
from weightsurgery.errors import NonFiniteError
from weightsurgery.vectors.lora_layers import LoraLayer, LoraLayers

__all__ = ["DTYPES", "LoraWriter", "adapter_config", "halves"]

# Dtypes of factors, and what safetensors calls them.
DTYPES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}

_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


class LoraWriter:
    """Writes an adapter layer by layer; one layer's factors are held at a time.

    peft reads a single file, whose header comes first and needs the shapes of all factors: so
    they are gathered in a file beside it. Use as a context manager: an exception removes
    everything, :meth:`commit` makes it whole.

    Args:
        staging: Where to write.
        dtype: One of :data:`DTYPES`, that of the factors.

    Attributes:
        ranks: Rank of each layer written so far.
        parameters: Numbers written so far.
    """

    def __init__(self, staging: Staging, dtype: str) -> None:
        self._staging, self._code = staging, DTYPES[dtype]
        self._tensors: list[tuple[str, str, tuple[int, ...]]] = []
        self._gathered = staging.root / "factors"
        try:
            with output_errors(staging.target):
                self._file = new_file(self._gathered)
        except BaseException:
            staging.close()
            raise
        self.ranks: dict[LoraLayer, int] = {}
        self.parameters = 0

    def __enter__(self) -> LoraWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._staging.close()

    def add(self, layer: LoraLayer, a: torch.Tensor, b: torch.Tensor) -> None:
        """Add the factors of one layer: ``A`` (r, in) and ``B`` (out, r), in the file's dtype."""
        self.ranks[layer] = a.shape[0]
        for key, half in zip(layer.keys, (a, b), strict=True):
            self._tensors.append((key, self._code, tuple(half.shape)))
            self.parameters += half.numel()
            with output_errors(self._staging.target):
                self._file.write(half.contiguous().reshape(-1).view(torch.uint8).numpy().data)

    def commit(self, record: EditRecord, config: Mapping[str, Any]) -> EditRecord:
        """Write the files and the record, and put the adapter in its place."""
        files = self._staging.files
        with output_errors(self._staging.target):
            self._file.close()
            with self._gathered.open("rb") as gathered, new_file(files / _WEIGHTS) as file:
                file.write(encode_header(self._tensors, {"format": "pt"}))
                shutil.copyfileobj(gathered, file, 1 << 22)
            write_whole(files / _CONFIG, json.dumps(config, indent=2) + "\n")
            record.files = {
                name: {"sha256": file_sha256(files / name), "bytes": (files / name).stat().st_size}
                for name in (_CONFIG, _WEIGHTS)
            }
            write_whole(files / RECORD_NAME, record.to_json())
        self._staging.commit([*record.files, RECORD_NAME])
        return record


def halves(name: str, factors: LowRank, dtype: str) -> tuple[torch.Tensor, torch.Tensor, float]:
    """The two factors of an adapter, of equal size: ``B = U √S`` and ``A = √S Vᵀ``.

    Args:
        name: The tensor, for messages.
        factors: Of its change, oriented (out, in).
        dtype: One of :data:`DTYPES`.

    Returns:
        ``A`` (r, in) and ``B`` (out, r) in that dtype, and ``‖B A − U diag(S) Vᵀ‖``.

    Raises:
        NonFiniteError: A number is beyond that dtype.
    """
    root = factors.S.double().sqrt()
    a, b = (factors.V.double() * root).T, factors.U.double() * root
    stored_as = getattr(torch, dtype)
    stored_a, stored_b = a.to(stored_as), b.to(stored_as)
    if not (bool(stored_a.isfinite().all()) and bool(stored_b.isfinite().all())):
        raise NonFiniteError(
            f"tensor {name!r}: factors too large for {dtype}",
            "Use --dtype bfloat16 or float32, or a smaller --scale.",
        )
    # B A − B'A' = (B − B') A + B' (A − A'): by factors, and no large numbers cancel.
    left = torch.cat([b - stored_b.double(), stored_b.double()], 1)
    right = torch.cat([a, a - stored_a.double()])
    missed = float(((left.T @ left) * (right @ right.T)).sum())
    return stored_a, stored_b, math.sqrt(max(0.0, missed))


def adapter_config(
    base: Checkpoint, layers: LoraLayers, ranks: Mapping[LoraLayer, int]
) -> dict[str, Any]:
    """What ``adapter_config.json`` says.

    ``r`` is the largest rank. Layers of a lower one stand in the patterns, and in both of them, so
    that everybody's scaling is 1: alpha over rank by the patterns, alpha over ``r`` without.

    Args:
        base: The base; by its path if it is a directory, which need not be the current one's.
        layers: The layers of the base.
        ranks: Those that are adapted.
    """
    r = max(ranks.values())
    lower = {f"^{re.escape(layer.module)}": rank for layer, rank in ranks.items() if rank != r}
    architectures = base.config.get("architectures") or [""]
    causal = str(architectures[0]).endswith(("ForCausalLM", "LMHeadModel"))
    local = base.source.revision is None
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM" if causal else None,
        "base_model_name_or_path": (
            str(base.path) if local else base.source.name.partition("@")[0]
        ),
        "revision": base.source.revision,
        "inference_mode": True,
        "r": r,
        "lora_alpha": r,
        "rank_pattern": lower,
        "alpha_pattern": lower,
        "target_modules": layers.targets(ranks),
        "fan_in_fan_out": any(layer.flipped and not layer.embedding for layer in ranks),
        "lora_dropout": 0.0,
        "bias": "none",
        "use_rslora": False,
        "use_dora": False,
        "init_lora_weights": True,
        "modules_to_save": None,
    }
