"""Processes that are killed in the middle of a training, as by a machine that goes down."""

import os
import signal
import subprocess
import sys
from pathlib import Path

# What a program finds: `strike`, told of progress, kills it after so many training steps.
_BEFORE = f"""
import os, signal, sys
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
import torch
torch.set_num_threads(1)
def strike(text, done, total, when=int(sys.argv.pop())):
    if "loss" in text and done == when:
        os.kill(os.getpid(), signal.SIGKILL)
"""


def killed(program: str, *words: object, when: int) -> None:
    """Runs a program that takes words, and passes ``strike`` as its progress, until it is killed.

    Args:
        program: Python; ``sys.argv[1:]`` are the words.
        words: For it.
        when: The step of training, of all trainings together, after which it dies.
    """
    done = subprocess.run(
        [sys.executable, "-c", _BEFORE + program, *map(str, words), str(when)],
        capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL, done.stderr
