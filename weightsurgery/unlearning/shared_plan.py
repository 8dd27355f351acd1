"""What each process holds of a training that shares its model (FSDP2), from shapes alone.

A process holds its share of the weights and of all that is trained in full, and for a while the
layers that are being computed, whole. An adapter is whole in each. Activations come on top.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from weightsurgery.checkpoint.layout import TensorEntry
from weightsurgery.checkpoint.naming import layer_of
from weightsurgery.learning.sharding import sharding

__all__ = ["SharedMemory", "Shares", "shared_memory", "shared_text"]

_FLOAT = 4
# Where nobody was launched: how many processes to tell of.
_USUAL = (2, 8)


@dataclass(frozen=True)
class SharedMemory:
    """What a process holds.

    Attributes:
        processes: How many share the model.
        device: Bytes on each one's device, at most, without activations.
        host: Bytes of results and points on the processor of the first, at most.
    """

    processes: int
    device: int
    host: int


@dataclass(frozen=True)
class Shares:
    """A training, as far as its memory goes.

    Attributes:
        names: The matrices that are trained.
        rank: Of the adapter that is trained in their place, if one is.
        copies: Values of what is trained that are held besides it: references, those before.
        points: Whether points are saved, from which a killed run goes on.
        widths: Of the inputs whose eigenvectors confine the training.
        statistics: Bytes that gathering these takes, before the training, in every process.
    """

    names: Sequence[str]
    rank: int | None = None
    copies: int = 0
    points: bool = True
    widths: Sequence[int] = ()
    statistics: int = 0


def shared_memory(
    entries: Mapping[str, TensorEntry], shares: Shares, processes: Sequence[int] = ()
) -> tuple[SharedMemory, ...]:
    """What a process holds, for some numbers of processes.

    Args:
        entries: The checkpoint's tensors.
        shares: The training.
        processes: How many; by default those that were launched, or two examples.
    """
    if not processes:
        processes = (int(os.environ["WORLD_SIZE"]),) if sharding() else _USUAL
    return tuple(_memory(entries, shares, count) for count in processes)


def _memory(entries: Mapping[str, TensorEntry], shares: Shares, processes: int) -> SharedMemory:
    weights = _FLOAT * sum(entry.numel for entry in entries.values())
    adapted = shares.rank is not None
    trained = _FLOAT * sum(_numbers(entries[name], shares.rank) for name in shares.names)
    # Values, gradients and two moments of an adapter; values in full are among the weights.
    training = trained * ((4 if adapted else 3) + shares.copies)
    passing = _together(entries)
    if not adapted:
        training = -(-training // processes)
        # Gradients of the layer that is computed, and what they are summed up in.
        passing += 2 * max(_by_layer(entries, shares.names)[0], default=0)
    directions = [_FLOAT * width**2 for width in shares.widths]
    if directions:
        training += -(-sum(directions) // processes) + max(directions)
    held = -(-weights // processes) + max(passing + training, passing + shares.statistics)
    return SharedMemory(processes, held, trained * (3 if shares.points else 1))


def _numbers(entry: TensorEntry, rank: int | None) -> int:
    return entry.numel if rank is None else rank * sum(entry.shape[-2:])


def _by_layer(
    entries: Mapping[str, TensorEntry], names: Sequence[str]
) -> tuple[list[int], list[int]]:
    """Bytes of each layer, and of each tensor that is in none."""
    layers: dict[int, int] = defaultdict(int)
    outside = []
    for name in names:
        layer, size = layer_of(name), _FLOAT * entries[name].numel
        if layer is None:
            outside.append(size)
        else:
            layers[layer] += size
    return list(layers.values()), outside


def _together(entries: Mapping[str, TensorEntry]) -> int:
    """Bytes of weights that are whole at once: a layer, the next one, and the head.

    The embedding is whole only before there is a head.
    """
    layers, outside = _by_layer(entries, list(entries))
    largest = max(outside, default=0)
    head = sum(outside) - (largest if outside.count(largest) > 1 else 0)
    return 2 * max(layers, default=0) + head


def shared_text(shared: Sequence[SharedMemory], size: Callable[[int], str]) -> str:
    """A line for the plan.

    Args:
        shared: At least one.
        size: Writes bytes.
    """
    parts = [f"{each.processes} processes {size(each.device)} each" for each in shared]
    host = max(each.host for each in shared)
    return f"{', '.join(parts)}; the first also {size(host)} by the processor"
