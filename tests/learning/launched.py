"""Programs in several processes that share a model, as ``accelerate launch`` starts them."""

import os
import subprocess
import sys
from pathlib import Path

CONFIG = """
compute_environment: LOCAL_MACHINE
distributed_type: FSDP
fsdp_config: {fsdp_version: 2}
mixed_precision: 'no'
num_machines: 1
use_cpu: true
"""

# What every program begins with.
_BEFORE = f"""
import faulthandler, os, signal, sys
faulthandler.dump_traceback_later(600, exit=True)  # where processes wait for one another
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
import torch
torch.set_num_threads(1)
"""


def launched(
    folder: Path, program: str, *words: object, processes: int = 2
) -> subprocess.CompletedProcess[str]:
    """Runs a program in processes under FSDP2.

    Args:
        folder: Takes the program and accelerate's configuration.
        program: Python; ``sys.argv[1:]`` are the words.
        words: For it.
        processes: How many.
    """
    (folder / "fsdp.yaml").write_text(f"{CONFIG}num_processes: {processes}\n")
    (folder / "program.py").write_text(_BEFORE + program)
    launch = ["-m", "accelerate.commands.launch", "--config_file", folder / "fsdp.yaml"]
    launch += ["--main_process_port", "0", folder / "program.py"]
    return subprocess.run(
        [sys.executable, *map(str, launch), *map(str, words)],
        capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=900,
    )  # fmt: skip
