"""Commands that write an edited model: negate, add, project, learn."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from weightsurgery.cli import console
from weightsurgery.cli.data_options import FromData
from weightsurgery.cli.factors import Share, Truncate, rank_rule
from weightsurgery.cli.from_data import edit_from_data, from_data, kept_data
from weightsurgery.cli.opened import open_base, refuse_running, remarked
from weightsurgery.cli.options import Fit, Show, Store, Which, Work, written_line
from weightsurgery.cli.paged import Pages
from weightsurgery.cli.panels import machine_option
from weightsurgery.cli.spread import options

if TYPE_CHECKING:
    from weightsurgery.checkpoint.reader import Checkpoint
    from weightsurgery.errors import EditError
    from weightsurgery.surgery.apply import AdapterStorage, Storage
    from weightsurgery.surgery.edit import Edit

__all__ = ["add", "learn", "negate", "project"]

Base = Annotated[str, typer.Argument(metavar="BASE", help="The checkpoint to edit.")]
Vectors = Annotated[
    list[str],
    typer.Argument(metavar="VECTOR", help="Changes of BASE; VECTOR:0.5 scales one of several."),
]
Scale = Annotated[float, typer.Option(metavar="λ", help="Factor of the change.")]
Cluster = Annotated[
    str | None,
    machine_option(
        metavar="ray[://HOST:PORT]",
        help="Spread the work over a Ray cluster: the one in RAY_ADDRESS, this machine's, or one"
        " started for this run. Inputs and output lie on storage that its nodes share; --workers"
        " bounds the tasks under way.",
    ),
]


@options
def negate(
    base: Base,
    vectors: Vectors,
    store: Store,
    which: Which,
    truncate: Truncate,
    fit: Fit,
    work: Work,
    show: Show,
    pages: Pages,
    scale: Scale = 1.0,
    cluster: Cluster = None,
) -> None:
    """Take a task vector away: W − λT (task arithmetic).

    Example:  ws negate ./base ./finetuned -o ./edited --scale 0.7
    Example:  ws negate ./base ./subspace -o ./adapter --as adapter
    """
    _plain("negate", base, vectors, scale, store, which, truncate, fit, work, show, pages, cluster)


@options
def add(
    base: Base,
    vectors: Vectors,
    store: Store,
    which: Which,
    truncate: Truncate,
    fit: Fit,
    work: Work,
    show: Show,
    pages: Pages,
    scale: Scale = 1.0,
    cluster: Cluster = None,
) -> None:
    """Add task vectors: W + λT; several VECTOR:scale combine.

    Example:  ws add ./base ./finetuned/a:0.5 ./finetuned/b:0.3 -o ./edited
    """
    _plain("add", base, vectors, scale, store, which, truncate, fit, work, show, pages, cluster)


@options
def project(
    base: Base,
    forget: Annotated[
        list[str], typer.Option(metavar="DATA|VECTOR", help="What to forget; several add up.")
    ],
    share: Share,
    data: FromData,
    store: Store,
    which: Which,
    truncate: Truncate,
    fit: Fit,
    work: Work,
    show: Show,
    pages: Pages,
    scale: Scale = 1.0,
    cluster: Cluster = None,
) -> None:
    """Forget a task, less what it shares with what to keep (UNLEARN).

    W − λT', a reconstruction of arXiv 2408.04140. Biases and norms stay as they are. A vector is
    truncated (--rank 64) and discriminated; for a data set a change is trained, beside others of
    its kind that stay, and saved as OUT.vector.

    Example:  ws project ./base --forget authors.jsonl --keep more.jsonl -o ./out
    Example:  ws project ./base --forget ./tuned/a --keep ./tuned/b -o ./edited
    """
    _discriminating(
        "project", base, forget, scale, share, truncate, data, store, which, fit, work, show, pages,
        cluster,
    )  # fmt: skip


@options
def learn(
    base: Base,
    task: Annotated[
        list[str], typer.Option(metavar="DATA|VECTOR", help="What to learn; several add up.")
    ],
    share: Share,
    data: FromData,
    store: Store,
    which: Which,
    truncate: Truncate,
    fit: Fit,
    work: Work,
    show: Show,
    pages: Pages,
    scale: Scale = 1.0,
    cluster: Cluster = None,
) -> None:
    """Learn a task, less what it shares with what to keep (LEARN).

    W + λT', with T' as for 'ws project'.

    Example:  ws learn ./base --task news.jsonl --keep general.jsonl -o ./edited
    Example:  ws learn ./base --task ./adapter --keep ./tuned/poets -o ./edited
    """
    _discriminating(
        "learn", base, task, scale, share, truncate, data, store, which, fit, work, show, pages,
        cluster,
    )  # fmt: skip


def _plain(
    name: str,
    base: str,
    vectors: list[str],
    scale: float,
    store: Store,
    which: Which,
    truncate: Truncate,
    fit: Fit,
    work: Work,
    show: Show,
    pages: Pages,
    cluster: str | None,
) -> None:
    from weightsurgery.checkpoint.reader import Checkpoint
    from weightsurgery.checkpoint.remote import open_remote
    from weightsurgery.surgery.edits import PLAIN
    from weightsurgery.vectors.sources import open_vector

    storage = store.truncated(truncate)
    opener = open_remote if store.dry_run else Checkpoint.open
    with open_base(base, fit, opener) as opened:
        vector = open_vector(opened, vectors, fit.vocab, fit.missing, opener, fit.partial)
        edit = PLAIN[name](vector, scale)
        _apply(edit, opened, storage, store, which, work, show, pages, cluster)


def _discriminating(
    name: str,
    base: str,
    task: list[str],
    scale: float,
    share: Share,
    truncate: Truncate,
    data: FromData,
    store: Store,
    which: Which,
    fit: Fit,
    work: Work,
    show: Show,
    pages: Pages,
    cluster: str | None,
) -> None:
    if from_data(task):
        if cluster is not None:
            raise _trains()
        edit_from_data(
            name, base, task, scale, share, truncate, data, store, which, fit, work, show, pages
        )  # fmt: skip
        return
    from weightsurgery.algebra.lowrank import Rank
    from weightsurgery.checkpoint.reader import Checkpoint
    from weightsurgery.checkpoint.remote import open_remote
    from weightsurgery.errors import EditError
    from weightsurgery.surgery.edits import DISCRIMINATING
    from weightsurgery.vectors.sources import open_keep, open_vector, split_data

    storage = store.storage()
    files, others = split_data(share.keep or ())
    if files and cluster is not None:
        raise _trains()
    data.refuse_with_vectors(keeps_data=bool(files))
    if files:
        refuse_running(fit, "data to keep")
    if files and share.side == "soft":  # before a model is run for them
        raise EditError(
            "--side soft with data to keep: its statistics would have a ridge of their own",
            "Keep vectors alone, or take --side right.",
        )
    opener = open_remote if store.dry_run and not files else Checkpoint.open
    with open_base(base, fit, opener) as opened:
        vector = open_vector(opened, task, fit.vocab, fit.missing, opener, fit.partial)
        keep = open_keep(opened, others, fit.vocab, fit.missing, opener, fit.partial)
        with kept_data(opened, files, vector, data, store, which, work, show) as gathered:
            edit = DISCRIMINATING[name](
                vector,
                keep.vectors,
                truncate.rule() or Rank(64),
                rank_rule(share.keep_rank, None, "--keep-rank"),
                share.side,
                share.basis,
                scale,
                store.seed,
                (*keep.inputs, *gathered),
                share.epsilon,
            )
            _apply(edit, opened, storage, store, which, work, show, pages, cluster)


def _trains() -> EditError:
    from weightsurgery.errors import EditError

    return EditError(
        "--cluster with data: a model is run on them, on this machine",
        "Leave it out; or save a vector first ('ws identify'), and give that.",
    )


def _apply(
    edit: Edit,
    base: Checkpoint,
    storage: Storage | AdapterStorage,
    store: Store,
    which: Which,
    work: Work,
    show: Show,
    pages: Pages,
    cluster: str | None,
) -> None:
    from weightsurgery.report.exported import written_tables
    from weightsurgery.report.plans import planned_lines
    from weightsurgery.surgery.apply import apply, plan_edit

    if store.check:
        _checkable(store)
    pages.check()
    remarked(base, show)
    default = "all-linear" if edit.factors else "all"
    selection = which.selection(default, store.layer_scale)
    if store.dry_run:
        plan = plan_edit(edit, base, store.out, selection, storage, work.workers, store.overwrite)
        if show.json:
            console.document(plan.summary())
        else:
            console.show(*planned_lines(plan, store.out))
        for line in dict.fromkeys(
            line for each in edit.vectors().values() for line in each.notes()
        ):
            console.notice(line, show)
        return
    goes_on = "the same command goes on where this one stopped."
    if store.as_ != "checkpoint":
        goes_on = "nothing was written."
    with console.progress(show, interrupted=goes_on) as progress:
        done = apply(
            edit,
            base,
            store.out,
            selection=selection,
            storage=storage,
            device=work.device,
            workers=work.workers,
            overwrite=store.overwrite,
            allow_unrelated=store.allow_unrelated,
            command=show.command,
            progress=progress,
            cluster=cluster,
        )
    if done.resumed:
        console.notice(f"Resumed: {done.resumed} tensors were finished already.", show)
    guard = _checked(base, store, work, show) if store.check else None
    if show.json:
        checked = {} if guard is None else {"guard": guard}
        console.document({"out": store.out, **asdict(done.record), **checked})
    else:
        console.show(*written_tables(done.record, every=show.verbose))
        if guard is not None:
            from weightsurgery.report.guarded import guard_tables

            console.show(*guard_tables(guard))
    if guard is not None and not guard["inside"]:
        from weightsurgery.learning.guard import harm

        console.notice(harm(guard), show)
    for text in done.notices:
        console.notice(text, show)
    console.notice(written_line(store.out, done.record.kind), show)
    pages.of_output(store.out, show, guard)


def _checkable(store: Store) -> None:
    """Refuse ``--check`` before anything is written, where it could not be done after.

    Raises:
        WeightSurgeryError: There is no model to run, or nothing to run it with.
    """
    from weightsurgery.cli.from_data import installed
    from weightsurgery.errors import EditError

    if store.as_ != "checkpoint":
        raise EditError(
            f"--check with --as {store.as_}: the guard runs a whole checkpoint",
            "Leave it out, or write a checkpoint.",
        )
    installed()


def _checked(base: Checkpoint, store: Store, work: Work, show: Show) -> dict[str, Any]:
    """What the guard finds of the output."""
    from weightsurgery.learning.guard import compared

    written = f"{store.out} is whole; what --check finds is not."
    with console.progress(show, unit="texts", interrupted=written) as progress:
        return compared(base.path, store.out, work.device, progress).to_dict()
