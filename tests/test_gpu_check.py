"""The script for a machine with a GPU works: here in small, on the processor."""

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[1] / "scripts/gpu_check.py"


def test_a_part_tells_its_figures(tmp_path):
    out = tmp_path / "figures.json"
    words = ["--device", "cpu", "--small", "--parts", "decompositions", "--out", out]
    done = subprocess.run(
        [sys.executable, SCRIPT, *words], capture_output=True, text=True, check=True
    )
    found = json.loads(out.read_text())
    figures = found["parts"]["decompositions"]
    assert figures["eigh 512 residual"] < 1e-12
    assert figures["svd 256x600 apart"] < 1e-6
    assert figures["svd 256x600 repeats"] is True
    assert "| decompositions | eigh 512 repeats | True |" in done.stdout
    assert found["machine"]["device"] == "cpu"
