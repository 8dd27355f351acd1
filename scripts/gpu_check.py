"""What only a machine with a GPU can tell, in one run of at most twelve minutes.

    python scripts/gpu_check.py                         on the GPU
    python scripts/gpu_check.py --device cpu --small    whether the script works, in a minute

Parts run one after another, each in a process of its own that may fail or take too long without
harm to the others; what a part needs and is not installed is said. Figures go to stdout as a table
and to --out as JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts.gpu_parts import PARTS, ROOT, Figures

SECONDS = 690


def main() -> None:
    arguments = _arguments()
    if arguments.part:
        print(json.dumps(PARTS[arguments.part][0](arguments.device, arguments.small)))
        return
    end, results = time.monotonic() + SECONDS, {"machine": _machine(arguments.device), "parts": {}}
    for name in arguments.parts or PARTS:
        left = end - time.monotonic()
        begun = time.monotonic()
        # Small is for machines on which much else runs.
        limit = 4 * PARTS[name][1] if arguments.small else min(left, PARTS[name][1])
        results["parts"][name] = _part(name, arguments, limit)
        results["parts"][name]["part_seconds"] = round(time.monotonic() - begun, 1)
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(results, indent=1) + "\n")
        print(f"{name}: {results['parts'][name]}", file=sys.stderr, flush=True)
    print(_table(results))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true", help="sizes that a processor does")
    parser.add_argument("--parts", nargs="*", choices=list(PARTS), help="these alone")
    parser.add_argument("--part", choices=list(PARTS), help=argparse.SUPPRESS)
    out = Path(os.environ.get("OUT", ROOT / "build")) / "gpu_check.json"
    parser.add_argument("--out", type=Path, default=out)
    return parser.parse_args()


def _machine(device: str) -> Figures:
    import torch

    machine: Figures = {"torch": torch.__version__, "cuda": torch.version.cuda, "device": device}
    if device != "cpu":
        properties = torch.cuda.get_device_properties(0)
        machine |= {"card": properties.name, "memory_gb": properties.total_memory / 1e9}
    return machine


def _part(name: str, arguments: argparse.Namespace, seconds: float) -> Figures:
    if seconds < 5:
        return {"failed": "no time was left"}
    command = [sys.executable, __file__, "--part", name, "--device", arguments.device]
    command += ["--small"] if arguments.small else []
    running = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        out, err = running.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(running.pid, signal.SIGKILL)
        return {"failed": f"not done in {seconds:.0f} s", "said": running.communicate()[1][-500:]}
    if running.returncode:
        return {"failed": running.returncode, "said": err[-1500:]}
    return dict(json.loads(out.splitlines()[-1]))


def _table(results: Figures) -> str:
    lines = [f"{key}: {value}" for key, value in results["machine"].items()]
    lines += ["", "| part | figure | value |", "|---|---|---|"]
    for part, figures in results["parts"].items():
        lines += [f"| {part} | {name} | {_shown(value)} |" for name, value in figures.items()]
    return "\n".join(lines)


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value).replace("\n", " ")


if __name__ == "__main__":
    main()
