"""What is to become an adapter, sorted by what a LoRA holds, and factored layer by layer."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from weightsurgery.algebra.lowrank import Rank, RankRule
from weightsurgery.algebra.rounding import compute_dtype
from weightsurgery.algebra.svd import Truncation
from weightsurgery.checkpoint.reader import Checkpoint, torch_dtype
from weightsurgery.deferred import torch
from weightsurgery.errors import VectorError
from weightsurgery.vectors.deltas import FactorDelta, SumDelta
from weightsurgery.vectors.lora_layers import LoraLayer, LoraLayers, Refusal

__all__ = ["Content", "Sorted", "factored", "is_factored", "sort_tensors"]

_DENSE = Refusal(
    "a dense change, which no LoRA holds as it is",
    "Pass --rank K to truncate it (what that loses is reported), or take what 'ws subspace' saves.",
)


@dataclass(frozen=True)
class Content:
    """A change that is to become an adapter.

    Attributes:
        label: What it is called in messages.
        chosen: The tensors that may change.
        outline: What is known of a tensor's change before it is worked out; None where there is
            none. For a tensor that is not chosen, what the adapter leaves out.
        change: A chosen tensor's change as the adapter is to have it, with facts for the record;
            None where nothing is left of it.
        rule: How many factors to keep of it; None for all there are.
        factored: Whether changes come as factors, whatever they are worked out from.
        seed: Of the randomised SVD.
    """

    label: str
    chosen: Mapping[str, float]
    outline: Callable[[str], SumDelta | None]
    change: Callable[[str], tuple[SumDelta, Mapping[str, Any]] | None]
    rule: RankRule | None = None
    factored: bool = False
    seed: int = 0


@dataclass
class Sorted:
    """What goes into an adapter, what does not, and whether the base's weights are needed.

    Attributes:
        places: The base's layers.
        layers: Those that change, in the base's order.
        left_out: Tensors that the change would change and the adapter does not.
        unchanged: Chosen tensors that turned out not to change.
        reads_base: Whether a change is told by the weights it leads to.
    """

    places: LoraLayers
    layers: list[LoraLayer] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    unchanged: list[str] = field(default_factory=list)
    reads_base: bool = False


def sort_tensors(base: Checkpoint, content: Content) -> Sorted:
    """Tell apart what a LoRA holds, what is left out and what does not change.

    Raises:
        VectorError: Some changes are nothing that a LoRA holds; it names the first of each kind.
    """
    found = Sorted(LoraLayers(base))
    refused: dict[Refusal, list[str]] = {}
    for name in base.entries:
        delta = content.outline(name)
        if delta is None:
            continue
        if name not in content.chosen:
            found.left_out.append(name)
            continue
        place = found.places.find(name)
        as_it_is = content.rule is None and not content.factored
        if isinstance(place, LoraLayer) and as_it_is and not is_factored(delta):
            place = _DENSE
        if isinstance(place, LoraLayer) and base.entry(name).numel:
            found.layers.append(place)
            found.reads_base = found.reads_base or _needs_base(delta)
        elif isinstance(place, LoraLayer) or _is_zero(base, name, delta):
            found.unchanged.append(name)
        else:
            refused.setdefault(place, []).append(name)
    if refused:
        kinds = [
            f"{names[0]!r}{f' and {len(names) - 1} more' if names[1:] else ''}: {why.reason}"
            for why, names in refused.items()
        ]
        remedies = dict.fromkeys(why.remedy for why in refused)
        raise VectorError(f"{content.label}: {'; '.join(kinds)}", " ".join(remedies))
    return found


def factored(
    base: Checkpoint, content: Content, layer: LoraLayer, device: torch.device | str
) -> tuple[Truncation, Mapping[str, Any]] | None:
    """The factors of one layer's change that are kept, oriented as the layer computes, and facts.

    Returns:
        None where the change is none.
    """
    worked = content.change(layer.name)
    if worked is None:
        return None
    delta, facts = worked
    rows, columns = base.entry(layer.name).shape
    found = delta.truncated(
        _base_rows(base, layer.name, delta),
        (rows, columns),
        content.rule or Rank(min(rows, columns)),
        transposed=layer.flipped,
        device=device,
        seed=content.seed,
    )
    # Beyond the rank that a change has, and where its terms cancel, there is but rounding.
    s = found.factors.S
    largest = max(float(s[0]), _largest(delta))
    rank = int((s > largest * torch.finfo(torch.float32).eps).sum())
    return (replace(found, factors=found.factors.truncated(rank)), facts) if rank else None


def _largest(delta: SumDelta) -> float:
    """Norm of the largest of several factored terms; 0 for other changes."""
    if len(delta.terms) < 2:
        return 0.0
    norms = [
        abs(factor) * _norm(each) for factor, each in delta.terms if isinstance(each, FactorDelta)
    ]
    return max(norms, default=0.0)


def _norm(delta: FactorDelta) -> float:
    """``‖L Rᵀ‖``, from the Gram matrices of both."""
    left, right = delta.left.double(), delta.right.double()
    return math.sqrt(max(0.0, float(((left.T @ left) * (right.T @ right)).sum())))


def is_factored(delta: SumDelta) -> bool:
    """Whether a change is a sum of factors alone."""
    return all(isinstance(each, FactorDelta) for _, each in delta.terms)


def _needs_base(delta: SumDelta) -> bool:
    """Whether a change is told by the weights it leads to."""
    return delta.relative


def _base_rows(base: Checkpoint, name: str, delta: SumDelta) -> Callable[[int, int], torch.Tensor]:
    if _needs_base(delta):
        return lambda start, stop: base.rows(name, start, stop)
    return lambda start, stop: torch.empty(0)


def _is_zero(base: Checkpoint, name: str, delta: SumDelta) -> bool:
    """Whether a change is none; reads up to the first number that is not zero."""
    entry, rows = base.entry(name), _base_rows(base, name, delta)
    dtype = compute_dtype(torch_dtype(entry.dtype))
    for start, stop in entry.blocks():
        out = torch.zeros((stop - start, *entry.columns), dtype=dtype)
        delta.add_rows(out, start, stop, 1.0, rows(start, stop).to(dtype))
        if bool(out.count_nonzero()):
            return False
    return True
