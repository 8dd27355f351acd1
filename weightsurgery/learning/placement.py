"""Where a training runs: on the one device asked for, with the same sums each time."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, TypeVar

import torch
from transformers import TrainingArguments
from transformers.utils import import_utils

from weightsurgery.algebra.precision import kept_precision
from weightsurgery.errors import EditError

__all__ = [
    "any_order",
    "check_steps",
    "distributed",
    "gpus_in_use",
    "narrow",
    "on_device",
    "pinned",
    "refuse_distributed",
    "repeatable",
    "share_of",
    "underway",
]

_log = logging.getLogger(__name__)

_T = TypeVar("_T")


def distributed() -> bool:
    """Whether this process is one of several that torchrun or accelerate launched."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def share_of(batch: int) -> int:
    """A process's share of a step's examples.

    Raises:
        EditError: They cannot be shared.
    """
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if batch % processes:
        raise EditError(
            f"{batch} examples a step in {processes} processes",
            f"Give --batch {batch - batch % processes or processes}.",
        )
    return batch // processes


def refuse_distributed(what: str, remedy: str) -> None:
    """Refuse what each of several processes would do, and write, by itself.

    Raises:
        EditError: This is one of several.
    """
    if distributed():
        raise EditError(
            f"{what} in {os.environ['WORLD_SIZE']} processes, each of which would do all of it",
            remedy,
        )


def gpus_in_use() -> range:
    """The GPUs whose random numbers may be drawn: none where none is in use yet."""
    in_use = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return range(torch.cuda.device_count() if in_use else 0)


def pinned(arguments: TrainingArguments, device: torch.device) -> TrainingArguments:
    """Arguments of a training that is on this device, and on no other.

    Of several GPUs, Trainer takes all at once in one process (DataParallel): a batch that was to be
    dropped if it is not full is then as many times as large, and data may hold none. And it begins
    with the first, wherever the model is. Under torchrun each process has the GPU of its rank.

    Args:
        arguments: Changed in place.
        device: Where the model is.
    """
    arguments._n_gpu = min(1, arguments.n_gpu)
    if device.type == "cuda" and device.index is not None and "LOCAL_RANK" not in os.environ:
        torch.cuda.set_device(device)
        arguments.__dict__["_setup_devices"] = device  # what the property `device` returns
        arguments.distributed_state.device = device  # what accelerate moves to
    return arguments


@contextmanager
def narrow(model: Any, precision: str) -> Iterator[None]:
    """An adapter's frozen base is bfloat16 inside, where that loses nothing, for such a precision.

    Mixed precision rounds each weight as it multiplies, and holds what it rounded for the backward
    pass: half as much again as the base takes. What is computed is the same to the bit.

    Args:
        model: With an adapter, else left alone. Its weights are float32 again afterwards.
        precision: Of the arithmetic; see :class:`weightsurgery.learning.settings.Training`.
    """
    rounded: list[torch.Tensor] = []
    sharded = getattr(model, "is_distributed_loading_by_transformers", False)
    if precision == "bfloat16" and hasattr(model, "peft_config") and not sharded:
        head = model.get_output_embeddings()
        weights = [
            each.weight
            for each in model.modules()
            if isinstance(each, torch.nn.Linear) and each is not head
        ]
        rounded = [each for each in weights if not each.requires_grad and _fits(each.data)]
    try:
        for weight in rounded:
            weight.data = weight.data.bfloat16()
        yield
    finally:
        for weight in rounded:
            weight.data = weight.data.float()


def _fits(data: torch.Tensor) -> bool:
    """Whether these numbers are bfloat16, as those of most checkpoints are."""
    return data.dtype == torch.float32 and bool((data.bfloat16() == data).all())


@contextmanager
def on_device(device: torch.device) -> Iterator[None]:
    """The current GPU, and how precise products are, may be set inside; as before after."""
    # Of several processes, each goes on with the GPU of its rank: they wait for each other by it.
    alone = device.type == "cuda" and "LOCAL_RANK" not in os.environ
    with torch.cuda.device(device) if alone else nullcontext(), kept_precision():
        try:
            yield
        finally:
            # It remembers that it set TF32, and would not do so again.
            getattr(import_utils.enable_tf32, "cache_clear", lambda: None)()


def check_steps(taken: int, wanted: int, what: str) -> None:
    """Refuse to call a training done that took fewer steps than wanted.

    Raises:
        EditError: It did.
    """
    if taken < wanted:
        raise EditError(
            f"{what}: {taken} of {wanted} steps were taken, as the data made no whole batch",
            "Give more examples or a smaller batch size.",
        )


def repeatable(device: torch.device, train: Callable[[], _T]) -> _T:
    """The result of a training, with sums that come out the same each time where there are such.

    On the CPU they do. On a GPU some kernels add up as it happens, as attention's backward pass
    does, unless torch is told not to take them. Where an operation has no other kernel, the
    training begins again with what there is, and says so.

    Args:
        device: Where.
        train: Trains; called again only if it took no step.
    """
    if device.type != "cuda":
        return train()
    try:
        with _same_sums():
            return train()
    except RuntimeError as error:
        name = _without_order(error)
        if name is None or torch.are_deterministic_algorithms_enabled():
            raise
    _log.warning(
        "%s adds up in no fixed order on a GPU: this training will not repeat to the byte.", name
    )
    return train()


def _without_order(error: RuntimeError) -> str | None:
    """The operation that torch says has no kernel with a fixed order; None for other errors."""
    name, marker, _ = str(error).partition(" does not have a deterministic implementation")
    return name.splitlines()[-1] if marker else None


def underway(error: RuntimeError, steps: int) -> None:
    """Refuse to begin a training again that has moved the weights.

    Raises:
        EditError: It took steps, and then met an operation without a fixed order.
    """
    name = _without_order(error)
    if name is not None and steps > 0:
        raise EditError(
            f"{name}, which step {steps + 1} needs, adds up in no fixed order on a GPU",
            "Run it with --device cpu.",
        ) from error


@contextmanager
def any_order() -> Iterator[None]:
    """Allows any kernel inside, for evaluations that change nothing of the training."""
    before = torch.are_deterministic_algorithms_enabled()
    warns = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(False)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warns)


@contextmanager
def _same_sums() -> Iterator[None]:
    """Kernels that add up in a fixed order inside, and an error where there is none."""
    # Without it torch refuses products in this mode.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    modes: Any = torch.utils.deterministic
    before = torch.are_deterministic_algorithms_enabled()
    warns, fills = (
        torch.is_deterministic_algorithms_warn_only_enabled(),
        modes.fill_uninitialized_memory,
    )
    try:
        torch.use_deterministic_algorithms(True)
        modes.fill_uninitialized_memory = False  # nothing here reads what it did not write
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warns)
        modes.fill_uninitialized_memory = fills
