"""A planned or finished push as tables, lines and a document."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from weightsurgery.hub.plan import PushPlan
from weightsurgery.hub.push import Pushed
from weightsurgery.report.tables import Table, facts_table, size

__all__ = ["push_document", "push_tables", "pushed_lines", "start_line"]


def push_tables(plan: PushPlan, done: bool, every: bool = False) -> list[str | Table]:
    """Tables of what a push writes or wrote.

    Args:
        plan: The plan.
        done: Whether it was carried out.
        every: Also list every file.
    """
    destination, uploads = plan.destination, plan.uploads
    creation = "created" if done else "to be created (or not visible to this token)"
    where = f"{destination.repo_id}, {_where(plan, creation)}"
    facts = [
        ("repository", where),
        ("verified", f"{len(plan.record.files)} files against their record"),
        ("uploaded" if done else "to upload", f"{len(uploads)} file(s), {size(_bytes(uploads))}"),
        ("there already, whole", f"{len(plan.present)} file(s), {size(_bytes(plan.present))}"),
    ]
    if plan.copied and uploads:
        facts.append(
            ("as the base has them",
             f"{size(plan.copied)} of tensors in these uploads: an upper bound of what xet need"
             " not store again where the base is on the Hub")
        )  # fmt: skip
    if plan.deleted:
        facts.append(("deleted in the same commit", ", ".join(plan.deleted)))
    facts.append(("commit", plan.title))
    tables: list[str | Table] = [facts_table("Push", facts)]
    if every:
        rows = [(file.name, size(file.size), "upload", file.sha256) for file in uploads]
        rows += [(file.name, size(file.size), "there", file.sha256) for file in plan.present]
        columns = ("file", "size", "", "SHA-256")
        tables.append(Table("Files", columns, rows, left=frozenset({0, 2, 3})))
    return tables


def _bytes(files: Sequence[Any]) -> int:
    return sum(file.size for file in files)


def _where(plan: PushPlan, creation: str) -> str:
    """Branch and visibility; ``creation`` is the remark on what is missing."""
    destination = plan.destination
    branch = f"branch {destination.branch}"
    if plan.open_pull_request is not None:
        branch = f"pull request {plan.open_pull_request.number} proposes all of it already"
    elif destination.pull_request:
        branch = f"pull request to {destination.branch}"
    elif plan.creates_branch:
        branch += f" ({creation.partition(' (')[0]})"
    if plan.creates:
        return f"{branch}, {'private, ' if destination.private else ''}{creation}"
    return f"{branch}, {'private' if plan.remote.private else 'public'}"


def pushed_lines(done: Pushed) -> list[str]:
    """The result of a push; the last line is the URL."""
    plan = done.plan
    checked = f"{len(plan.files)} files checked on the Hub by size and hash: all as recorded"
    if not done.changed:
        why = "Nothing changed"
        if plan.open_pull_request is not None:
            why += f" (pull request {plan.open_pull_request.number} proposes all of it)"
        lines = [f"{why}, so nothing was committed; {checked}."]
    else:
        by = {"xet": "by xet", "lfs": "by LFS"}[done.by]
        sent = "" if done.sent is None else f"{size(done.sent)} of content sent {by}; "
        lines = [f"One commit: {len(plan.uploads)} file(s) uploaded; {sent}{checked}."]
    return [*lines, done.pull_request or done.url]


def start_line(plan: PushPlan) -> str:
    """The announcement of an upload."""
    if not plan.changes:
        return "All of it is there already."
    upload = f"{len(plan.uploads)} file(s), {size(_bytes(plan.uploads))}"
    where = f"{plan.destination.repo_id}, {_where(plan, 'to be created')}"
    return f"Pushing {upload}, as {plan.account} to {where}."


def push_document(plan: PushPlan, done: Pushed | None = None) -> dict[str, Any]:
    """The one document of ``--json``."""
    destination = plan.destination
    document: dict[str, Any] = {
        "repository": destination.repo_id,
        "branch": destination.branch,
        "creates": {"repository": plan.creates, "branch": plan.creates_branch},
        "private": destination.private if plan.creates else plan.remote.private,
        "parent": plan.remote.head,
        "title": plan.title,
        "upload": [_file(file) for file in plan.uploads],
        "present": [_file(file) for file in plan.present],
        "deleted": list(plan.deleted),
        "bytes": {
            "upload": _bytes(plan.uploads),
            "present": _bytes(plan.present),
            "unedited_upper_bound": plan.copied,
        },
        "card": plan.card,
        "pull_request": plan.open_pull_request.url if plan.open_pull_request else None,
        "notices": list(plan.notices),
    }
    if done is not None:
        document |= {
            "notices": [*plan.notices, *done.notices],
            "changed": done.changed,
            "commit": done.commit,
            "url": done.url,
            "pull_request": done.pull_request,
            "sent": done.sent,
            "sent_by": done.by if done.changed else None,
        }
    return document


def _file(file: Any) -> dict[str, Any]:
    return {"name": file.name, "bytes": file.size, "sha256": file.sha256}
