"""Routes that read."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from tests.hub.standin.cards import front_matter
from tests.hub.standin.repos import Commit, Discussion, Entry, Repo, pointer
from tests.hub.standin.routes import (
    Call,
    Refusal,
    Reply,
    check_signature,
    json_reply,
    route,
    served,
    signed,
)


@route("GET", "/api/whoami-v2")
def whoami(call: Call) -> Reply:
    if call.user is None:
        raise Refusal(401, "Invalid username or password.")
    spaces = sorted({name.split("/")[0] for name in call.hub.repos} - set(call.hub.tokens.values()))
    orgs = [{"name": name, "type": "org"} for name in spaces if call.user == "owner"]
    token = {"accessToken": {"displayName": "test", "role": "write"}, "type": "access_token"}
    return json_reply(
        {"type": "user", "id": call.user, "name": call.user, "orgs": orgs, "auth": token}
    )


@route("GET", "/api/agent-harnesses")
def harnesses(call: Call) -> Reply:
    """What clients ask once, to name themselves: an empty registry."""
    return json_reply({"standardEnvVars": [], "harnesses": {}})


@route("GET", "/api/models/{id}")
@route("GET", "/api/datasets/{id}")
def info(call: Call) -> Reply:
    call.parts["rev"] = "main"
    repo = call.repo()
    return json_reply(_info(call, repo, repo.find("main")))


@route("GET", "/api/models/{id}/revision/{rev}")
@route("GET", "/api/datasets/{id}/revision/{rev}")
def revision(call: Call) -> Reply:
    repo = call.repo()
    return json_reply(_info(call, repo, call.commit(repo)))


def _info(call: Call, repo: Repo, commit: Commit | None) -> dict[str, Any]:
    tree = commit.tree if commit else {}
    card = None
    if "README.md" in tree:
        card = front_matter(repo.store.path(tree["README.md"].sha256).read_text(errors="replace"))
    files: list[dict[str, Any]] = [{"rfilename": path} for path in tree]
    if call.query.get("blobs"):
        for told_file, (path, entry) in zip(files, tree.items(), strict=True):
            told_file |= {"size": entry.size, "blobId": entry.blob} | _lfs(path, entry, "sha256")
    tags = card.get("tags") if card else None
    return {
        "_id": repo.id,
        "id": repo.id,
        "modelId": repo.id,
        "author": repo.id.split("/")[0],
        "sha": commit.oid if commit else None,
        "lastModified": commit.date if commit else repo.created,
        "createdAt": repo.created,
        "private": repo.private,
        "gated": "manual" if repo.gated else False,
        "disabled": False,
        "downloads": 0,
        "likes": 0,
        "tags": tags if isinstance(tags, list) else [],
        **({"library_name": card["library_name"]} if card and "library_name" in card else {}),
        **({"cardData": card} if card else {}),
        "siblings": files,
        "usedStorage": sum(entry.size for entry in tree.values()),
    }


def _lfs(path: str, entry: Entry, key: str) -> dict[str, Any]:
    if not entry.lfs:
        return {}
    size = len(pointer(entry.sha256, entry.size))
    return {"lfs": {key: entry.sha256, "size": entry.size, "pointerSize": size}}


@route("GET", "/api/models/{id}/auth-check")
def may_read(call: Call) -> Reply:
    call.may_open(call.repo())
    return json_reply({})


@route("GET", "/api/models/{id}/auth-check/write")
def may_write(call: Call) -> Reply:
    call.may_write(call.repo())
    return json_reply({})


@route("GET", "/api/models/{id}/tree/{rev}")
def tree(call: Call) -> Reply:
    return subtree(call)


@route("GET", "/api/models/{id}/tree/{rev}/{path}")
def subtree(call: Call) -> Reply:
    repo = call.repo()
    commit = call.commit(repo)
    path = call.parts.get("path", "").strip("/")
    prefix = f"{path}/" if path else ""
    below = [each for each in commit.tree if each.startswith(prefix)]
    if path and not below:
        raise Refusal(404, f"{path} does not exist on {call.parts['rev']}", "EntryNotFound")
    deep = call.query.get("recursive", "").lower() in ("true", "1")
    found: dict[str, dict[str, Any]] = {}
    for each in below:
        steps = each[len(prefix) :].split("/")
        for depth in range(1, len(steps) if deep else min(2, len(steps))):
            folder = prefix + "/".join(steps[:depth])
            found[folder] = _folder(folder, commit)
        if deep or len(steps) == 1:
            found[each] = _file(repo, each, commit.tree[each])
    paths = sorted(found)
    start, size = int(call.query.get("cursor", 0)), call.hub.page_size
    headers = {}
    if start + size < len(paths):
        kept = "&".join(f"{k}={quote(v)}" for k, v in call.query.items() if k != "cursor")
        target = f"{call.hub.endpoint}{call.path}?{kept}&cursor={start + size}"
        headers["Link"] = f'<{target}>; rel="next"'
    return json_reply([found[each] for each in paths[start : start + size]], 200, headers)


def _folder(path: str, commit: Commit) -> dict[str, Any]:
    return {"type": "directory", "path": path, "oid": commit.oid, "size": 0}


def _file(repo: Repo, path: str, entry: Entry) -> dict[str, Any]:
    found = {"type": "file", "path": path, "size": entry.size, "oid": entry.blob}
    found |= _lfs(path, entry, "oid")
    xet = repo.store.xet_hash(entry.sha256) if entry.lfs else None
    return found | ({"xetHash": xet} if xet else {})


@route("POST", "/api/models/{id}/paths-info/{rev}")
def paths_info(call: Call) -> Reply:
    repo = call.repo()
    commit = call.commit(repo)
    if "json" in (call.headers.get("Content-Type") or ""):
        paths = call.json()["paths"]
    else:
        paths = call.form().get("paths", [])
    found = []
    for path in [paths] if isinstance(paths, str) else paths:
        if path in commit.tree:
            found.append(_file(repo, path, commit.tree[path]))
        elif any(each.startswith(f"{path}/") for each in commit.tree):
            found.append(_folder(path, commit))
    return json_reply(found)


@route("GET", "/api/models/{id}/refs")
def refs(call: Call) -> Reply:
    repo = call.repo()
    listed = {
        "branches": [_ref(name, f"refs/heads/{name}", oid) for name, oid in repo.branches.items()],
        "tags": [_ref(name, f"refs/tags/{name}", oid) for name, oid in repo.tags.items()],
        "converts": [],
    }
    if call.query.get("include_prs"):
        pulls = [each for each in repo.discussions if each.is_pull_request]
        listed["pullRequests"] = [_ref(each.ref, each.ref, each.head or "") for each in pulls]
    return json_reply(listed)


def _ref(name: str, ref: str, oid: str) -> dict[str, str]:
    return {"name": name, "ref": ref, "targetCommit": oid}


@route("GET", "/api/models/{id}/commits/{rev}")
def commits(call: Call) -> Reply:
    repo = call.repo()
    call.commit(repo)
    listed = [
        {
            "id": each.oid,
            "title": each.title,
            "message": each.description,
            "authors": [{"user": each.author}],
            "date": each.date,
        }
        for each in repo.commits(call.parts["rev"])
    ]
    return json_reply(listed, 200, {"X-Total-Count": str(len(listed))})


@route("GET", "/api/models/{id}/discussions")
def discussions(call: Call) -> Reply:
    repo = call.repo()
    kind, status = call.query.get("type", "all"), call.query.get("status", "all")
    author = call.query.get("author")
    listed = [
        _discussion(repo, each) for each in repo.discussions
        if (kind == "all" or each.is_pull_request == (kind == "pull_request"))
        and (status == "all" or (each.status in ("open", "draft")) == (status == "open"))
        and author in (None, each.author)
    ]  # fmt: skip
    start = int(call.query.get("p", 0)) * call.hub.page_size
    page = listed[start : start + call.hub.page_size]
    return json_reply({"discussions": page, "count": len(listed), "start": start})


@route("GET", "/api/models/{id}/discussions/{num}")
def discussion(call: Call) -> Reply:
    repo = call.repo()
    number = int(call.parts["num"])
    if not 1 <= number <= len(repo.discussions):
        raise Refusal(404, "Discussion not found")
    each = repo.discussions[number - 1]
    details: dict[str, Any] = {"events": [], "filesWithConflicts": [], "diff": None}
    if each.is_pull_request:
        details["changes"] = {"base": f"refs/heads/{each.base}"}
    return json_reply(_discussion(repo, each) | details)


def _discussion(repo: Repo, each: Discussion) -> dict[str, Any]:
    return {
        "num": each.num,
        "title": each.title,
        "author": {"name": each.author, "type": "user"},
        "createdAt": each.date,
        "status": each.status,
        "isPullRequest": each.is_pull_request,
        "repo": {"name": repo.id, "type": "model"},
    }


@route("GET", "/api/models/{id}/xet-read-token/{rev}")
def xet_read_token(call: Call) -> Reply:
    repo = call.repo()
    call.may_open(repo)
    return xet_token(call)


def xet_token(call: Call) -> Reply:
    """Where the content store is. It is a directory; the token means nothing."""
    if call.hub.cas is None:
        raise Refusal(404, "Xet is not enabled for this repository")
    # In the year 2100. The same three things, for the clients in Python and in Rust.
    token, expiry = "xet-token", 4102444800
    headers = {
        "X-Xet-Cas-Url": call.hub.cas.url,
        "X-Xet-Access-Token": token,
        "X-Xet-Token-Expiration": str(expiry),
    }
    body = {"casUrl": call.hub.cas.url, "accessToken": token, "exp": expiry}
    return json_reply(body, 200, headers)


@route("GET", "/{id}/raw/{rev}/{path}")
def raw(call: Call) -> Reply:
    """A file as git holds it: of a large one the pointer."""
    repo = call.repo()
    call.may_open(repo)
    commit = call.commit(repo)
    entry = call.entry(commit)
    headers = {"X-Repo-Commit": commit.oid, "ETag": f'"{entry.blob}"'}
    if entry.lfs:
        return Reply(200, pointer(entry.sha256, entry.size), headers)
    return served(call, repo.store.path(entry.sha256), headers)


@route("GET", "/{id}/resolve/{rev}/{path}")
@route("GET", "/datasets/{id}/resolve/{rev}/{path}")
def resolve(call: Call) -> Reply:
    """A file: a small one itself, for a large one the way to the CDN."""
    repo = call.repo()
    call.may_open(repo)
    commit = call.commit(repo)
    entry = call.entry(commit)
    headers = {"X-Repo-Commit": commit.oid, "Accept-Ranges": "bytes"}
    if not entry.lfs:
        headers["ETag"] = f'"{entry.blob}"'
        return served(call, repo.store.path(entry.sha256), headers)
    headers |= {"X-Linked-Size": str(entry.size), "X-Linked-ETag": f'"{entry.sha256}"'}
    xet = repo.store.xet_hash(entry.sha256)
    if xet:
        url = f"{call.hub.endpoint}/api/models/{repo.id}/xet-read-token/{commit.oid}"
        headers |= {"X-Xet-Hash": xet, "Link": f'<{url}>; rel="xet-auth"'}
    name = f"inline; filename*=UTF-8''{call.parts['path']}; filename=\"{call.parts['path']}\";"
    headers["Location"] = signed(
        call, f"/cdn/{repo.id}/{entry.sha256}", **{"response-content-disposition": name}
    )
    return Reply(302, b"", headers)


@route("GET", "/cdn/{id}/{path}")
def download(call: Call) -> Reply:
    """A large file's content."""
    check_signature(call)
    headers = {"ETag": f'"{call.parts["path"]}"'}
    headers["Content-Disposition"] = call.query["response-content-disposition"]
    return served(call, call.hub.store.path(call.parts["path"]), headers)
