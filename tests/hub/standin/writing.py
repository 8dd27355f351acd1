"""Routes that write all but content: repositories, branches, tags, discussions."""

from __future__ import annotations

import base64

from tests.hub.standin.cards import check_card
from tests.hub.standin.repos import ATTRIBUTES, Repo
from tests.hub.standin.routes import Call, Refusal, Reply, json_reply, route


@route("POST", "/api/repos/create")
def create(call: Call) -> Reply:
    wanted = call.json()
    if call.user is None:
        raise Refusal(401, "Invalid username or password.")
    if wanted.get("type", "model") != "model":
        raise Refusal(400, "This stand-in holds models only")
    space = wanted.get("organization") or call.user
    repo_id = f"{space}/{wanted['name']}"
    if call.user not in (space, "owner") or space in set(call.hub.tokens.values()) - {call.user}:
        message = f'You don\'t have the rights to create a model under the namespace "{space}"'
        raise Refusal(403, message)
    url = f"{call.hub.endpoint}/{repo_id}"
    with call.hub.lock:
        if repo_id in call.hub.repos:
            message = "You already created this model repo"
            return json_reply({"error": message, "url": url}, 409, {"X-Error-Message": message})
        private = wanted.get("visibility") == "private" or wanted.get("private") is True
        repo = call.hub.create(repo_id, private)
    files: dict[str, bytes] = {".gitattributes": ATTRIBUTES}
    for each in wanted.get("files") or []:
        files[each["path"]] = base64.b64decode(each["content"])
    repo.commit(files, "initial commit")
    return json_reply({"url": url, "name": repo_id, "id": repo_id, "private": private})


@route("DELETE", "/api/repos/delete")
def delete(call: Call) -> Reply:
    wanted = call.json()
    call.parts["id"] = f"{wanted.get('organization') or call.user}/{wanted['name']}"
    call.may_write(call.repo())
    del call.hub.repos[call.parts["id"]]
    return json_reply({})


@route("PUT", "/api/models/{id}/settings")
def settings(call: Call) -> Reply:
    repo, wanted = call.repo(), call.json()
    call.may_write(repo)
    if "visibility" in wanted or "private" in wanted:
        repo.private = wanted.get("visibility") == "private" or wanted.get("private") is True
    if "gated" in wanted:
        repo.gated = bool(wanted["gated"])
    return json_reply({"private": repo.private, "gated": repo.gated})


@route("POST", "/api/models/{id}/branch/{rev}")
def create_branch(call: Call) -> Reply:
    repo, name = call.repo(), call.parts["rev"]
    call.may_write(repo)
    if name.startswith("refs/"):
        raise Refusal(400, f"Invalid reference for a branch: {name}")
    if name in repo.branches:
        raise Refusal(409, f"Reference already exists: refs/heads/{name}")
    call.parts["rev"] = call.json().get("startingPoint") or "main"
    repo.branches[name] = call.commit(repo).oid
    return json_reply({})


@route("DELETE", "/api/models/{id}/branch/{rev}")
def delete_branch(call: Call) -> Reply:
    repo, name = call.repo(), call.parts["rev"]
    call.may_write(repo)
    if name == "main":
        raise Refusal(403, "Cannot delete the default branch")
    if repo.branches.pop(name, None) is None:
        raise Refusal(404, f"Invalid rev id: {name}", "RevisionNotFound")
    return json_reply({})


@route("POST", "/api/models/{id}/tag/{rev}")
def create_tag(call: Call) -> Reply:
    repo, name = call.repo(), call.json()["tag"]
    call.may_write(repo)
    if name in repo.tags:
        raise Refusal(409, f"Tag reference exists already: {name}")
    repo.tags[name] = call.commit(repo).oid
    return json_reply({})


@route("POST", "/api/models/{id}/discussions")
def discuss(call: Call) -> Reply:
    repo, wanted = call.repo(), call.json()
    call.may_write(repo, pull=True)
    base = "main" if wanted.get("pullRequest") else None
    made = repo.discuss(wanted["title"], call.user or "", wanted.get("description", ""), base)
    made.status = "draft" if base else "open"
    return json_reply({"num": made.num, "url": pull_url(call, repo, made.num)})


def pull_url(call: Call, repo: Repo, number: int) -> str:
    return f"{call.hub.endpoint}/{repo.id}/discussions/{number}"


@route("POST", "/api/validate-yaml")
def validate(call: Call) -> Reply:
    errors, warnings = check_card(call.json()["content"])
    found = {
        "errors": [{"message": each} for each in errors],
        "warnings": [{"message": each} for each in warnings],
    }
    return json_reply(found, 400 if errors else 200)
