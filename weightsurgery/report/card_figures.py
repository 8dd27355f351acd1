"""Figures of a record for its model card: what went in, what came out, and where it changed."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from weightsurgery.checkpoint.naming import kind_of, layer_of
from weightsurgery.report.card_method import Provenance, is_kept
from weightsurgery.report.card_text import block, code, literal, shown_name, table
from weightsurgery.report.tables import percent, size

if TYPE_CHECKING:
    from weightsurgery.checkpoint.record import EditRecord

__all__ = ["PICTURE", "checksums", "figures", "inputs", "layer_bars", "layer_picture", "unrelated"]

PICTURE = "weightsurgery-layers.png"

_BAR = 32


def inputs(record: EditRecord, provenance: Provenance) -> str:
    """What was taken away or added, and what was kept, as a table."""
    rows = []
    listed: dict[str, Mapping[str, Any]] = dict(record.inputs)
    for role, source in (record.parameters.get("data") or {}).items():
        listed[role] = {"kind": "data", **source}
    for role, source in listed.items():
        factor = source.get("factor")
        revision = source.get("revision")
        rows.append(
            (
                _part(record, role, provenance, source),
                code(shown_name(source)),
                literal(str(source.get("kind", ""))),
                code(str(revision)[:12]) if revision else "local",
                f"{factor:g}" if isinstance(factor, int | float) else "",
            )
        )
    return table(("", "name", "kind", "revision", "factor"), rows, frozenset({0, 1, 2, 3}))


def _part(record: EditRecord, role: str, provenance: Provenance, source: Mapping[str, Any]) -> str:
    """What an input was for, in a word."""
    if role == "base":
        return "base"
    if is_kept(role):
        return "kept"
    if role.startswith("validation"):
        return "looked at while training"
    if role == "never_knew":
        back = record.parameters.get("take_back")
        return "what it was before" if back else "asked what is said without it"
    if provenance.kind == "task-vector" or provenance.kind == "activation-statistics":
        return "taken from"
    if role.startswith("vector") and provenance.from_data:
        return "what was found"
    factor = source.get("factor")
    opposite = isinstance(factor, int | float) and factor < 0
    if provenance.kind == "adapter" and not provenance.edit:
        return "**removed**" if opposite else "**added**"
    return "**removed**" if provenance.removes != opposite else "**added**"


def figures(record: EditRecord) -> str:
    """How large the change is and how exactly it was stored, as a table; "" if nothing is known."""
    summary = record.summary
    rows: list[tuple[str, str]] = []

    def share(key: str, words: str, of: str) -> None:
        value = summary.get(key)
        if isinstance(value, int | float):
            rows.append((words, f"{percent(value, 2)} {of}"))

    if record.kind == "checkpoint":
        edited, copied = summary.get("edited"), summary.get("copied")
        if isinstance(edited, int) and isinstance(copied, int):
            rows.append(("tensors", f"{edited} edited, {copied} copied as bytes"))
        share("relative_change", "relative change `‖W' − W‖ / ‖W‖`", "")
        share("surviving_fraction", "elements whose change survived rounding", "")
        share("rounding_loss", "lost in rounding", "of the change's norm")
        if isinstance(check := summary.get("edit_check"), int | float):
            rows.append(("edit check (1 = what was written is what was meant)", f"{check:.4f}"))
    elif record.kind == "adapter":
        if "tensors" in summary and "rank" in summary:
            rows.append(("matrices", f"{summary['tensors']}, of rank up to {summary['rank']}"))
        if isinstance(count := summary.get("parameters"), int):
            rows.append(("parameters", f"{count:,}"))
        if isinstance(norm := summary.get("norm"), int | float):
            rows.append(("norm of the whole change", f"{norm:.4g}"))
        share("relative_change", "relative change `‖W' − W‖ / ‖W‖`", "")
        share("kept", "energy kept by truncation", "")
        share("rounding", "lost in rounding", "of what was kept")
        for key, words in (("left_out", "changed by the vector, left out here"),):
            if names := summary.get(key):
                rows.append((words, _names(names)))
    else:
        for key in ("examples", "tokens", "tensors", "matrices"):
            if isinstance(count := summary.get(key), int):
                rows.append((key, f"{count:,}"))
        norms = [facts["norm"] for facts in record.tensors.values() if "norm" in facts]
        if norms:
            rows.append(("norm `‖T‖`", f"{sum(norm**2 for norm in norms) ** 0.5:.4g}"))
    survived = [facts["survived"] for facts in record.tensors.values() if "survived" in facts]
    if survived:
        low, high, mean = min(survived), max(survived), sum(survived) / len(survived)
        rows.append(
            ("left of the task after discrimination",
             f"{percent(mean)} of its energy ({percent(low)} to {percent(high)})")
        )  # fmt: skip
    rows = [(words, value.strip()) for words, value in rows]
    return table(("figure", "value"), rows, frozenset({0})) if rows else ""


def _names(names: list[str]) -> str:
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"{code(str(names[0]))}{more}"


def unrelated(record: EditRecord) -> list[str]:
    """Vectors whose kinship with the base is in doubt, a line each."""
    lines = []
    for kin in record.lineage:
        if kin.get("verdict") == "related":
            continue
        cosine = kin.get("cosine")
        figure = f" (median cosine {cosine:.3f})" if isinstance(cosine, int | float) else ""
        label = code(shown_name({"name": kin.get("vector", "")}))
        lines.append(f"Lineage of {label}: **{literal(str(kin.get('verdict')))}**{figure}.")
    return lines


def checksums(record: EditRecord) -> str:
    """Size and SHA-256 of every file, as a table."""
    rows = [
        (code(name), size(facts["bytes"]), code(facts["sha256"]))
        for name, facts in record.files.items()
    ]
    return table(("file", "size", "SHA-256"), rows, frozenset({0, 2}))


@dataclass(frozen=True)
class _Layers:
    """Size of the change by layer and kind: means over tensors."""

    label: str
    values: dict[str, dict[int, float]]  # kind -> layer -> mean


def _layers(record: EditRecord) -> _Layers | None:
    for key, label in (
        ("relative_change", "relative change ‖W' − W‖ / ‖W‖"),
        ("relative", "relative size ‖T‖ / ‖W‖"),
        ("norm", "norm of the change"),
    ):
        grouped: dict[str, dict[int, list[float]]] = {}
        for name, facts in record.tensors.items():
            layer, value = layer_of(name), facts.get(key)
            if layer is not None and isinstance(value, int | float):
                grouped.setdefault(kind_of(name), {}).setdefault(layer, []).append(value)
        if grouped:
            means = {
                kind: {layer: sum(values) / len(values) for layer, values in sorted(layers.items())}
                for kind, layers in sorted(grouped.items())
            }
            return _Layers(label, means)
    return None


def layer_bars(record: EditRecord) -> str:
    """The size of the change by layer as bars of text; "" if no tensor belongs to a layer."""
    layers = _layers(record)
    if layers is None:
        return ""
    by_layer: dict[int, list[float]] = {}
    for kind, means in layers.values.items():
        if kind != "norm" or len(layers.values) == 1:  # as good as unchanged, and as many
            for layer, mean in means.items():
                by_layer.setdefault(layer, []).append(mean)
    means = {layer: sum(values) / len(values) for layer, values in sorted(by_layer.items())}
    top = max(means.values())
    relative = layers.label.startswith("relative")
    lines = [
        f"layer {layer:>3}  {'█' * round(_BAR * mean / top) if top > 0 else '':<{_BAR}}"
        f"  {percent(mean, 2) if relative else f'{mean:.4g}'}"
        for layer, mean in means.items()
    ]
    heading = re.sub("^relative (change|size)", r"Relative \1", layers.label)
    return f"{heading}, mean over each layer's matrices:\n\n{block(lines, 'text')}"


def layer_picture(record: EditRecord) -> bytes | None:
    """The size of the change by layer and kind, as a PNG; None without matplotlib or layers.

    The same record and the same matplotlib draw the same bytes.
    """
    layers = _layers(record)
    if layers is None or find_spec("matplotlib") is None:
        return None
    from matplotlib.figure import Figure  # pyplot takes twice as long to load

    figure = Figure(figsize=(9, 3), dpi=110)
    axes: Any = figure.subplots()
    for kind, means in layers.values.items():
        axes.plot(list(means), list(means.values()), marker="o", markersize=3, label=kind)
    axes.set(xlabel="layer", ylabel=layers.label, title="Where the weights changed")
    axes.xaxis.get_major_locator().set_params(integer=True)
    top = max(max(means.values()) for means in layers.values.values())
    axes.set_ylim(0, 1.15 * top if top > 0 else 1)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", bbox_inches="tight", metadata={"Software": None})
    return buffer.getvalue()
