"""The pass over the bytes: compiled, NumPy and torch agree to the bit."""

import numpy as np
import pytest
import torch

from weightsurgery.algebra import elementwise
from weightsurgery.algebra.elementwise import COMPILED, Term, _with_numpy, combine
from weightsurgery.algebra.rounding import ChangeStats

TORCH = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
needs_compiled = pytest.mark.skipif(not COMPILED, reason="no C compiler when this was installed")


def raw(tensor):
    return bytearray(tensor.contiguous().view(torch.uint8).numpy().tobytes())


def small(count, seed, scale):
    return torch.randn(count, generator=torch.Generator().manual_seed(seed)) * scale


def weights(dtype, count, seed=0):
    values = small(count, seed, 0.02)
    if count > 6:  # zeros of both signs, subnormal numbers, the largest that do not overflow
        values[:6] = torch.tensor([0.0, -0.0, 1e-40, -6e-8, 6e4, -6e4])
    return values.to(TORCH[dtype])


def by_torch(base, terms):
    """The definition: float32, term by term, one rounding."""
    wide = base.float()
    meant = torch.zeros_like(wide)
    for values, factor, relative in terms:
        given = values.float()
        given = given - wide if relative else given
        meant = meant + given * factor
    out = torch.where(meant != 0, (wide + meant).to(base.dtype), base)
    stats = ChangeStats()
    stats.add(wide, meant, out.float())
    return out, meant, stats


def close(one: ChangeStats, other: ChangeStats) -> bool:
    scale = max(other.base, other.meant, 1e-300)
    return (one.wanted, one.moved) == (other.wanted, other.moved) and all(
        abs(getattr(one, name) - getattr(other, name)) <= 1e-6 * scale
        for name in ("base", "meant", "written", "missed", "along")
    )


@pytest.mark.parametrize("way", [pytest.param("compiled", marks=needs_compiled), "numpy"])
@pytest.mark.parametrize("count", [0, 1, 15, 16, 17, 4095, 4096, 4097, 70001])
@pytest.mark.parametrize("dtype", list(TORCH))
@pytest.mark.parametrize("other", list(TORCH))
def test_bits_are_those_of_torch(way, count, dtype, other):
    base = weights(dtype, count)
    finetuned = (base.float() + small(count, 1, 1e-3)).to(TORCH[other])
    delta = small(count, 2, 1e-2)
    run = combine if way == "compiled" else _with_numpy
    for terms in ([(finetuned, -0.7, True)], [(finetuned, 0.3, True), (delta, -1.1, False)]):
        expected, meant, stats = by_torch(base, terms)
        if count > 16:
            assert not torch.equal(expected, base)
        given = [
            Term(raw(values), other if relative else "F32", factor, relative)
            for values, factor, relative in terms
        ]
        out = bytearray(len(raw(base)))
        change = np.empty(count, np.float32)
        actual = run(raw(base), dtype, given, out, change)
        assert out == raw(expected)
        assert np.array_equal(change, meant.numpy())
        assert close(actual, stats)
        inside = raw(base)
        run(inside, dtype, given, inside)
        assert inside == raw(expected)
        assert close(run(raw(base), dtype, given), stats)


@pytest.mark.parametrize("dtype", list(TORCH))
def test_nothing_meant_leaves_every_bit(dtype):
    base = torch.tensor([-0.0, 0.0, 1.5, -2.0] * 9).to(TORCH[dtype])
    before = raw(base)
    # The plain sum would turn -0 into +0.
    assert raw((base.float() + 0.0).to(TORCH[dtype])) != before
    out = bytearray(len(before))
    stats = combine(before, dtype, [Term(raw(base), dtype, -1.0, True)], out)
    assert out == before
    assert (stats.wanted, stats.moved, stats.meant) == (0, 0, 0)


@pytest.mark.parametrize("way", [pytest.param(combine, marks=needs_compiled), _with_numpy])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("where", ["base", "term"])
def test_what_is_not_finite_shows_in_the_sums(way, bad, where):
    base, finetuned = torch.ones(100), torch.full((100,), 2.0)
    args = [Term(raw(finetuned), "F32", 1.0, True)]
    assert np.isfinite(way(raw(base), "F32", args).meant)
    (base if where == "base" else finetuned)[77] = bad
    stats = way(raw(base), "F32", [Term(raw(finetuned), "F32", 1.0, True)])
    assert not np.isfinite(stats.base + stats.meant + stats.written)


def test_overflow_in_rounding_shows_in_the_sums():
    base = torch.full((40,), 6e4, dtype=torch.float16)
    stats = combine(raw(base), "F16", [Term(raw(torch.full((40,), 1e4)), "F32", 1.0, False)])
    assert np.isfinite(stats.meant)
    assert not np.isfinite(stats.written)


def test_huge_numbers_do_not_overflow_the_sums():
    base = torch.full((40,), 1e30)
    assert not np.isfinite(np.dot(base.numpy(), base.numpy()))
    stats = combine(raw(base), "F32", [Term(raw(base * 2), "F32", 1.0, True)], bytearray(160))
    assert stats.meant == pytest.approx(40e60)


@pytest.mark.parametrize("way", [pytest.param(combine, marks=needs_compiled), _with_numpy])
def test_lengths_are_checked(way):
    with pytest.raises(ValueError, match="length"):
        way(bytearray(8), "BF16", [Term(bytearray(12), "BF16", 1.0, True)])


@needs_compiled
def test_the_extension_is_what_runs(monkeypatch):
    """Without this the compiled rows above could be NumPy's."""
    called = []
    real = elementwise._compiled
    monkeypatch.setattr(elementwise, "_compiled", lambda *a: called.append(1) or real(*a))
    combine(bytearray(64), "BF16", [Term(bytearray(64), "BF16", 1.0, True)])
    assert called


def test_every_dtype_has_a_numpy_fallback(monkeypatch):
    base, finetuned = weights("BF16", 100), weights("BF16", 100, 1)
    expected = bytearray(200)
    combine(raw(base), "BF16", [Term(raw(finetuned), "BF16", 1.0, True)], expected)
    monkeypatch.setattr(elementwise, "_compiled", None)
    out = bytearray(200)
    combine(raw(base), "BF16", [Term(raw(finetuned), "BF16", 1.0, True)], out)
    assert out == expected != raw(base)


@needs_compiled
@pytest.mark.parametrize("dtype", ["BF16", "F16"])
def test_every_half_precision_number_and_its_neighbours(dtype):
    """All finite numbers of the format, moved by changes from far below to far above its steps."""
    bits = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16)
    base = bits.view(TORCH[dtype])
    base = base[torch.isfinite(base) & (base.abs() < 1e30)]
    generator = torch.Generator().manual_seed(3)
    size = torch.rand(base.numel(), generator=generator) * 12 - 11
    change = base.float() * torch.randn(base.numel(), generator=generator) * torch.exp2(size)
    change += torch.randn(base.numel(), generator=generator) * 1e-8
    expected, _, _ = by_torch(base, [(change, 1.0, False)])
    fine = torch.isfinite(expected)
    base, change, expected = base[fine], change[fine], expected[fine]
    assert (expected != base).float().mean() > 0.2
    for terms in ([Term(raw(change), "F32", 1.0, False)], [Term(raw(expected), dtype, 1.0, True)]):
        out = bytearray(len(raw(base)))
        combine(raw(base), dtype, terms, out)
        wanted = bytearray(len(out))
        _with_numpy(raw(base), dtype, terms, wanted)
        assert out == wanted
    combine(raw(base), dtype, [Term(raw(change), "F32", 1.0, False)], out)
    assert out == raw(expected)
