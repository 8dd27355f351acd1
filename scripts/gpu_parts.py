"""The parts of ``gpu_check.py``: functions of a device and whether to be small, giving figures."""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

__all__ = ["PARTS", "ROOT", "Figures"]

ROOT = Path(__file__).resolve().parents[1]

Figures = dict[str, Any]


def marked_tests(device: str, small: bool) -> Figures:
    """The tests that are marked `gpu`; on the processor their siblings."""
    files = ["tests/surgery/test_arithmetic.py", "tests/algebra/test_svd.py"]
    on_gpu = {} if device == "cpu" else {"WS_TEST_GPU": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *files], cwd=ROOT, capture_output=True, text=True,
        env={**os.environ, **on_gpu, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    last = [line for line in done.stdout.splitlines() if line.strip()][-3:]
    return {"exit": done.returncode, "said": last}


def decompositions(device: str, small: bool) -> Figures:
    """Symmetric eigenvectors and truncated SVDs: seconds, whether they repeat, how exact."""
    import torch

    from weightsurgery.algebra.lowrank import Rank
    from weightsurgery.algebra.svd import truncated_svd

    figures: Figures = {}
    torch.manual_seed(0)
    for side in (256, 512) if small else (2048, 4096, 8192, 14336, 16400):
        x = torch.randn(side, side // 2, dtype=torch.float64, device=device)
        gram = x @ x.T
        seconds, (values, vectors) = _timed(lambda gram=gram: torch.linalg.eigh(gram), device)
        figures[f"eigh {side} seconds"] = seconds
        residual = gram @ vectors[:, -8:] - vectors[:, -8:] * values[-8:]
        figures[f"eigh {side} residual"] = float(residual.norm() / gram.norm())
        if side <= 8192:
            again = torch.linalg.eigh(gram)
            figures[f"eigh {side} repeats"] = bool(torch.equal(again[1], vectors))
        del x, gram, values, vectors, residual
    for rows, columns in ((256, 600),) if small else ((256, 4096), (4096, 4096), (4096, 14336)):
        matrix = torch.randn(rows, 64) @ torch.randn(64, columns)
        matrix += 0.1 * torch.randn(rows, columns)
        there = matrix.to(device)
        for allowed in (False, True):
            torch.set_float32_matmul_precision("high" if allowed else "highest")
            truncated_svd(there, Rank(64))  # libraries load
            seconds, svd = _timed(lambda there=there: truncated_svd(there, Rank(64)), device)
            figures[f"svd {rows}x{columns}, tf32 {'allowed' if allowed else 'off'}, s"] = seconds
        begun = time.perf_counter()
        here = truncated_svd(matrix, Rank(64))
        figures[f"svd {rows}x{columns} by the processor, s"] = time.perf_counter() - begun
        apart = (here.factors.S - svd.factors.S.cpu()).abs().max() / here.factors.S[0]
        figures[f"svd {rows}x{columns} apart"] = float(apart)
        figures[f"svd {rows}x{columns} repeats"] = bool(
            torch.equal(truncated_svd(there, Rank(64)).factors.U, svd.factors.U)
        )
    return figures


def edits(device: str, small: bool) -> Figures:
    """Edits of checkpoints, there and on the processor: seconds, and whether bytes agree."""
    import torch
    from safetensors.torch import save_file

    side, layers = (256, 4) if small else (4096, 96)
    figures: Figures = {"gigabytes": 2 * layers * side * side / 1e9}
    with _folder() as root:
        for name in ("base", "tuned"):
            (root / name).mkdir()
            torch.manual_seed(0)
            tensors = {}
            for number in range(layers):
                weight = 0.02 * torch.randn(side, side)
                change = 0.001 * torch.randn(side, 8) @ torch.randn(8, side)
                weight += change if name == "tuned" else 0
                tensors[f"model.layers.{number}.mlp.up_proj.weight"] = weight.bfloat16()
            save_file(tensors, root / name / "model.safetensors", {"format": "pt"})
            del tensors
        for edit, more in (
            (["negate", "base", "tuned"], []),
            (["project", "base", "--forget", "tuned", "--keep", "tuned"], ["--rank", "8"]),
        ):
            for where in dict.fromkeys((device, "cpu")):
                out = f"{edit[0]}-{where}"
                seconds = _ws(root, *edit, "-o", out, "--device", where, *more)
                figures[f"{edit[0]} on {where}, s"] = seconds
            one, other = (root / f"{edit[0]}-{where}" for where in (device, "cpu"))
            figures[f"{edit[0]} same bytes"] = _digest(one) == _digest(other)
    return figures


def trainings(device: str, small: bool) -> Figures:
    """Edits from data: what was held beside what the plan says; TF32 off and allowed."""
    import torch

    from weightsurgery.checkpoint.reader import Checkpoint
    from weightsurgery.learning.forget import ByNeighbours
    from weightsurgery.learning.forgetting import Forgetting
    from weightsurgery.learning.rounds import Rounds
    from weightsurgery.procedures import unlearn

    figures: Figures = {}
    with _folder() as root:
        base, data, keep = _model(root, small)
        short = Forgetting(steps=5, cycles=1, every=5)
        for name, search in {
            "rounds": unlearn.Search(Rounds(objective="learn", steps=5), allow_harm=True),
            "neighbours": unlearn.Search(
                Rounds(objective="learn"),
                ByNeighbours(training=short, wordings=4, neighbours=8, texts=8),
                allow_harm=True,
            ),
        }.items():
            for precision in ("highest", "high"):
                torch.set_float32_matmul_precision(precision)
                sources = unlearn.Sources((str(data),), (str(keep),))
                out = root / f"{name}-{precision}"
                with Checkpoint.open(base) as opened:
                    plan = unlearn.plan(opened, sources, unlearn.Output(out), search, device=device)
                    if device != "cpu":
                        torch.cuda.reset_peak_memory_stats()
                    begun = time.perf_counter()
                    unlearn.unlearn(opened, sources, out, search, device=device)
                figures[f"{name}, {precision}, s"] = time.perf_counter() - begun
                if device != "cpu":
                    peak = torch.cuda.max_memory_allocated()
                    figures[f"{name}, {precision}, peak GB"] = peak / 1e9
                    figures[f"{name}, {precision}, peak of plan"] = peak / plan.held
    return figures


def repeats(device: str, small: bool) -> Figures:
    """A training twice, and once killed on its way: whether the bytes are the same."""
    figures: Figures = {}
    with _folder() as root:
        base, data, keep = _model(root, True)
        words = ["unlearn", base, "--method", "npo", "--forget", data, "--keep", keep, "--steps",
                 "12", "--save-every", "3", "--lr", "1e-3", "--device", device]  # fmt: skip
        for name in ("first", "second"):
            figures[f"{name}, s"] = _ws(root, *words, "-o", name)
        running = _started(root, *words, "-o", "killed")
        while running.poll() is None and not list(root.rglob("checkpoint-6/whole.json")):
            time.sleep(0.01)
        figures["was killed"] = running.poll() is None
        with contextlib.suppress(ProcessLookupError):
            os.kill(running.pid, signal.SIGKILL)
        running.wait()
        _ws(root, *words, "-o", "killed")
        figures["twice the same bytes"] = _digest(root / "first") == _digest(root / "second")
        figures["killed, the same bytes"] = _digest(root / "first") == _digest(root / "killed")
        _ws(root, *words[:-1], "cpu", "-o", "processor")
        figures["apart from the processor's"] = _apart(
            root / "first.vector", root / "processor.vector"
        )
    return figures


def scores(device: str, small: bool) -> Figures:
    """Scores and attacks, there and on the processor."""
    from weightsurgery.learning.evaluate import evaluate
    from weightsurgery.procedures.attack import attack_quantize, attack_relearn

    figures: Figures = {}
    with _folder() as root:
        base, data, keep = _model(root, True)
        sets: dict[str, Any] = {
            "forget": [data],
            "keep": [keep],
            "metrics": ["nll"],
            "resamples": 50,
        }
        for name, score in (
            ("evaluate", evaluate), ("relearn", attack_relearn), ("quantize", attack_quantize)
        ):  # fmt: skip
            for where in dict.fromkeys((device, "cpu")):
                begun = time.perf_counter()
                evaluation = score(base, **sets, device=where)
                figures[f"{name} on {where}, s"] = time.perf_counter() - begun
                first: Any = evaluation.sets[0]
                attacked = getattr(first, "checkpoint", None)
                means = next(iter(attacked.after.values())) if attacked else first.scores
                figures[f"{name} on {where}, nats"] = means["nll"].value
    return figures


# --- what they share ------------------------------------------------------------------------------


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        os.environ["WEIGHTSURGERY_CACHE"] = f"{folder}/cache"
        yield Path(folder)


def _model(root: Path, small: bool) -> tuple[Path, Path, Path]:
    """A model of random weights with a tokenizer of bytes, data to forget and data to keep."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from tests.learning.tiny import FACTS, OTHER, byte_tokenizer, tiny, write

    if small:
        model = tiny("llama")
    else:
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=32000, hidden_size=2048, intermediate_size=8192, num_hidden_layers=4,
            num_attention_heads=32, num_key_value_heads=8, bos_token_id=0, eos_token_id=1,
            pad_token_id=2,
        )  # fmt: skip
        model = LlamaForCausalLM(config).bfloat16()
    model.save_pretrained(root / "base")
    byte_tokenizer().save_pretrained(root / "base")
    return root / "base", write(root / "data.jsonl", FACTS), write(root / "keep.jsonl", OTHER)


def _timed(run: Callable[[], Any], device: str) -> tuple[float, Any]:
    import torch

    def wait() -> None:
        if device != "cpu":
            torch.cuda.synchronize()

    wait()
    begun = time.perf_counter()
    result = run()
    wait()
    return time.perf_counter() - begun, result


def _started(root: Path, *words: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "weightsurgery", *map(str, words), "-q"], cwd=root, text=True,
        stderr=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip


def _ws(root: Path, *words: Any) -> float:
    """Seconds that a command took."""
    begun = time.perf_counter()
    running = _started(root, *words)
    _, errors = running.communicate()
    if running.returncode:
        raise RuntimeError(f"ws {' '.join(map(str, words))}: {errors}")
    return time.perf_counter() - begun


def _digest(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _apart(one: Path, other: Path) -> float:
    """Relative distance of two saved vectors."""
    from safetensors.torch import load_file

    first, second = (
        {name: tensor for file in sorted(folder.glob("*.safetensors"))
         for name, tensor in load_file(file).items()}
        for folder in (one, other)
    )  # fmt: skip
    total = sum(float(tensor.double().square().sum()) for tensor in first.values())
    away = sum(float((first[n].double() - second[n].double()).square().sum()) for n in first)
    return float((away / total) ** 0.5)


PARTS: dict[str, tuple[Callable[[str, bool], Figures], int]] = {
    "marked_tests": (marked_tests, 90),
    "edits": (edits, 150),
    "trainings": (trainings, 200),
    "repeats": (repeats, 120),
    "scores": (scores, 60),
    "decompositions": (decompositions, 200),
}
