"""Run systems on requests and seeds, score what they make, and print the table.

Usage: measure.py CKPT [--request NAME]... [--seed N]... [--system NAME]... [--results DIR]
    [--work DIR] [--retry] [--list]

A system is a command line of systems.json. What is in the results is not run again; a command
that was killed is given its output's name again, and goes on where it can. A system whose command
has changed is another: its old rows are left out and made anew.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from facts import requests
from table import render

HERE = Path(__file__).resolve().parent
TAIL = 12
"""Lines of what a failed command said that are kept."""


@dataclass(frozen=True)
class System:
    """A way to forget, as a command line with places for its files."""

    name: str
    about: str
    command: str

    def line(self, base: Path, folder: Path, work: Path, out: Path) -> str:
        """For a shell. `{keep}` are options, `{keep_all}` one file with all there is to keep."""
        keeps = [folder / "similar.given.jsonl", folder / "dissimilar.given.jsonl"]
        places = {"base": base, "forget": folder / "forget.jsonl", "work": work, "out": out}
        quoted = {name: shlex.quote(str(path)) for name, path in places.items()}
        quoted["keep"] = " ".join(f"--keep {shlex.quote(str(path))}" for path in keeps)
        quoted["keep_all"] = shlex.quote(str(work / "keep.jsonl"))
        return self.command.format(**quoted)


def systems() -> list[System]:
    """Those of systems.json, in its order."""
    read = json.loads((HERE / "systems.json").read_text(encoding="utf-8"))
    return [System(name, each["about"], each["command"]) for name, each in read.items()]


def missing(
    rows: Sequence[dict[str, Any]],
    names: Sequence[str],
    seeds: Sequence[int],
    wanted: Sequence[System],
    retry: bool = False,
) -> Iterator[tuple[str, int, System]]:
    """What is to be run: a seed of all before the next seed."""
    done = {
        (row["request"], row["seed"], row["system"], row["command"])
        for row in rows
        if not (retry and "failed" in row)
    }
    for seed in seeds:
        for name in names:
            for system in wanted:
                if (name, seed, system.name, system.command) not in done:
                    yield name, seed, system


def added(rows: Sequence[dict[str, Any]], row: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows with another, in place of what was of the same system, request and seed."""

    def of(each: dict[str, Any]) -> tuple[Any, ...]:
        return each["request"], each["seed"], each["system"]

    return [each for each in rows if of(each) != of(row)] + [row]


def run(command: str, log: Path) -> tuple[int, float, float]:
    """A command line in a shell.

    Returns:
        Exit status, seconds, and the most memory that one of its processes held, in GB.
    """
    # `ws` is the one beside this Python, whatever else is on the path.
    beside = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    started = time.monotonic()
    with log.open("ab") as file:
        process = subprocess.Popen(
            ["bash", "-c", command], stdout=file, stderr=file, env={**os.environ, "PATH": beside}
        )
        try:
            _, status, used = os.wait4(process.pid, 0)
        except KeyboardInterrupt:
            process.terminate()
            raise
    took = time.monotonic() - started
    return os.waitstatus_to_exitcode(status), took, used.ru_maxrss * 1024 / 1e9


def write(path: Path, text: str) -> None:
    """All or nothing."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def read_results(folder: Path) -> list[dict[str, Any]]:
    """Rows of all files."""
    found: list[dict[str, Any]] = []
    for path in sorted(folder.glob("*.json")):
        found += json.loads(path.read_text(encoding="utf-8"))
    return found


def measure(
    base: Path, made: Path, name: str, seed: int, system: System, work: Path
) -> dict[str, Any]:
    """A row: edit, score, and forget the edited model."""
    folder = made / f"seed{seed}" / name
    work.mkdir(parents=True, exist_ok=True)
    out, took = work / "edited", work / "took.json"
    if "{keep_all}" in system.command:
        kept = [(folder / f"{each}.given.jsonl") for each in ("similar", "dissimilar")]
        write(work / "keep.jsonl", "".join(path.read_text(encoding="utf-8") for path in kept))
    row: dict[str, Any] = {
        "request": name, "seed": seed, "system": system.name, "command": system.command,
    }  # fmt: skip
    if not took.exists():
        # An output appears when it is whole: one that lacks its time was killed between the two.
        shutil.rmtree(out, ignore_errors=True)
        status, seconds, memory = run(system.line(base, folder, work, out), work / "log")
        if status:
            said = (work / "log").read_text(encoding="utf-8", errors="replace").splitlines()
            if status < 0 or status in (130, 143):
                raise KeyboardInterrupt
            return row | {"failed": status, "said": said[-TAIL:], "seconds": seconds}
        write(took, json.dumps({"seconds": seconds, "memory": memory}))
    row |= json.loads(took.read_text(encoding="utf-8"))
    script = [sys.executable, str(HERE / "score.py"), str(base), str(out), str(folder)]
    subprocess.run([*script, "--json", str(work / "score.json")], check=True, stdout=sys.stderr)
    return row | {"score": json.loads((work / "score.json").read_text(encoding="utf-8"))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("base", type=Path, nargs="?", help="The checkpoint.")
    parser.add_argument("--request", action="append", help="Repeatable. Default: all.")
    parser.add_argument("--seed", action="append", type=int, help="Repeatable. Default: 0, 1, 2.")
    parser.add_argument("--system", action="append", help="Repeatable. Default: all.")
    parser.add_argument("--results", type=Path, default=HERE / "results")
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    parser.add_argument("--work", type=Path, default=home / "weightsurgery" / "real")
    parser.add_argument("--retry", action="store_true", help="Also what failed before.")
    parser.add_argument("--list", action="store_true", help="Print systems and results, and stop.")
    given = parser.parse_args()
    seeds = given.seed or [0, 1, 2]
    wanted = [each for each in systems() if not given.system or each.name in given.system]
    lacking = set(given.system or ()) - {each.name for each in wanted}
    if lacking:
        parser.error(f"no such system: {', '.join(sorted(lacking))}")
    rows = read_results(given.results)
    if given.list:
        for system in systems():
            print(f"{system.name}: {system.about}\n    {system.command}")
        print(render(rows, [each.name for each in systems()]))
        return
    if not given.base:
        parser.error("name the checkpoint")
    base = given.base.resolve()
    given.results.mkdir(parents=True, exist_ok=True)
    made = given.work / "requests"
    for seed in seeds:
        only = [word for name in given.request or () for word in ("--only", name)]
        script = [sys.executable, str(HERE / "make_requests.py"), str(base)]
        subprocess.run(
            [*script, str(made / f"seed{seed}"), "--seed", str(seed), *only],
            check=True, stdout=sys.stderr,
        )  # fmt: skip
    names = [
        each.name
        for each in requests()
        if (made / f"seed{seeds[0]}" / each.name).is_dir()
        and (not given.request or each.name in given.request)
    ]
    for name, seed, system in list(missing(rows, names, seeds, wanted, given.retry)):
        print(f"== {name}, seed {seed}, {system.name}", file=sys.stderr, flush=True)
        work = given.work / f"{name}.{seed}.{system.name}"
        row = measure(base, made, name, seed, system, work)
        path = given.results / f"{name}.json"
        old = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
        write(path, json.dumps(added(old, row), ensure_ascii=False, indent=1) + "\n")
        shutil.rmtree(work)
    print(render(read_results(given.results), [each.name for each in systems()]))


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
