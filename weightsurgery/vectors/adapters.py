"""PEFT LoRA adapters as changes: ``ΔW = scaling · B A``, kept as factors.

``scaling`` is ``alpha / r``, or ``alpha / sqrt(r)`` with rsLoRA; ``r`` is read off the factors,
``alpha`` may be set per module (``alpha_pattern``). Kinds of adapters whose effect is not a change
of weights of this form are refused with the reason.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from weightsurgery.checkpoint.header import parse_json
from weightsurgery.checkpoint.layout import ARITHMETIC_DTYPES, Layout, parse_header
from weightsurgery.checkpoint.names.matching import find_match
from weightsurgery.checkpoint.names.wrappers import unwrapped
from weightsurgery.checkpoint.naming import is_transposed, kind_of, twin_candidates
from weightsurgery.checkpoint.reader import Checkpoint
from weightsurgery.checkpoint.source import Source
from weightsurgery.checkpoint.tied import is_tied
from weightsurgery.deferred import torch
from weightsurgery.errors import MismatchError, VectorError
from weightsurgery.vectors.deltas import Delta, FactorDelta
from weightsurgery.vectors.fitted import Fitted, shapes_of
from weightsurgery.vectors.patterns import ModulePattern

__all__ = ["AdapterChange", "is_adapter"]

_WEIGHTS = "adapter_model.safetensors"

# Settings under which base + B A is not the adapted model, and why.
_REFUSED = {
    "use_dora": "DoRA rescales each column, which is no low-rank change",
    "lora_bias": "it has biases of its own beside B A",
    "modules_to_save": "it replaces whole modules beside B A",
    "layer_replication": "it changes the number of layers",
    "trainable_token_indices": "it replaces single embedding rows beside B A",
    "target_parameters": "it adapts bare parameters, whose orientation is not recorded",
    "alora_invocation_tokens": "an activated LoRA applies to some tokens only",
    "use_qalora": "QALoRA pools its inputs",
    "use_bdlora": "its factors are block-diagonal",
    "kasa_config": "KaSA changes the base's weights too",
    "monteclora_config": "its factors are random variables",
    "arrow_config": "it routes between adapters",
}
_REFUSED_INITS = ("pissa", "olora", "corda", "loftq", "lora_ga")

_KEY = re.compile(
    r"^(?:base_model\.model\.)*(?P<module>.+)\."
    r"lora_(?P<embedding>embedding_)?(?P<factor>[AB])(?:\.(?:default\.)?weight)?$"
)


def is_adapter(directory: Path) -> bool:
    """Whether a directory holds a PEFT adapter."""
    return (directory / "adapter_config.json").is_file()


class AdapterChange:
    """A PEFT LoRA adapter as a change of the base's tensors.

    Args:
        base: The base.
        source: Where the adapter is.

    Attributes:
        fitted: How it fits the base.

    Raises:
        VectorError: Not a LoRA, or one whose effect is more than ``B A``, or another one when it
            is merged (on a tied embedding or head).
        MismatchError: The adapter is for modules the base does not have.
    """

    def __init__(self, base: Checkpoint, source: Source) -> None:
        self.base, self.source = base, source
        self.label = source.path.name
        self.config = _read_config(source)
        self._alpha = _number(source, "lora_alpha", self.config.get("lora_alpha", 8))
        self._alphas = _patterns(source, self.config.get("alpha_pattern"))
        path = source.path / _WEIGHTS
        if not path.is_file():
            raise VectorError(
                f"{source.name}: no {_WEIGHTS}",
                "Save the adapter with safetensors: load it in peft and save_pretrained it again.",
            )
        with path.open("rb") as file:

            def read(offset: int, length: int) -> bytes:
                file.seek(offset)
                return file.read(length)

            header = parse_header(_WEIGHTS, path.stat().st_size, read)
        entries = {entry.name: entry for entry in header.entries}
        self._weights = Checkpoint(source, Layout({_WEIGHTS: header}, entries))
        self._names: dict[str, str] = {}  # a module's weight -> what the base calls it
        self._modules = self._match_modules()

    @property
    def base_name(self) -> str:
        """The base the adapter was trained on, as its config has it; may be empty."""
        return str(self.config.get("base_model_name_or_path") or "")

    def _match_modules(self) -> dict[str, tuple[str, str, str, bool]]:
        """Base tensor -> (module, key of A, key of B, is an embedding)."""
        halves: dict[str, dict[str, str]] = {}
        embeddings = set()
        for key in self._weights.entries:
            match = _KEY.match(unwrapped(key)[0])
            if match is None:
                if self._is_base_copy(key):
                    continue
                raise VectorError(
                    f"{self.source.name}: tensor {key!r} is no LoRA factor",
                    "Merge the adapter in peft, and pass the merged checkpoint instead.",
                )
            halves.setdefault(match["module"], {})[match["factor"]] = key
            if match["embedding"]:
                embeddings.add(match["module"])
        self.fitted = self._fit(halves, embeddings)
        self._check_untied(halves)
        found: dict[str, tuple[str, str, str, bool]] = {}
        for module, keys in halves.items():
            if len(keys) != 2:
                raise VectorError(
                    f"{self.source.name}: module {module!r} has only one of lora_A and lora_B",
                    "Save the adapter again.",
                )
            name = self._base_name_of(module)
            found[name] = (module, keys["A"], keys["B"], module in embeddings)
            self._check_shapes(name, found[name])
        if not found:
            raise VectorError(f"{self.source.name}: an empty adapter", "Train it first.")
        return found

    def _fit(self, halves: Mapping[str, Mapping[str, str]], embeddings: Iterable[str]) -> Fitted:
        """Find what the base calls the modules, by names and shapes."""
        shapes = {}
        for module, keys in halves.items():
            if len(keys) != 2:
                continue
            a, b = (self._weights.entry(keys[factor]).shape for factor in "AB")
            if len(a) == len(b) == 2:
                made = (b[0], a[1])
                flipped = self._is_flipped((module, keys["A"], keys["B"], module in embeddings))
                shapes[f"{module}.weight"] = made[::-1] if flipped else made
        match = find_match(shapes_of(self.base), shapes, self.source.name)
        self._names = {place.names[0]: name for name, place in match.places.items()}
        facts = {k: v for k, v in match.facts().items() if k == "renamed"}
        wrapped = [dict.fromkeys(unwrapped(key)[1]) for key in self._weights.entries]
        wrappers = {each: sum(each in of for of in wrapped) for of in wrapped for each in of}
        if wrappers:
            facts["wrappers"] = wrappers
        return Fitted(self.label, len(halves), len(halves), names=facts)

    def _check_untied(self, modules: Iterable[str]) -> None:
        """Refuse a change of a tied embedding or head, which is another one once it is merged."""
        tied = [each for each in modules if is_tied(self.base, self._base_name_of(each))]
        if not tied:
            return
        remedy = (
            "Untie the base first: load it with tie_word_embeddings=False, copy the embedding"
            " into the head, save it, and use that as the base."
        )
        if len(tied) == 1:  # of both, merging would add one to the other
            remedy += " Or, if both sides are to change, pass what peft merges as a checkpoint."
        raise VectorError(
            f"{self.source.name}: adapts {tied[0]!r}, and {self.base.source.name} ties its head to"
            " its embedding: beside the base one side changes, in their one matrix both would",
            remedy,
        )

    def _is_base_copy(self, key: str) -> bool:
        """Whether a tensor is the base's own: peft saves embeddings and head that it adapts."""
        name = unwrapped(key)[0].removeprefix("base_model.model.").replace(".base_layer.", ".")
        if name not in self.base.entries:  # a tied head, which the base stores as its embedding
            name = next(iter(twin_candidates(name, list(self.base.entries))), name)
        ours, theirs = self.base.entries.get(name), self._weights.entry(key)
        if ours is None or ours.shape != theirs.shape or ours.dtype not in ARITHMETIC_DTYPES:
            return False
        return all(
            torch.equal(
                self.base.rows(name, start, stop).float(),
                self._weights.rows(key, start, stop).float(),
            )
            for start, stop in ours.blocks()
        )

    def _base_name_of(self, module: str) -> str:
        name = f"{module}.weight"
        if name in self.base.entries:
            return name
        if name in self._names:
            return self._names[name]
        # The wrapped model may hold the checkpoint's modules under a longer or shorter prefix.
        near = [
            each
            for each in self.base.entries
            if each.endswith(f".{name}") or name.endswith(f".{each}")
        ]
        if len(near) == 1:
            return near[0]
        twins = twin_candidates(name, list(self.base.entries))
        if not near and twins and is_tied(self.base, twins[0]):
            return twins[0]
        raise MismatchError(
            f"{self.source.name}: adapts {module!r}, and {self.base.source.name} has "
            f"{'no such module' if not near else 'several such modules'}",
            f"The adapter was trained on {self.base_name or 'another model'}; use that base.",
        )

    def _check_shapes(self, name: str, module: tuple[str, str, str, bool]) -> None:
        _, key_a, key_b, _ = module
        a, b = self._weights.entry(key_a), self._weights.entry(key_b)
        shape = self.base.entry(name).shape
        if len(a.shape) != 2 or len(b.shape) != 2 or a.shape[0] != b.shape[1]:
            raise VectorError(
                f"{self.source.name}: {key_a!r} {list(a.shape)} and {key_b!r} {list(b.shape)}"
                " are no pair of linear LoRA factors",
                "Merge the adapter in peft, and pass the merged checkpoint instead.",
            )
        if a.shape[0] == 0:
            raise VectorError(
                f"{self.source.name}: {key_a!r} has rank 0", "Save the adapter again."
            )
        made = (b.shape[0], a.shape[1])
        if (made[::-1] if self._is_flipped(module) else made) != shape:
            raise MismatchError(
                f"{self.source.name}: {key_b!r} @ {key_a!r} gives {list(made)}; tensor {name!r}"
                f" of {self.base.source.name} is {list(shape)}",
                f"The adapter was trained on {self.base_name or 'another model'}; use that base.",
            )

    def _is_flipped(self, module: tuple[str, str, str, bool]) -> bool:
        """Whether the stored weight is the transpose of ``B A``: embeddings, and Conv1D."""
        if module[3] or is_transposed(f"{module[0]}.weight", self.base.config):
            return True
        # peft notes the last module it wrapped: a GPT-2 adapter with its head says False, and
        # the head itself is linear in any model.
        return bool(self.config.get("fan_in_fan_out")) and kind_of(f"{module[0]}.weight") != "head"

    def scaling(self, module: str, rank: int) -> float:
        """``alpha / r`` of a module, or ``alpha / sqrt(r)`` with rsLoRA."""
        alpha = self._alpha
        # peft takes the first pattern that matches the end of the module's name.
        for pattern, value in self._alphas:
            if pattern.matches(module):
                alpha = value
                break
        return alpha / math.sqrt(rank) if self.config.get("use_rslora") else alpha / rank

    def at(self, name: str) -> Delta | None:
        """See :class:`weightsurgery.vectors.task_vector.Change`."""
        found = self._modules.get(name)
        if found is None:
            return None
        module, key_a, key_b, _ = found
        a, b = self._weights.tensor(key_a).float(), self._weights.tensor(key_b).float()
        left, right = b * self.scaling(module, a.shape[0]), a.T
        return FactorDelta(right, left) if self._is_flipped(found) else FactorDelta(left, right)

    def provenance(self) -> Mapping[str, Any]:
        """See :class:`weightsurgery.vectors.task_vector.Change`."""
        return {
            "kind": "peft-lora",
            "name": self.source.name,
            "revision": self.source.revision,
            "base": self.base_name,
            "fitted": self.fitted.facts(),
            "paths": [self.source.path / "adapter_config.json", self.source.path / _WEIGHTS],
        }


def _number(source: Source, setting: str, value: object) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool):
        with contextlib.suppress(OverflowError):
            if math.isfinite(found := float(value)):
                return found
    raise VectorError(
        f"{source.name}: {setting} is {str(value)[:80]!r}, no finite number",
        "Restore adapter_config.json.",
    )


def _patterns(source: Source, told: object) -> list[tuple[ModulePattern, float]]:
    """``alpha_pattern``, in its order."""
    if told is None:
        return []
    if not isinstance(told, dict):
        raise VectorError(
            f"{source.name}: alpha_pattern is no mapping of patterns to numbers",
            "Restore adapter_config.json.",
        )
    return [
        (ModulePattern(text, source.name), _number(source, f"alpha_pattern {text[:80]!r}", value))
        for text, value in told.items()
    ]


def _read_config(source: Source) -> dict[str, Any]:
    path = source.path / "adapter_config.json"
    try:
        config = parse_json(path.read_bytes())
    except ValueError as error:
        raise VectorError(f"{path}: not valid JSON: {error}", "Restore the adapter.") from None
    except OSError as error:
        raise VectorError(
            f"{path}: cannot be read: {error.strerror}", "Restore the adapter."
        ) from None
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        kind = config.get("peft_type") if isinstance(config, dict) else None
        raise VectorError(
            f"{source.name}: a {str(kind)[:80] if kind else 'nameless'} adapter; only LORA is a"
            " low-rank change",
            "Merge the adapter in peft, and pass the merged checkpoint instead.",
        )
    remedy = "Merge the adapter in peft, and pass the merged checkpoint instead."
    for setting, reason in _REFUSED.items():
        if config.get(setting):
            raise VectorError(f"{source.name}: {setting} is set; {reason}", remedy)
    if config.get("bias", "none") != "none":
        raise VectorError(f"{source.name}: it trains biases beside B A", remedy)
    init = config.get("init_lora_weights")
    if isinstance(init, str) and init.lower().startswith(_REFUSED_INITS):
        raise VectorError(
            f"{source.name}: initialised by {init}, which changes the base's weights too",
            "Save it with path_initial_model_for_weight_conversion, or merge it.",
        )
    return config
