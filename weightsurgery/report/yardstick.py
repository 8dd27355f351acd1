"""TOFU's yardstick as tables of text and as sections of a page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from weightsurgery.report.matrices import rounded
from weightsurgery.report.sections import table_section
from weightsurgery.report.tables import Table

__all__ = [
    "ATTACK_TITLES",
    "QUALITY_NOTE",
    "SCORE_TITLES",
    "yardstick_sections",
    "yardstick_tables",
]

SCORE_TITLES = {
    "probability": "P(truth) per token",
    "rouge_l_recall": "ROUGE-L recall",
    "truth_ratio": "truth ratio",
    "extraction_strength": "extraction strength",
    "exact_memorisation": "exact memorisation",
}
ATTACK_TITLES = {"loss": "LOSS", "zlib": "zlib", "min_k": "Min-K", "min_k++": "Min-K++"}

QUALITY_NOTE = (
    "Forget quality: p-value of a Kolmogorov-Smirnov test of truth ratios against the reference's;"
    " near 1 the two cannot be told apart."
)
_MEMBERS = "AUC of rows to forget against held-out ones: 0.5 where they cannot be told apart."
_SCORES = (
    "Truth ratio: min(R, 1/R) of what to forget, max(0, 1 − R) of what to keep. Of sets with"
    " choices, the probability is normalised over them."
)


def yardstick_tables(scores: Mapping[str, Any]) -> list[str | Table]:
    """The yardstick's figures as tables of text.

    Args:
        scores: A :class:`weightsurgery.scoring.yardstick.Tofu` as a dictionary: the entry ``tofu``
            of ``ws evaluate --json``.
    """
    rows = [
        ("forget quality", f"{scores['forget_quality']:.4g}"),
        ("model utility", f"{scores['model_utility']:.4f}"),
    ]
    notes = [QUALITY_NOTE, "Model utility: harmonic mean of the three scores of every set to keep."]
    # Documents that were written before have none of these two.
    if (forgotten := scores.get("memorisation")) is not None:
        rows.append(("memorisation", f"{forgotten:.4f}"))
        notes.append("Memorisation: 1 where nothing is memorised.")
    if scores["membership"]:
        leak = scores["priv_leak"]
        rows.append(("PrivLeak (Min-K)", "–" if leak is None else f"{leak:.1f} %"))
        notes.append("PrivLeak: 0 where members are as hard to tell as for the reference.")
        if (privacy := scores.get("privacy")) is not None:
            rows.append(("privacy", f"{privacy:.4f}"))
            notes.append("Privacy: 1 where every attack finds what it finds in the reference.")
    if scores["fluency"] is not None:
        value = scores["fluency"]["value"]
        rows.append(("perplexity of answers", "–" if value is None else f"{value:.4g}"))
        notes.append(f"Perplexity of answers about what to forget, to {scores['judge']}.")
    left = frozenset({0})
    title = f"TOFU's yardstick of {scores['checkpoint']}, against {scores['reference']}"
    tables: list[str | Table] = [Table(title, ("", "figure"), rows, " ".join(notes), left)]
    cells = []
    for entry in scores["sets"]:
        heading = (entry["name"], entry["role"], str(entry["examples"]))
        for number, (name, score) in enumerate(entry["scores"].items()):
            low_high = score["interval"]
            between = "" if low_high is None else f"{low_high[0]:.3f} – {low_high[1]:.3f}"
            value = "–" if score["value"] is None else f"{score['value']:.4f}"
            cells.append(
                (*(("", "", "") if number else heading), SCORE_TITLES[name], value, between)
            )
    heads = ("set", "", "examples", "metric", "score", "95 % interval")
    tables.append(Table("By set", heads, cells, _SCORES, frozenset({0, 1, 3})))
    if scores["membership"]:
        attack_rows = [
            (ATTACK_TITLES[name], f"{value:.4f}", f"{scores['reference_membership'][name]:.4f}")
            for name, value in scores["membership"].items()
        ]
        columns = ("attack", "AUC", "reference")
        tables.append(Table("Membership inference", columns, attack_rows, _MEMBERS, left))
    return tables


def yardstick_sections(scores: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The scores of every set drawn, and the same tables, for a page."""
    rows = []
    for entry in scores["sets"]:
        for name, score in entry["scores"].items():
            if score["value"] is not None:
                drawn = [score["value"], *(score["interval"] or (None, None))]
                row = {"set": f"{entry['name']} ({entry['role']})", "metric": SCORE_TITLES[name]}
                rows.append({**row, "share": True, "before": None,
                             "after": [rounded(value) for value in drawn]})  # fmt: skip
    lines = "Lines are 95 % bootstrap intervals over the examples."
    tables = [table_section(t) for t in yardstick_tables(scores) if isinstance(t, Table)]
    picture = {"type": "scores", "title": "TOFU by set", "rows": rows, "note": lines}
    return [tables[0], picture, *tables[1:]]
