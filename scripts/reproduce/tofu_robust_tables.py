"""What the TOFU study found beyond its first tables: attacks, requests, and what was learned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tofu_probes import WRAPPINGS
from tofu_tables import line, p_value

__all__ = ["render_learned", "render_requests", "render_robust"]

_DATA = {"forget": "rows to forget", "keep": "rows to keep", "new": "new rows"}
_ASKED = (*WRAPPINGS, "worst", "pair_forget", "pair_keep")
_TITLES = (*WRAPPINGS, "worst per row", "pair: to forget", "pair: to keep")


def render_robust(models: Mapping[str, Any]) -> str:
    """Tables in Markdown: rounded, trained on, asked.

    Args:
        models: Per model its figures; see :class:`tofu_robust.Robust`.
    """
    failed = {name: found["failed"] for name, found in models.items() if "failed" in found}
    models = {name: found for name, found in models.items() if name not in failed}
    first = next(iter(models.values()))
    rounded = [*first["rounded"]]
    steps = [step for step in first["trained"]["forget"] if step != "before"]
    trained = [(data, step) for data in _DATA for step in steps]

    def curve(figures: Mapping[str, Any], score: str) -> list[str]:
        curves = figures["trained"]
        cells = [curves["forget"]["before"][score]]
        cells += [curves[data][step][score] for data, step in trained]
        return [f"{value:.3f}" for value in cells]

    parts = [
        ("Rounded: ROUGE-L, P(truth), forget quality",
         [f"{score} {name}" for score in ("R", "P", "FQ") for name in rounded],
         lambda figures: [_rounded(figures, score, name)
                          for score in ("rouge_l_recall", "probability", "forget_quality")
                          for name in rounded]),
        ("Trained on: ROUGE-L", ["before", *(f"{_DATA[d]}, {s}" for d, s in trained)],
         lambda figures: curve(figures, "rouge_l_recall")),
        ("Trained on: P(truth)", ["before", *(f"{_DATA[d]}, {s}" for d, s in trained)],
         lambda figures: curve(figures, "probability")),
        ("Asked: ROUGE-L", _TITLES,
         lambda figures: [f"{figures['asked'][name]:.3f}" for name in _ASKED]),
    ]  # fmt: skip
    lines: list[str] = []
    for title, columns, cells in parts:
        lines += [f"**{title}**", "", *_table(columns, models, cells), ""]
    lines += [f"{name} failed: {why.splitlines()[-1]}\n" for name, why in failed.items()]
    return "\n".join([*lines, "All of the scored rows to forget, but for the last column. Trained"
                      " on: columns say on what and for how many steps."])  # fmt: skip


def _table(columns: Sequence[str], models: Mapping[str, Any], cells: Any) -> list[str]:
    head = [line(["model", *columns]), line(["---", *["--:"] * len(columns)])]
    return head + [line([name, *cells(figures)]) for name, figures in models.items()]


def _rounded(figures: Mapping[str, Any], score: str, name: str) -> str:
    value = figures["rounded"][name][score]
    return p_value(value) if score == "forget_quality" else f"{value:.3f}"


def render_requests(models: Mapping[str, Any]) -> str:
    """A table in Markdown: forget quality and model utility after each request.

    Args:
        models: Per model its scores; see :class:`tofu_requests.Requests`.
    """
    columns = ["after request 1", "2", "3", "in one go"]
    lines = ["**Requests: forget quality of all until then, model utility**", ""]
    lines += [line(["model", *columns]), line(["---", *["--:"] * len(columns)])]
    for name, scores in models.items():
        cells = [_quality_and_utility(score) for score in scores]
        lines.append(line([name, *cells, *["–"] * (len(columns) - len(cells))]))
    return "\n".join([*lines, "", "Requests: half of the first taught author, the other half, the"
                      " second author. Retrained: on all but what was requested until then. Model"
                      " utility: of authors that no request names, real authors and world facts;"
                      " what it loses with every request adds up."])  # fmt: skip


def render_learned(models: Mapping[str, Any]) -> str:
    """A table in Markdown: what is known of what was learned, and of the rest.

    Args:
        models: Per model its scores; see :class:`tofu_learn.Learning`.
    """
    columns = ["P(truth)", "ROUGE-L", "forget quality", "model utility"]
    lines = ["**Learned, and forgotten again**", ""]
    lines += [line(["model", *columns]), line(["---", *["--:"] * len(columns)])]
    for name, score in models.items():
        cells = [_failed(score)] + [""] * 3
        if "failed" not in score:
            known = score["sets"][0]["scores"]
            cells = [f"{known[key]['value']:.3f}" for key in ("probability", "rouge_l_recall")]
            cells += [p_value(score["forget_quality"]), f"{score['model_utility']:.3f}"]
        lines.append(line([name, *cells]))
    return "\n".join([*lines, "", "P(truth), ROUGE-L: of rows that were learned. Forget quality:"
                      " near 1 they cannot be told from what a model says that never learned them."
                      " Model utility: of all that was taught before."])  # fmt: skip


def _quality_and_utility(score: Mapping[str, Any]) -> str:
    if "failed" in score:
        return _failed(score)
    return f"{p_value(score['forget_quality'])}, {score['model_utility']:.3f}"


def _failed(score: Mapping[str, Any]) -> str:
    return f"failed: {score['failed'].strip().splitlines()[-1]}" if "failed" in score else ""
