"""The Hub's routes: who may ask what, and what is answered.

Reading: whoami, repository and revision info, trees, paths, refs, commits, discussions, raw and
resolved files with ranges. Writing: repositories and their settings, branches, tags, discussions
and pull requests, cards, preupload, LFS and xet uploads, commits.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from email.message import Message
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, quote, unquote

from tests.hub.standin.repos import Commit, Entry, Repo

if TYPE_CHECKING:
    from tests.hub.standin.server import StandIn


@dataclass
class Reply:
    """An answer: a body in memory, or ``span`` (start, stop) of a file."""

    status: int = 200
    body: bytes | Path = b""
    headers: dict[str, str] = field(default_factory=dict)
    span: tuple[int, int] = (0, 0)

    @property
    def size(self) -> int:
        return len(self.body) if isinstance(self.body, bytes) else self.span[1] - self.span[0]

    def pieces(self, count: int, most: int) -> Iterator[bytes]:
        """The first ``count`` bytes, in pieces of at most ``most``."""
        if isinstance(self.body, bytes):
            for at in range(0, count, most):
                yield self.body[at : min(at + most, count)]
            return
        with self.body.open("rb") as file:
            file.seek(self.span[0])
            while count:
                piece = file.read(min(most, count))
                count -= len(piece)
                yield piece


class Refusal(Exception):  # noqa: N818
    """An error answer. The code is what clients tell errors apart by."""

    def __init__(self, status: int, message: str, code: str | None = None, **headers: str) -> None:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        named["X-Error-Message"] = message
        if code:
            named["X-Error-Code"] = code
        self.reply = json_reply({"error": message}, status, named)


@dataclass
class Call:
    """A request: path still quoted, body read. ``storage`` when it came to the CDN's origin."""

    hub: StandIn
    method: str
    path: str
    query: dict[str, str]
    headers: Message
    body: bytes
    user: str | None
    token: str | None
    storage: bool
    parts: dict[str, str] = field(default_factory=dict)

    def json(self) -> Any:
        return json.loads(self.body or b"{}")

    def form(self) -> dict[str, list[str]]:
        return parse_qs(self.body.decode())

    def repo(self) -> Repo:
        """The repository of the path, if the user may know of it."""
        found = self.hub.repos.get(self.parts["id"])
        if found is None or (found.private and not self.may_read(found)):
            status = 404 if self.user else 401
            message = "Repository not found" if self.user else "Invalid username or password."
            raise Refusal(status, message, "RepoNotFound")
        return found

    def may_read(self, repo: Repo) -> bool:
        return self.user is not None and (self.user == repo.owner or self.user in repo.readers)

    def may_open(self, repo: Repo) -> None:
        """Refuse the files of a gated repository to whom no access was granted."""
        if repo.gated and not self.may_read(repo):
            message = f"Access to model {repo.id} is restricted."
            raise Refusal(403 if self.user else 401, message, "GatedRepo")

    def may_write(self, repo: Repo, pull: bool = False) -> None:
        """Refuse writing to others than the owner; pull requests are open to all users."""
        if self.user is None:
            raise Refusal(401, "Invalid username or password.")
        if self.user != repo.owner and not pull:
            raise Refusal(403, "Authorization error.")

    def commit(self, repo: Repo) -> Commit:
        """The commit of the path's revision."""
        revision = self.parts["rev"]
        found = repo.find(revision)
        if found is None:
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return found

    def entry(self, commit: Commit) -> Entry:
        """The file of the path."""
        found = commit.tree.get(self.parts["path"])
        if found is None:
            raise Refusal(404, "Entry not found", "EntryNotFound", X_Repo_Commit=commit.oid)
        return found


Route = Callable[[Call], Reply]
ROUTES: list[tuple[str, re.Pattern[str], Route]] = []
KINDS = {"id": r"[^/]+/[^/]+?", "rev": "[^/]+", "path": ".+", "num": "[0-9]+"}


def route(method: str, path: str) -> Callable[[Route], Route]:
    """Register a function for a path with ``{id}``, ``{rev}``, ``{path}``, ``{num}``."""
    pattern = path
    for name, kind in KINDS.items():
        pattern = pattern.replace(f"{{{name}}}", f"(?P<{name}>{kind})")

    def register(function: Route) -> Route:
        ROUTES.append((method, re.compile(pattern), function))
        return function

    return register


def json_reply(data: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Reply:
    """A JSON answer."""
    body = json.dumps(data, default=str).encode()
    return Reply(status, body, {"Content-Type": "application/json", **(headers or {})})


def answer(call: Call) -> Reply:
    """Find the route and take it."""
    if call.storage and call.token:
        raise Refusal(400, "Only one auth mechanism allowed: the signature of the URL")
    if call.token and call.user is None:
        raise Refusal(401, "Invalid credentials in Authorization header")
    for method, pattern, function in ROUTES:
        found = pattern.fullmatch(call.path)
        if found and method == call.method:
            call.parts = {name: unquote(value) for name, value in found.groupdict().items()}
            return function(call)
    raise Refusal(404, f"Sorry, there is no {call.method} {call.path}")


def span(call: Call, size: int) -> tuple[int, int] | None:
    """The bytes (start, stop) that were asked for; None for all."""
    found = re.fullmatch(r"bytes=(\d*)-(\d*)", call.headers.get("Range") or "")
    if not found or found[1] == found[2] == "":
        return None
    if found[1] == "":
        return max(0, size - int(found[2])), size
    start, stop = int(found[1]), min(int(found[2] or size) + 1, size)
    if start >= size or stop <= start:
        raise Refusal(416, "Range not satisfiable", Content_Range=f"bytes */{size}")
    return start, stop


def served(call: Call, path: Path, headers: dict[str, str]) -> Reply:
    """A file, or the range of it that was asked for."""
    size = path.stat().st_size
    wanted = span(call, size)
    headers = {"Content-Type": "application/octet-stream", "Accept-Ranges": "bytes"} | headers
    if wanted is None:
        return Reply(200, path, headers, (0, size))
    headers["Content-Range"] = f"bytes {wanted[0]}-{wanted[1] - 1}/{size}"
    return Reply(206, path, headers, wanted)


def signed(call: Call, path: str, **query: str) -> str:
    """A URL of the CDN's origin that needs no token."""
    query["X-Amz-Signature"] = call.hub.sign(path)
    query_text = "&".join(f"{name}={quote(value, safe='')}" for name, value in query.items())
    return f"{call.hub.cdn}{path}?{query_text}"


def check_signature(call: Call) -> None:
    if call.query.get("X-Amz-Signature") != call.hub.sign(call.path):
        raise Refusal(403, "SignatureDoesNotMatch")
