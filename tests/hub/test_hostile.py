"""Repositories and servers that mean no good: told in two lines, and nothing of it is believed."""

import json
import threading
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from tests.hub.standin import StandIn
from tests.hub.test_remote import fetched, files, made

INDEX = "model.safetensors.index.json"
API = "/api/models/org/{}(/revision|[?]|$)"

# What opening each of some names ends with; whatever is no error of ours ends the process.
OPEN = """
import json, sys
from weightsurgery.checkpoint.remote import open_remote
from weightsurgery.errors import WeightSurgeryError
told = {}
for name in sys.argv[1:]:
    try:
        with open_remote(name) as found:
            told[name] = [None, float(found.tensor("layers.0.mlp.up_proj.weight").double().sum())]
    except WeightSurgeryError as error:
        told[name] = [error.what, error.remedy]
print(json.dumps(told))
"""


@pytest.fixture
def base(hub, tmp_path) -> Path:
    """``org/base``, also in a directory."""
    made(tmp_path / "base", 0)
    hub.server.add("org/base", files(tmp_path / "base"))
    return tmp_path / "base"


def opened(hub, *names: str, **env: str) -> dict[str, tuple[str | None, Any]]:
    done = hub.python(OPEN, *names, env=env)
    assert done.returncode == 0, done.stderr
    return {name: tuple(found) for name, found in json.loads(done.stdout).items()}


def described(server: StandIn, name: str) -> dict[str, Any]:
    """How a server describes a repository."""
    with urllib.request.urlopen(f"{server.endpoint}/api/models/org/{name}?blobs=true") as answer:
        return json.load(answer)


def say(server: StandIn, name: str, answer: Any) -> None:
    """Let a server describe a repository otherwise, as often as it is asked."""
    body = answer if isinstance(answer, str) else json.dumps(answer)
    server.fault(API.format(name), body=body, times=1000)


def weights(description: dict[str, Any]) -> list[dict[str, Any]]:
    return [each for each in description["siblings"] if each["rfilename"].endswith("tensors")]


def test_files_that_lie_are_refused(hub, base):
    honest = files(base)
    shards = sorted(name for name in honest if name.endswith(".safetensors"))
    index = json.loads(honest[INDEX].read_text())
    first = next(iter(index["weight_map"]))
    cases: dict[str, tuple[dict[str, Any], str]] = {}
    for number, path in enumerate(("../../../x.safetensors", "/x.safetensors", "a\\x.safetensors")):
        content = index | {"weight_map": index["weight_map"] | {first: path}}
        files_told = honest | {INDEX: json.dumps(content).encode()}
        cases[f"org/out-{number}"] = (files_told, "outside the checkpoint")
    for number, length in enumerate((2**64 - 1, 2**63, 100_000_001, 1_000_000)):
        content = length.to_bytes(8, "little") + honest[shards[0]].read_bytes()[8:]
        cases[f"org/long-{number}"] = (honest | {shards[0]: content}, f"header of {length} bytes")
    for name, (content, _) in cases.items():
        hub.server.add(name, content)
    hub.server.forget()
    found = opened(hub, "org/base", *cases)
    assert found["org/base"][0] is None  # before it was touched, it opens
    for name, (_, what) in cases.items():
        assert what in (found[name][0] or ""), (name, found[name])


def test_sizes_and_names_that_lie_are_refused(hub, base):
    honest = files(base)
    cases: dict[str, str] = {}

    def lie(name: str, what: str) -> dict[str, Any]:
        hub.server.add(f"org/{name}", honest)
        cases[f"org/{name}"] = what
        return described(hub.server, name)

    for number, size in enumerate((-5, "12", 2**63, 1.5, True, [])):
        listing = lie(f"size-{number}", "for a size")
        weights(listing)[0]["size"] = size
        say(hub.server, f"size-{number}", listing)
    for number, name in enumerate(("../../x.safetensors", "/x.safetensors", "a/../b", "", None)):
        listing = lie(f"name-{number}", "for a file's name")
        weights(listing)[0]["rfilename"] = name
        say(hub.server, f"name-{number}", listing)
    for number, answer in enumerate(([], {}, None, "word", {"id": 1, "siblings": [{}]})):
        lie(f"shape-{number}", "no description of a repository")
        say(hub.server, f"shape-{number}", json.dumps(answer))
    for number, body in enumerate(("<html>Log in to this network</html>", "", "\x00\x01")):
        lie(f"portal-{number}", "what answers is not the Hub")
        say(hub.server, f"portal-{number}", body)
    listing = lie("longer", "ends before byte")  # by far, and its header says it fills that
    for each in weights(listing):
        each["size"] = 2**40
    say(hub.server, "longer", listing)
    hub.server.fault("/cdn/org/longer", method="GET", status=416, times=1000)
    hub.server.forget()
    found = opened(hub, *cases)
    for name, what in cases.items():
        assert what in (found[name][0] or ""), (name, found[name])
    assert fetched(hub) == 0
    assert not list(base.parent.rglob("x.safetensors"))


def test_a_size_that_lies_fetches_no_more_than_a_header(hub, base):
    """Of a file said to be a terabyte, with half of it header, eight bytes are enough."""
    content = (2**39).to_bytes(8, "little") + bytes(1000)
    hub.server.add("org/huge", {"model.safetensors": content, "config.json": b"{}"})
    listing = described(hub.server, "huge")
    weights(listing)[0]["size"] = 2**40
    say(hub.server, "huge", listing)
    hub.server.forget()
    what, _ = opened(hub, "org/huge")["org/huge"]
    assert f"header of {2**39} bytes" in what
    assert fetched(hub) <= 64


def test_other_bytes_than_those_asked_for_are_refused(hub, base):
    honest = files(base)
    size = max(path.stat().st_size for path in base.glob("*.safetensors"))
    answers = {
        "elsewhere": ({"Content-Range": f"bytes 8-15/{size}"}, "the server answers 'bytes 8-15"),
        "nowhere": ({}, "the server answers ''"),
        "parts": ({"Content-Type": "multipart/byteranges"}, "the server answers ''"),
        "packed": (
            {"Content-Range": f"bytes 0-7/{size}", "Content-Encoding": "gzip"}, "'gzip' data",
        ),
    }  # fmt: skip
    for name, (headers, _) in answers.items():
        hub.server.add(f"org/{name}", honest)
        hub.server.fault(f"/cdn/org/{name}", status=206, body=bytes(8), headers=headers, times=1000)
    found = opened(hub, *(f"org/{name}" for name in answers))
    for name, (_, what) in answers.items():
        message, remedy = found[f"org/{name}"]
        assert what in (message or ""), (name, message)
        assert "--no-remote" in remedy
    assert not list(hub.directory.rglob("parts/*.ranges"))  # and nothing of it was kept


class Thief(BaseHTTPRequestHandler):
    """Another host: serves what it is asked for, and keeps what it is told."""

    content: dict[str, bytes] = {}  # noqa: RUF012
    heard: list[str | None] = []  # noqa: RUF012

    def do_GET(self) -> None:
        self.heard.append(self.headers.get("Authorization"))
        start, stop = map(int, self.headers["Range"].removeprefix("bytes=").split("-"))
        content = self.content[self.path]
        part = content[start : stop + 1]
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {start}-{stop}/{len(content)}")
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        self.wfile.write(part)

    def log_message(self, *_: Any) -> None:
        """Keep the tests' output clean."""


@pytest.fixture
def thief() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Thief)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield f"127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_redirection_takes_no_token_along(hub, base, tmp_path, thief):
    tensors = {k: v for path in base.glob("*.safetensors") for k, v in load_file(path).items()}
    Thief.content.clear()
    Thief.heard.clear()
    for name, target in (
        ("host", f"http://{thief}/host"),
        ("name", f"http://{thief.replace('127.0.0.1', 'localhost')}/name"),
        ("loop", f"{hub.server.endpoint}/org/loop/resolve/main/model.safetensors"),
        ("file", "file:///etc/passwd"),
        ("other", "ftp://example.org/x"),
    ):
        # Each of its own: a content that came by one name is not fetched by another.
        save_file(tensors, tmp_path / name, {"format": "pt", "name": name})
        Thief.content[f"/{name}"] = (tmp_path / name).read_bytes()
        content = {"model.safetensors": tmp_path / name, "config.json": b"{}"}
        hub.server.add(f"org/{name}", content, private=True)
        hub.server.fault(
            f"/org/{name}/resolve/.*safetensors", method="GET", status=302,
            headers={"Location": target}, times=1000,
        )  # fmt: skip
    names = [f"org/{name}" for name in ("host", "name", "loop", "file", "other")]
    found = opened(hub, *names)
    users = [each.user for each in hub.server.requests if "/org/host/resolve" in each.path]
    assert users
    assert set(users) == {"owner"}  # the Hub itself was told
    assert found["org/host"][0] is found["org/name"][0] is None
    assert Thief.heard
    assert set(Thief.heard) == {None}
    for name in names[2:]:
        assert found[name][0] is not None, name
        assert "root:" not in str(found[name])


def test_what_one_server_says_does_not_stand_for_another_s_bytes(hub, base, tmp_path):
    """A part has no hash of its own: a server could give any bytes the name of others."""
    (honest,) = opened(hub, "org/base").values()
    cache = {"WEIGHTSURGERY_CACHE": str(tmp_path / "shared")}
    made(tmp_path / "evil", 1)
    with StandIn() as evil:
        evil.add("org/base", files(tmp_path / "evil"))
        listing, true = described(evil, "base"), described(hub.server, "base")
        assert [e["size"] for e in weights(listing)] == [e["size"] for e in weights(true)]
        for each, other in zip(weights(listing), weights(true), strict=True):
            assert each["lfs"]["sha256"] != other["lfs"]["sha256"]
            each["lfs"]["sha256"] = other["lfs"]["sha256"]
        say(evil, "base", listing)
        (theirs,) = opened(hub, "org/base", HF_ENDPOINT=evil.endpoint, **cache).values()
    assert theirs[0] is None
    assert theirs != honest  # it could not be told from the bytes alone
    hub.server.forget()
    (again,) = opened(hub, "org/base", **cache).values()
    assert again == honest
