"""Results as tables of text: what the terminal prints and the page shows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from weightsurgery.checkpoint.inspection import Inspection
    from weightsurgery.checkpoint.layout import TensorEntry
    from weightsurgery.checkpoint.record import EditRecord
    from weightsurgery.surgery.compare import Comparison
    from weightsurgery.surgery.difference import TensorDifference
    from weightsurgery.surgery.overlap import PairOverlap, TensorOverlap

__all__ = [
    "Table",
    "difference_tables",
    "edit_tables",
    "facts_table",
    "inspection_tables",
    "lineage_rows",
    "overlap_tables",
    "percent",
    "percent_range",
    "size",
    "survived_rows",
    "verified_line",
]


@dataclass(frozen=True)
class Table:
    """A table of text.

    Attributes:
        title: Above it.
        columns: Headings.
        rows: Cells, as many per row as there are headings.
        note: Below it.
        left: Numbers of the columns that hold words rather than figures.
    """

    title: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    note: str = ""
    left: frozenset[int] = frozenset({0})


def facts_table(title: str, rows: Iterable[tuple[str, ...]], note: str = "") -> Table:
    """A table of facts: what each is called, and what it is, both in words."""
    return Table(title, ("", ""), list(rows), note, frozenset({0, 1}))


def size(count: float) -> str:
    """A number of bytes, in decimal units."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.2f} TB"


def _count(number: int) -> str:
    for limit, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= limit:
            return f"{number / limit:.2f} {unit}"
    return str(number)


def percent(share: float | None, digits: int = 1, missing: str = "", unit: str = " %") -> str:
    """A share in percent, with decimal places; what stands for a missing one."""
    return missing if share is None else f"{100 * share:.{digits}f}{unit}"


def percent_range(bounds: Sequence[float] | None, factor: float = 100) -> str:
    """An interval in percent; "" for none. ``factor`` is 1 where it is in percent already."""
    return "" if bounds is None else f"{factor * bounds[0]:.1f} – {factor * bounds[1]:.1f} %"


def _number(value: float | None, digits: int = 3) -> str:
    return "" if value is None else f"{value:.{digits}g}"


def _shape(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape)) if shape else "scalar"


def inspection_tables(
    inspection: Inspection, entries: Sequence[TensorEntry] | None = None
) -> list[str | Table]:
    """A checkpoint at a glance.

    Args:
        inspection: What it holds.
        entries: Its tensors, to list each of them and the shards instead of groups.
    """
    facts = [
        ("architecture", inspection.architecture or "unknown (not needed)"),
        ("parameters", f"{_count(inspection.parameters)} ({inspection.parameters:,})"),
        ("size", size(inspection.nbytes)),
        (
            "tensors",
            f"{inspection.tensors} in {len(inspection.shards)} file(s), {inspection.layers} layers",
        ),
        ("dtypes", ", ".join(f"{dtype} {_count(n)}" for dtype, n in inspection.dtypes.items())),
        ("kinds", ", ".join(f"{kind} {_count(n)}" for kind, n in inspection.kinds.items())),
        ("tied", ", ".join(f"{a} = {b}" for a, b in inspection.tied.items()) or "no"),
        ("quantised", inspection.quantised or "no"),
    ]
    facts += [("note", text) for text in inspection.remarks]
    if inspection.revision:
        facts.insert(0, ("revision", inspection.revision))
    tables: list[str | Table] = [facts_table(inspection.name, facts)]
    if entries is None:
        columns: tuple[str, ...] = ("name", "kind", "dtype", "shape", "count", "parameters")
        groups = [
            (g.name, g.kind, g.dtype, _shape(g.shape), str(g.count), _count(g.parameters))
            for g in inspection.groups
        ]
        tables.append(Table("Tensors", columns, groups, left=frozenset({0, 1, 2})))
        return tables
    tensors = [(e.name, e.dtype, _shape(e.shape), _count(e.numel), e.shard) for e in entries]
    columns = ("name", "dtype", "shape", "parameters", "file")
    shards = [(name, size(count)) for name, count in inspection.shards.items()]
    tables.append(Table("Tensors", columns, tensors, left=frozenset({0, 1, 4})))
    tables.append(Table("Shards", ("file", "size"), shards))
    return tables


def _depth(row: TensorDifference | TensorOverlap) -> int:
    """Sorting key: by layer, what is outside the layers first."""
    return -1 if row.layer is None else row.layer


def _difference_row(row: TensorDifference, with_rank: bool) -> tuple[str, ...]:
    cells = (
        row.name,
        _shape(row.shape),
        _number(row.norm),
        percent(row.relative, 2),
        f"{row.cosine:.5f}",
        _number(row.effective_rank),
        percent(row.sparsity),
        percent(row.surviving),
    )
    if not with_rank:
        return cells
    residual = "" if row.residual is None else f"{row.residual:.1e}"
    return (*cells, "" if row.rank is None else str(row.rank), percent(row.kept), residual)


def difference_tables(comparison: Comparison, every: bool = False) -> list[str | Table]:
    """A change layer by layer, or tensor by tensor.

    Args:
        comparison: The differences.
        every: Every tensor instead of one row per layer and kind.
    """
    with_rank = any(row.rank is not None for row in comparison.tensors)
    relative = percent(comparison.relative, 2)
    note = f"‖T‖ = {comparison.norm:.4g}, {relative} of ‖W‖, over all these tensors."
    if every:
        columns: tuple[str, ...] = (
            "tensor", "shape", "‖T‖", "‖T‖/‖W‖", "cosine", "eff. rank", "unchanged", "survives −T",
        )  # fmt: skip
        if with_rank:
            columns = (*columns, "rank", "energy kept", "svd error")
        rows = [_difference_row(row, with_rank) for row in sorted(comparison.tensors, key=_depth)]
        return [Table("Difference", columns, rows, note)]
    groups: dict[tuple[str, str], list[TensorDifference]] = {}
    for row in sorted(comparison.tensors, key=_depth):
        layer = "–" if row.layer is None else str(row.layer)
        groups.setdefault((layer, row.kind), []).append(row)
    columns = ("layer", "kind", "tensors", "‖T‖", "‖T‖/‖W‖", "eff. rank", "survives −T")
    if with_rank:
        columns = (*columns, "rank", "energy kept")
    rows = []
    for (layer, kind), members in groups.items():
        moved = sum(row.norm**2 for row in members)
        weights = sum((row.norm / row.relative) ** 2 for row in members if row.relative > 0)
        ranks = [row.effective_rank for row in members if row.effective_rank is not None]
        cells: tuple[str, ...] = (
            layer,
            kind,
            str(len(members)),
            _number(moved**0.5),
            percent((moved / weights) ** 0.5 if weights else 0.0, 2),
            _number(sum(ranks) / len(ranks)) if ranks else "",
            percent(sum(row.surviving for row in members) / len(members)),
        )
        if with_rank:
            energies = [row.kept for row in members if row.kept is not None]
            taken = [row.rank for row in members if row.rank is not None]
            cells = (
                *cells,
                f"{min(taken)}–{max(taken)}" if taken and min(taken) < max(taken)
                else "".join(map(str, taken[:1])),
                percent(sum(energies) / len(energies)) if energies else "",
            )  # fmt: skip
        rows.append(cells)
    note += " Effective rank and survival are means over tensors."
    return [Table("Difference", columns, rows, note, left=frozenset({0, 1}))]


def _pair_cells(pair: PairOverlap) -> tuple[str, ...]:
    return (
        f"{pair.first} / {pair.second}",
        f"{pair.inputs:.3f}",
        f"{pair.outputs:.3f}",
        f"{pair.chance:.3f}",
        f"{pair.cosine:+.3f}",
        f"{pair.smallest_angle:.3f}",
    )


def overlap_tables(
    rows: Sequence[TensorOverlap], means: Sequence[PairOverlap], every: bool = False
) -> list[str | Table]:
    """How much pairs of tasks share, on average and by layer.

    Args:
        rows: Each tensor's pairs.
        means: Each pair's mean.
        every: Also every tensor.
    """
    figures = ("inputs", "outputs", "chance", "cosine", "smallest angle")
    note = (
        f"Means over {len(rows)} matrices. inputs, outputs: overlap of the leading right and left"
        " singular subspaces, 0 to 1; chance: random ones; angle in radians."
    )
    tables: list[str | Table] = [
        Table("Overlap", ("pair", *figures), [_pair_cells(pair) for pair in means], note)
    ]
    layers: dict[str, dict[tuple[str, str], list[float]]] = {}
    for row in sorted(rows, key=_depth):
        layer = "–" if row.layer is None else str(row.layer)
        for pair in row.pairs:
            key = (pair.first, pair.second)
            layers.setdefault(layer, {}).setdefault(key, []).append(pair.inputs)
    names = [(pair.first, pair.second) for pair in means]
    by_layer = [
        (layer, *(f"{sum(v) / len(v):.3f}" if (v := pairs.get(key)) else "" for key in names))
        for layer, pairs in layers.items()
    ]
    headings = ("layer", *(f"{a} / {b}" for a, b in names))
    tables.append(Table("Overlap of inputs by layer", headings, by_layer))
    if every:
        listed = [
            (row.name, *_pair_cells(pair)) for row in sorted(rows, key=_depth) for pair in row.pairs
        ]
        columns = ("tensor", "pair", *figures)
        tables.append(Table("Every matrix", columns, listed, left=frozenset({0, 1})))
    return tables


def edit_tables(record: EditRecord, every: bool = False) -> list[str | Table]:
    """What an edit did.

    Args:
        record: The output's record.
        every: Also every edited tensor.
    """
    summary = record.summary
    facts = [
        ("tensors", f"{summary['edited']} edited, {summary['copied']} copied as bytes"),
        ("relative change", percent(summary["relative_change"], 2)),
        ("surviving rounding", f"{percent(summary['surviving_fraction'], 2)} of changed elements"),
        ("lost in rounding", f"{percent(summary['rounding_loss'], 2)} of the change's norm"),
        ("edit check", f"{summary['edit_check']:.4f} (1 = what was meant)"),
    ]
    facts += survived_rows(record)
    facts += lineage_rows(record.lineage)
    facts += used_rows(record)
    tables: list[str | Table] = [facts_table("Edit", facts)]
    if every:
        columns = ("tensor", "change", "survives", "edit check", "rank", "survived discr.")
        rows = [
            (
                name,
                percent(row["relative_change"], 3),
                percent(row["surviving_fraction"]),
                f"{row['edit_check']:.4f}",
                str(row.get("rank", "")),
                percent(row.get("survived")),
            )
            for name, row in record.tensors.items()
        ]
        tables.append(Table("Edited tensors", columns, rows))
    return tables


def lineage_rows(lineage: Iterable[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Whether each vector derives from the base, as far as it is known."""
    return [
        (
            f"lineage of {kin['vector']}",
            kin["verdict"] + ("" if kin["cosine"] is None else f", cosine {kin['cosine']:.4f}"),
        )
        for kin in lineage
    ]


def used_rows(record: EditRecord) -> list[tuple[str, str]]:
    """How much of each vector fits the base."""
    rows = []
    for source in record.inputs.values():
        if "fitted" in source:
            fitted, label = source["fitted"], str(source["name"]).rstrip("/").rsplit("/", 1)[-1]
            share = f"{percent(fitted['share'])} of its {fitted['measure']}"
            rows.append(
                (f"used of {label}", f"{fitted['tensors']} of {fitted['of']} tensors, {share}")
            )
    selected = record.summary.get("selected")
    if selected is not None and selected["tensors"] < selected["of"]:
        about = "about " if selected["estimated"] else ""
        share = f"{about}{percent(selected['share'])} of the vector's squared norm"
        rows.append(("selected", f"{selected['tensors']} of {selected['of']} tensors, {share}"))
    return list(dict.fromkeys(rows))


def survived_rows(record: EditRecord) -> list[tuple[str, str]]:
    """What discrimination left of the task, where there was any."""
    survived = [facts["survived"] for facts in record.tensors.values() if "survived" in facts]
    if not survived:
        return []
    low, high = min(survived), max(survived)
    mean = sum(survived) / len(survived)
    figure = f"{percent(mean)} of the task's energy ({percent(low)} to {percent(high)})"
    return [("survived discrimination", figure)]


def verified_line(out: str, record: EditRecord) -> str:
    """What ``ws verify`` says of a good output."""
    total = sum(int(facts["bytes"]) for facts in record.files.values())
    return f"{out}: {len(record.files)} files, {size(total)}, all as recorded."
