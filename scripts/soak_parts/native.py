"""The C code under AddressSanitizer and UBSan: its own tests, with every report fatal."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

from scripts.soak_parts.state import State

ROOT = Path(__file__).parents[2]
TESTS = ["tests/algebra/test_elementwise.py", "tests/algebra/test_rounding.py",
         "tests/checkpoint/test_hashing.py", "tests/faults/test_numbers.py"]  # fmt: skip


def run(state: State, count: int | None) -> None:
    """Compile the two modules with the sanitizers, and run the tests that reach them."""
    compiler = shutil.which("cc")
    if compiler is None:
        state.note("sanitizers:compiler", "left out", why="no C compiler")
        return
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        shutil.copytree(ROOT / "weightsurgery", root / "weightsurgery")
        for built in root.rglob("*.so"):
            built.unlink()
        shutil.copytree(ROOT / "tests", root / "tests")
        for source in root.rglob("weightsurgery/*/_*.c"):
            flags = ["-shared", "-fPIC", "-g", "-O1", "-ffp-contract=off", "-Wno-psabi",
                     "-fno-omit-frame-pointer", "-fsanitize=address,undefined",
                     "-fno-sanitize-recover=all", "-DPy_LIMITED_API=0x030b0000"]  # fmt: skip
            target = source.with_suffix(".abi3.so")
            words = [compiler, *flags, f"-I{sysconfig.get_paths()['include']}", str(source), "-o",
                     str(target)]  # fmt: skip
            subprocess.run(words, check=True)
        library = subprocess.run(
            [compiler, "-print-file-name=libasan.so"], check=True, capture_output=True, text=True
        ).stdout.strip()
        environment = {
            **os.environ, "PYTHONPATH": folder, "LD_PRELOAD": library, "PYTHONMALLOC": "malloc",
            "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=1:detect_odr_violation=0",
            "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
        }  # fmt: skip
        for test in TESTS:
            name = f"sanitizers, {test}:1"
            if not state.todo(name):
                continue
            with state.trial(name) as facts:
                done = subprocess.run(
                    [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", test],
                    cwd=root, env=environment, capture_output=True, text=True,
                )  # fmt: skip
                facts["said"] = (done.stdout.strip().splitlines() or [""])[-1]
                output = done.stdout[-1500:] + done.stderr[-2500:]
                assert done.returncode == 0, output
                assert "runtime error" not in output
