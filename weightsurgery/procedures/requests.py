"""More than one request to forget: fused offline into one change, or one after another.

Offline, every request's change is found on the untouched model, and all are fused by the
regression mean (EUL's fusion; see :mod:`weightsurgery.algebra.fusion`). In sequence, a request's
change is found on the model as the requests before it left it, and the changes add up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from weightsurgery.algebra.fusion import regression_mean
from weightsurgery.checkpoint.naming import is_transposed
from weightsurgery.errors import EditError, MismatchError
from weightsurgery.learning.models import PreTrainedModel
from weightsurgery.unlearning.scale_choice import with_change

__all__ = ["fuse", "in_sequence"]


def fuse(
    changes: Sequence[Mapping[str, Tensor]],
    grams: Sequence[Mapping[str, Tensor]],
    epsilon: float = 1e-3,
    config: Mapping[str, Any] | None = None,
) -> dict[str, Tensor]:
    """The change closest, on every request's inputs, to that request's change.

    Args:
        changes: Per request ``W' − W`` by parameter, all of the same parameters.
        grams: Per request ``C = Σ x xᵀ`` by parameter, ``(n, n)``, over the layers' inputs on that
            request's data (:func:`weightsurgery.learning.statistics.gather`).
            A parameter for which no request has any is averaged, as biases and norms are.
        epsilon: Ridge; see :func:`weightsurgery.algebra.fusion.regression_mean`.
        config: The model's, as a mapping, where it may store weights (in, out), as GPT-2 does.

    Returns:
        By parameter; dtype and device of the first request's.

    Raises:
        EditError: No requests, or numbers or shapes that do not fit.
        MismatchError: A parameter that only some requests change or have statistics for.
        NonFiniteError: NaN or infinity.
    """
    if not changes or len(changes) != len(grams):
        raise EditError(
            f"{len(changes)} changes with {len(grams)} sets of statistics",
            "Give one of each for every request, at least one.",
        )
    result = {}
    for name in dict.fromkeys(name for request in changes for name in request):
        if not all(name in request for request in changes):
            raise MismatchError(
                f"parameter {name!r}: only some of the requests change it",
                "Find all changes with the same selection.",
            )
        parts = [request[name] for request in changes]
        request_grams = [request[name] for request in grams if name in request]
        if request_grams and len(request_grams) < len(grams):
            raise MismatchError(
                f"parameter {name!r}: only some of the requests have statistics for it",
                "Gather them for the same parameters.",
            )
        if not request_grams:
            mean = torch.stack([part.double() for part in parts]).mean(0)
            result[name] = mean.to(parts[0].dtype)
        elif is_transposed(name, config or {}):
            fused = regression_mean([part.T for part in parts], request_grams, epsilon)
            result[name] = fused.T.contiguous()
        else:
            result[name] = regression_mean(parts, request_grams, epsilon)
    return result


def in_sequence(
    model: PreTrainedModel, requests: Sequence[Callable[[], Mapping[str, Tensor]]]
) -> Iterator[dict[str, Tensor]]:
    """One request after another, each on the model that those before it left.

    Between the steps, and at the end or when the iterator is closed, the model is as it was before
    the first, to the bit.

    Args:
        model: Float32; changed in place while a request is worked on.
        requests: Each is called with the model as the requests before it left it, leaves the
            model so, and gives its change, by parameter, float32 on the CPU.

    Yields:
        After each request the sum of all changes so far; to be added to the untouched model.
    """
    total: dict[str, Tensor] = {}
    for request in requests:
        with with_change(model, total):
            change = request()
        total = dict(total)
        for name, t in change.items():
            total[name] = total[name] + t if name in total else t.clone()
        yield dict(total)
