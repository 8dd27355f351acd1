"""Commands that write an edited model: negate, add, project, learn."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from weightsurgery.cli import console
from weightsurgery.cli.data_options import FromData
from weightsurgery.cli.edit_options import Base, EditOptions
from weightsurgery.cli.factors import Share, rank_rule
from weightsurgery.cli.from_data import edit_from_data, from_data, installed, kept_data
from weightsurgery.cli.opened import open_base, refuse_running, remarked
from weightsurgery.cli.options import written_line
from weightsurgery.cli.spread import options

if TYPE_CHECKING:
    from weightsurgery.checkpoint.reader import Checkpoint
    from weightsurgery.errors import EditError
    from weightsurgery.surgery.apply import AdapterStorage, Storage
    from weightsurgery.surgery.edit import Edit

__all__ = ["add", "learn", "negate", "project"]

Vectors = Annotated[
    list[str],
    typer.Argument(metavar="VECTOR", help="Changes of BASE; VECTOR:0.5 scales one of several."),
]


@options
def negate(base: Base, vectors: Vectors, given: EditOptions) -> None:
    """Take a task vector away: W − λT (task arithmetic).

    Example:  ws negate ./base ./finetuned -o ./edited --scale 0.7
    Example:  ws negate ./base ./subspace -o ./adapter --as adapter
    """
    _plain("negate", base, vectors, given)


@options
def add(base: Base, vectors: Vectors, given: EditOptions) -> None:
    """Add task vectors: W + λT; several VECTOR:scale combine.

    Example:  ws add ./base ./finetuned/a:0.5 ./finetuned/b:0.3 -o ./edited
    """
    _plain("add", base, vectors, given)


@options
def project(
    base: Base,
    forget: Annotated[
        list[str], typer.Option(metavar="DATA|VECTOR", help="What to forget; several add up.")
    ],
    share: Share,
    data: FromData,
    given: EditOptions,
) -> None:
    """Forget a task, less what it shares with what to keep (UNLEARN).

    W − λT', a reconstruction of arXiv 2408.04140. Biases and norms stay as they are. A vector is
    truncated (--rank 64) and discriminated; for a data set a change is trained, beside others of
    its kind that stay, and saved as OUT.vector.

    Example:  ws project ./base --forget authors.jsonl --keep more.jsonl -o ./out
    Example:  ws project ./base --forget ./tuned/a --keep ./tuned/b -o ./edited
    """
    _discriminating("project", base, forget, share, data, given)


@options
def learn(
    base: Base,
    task: Annotated[
        list[str], typer.Option(metavar="DATA|VECTOR", help="What to learn; several add up.")
    ],
    share: Share,
    data: FromData,
    given: EditOptions,
) -> None:
    """Learn a task, less what it shares with what to keep (LEARN).

    W + λT', with T' as for 'ws project'.

    Example:  ws learn ./base --task news.jsonl --keep general.jsonl -o ./edited
    Example:  ws learn ./base --task ./adapter --keep ./tuned/poets -o ./edited
    """
    _discriminating("learn", base, task, share, data, given)


def _plain(name: str, base: str, vectors: list[str], given: EditOptions) -> None:
    from weightsurgery.checkpoint.reader import Checkpoint
    from weightsurgery.checkpoint.remote import open_remote
    from weightsurgery.surgery.edits import PLAIN
    from weightsurgery.vectors.sources import open_vector

    storage, fit = given.store.truncated(given.truncate), given.fit
    opener = open_remote if given.store.dry_run else Checkpoint.open
    with open_base(base, fit, opener) as opened:
        vector = open_vector(opened, vectors, opener=opener, **fit.policies)
        _apply(PLAIN[name](vector, given.scale), opened, storage, given)


def _discriminating(
    name: str, base: str, task: list[str], share: Share, data: FromData, given: EditOptions
) -> None:
    if from_data(task):
        if given.cluster is not None:
            raise _trains()
        edit_from_data(name, base, task, share, data, given)
        return
    from weightsurgery.algebra.lowrank import Rank
    from weightsurgery.checkpoint.reader import Checkpoint
    from weightsurgery.checkpoint.remote import open_remote
    from weightsurgery.errors import EditError
    from weightsurgery.surgery.edits import DISCRIMINATING
    from weightsurgery.vectors.sources import open_keep, open_vector, split_data

    store, fit = given.store, given.fit
    storage = store.storage()
    files, others = split_data(share.keep or ())
    if files and given.cluster is not None:
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
        vector = open_vector(opened, task, opener=opener, **fit.policies)
        keep = open_keep(opened, others, opener=opener, **fit.policies)
        with kept_data(opened, files, vector, data.prompts, given) as gathered:
            edit = DISCRIMINATING[name](
                vector,
                keep.vectors,
                given.truncate.rule() or Rank(64),
                rank_rule(share.keep_rank, None, "--keep-rank"),
                share.side,
                share.basis,
                given.scale,
                store.seed,
                (*keep.inputs, *gathered),
                share.epsilon,
            )
            _apply(edit, opened, storage, given)


def _trains() -> EditError:
    from weightsurgery.errors import EditError

    return EditError(
        "--cluster with data: a model is run on them, on this machine",
        "Leave it out; or save a vector first ('ws identify'), and give that.",
    )


def _apply(
    edit: Edit, base: Checkpoint, storage: Storage | AdapterStorage, given: EditOptions
) -> None:
    from weightsurgery.report.exported import written_tables
    from weightsurgery.report.plans import planned_lines
    from weightsurgery.surgery.apply import apply, plan_edit

    store, work, show = given.store, given.work, given.show
    if store.on_s3:
        _no_reading(given)
    if store.check:
        _checkable(store.as_)
    given.pages.check()
    remarked(base, show)
    default = "all-linear" if edit.factors else "all"
    selection = given.which.selection(default, store.layer_scale)
    if store.dry_run:
        plan = plan_edit(edit, base, store.out, selection, storage, work.workers, store.overwrite)
        console.result(show, plan.summary, lambda: planned_lines(plan, store.out))
        notes = (line for vector in edit.vectors().values() for line in vector.notes())
        console.notices(dict.fromkeys(notes), show)
        return
    goes_on = "the same command goes on where this one stopped."
    if store.as_ != "checkpoint":
        goes_on = "nothing was written."
    with console.progress(show, interrupted=goes_on) as progress:
        applied = apply(
            edit,
            base,
            store.out,
            selection=selection,
            storage=storage,
            **vars(work),
            overwrite=store.overwrite,
            allow_unrelated=store.allow_unrelated,
            command=show.command,
            progress=progress,
            cluster=given.cluster,
        )
    if applied.resumed:
        console.notice(f"Resumed: {applied.resumed} tensors were finished already.", show)
    guard = _checked(base, given) if store.check else None
    if show.json:
        checked = {} if guard is None else {"guard": guard}
        console.document({"out": store.out, **asdict(applied.record), **checked})
    else:
        console.show(*written_tables(applied.record, every=show.verbose))
        if guard is not None:
            from weightsurgery.report.guarded import guard_tables

            console.show(*guard_tables(guard))
    if guard is not None and not guard["inside"]:
        from weightsurgery.learning.guard import harm

        console.notice(harm(guard), show)
    console.notices((*applied.notices, written_line(store.out, applied.record.kind)), show)
    given.pages.of_output(store.out, show, guard)


def _no_reading(given: EditOptions) -> None:
    """Refuse what would read an output on S3.

    Raises:
        EditError: ``--check``, ``--html`` or ``--figure`` is set.
    """
    from weightsurgery.errors import EditError

    if given.store.check or given.pages:
        raise EditError(
            f"--check, --html or --figure with {given.store.out}: they read a directory",
            "Leave them out, or write to a directory and copy it there.",
        )


def _checkable(form: str) -> None:
    """Refuse ``--check`` before anything is written, where it could not be done after.

    Raises:
        WeightSurgeryError: There is no model to run, or nothing to run it with.
    """
    from weightsurgery.errors import EditError

    if form != "checkpoint":
        raise EditError(
            f"--check with --as {form}: the guard runs a whole checkpoint",
            "Leave it out, or write a checkpoint.",
        )
    installed()


def _checked(base: Checkpoint, given: EditOptions) -> dict[str, Any]:
    """What the guard measures of the output."""
    from weightsurgery.learning.guard import compared

    out = given.store.out
    written = f"{out} is whole; what --check finds is not."
    with console.progress(given.show, unit="texts", interrupted=written) as progress:
        return compared(base.path, out, given.work.device, progress).to_dict()
