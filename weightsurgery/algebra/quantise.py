"""Rounding weights to 4 or 8 bits and back, as quantisation would.

The results are float32 numbers that the small format can hold, not the format itself: a forward
pass with them is what a quantised model computes, apart from the rounding of scales that formats
add.
"""

from __future__ import annotations

from functools import cache
from statistics import NormalDist

from weightsurgery.deferred import torch
from weightsurgery.errors import EditError, NonFiniteError

__all__ = ["int_rtn", "nf4_codebook", "nf4_rtn"]


def int_rtn(
    weight: torch.Tensor, bits: int = 4, group: int = 64, symmetric: bool = True
) -> torch.Tensor:
    """Round to nearest on an integer grid for each row's groups of columns.

    Symmetric grids are ``k·s`` with ``s = max|w| / (2^(bits−1) − 1)`` and ``|k| < 2^(bits−1)``;
    they hold zero. The others are ``min w + k·s`` with ``s = (max w − min w) / (2^bits − 1)`` and
    ``0 ≤ k < 2^bits``; they hold both ends. Rounding twice changes nothing more.

    Args:
        weight: Shape ``(m, n)``, any floating dtype; rounded from its value in float32.
        bits: 2 to 8.
        group: Columns that share a grid; the last group of a row may be shorter.
        symmetric: Which grid.

    Returns:
        Shape ``(m, n)``, float32; at most ``2^bits`` values per group, none further than ``s / 2``
        from its weight.

    Raises:
        EditError: Not a matrix, or no such grid.
        NonFiniteError: The weight has NaN or infinities.
    """
    if not 2 <= bits <= 8:
        raise EditError(f"integers of {bits} bits", "Choose 2 to 8 bits.")
    if weight.ndim != 2:
        raise EditError(
            f"a weight of shape {tuple(weight.shape)} has no groups of columns", "Give a matrix."
        )
    rows, columns = weight.shape
    whole = columns - columns % _positive(group, "group")
    result = _finite(weight)
    for start, stop, width in ((0, whole, group), (whole, columns, columns - whole)):
        part = result[:, start:stop]
        if part.numel():
            part.copy_(_on_grid(part.reshape(-1, width), bits, symmetric).reshape(rows, -1))
    return result


def _on_grid(groups: torch.Tensor, bits: int, symmetric: bool) -> torch.Tensor:
    """Each row on its own grid. In float64, so that a grid's ends come back as they were."""
    groups = groups.double()
    scale: torch.Tensor
    if symmetric:
        top = 2 ** (bits - 1) - 1
        scale = groups.abs().amax(1, keepdim=True) / top
        return torch.round(groups / _nonzero(scale)) * scale
    top = 2**bits - 1
    low, high = groups.amin(1, keepdim=True), groups.amax(1, keepdim=True)
    scale = (high - low) / top
    steps = torch.round((groups - low) / _nonzero(scale))
    return torch.where(steps < top, low + steps * scale, high)


@cache
def nf4_codebook() -> tuple[float, ...]:
    """The 16 values of NormalFloat-4, ascending from −1 to 1.

    Quantiles of the normal distribution, evenly spaced in probability: 8 from the lowest to zero
    and 9 from zero to the highest, whose two zeros are one; all divided by the highest (Dettmers
    et al., arXiv 2305.14314, section 3 and appendix E). The paper leaves the outermost
    probability open; its values belong to ``1 − (1/32 + 1/30) / 2``, and so do these.
    """
    outermost = 1 - (1 / 32 + 1 / 30) / 2
    quantile = NormalDist().inv_cdf

    def half(count: int) -> list[float]:
        return [
            quantile(0.5 + (outermost - 0.5) * place / count) / quantile(outermost)
            for place in range(1, count + 1)
        ]

    return (*(-value for value in reversed(half(7))), 0.0, *half(8))


def nf4_rtn(weight: torch.Tensor, block: int = 64) -> torch.Tensor:
    """Round to the nearest NormalFloat-4 value, scaled by the largest magnitude of each block.

    Blocks follow each other through the flattened weight, across rows, as in QLoRA. Rounding
    twice changes nothing more.

    Args:
        weight: Any shape and floating dtype; rounded from its value in float32.
        block: Elements that share a scale; the last block may be shorter.

    Returns:
        Same shape, float32; at most 16 values per block, zero among them.

    Raises:
        EditError: No such block.
        NonFiniteError: The weight has NaN or infinities.
    """
    flat = _finite(weight).reshape(-1)
    whole = flat.numel() - flat.numel() % _positive(block, "block")
    for part in (flat[:whole].view(-1, block), flat[whole:].view(1, -1)):
        if part.numel():
            part.copy_(_on_codebook(part))
    return flat.view(weight.shape)


def _on_codebook(blocks: torch.Tensor) -> torch.Tensor:
    blocks = blocks.double()
    values = torch.tensor(nf4_codebook(), dtype=torch.float64, device=blocks.device)
    scale = blocks.abs().amax(1, keepdim=True)
    nearest = torch.bucketize(blocks / _nonzero(scale), (values[1:] + values[:-1]) / 2)
    return values[nearest] * scale


def _nonzero(scale: torch.Tensor) -> torch.Tensor:
    """A divisor for groups of one value, which are on their grid already."""
    return torch.where(scale == 0, torch.ones_like(scale), scale)


def _finite(weight: torch.Tensor) -> torch.Tensor:
    """A float32 copy to write to."""
    copy = weight.detach().to(torch.float32, copy=True).contiguous()
    if not torch.isfinite(copy).all():
        raise NonFiniteError(
            "NaN or infinity in a weight to quantise", "Quantise a checkpoint that is whole."
        )
    return copy


def _positive(size: int, name: str) -> int:
    if size < 1:
        raise EditError(f"a {name} of {size}", "Give at least 1.")
    return size
