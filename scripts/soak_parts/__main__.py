"""Run the parts that are named, go on where they stopped, and write down their results."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from pathlib import Path

from scripts.soak_parts import (
    cluster,
    disks,
    fuzz,
    hosts,
    kills,
    load,
    native,
    numbers,
    power,
    supply,
)
from scripts.soak_parts.state import State
from weightsurgery.checkpoint.record import versions

_MODULES = (kills, power, disks, fuzz, numbers, cluster, hosts, load, native, supply)
PARTS = {module.__name__.rpartition(".")[2]: module for module in _MODULES}
ROOT = Path(__file__).parents[2]
RESULTS = Path(__file__).with_name("results.json")


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/soak", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=" ".join(PARTS))
    parser.add_argument("--count", type=int, help="trials of a part (its own number otherwise)")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="end after so long")
    parser.add_argument("--state", type=Path, default=ROOT / "build/soak", help="what was done")
    parser.add_argument("--save", action="store_true", help=f"write {RESULTS.name}")
    given = parser.parse_args()
    unknown = [part for part in given.parts if part not in PARTS]
    if unknown:
        parser.error(f"no such part: {unknown[0]}")
    given.state.mkdir(parents=True, exist_ok=True)
    faults = 0
    for name in given.parts or PARTS:
        state = State(name, given.state, time.monotonic() + given.seconds)
        PARTS[name].run(state, given.count)
        summary = state.summary()
        faults += summary["faults"]
        print(json.dumps({name: summary}), flush=True)
        if given.save:
            _save(name, summary)
    return 1 if faults else 0


def _save(name: str, summary: dict[str, object]) -> None:
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    results[name] = {
        **summary,
        "command": "scripts/soak " + " ".join(sys.argv[1:]),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "machine": f"{platform.system()} {platform.release()}, {os.cpu_count()} processors",
        "versions": versions(),
    }
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
