"""Routes that read."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from tests.hub.cards import front_matter
from tests.hub.repos import Commit, Discussion, Entry, Repo, pointer
from tests.hub.routes import Ask, Refusal, Reply, check_signature, route, served, signed, told


@route("GET", "/api/whoami-v2")
def whoami(ask: Ask) -> Reply:
    if ask.user is None:
        raise Refusal(401, "Invalid username or password.")
    spaces = sorted({name.split("/")[0] for name in ask.hub.repos} - set(ask.hub.tokens.values()))
    orgs = [{"name": name, "type": "org"} for name in spaces if ask.user == "owner"]
    token = {"accessToken": {"displayName": "test", "role": "write"}, "type": "access_token"}
    return told({"type": "user", "id": ask.user, "name": ask.user, "orgs": orgs, "auth": token})


@route("GET", "/api/agent-harnesses")
def harnesses(ask: Ask) -> Reply:
    """What clients ask once, to name themselves: an empty registry."""
    return told({"standardEnvVars": [], "harnesses": {}})


@route("GET", "/api/models/{id}")
@route("GET", "/api/datasets/{id}")
def info(ask: Ask) -> Reply:
    ask.parts["rev"] = "main"
    repo = ask.repo()
    return told(_info(ask, repo, repo.find("main")))


@route("GET", "/api/models/{id}/revision/{rev}")
@route("GET", "/api/datasets/{id}/revision/{rev}")
def revision(ask: Ask) -> Reply:
    repo = ask.repo()
    return told(_info(ask, repo, ask.commit(repo)))


def _info(ask: Ask, repo: Repo, commit: Commit | None) -> dict[str, Any]:
    tree = commit.tree if commit else {}
    card = None
    if "README.md" in tree:
        card = front_matter(repo.store.path(tree["README.md"].sha256).read_text(errors="replace"))
    files: list[dict[str, Any]] = [{"rfilename": path} for path in tree]
    if ask.query.get("blobs"):
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
def may_read(ask: Ask) -> Reply:
    ask.may_open(ask.repo())
    return told({})


@route("GET", "/api/models/{id}/auth-check/write")
def may_write(ask: Ask) -> Reply:
    ask.may_write(ask.repo())
    return told({})


@route("GET", "/api/models/{id}/tree/{rev}")
def tree(ask: Ask) -> Reply:
    return subtree(ask)


@route("GET", "/api/models/{id}/tree/{rev}/{path}")
def subtree(ask: Ask) -> Reply:
    repo = ask.repo()
    commit = ask.commit(repo)
    path = ask.parts.get("path", "").strip("/")
    prefix = f"{path}/" if path else ""
    below = [each for each in commit.tree if each.startswith(prefix)]
    if path and not below:
        raise Refusal(404, f"{path} does not exist on {ask.parts['rev']}", "EntryNotFound")
    deep = ask.query.get("recursive", "").lower() in ("true", "1")
    found: dict[str, dict[str, Any]] = {}
    for each in below:
        steps = each[len(prefix) :].split("/")
        for depth in range(1, len(steps) if deep else min(2, len(steps))):
            folder = prefix + "/".join(steps[:depth])
            found[folder] = _folder(folder, commit)
        if deep or len(steps) == 1:
            found[each] = _file(repo, each, commit.tree[each])
    paths = sorted(found)
    start, size = int(ask.query.get("cursor", 0)), ask.hub.page_size
    headers = {}
    if start + size < len(paths):
        kept = "&".join(f"{k}={quote(v)}" for k, v in ask.query.items() if k != "cursor")
        target = f"{ask.hub.endpoint}{ask.path}?{kept}&cursor={start + size}"
        headers["Link"] = f'<{target}>; rel="next"'
    return told([found[each] for each in paths[start : start + size]], 200, headers)


def _folder(path: str, commit: Commit) -> dict[str, Any]:
    return {"type": "directory", "path": path, "oid": commit.oid, "size": 0}


def _file(repo: Repo, path: str, entry: Entry) -> dict[str, Any]:
    found = {"type": "file", "path": path, "size": entry.size, "oid": entry.blob}
    found |= _lfs(path, entry, "oid")
    xet = repo.store.xet_hash(entry.sha256) if entry.lfs else None
    return found | ({"xetHash": xet} if xet else {})


@route("POST", "/api/models/{id}/paths-info/{rev}")
def paths_info(ask: Ask) -> Reply:
    repo = ask.repo()
    commit = ask.commit(repo)
    if "json" in (ask.headers.get("Content-Type") or ""):
        paths = ask.json()["paths"]
    else:
        paths = ask.form().get("paths", [])
    found = []
    for path in [paths] if isinstance(paths, str) else paths:
        if path in commit.tree:
            found.append(_file(repo, path, commit.tree[path]))
        elif any(each.startswith(f"{path}/") for each in commit.tree):
            found.append(_folder(path, commit))
    return told(found)


@route("GET", "/api/models/{id}/refs")
def refs(ask: Ask) -> Reply:
    repo = ask.repo()
    listed = {
        "branches": [_ref(name, f"refs/heads/{name}", oid) for name, oid in repo.branches.items()],
        "tags": [_ref(name, f"refs/tags/{name}", oid) for name, oid in repo.tags.items()],
        "converts": [],
    }
    if ask.query.get("include_prs"):
        pulls = [each for each in repo.discussions if each.is_pull_request]
        listed["pullRequests"] = [_ref(each.ref, each.ref, each.head or "") for each in pulls]
    return told(listed)


def _ref(name: str, ref: str, oid: str) -> dict[str, str]:
    return {"name": name, "ref": ref, "targetCommit": oid}


@route("GET", "/api/models/{id}/commits/{rev}")
def commits(ask: Ask) -> Reply:
    repo = ask.repo()
    ask.commit(repo)
    listed = [
        {
            "id": each.oid,
            "title": each.title,
            "message": each.description,
            "authors": [{"user": each.author}],
            "date": each.date,
        }
        for each in repo.commits(ask.parts["rev"])
    ]
    return told(listed, 200, {"X-Total-Count": str(len(listed))})


@route("GET", "/api/models/{id}/discussions")
def discussions(ask: Ask) -> Reply:
    repo = ask.repo()
    kind, status = ask.query.get("type", "all"), ask.query.get("status", "all")
    author = ask.query.get("author")
    listed = [
        _discussion(repo, each) for each in repo.discussions
        if (kind == "all" or each.is_pull_request == (kind == "pull_request"))
        and (status == "all" or (each.status in ("open", "draft")) == (status == "open"))
        and author in (None, each.author)
    ]  # fmt: skip
    start = int(ask.query.get("p", 0)) * ask.hub.page_size
    page = listed[start : start + ask.hub.page_size]
    return told({"discussions": page, "count": len(listed), "start": start})


@route("GET", "/api/models/{id}/discussions/{num}")
def discussion(ask: Ask) -> Reply:
    repo = ask.repo()
    number = int(ask.parts["num"])
    if not 1 <= number <= len(repo.discussions):
        raise Refusal(404, "Discussion not found")
    each = repo.discussions[number - 1]
    details: dict[str, Any] = {"events": [], "filesWithConflicts": [], "diff": None}
    if each.is_pull_request:
        details["changes"] = {"base": f"refs/heads/{each.base}"}
    return told(_discussion(repo, each) | details)


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
def xet_read_token(ask: Ask) -> Reply:
    repo = ask.repo()
    ask.may_open(repo)
    return xet_token(ask)


def xet_token(ask: Ask) -> Reply:
    """Where the content store is. It is a directory; the token means nothing."""
    if ask.hub.cas is None:
        raise Refusal(404, "Xet is not enabled for this repository")
    # In the year 2100. The same three things, for the clients in Python and in Rust.
    token, expiry = "xet-token", 4102444800
    headers = {
        "X-Xet-Cas-Url": ask.hub.cas.url,
        "X-Xet-Access-Token": token,
        "X-Xet-Token-Expiration": str(expiry),
    }
    body = {"casUrl": ask.hub.cas.url, "accessToken": token, "exp": expiry}
    return told(body, 200, headers)


@route("GET", "/{id}/raw/{rev}/{path}")
def raw(ask: Ask) -> Reply:
    """A file as git holds it: of a large one the pointer."""
    repo = ask.repo()
    ask.may_open(repo)
    commit = ask.commit(repo)
    entry = ask.entry(commit)
    headers = {"X-Repo-Commit": commit.oid, "ETag": f'"{entry.blob}"'}
    if entry.lfs:
        return Reply(200, pointer(entry.sha256, entry.size), headers)
    return served(ask, repo.store.path(entry.sha256), headers)


@route("GET", "/{id}/resolve/{rev}/{path}")
@route("GET", "/datasets/{id}/resolve/{rev}/{path}")
def resolve(ask: Ask) -> Reply:
    """A file: a small one itself, for a large one the way to the CDN."""
    repo = ask.repo()
    ask.may_open(repo)
    commit = ask.commit(repo)
    entry = ask.entry(commit)
    headers = {"X-Repo-Commit": commit.oid, "Accept-Ranges": "bytes"}
    if not entry.lfs:
        headers["ETag"] = f'"{entry.blob}"'
        return served(ask, repo.store.path(entry.sha256), headers)
    headers |= {"X-Linked-Size": str(entry.size), "X-Linked-ETag": f'"{entry.sha256}"'}
    xet = repo.store.xet_hash(entry.sha256)
    if xet:
        url = f"{ask.hub.endpoint}/api/models/{repo.id}/xet-read-token/{commit.oid}"
        headers |= {"X-Xet-Hash": xet, "Link": f'<{url}>; rel="xet-auth"'}
    name = f"inline; filename*=UTF-8''{ask.parts['path']}; filename=\"{ask.parts['path']}\";"
    headers["Location"] = signed(
        ask, f"/cdn/{repo.id}/{entry.sha256}", **{"response-content-disposition": name}
    )
    return Reply(302, b"", headers)


@route("GET", "/cdn/{id}/{path}")
def download(ask: Ask) -> Reply:
    """A large file's content."""
    check_signature(ask)
    headers = {"ETag": f'"{ask.parts["path"]}"'}
    headers["Content-Disposition"] = ask.query["response-content-disposition"]
    return served(ask, ask.hub.store.path(ask.parts["path"]), headers)
