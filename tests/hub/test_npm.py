"""The client of another language speaks with the same stand-in Hub."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from pathlib import Path

import pytest

HERE = Path(__file__).parent / "npm"
INSTALLED = Path(__file__).parents[2] / ".venv" / "npm"
NODE = shutil.which("node")

pytestmark = [
    pytest.mark.skipif(NODE is None, reason="node is not installed"),
    pytest.mark.skipif(
        not (INSTALLED / "node_modules" / "@huggingface" / "hub").is_dir(),
        reason=f"@huggingface/hub is not in {INSTALLED}: scripts/test puts it there",
    ),
]


def test_the_lock_names_one_version_and_no_host():
    version = json.loads((HERE / "package.json").read_text())["dependencies"]["@huggingface/hub"]
    text = (HERE / "package-lock.json").read_text()
    packages = json.loads(text)["packages"]
    assert packages["node_modules/@huggingface/hub"]["version"] == version
    assert all("integrity" in each for name, each in packages.items() if name)
    assert "://" not in text
    installed = INSTALLED / "node_modules" / "@huggingface" / "hub" / "package.json"
    assert json.loads(installed.read_text())["version"] == version


def test_the_npm_client(hub):
    server = hub.server
    server.part_size = 100_000
    noise = random.Random(0)
    header = json.dumps({"w": {"dtype": "U8", "shape": [300_000], "data_offsets": [0, 300_000]}})
    content = len(header).to_bytes(8, "little") + header.encode() + noise.randbytes(300_000)
    oid = hashlib.sha256(content).hexdigest()
    server.add("org/there", {"model.safetensors": content, "sub/config.json": b"{}"})
    other = noise.randbytes(250_000)
    (hub.directory / "model.safetensors").write_bytes(other)
    (hub.directory / "config.json").write_text('{"mine": true}')

    command = [NODE, HERE / "client.mjs", INSTALLED, server.endpoint, hub.directory]
    done = hub.run([str(each) for each in command])
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout)

    assert answers["me"] == "owner"
    assert answers["there"] == {
        "model.safetensors": oid,
        "sub/config.json": server.repos["org/there"].at("main").tree["sub/config.json"].blob,
    }
    assert answers["info"]["size"] == answers["size"] == len(content)
    assert answers["info"]["etag"] == f'"{oid}"'
    assert answers["range"] == content[1000:1064].hex()
    assert answers["header"] == ["w"]
    assert answers["missing"] is None
    assert answers["commits"] == ["First commit"]
    # Headers and ranges only; the storage never saw the token.
    served = [each for each in server.requests if "/cdn/org/there" in each.path]
    assert sum(each.sent for each in served if each.range == "bytes=1000-1063") == 64
    assert {each.status for each in served} == {206}
    assert {each.user for each in served} == {None}

    repo = server.repos["org/mine"]
    assert answers["created"]["id"] == "org/mine"
    assert answers["private"] is True
    assert answers["again"] == 409
    assert answers["stranger"] == 404
    assert answers["wrong"] == 401
    assert repo.head() == answers["pushed"]
    assert repo.files()["model.safetensors"] == other
    assert repo.files()["config.json"] == b'{"mine": true}'
    assert answers["paths"] == [hashlib.sha256(other).hexdigest()]
    assert answers["late"] == 412
    assert [each.title for each in repo.commits()] == ["Push", "initial commit"]
    assert set(answers["edited"]) == {".gitattributes", "model.safetensors"}
    assert answers["pull"] == f"{server.endpoint}/org/mine/discussions/1"
    assert repo.files("refs/pr/1")["config.json"] == b"[]"
    assert repo.discussions[0].title == "Propose"
    # In three parts, once: the pull request found the object there.
    puts = [each.received for each in server.requests if each.method == "PUT"]
    assert sorted(puts) == [50_000, 100_000, 100_000]
