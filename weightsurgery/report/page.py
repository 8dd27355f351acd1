"""One self-contained HTML page: the tables, and pictures drawn by matplotlib as SVG."""

from __future__ import annotations

import html
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from weightsurgery.checkpoint.plain_files import write_whole
from weightsurgery.deferred import need
from weightsurgery.errors import OutputError
from weightsurgery.report.tables import Table, difference_tables, overlap_tables
from weightsurgery.report.visible import visible

if TYPE_CHECKING:
    from weightsurgery.surgery.compare import Comparison
    from weightsurgery.surgery.overlap import PairOverlap, TensorOverlap

__all__ = [
    "PLAIN_TEXT",
    "as_svg",
    "as_table",
    "difference_page",
    "load_pyplot",
    "overlap_page",
    "write_page",
]

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8881; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .6rem; border-bottom: 1px solid var(--line); text-align: right; }
th { position: sticky; top: 0; }
.left { text-align: left; }
.note { opacity: .75; font-size: 13px; max-width: 50rem; }
figure { margin: 1rem 0; background: #fff; padding: .5rem; border: 1px solid var(--line); }
svg { max-width: 100%; height: auto; }
details { margin: 1rem 0; }
"""


PLAIN_TEXT: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "weightsurgery",
    "text.parse_math": False,
}


def load_pyplot() -> Any:
    """Matplotlib's pyplot, set to draw without a screen and the same bytes each time."""
    need("--html draws with matplotlib", "matplotlib", extra="report")
    import matplotlib as mpl

    mpl.use("Agg")
    # Text stays text, dollars in it too, and the same picture has the same bytes.
    mpl.rcParams.update(PLAIN_TEXT)
    from matplotlib import pyplot

    return pyplot


def as_svg(figure: Any, title: str) -> str:
    """A figure as an HTML element; the title is what a screen reader says."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", bbox_inches="tight", metadata={"Date": None})
    text = buffer.getvalue()
    name = html.escape(title, quote=True)
    picture = text[text.index("<svg") :].replace("<svg", f'<svg role="img" aria-label="{name}"', 1)
    return f"<figure>{picture}</figure>"


def as_table(table: Table) -> str:
    """A table as an HTML element."""

    def cells(tag: str, row: Sequence[str]) -> str:
        return "".join(
            f"<{tag}{' class=left' if number in table.left else ''}>{html.escape(cell)}</{tag}>"
            for number, cell in enumerate(row)
        )

    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in table.rows)
    note = f'<p class="note">{html.escape(table.note)}</p>' if table.note else ""
    return (
        f'<div class="scroll"><table><thead><tr>{cells("th", table.columns)}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>{note}"
    )


def write_page(path: str | os.PathLike[str], title: str, parts: Sequence[str]) -> None:
    """Write a page that needs no other file, whole or not at all.

    Raises:
        OutputError: It cannot be written.
    """
    text = (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style>'
        f"<h1>{html.escape(title)}</h1>{''.join(parts)}</html>\n"
    )
    target = Path(path)
    try:
        write_whole(target, text)
    except OSError as error:
        raise OutputError(
            f"{target}: {error.strerror}", "Name a file that can be written."
        ) from None


def difference_page(
    found: Comparison, base: str, finetuned: str, path: str | os.PathLike[str]
) -> None:
    """Write a page about a difference: per layer and kind, and every tensor.

    Args:
        found: The differences.
        base: Name of the base.
        finetuned: Name of the fine-tuned.
        path: File to write.

    Raises:
        WeightSurgeryError: matplotlib is missing, or the file cannot be written.
    """
    pyplot = load_pyplot()
    parts = []
    figures = (
        ("relative", "‖T‖ / ‖W‖", "Relative size of the change"),
        ("effective_rank", "effective rank", "Effective rank of the change"),
        ("surviving", "fraction surviving", "What plain negation would keep after rounding"),
    )
    for attribute, label, title in figures:
        series: dict[str, dict[int, list[float]]] = {}
        for row in found.tensors:
            value = getattr(row, attribute)
            if row.layer is not None and value is not None:
                series.setdefault(row.kind, {}).setdefault(row.layer, []).append(value)
        if not series:
            continue
        figure, axes = pyplot.subplots(figsize=(9, 3))
        for kind, layers in sorted(series.items()):
            depth = sorted(layers)
            means = [sum(layers[at]) / len(layers[at]) for at in depth]
            axes.plot(depth, means, marker="o", markersize=3, label=kind)
        axes.set(xlabel="layer", ylabel=label, title=title)
        axes.xaxis.get_major_locator().set_params(integer=True)
        top = max(sum(v) / len(v) for layers in series.values() for v in layers.values())
        axes.set_ylim(0, 1.15 * top if top > 0 else 1)
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
        parts.append(as_svg(figure, title))
        pyplot.close(figure)
    tables = [each for each in difference_tables(found) if isinstance(each, Table)]
    every = [each for each in difference_tables(found, every=True) if isinstance(each, Table)]
    parts += [f"<h2>By layer</h2>{as_table(table)}" for table in tables]
    parts += [
        f"<details><summary>Every tensor</summary>{as_table(table)}</details>" for table in every
    ]
    write_page(path, f"{finetuned} − {base}", parts)


def overlap_page(
    rows: Sequence[TensorOverlap],
    means: Sequence[PairOverlap],
    base: str,
    path: str | os.PathLike[str],
) -> None:
    """Write a page about what tasks share: matrix of overlaps, and each pair by layer.

    Args:
        rows: Each tensor's pairs.
        means: Each pair's mean.
        base: Name of the base.
        path: File to write.

    Raises:
        WeightSurgeryError: matplotlib is missing, or the file cannot be written.
    """
    pyplot = load_pyplot()
    labels = list(dict.fromkeys(name for pair in means for name in (pair.first, pair.second)))
    shown = [visible(name) for name in labels]
    grid = [[1.0 if a == b else float("nan") for b in labels] for a in labels]
    for pair in means:
        i, j = labels.index(pair.first), labels.index(pair.second)
        grid[i][j] = grid[j][i] = pair.inputs
    figure, axes = pyplot.subplots(figsize=(1.6 + len(labels), 1.2 + 0.8 * len(labels)))
    image = axes.imshow(grid, vmin=0, vmax=1, cmap="Blues")
    axes.set_xticks(range(len(labels)), shown, rotation=30, ha="right")
    axes.set_yticks(range(len(labels)), shown)
    for i, line in enumerate(grid):
        for j, value in enumerate(line):
            color = "white" if value > 0.6 else "black"
            axes.text(j, i, f"{value:.2f}", ha="center", va="center", color=color)
    axes.set_title("Overlap of input spaces")
    figure.colorbar(image, shrink=0.8)
    parts = [as_svg(figure, "Overlap of input spaces")]
    pyplot.close(figure)

    series: dict[str, dict[int, list[float]]] = {}
    for row in rows:
        for pair in row.pairs:
            if row.layer is not None:
                name = visible(f"{pair.first} / {pair.second}")
                series.setdefault(name, {}).setdefault(row.layer, []).append(pair.inputs)
    if series:
        figure, axes = pyplot.subplots(figsize=(9, 3.4))
        for name, layers in series.items():
            depth = sorted(layers)
            axes.plot(depth, [sum(layers[at]) / len(layers[at]) for at in depth],
                      marker="o", markersize=3, label=name)  # fmt: skip
        axes.axhline(means[0].chance, color="gray", linestyle=":", label="chance")
        axes.set(xlabel="layer", ylabel="overlap of inputs", title="Overlap by layer")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set_ylim(0, 1.05)
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
        parts.append(as_svg(figure, "Overlap by layer"))
        pyplot.close(figure)
    for table in overlap_tables(rows, means, every=True):
        if isinstance(table, Table):
            parts.append(f"<h2>{html.escape(table.title)}</h2>{as_table(table)}")
    write_page(path, f"Overlap of {len(labels)} tasks of {base}", parts)
