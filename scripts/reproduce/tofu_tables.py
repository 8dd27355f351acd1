"""The results of the TOFU study as tables and as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["draw", "line", "p_value", "render"]

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
        name = row["system"] + ("" if row["counts"] else " \\*")
        seconds = "" if row["seconds"] is None else f"{row['seconds']:.0f}"
        cells = [name, *_figures(row["score"]), row["value"], seconds]
        lines.append(line(cells))
    lines += [
        "",
        "Forget quality: p-value of the Kolmogorov-Smirnov test against *retrained*; PrivLeak and"
        " AUC: 0 and 0.5 where members are not told. P(truth), ROUGE-L, ES (extraction strength)"
        " and EM (exact memorisation) are of the scored rows to forget. Seconds: all candidates"
        " made. \\* no candidate kept what was to stay on the rows that choose: the one that kept"
        " most.",
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
    forget = {name: estimate["value"] for name, estimate in score["sets"][0]["scores"].items()}
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
