"""Results as text: medians with their range, and ratios pair by pair."""

from __future__ import annotations

from statistics import median
from typing import Any

from contestants import Suite

Runs = list[dict[str, Any]]


def show_runs(title: str, suite: Suite, runs: Runs) -> None:
    """One line per contestant and state of the page cache.

    Ratios are taken within each round and only then summarised: median [least – most].
    """
    billions, name = title.split()
    for cache in dict.fromkeys(run["cache"] for run in runs):
        rounds = 1 + max(run["round"] for run in runs)
        summary = f"{rounds} rounds: median [min – max]" if rounds > 1 else "one run"
        others = max(run["others"] for run in runs if run["cache"] == cache)
        print(
            f"\n{name}, {billions} B parameters, {cache}, {summary}"
            f" (other work took up to {others:.1f} cores)"
        )
        heads = [f"÷ {suite.floor}"] + [f"÷ {suite.ours}"] * (suite.ours != suite.floor)
        print(
            f"{'':32}{'wall s':>21}{'CPU s':>8}{'anon MB':>9}{'RSS MB':>8}"
            + "".join(f"{head:>25}" for head in heads)
        )
        for contestant in dict.fromkeys(run["contestant"] for run in runs):
            print(_line(contestant, cache, suite, runs))


def _line(contestant: str, cache: str, suite: Suite, runs: Runs) -> str:
    mine = _by_round(runs, contestant, cache)
    line = f"{contestant:32}{_range([run['wall'] for run in mine.values()]):>21}"
    line += f"{median(run['cpu'] for run in mine.values()):8.2f}"
    line += f"{max(run['anonymous'] for run in mine.values()) / 1e6:9.0f}"
    line += f"{max(run['resident'] for run in mine.values()) / 1e6:8.0f}"
    for other in dict.fromkeys((suite.floor, suite.ours)):
        theirs = _by_round(runs, other, cache)
        ratios = [mine[n]["wall"] / theirs[n]["wall"] for n in mine if n in theirs]
        line += f"{_range(ratios) if ratios and other != contestant else '':>25}"
    return line


def _by_round(runs: Runs, contestant: str, cache: str) -> dict[int, dict[str, Any]]:
    chosen = (run for run in runs if (run["contestant"], run["cache"]) == (contestant, cache))
    return {run["round"]: run for run in chosen}


def _range(values: list[float]) -> str:
    if len(values) == 1:
        return f"{values[0]:.2f}"
    return f"{median(values):.2f} [{min(values):.2f} – {max(values):.2f}]"


def show_agreement(facts: dict[str, Any]) -> None:
    """What was written, beside what the floor writes."""
    for name, figures in facts.items():
        if figures["identical_files"]:
            text = "files identical to those of native negate"
        else:
            share, ulps = figures["differing"], figures["most_ulps"]
            text = f"{share:.4%} of elements differ, by {ulps} ulp at most"
        for side in ("missing", "extra"):
            if figures[side]:
                text += f"; {side}: {', '.join(figures[side][:3])}"
        print(f"{name:32}{text}")


def show_captured(facts: dict[str, Any]) -> None:
    """What the factors hold of the change, and their size."""
    for name, figures in facts.items():
        print(
            f"{name:32}energy {figures['energy']:.6f}, explained {figures['explained']:.6f} of"
            f" {figures['matrices']} matrices; factors {figures['factor_bytes'] / 1e6:.1f} MB,"
            f" files {figures['file_bytes'] / 1e6:.1f} MB"
        )
