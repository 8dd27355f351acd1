"""`ws push` that was cut off, killed or not answered, and is given once more."""

import json
import re
import signal
import subprocess
import time

import pytest

from tests.hub.pushing import HOST, error, ok, shards, writes
from tests.hub.standin import WS


def test_a_cut_connection_is_taken_up_again(hub, outputs):
    edited = outputs / "edited"
    (first, *rest) = shards(edited).items()
    hub.server.add("owner/edited", {"a.txt": b"1"})
    hub.server.fault(f"/upload/.*{first[1]}", method="PUT", cut_after=5000)
    done = ok(hub.ws("push", edited, "owner/edited"))
    assert hub.server.received(first[1]) == 5000 + (edited / first[0]).stat().st_size
    for name, sha in rest:
        assert hub.server.received(sha) == (edited / name).stat().st_size
    assert "of content sent by LFS" in done.stdout


def test_a_killed_push_goes_on_where_it_was(hub, outputs):
    edited = outputs / "edited"
    (name, sha), *rest = shards(edited).items()
    repo = hub.server.add("owner/edited", {"a.txt": b"1"})
    hub.server.fault(f"/upload/.*{sha}", method="PUT", cut_after=5000, times=100)
    push = [WS, "push", str(edited), "owner/edited"]
    process = subprocess.Popen(
        push, env=hub.env, cwd=hub.directory, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        stored = sum(
            "/verify" in each.path and each.status == 200 for each in list(hub.server.requests)
        )
        if stored == len(rest) + 1 and hub.server.received(sha):  # and the picture
            break
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert set(repo.files()) == {"a.txt"}  # nothing that could pass for a model
    hub.server.faults.clear()
    hub.server.forget()
    ok(hub.ws("push", edited, "owner/edited"))
    assert hub.server.received("/upload/") == (edited / name).stat().st_size
    assert len(repo.commits()) == 2


def test_an_answer_that_got_lost(hub, outputs):
    repo = hub.server.add("owner/edited", {"a.txt": b"1"})
    hub.server.fault("/commit/", lost=True)
    what, remedy = error(hub.ws("push", outputs / "edited", "owner/edited"))
    assert "could not be reached" in what
    assert "not uploaded twice" in remedy
    assert len(repo.commits()) == 2  # it arrived all the same
    assert "Nothing changed" in ok(hub.ws("push", outputs / "edited", "owner/edited")).stdout
    assert len(repo.commits()) == 2


def test_a_pull_request_whose_answer_got_lost_is_found_again(hub, outputs):
    repo = hub.server.add("owner/model", {"model.safetensors": b"theirs", "README.md": b"# Mine\n"})
    push = ("push", outputs / "edited", "owner/model", "--pr")
    ok(hub.ws("push", outputs / "other", "owner/model", "--pr"))  # another proposal stands by
    hub.server.fault("/commit/", lost=True)
    what, _ = error(hub.ws(*push))
    assert "could not be reached" in what
    assert len(repo.discussions) == 2  # it was opened all the same
    before = repo.commits("refs/pr/2")
    hub.server.page_size = 1  # it is not on the first page
    repo.discuss("A question", "owner")
    repo.discuss("Another idea", "owner", base="main")
    hub.server.forget()
    plan = json.loads(ok(hub.ws(*push, "--dry-run", "--json")).stdout)
    assert plan["pull_request"].endswith("/owner/model/discussions/2")
    assert plan["upload"] == plan["deleted"] == []
    done = ok(hub.ws(*push))
    assert "pull request 2 proposes all of it" in done.stdout
    assert "Nothing changed" in done.stdout
    assert re.fullmatch(f"{HOST}owner/model/discussions/2", done.stdout.strip().splitlines()[-1])
    document = json.loads(ok(hub.ws(*push, "--json")).stdout)
    assert document["changed"] is False
    assert document["commit"] == before[0].oid
    assert writes(hub.server) == []
    assert len(repo.discussions) == 4
    assert repo.commits("refs/pr/2") == before


@pytest.mark.parametrize(
    "why", ["closed", "somebody else's", "changed", "main moved", "kept", "elsewhere"]
)
def test_a_pull_request_that_is_not_the_same_is_left_alone(hub, outputs, why):
    repo = hub.server.add("owner/model", {"pytorch_model.bin": b"theirs", "a.txt": b"1"})
    push = ("push", outputs / "edited", "owner/model", "--pr")
    ok(hub.ws(*push))
    (first,) = repo.discussions
    if why == "closed":
        first.status = "closed"
    elif why == "somebody else's":
        first.author = "other"
    elif why == "changed":
        repo.commit({"config.json": b"{}"}, revision=first.ref)
    elif why == "main moved":
        repo.commit({"a.txt": b"2"})
    elif why == "elsewhere":  # to another branch, which is where main is
        repo.branches["next"] = repo.head()
        first.base = "next"
    else:  # what this push would delete is back
        repo.commit({"pytorch_model.bin": b"theirs"}, revision=first.ref)
    done = ok(hub.ws(*push))
    assert re.fullmatch(f"{HOST}owner/model/discussions/2", done.stdout.strip().splitlines()[-1])
    assert len(repo.discussions) == 2
    assert repo.head("refs/pr/2") != repo.head("refs/pr/1")
