"""Commands that compare two checkpoints and save their difference: diff, subspace."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from weightsurgery.cli import console
from weightsurgery.cli.factors import Truncate
from weightsurgery.cli.look import Base
from weightsurgery.cli.opened import open_base, remarked
from weightsurgery.cli.options import Fit, Show, Which, Work, written_path
from weightsurgery.cli.paged import Pages
from weightsurgery.cli.panels import tensor_option
from weightsurgery.cli.spread import options

if TYPE_CHECKING:
    from weightsurgery.checkpoint.reader import Checkpoint

__all__ = ["diff", "subspace"]

Remote = Annotated[
    bool | None,
    tensor_option(
        "--remote/--no-remote",
        help="Of checkpoints on the Hub fetch the bytes of the tensors that are read, and no"
        " others. Default: where only some are selected.",
    ),
]
Overwrite = Annotated[bool, typer.Option(help="Replace an existing output of ws.")]
DryRun = Annotated[
    bool, typer.Option(help="Only say what would be read, written and held, from headers alone.")
]


@options
def diff(
    base: Base,
    finetuned: Annotated[str, typer.Argument(metavar="FINETUNED", help="What came of it.")],
    which: Which,
    truncate: Truncate,
    fit: Fit,
    work: Work,
    show: Show,
    pages: Pages,
    out: Annotated[
        str | None,
        typer.Option(
            "--out", "-o", metavar="DIR", help="Save the task vector here.", callback=written_path
        ),
    ] = None,
    overwrite: Overwrite = False,
    remote: Remote = None,
    dry_run: DryRun = False,
) -> None:
    """Show, and save, the difference of two checkpoints layer by layer.

    Size, relative size, cosine, effective rank, sparsity, and how much of a plain negation would
    survive rounding. With --rank or --energy matrices are saved as low-rank factors.

    Example:  ws diff ./base ./finetuned -o ./vector
    Example:  ws diff org/base org/finetuned --include 'model.layers.0.*'
    """
    asked = _Compared(base, finetuned, out, overwrite, remote, dry_run, matrices_only=False)
    _compare(asked, which, truncate, fit, work, show, pages)


@options
def subspace(
    base: Base,
    finetuned: Annotated[str, typer.Argument(metavar="FINETUNED", help="What came of it.")],
    which: Which,
    truncate: Truncate,
    fit: Fit,
    work: Work,
    show: Show,
    out: Annotated[
        str,
        typer.Option(
            "--out", "-o", metavar="DIR", help="Directory to write.", callback=written_path
        ),
    ],
    overwrite: Overwrite = False,
    remote: Remote = None,
    dry_run: DryRun = False,
) -> None:
    """Save the leading low-rank factors of each matrix's change.

    Example:  ws subspace ./base ./finetuned -o ./subspace --rank 32
    """
    from weightsurgery.errors import EditError

    if truncate.rule() is None:
        raise EditError("no rank", "Pass --rank K, --rank auto or --energy E.")
    asked = _Compared(base, finetuned, out, overwrite, remote, dry_run, matrices_only=True)
    _compare(asked, which, truncate, fit, work, show, None)


@dataclass(frozen=True)
class _Compared:
    """What is compared, and where to."""

    base: str
    finetuned: str
    out: str | None
    overwrite: bool
    remote: bool | None
    dry_run: bool
    matrices_only: bool

    def opener(self, which: Which) -> Callable[[str], Checkpoint]:
        """How checkpoints of the Hub are opened: by ranges where only a part is wanted."""
        from weightsurgery.checkpoint.reader import Checkpoint
        from weightsurgery.checkpoint.remote import open_remote

        narrow = any((which.include, which.exclude, which.layers, which.targets))
        remote = (narrow if self.remote is None else self.remote) or self.dry_run
        return open_remote if remote else Checkpoint.open


def _compare(
    asked: _Compared,
    which: Which,
    truncate: Truncate,
    fit: Fit,
    work: Work,
    show: Show,
    pages: Pages | None,
) -> None:
    from weightsurgery.report.plans import comparison_lines
    from weightsurgery.report.tables import difference_tables
    from weightsurgery.surgery import compare
    from weightsurgery.surgery.diff_plan import plan_diff
    from weightsurgery.vectors.sources import open_vector

    if pages is not None:
        pages.check()
    spectra: dict[str, list[float]] | None = {} if pages else None
    looked = None
    base, out, rule, opener = asked.base, asked.out, truncate.rule(), asked.opener(which)
    selection = which.selection("all-linear" if asked.matrices_only else "all")
    with ExitStack() as stack:
        opened = stack.enter_context(open_base(base, fit, opener))
        vector = open_vector(opened, [asked.finetuned], fit.vocab, fit.missing, opener, fit.partial)
        stack.callback(vector.close)
        remarked(opened, show)
        for line in vector.notes():
            console.notice(line, show)
        if asked.dry_run:
            plan = plan_diff(
                opened,
                vector,
                selection=selection,
                rule=rule,
                save_to=out,
                matrices_only=asked.matrices_only,
                overwrite=asked.overwrite,
                workers=work.workers,
            )
            if show.json:
                console.document(asdict(plan))
            else:
                console.show(*comparison_lines(plan, out))
            return
        with console.progress(show) as progress:
            found = compare.diff(
                opened,
                vector,
                selection=selection,
                rule=rule,
                save_to=out,
                matrices_only=asked.matrices_only,
                overwrite=asked.overwrite,
                device=work.device,
                workers=work.workers,
                command=show.command,
                progress=progress,
                spectra=spectra,
            )
            if pages and rule is None and not opened.remote:
                from weightsurgery.surgery.spectra import leading_spectra

                sizes = {row.name: row.norm for row in found.tensors}
                looked = leading_spectra(opened, vector, sizes, progress=progress)
    document = {**asdict(found), "saved": out} if show.json or pages else {}
    if show.json:
        console.document(document)
    else:
        console.show(*difference_tables(found, every=show.verbose))
    for kin in found.lineage:
        if kin.verdict == "unrelated":
            console.notice(
                f"{kin.vector} does not derive from {base} (cosine {kin.cosine:.3f}):"
                " edits with it will be refused.",
                show,
            )
    if found.fetched:
        console.notice(f"Fetched {found.fetched / 1e6:,.2f} MB of weight files from the Hub.", show)
    if out is not None:
        console.notice(f"Saved the task vector in {out}.", show)
    if pages:
        from weightsurgery.report.sections import difference_sections, record_section
        from weightsurgery.report.spectra import Shown, shown

        record = None if found.saved is None else vars(found.saved)
        known = Shown(spectra or {}) if looked is None else shown(looked)
        sections = difference_sections(document, known.values, known.note, known.unknown)
        pages.write(
            f"{asked.finetuned} − {base}", [*sections, record_section(show.command, record)], show
        )
