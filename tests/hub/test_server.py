"""The real Python client speaks with the stand-in Hub, and finds there what the Hub would say."""

from __future__ import annotations

import hashlib
import json
import random
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest

from tests.hub.standin import HubClient, check_card

PRELUDE = """
import json, sys, warnings
from pathlib import Path
from huggingface_hub import (
    CommitOperationAdd as Add, CommitOperationDelete as Delete, HfApi, HfFileSystem,
    hf_hub_download, snapshot_download,
)
from huggingface_hub import errors
api, told, here = HfApi(), {}, Path(sys.argv[1])

def refused(call, *arguments, **options):
    try:
        call(*arguments, **options)
    except errors.HfHubHTTPError as error:
        return [type(error).__name__, error.response.status_code]
    except ValueError as error:
        return ["ValueError", str(error)]
    return None
"""


def noise(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def ask(hub: HubClient, code: str, *arguments: object, **env: str) -> dict:
    """What a client's code put into ``told``."""
    code = f"{PRELUDE}\n{code}\nprint(json.dumps(told))"
    done = hub.python(code, hub.directory, *arguments, env=env)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def fetch(url: str, method: str = "GET", **headers: str) -> tuple[int, bytes, dict[str, str]]:
    """Without any client: status, body and headers."""
    request = urllib.request.Request(url, method=method, headers=headers)
    try:
        with urllib.request.urlopen(request) as reply:
            return reply.status, reply.read(), {k.lower(): v for k, v in reply.headers.items()}
    except urllib.error.HTTPError as error:
        return error.code, error.read(), {k.lower(): v for k, v in error.headers.items()}


def test_create_push_and_read_back(hub):
    server = hub.server
    server.part_size = 100_000
    large, small = noise(250_000), noise(60_000, 1)
    (hub.directory / "model.safetensors").write_bytes(large)
    (hub.directory / "small.safetensors").write_bytes(small)
    told = ask(
        hub,
        """
told["me"] = api.whoami()["name"]
told["before"] = api.repo_exists("org/m")
api.create_repo("org/m", private=True)
told["again"] = refused(api.create_repo, "org/m")
api.create_repo("org/m", exist_ok=True)
empty = api.model_info("org/m")
told["private"] = empty.private
card = b"---\\nlicense: mit\\nbase_model: org/b\\nbase_model_relation: finetune\\n---\\n"
first = api.create_commit("org/m", [
    Add("model.safetensors", here / "model.safetensors"),
    Add("extra/small.safetensors", here / "small.safetensors"),
    Add("config.json", b"{}"), Add("README.md", card),
], commit_message="Push", commit_description="All of it", parent_commit=empty.sha)
told["first"], told["parent"] = first.oid, empty.sha
info = api.model_info("org/m", files_metadata=True)
told["card"] = info.card_data.to_dict()
told["sizes"] = {each.rfilename: each.size for each in info.siblings}
told["lfs"] = {each.rfilename: each.lfs.sha256 for each in info.siblings if each.lfs}
told["tree"] = [each.path for each in api.list_repo_tree("org/m")]
told["deep"] = {
    each.path: each.blob_id for each in api.list_repo_tree("org/m", recursive=True)
    if not each.path == "extra"
}
told["paths"] = [each.path for each in api.get_paths_info("org/m", ["extra", "config.json", "no"])]
api.create_branch("org/m", branch="edit/one")
api.create_tag("org/m", tag="v1", revision=first.oid)
second = api.create_commit(
    "org/m", [Delete("extra/"), Add("note.txt", b"hello")], commit_message="Tidy",
    revision="edit/one", parent_commit=first.oid,
)
told["second"] = second.oid
told["moved"] = refused(
    api.create_commit, "org/m", [Add("x", b"x")], commit_message="Late", revision="edit/one",
    parent_commit=first.oid,
)
told["gone"] = refused(
    api.create_commit, "org/m", [Delete("no.txt")], commit_message="Delete what is not there"
)
pull = api.create_commit(
    "org/m", [Add("config.json", b"[]")], commit_message="Propose", create_pr=True,
    parent_commit=first.oid,
)
told["pull"] = [pull.pr_url, pull.pr_revision, pull.pr_num]
opened = api.create_pull_request("org/m", title="Empty", description="Filled below")
api.create_commit(
    "org/m", [Add("y.txt", b"y")], commit_message="Fill", revision=opened.git_reference
)
told["opened"] = [opened.num, opened.is_pull_request, opened.target_branch]
told["listed"] = [each.title for each in api.get_repo_discussions("org/m")]
refs = api.list_repo_refs("org/m", include_pull_requests=True)
told["refs"] = {
    each.ref: each.target_commit for each in refs.branches + refs.tags + refs.pull_requests
}
told["log"] = [each.title for each in api.list_repo_commits("org/m", revision="edit/one")]
told["revision"] = refused(api.model_info, "org/m", revision="nope")
told["entry"] = refused(hf_hub_download, "org/m", "nope.json")
told["repo"] = refused(api.model_info, "org/nope")
""",
    )
    repo = server.repos["org/m"]
    assert told["me"] == "owner"
    assert not told["before"]
    assert told["again"] == ["HfHubHTTPError", 409]
    assert told["private"]
    assert repo.private

    files = repo.files("v1")
    card = files.pop("README.md")
    assert card.startswith(b"---\nlicense: mit")
    assert ".gitattributes" in files
    assert files["model.safetensors"] == large
    assert files["extra/small.safetensors"] == small
    assert repo.head() == told["first"]
    commit = repo.commits()[0]
    assert (commit.title, commit.description, commit.parent) == (
        "Push",
        "All of it",
        told["parent"],
    )
    assert ("lfsFile", "model.safetensors") in commit.operations
    assert ("file", "config.json") in commit.operations
    assert told["card"]["base_model_relation"] == "finetune"
    assert told["sizes"]["model.safetensors"] == 250_000
    assert told["lfs"] == {
        "model.safetensors": sha256(large), "extra/small.safetensors": sha256(small)
    }  # fmt: skip
    assert told["tree"] == [
        ".gitattributes", "README.md", "config.json", "extra", "model.safetensors"
    ]  # fmt: skip
    # What git itself says: `printf '{}' | git hash-object --stdin`.
    assert told["deep"]["config.json"] == "9e26dfeeb6e641a33dae4961196235bdb965b21b"
    assert told["paths"] == ["extra", "config.json"]

    assert set(repo.files("edit/one")) == set(files) - {"extra/small.safetensors"} | {
        "README.md", "note.txt"
    }  # fmt: skip
    assert repo.head("edit/one") == told["second"]
    assert told["moved"] == ["HfHubHTTPError", 412]
    assert told["gone"] == ["RemoteEntryNotFoundError", 404]
    assert told["pull"] == [f"{server.endpoint}/org/m/discussions/1", "refs/pr/1", 1]
    assert repo.files("refs/pr/1")["config.json"] == b"[]"
    assert repo.files()["config.json"] == b"{}"
    assert told["opened"] == [2, True, "refs/heads/main"]
    assert repo.files("refs/pr/2")["y.txt"] == b"y"
    assert told["listed"] == ["Propose", "Empty"]
    assert told["refs"] == {
        "refs/heads/main": told["first"],
        "refs/heads/edit/one": told["second"],
        "refs/tags/v1": told["first"],
        "refs/pr/1": repo.head("refs/pr/1"),
        "refs/pr/2": repo.head("refs/pr/2"),
    }
    assert told["log"] == ["Tidy", "Push", "initial commit"]
    assert told["revision"] == ["RevisionNotFoundError", 404]
    assert told["entry"] == ["RemoteEntryNotFoundError", 404]
    assert told["repo"] == ["RepositoryNotFoundError", 404]

    # Three parts of the large file, one request for the small one; each byte once, no token.
    puts = [each for each in server.requests if each.method == "PUT"]
    assert sorted(each.received for each in puts) == [50_000, 60_000, 100_000, 100_000]
    assert {each.user for each in puts} == {None}
    assert server.received("/upload/") == 310_000
    completions = [each for each in server.requests if "complete_multipart" in each.path]
    assert [(each.status, each.user) for each in completions] == [(200, None)]
    server.forget()
    assert server.received() == 0


def test_who_may_what(hub):
    server = hub.server
    files = {"config.json": b"{}", "model.safetensors": noise(1000)}
    for name, options in (("open", {}), ("secret", {"private": True}), ("gate", {"gated": True})):
        server.add(f"org/{name}", files, **options)
    server.add("other/own", files, private=True)
    told = ask(
        hub,
        """
def answers(token):
    api = HfApi(token=token)
    def commit(repo, **options):
        api.create_commit(repo, [Add("x.txt", b"x")], commit_message="Mine", **options)
    def download(repo):
        hf_hub_download(repo, "model.safetensors", token=token, cache_dir=here / str(token))
    return {
        "me": token and refused(api.whoami),
        "info": refused(api.model_info, "org/secret"),
        "secret": refused(download, "org/secret"),
        "tree": refused(lambda: list(api.list_repo_tree("org/secret"))),
        "gate info": refused(api.model_info, "org/gate"),
        "gate": refused(download, "org/gate"),
        "open": refused(download, "org/open"),
        "missing": refused(api.model_info, "org/missing"),
        "create": refused(api.create_repo, "org/new-" + str(token).lower()),
        "write": refused(commit, "org/open"),
        "pull": refused(commit, "org/open", create_pr=True),
        "others pull": refused(commit, "org/open", revision="refs/pr/1"),
        "own": refused(commit, "other/own"),
    }
api.create_pull_request("org/open", title="The owner's")
told = {str(token): answers(token) for token in ("hf_owner", "hf_other", "hf_wrong", False)}
""",
    )
    missing, gone = ["RepositoryNotFoundError", 404], ["RepositoryNotFoundError", 401]
    wrong, closed = ["HfHubHTTPError", 401], ["HfHubHTTPError", 403]
    assert told["hf_owner"] == dict.fromkeys(told["hf_owner"]) | {
        "missing": missing,
        "own": missing,
    }
    assert told["hf_other"] == {
        "me": None,
        "info": missing,
        "secret": missing,
        "tree": missing,
        "gate info": None,
        "gate": ["GatedRepoError", 403],
        "open": None,
        "missing": missing,
        "create": closed,
        "write": closed,
        "pull": None,
        "others pull": closed,
        "own": None,
    }
    assert told["hf_wrong"] == dict.fromkeys(told["hf_wrong"], wrong)
    assert told["False"] == {
        "me": False,
        "info": gone,
        "secret": gone,
        "tree": gone,
        "gate info": None,
        "gate": ["GatedRepoError", 401],
        "open": None,
        "missing": gone,
        "create": wrong,
        "write": wrong,
        "pull": wrong,
        "others pull": wrong,
        "own": gone,
    }
    server.repos["org/gate"].readers.add("other")
    assert fetch(
        f"{server.endpoint}/org/gate/resolve/main/config.json", Authorization="Bearer hf_other"
    )[:2] == (200, b"{}")


UPLOAD = """
api.create_commit("org/m", [
    Add("a.safetensors", here / "a"), Add("b.safetensors", here / "b"), Add("c.txt", b"c"),
], commit_message="Push", num_threads=1)
"""


def test_upload_cut_in_the_middle_and_resumed(hub):
    server = hub.server
    server.add("org/m", {"README.md": b"# M\n"})
    first, second = noise(40_000), noise(90_000, 1)
    (hub.directory / "a").write_bytes(first)
    (hub.directory / "b").write_bytes(second)
    server.fault(sha256(second), method="PUT", cut_after=50_000, times=99)
    with subprocess.Popen(
        [sys.executable, "-c", PRELUDE + UPLOAD, hub.directory],
        env=hub.env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    ) as client:  # fmt: skip
        until = time.monotonic() + 60
        while server.received(sha256(second)) < 50_000 or not server.store.has(sha256(first)):
            assert time.monotonic() < until
            assert client.poll() is None
            time.sleep(0.01)
        client.kill()
    assert server.received(sha256(first)) == 40_000
    assert not server.store.has(sha256(second))
    assert set(server.repos["org/m"].files()) == {"README.md"}

    # Again, with one more cut, which the client itself survives.
    server.faults.clear()
    server.forget()
    server.fault(sha256(second), method="PUT", cut_after=70_000)
    ask(hub, UPLOAD)
    assert server.received(sha256(first)) == 0
    assert server.received(sha256(second)) == 70_000 + 90_000
    assert server.repos["org/m"].files() == {
        "README.md": b"# M\n", "a.safetensors": first, "b.safetensors": second, "c.txt": b"c"
    }  # fmt: skip

    # And once more: nothing to send, nothing to commit.
    server.forget()
    ask(hub, UPLOAD)
    assert server.received("/upload/") == 0
    assert len(server.repos["org/m"].commits()) == 2


def test_a_commit_names_only_what_was_uploaded(hub):
    server = hub.server
    repo = server.add("org/m", {"README.md": b"# M\n"})
    url = f"{server.endpoint}/api/models/org/m/commit/main"
    lines = [
        {"key": "header", "value": {"summary": "Cheat", "description": ""}},
        {
            "key": "lfsFile",
            "value": {"path": "m.bin", "algo": "sha256", "oid": "0" * 64, "size": 9},
        },
    ]
    body = "\n".join(map(json.dumps, lines)).encode()
    request = urllib.request.Request(url, body, {"Authorization": "Bearer hf_owner"})
    with pytest.raises(urllib.error.HTTPError) as refusal:
        urllib.request.urlopen(request)
    assert refusal.value.code == 400
    refusal.value.close()
    assert set(repo.files()) == {"README.md"}
    # Nor does the storage keep what differs from its name.
    oid = sha256(b"right")
    put = urllib.request.Request(
        f"{server.cdn}/upload/org/m/{oid}?X-Amz-Signature={server.sign(f'/upload/org/m/{oid}')}",
        b"wrong", method="PUT",
    )  # fmt: skip
    with pytest.raises(urllib.error.HTTPError) as refusal:
        urllib.request.urlopen(put)
    assert refusal.value.code == 400
    refusal.value.close()
    assert not server.store.has(oid)


def test_downloads_by_range_snapshot_and_resumption(hub):
    server = hub.server
    shard = noise(12 * 2**20)
    header = json.dumps({"w": {"dtype": "U8", "shape": [500_000], "data_offsets": [0, 500_000]}})
    tensors = len(header).to_bytes(8, "little") + header.encode() + noise(500_000, 2)
    repo = server.add(
        "org/m",
        {"shard.safetensors": shard, "model.safetensors": tensors, "sub/config.json": b"{}"},
    )
    old = repo.head()
    told = ask(
        hub,
        """
files = HfFileSystem()
with files.open("org/m/shard.safetensors", "rb", cache_type="none") as file:
    for start, size in ((0, 8), (5_000_000, 1234)):
        file.seek(start)
        told[str(start)] = file.read(size).hex()
found = api.get_safetensors_metadata("org/m")
told["shape"] = found.files_metadata["model.safetensors"].tensors["w"].shape
""",
    )
    assert told["0"] == shard[:8].hex()
    assert told["5000000"] == shard[5_000_000:5_001_234].hex()
    assert told["shape"] == [500_000]
    # A stranger to the token serves the content, and each range exactly.
    served = [each for each in server.requests if "/cdn/" in each.path]
    assert [(each.status, each.range, each.sent) for each in served] == [
        (206, "bytes=0-7", 8),
        (206, "bytes=5000000-5001233", 1234),
        (206, "bytes=0-100000", 100_001),
    ]
    assert {each.user for each in served} == {None}
    assert server.sent("shard.safetensors") == 8 + 1234

    # Whole, with the connection cut: the client goes on where it was (it reads 10 MiB at once).
    repo.commit({"sub/config.json": b"[]"})
    server.forget()
    server.fault("/cdn/.*shard", cut_after=11 * 2**20)
    told = ask(
        hub,
        """
root = Path(snapshot_download("org/m", revision=sys.argv[2], max_workers=1))
told = {str(each.relative_to(root)): each.stat().st_size for each in root.rglob("*.*")}
told["same"] = __import__("hashlib").sha256((root / "shard.safetensors").read_bytes()).hexdigest()
told["config"] = (root / "sub" / "config.json").read_text()
""",
        old,
    )
    assert told == {
        "shard.safetensors": 12 * 2**20, "model.safetensors": len(tensors), "sub/config.json": 2,
        "same": sha256(shard), "config": "{}",
    }  # fmt: skip
    served = [each for each in server.requests if "shard" in each.path and each.method == "GET"]
    assert [(each.status, each.range, each.sent) for each in served] == [
        (200, None, 11 * 2**20),
        (206, f"bytes={10 * 2**20}-", 2 * 2**20),
    ]


def test_ranges_and_heads_as_http_has_them(hub):
    server = hub.server
    content = noise(1000)
    repo = server.add("org/m", {"m.safetensors": content, "config.json": b'{"a": 1}'})
    url = f"{server.endpoint}/org/m/resolve/main"
    for given, status, expected, content_range in (
        ("bytes=10-19", 206, content[10:20], "bytes 10-19/1000"),
        ("bytes=990-", 206, content[990:], "bytes 990-999/1000"),
        ("bytes=990-5000", 206, content[990:], "bytes 990-999/1000"),
        ("bytes=-5", 206, content[-5:], "bytes 995-999/1000"),
        ("lines=1-2", 200, content, None),
    ):
        reply = fetch(f"{url}/m.safetensors", Range=given)
        assert reply[:2] == (status, expected), given
        assert reply[2].get("content-range") == content_range
    status, _, headers = fetch(f"{url}/m.safetensors", Range="bytes=1000-1001")
    assert (status, headers["content-range"]) == (416, "bytes */1000")
    status, body, headers = fetch(f"{url}/config.json", method="HEAD")
    assert (status, body) == (200, b"")
    assert headers["x-repo-commit"] == repo.head()
    assert headers["etag"] == '"{}"'.format(repo.at("main").tree["config.json"].blob)
    assert headers["content-length"] == "8"
    assert server.requests[-1].sent == 0
    raw = fetch(f"{server.endpoint}/org/m/raw/main/m.safetensors")[1]
    assert f"oid sha256:{sha256(content)}\nsize 1000\n".encode() in raw


def test_the_storage_wants_a_signature_and_no_token(hub):
    server = hub.server
    server.add("org/m", {"m.safetensors": noise(1000)})

    class Stay(urllib.request.HTTPRedirectHandler):
        def redirect_request(self, *_):
            return None

    with pytest.raises(urllib.error.HTTPError) as moved:
        urllib.request.build_opener(Stay).open(
            f"{server.endpoint}/org/m/resolve/main/m.safetensors"
        )
    location = moved.value.headers["Location"]
    moved.value.close()
    assert moved.value.headers["X-Linked-Size"] == "1000"
    assert moved.value.headers["X-Linked-ETag"] == f'"{sha256(noise(1000))}"'
    assert not location.startswith(server.endpoint)
    assert fetch(location)[:2] == (200, noise(1000))
    assert fetch(location, Authorization="Bearer hf_owner")[0] == 400
    assert fetch(location[:-4] + "0000")[0] == 403


def test_faults_on_demand(hub):
    server = hub.server
    small = b"x" * 1000
    repo = server.add("org/m", {"config.json": small})
    url = f"{server.endpoint}/org/m/resolve/main/config.json"
    assert fetch(url)[0] == 200
    server.fault("config", status=503, body="later", headers={"Retry-After": "7"}, times=2)
    for _ in range(2):
        status, body, headers = fetch(url)
        assert (status, body, headers["retry-after"]) == (503, b"later", "7")
    assert fetch(url)[:2] == (200, small)
    server.fault("config", method="HEAD", status=500)
    assert fetch(url)[0] == 200
    assert fetch(url, method="HEAD")[0] == 500
    server.fault("config", body=b"another")
    assert fetch(url)[:2] == (200, b"another")
    server.forget()
    server.fault(r"/resolve/main/config\.json$", cut_after=100)
    with pytest.raises(Exception, match="IncompleteRead") as cut:
        fetch(url)
    assert cut.value.partial == small[:100]
    assert [each.sent for each in server.requests] == [100]
    # A cut waits for a body that is long enough: not for the way to the storage.
    repo.commit({"m.bin": noise(1000)})
    server.fault("m.bin", cut_after=0)
    with pytest.raises(Exception, match="IncompleteRead"):
        fetch(f"{server.endpoint}/org/m/resolve/main/m.bin")
    assert [(each.status, each.sent) for each in server.requests[1:]] == [(302, 0), (200, 0)]
    # What was asked is done, and the answer is lost.
    server.fault("/branch/", lost=True)
    branch = urllib.request.Request(
        f"{server.endpoint}/api/models/org/m/branch/new", b"{}",
        {"Authorization": "Bearer hf_owner"},
    )  # fmt: skip
    with pytest.raises(ConnectionError):
        urllib.request.urlopen(branch)
    assert repo.branches["new"] == repo.head()


def test_a_rival_and_long_lists(hub):
    server = hub.server
    server.page_size = 3
    repo = server.add("org/m", {f"f{number}.txt": b"%d" % number for number in range(8)})
    before = repo.head()
    after = repo.commit({"f0.txt": None, "f8.txt": b"8"}, "Rival")
    assert repo.files(before)["f0.txt"] == b"0"
    told = ask(
        hub,
        """
told["files"] = [each.path for each in api.list_repo_tree("org/m")]
told["moved"] = refused(
    api.create_commit, "org/m", [Add("x", b"x")], commit_message="Late", parent_commit=sys.argv[2]
)
api.create_commit(
    "org/m", [Add("x", b"x")], commit_message="Late", parent_commit=sys.argv[2], create_pr=True
)
""",
        before,
    )
    assert told["files"] == [f"f{number}.txt" for number in range(1, 9)]
    assert told["moved"] == ["HfHubHTTPError", 412]
    assert [each.oid for each in repo.commits()] == [after, before]
    assert repo.commits()[0].operations == (("deletedFile", "f0.txt"), ("file", "f8.txt"))
    # A pull request grows from the commit it names.
    assert repo.commits("refs/pr/1")[0].parent == before
    assert set(repo.files("refs/pr/1")) == set(repo.files(before)) | {"x"}


def test_a_hub_without_xet_fails_a_client_that_expects_it(hub):
    hub.server.add("org/m", {"config.json": b"{}"})
    told = ask(
        hub,
        """
try:
    api.create_commit("org/m", [Add("m.bin", b"1234")], commit_message="Push")
except Exception as error:
    told["error"] = [each.__name__ for each in type(error).__mro__]
""",
        HF_HUB_DISABLE_XET="0",
    )
    assert "ConnectionError" in told["error"]
    statuses = [each.status for each in hub.server.requests if "xet-write-token" in each.path]
    assert set(statuses) == {404}
    assert len(hub.server.repos["org/m"].commits()) == 1


@pytest.mark.parametrize(
    ("card", "error"),
    [
        ("---\nlicense: mit\nbase_model: org/m\ntags:\n- a\n---\n# M", None),
        ("---\nlicense: [mit, other]\nlanguage: en\n---\n", None),
        ("---\nlicense: mine\n---\n", '"license" must be one of'),
        ("---\nlicense: 3\n---\n", '"license" must be a string'),
        ("---\nbase_model: a b\n---\n", "is not valid"),
        ("---\nbase_model_relation: child\n---\n", "must be one of [adapter, finetune"),
        ("---\ntags: a\n---\n", '"tags" must be an array'),
        ("---\ntags: [1]\n---\n", '"tags" must be an array'),
        ("---\nlicense: [mit\n---\n", "Invalid YAML"),
        ("---\n- a\n---\n", "must be an object"),
        ("---\nmodel-index:\n- results: []\n---\n", '"model-index[0].name" is required'),
    ],
)
def test_cards_are_checked(card, error):
    errors, warnings = check_card(card)
    assert warnings == []
    assert not errors if error is None else error in errors[0]


def test_a_bad_card_is_refused_before_and_in_the_commit(hub):
    server = hub.server
    repo = server.add("org/m", {"config.json": b"{}"})
    told = ask(
        hub,
        """
bad = b"---\\nlicense: mine\\n---\\n# M\\n"
commit = lambda: api.create_commit("org/m", [Add("README.md", bad)], commit_message="Card")
told["client"] = refused(commit)
HfApi._validate_yaml = lambda *_, **__: None
told["server"] = refused(commit)
HfApi._validate_yaml = HfApi.__mro__[0]._validate_yaml
""",
    )
    assert told["client"][0] == "ValueError"
    assert '"license" must be one of' in told["client"][1]
    assert told["server"] == ["BadRequestError", 400]
    assert set(repo.files()) == {"config.json"}
    bare = json.dumps({"content": "# No metadata"}).encode()
    request = urllib.request.Request(f"{server.endpoint}/api/validate-yaml", bare)
    with urllib.request.urlopen(request) as reply:
        found = json.load(reply)
    assert found["errors"] == []
    assert "empty or missing" in found["warnings"][0]["message"]


def test_xet_stores_only_what_is_new(xet_hub):
    hub, server = xet_hub, xet_hub.server
    mib = 2**20
    old = noise(24 * mib)
    new = old[: 8 * mib] + noise(4 * mib, 1) + old[12 * mib :]
    path = hub.directory / "model.safetensors"
    path.write_bytes(old)
    push = """
from huggingface_hub import constants
api.create_repo("org/m", exist_ok=True)
made = api.create_commit("org/m", [
    Add("model.safetensors", here / "model.safetensors"), Add("config.json", b"{}"),
], commit_message="Push")
told["oid"] = made.oid
"""
    first = ask(hub, push)["oid"]
    stored = server.cas.stored()
    assert stored >= 24 * mib
    path.write_bytes(new)
    second = ask(hub, push)["oid"]
    grown = server.cas.stored() - stored
    assert 4 * mib <= grown < 5 * mib
    assert server.received("/upload/") == 0

    repo = server.repos["org/m"]
    assert repo.files(first)["model.safetensors"] == old
    server.add("org/mine", {"model.safetensors": noise(mib, 2)})
    told = ask(
        hub,
        """
import hashlib, hf_xet
for name, repo, revision in (("old", "org/m", sys.argv[2]), ("new", "org/m", None),
                             ("mine", "org/mine", None)):
    root = Path(snapshot_download(repo, revision=revision))
    told[name] = hashlib.sha256((root / "model.safetensors").read_bytes()).hexdigest()
# One file, whose xet hash only the answer to HEAD tells; and the hash in the tree.
alone = Path(hf_hub_download("org/m", "model.safetensors", cache_dir=here / "alone"))
told["alone"] = hashlib.sha256(alone.read_bytes()).hexdigest()
told["hash"] = [each.xet_hash for each in api.get_paths_info("org/m", ["model.safetensors"])]
told["computed"] = [each.hash for each in hf_xet.hash_files([str(alone)])]
# By range, past the content store: while this client still holds it.
with HfFileSystem().open("org/m/model.safetensors", "rb", cache_type="none") as file:
    file.seek(9_000_000)
    told["part"] = file.read(100).hex()
""",
        first,
    )
    assert told["old"] == sha256(old)
    assert told["new"] == sha256(new)
    assert told["mine"] == sha256(noise(mib, 2))
    assert told["alone"] == sha256(new)
    assert told["hash"] == told["computed"]
    assert told["part"] == new[9_000_000:9_000_100].hex()
    assert server.sent("/cdn/") == 100
    assert repo.head() == second
