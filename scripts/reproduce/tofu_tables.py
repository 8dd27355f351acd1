"""The results of the TOFU study as tables and as a picture."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from weightsurgery.report.yardstick import ATTACK_TITLES
from weightsurgery.scoring import formulas

__all__ = ["draw", "line", "overall", "p_value", "render"]

_COLUMNS = (
    "system", "forget quality", "model utility", "P(truth)", "ROUGE-L", "ES", "EM", "AUC Min-K",
    "PrivLeak %", "perplexity", "setting", "s",
)  # fmt: skip
_FLOOR = 1e-12  # of forget quality in the picture, whose axis is logarithmic


def render(results: Mapping[str, Any]) -> str:
    """Tables in Markdown: what was scored, then every candidate.

    Args:
        results: What the study writes as ``results.json``.
    """
    size = results["size"]
    lines = [
        f"**TOFU, {size['forget']} author(s) to forget, {size['keep']} to keep, seed"
        f" {results['seed']}**",
        "",
        line(_COLUMNS),
        line(["---", *["--:"] * (len(_COLUMNS) - 1)]),
    ]
    for name, title in (("base", "*base, never taught*"), ("taught", "*taught*"),
                        ("retrained", "*retrained without it*")):  # fmt: skip
        lines.append(line([title, *_figures(results["models"][name]), "", ""]))
    rows = [row for row in results["rows"] if "score" in row]
    for row in sorted(rows, key=_place):
        seconds = "" if row["seconds"] is None else f"{row['seconds']:.0f}"
        cells = [_name(row), *_figures(row["score"]), row["value"], seconds]
        lines.append(line(cells))
    lines += [
        "",
        "Forget quality: p-value of the Kolmogorov-Smirnov test against *retrained*; PrivLeak and"
        " AUC: 0 and 0.5 where members are not told. P(truth), ROUGE-L, ES (extraction strength)"
        " and EM (exact memorisation) are of the scored rows to forget. Seconds: all candidates"
        " made. \\* no candidate kept what was to stay on the rows that choose: the one that kept"
        " most.",
        "",
        *_in_one(results, rows),
        "",
        line(["candidate", "forget quality", "model utility", ""]),
        line(["---", "--:", "--:", "---"]),
    ]
    for row in results["rows"]:
        for candidate in row["candidates"]:
            failed = candidate.get("failed", "").strip().splitlines()
            cells = ["", "", f"failed: {failed[-1]}"] if failed else [
                p_value(candidate["forget_quality"]), f"{candidate['model_utility']:.3f}",
                "chosen" if candidate["value"] == row.get("value") else "",
            ]  # fmt: skip
            lines.append(line([f"{row['system']} {candidate['value']}", *cells]))
    return "\n".join([*lines, "", "Candidates: on the rows that choose, without real authors and"
                      " world facts."])  # fmt: skip


def overall(
    score: Mapping[str, Any], taught: Mapping[str, Any], retrained: Mapping[str, Any]
) -> tuple[float, float, float, float]:
    """What arXiv 2605.24614 makes one figure of, and that figure: the harmonic mean of three.

    Args:
        score: Figures of a model that was scored.
        taught: Those of the taught one.
        retrained: And of the one that was retrained.

    Returns:
        The figure; memorisation and privacy (:mod:`weightsurgery.scoring.formulas`; the latter 0
        where it is undefined); and the share of the taught model's utility, at most 1.
    """
    forget = _forget(score)
    parts = (
        formulas.memorisation(
            forget["extraction_strength"],
            forget["exact_memorisation"],
            forget["probability"],
            score["log_truth_ratios"],
        ),
        formulas.privacy(score["membership"], retrained["membership"]) or 0.0,
        min(1.0, score["model_utility"] / taught["model_utility"]),
    )
    return (statistics.harmonic_mean(parts), *parts)


def _in_one(results: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> list[str]:
    taught, retrained = (results["models"][name] for name in ("taught", "retrained"))
    scored = {"*taught*": taught, "*retrained without it*": retrained}
    scored |= {_name(row): row["score"] for row in rows}
    found = {name: overall(score, taught, retrained) for name, score in scored.items()}
    lines = [line(["system", "overall", "memorisation", "privacy", "utility",
                   *(f"AUC {title}" for title in ATTACK_TITLES.values())])]  # fmt: skip
    lines.append(line(["---", *["--:"] * (4 + len(ATTACK_TITLES))]))
    for name in sorted(found, key=lambda name: -found[name][0]):
        figures = [*found[name], *(scored[name]["membership"][each] for each in ATTACK_TITLES)]
        lines.append(line([name, *(f"{figure:.3f}" for figure in figures)]))
    return [*lines, "", "Overall, as arXiv 2605.24614 has it: the harmonic mean of the next three."
                        " Memorisation: 1 where nothing is. Privacy: 1 where every attack finds"
                        " what it finds in *retrained*. Utility: share of *taught*'s."]  # fmt: skip


def _name(row: Mapping[str, Any]) -> str:
    return str(row["system"]) + ("" if row["counts"] else " \\*")


def _forget(score: Mapping[str, Any]) -> dict[str, float]:
    return {name: estimate["value"] for name, estimate in score["sets"][0]["scores"].items()}


def _place(row: Mapping[str, Any]) -> tuple[float, float]:
    """By forget quality; of two that are as good, by model utility."""
    return -row["score"]["forget_quality"], -row["score"]["model_utility"]


def line(cells: Sequence[str]) -> str:
    """A row of a table in Markdown."""
    return "| " + " | ".join(cells) + " |"


def p_value(value: float) -> str:
    """In three digits, however small."""
    return f"{value:.3f}" if value >= 0.001 else f"{value:.1e}"


def _figures(score: Mapping[str, Any]) -> list[str]:
    forget = _forget(score)
    leak, fluency = score["priv_leak"], (score["fluency"] or {}).get("value")
    return [
        p_value(score["forget_quality"]),
        f"{score['model_utility']:.3f}",
        f"{forget['probability']:.3f}",
        f"{forget['rouge_l_recall']:.3f}",
        f"{forget['extraction_strength']:.3f}",
        f"{forget['exact_memorisation']:.3f}",
        f"{score['membership']['min_k']:.3f}",
        "–" if leak is None else f"{round(leak)}",
        "–" if fluency is None else f"{fluency:.1f}",
    ]


def draw(results: Mapping[str, Any], path: Path) -> None:
    """The frontier: forget quality against model utility, of what was scored.

    Args:
        results: As for :func:`render`.
        path: .svg, .pdf or .png.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4))
    points = [(name, results["models"][name], "s") for name in ("taught", "retrained")]
    points += [(row["system"], row["score"], "o") for row in results["rows"] if "score" in row]
    for name, score, marker in points:
        x, y = score["model_utility"], max(_FLOOR, score["forget_quality"])
        axes.plot(x, y, marker, label=name, color="black" if marker == "s" else None)
        axes.annotate(name, (x, y), xytext=(4, 4), textcoords="offset points", fontsize=8)
    axes.set_yscale("log")
    axes.axhline(0.05, linewidth=0.5, color="grey")
    axes.set_xlabel("model utility")
    axes.set_ylabel("forget quality (p)")
    axes.set_title(f"TOFU, seed {results['seed']}; above the line: not told from retrained (5 %)",
                   fontsize=9)  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, bbox_inches="tight")
    pyplot.close(figure)
