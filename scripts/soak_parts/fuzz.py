"""Strangers' files by the thousand: guided by coverage where atheris is installed, else by chance.

Each target runs in a process of its own under a bound of memory; what was being read is kept
beside the results, so that a crash or a hang can be looked at.
"""

from __future__ import annotations

import importlib.util
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from scripts.soak_parts.state import State

COUNT = 20_000
_MEMORY = 6 << 30  # of address space, which torch takes three of


def run(state: State, count: int | None) -> None:
    """Every target, by mutation of values and by coverage."""
    from tests.faults.fuzzed import TARGETS

    count = count or COUNT
    modes = ["values", *(["coverage"] if importlib.util.find_spec("atheris") else [])]
    for mode in modes:
        for target in TARGETS:
            name = f"{mode}, {target}:{count}"
            if not state.todo(name):
                continue
            with state.trial(name) as facts:
                left = max(1.0, min(3600.0, state.deadline - time.monotonic()))
                words = [sys.executable, "-m", "scripts.soak_parts.fuzz", mode, target, str(count)]
                done = subprocess.run(
                    words, capture_output=True, text=True, timeout=left, errors="replace",
                    cwd=Path(__file__).parents[2], preexec_fn=_bounded,
                )  # fmt: skip
                facts["said"] = (done.stdout.strip().splitlines() or [""])[-1][:300]
                counted = re.search(r"^(\d+) read or refused", done.stdout, re.M)
                ran = re.search(r"Done (\d+) runs", done.stderr)
                facts["runs"] = int((counted or ran or [0, 0])[1])
                output = done.stdout[-1500:] + done.stderr[-1500:]
                assert done.returncode == 0, f"{done.returncode}: {output}"


def _bounded() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))


def _by_values(target: str, count: int) -> None:
    import collections

    import hypothesis

    from tests.faults.fuzzed import TARGETS, Sandbox, mutants, tried

    ends: collections.Counter[str] = collections.Counter()
    with tempfile.TemporaryDirectory() as folder:
        sandbox = Sandbox(Path(folder))
        name = TARGETS[target][0]

        @hypothesis.settings(max_examples=count, derandomize=False, database=None, deadline=None,
                             suppress_health_check=list(hypothesis.HealthCheck))  # fmt: skip
        @hypothesis.seed(int(os.environ.get("SOAK_SEED", "1")))
        @hypothesis.given(mutants(sandbox.originals[name], name))
        def check(data: bytes) -> None:
            ends[tried(sandbox, target, data)] += 1

        check()
    print(f"{sum(ends.values())} read or refused: {dict(sorted(ends.items()))}")


def _by_coverage(target: str, count: int) -> None:
    import atheris  # type: ignore[import-not-found]

    with atheris.instrument_imports(include=["weightsurgery"]):
        from tests.faults.fuzzed import TARGETS, Sandbox, tried

        folder = Path(tempfile.mkdtemp())
        sandbox = Sandbox(folder)
        original = sandbox.originals[TARGETS[target][0]]
        tried(sandbox, target, original)  # loads, instrumented, whatever it takes
    corpus = folder / "corpus"
    corpus.mkdir()
    (corpus / "good").write_bytes(original)
    words = [sys.argv[0], str(corpus), f"-runs={count}", "-max_len=20000", "-timeout=60", "-seed=1",
             "-rss_limit_mb=4000", f"-artifact_prefix={folder}/"]  # fmt: skip
    atheris.Setup(words, lambda data: tried(sandbox, target, data))
    atheris.Fuzz()


if __name__ == "__main__":
    {"values": _by_values, "coverage": _by_coverage}[sys.argv[1]](sys.argv[2], int(sys.argv[3]))
