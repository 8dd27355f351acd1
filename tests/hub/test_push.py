"""`ws push` against a stand-in Hub: real clients, real bytes."""

import json
import re

import pytest
from huggingface_hub import ModelCard

from tests.cli.typed import ws
from tests.conftest import snapshot
from tests.hub.pushing import HOST, error, ok, recorded, shards, writes
from tests.hub.standin import check_card

# --- round trips ---------------------------------------------------------------------------------

LOGITS = """
import sys, torch
from huggingface_hub import snapshot_download
from transformers import AutoModelForCausalLM
where = snapshot_download(sys.argv[1])
ids = torch.arange(24).reshape(2, 12)
def logits(name):
    with torch.no_grad():
        return AutoModelForCausalLM.from_pretrained(name, dtype="auto")(ids).logits
pushed, edited, base = logits(where), logits(sys.argv[2]), logits(sys.argv[3])
assert not torch.equal(edited, base), "the edit does nothing"
assert torch.equal(pushed, edited)
print(where)
"""


def test_round_trip(hub, outputs):
    done = ok(hub.ws("push", outputs / "edited", "owner/edited"))
    repo = hub.server.repos["owner/edited"]
    lines = done.stdout.strip().splitlines()
    assert re.fullmatch(f"{HOST}owner/edited/commit/{repo.head()}", lines[-1])
    assert "checked on the Hub by size and hash: all as recorded" in lines[-2]
    mine = recorded(outputs / "edited")
    there = repo.files()
    assert set(there) == {*mine, "README.md", "weightsurgery-layers.png", ".gitattributes"}
    assert {name: there[name] for name in mine} == mine
    pushed, created = repo.commits()
    assert pushed.parent == created.oid  # one commit upon the one that made the repository
    fresh = {"HF_HOME": str(hub.directory / "fresh")}
    back = ok(
        hub.python(LOGITS, "owner/edited", outputs / "edited", outputs / "base", env=fresh)
    ).stdout.strip()
    assert "all as recorded" in ok(hub.ws("verify", back)).stdout


PEFT = """
import sys, torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
ids = torch.arange(24).reshape(2, 12)
def logits(adapter):
    base = AutoModelForCausalLM.from_pretrained(sys.argv[3], dtype="float32")
    plain = base(ids).logits
    with torch.no_grad():
        found = PeftModel.from_pretrained(base, adapter)(ids).logits
    assert not torch.equal(found, plain), "the adapter does nothing"
    return found
assert torch.equal(logits(sys.argv[1]), logits(sys.argv[2]))
from huggingface_hub import snapshot_download
print(snapshot_download(sys.argv[1]))
"""


def test_an_adapter_goes_and_comes(hub, outputs):
    hub.server.add("org/base", snapshot(outputs / "base"))
    ok(hub.ws("push", outputs / "adapter", "owner/lora", "--base-model", "org/base"))
    card = ModelCard(hub.server.repos["owner/lora"].files()["README.md"].decode())
    assert card.data.base_model == "org/base"
    assert card.data.get("base_model_relation") == "adapter"
    assert card.data.library_name == "peft"
    assert 'PeftModel.from_pretrained(base, "owner/lora")' in card.text
    assert "**removed** | `sub`" in card.text  # its scale is −1
    fresh = {"HF_HOME": str(hub.directory / "fresh")}
    back = ok(
        hub.python(PEFT, "owner/lora", outputs / "adapter", outputs / "base", env=fresh)
    ).stdout.strip().splitlines()[-1]  # fmt: skip
    assert "all as recorded" in ok(hub.ws("verify", back)).stdout


@pytest.mark.parametrize("name", ["sub", "projected"])
def test_every_kind_of_record_is_pushed(hub, outputs, name):
    ok(hub.ws("push", outputs / name, f"owner/{name}"))
    files = hub.server.repos[f"owner/{name}"].files()
    assert {each: files[each] for each in recorded(outputs / name)} == recorded(outputs / name)
    assert check_card(files["README.md"].decode()) == ([], [])


# --- what is sent --------------------------------------------------------------------------------


def test_nothing_changed_means_no_commit(hub, outputs):
    ok(hub.ws("push", outputs / "edited", "owner/edited"))
    repo = hub.server.repos["owner/edited"]
    head = repo.head()
    hub.server.forget()
    done = ok(hub.ws("push", outputs / "edited", "owner/edited"))
    assert "Nothing changed, so nothing was committed" in done.stdout
    assert done.stdout.strip().endswith(head)
    assert repo.head() == head
    assert writes(hub.server) == []
    # A byte of the card is a change, and the only one.
    repo.commit({"README.md": repo.files()["README.md"] + b"\nmine\n"})
    hub.server.forget()
    ok(hub.ws("push", outputs / "other", "owner/edited"))
    assert b"\nmine\n" in repo.files()["README.md"]
    assert "config.json" not in dict(map(reversed, repo.commits()[0].operations))
    assert hub.server.received("/upload/") == sum(
        (outputs / "other" / name).stat().st_size
        for name in recorded(outputs / "other")
        if name.endswith(".safetensors")
    ) + len(repo.files()["weightsurgery-layers.png"])


def test_only_the_record_s_files_go_up(hub, out):
    (out / "notes.txt").write_text("private")
    (out / "deep").mkdir()
    (out / "deep/token").write_text("secret")
    done = ok(hub.ws("push", out, "owner/edited"))
    files = hub.server.repos["owner/edited"].files()
    assert not any(name in files for name in ("notes.txt", "deep/token"))
    assert "Not uploaded, since the record does not know it: deep/token and 1 more." in done.stderr


def test_stale_weights_go_in_the_same_commit(hub, outputs):
    old = {
        "model-00001-of-00009.safetensors": b"old",
        "pytorch_model.bin": b"old",
        "pytorch_model.bin.index.json": b"{}",
        "onnx/model.onnx": b"kept",
        "adapter_config.json": b"{}",
        "weightsurgery.json": b"{}",
        "notes.md": b"kept",
    }
    repo = hub.server.add("owner/edited", old)
    parent = repo.head()
    done = ok(hub.ws("push", outputs / "edited", "owner/edited"))
    commit = repo.commits()[0]
    gone = {path for kind, path in commit.operations if kind == "deletedFile"}
    assert gone == set(old) - {"notes.md", "onnx/model.onnx", "weightsurgery.json"}
    assert commit.parent == parent
    assert all(name in done.stdout for name in gone)
    assert repo.files()["notes.md"] == repo.files()["onnx/model.onnx"] == b"kept"
    back = hub.python(
        "import sys, huggingface_hub as h; print(h.snapshot_download(sys.argv[1]))", "owner/edited"
    ).stdout.strip()
    ok(hub.ws("verify", back))


def test_weights_of_others_are_not_replaced(hub, outputs):
    repo = hub.server.add("owner/model", {"model.safetensors": b"theirs", "README.md": b"# Mine\n"})
    before, head = repo.files(), repo.head()
    hub.server.forget()
    what, remedy = error(hub.ws("push", outputs / "edited", "owner/model"))
    assert "holds weights that ws did not write (model.safetensors)" in what
    assert "--overwrite" in remedy
    assert "--pr" in remedy
    assert writes(hub.server) == []
    ok(hub.ws("push", outputs / "edited", "owner/model", "--branch", "edited"))
    assert repo.files() == before
    assert "model.safetensors" not in repo.files("edited")
    done = ok(hub.ws("push", outputs / "edited", "owner/model", "--pr"))
    assert re.fullmatch(f"{HOST}owner/model/discussions/1", done.stdout.strip().splitlines()[-1])
    assert repo.files() == before
    assert repo.head() == head
    assert "model.safetensors" not in repo.files("refs/pr/1")
    ok(hub.ws("push", outputs / "other", "owner/model", "--branch", "refs/pr/1"))  # goes on there
    assert len(repo.commits("refs/pr/1")) == 3
    ok(hub.ws("push", outputs / "edited", "owner/model", "--overwrite", "--message", "Mine now"))
    assert repo.commits()[0].title == "Mine now"
    assert "model.safetensors" not in repo.files()
    assert b"# Mine\n" in repo.files()["README.md"]


def test_a_branch_is_made_from_main(hub, outputs):
    ok(hub.ws("push", outputs / "edited", "owner/edited"))
    repo = hub.server.repos["owner/edited"]
    head = repo.head()
    hub.server.forget()
    done = ok(hub.ws("push", outputs / "other", "owner/edited", "--branch", "scale-half"))
    assert "scale-half (to be created)" in done.stderr
    assert repo.head() == head
    assert repo.commits("scale-half")[0].parent == head
    card = repo.files("scale-half")["README.md"].decode()
    assert 'revision="scale-half"' in card
    what, _ = error(hub.ws("push", outputs / "edited", "owner/edited", "--pr", "--branch", "no"))
    assert "no branch or pull request no" in what


def test_visibility_is_never_changed_in_silence(hub, outputs):
    ok(hub.ws("push", outputs / "edited", "owner/hidden", "--private"))
    hidden = hub.server.repos["owner/hidden"]
    assert hidden.private
    ok(hub.ws("push", outputs / "other", "owner/hidden"))  # stays private
    assert hidden.private
    hub.server.add("owner/open", {"a.txt": b""})
    hub.server.forget()
    what, remedy = error(hub.ws("push", outputs / "edited", "owner/open", "--private"))
    assert "is public" in what
    assert "settings" in remedy
    assert writes(hub.server) == []


# --- what goes wrong -----------------------------------------------------------------------------


def test_a_changed_byte_stops_it_before_anything_is_sent(hub, out):
    shard = out / "model-00001-of-00003.safetensors"
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    what, _ = error(hub.ws("push", out, "owner/edited"))
    assert "content differs from the recorded SHA-256" in what
    assert hub.server.requests == []
    what, _ = error(hub.ws("push", hub.directory, "owner/edited"))
    assert "no weightsurgery.json" in what


@pytest.mark.parametrize(
    ("arguments", "env", "what", "remedy"),
    [
        (["owner/new"], {"HF_TOKEN": ""}, "no token", "hf auth login"),
        (["owner/new"], {"HF_TOKEN": "hf_bad"}, "does not accept this token", "hf auth login"),
        (["owner/new"], {"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE", "Unset"),
        (["owner/new", "--dry-run"], {"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE", "Unset"),
        (["owner/new"], {"HF_TOKEN": "hf_other"}, "may not create", "namespace"),
        (["owner/open"], {"HF_TOKEN": "hf_other"}, "may not", "permission"),
        (["owner/secret"], {"HF_TOKEN": "hf_other"}, "may not create", "namespace"),
        (["owner/secret", "--pr"], {"HF_TOKEN": "hf_other"}, "no repository", "hf auth whoami"),
        (["edited"], {}, "no possible name", "org/name"),
        (["owner/a/b"], {}, "no possible name", "org/name"),
        (["owner/edited@main"], {}, "no possible name", "--branch"),
        (["owner/new", "--branch", "a..b"], {}, "no possible name", "such as"),
        (["owner/new", "--base-model", "../base"], {}, "no possible name", "org/name"),
        (["owner/new", "--base-model", "no/where"], {}, "no model", "spelling"),
        (["owner/new", "--scores", "nowhere.json"], {}, "nowhere.json", "ws evaluate"),
    ],
)
def test_errors_have_two_lines(hub, outputs, arguments, env, what, remedy):
    hub.server.add("owner/open", {"a.txt": b"1"})
    hub.server.add("owner/secret", {"a.txt": b"1"}, private=True)
    hub.server.forget()
    lines = error(hub.ws("push", outputs / "edited", *arguments, env=env))
    assert what in lines[0]
    assert remedy in lines[1]
    assert hub.server.received("/upload/") == 0
    assert set(hub.server.repos) == {"owner/open", "owner/secret"}
    assert not any("/commit/" in each for each in writes(hub.server))


def test_a_server_that_is_away(hub, outputs):
    gone = {"HF_ENDPOINT": "http://127.0.0.1:9"}
    what, remedy = error(hub.ws("push", outputs / "edited", "owner/new", env=gone))
    assert "could not be reached" in what
    assert "connection" in remedy


def rival(server, at: str, change) -> None:
    """Let somebody act in the moment a request comes in."""
    inner = server.strike

    def strike(method, path):
        if re.search(at, path):
            server.strike = inner
            change()
        return inner(method, path)

    server.strike = strike


def test_a_branch_that_moved_is_not_overwritten(hub, outputs):
    repo = hub.server.add("owner/edited", {"a.txt": b"1"})
    rival(hub.server, "/preupload/", lambda: repo.commit({"a.txt": b"2"}))
    what, remedy = error(hub.ws("push", outputs / "edited", "owner/edited"))
    assert "somebody committed" in what
    assert "not uploaded twice" in remedy
    assert set(repo.files()) == {"a.txt"}
    sent = hub.server.received("/upload/")
    assert sent > 40_000
    hub.server.forget()
    ok(hub.ws("push", outputs / "edited", "owner/edited"))
    assert hub.server.received("/upload/") == 0  # all of it was stored
    assert repo.files()["a.txt"] == b"2"


def test_a_file_that_changes_under_the_push(hub, out):
    repo = hub.server.add("owner/edited", {"a.txt": b"1"})
    config = out / "config.json"
    rival(hub.server, "/preupload/", lambda: config.write_text(config.read_text() + " "))
    what, _ = error(hub.ws("push", out, "owner/edited"))
    assert "changed while it was being pushed" in what
    assert set(repo.files()) == {"a.txt"}


def test_a_commit_that_holds_something_else_is_told(hub, outputs):
    hub.server.add("owner/edited", {"a.txt": b"1"})
    hub.server.fault("/tree/", body="[]", times=2)  # before, and after
    what, _ = error(hub.ws("push", outputs / "edited", "owner/edited"))
    assert "does not hold what was pushed" in what


def test_an_ignored_file_is_no_silent_loss(hub, outputs):
    hub.server.add("owner/edited", {"a.txt": b"1"})
    names = [*recorded(outputs / "edited"), "README.md", "weightsurgery-layers.png"]
    modes = [
        {"path": n, "uploadMode": "regular", "shouldIgnore": n == "config.json"} for n in names
    ]
    hub.server.fault("/preupload/", body=json.dumps({"files": modes}))
    what, remedy = error(hub.ws("push", outputs / "edited", "owner/edited"))
    assert ".gitignore leaves out config.json" in what
    assert ".gitignore" in remedy
    assert not any("/commit/" in each for each in writes(hub.server))


def test_a_card_the_hub_refuses_costs_no_upload(hub, out):
    (out / "README.md").write_text("---\nlicense: my-own\n---\n")
    hub.server.add("owner/edited", {"a.txt": b"1"})
    what, remedy = error(hub.ws("push", out, "owner/edited"))
    assert "refuses the model card" in what
    assert '"license" must be one of' in what
    assert "README.md" in remedy
    assert hub.server.received("/upload/") == 0


# --- xet -----------------------------------------------------------------------------------------

LOUD = {"HF_HUB_DISABLE_PROGRESS_BARS": "0"}


def test_by_xet(xet_hub, outputs):
    hub = xet_hub
    done = ok(hub.ws("push", outputs / "edited", "owner/edited", "--json", env=LOUD))
    document = json.loads(done.stdout)
    assert document["sent_by"] == "xet"
    weights = sum((outputs / "edited" / name).stat().st_size for name in shards(outputs / "edited"))
    assert weights < document["sent"] < 2 * weights
    assert "Processing Files" not in done.stderr  # one sink: no bars but ours
    repo = hub.server.repos["owner/edited"]
    assert recorded(outputs / "edited").items() <= repo.files().items()
    assert hub.server.received("/upload/") == 0
    again = json.loads(
        ok(
            hub.ws("push", outputs / "edited", "owner/again", "--json", env=LOUD)
        ).stdout
    )  # fmt: skip
    assert again["sent"] < document["sent"] / 4  # the store has the chunks already
    done = ok(hub.ws("push", outputs / "other", "owner/edited"))  # bars off: nobody counts
    assert "by xet" not in done.stdout
    assert "all as recorded" in done.stdout


def test_a_server_without_xet_is_named(hub, outputs):
    pytest.importorskip("hf_xet")
    env = {"HF_HUB_DISABLE_XET": "0"}
    hub.server.add("owner/edited", {"a.txt": b"1"})
    what, remedy = error(hub.ws("push", outputs / "edited", "owner/edited", env=env))
    assert "xet" in what
    assert "HF_HUB_DISABLE_XET=1" in remedy


# --- looking first -------------------------------------------------------------------------------


def test_a_dry_run_writes_nothing_and_needs_no_token(hub, outputs):
    nobody = {"HF_TOKEN": ""}
    done = ok(hub.ws("push", outputs / "projected", "owner/new", "--dry-run", "-v", env=nobody))
    assert "to be created" in done.stdout
    assert "model-00001-of-00003.safetensors" in done.stdout
    record = json.loads((outputs / "projected/weightsurgery.json").read_text())
    assert record["summary"]["copied"] == 7
    hub.server.add("owner/there", {"config.json": (outputs / "base/config.json").read_bytes()})
    document = json.loads(
        ok(
            hub.ws("push", outputs / "projected", "owner/there", "--dry-run", "--json", env=nobody)
        ).stdout
    )
    assert [each["name"] for each in document["present"]] == ["config.json"]
    assert document["creates"] == {"repository": False, "branch": False}
    # Embeddings, head and norms: 2 × 96 × 32 + 5 × 32 numbers of two bytes.
    assert document["bytes"]["unedited_upper_bound"] == 2 * (2 * 96 * 32 + 5 * 32)
    assert ModelCard(document["card"]).data.tags == ["weightsurgery", "unlearning"]
    assert writes(hub.server) == []


def test_json_is_one_document(hub, outputs):
    done = ok(hub.ws("push", outputs / "edited", "owner/edited", "--json"))
    document = json.loads(done.stdout)
    repo = hub.server.repos["owner/edited"]
    assert document["commit"] == repo.head()
    assert document["url"].endswith(f"/owner/edited/commit/{repo.head()}")
    assert document["changed"] is True
    assert document["sent"] == hub.server.received("/upload/")
    assert document["bytes"]["upload"] == sum(each["bytes"] for each in document["upload"])
    quiet = ok(hub.ws("push", outputs / "edited", "owner/edited", "--json", "-q"))
    assert quiet.stderr == ""
    assert json.loads(quiet.stdout)["changed"] is False


def test_help():
    done = ok(ws("push", "--help-all"))
    for text in ("ws push", "Example:", "--private", "--pr", "--branch", "--scores", "--json"):
        assert text in done.stdout
