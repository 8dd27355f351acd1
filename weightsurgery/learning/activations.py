"""Running a model for the inputs of its linear layers, and summing them up as ``C = Σ x xᵀ``.

Examples run in batches of equal length, so that no batch holds padding and every row of every
input is a token, whatever shape a layer sees it in. Float32 products are added up in float64.
Where the sums of all layers do not fit the memory they may take, the data is run several times,
each time for the next few layers, and each run ends behind the last of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from weightsurgery.algebra.precision import exact_products
from weightsurgery.errors import EditError, NonFiniteError
from weightsurgery.learning.sharding import give_up
from weightsurgery.progress import Progress

__all__ = ["BATCH_TOKENS", "gathered", "linear_inputs", "sums_bound"]

BATCH_TOKENS = 4096
"""Tokens in one forward pass, at most."""


def linear_inputs(model: nn.Module) -> dict[str, tuple[nn.Module, int]]:
    """The linear layers of a model (``nn.Linear``, GPT-2's ``Conv1D``).

    Returns:
        By the name of the weight, ``"MODULE.weight"``: the module and its input width ``n``.
    """
    layers: dict[str, tuple[nn.Module, int]] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            layers[f"{name}.weight"] = module, module.in_features
        elif isinstance(module, Conv1D):
            layers[f"{name}.weight"] = module, module.weight.shape[0]
    return layers


def sums_bound(
    model: nn.Module, layers: Mapping[str, tuple[nn.Module, int]], usual: int = 2 << 30
) -> int:
    """Default memory for the sums of :func:`gathered`, in bytes: at least what one needs.

    Args:
        model: Where it is, they are.
        layers: As there.
        usual: On the processor; on a GPU half of what is free, if that is more, so that the data of
            a large model is run fewer times.
    """
    device = next(model.parameters()).device
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0
    widest = max((width for _, width in layers.values()), default=0)
    return max(usual, free // 2, _alone(widest))


def _alone(width: int) -> int:
    """Bytes of float64 sums, and of one float32 product on its way into them."""
    return 12 * width**2


class _Enough(Exception):  # noqa: N818 - no error
    """Raised inside a forward pass when the rest of it is of no use."""


@dataclass(frozen=True)
class _Shared:
    """Layers with the very same input.

    Attributes:
        names: Of their weights.
        module: The first of them, which is watched.
        width: ``n``.
        calls: How often it ran in the trial pass; 0 if it did not.
    """

    names: tuple[str, ...]
    module: nn.Module
    width: int
    calls: int


def gathered(
    model: nn.Module,
    layers: Mapping[str, tuple[nn.Module, int]],
    rows: Sequence[Sequence[int]],
    max_bytes: int | None,
    batch_tokens: int,
    progress: Progress | None,
) -> Iterator[tuple[tuple[str, ...], Tensor, int]]:
    """Run examples through a model, in evaluation mode, and sum up.

    Args:
        model: Called as ``model(input_ids=...)``.
        layers: Of :func:`linear_inputs`: those to sum up for.
        rows: Tokens of each example; at least one, none empty.
        max_bytes: What the sums that grow at once may take: 12 n² bytes for the largest, 8 n² for
            each other; None for no bound.
        batch_tokens: Tokens in one forward pass, at most (a longer example runs alone).
        progress: Called as ``progress(stage, done, total)`` in tokens.

    Yields:
        For each distinct input the names of the weights that read it, ``C`` (``(n, n)``, float64,
        where they run) and how many inputs were summed. Layers that never ran are missing.

    Raises:
        EditError: ``max_bytes`` holds not even one matrix.
        NonFiniteError: The model computes NaN or infinity.
    """
    device = next(model.parameters()).device
    with _evaluating(model):
        shortest = min(rows, key=len)
        shared = _trial(model, layers, torch.tensor([list(shortest)], device=device))
        passes = _passes(shared, max_bytes)
        batches = list(_batches(rows, batch_tokens))
        tokens = sum(map(len, rows))
        for number, members in enumerate(passes):

            def advance(count: int, before: int = number * tokens) -> None:
                if progress is not None:
                    progress("activations", before + count, len(passes) * tokens)

            sums = _sums(model, members, batches, device, advance)
            for names in [each.names for each in members if each.names in sums]:
                yield names, *sums.pop(names)


def _batches(rows: Sequence[Sequence[int]], batch_tokens: int) -> Iterator[Tensor]:
    """Batches of examples of one length, ``(examples, length)``, int64."""
    by_length: dict[int, list[Sequence[int]]] = {}
    for row in rows:
        by_length.setdefault(len(row), []).append(row)
    for length, same in sorted(by_length.items()):
        count = max(1, batch_tokens // length)
        for start in range(0, len(same), count):
            yield torch.tensor([list(row) for row in same[start : start + count]])


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside; every module as it was, after."""
    before = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in before:
            module.training = training


@contextmanager
def _watching(
    modules: Sequence[nn.Module], see: Callable[[nn.Module, Tensor], None]
) -> Iterator[None]:
    """Calls ``see(module, x)`` with each module's input, before it runs."""

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        see(module, args[0] if args else next(iter(kwargs.values())))

    handles = [module.register_forward_pre_hook(hook, with_kwargs=True) for module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _run(model: nn.Module, input_ids: Tensor) -> None:
    """A forward pass that nobody needs the result of."""
    config = getattr(model, "config", None)
    options = {"use_cache": False} if getattr(config, "use_cache", None) else {}
    try:
        model(input_ids=input_ids, **options)
    except _Enough:
        give_up(model)


@torch.no_grad()
def _trial(
    model: nn.Module, layers: Mapping[str, tuple[nn.Module, int]], input_ids: Tensor
) -> list[_Shared]:
    """Which layers share an input, in the order in which they run, learned from one pass."""
    inputs: dict[nn.Module, list[Tensor]] = {module: [] for module, _ in layers.values()}
    order: list[nn.Module] = []

    def see(module: nn.Module, x: Tensor) -> None:
        inputs[module].append(x)  # held until the end, so that no address is used again
        order.append(module)

    with _watching(list(inputs), see):
        _run(model, input_ids)
    last = {module: number for number, module in enumerate(order)}
    groups: dict[Any, list[str]] = {}
    for name, (module, _) in layers.items():
        key = tuple((x.data_ptr(), x.shape, x.stride(), x._version) for x in inputs[module])
        groups.setdefault(key or name, []).append(name)
    shared = [
        _Shared(tuple(names), *layers[names[0]], len(inputs[layers[names[0]][0]]))
        for names in groups.values()
    ]
    return sorted(shared, key=lambda each: last.get(each.module, len(order)))


def _passes(shared: Sequence[_Shared], max_bytes: int | None) -> list[list[_Shared]]:
    """Neighbouring layers whose sums fit the memory together.

    Raises:
        EditError: One alone does not.
    """
    if max_bytes is None:
        return [list(shared)] if shared else []
    passes: list[list[_Shared]] = []
    for group in shared:
        if _alone(group.width) > max_bytes:
            raise EditError(
                f"tensor {group.names[0]!r}: its statistics take"
                f" {_alone(group.width) / 1e6:,.1f} MB, {max_bytes / 1e6:,.1f} MB are allowed",
                f"Allow so much by --max-memory, or leave it out: --exclude '{group.names[0]}'.",
            )
        together = [*passes[-1], group] if passes else [group]
        widest = max(other.width for other in together)
        if passes and sum(8 * o.width**2 for o in together) + 4 * widest**2 <= max_bytes:
            passes[-1].append(group)
        else:
            passes.append([group])
    return passes


@torch.no_grad()
def _sums(
    model: nn.Module,
    members: Sequence[_Shared],
    batches: Sequence[Tensor],
    device: torch.device,
    advance: Callable[[int], None],
) -> dict[tuple[str, ...], tuple[Tensor, int]]:
    """One run over the data: ``C`` and number of tokens for some inputs."""
    # Made where a layer runs: a model may be spread over devices.
    sums: dict[nn.Module, Tensor] = {}
    counts = {each.module: 0 for each in members}
    expected = {each.module: each.calls for each in members}
    stoppable = all(expected.values())
    waiting: dict[nn.Module, int] = {}
    head: nn.Module | None = getattr(model, "get_output_embeddings", lambda: None)()

    def see(module: nn.Module, x: Tensor) -> None:
        if module not in counts:
            raise _Enough  # the head: nothing comes after it, and logits are large
        rows = x.reshape(-1, x.shape[-1]).float()
        if module not in sums:
            sums[module] = torch.zeros(
                rows.shape[1], rows.shape[1], dtype=torch.float64, device=x.device
            )
        _add_products(sums[module], rows)
        counts[module] += rows.shape[0]
        left = waiting.get(module, 0) - 1
        if left > 0:
            waiting[module] = left
        else:
            waiting.pop(module, None)
        if module is head or (stoppable and not waiting):
            raise _Enough

    done = 0
    watched = [*counts, head] if head is not None and head not in counts else list(counts)
    with _watching(watched, see):
        for batch in batches:
            waiting.update(expected)
            _run(model, batch.to(device))
            done += batch.numel()
            advance(done)
    ran = [group for group in members if group.module in sums]
    for group in ran:
        _mirror(sums[group.module])
        if not bool(torch.isfinite(sums[group.module]).all()):
            raise NonFiniteError(
                f"tensor {group.names[0]!r}: NaN or infinity in what it is given",
                "Check the model; a float16 one may need float32.",
            )
    return {group.names: (sums[group.module], counts[group.module]) for group in ran}


def _blocks(width: int) -> Iterator[tuple[int, int]]:
    """Ranges that cut a matrix into few blocks, large enough for a fast product."""
    size = max(256, width // 8)
    for start in range(0, width, size):
        yield start, min(start + size, width)


@exact_products()
def _add_products(total: Tensor, rows: Tensor) -> None:
    """``total += rowsᵀ rows`` on and below the blocks of the diagonal: half the work."""
    with torch.autocast(rows.device.type, enabled=False):
        for start, stop in _blocks(total.shape[0]):
            total[start:, start:stop].add_(rows[:, start:].T @ rows[:, start:stop])


def _mirror(total: Tensor) -> None:
    """Fill in what lies above the diagonal."""
    for start, stop in _blocks(total.shape[0]):
        total[start:stop, stop:] = total[stop:, start:stop].T
