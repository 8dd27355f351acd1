"""Whether a folder holds an adapter, and of which kind, by its content alone."""

from __future__ import annotations

import os
from pathlib import Path

from weightsurgery.checkpoint.header import parse_header
from weightsurgery.checkpoint.source import Source
from weightsurgery.errors import SourceError, VectorError, WeightSurgeryError
from weightsurgery.vectors.adapter_config import CONFIG_NAME, AdapterConfig, read_config
from weightsurgery.vectors.adapter_keys import is_kohya, is_peft_without_config

__all__ = ["find_adapter"]

_ADAPTERS = ("adapter_model.safetensors", "adapter_model.bin", "adapters.safetensors")


def find_adapter(source: Source) -> AdapterConfig | None:
    """The settings of the adapter in a folder; None if it holds something else.

    Raises:
        SourceError: It holds a model and an adapter, or several adapters.
        VectorError: It is an adapter that cannot be read.
    """
    root = source.path
    adapters = [name for name in _ADAPTERS if (root / name).is_file()]
    models = _models(root)
    if adapters and models:
        raise SourceError(
            f"{source.name}: holds a full model ({models[0]}) and an adapter ({adapters[0]}), which"
            " are two changes",
            "Move one of the two into a folder of its own (the adapter with its"
            f" {CONFIG_NAME}), and name the folder that is meant.",
        )
    if (root / CONFIG_NAME).is_file() and not models:
        return read_config(source)
    if models:
        # A config that was left behind by an adapter that is merged; or factors without any.
        return _without_config(source, models)
    folders = sorted(path.parent.name for path in root.glob(f"*/{CONFIG_NAME}"))
    if folders:
        raise SourceError(
            f"{source.name}: holds adapters in folders of their own: {', '.join(folders)}",
            f"Name one of them:  {os.path.join(source.name, folders[0])}",
        )
    if adapters:
        return _without_config(source, adapters)
    return None


def _models(root: Path) -> list[str]:
    """Files of weights that are no adapter's by their name."""
    return sorted(
        path.name
        for path in root.glob("*.safetensors*")
        if path.name.endswith((".safetensors", ".safetensors.index.json"))
        and not path.name.startswith("adapter")
        and not path.name.endswith("_adapters.safetensors")  # MLX-LM's, of earlier steps
    )


def _without_config(source: Source, names: list[str]) -> AdapterConfig | None:
    """An adapter whose file alone says that it is one."""
    if len(names) != 1 or not names[0].endswith(".safetensors"):
        return None
    path = source.path / names[0]
    try:
        with path.open("rb") as file:

            def read(offset: int, length: int) -> bytes:
                file.seek(offset)
                return file.read(length)

            header = parse_header(path.name, path.stat().st_size, read)
    except (OSError, WeightSurgeryError):
        return None  # reported where it is read as a checkpoint
    keys = [entry.name for entry in header.entries]
    if is_kohya(keys):
        return AdapterConfig("kohya-lora", path.name, source.name)
    if is_peft_without_config(keys) or path.name in _ADAPTERS:
        raise VectorError(
            f"{source.name}: {path.name} holds LoRA factors, and no {CONFIG_NAME} is beside it:"
            " the scale (lora_alpha and r) is not known",
            f"Put the {CONFIG_NAME} of the training beside it.",
        )
    return None
