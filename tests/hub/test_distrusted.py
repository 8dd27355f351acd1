"""A token that nobody is told of, and small files that are not what the Hub lists."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from tests.hub.standin import HubClient
from tests.hub.test_remote import files, made, two_lines

TOKEN = "hf_tokenThatNobodyMayReadAnywhere0123456789"

DOWNLOAD = """
import sys
from huggingface_hub import snapshot_download
print(open(snapshot_download(sys.argv[1]) + "/config.json").read())
"""


@pytest.fixture
def base(hub: HubClient, tmp_path: Path) -> Path:
    """``org/base`` and ``org/tuned``, also in ``tmp_path``."""
    made(tmp_path / "tuned", 1, made(tmp_path / "base", 0))
    for name in ("base", "tuned"):
        hub.server.add(f"org/{name}", files(tmp_path / name))
    return tmp_path / "base"


def swapped(hub: HubClient, base: Path, name: str) -> bytes:
    """Let a small file come as other bytes of the same length, under the honest hash."""
    honest = (base / name).read_bytes()
    other = honest.replace(b"llama", b"qwen2") if name == "config.json" else honest[::-1]
    assert len(other) == len(honest)
    assert other != honest
    hub.server.fault(f"/org/base/resolve/.*/{name}", method="GET", body=other, times=1000)
    return other


@pytest.mark.parametrize("command", [
    ["negate", "org/base", "org/tuned", "-o", "out"], ["inspect", "org/base"],
], ids=["all of it", "by ranges"])  # fmt: skip
def test_small_files_are_compared_with_their_hash(
    hub: HubClient, base: Path, command: list[str]
) -> None:
    other = swapped(hub, base, "config.json")
    done = hub.python(DOWNLOAD, "org/base", env={"HF_HOME": str(base.parent / "theirs")})
    assert done.stdout.encode().strip() == other.strip()  # what fetches it believes it
    what, remedy = two_lines(hub.ws(*command, "-q"))
    assert "config.json" in what
    assert "on the Hub to" in what
    assert "fetched anew" in remedy
    assert not (hub.directory / "out").exists()
    hub.server.faults.clear()
    Path(remedy.split()[1].rstrip(",")).unlink()
    assert hub.ws(*command, "-q").returncode == 0


def test_so_is_an_index(hub: HubClient, base: Path) -> None:
    swapped(hub, base, "model.safetensors.index.json")
    what, _ = two_lines(hub.ws("inspect", "org/base"))
    assert "on the Hub to" in what


def test_a_hash_that_lies_is_noticed(hub: HubClient, base: Path) -> None:
    """The listing names one content, the server gives another one and calls it by its own name."""
    import urllib.request

    with urllib.request.urlopen(f"{hub.server.endpoint}/api/models/org/base?blobs=true") as answer:
        listing = json.load(answer)
    assert hub.ws("inspect", "org/base", env={"HF_HOME": str(base.parent / "x")}).returncode == 0
    for each in listing["siblings"]:
        if each["rfilename"] == "config.json":
            each["blobId"] = "b" * 40
    hub.server.fault("/api/models/org/base(/revision|[?]|$)", body=json.dumps(listing), times=1000)
    what, _ = two_lines(hub.ws("inspect", "org/base"))
    assert "bbbbbbbbbbbb" in what


def everywhere(hub: HubClient, runs: list[subprocess.CompletedProcess[str]]) -> dict[str, bytes]:
    """All that commands said, wrote, kept and sent, by where it is."""
    found = {f"{each.args[1:]}": f"{each.stdout}{each.stderr}".encode() for each in runs}
    for path in hub.directory.rglob("*"):
        if path.is_file():
            found[str(path)] = path.read_bytes()
    for name, repo in hub.server.repos.items():
        for branch in repo.branches:
            found |= {f"{name}@{branch}/{p}": data for p, data in repo.files(branch).items()}
    return found


def test_the_token_is_nowhere(hub: HubClient, base: Path) -> None:
    hub.server.tokens[TOKEN] = "owner"
    hub.env |= {"HF_TOKEN": TOKEN, "HF_HUB_VERBOSITY": "debug", "HF_DEBUG": "1",
                "TRANSFORMERS_VERBOSITY": "debug"}  # fmt: skip
    hub.server.repos["org/base"].private = True
    hub.server.fault("/org/tuned/resolve/", status=503, times=1)
    runs = [
        hub.ws("inspect", "org/base", "--json", "-v"),
        hub.ws("diff", "org/base", "org/tuned", "-o", "vector", "--json", "--html", "page.html"),
        hub.ws("negate", "org/base", "org/tuned", "-o", "out", "-v"),
        hub.ws("verify", "out", "--json"),
        hub.ws("run", "--from", "out", "-v"),
        hub.ws("push", "out", "org/out", "-v"),
        hub.ws("push", "out", "org/out", "--json", "--dry-run"),
    ]
    requests = [each for each in hub.server.requests if each.user == "owner"]
    assert len(requests) > 10  # it was used
    # And where something goes wrong.
    hub.server.fault("/api/models/org/base", status=500, body="no", times=100)
    hub.server.fault("/api/repos/create", status=403, times=100)
    runs += [
        hub.ws("inspect", "org/base@nothing", "-v"),
        hub.ws("inspect", "org/none", "--json"),
        hub.ws("push", "out", "owner/other", "-v"),
        hub.ws("negate", "org/base", "org/none", "-o", "out2", "-v"),
        hub.ws("negate", "org/base", "org/none", "-o", "out2", env={"HF_ENDPOINT": "http://127.0.0.1:9"}),
    ]  # fmt: skip
    codes = [each.returncode for each in runs]
    assert codes[:4] == [0] * 4, [each.stderr for each in runs[:4]]
    assert codes[5:7] == [0, 0], [each.stderr for each in runs[5:7]]
    assert all(codes[-5:]), codes
    found = everywhere(hub, runs)
    assert any(name.endswith("README.md") for name in found)
    assert any(name.endswith("weightsurgery.json") for name in found)
    leaks = [name for name, data in found.items() if TOKEN.encode() in data]
    assert leaks == []
    (hub.directory / "leak").write_text(f"a {TOKEN} b")  # it would be seen
    assert [n for n, data in everywhere(hub, runs).items() if TOKEN.encode() in data] != []
