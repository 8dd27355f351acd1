"""Routes that write content: preupload, LFS by one or more parts, xet, commits."""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any

from tests.hub.standin.cards import check_card
from tests.hub.standin.reading import xet_token
from tests.hub.standin.repos import Entry, Repo, git_oid, is_large
from tests.hub.standin.routes import (
    Call,
    Refusal,
    Reply,
    check_signature,
    json_reply,
    route,
    signed,
)
from tests.hub.standin.writing import pull_url


@route("POST", "/api/models/{id}/preupload/{rev}")
def preupload(call: Call) -> Reply:
    repo = call.repo()
    _may_commit(call, repo)
    commit = call.commit(repo)
    files = []
    for each in call.json()["files"]:
        large = is_large(each["path"], each["size"], base64.b64decode(each["sample"]))
        told_file = {"path": each["path"], "uploadMode": "lfs" if large else "regular"}
        told_file["shouldIgnore"] = False
        old = commit.tree.get(each["path"])
        if old is not None:
            told_file["oid"] = old.sha256 if old.lfs else old.blob
        files.append(told_file)
    return json_reply({"files": files, "commitOid": commit.oid})


def _may_commit(call: Call, repo: Repo) -> None:
    """Commits are for the owner; all users may open a pull request and commit to their own."""
    authors = {each.ref: each.author for each in repo.discussions if each.is_pull_request}
    own = authors.get(call.parts.get("rev", "")) == call.user
    call.may_open(repo)
    call.may_write(repo, pull=bool(call.query.get("create_pr")) or own)


@route("POST", "/{id}.git/info/lfs/objects/batch")
def batch(call: Call) -> Reply:
    """Where to send the objects that are not here yet."""
    repo, wanted = call.repo(), call.json()
    call.may_open(repo)
    call.may_write(repo, pull=True)
    objects = []
    for each in wanted["objects"]:
        found = {"oid": each["oid"], "size": each["size"], "authenticated": True}
        if not call.hub.store.has(each["oid"]):
            parts = "multipart" in wanted.get("transfers", []) and each["size"] > call.hub.part_size
            upload = _in_parts(call, repo, **found) if parts else _in_one(call, repo, each["oid"])
            verify = {"href": f"{call.hub.endpoint}/{repo.id}.git/info/lfs/objects/verify"}
            found["actions"] = {"upload": upload, "verify": verify}
        objects.append(found)
    kind = {"Content-Type": "application/vnd.git-lfs+json"}
    transfer = "multipart" if "multipart" in wanted.get("transfers", []) else "basic"
    return json_reply({"transfer": transfer, "objects": objects}, 200, kind)


def _in_one(call: Call, repo: Repo, oid: str) -> dict[str, Any]:
    return {"href": signed(call, f"/upload/{repo.id}/{oid}"), "header": {}}


def _in_parts(call: Call, repo: Repo, oid: str, size: int, **_: Any) -> dict[str, Any]:
    count = math.ceil(size / call.hub.part_size)
    header = {
        f"{number:05d}": signed(call, f"/upload/{repo.id}/{oid}/{number}")
        for number in range(1, count + 1)
    }
    header["chunk_size"] = str(call.hub.part_size)
    path = f"/api/complete_multipart/{repo.id}/{oid}"
    href = f"{call.hub.endpoint}{path}?parts={count}&X-Amz-Signature={call.hub.sign(path)}"
    return {"href": href, "header": header}


@route("PUT", "/upload/{id}/(?P<oid>[0-9a-f]{64})")
def upload(call: Call) -> Reply:
    check_signature(call)
    _keep(call, call.parts["oid"], call.body)
    return Reply(200, b"", {"ETag": f'"{hashlib.md5(call.body).hexdigest()}"'})


@route("PUT", "/upload/{id}/(?P<oid>[0-9a-f]{64})/{num}")
def upload_part(call: Call) -> Reply:
    check_signature(call)
    call.hub.parts[call.parts["oid"], int(call.parts["num"])] = call.body
    return Reply(200, b"", {"ETag": f'"{hashlib.md5(call.body).hexdigest()}"'})


@route("POST", "/api/complete_multipart/{id}/(?P<oid>[0-9a-f]{64})")
def complete(call: Call) -> Reply:
    """Put the parts together. It comes without a token: the URL is signed."""
    check_signature(call)
    oid, pieces = call.parts["oid"], []
    told_parts = sorted(call.json()["parts"], key=lambda each: each["partNumber"])
    if len(told_parts) != int(call.query["parts"]):
        raise Refusal(400, f"{len(told_parts)} of {call.query['parts']} parts")
    for each in told_parts:
        piece = call.hub.parts.get((oid, each["partNumber"]))
        if piece is None or each["etag"].strip('"') != hashlib.md5(piece).hexdigest():
            raise Refusal(400, f"Part {each['partNumber']} was not uploaded or has another ETag")
        pieces.append(piece)
    _keep(call, oid, b"".join(pieces))
    for each in told_parts:
        del call.hub.parts[oid, each["partNumber"]]
    return json_reply({"success": True})


def _keep(call: Call, oid: str, content: bytes) -> None:
    if hashlib.sha256(content).hexdigest() != oid:
        raise Refusal(400, "The content does not have the SHA-256 it was announced with")
    call.hub.store.put(content)


@route("POST", "/{id}.git/info/lfs/objects/verify")
def verify(call: Call) -> Reply:
    repo, wanted = call.repo(), call.json()
    call.may_write(repo, pull=True)
    _stored(call, repo, wanted["oid"], wanted["size"])
    return json_reply({})


def _stored(call: Call, repo: Repo, oid: str, size: int | None) -> Entry:
    """An uploaded object as a file of a commit."""
    if not call.hub.store.has(oid):
        raise Refusal(400, f"An LFS pointer pointed to a file that does not exist: {oid}")
    here = call.hub.store.size(oid)
    if size not in (None, here):
        raise Refusal(400, f"LFS object {oid} has {here} bytes, not {size}")
    return repo.point(oid, here)


@route("GET", "/api/models/{id}/xet-write-token/{rev}")
def xet_write_token(call: Call) -> Reply:
    repo = call.repo()
    _may_commit(call, repo)
    return xet_token(call)


@route("POST", "/api/models/{id}/commit/{rev}")
def commit(call: Call) -> Reply:
    repo, revision = call.repo(), call.parts["rev"]
    _may_commit(call, repo)
    lines = [json.loads(line) for line in call.body.splitlines() if line.strip()]
    header = next(each["value"] for each in lines if each["key"] == "header")
    title, text = header["summary"], header.get("description") or ""
    parent, wants_pull = header.get("parentCommit"), bool(call.query.get("create_pr"))
    reply: dict[str, Any] = {"success": True, "hookOutput": ""}
    with repo.lock:
        base = call.commit(repo)
        pulls = {each.ref for each in repo.discussions if each.is_pull_request}
        if revision not in repo.branches and revision not in pulls:
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        if parent and wants_pull:
            call.parts["rev"] = parent
            base = call.commit(repo)
        elif parent and not base.oid.startswith(parent):
            raise Refusal(412, "A commit has happened since. Please refresh and try again.")
        changes, operations = _changes(call, repo, lines, base.tree)
        if wants_pull:
            pull = repo.discuss(title, call.user or "", text, revision, base.oid)
            revision = pull.ref
            reply["pullRequestUrl"] = pull_url(call, repo, pull.num)
        made = repo.record(revision, changes, operations, title, call.user or "", text)
    url = f"{call.hub.endpoint}/{repo.id}/commit/{made.oid}"
    return json_reply(reply | {"commitOid": made.oid, "commitUrl": url})


def _changes(
    call: Call, repo: Repo, lines: list[dict[str, Any]], tree: Mapping[str, Entry]
) -> tuple[dict[str, Entry | None], list[tuple[str, str]]]:
    changes: dict[str, Entry | None] = {}
    operations = []
    for line in lines:
        key, value = line["key"], line["value"]
        if key == "header":
            continue
        path = value["path"]
        operations.append((key, path))
        if key == "file":
            text = value["content"]
            base64_told = value.get("encoding") == "base64"
            content = base64.b64decode(text) if base64_told else text.encode()
            if path == "README.md":
                _check_readme(content)
            changes[path] = Entry(
                call.hub.store.put(content), len(content), git_oid(content), False
            )
        elif key == "lfsFile":
            changes[path] = _stored(call, repo, value["oid"], value.get("size"))
        elif key in ("deletedFile", "deletedFolder"):
            prefix = f"{path.rstrip('/')}/"
            folder = key == "deletedFolder"
            gone = [each for each in tree if (each.startswith(prefix) if folder else each == path)]
            if not gone:
                raise Refusal(404, f"A file with this name doesn't exist: {path}", "EntryNotFound")
            changes |= dict.fromkeys(gone)
        else:
            raise Refusal(400, f"Unknown operation {key}")
    return changes, operations


def _check_readme(content: bytes) -> None:
    errors, _ = check_card(content.decode(errors="replace"))
    if errors:
        raise Refusal(400, "Invalid metadata in README.md: " + "; ".join(errors))
