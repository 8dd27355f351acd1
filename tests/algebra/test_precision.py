"""Float32 products are float32, whatever the process is set to."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading

import pytest
import torch

from weightsurgery.algebra import krylov, svd
from weightsurgery.algebra.lowrank import Rank
from weightsurgery.algebra.precision import exact_products, kept_precision


def settings() -> tuple[str, str]:
    return torch.get_float32_matmul_precision(), torch.backends.cuda.matmul.fp32_precision


@pytest.fixture(params=["highest", "high", "medium"])
def set_before(request):
    before = settings()
    with kept_precision():
        torch.set_float32_matmul_precision(request.param)
        yield settings()
    assert settings() == before


def test_a_decomposition_multiplies_in_float32(set_before, monkeypatch):
    seen = []
    original = svd.leading

    def leading(*given, **named):
        seen.append(settings())
        return original(*given, **named)

    monkeypatch.setattr(svd, "leading", leading)
    torch.manual_seed(0)
    svd.truncated_svd(torch.randn(300, 280), Rank(4))
    assert seen == [("highest", "ieee")]
    assert settings() == set_before
    assert original is krylov.leading


def test_of_several_the_last_one_puts_back_what_was_set(set_before):
    inside, leave = threading.Event(), threading.Event()

    def other():
        with exact_products():
            inside.set()
            leave.wait(10)

    thread = threading.Thread(target=other)
    with exact_products():
        with exact_products():
            assert settings() == ("highest", "ieee")
        thread.start()
        assert inside.wait(10)
    assert settings() == ("highest", "ieee")
    leave.set()
    thread.join()
    assert settings() == set_before


def test_after_an_error_too(set_before):
    with pytest.raises(ValueError, match="of its own"), exact_products():
        raise ValueError("of its own")
    assert settings() == set_before


def test_what_an_image_sets_does_not_count():
    """NVIDIA's containers allow TF32 by this variable."""
    code = """
        import torch
        from weightsurgery.algebra.precision import exact_products
        place = torch.backends.cuda.matmul
        print(torch.get_float32_matmul_precision(), place.allow_tf32)
        with exact_products():
            print(torch.get_float32_matmul_precision(), place.allow_tf32)
        print(torch.get_float32_matmul_precision(), place.allow_tf32)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True, text=True, check=True,
        env={**os.environ, "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": "1"},
    )  # fmt: skip
    assert done.stdout.split() == ["high", "True", "highest", "False", "high", "True"]


def test_what_contradicts_itself_comes_back_too():
    """Set by the new names alone, the old one cannot be asked."""
    before = settings()
    with kept_precision():
        torch.backends.cuda.matmul.fp32_precision = "tf32"
        with pytest.raises(RuntimeError):
            torch.backends.cuda.matmul.allow_tf32  # noqa: B018
        with exact_products():
            assert settings() == ("highest", "ieee")
        assert torch.backends.cuda.matmul.fp32_precision == "tf32"
    assert settings() == before
