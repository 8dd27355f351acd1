"""The role of each tensor of an adapter, in the layouts in use.

peft writes ``lora_A`` (r, in) and ``lora_B`` (out, r), MLX-LM ``lora_a`` (in, r) and ``lora_b``
(r, out), kohya's scripts ``lora_down`` and ``lora_up`` under names without dots.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from weightsurgery.checkpoint.names.prefixes import plain_names, unwrapped
from weightsurgery.errors import VectorError

__all__ = [
    "Factors",
    "SortedKeys",
    "inside",
    "is_kohya",
    "is_peft_without_config",
    "kohya_modules",
    "sort_keys",
]

_PEFT = re.compile(
    r"^(?:base_model\.model\.)*(?P<module>.+)\.lora_(?P<part>A|B|embedding_A|embedding_B|magnitude_vector)"
    r"(?P<tail>(?:\.[^.]+){0,2})$"
)
_WRAPPED = re.compile(r"^(?:base_model\.model\.)+")
_MLX = re.compile(r"^(?P<module>.+)\.(?P<part>lora_a|lora_b|m)$")
_KOHYA = re.compile(
    r"^(?P<module>.+)\.(?P<part>lora_down\.weight|lora_up\.weight|alpha|dora_scale)$"
)

_PARTS = {
    "A": "A", "B": "B", "embedding_A": "A", "embedding_B": "B", "magnitude_vector": "magnitude",
    "lora_a": "A", "lora_b": "B", "m": "magnitude",
    "lora_down.weight": "A", "lora_up.weight": "B", "alpha": "alpha", "dora_scale": "magnitude",
}  # fmt: skip


@dataclass
class Factors:
    """The tensors of one adapted module.

    Attributes:
        module: Its name, as in the base, with ``.base_layer`` where it is wrapped twice.
        keys: By role: ``A``, ``B``, ``bias``, ``magnitude``, ``alpha``.
        embedding: Whether peft treats it as an embedding.
        turned: Whether the factors are stored (in, r) and (r, out).
    """

    module: str
    keys: dict[str, str] = field(default_factory=dict)
    embedding: bool = False
    transposed: bool = False


@dataclass(frozen=True)
class SortedKeys:
    """An adapter's tensors.

    Attributes:
        modules: Those with factors, by name.
        rest: Keys that are no part of factors.
    """

    modules: Mapping[str, Factors]
    rest: tuple[str, ...]


def sort_keys(keys: Iterable[str], kind: str, where: str) -> SortedKeys:
    """Sort the tensors of an adapter into modules.

    Args:
        keys: Their names.
        kind: See :attr:`weightsurgery.vectors.adapter_config.AdapterConfig.kind`.
        where: The adapter, for messages.

    Raises:
        VectorError: Several adapters are in one file.
        MismatchError: Two names are one without the wrappers of a trainer.
    """
    pattern = {"mlx-lora": _MLX, "kohya-lora": _KOHYA}.get(kind, _PEFT)
    modules: dict[str, Factors] = {}
    rest: list[str] = []
    names: set[str] = set()
    for plain, key in plain_names(keys, where).items():
        match = pattern.match(plain)
        tail = [] if match is None or kind != "peft-lora" else match["tail"].split(".")[1:]
        part = None if match is None else _PARTS[match["part"]]
        if tail and tail[-1] in ("weight", "bias"):
            part = "bias" if tail.pop() == "bias" and part == "B" else part
        if match is None or part is None or len(tail) > 1:
            rest.append(key)
            continue
        names.update(tail)
        module = modules.setdefault(match["module"], Factors(match["module"]))
        module.keys[part] = key
        module.embedding |= match["part"].startswith("embedding_")
        module.transposed = kind == "mlx-lora"
    if len(names) > 1:
        raise VectorError(
            f"{where}: holds several adapters in one file: {', '.join(sorted(names))}",
            "Load it in peft, and save each with save_pretrained(..., selected_adapters=[NAME]).",
        )
    return SortedKeys(modules, tuple(rest))


def inside(key: str) -> str:
    """The name of an adapter's tensor in the model that peft wrapped."""
    return _WRAPPED.sub("", unwrapped(key)[0])


def is_kohya(keys: Iterable[str]) -> bool:
    """Whether all tensors are those of kohya's scripts."""
    matches = [_KOHYA.match(key) for key in keys]
    return bool(matches) and all(matches)


def is_peft_without_config(keys: Iterable[str]) -> bool:
    """Whether tensors are peft's factors."""
    return any(re.search(r"\.lora_[AB]\.(\w+\.)?weight$", key) for key in keys)


def kohya_modules(names: Iterable[str]) -> dict[str, list[str]]:
    """The base's modules by the names that kohya's scripts give them: dots are underscores."""
    modules: dict[str, list[str]] = {}
    for name in names:
        module, dot, leaf = name.rpartition(".")
        if dot and leaf == "weight":
            modules.setdefault(module.replace(".", "_"), []).append(module)
    return modules
