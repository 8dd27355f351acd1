"""An adapter's config: its kind, and the rank and scale of each module; whether there is one.

peft's ``scaling`` is ``alpha / r``, or ``alpha / sqrt(r)`` with rsLoRA; both may be set per module.
MLX-LM writes the scale itself. Kinds of adapters whose effect is not a change of weights are
refused with the reason.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from weightsurgery.checkpoint.header import parse_header, parse_json
from weightsurgery.checkpoint.source import Source
from weightsurgery.errors import SourceError, VectorError, WeightSurgeryError
from weightsurgery.vectors.adapter_keys import is_kohya, is_peft_without_config
from weightsurgery.vectors.patterns import ModulePattern

__all__ = ["CONFIG_NAME", "AdapterConfig", "find_adapter", "read_config", "target_modules"]

CONFIG_NAME = "adapter_config.json"

_MERGE = "Merge the adapter in peft, and pass the merged checkpoint instead."

# Settings under which the adapted model is no model of the base's layout, and why.
_REFUSED = {
    "layer_replication": "it changes the number of layers",
    "alora_invocation_tokens": "an activated LoRA applies to some tokens only",
    "use_qalora": "QALoRA pools its inputs",
    "use_bdlora": "its factors are block-diagonal",
    "kasa_config": "KaSA changes the base's weights too",
    "monteclora_config": "its factors are random variables",
    "arrow_config": "it routes between adapters",
}
_REFUSED_INITS = ("pissa", "olora", "corda", "loftq", "lora_ga")

_Patterns = tuple[tuple[ModulePattern, float], ...]


@dataclass(frozen=True)
class AdapterConfig:
    """The settings of an adapter that its effect depends on.

    Attributes:
        kind: For the record: ``"peft-lora"``, ``"mlx-lora"`` or ``"kohya-lora"``.
        weights: File name of the factors.
        where: The adapter, for messages.
        settings: As written.
        rank: Of modules without one of their own; None where nothing says.
        alpha: Likewise.
        ranks: Ranks of single modules, in peft's order.
        alphas: Likewise.
        scale: The scale itself, where the format has that; peft's has not.
    """

    kind: str
    weights: str
    where: str
    settings: Mapping[str, Any] = field(default_factory=dict, repr=False)
    rank: float | None = None
    alpha: float = 8
    ranks: _Patterns = ()
    alphas: _Patterns = ()
    scale: float | None = None

    def check_rank(self, module: str, rank: int) -> None:
        """Refuse factors of another rank than the config has for their module.

        Raises:
            VectorError: The scale, which is divided by the rank, would be a guess.
        """
        expected = _first(self.ranks, module, self.rank)
        if expected is None or rank == expected:
            return
        setting = "lora_parameters.rank" if self.kind == "mlx-lora" else "r or rank_pattern"
        raise VectorError(
            f"{self.where}: the factors of {module!r} are of rank {rank}, {CONFIG_NAME} says"
            f" {expected:g}: which of the two the scale is meant for is a guess",
            f"Set {setting} in {CONFIG_NAME} to what it was trained with, or save it again.",
        )

    def scaling(self, module: str, rank: int) -> float:
        """The scale of a module's ``B A``."""
        if self.scale is not None:
            return self.scale
        alpha = _first(self.alphas, module, self.alpha)
        assert alpha is not None
        return alpha / math.sqrt(rank) if self.settings.get("use_rslora") else alpha / rank


def _first(patterns: _Patterns, module: str, default: float | None) -> float | None:
    """The value of the first pattern that matches the end of a module's name, as in peft."""
    for pattern, value in patterns:
        if pattern.matches(module):
            return value
    return default


def read_config(source: Source) -> AdapterConfig:
    """Read and check an adapter's config.

    Raises:
        VectorError: It cannot be read, or the adapter is no change of weights.
    """
    path = source.path / CONFIG_NAME
    try:
        config = parse_json(path.read_bytes())
    except ValueError as error:
        raise VectorError(f"{path}: not valid JSON: {error}", "Restore the adapter.") from None
    except OSError as error:
        raise VectorError(
            f"{path}: cannot be read: {error.strerror}", "Restore the adapter."
        ) from None
    if isinstance(config, dict) and "peft_type" not in config and "fine_tune_type" in config:
        return _mlx(source, config)
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        kind = config.get("peft_type") if isinstance(config, dict) else None
        raise VectorError(
            f"{source.name}: a {str(kind)[:80] if kind else 'nameless'} adapter; only LORA is a"
            " low-rank change",
            _MERGE,
        )
    for setting, reason in _REFUSED.items():
        if config.get(setting):
            raise VectorError(f"{source.name}: {setting} is set; {reason}", _MERGE)
    init = config.get("init_lora_weights")
    if isinstance(init, str) and init.lower().startswith(_REFUSED_INITS):
        raise VectorError(
            f"{source.name}: initialised by {init}, which changes the base's weights too",
            "Save it with path_initial_model_for_weight_conversion, or merge it.",
        )
    rank = config.get("r")
    return AdapterConfig(
        "peft-lora",
        "adapter_model.safetensors",
        source.name,
        config,
        None if rank is None else _number(source, "r", rank),
        _number(source, "lora_alpha", config.get("lora_alpha", 8)),
        _patterns(source, "rank_pattern", config.get("rank_pattern")),
        _patterns(source, "alpha_pattern", config.get("alpha_pattern")),
    )


def _mlx(source: Source, config: Mapping[str, Any]) -> AdapterConfig:
    """An adapter of MLX-LM: ``(in, r)`` and ``(r, out)``, and the scale as it is."""
    kind = config.get("fine_tune_type")
    settings = config.get("lora_parameters")
    if kind not in ("lora", "dora") or not isinstance(settings, dict):
        raise VectorError(
            f"{source.name}: an MLX-LM adapter of fine_tune_type {str(kind)[:80]!r}; of those, lora"
            " and dora are read",
            "Put it into its base with 'mlx_lm.fuse', and pass the fused checkpoint instead.",
        )
    rank = settings.get("rank")
    return AdapterConfig(
        "mlx-lora",
        "adapters.safetensors",
        source.name,
        {"base_model_name_or_path": config.get("model"), "use_dora": kind == "dora"},
        None if rank is None else _number(source, "lora_parameters.rank", rank),
        scale=_number(source, "lora_parameters.scale", settings.get("scale")),
    )


def _number(source: Source, setting: str, value: object) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool):
        with contextlib.suppress(OverflowError):
            if math.isfinite(number := float(value)):
                return number
    raise VectorError(
        f"{source.name}: {setting} is {str(value)[:80]!r}, no finite number",
        f"Restore {CONFIG_NAME}.",
    )


def _patterns(source: Source, setting: str, patterns: object) -> _Patterns:
    """``rank_pattern`` or ``alpha_pattern``, in its order."""
    if patterns is None:
        return ()
    if not isinstance(patterns, dict):
        raise VectorError(
            f"{source.name}: {setting} is no mapping of patterns to numbers",
            f"Restore {CONFIG_NAME}.",
        )
    return tuple(
        (
            ModulePattern(text, source.name, setting),
            _number(source, f"{setting} {text[:80]!r}", value),
        )
        for text, value in patterns.items()
    )


def target_modules(targets: Collection[str], modules: Iterable[str]) -> list[str] | str:
    """The setting that makes peft adapt some modules of a model and no others.

    peft adapts each module whose name is in a list, or ends with a dot and a name in it; or, given
    a string, each whose name it matches as a regular expression.

    Args:
        targets: Names of the modules to adapt.
        modules: Names of all modules that hold tensors; those around them count too.

    Returns:
        Last parts of names (``q_proj``) where all modules called so are targets, full names where
        not; a regular expression where a full name is the end of another.
    """
    wanted = set(targets)
    everything = {
        ".".join(parts[:count])
        for parts in (module.split(".") for module in {*modules, *wanted})
        for count in range(1, len(parts) + 1)
    }
    others = {_leaf(module) for module in everything - wanted}
    listed = {module if _leaf(module) in others else _leaf(module) for module in wanted}
    if {module for module in everything if _ends(module) & listed} == wanted:
        return sorted(listed)
    return "|".join(re.escape(module) for module in sorted(wanted))


def _leaf(module: str) -> str:
    return module.rpartition(".")[2]


def _ends(module: str) -> set[str]:
    """A name and all of its suffixes, part by part."""
    parts = module.split(".")
    return {".".join(parts[start:]) for start in range(len(parts))}


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
