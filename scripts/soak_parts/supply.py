"""Known vulnerabilities of the pinned packages, by pip-audit where that reaches its service."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

from scripts.soak_parts.state import State

ROOT = Path(__file__).parents[2]


def run(state: State, count: int | None) -> None:
    """Ask about every line of constraints.txt."""
    name = "pip-audit:constraints.txt"
    if not state.todo(name):
        return
    if importlib.util.find_spec("pip_audit") is None:
        state.note(name, "left out", why="pip-audit is not installed")
        return
    words = [sys.executable, "-m", "pip_audit", "-r", str(ROOT / "constraints.txt"), "--no-deps",
             "--disable-pip", "--format", "json", "--progress-spinner", "off"]  # fmt: skip
    done = subprocess.run(words, capture_output=True, text=True)
    try:
        packages = json.loads(done.stdout)["dependencies"]
    except ValueError:
        state.note(name, "left out", why=(done.stderr.strip().splitlines() or ["?"])[-1][:300])
        return
    skipped = [package["skip_reason"] for package in packages if "skip_reason" in package]
    if skipped:  # it says "No known vulnerabilities" of what it could not ask about, too
        why = f"{len(skipped)} of {len(packages)} packages could not be asked about: {skipped[0]}"
        state.note(name, "left out", why=why[:300])
        return
    vulnerable = {
        package["name"]: [v["id"] for v in package["vulns"]]
        for package in packages
        if package.get("vulns")
    }
    with state.trial(name) as facts:
        facts.update(packages=len(packages), vulnerable=vulnerable)
        assert not vulnerable, vulnerable
