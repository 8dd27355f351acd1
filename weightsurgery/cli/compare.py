"""Commands that compare two checkpoints and save their difference: diff, subspace."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

import typer

from weightsurgery.cli import console
from weightsurgery.cli.factors import Truncate
from weightsurgery.cli.look import Base
from weightsurgery.cli.opened import open_base, remarked
from weightsurgery.cli.options import Fit, Out, Overwrite, Show, Which, Work, written_path
from weightsurgery.cli.paged import Pages
from weightsurgery.cli.panels import tensor_option
from weightsurgery.cli.spread import options

if TYPE_CHECKING:
    from weightsurgery.checkpoint.reader import Checkpoint

__all__ = ["diff", "subspace"]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What is compared, and where the difference goes."""

    base: Base
    finetuned: Annotated[str, typer.Argument(metavar="FINETUNED", help="The checkpoint after.")]
    which: Which
    truncate: Truncate
    fit: Fit
    work: Work
    show: Show
    out: Annotated[
        str | None,
        typer.Option(
            "--out", "-o", metavar="DIR", help="Save the task vector here.", callback=written_path
        ),
    ] = None
    overwrite: Overwrite = False
    remote: Annotated[
        bool | None,
        tensor_option(
            "--remote/--no-remote",
            help="Of checkpoints on the Hub fetch the bytes of the tensors that are read, and no"
            " others. Default: where only some are selected.",
        ),
    ] = None
    dry_run: Annotated[
        bool,
        typer.Option(help="Only say what would be read, written and held, from headers alone."),
    ] = False

    @property
    def opener(self) -> Callable[[str], Checkpoint]:
        """How checkpoints of the Hub are opened: by ranges where only a part is wanted."""
        from weightsurgery.checkpoint.reader import Checkpoint
        from weightsurgery.checkpoint.remote import open_remote

        which = self.which
        narrow = any((which.include, which.exclude, which.layers, which.targets))
        remote = (narrow if self.remote is None else self.remote) or self.dry_run
        return open_remote if remote else Checkpoint.open


@dataclass(frozen=True, kw_only=True)
class SavedComparison(Comparison):
    """A comparison of which the difference is saved in any case."""

    out: Out = field()


@options
def diff(given: Comparison, pages: Pages) -> None:
    """Show, and save, the difference of two checkpoints layer by layer.

    Size, relative size, cosine, effective rank, sparsity, and how much of a plain negation would
    survive rounding. With --rank or --energy matrices are saved as low-rank factors.

    Example:  ws diff ./base ./finetuned -o ./vector
    Example:  ws diff org/base org/finetuned --include 'model.layers.0.*'
    """
    pages.check()
    _compare(given, pages, matrices_only=False)


@options
def subspace(given: SavedComparison) -> None:
    """Save the leading low-rank factors of each matrix's change.

    Example:  ws subspace ./base ./finetuned -o ./subspace --rank 32
    """
    from weightsurgery.errors import EditError

    if given.truncate.rule() is None:
        raise EditError("no rank", "Pass --rank K, --rank auto or --energy E.")
    _compare(given, Pages(), matrices_only=True)


def _compare(given: Comparison, pages: Pages, matrices_only: bool) -> None:
    from weightsurgery.report.plans import comparison_lines
    from weightsurgery.report.tables import difference_tables
    from weightsurgery.surgery import compare
    from weightsurgery.surgery.diff_plan import plan_diff
    from weightsurgery.vectors.sources import open_vector

    spectra: dict[str, list[float]] | None = {} if pages else None
    leading = None
    fit, show, out, rule = given.fit, given.show, given.out, given.truncate.rule()
    settings: dict[str, Any] = {
        "selection": given.which.selection("all-linear" if matrices_only else "all"),
        "rule": rule,
        "save_to": out,
        "matrices_only": matrices_only,
        "overwrite": given.overwrite,
    }
    with ExitStack() as stack:
        opened = stack.enter_context(open_base(given.base, fit, given.opener))
        vector = open_vector(opened, [given.finetuned], opener=given.opener, **fit.policies)
        stack.callback(vector.close)
        remarked(opened, show)
        console.notices(vector.notes(), show)
        if given.dry_run:
            plan = plan_diff(opened, vector, workers=given.work.workers, **settings)
            console.result(show, lambda: asdict(plan), lambda: comparison_lines(plan, out))
            return
        with console.progress(show) as progress:
            difference = compare.diff(
                opened,
                vector,
                **settings,
                **vars(given.work),
                command=show.command,
                progress=progress,
                spectra=spectra,
            )
            if pages and rule is None and not opened.remote:
                from weightsurgery.surgery.spectra import leading_spectra

                sizes = {row.name: row.norm for row in difference.tensors}
                leading = leading_spectra(opened, vector, sizes, progress=progress)
    document = {**asdict(difference), "saved": out} if show.json or pages else {}
    console.result(
        show, lambda: document, lambda: difference_tables(difference, every=show.verbose)
    )
    for kin in difference.lineage:
        if kin.verdict == "unrelated":
            console.notice(
                f"{kin.vector} does not derive from {given.base} (cosine {kin.cosine:.3f}):"
                " edits with it will be refused.",
                show,
            )
    if difference.fetched:
        fetched = f"{difference.fetched / 1e6:,.2f} MB"
        console.notice(f"Fetched {fetched} of weight files from the Hub.", show)
    if out is not None:
        console.notice(f"Saved the task vector in {out}.", show)
    if pages:
        from weightsurgery.report.sections import difference_sections, record_section
        from weightsurgery.report.spectra import Shown, shown

        record = None if difference.saved is None else vars(difference.saved)
        known = Shown(spectra or {}) if leading is None else shown(leading)
        sections = difference_sections(document, known.values, known.note, known.unknown)
        sections = [*sections, record_section(show.command, record)]
        pages.write(f"{given.finetuned} − {given.base}", sections, show)
