"""LoRA on experts in one tensor: peft's ``target_parameters``.

For a stack ``(E, d₁, d₂)`` peft holds ``A`` of shape ``(r·E, i)``, expert by expert, and ``B`` of
shape ``(o, r·E)``, the experts innermost. Up to 0.18 ``i`` is ``d₁``, since 0.19 it is ``d₂``
unless the model's experts are stored (in, out). Several parameters of one module are wrapped one
around the other; their shapes show which is which.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from weightsurgery.checkpoint.reader import Checkpoint
from weightsurgery.deferred import torch
from weightsurgery.errors import MismatchError, VectorError
from weightsurgery.vectors.adapter_config import AdapterConfig
from weightsurgery.vectors.adapter_keys import Factors
from weightsurgery.vectors.deltas import Delta, FactorDelta, StackDelta

__all__ = ["ExpertFactors", "expert_factors"]

_MERGE = "Merge the adapter in peft, and pass the merged checkpoint instead."

# Models whose experts are stored (in, out), which peft leaves as they are: transformers'
# ``is_transposed``.
_IN_OUT = frozenset({"gpt_oss", "aria", "aria_text", "openai_privacy_filter"})

# The parts of a stacked parameter where the base has its experts one by one, and how Mixtral's
# checkpoints call the module they are in.
_SINGLE = {
    "gate_up_proj": (("gate_proj", "up_proj"), ("w1", "w3")),
    "down_proj": (("down_proj",), ("w2",)),
}
_HOLDERS = (("", ""), (".mlp.", ".block_sparse_moe."))


@dataclass(frozen=True)
class _Stack:
    """A parameter of the base's: a stack ``(E, d1, d2)``, in one tensor or one by one."""

    parameter: str
    shape: tuple[int, int, int]
    name: str | None  # of the one tensor
    singles: tuple[tuple[str, ...], ...] = ()  # or of each expert's


@dataclass(frozen=True)
class ExpertFactors:
    """Changes of the experts' tensors.

    Attributes:
        terms: By the base's names.
        description: How the factors were read, for the user.
    """

    terms: Mapping[str, Callable[[], Delta]]
    description: str


def expert_factors(
    base: Checkpoint,
    weights: Checkpoint,
    modules: Sequence[Factors],
    config: AdapterConfig,
    find: Callable[[str], str | None],
) -> list[ExpertFactors]:
    """The changes given by factors of stacked parameters.

    Args:
        base: The base.
        weights: The adapter's tensors.
        modules: Those whose module is no matrix of the base's.
        config: The adapter's settings.
        find: The base's tensor of a name.

    Raises:
        MismatchError: The base has no such parameter.
        VectorError: The factors' parameter or their orientation is ambiguous.
    """
    targets = [str(target) for target in config.settings.get("target_parameters") or ()]
    changes, undecided, sides = [], [], set()
    for factors in modules:
        stack = _match(base, weights, factors, targets, find)
        side = _side(weights, factors, stack)
        undecided.append((factors, stack, side))
        sides |= {side} - {None}
    for factors, stack, side in undecided:
        if side is None:  # as many rows as columns: as elsewhere in this adapter, or by its version
            side = sides.copy().pop() if len(sides) == 1 else _side_by_version(config, base)
        if side is None:
            raise VectorError(
                f"{weights.source.name}: target_parameters: {factors.keys['A']!r} fits"
                f" {stack.parameter!r} both ways round, and no peft_version says which is meant",
                _MERGE,
            )
        changes.append(_changes(weights, factors, stack, side, config))
    if not changes:
        return []
    terms = {name: make for change in changes for name, make in change.items()}
    description = (
        f"target_parameters: {len(changes)} pairs of factors of stacked experts were read as peft's"
    )
    return [ExpertFactors(terms, description)]


def _match(
    base: Checkpoint,
    weights: Checkpoint,
    factors: Factors,
    targets: Sequence[str],
    find: Callable[[str], str | None],
) -> _Stack:
    module = factors.module.replace(".base_layer", "")
    a, b = (weights.entry(factors.keys[part]).shape for part in ("A", "B"))
    stacks = []
    for target in targets:
        holder, _, parameter = target.rpartition(".")
        if holder and not f".{module}".endswith(f".{holder}"):
            continue
        stack = _stack(base, module, parameter, find)
        if stack is not None and len(a) == len(b) == 2 and a[0] == b[1]:
            count, *sides = stack.shape
            if {a[1], b[0]} == set(sides) and a[0] and a[0] % count == 0:
                stacks.append(stack)
    if len(stacks) == 1:
        return stacks[0]
    raise MismatchError(
        f"{weights.source.name}: target_parameters: {factors.keys['A']!r} {list(a)} and"
        f" {factors.keys['B']!r} {list(b)} fit {len(stacks) or 'none'} of the parameters of"
        f" {module!r} in {base.source.name}",
        _MERGE,
    )


def _stack(
    base: Checkpoint, module: str, parameter: str, find: Callable[[str], str | None]
) -> _Stack | None:
    name = find(f"{module}.{parameter}")
    if name is not None:
        shape = base.entry(name).shape
        return _Stack(parameter, shape, name) if len(shape) == 3 else None
    singles: list[tuple[str, ...]] = []
    ways = itertools.product(_HOLDERS, _SINGLE.get(parameter, ()))
    while not singles and (way := next(ways, None)):
        (old, new), parts = way
        holder = module.replace(old, new) if old else module
        while True:
            names = [find(f"{holder}.{len(singles)}.{part}.weight") for part in parts]
            if None in names:
                break
            singles.append(tuple(name for name in names if name is not None))
    if not singles:
        return None
    shapes = {tuple(base.entry(name).shape for name in names) for names in singles}
    first = next(iter(shapes))
    if len(shapes) > 1 or any(len(shape) != 2 for shape in first):
        return None
    shape = (len(singles), sum(shape[0] for shape in first), first[0][1])
    return _Stack(parameter, shape, None, tuple(singles))


def _side(weights: Checkpoint, factors: Factors, stack: _Stack) -> bool | None:
    """Whether ``A`` takes the last axis; None if both axes are as long."""
    _, first, last = stack.shape
    return None if first == last else weights.entry(factors.keys["A"]).shape[1] == last


def _side_by_version(config: AdapterConfig, base: Checkpoint) -> bool | None:
    try:
        major, minor = (int(part) for part in str(config.settings["peft_version"]).split(".")[:2])
    except (KeyError, ValueError):
        return None
    return (major, minor) >= (0, 19) and base.text_config.get("model_type") not in _IN_OUT


def _changes(
    weights: Checkpoint, factors: Factors, stack: _Stack, last: bool, config: AdapterConfig
) -> dict[str, Callable[[], Delta]]:
    count = stack.shape[0]
    module = f"{factors.module.replace('.base_layer', '')}.{stack.parameter}"
    rank = weights.entry(factors.keys["A"]).shape[0] // count
    config.check_rank(module, rank)
    scale = config.scaling(module, rank)

    def read() -> tuple[torch.Tensor, torch.Tensor]:
        """Of all experts: ``(E, d1, r)`` with the scale in it, and ``(E, d2, r)``."""
        a, b = (weights.tensor(factors.keys[part]).float() for part in ("A", "B"))
        inner = a.reshape(count, rank, -1).transpose(1, 2)  # (E, i, r)
        outer = b.reshape(b.shape[0], rank, count).permute(2, 0, 1)  # (E, o, r)
        return (outer * scale, inner) if last else (inner * scale, outer)

    if stack.name is not None:
        return {stack.name: lambda: StackDelta(*read())}

    def single(number: int, start: int, stop: int) -> Delta:
        left, right = read()
        return FactorDelta(left[number, start:stop].contiguous(), right[number].contiguous())

    terms: dict[str, Callable[[], Delta]] = {}
    for number, names in enumerate(stack.singles):
        height = stack.shape[1] // len(names)
        for part, name in enumerate(names):
            terms[name] = partial(single, number, part * height, (part + 1) * height)
    return terms
