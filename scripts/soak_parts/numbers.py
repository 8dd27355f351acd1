"""Matrices and weights at the edges of their dtypes, drawn at random; edits on many threads."""

from __future__ import annotations

import random
import tempfile
from pathlib import Path

from scripts.soak_parts.state import State

COUNT = 300


def run(state: State, count: int | None) -> None:
    """Decompositions and edits: what holds for all of them."""
    import torch

    from tests.conftest import read_tensors, snapshot
    from tests.faults.test_numbers import NAME, edited
    from weightsurgery import Rank
    from weightsurgery.algebra.svd import truncated_svd
    from weightsurgery.errors import WeightSurgeryError

    for number in range(count or COUNT):
        name = f"{'edits' if number % 2 else 'factors'}:{number}"
        if not state.todo(name):
            continue
        draw, torch_draw = random.Random(name), torch.Generator().manual_seed(number)
        shape = (draw.choice([1, 2, 5, 64, 257]), draw.choice([1, 3, 8, 100, 300]))
        with state.trial(name) as facts:
            if number % 2:
                dtype = draw.choice([torch.float16, torch.bfloat16, torch.float32])
                scale = 10.0 ** draw.randint(-40, 40)
                info = torch.finfo(dtype)
                base = torch.randn(shape, generator=torch_draw).double() * scale
                base = base.clamp(info.min, info.max).to(dtype)
                finetuned = (base.double() * draw.choice([1.0, 1.5, -1.0, 0.0])).to(dtype)
                with tempfile.TemporaryDirectory() as folder:
                    by = draw.choice([0.5, 1.0, -2.0])
                    try:
                        outs = [edited(Path(folder), base, finetuned, by, w) for w in (1, 3)]
                    except WeightSurgeryError as error:
                        facts["outcome"] = f"refused: {type(error).__name__}"
                        continue
                    weights = [snapshot(out)["model.safetensors"] for out in outs]
                    assert weights[0] == weights[1]
                    written = read_tensors(outs[0])[NAME]
                    wanted = base.double() + by * (finetuned.double() - base.double())
                    error = (written.double() - wanted).abs()
                    bound = wanted.abs() * info.eps + info.smallest_normal * info.eps * 2
                    scratch = (base.double().abs() + finetuned.double().abs()) * 2.0**-22
                    assert (error <= bound + scratch).all(), float((error - bound).max())
            else:
                rank, size = draw.randint(1, 6), 10.0 ** draw.randint(-18, 18)
                inner = draw.choice([0, 1, 2, 4])
                a = torch.randn(shape[0], inner, generator=torch_draw)
                b = torch.randn(inner, shape[1], generator=torch_draw)
                matrix = (a @ b) * size
                cut = truncated_svd(matrix, Rank(rank))
                again = truncated_svd(matrix, Rank(rank))
                assert torch.equal(cut.factors.matrix(), again.factors.matrix())
                assert torch.isfinite(cut.factors.matrix()).all()
                best = torch.linalg.svdvals(matrix.double())
                missed = float((matrix.double() - cut.factors.matrix().double()).square().sum())
                least = float(best[rank:].square().sum())
                whole = float(best.square().sum())
                assert missed <= least + 1e-3 * whole + 1e-60, (missed, least, whole)
