"""Edits beside their peers and beside the floor: wall, processor time, memory, and what came out.

Contestants take turns within each round, so that ratios are those of neighbours in time. Every
contestant first runs once untimed, which also checks its output. Inputs are in the page cache
(warm) or not (cold); memory is backed before each run (see reservoir.c).

    scripts/speed/run_peers --billions 1 --json peers.json
    scripts/speed/run_peers --billions 0.1 --suite negate --quick
    scripts/speed/run_peers --billions 1 --only "native negate,ws negate" --rounds 10
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from contestants import HERE, SUITES, Command, Place, Suite
from measure import Reservoir, can_drop, forget, measure
from table import show_agreement, show_captured, show_runs

Json = dict[str, Any]
_OFFLINE = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
_COMPILE = ("cc", "-O3", "-march=native", "-ffp-contract=off", "-pthread")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--billions", default="1", help="sizes, of: 0.1,0.2,1,3")
    parser.add_argument("--suite", default=",".join(SUITES), help=f"of: {','.join(SUITES)}")
    parser.add_argument("--only", help="names of contestants, separated by commas")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="2 rounds")
    parser.add_argument("--cache", default="warm,cold", help="of: warm,cold")
    parser.add_argument(
        "--cold",
        choices=("everything", "inputs"),
        help="drop the whole page cache, programs included (default for root), or the inputs",
    )
    parser.add_argument("--dir", type=Path, help="keep the checkpoints here for another run")
    parser.add_argument("--venv", type=Path, default=HERE / ".venv", help="the peers' environment")
    parser.add_argument("--json", type=Path, help="results; suites of the same size are replaced")
    parser.add_argument("--no-check", action="store_true", help="no untimed first run")
    parser.add_argument("--no-reservoir", action="store_true", help="leave free memory alone")
    arguments = parser.parse_args()
    arguments.rounds = 2 if arguments.quick else arguments.rounds
    arguments.cold = arguments.cold or ("everything" if can_drop() else "inputs")
    return arguments


def main() -> None:
    """Make the checkpoints and the programs, run the rounds, print and save."""
    arguments = _arguments()
    root = arguments.dir or Path(tempfile.mkdtemp(prefix="ws-peers-"))
    programs = root / "programs"
    programs.mkdir(parents=True, exist_ok=True)
    lock = (programs / "lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise SystemExit(f"{root}: another run is using it") from None
    for name in ("native", "reservoir"):
        subprocess.run([*_COMPILE, HERE / f"{name}.c", "-o", programs / name], check=True)
    results = _load(arguments.json)
    results["machine"] = _machine(arguments)
    reservoir = None if arguments.no_reservoir else Reservoir(programs / "reservoir")
    try:
        for billions in arguments.billions.split(","):
            place = Place(root / billions, programs, arguments.venv.absolute())
            _say(f"{billions} B checkpoints in {place.root} ...")
            _make(place.root, billions)
            for name in arguments.suite.split(","):
                suite = SUITES[name]
                rows = _chosen(suite, arguments.only, place)
                if not rows:
                    continue
                key = f"{billions} {name}"
                result = results["suites"][key] = {"runs": [], "facts": {}}
                for _ in _suite(place, suite, rows, arguments, reservoir, result):
                    if arguments.json:  # after each run: what follows may fail
                        arguments.json.write_text(json.dumps(results, indent=1) + "\n")
                _show(key, suite, result)
            if arguments.dir is None:
                shutil.rmtree(place.root)
    finally:
        if reservoir is not None:
            reservoir.close()
        for out in root.glob("*/out"):
            shutil.rmtree(out)
        if arguments.dir is None:
            shutil.rmtree(root)


def _make(root: Path, billions: str) -> None:
    # In a process of its own: torch stays out of this one.
    command = [sys.executable, HERE / "checkpoints.py", "--billions", billions, "--dir", root]
    subprocess.run(command, check=True, stdout=sys.stderr)


def _chosen(suite: Suite, only: str | None, place: Place) -> dict[str, Command]:
    names = [other.strip() for other in only.split(",")] if only else None
    known = {name for other in SUITES.values() for name in other.rows}
    for name in names or ():
        if name not in known:
            raise SystemExit(f"{name!r}: not one of {', '.join(sorted(known))}")
    rows = {name: row for name, row in suite.rows.items() if names is None or name in names}
    for name, row in rows.items():
        command = row(place)
        if place.peers in Path(command[0]).parents and not Path(command[0]).exists():
            raise SystemExit(f"{name}: no {command[0]}; make it with scripts/speed/run_peers")
    return rows


def _suite(
    place: Place,
    suite: Suite,
    rows: dict[str, Command],
    arguments: argparse.Namespace,
    reservoir: Reservoir | None,
    result: Json,
) -> Iterator[None]:
    """Run all rounds, adding to the result; yields after each run."""
    facts, runs = result["facts"], result["runs"]
    if not (arguments.no_check or suite.once):
        for name, output in _outputs(place, rows, reservoir):
            _say(f"{name}: checked")
            facts[name] = output
        if "native negate" in rows:
            shutil.rmtree(place.root / "reference")
    caches = ["warm"] if suite.once else arguments.cache.split(",")
    # All warm rounds first: an emptied page cache would have the programs to read, too.
    for cache in caches:
        for number in range(1 if suite.once else arguments.rounds):
            order = list(rows)
            turn = number % len(order)
            for name in order[turn:] + order[:turn]:
                used = _one(place, suite, rows[name], cache, arguments.cold, reservoir)
                runs.append({"contestant": name, "cache": cache, "round": number, **used})
                _say(f"{cache} {number + 1} {name}: {used['wall']:.2f} s")
                if suite is SUITES["subspace"]:
                    facts[name] = _look("captured", place.base, place.forget, place.out)
                yield


def _outputs(
    place: Place, rows: dict[str, Command], reservoir: Reservoir | None
) -> Iterator[tuple[str, Json]]:
    """Run each once, and compare what it writes with what the floor writes."""
    reference = place.root / "reference"
    for folder in (reference, place.out):
        shutil.rmtree(folder, ignore_errors=True)
    if "native negate" in rows:
        measure(_words(rows["native negate"](place)))
        place.out.rename(reference)
    for name, row in rows.items():
        if reservoir is not None:
            reservoir.fill()
        measure(_words(row(place)), _OFFLINE)
        if place.out.is_dir() and reference.is_dir() and "copy" not in name:
            yield name, _look("agreement", reference, place.out)
        shutil.rmtree(place.out, ignore_errors=True)


def _one(
    place: Place,
    suite: Suite,
    row: Command,
    cache: str,
    cold: str,
    reservoir: Reservoir | None,
) -> Json:
    """Prepare the machine, and time one run."""
    folders = [place.root / name for name in suite.pages]
    shutil.rmtree(place.out, ignore_errors=True)
    os.sync()
    if cache == "cold":
        forget(folders, cold == "everything")
    else:
        for folder in folders:
            for file in folder.glob("*.safetensors"):
                subprocess.run(["cat", file], stdout=subprocess.DEVNULL, check=True)
    if reservoir is not None:
        reservoir.fill()
    used = measure(_words(row(place)), _OFFLINE)
    figures = asdict(used) | {"process_wall": used.wall}
    for line in figures.pop("output").splitlines():
        if line.startswith("timed "):  # it measured itself
            figures["wall"], figures["cpu"] = map(float, line.split()[1:])
    return figures


def _words(command: list[str | Path]) -> list[str]:
    return [str(word) for word in command]


def _look(what: str, *folders: Path) -> Json:
    import outputs

    figures: Json = getattr(outputs, what)(*folders)
    return figures


def _show(key: str, suite: Suite, result: Json) -> None:
    show_runs(key, suite, result["runs"])
    if suite is SUITES["subspace"]:
        show_captured(result["facts"])
    else:
        show_agreement(result["facts"])


def _load(path: Path | None) -> Json:
    if path is not None and path.is_file():
        results: Json = json.loads(path.read_text())
        return results
    return {"suites": {}}


def _machine(arguments: argparse.Namespace) -> Json:
    text = Path("/proc/cpuinfo").read_text()
    model = next((t.split(":")[1].strip() for t in text.splitlines() if "model name" in t), "?")
    versions = "import importlib.metadata as m; print({n: m.version(n) for n in %r})"
    peers = subprocess.run(
        [arguments.venv / "bin/python", "-c", versions % ["mergekit", "torch", "transformers"]],
        capture_output=True,
        text=True,
    ) if (arguments.venv / "bin/python").exists() else None  # fmt: skip
    return {
        "processor": model,
        "cores": len(os.sched_getaffinity(0)),
        "memory": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "peers": peers.stdout.strip() if peers else "",
        "cold": arguments.cold,
        "reservoir": not arguments.no_reservoir,
    }


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
