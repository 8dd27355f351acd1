"""The benchmark against peers as a picture: time and memory of negation, by size of the model.

python scripts/speed/plot.py peers.json [MORE.json ...]      # writes scripts/speed/peers.svg
"""

from __future__ import annotations

import argparse
import json
from math import floor, log10
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, NullFormatter

WARM, COLD, ANONYMOUS, MAPPED = "#1f6f8b", "#9cc5d3", "#b4532a", "#e9c3a9"
BAR = 0.38

Runs = list[dict[str, Any]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", nargs="+", type=Path, help="written by peers.py --json")
    parser.add_argument("-o", "--out", type=Path, default=Path(__file__).with_name("peers.svg"))
    parser.add_argument("--suite", default="negate")
    arguments = parser.parse_args()
    suites: dict[str, Runs] = {}
    for path in arguments.results:
        for key, results in json.loads(path.read_text())["suites"].items():
            billions, suite = key.split()
            if suite == arguments.suite:
                suites[billions] = results["runs"]
    if not suites:
        raise SystemExit(f"no results of {arguments.suite!r}")
    draw(dict(sorted(suites.items(), key=lambda item: float(item[0]))), arguments.out)


def draw(suites: dict[str, Runs], out: Path) -> None:
    """A row of two panels for each size: wall seconds, and peak memory."""
    plt.rcParams |= {"font.family": "sans-serif", "font.size": 9, "svg.fonttype": "none",
                     "svg.hashsalt": "peers"}  # fmt: skip
    counts = [len(_names(runs)) for runs in suites.values()]
    figure, axes = plt.subplots(
        len(suites),
        2,
        figsize=(10, sum(0.34 * count + 1.15 for count in counts)),
        squeeze=False,
        gridspec_kw={"height_ratios": counts, "width_ratios": [1.15, 1]},
        layout="constrained",
    )
    for row, (billions, runs) in zip(axes, suites.items(), strict=True):
        _time(row[0], runs)
        _memory(row[1], runs)
        row[0].set_title(f"{billions} B parameters: wall seconds", loc="left", fontweight="bold")
        row[1].set_title("peak memory, GB", loc="left", fontweight="bold")
    figure.savefig(out, metadata={"Date": None})
    print(out)


def _names(runs: Runs) -> list[str]:
    return list(dict.fromkeys(run["contestant"] for run in runs))


def _values(runs: Runs, name: str, key: str, cache: str | None = None) -> list[float]:
    return [
        run[key]
        for run in runs
        if run["contestant"] == name and (cache is None or run["cache"] == cache)
    ]


def _time(axes: Axes, runs: Runs) -> None:
    caches = [cache for cache in ("warm", "cold") if any(run["cache"] == cache for run in runs)]
    high = 0.0
    for number, name in enumerate(_names(runs)):
        for place, cache in enumerate(caches):
            seconds = _values(runs, name, "wall", cache)
            if not seconds:
                continue
            middle = median(seconds)
            y = number + (place - (len(caches) - 1) / 2) * BAR
            reach = [[middle - min(seconds)], [max(seconds) - middle]]
            axes.barh(
                y,
                middle,
                BAR,
                xerr=reach if len(seconds) > 1 else None,
                error_kw={"elinewidth": 0.8, "ecolor": "#444444"},
                color=WARM if cache == "warm" else COLD,
                label=f"{cache} page cache" if not number else None,
            )
            axes.annotate(
                f"{middle:.3g}",
                (max(seconds), y),
                (4, 0),
                textcoords="offset points",
                va="center",
                fontsize=7.5,
            )
            high = max(high, *seconds)
    axes.set_xscale("log")
    low = min(run["wall"] for run in runs)
    axes.set_xlim(10 ** _floor_half(low), high * 2)
    _finish(axes, _names(runs), "s")
    axes.legend(loc="upper right", frameon=False, fontsize=8)


def _floor_half(value: float) -> float:
    """The power of ten, in halves, that leaves the shortest bar something to show."""
    return floor(2 * log10(value) - 0.5) / 2


def _memory(axes: Axes, runs: Runs) -> None:
    high = 0.0
    for number, name in enumerate(_names(runs)):
        resident = max(_values(runs, name, "resident")) / 1e9
        anonymous = max(_values(runs, name, "anonymous")) / 1e9
        first = number == 0
        axes.barh(
            number,
            resident,
            2 * BAR,
            color=MAPPED,
            label="with pages of mapped files" if first else None,
        )
        axes.barh(
            number,
            anonymous,
            2 * BAR,
            color=ANONYMOUS,
            label="its own (anonymous)" if first else None,
        )
        text = f"{_size(anonymous)} / {_size(resident)}"
        axes.annotate(
            text, (resident, number), (4, 0), textcoords="offset points", va="center", fontsize=7.5
        )
        high = max(high, resident)
    axes.set_xlim(0, high * 1.35)
    _finish(axes, [""] * len(_names(runs)), "GB")
    axes.legend(loc="upper right", frameon=False, fontsize=8)


def _size(gigabytes: float) -> str:
    return f"{gigabytes:.1f} GB" if gigabytes >= 1 else f"{gigabytes * 1000:.0f} MB"


def _finish(axes: Axes, names: list[str], unit: str) -> None:
    axes.set_yticks(range(len(names)), names)
    for label in axes.get_yticklabels():
        if label.get_text().startswith("ws "):
            label.set_fontweight("bold")
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g} {unit}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(axis="x", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)


if __name__ == "__main__":
    main()
