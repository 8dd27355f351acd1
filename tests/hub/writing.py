"""Routes that write all but content: repositories, branches, tags, discussions."""

from __future__ import annotations

import base64

from tests.hub.cards import check_card
from tests.hub.repos import ATTRIBUTES, Repo
from tests.hub.routes import Ask, Refusal, Reply, route, told


@route("POST", "/api/repos/create")
def create(ask: Ask) -> Reply:
    wanted = ask.json()
    if ask.user is None:
        raise Refusal(401, "Invalid username or password.")
    if wanted.get("type", "model") != "model":
        raise Refusal(400, "This stand-in holds models only")
    space = wanted.get("organization") or ask.user
    repo_id = f"{space}/{wanted['name']}"
    if ask.user not in (space, "owner") or space in set(ask.hub.tokens.values()) - {ask.user}:
        message = f'You don\'t have the rights to create a model under the namespace "{space}"'
        raise Refusal(403, message)
    url = f"{ask.hub.endpoint}/{repo_id}"
    with ask.hub.lock:
        if repo_id in ask.hub.repos:
            message = "You already created this model repo"
            return told({"error": message, "url": url}, 409, {"X-Error-Message": message})
        private = wanted.get("visibility") == "private" or wanted.get("private") is True
        repo = ask.hub.create(repo_id, private)
    files: dict[str, bytes] = {".gitattributes": ATTRIBUTES}
    for each in wanted.get("files") or []:
        files[each["path"]] = base64.b64decode(each["content"])
    repo.commit(files, "initial commit")
    return told({"url": url, "name": repo_id, "id": repo_id, "private": private})


@route("DELETE", "/api/repos/delete")
def delete(ask: Ask) -> Reply:
    wanted = ask.json()
    ask.parts["id"] = f"{wanted.get('organization') or ask.user}/{wanted['name']}"
    ask.may_write(ask.repo())
    del ask.hub.repos[ask.parts["id"]]
    return told({})


@route("PUT", "/api/models/{id}/settings")
def settings(ask: Ask) -> Reply:
    repo, wanted = ask.repo(), ask.json()
    ask.may_write(repo)
    if "visibility" in wanted or "private" in wanted:
        repo.private = wanted.get("visibility") == "private" or wanted.get("private") is True
    if "gated" in wanted:
        repo.gated = bool(wanted["gated"])
    return told({"private": repo.private, "gated": repo.gated})


@route("POST", "/api/models/{id}/branch/{rev}")
def create_branch(ask: Ask) -> Reply:
    repo, name = ask.repo(), ask.parts["rev"]
    ask.may_write(repo)
    if name.startswith("refs/"):
        raise Refusal(400, f"Invalid reference for a branch: {name}")
    if name in repo.branches:
        raise Refusal(409, f"Reference already exists: refs/heads/{name}")
    ask.parts["rev"] = ask.json().get("startingPoint") or "main"
    repo.branches[name] = ask.commit(repo).oid
    return told({})


@route("DELETE", "/api/models/{id}/branch/{rev}")
def delete_branch(ask: Ask) -> Reply:
    repo, name = ask.repo(), ask.parts["rev"]
    ask.may_write(repo)
    if name == "main":
        raise Refusal(403, "Cannot delete the default branch")
    if repo.branches.pop(name, None) is None:
        raise Refusal(404, f"Invalid rev id: {name}", "RevisionNotFound")
    return told({})


@route("POST", "/api/models/{id}/tag/{rev}")
def create_tag(ask: Ask) -> Reply:
    repo, name = ask.repo(), ask.json()["tag"]
    ask.may_write(repo)
    if name in repo.tags:
        raise Refusal(409, f"Tag reference exists already: {name}")
    repo.tags[name] = ask.commit(repo).oid
    return told({})


@route("POST", "/api/models/{id}/discussions")
def discuss(ask: Ask) -> Reply:
    repo, wanted = ask.repo(), ask.json()
    ask.may_write(repo, pull=True)
    base = "main" if wanted.get("pullRequest") else None
    made = repo.discuss(wanted["title"], ask.user or "", wanted.get("description", ""), base)
    made.status = "draft" if base else "open"
    return told({"num": made.num, "url": pull_url(ask, repo, made.num)})


def pull_url(ask: Ask, repo: Repo, number: int) -> str:
    return f"{ask.hub.endpoint}/{repo.id}/discussions/{number}"


@route("POST", "/api/validate-yaml")
def validate(ask: Ask) -> Reply:
    errors, warnings = check_card(ask.json()["content"])
    found = {
        "errors": [{"message": each} for each in errors],
        "warnings": [{"message": each} for each in warnings],
    }
    return told(found, 400 if errors else 200)
