"""The card that `ws push` writes, and the scores in it."""

import json
import os
import re
import shutil
from pathlib import Path

import torch
from huggingface_hub import ModelCard

from tests.cli.typed import ws
from tests.conftest import snapshot
from tests.hub.pushing import error, ok, shards, writes
from tests.hub.standin import check_card, front_matter
from weightsurgery.report.card_scores import content_of


def card(hub, repo="owner/edited", revision="main") -> str:
    return hub.server.repos[repo].files(revision)["README.md"].decode()


def test_the_base_s_licence_is_carried_over_from_its_directory(hub, outputs, tmp_path):
    base = shutil.copytree(outputs / "base", tmp_path / "base")
    (base / "README.md").write_text("---\nlicense: gemma\nlanguage: [en]\n---\n# Base\n")
    ok(ws("negate", "base", outputs / "forget", "-o", "first", cwd=tmp_path))
    ok(ws("add", "first", outputs / "keep", "-o", "second", cwd=tmp_path))
    done = ok(hub.ws("push", "second", "owner/edited", cwd=tmp_path))
    data = front_matter(card(hub))
    assert data["license"] == "gemma"  # of the base's base: both were written from there
    assert data["language"] == ["en"]
    assert "base_model" not in data  # a path is no name
    assert "no base_model" in done.stderr
    assert "The base `first` was itself written by WeightSurgery." in card(hub)
    (base / "config.json").write_text("{}")  # another model lies there now
    done = ok(hub.ws("push", "first", "owner/other", cwd=tmp_path))
    assert "license" not in front_matter(card(hub, "owner/other"))
    assert "names no licence" in done.stderr


def test_a_base_on_the_hub_is_named_and_its_card_read_at_its_revision(hub, outputs, tmp_path):
    files = {
        **snapshot(outputs / "base"),
        "README.md": b"---\nlicense: other\nlicense_name: mine\nlicense_link: TERMS.md\n---\n",
    }
    repo = hub.server.add("org/base", files)
    commit = repo.head()
    ok(hub.ws("negate", "org/base", outputs / "forget", "-o", tmp_path / "out"))
    repo.commit({"README.md": b"---\nlicense: mit\n---\n"})
    ok(hub.ws("push", tmp_path / "out", "owner/edited"))
    data = front_matter(card(hub))
    assert data["base_model"] == "org/base"
    assert data["base_model_relation"] == "finetune"
    assert data["license"] == "other"
    assert data["license_link"] == f"{hub.server.endpoint}/org/base/blob/{commit}/TERMS.md"
    assert f"`{commit[:12]}`" in card(hub)
    assert str(tmp_path) not in card(hub)
    ok(hub.ws("add", "out", outputs / "keep", "-o", "again", cwd=tmp_path))
    found = hub.ws("push", "again", "owner/again", "--dry-run", "--json", cwd=tmp_path)
    again = front_matter(json.loads(ok(found).stdout)["card"])
    assert again["base_model"] == "org/base"  # which is what the local base was made from
    ok(hub.ws("push", "again", "owner/again", "-q", cwd=tmp_path))
    published = hub.server.repos["owner/again"].files("main")["weightsurgery.json"].decode()
    assert str(tmp_path) not in published  # nor is there a notice to be missed
    assert str(outputs) not in published


def test_a_user_s_own_card_stays(hub, out):
    mine = b"---\nlicense: mit # mine\ntags:\n- chess\n---\n\n# Mine\r\n\n* one  \n"
    repo = hub.server.add("owner/edited", {"README.md": mine})
    done = ok(hub.ws("push", out, "owner/edited"))
    assert "your text stays" in done.stderr
    text = repo.files()["README.md"]
    assert b"# Mine\r\n\n* one  \n" in text
    assert text.startswith(b"---\nlicense: mit # mine\n")
    assert front_matter(text.decode())["tags"][0] == "chess"
    head = repo.head()
    ok(hub.ws("push", out, "owner/edited"))
    assert repo.head() == head
    # One that lies in OUT counts more.
    (out / "README.md").write_bytes(b"# Written here\n")
    done = ok(hub.ws("push", out, "owner/edited"))
    assert b"# Written here\n" in repo.files()["README.md"]
    assert b"# Mine" not in repo.files()["README.md"]
    assert "replaces that of the card on the Hub" in done.stderr
    assert (out / "README.md").read_bytes() == b"# Written here\n"
    # And a branch begins with main's.
    (out / "README.md").unlink()
    ok(hub.ws("push", out, "owner/edited", "--branch", "b"))
    assert b"# Written here\n" in repo.files("b")["README.md"]


def test_damaged_cards_stop_it(hub, out):
    hub.server.add("owner/edited", {"README.md": b"<!-- weightsurgery:begin -->"})
    hub.server.forget()
    what, remedy = error(hub.ws("push", out, "owner/edited"))
    assert "must stand there once" in what
    assert "Mend" in remedy
    (out / "README.md").write_bytes(b"\xff")
    what, _ = error(hub.ws("push", out, "owner/edited"))
    assert "not UTF-8" in what
    assert writes(hub.server) == []


def scores_of(out: Path, after: float) -> str:
    def estimate(value):
        return {"value": value, "interval": [value, value], "examples": 4, "why": ""}

    found = {
        "checkpoint": str(out), "against": "base", "tasks": [], "content": content_of(out),
        "sets": [{"name": "authors", "path": "authors.jsonl", "role": "forget", "examples": 4,
                  "scores": {"exact_match": estimate(after)},
                  "before": {"exact_match": estimate(1.0)},
                  "forgetting": {"exact_match": estimate(100 * (1 - after))}}],
    }  # fmt: skip
    return json.dumps(found)


def test_scores_come_with_it_and_go_with_other_weights(hub, outputs, out, tmp_path):
    (tmp_path / "scores.json").write_text(scores_of(out, 0.25))
    ok(hub.ws("push", out, "owner/edited", "--scores", tmp_path / "scores.json"))
    repo = hub.server.repos["owner/edited"]
    assert "| `authors` | forget | 4 | exact match | 100.0 % [100.0, 100.0] | 25.0 %" in card(hub)
    evaluation = json.loads(repo.files()["evaluation.json"])
    assert evaluation[0]["sets"][0]["scores"]["exact_match"]["value"] == 0.25
    assert str(tmp_path) not in repo.files()["evaluation.json"].decode()
    lines = error(
        hub.ws("push", outputs / "other", "owner/edited", "--scores", tmp_path / "scores.json")
    )
    assert "which is not" in lines[0]
    assert "ws evaluate" in lines[1]
    done = ok(hub.ws("push", outputs / "other", "owner/edited"))
    assert "evaluation.json" not in repo.files()
    assert "evaluation.json" in done.stdout
    assert "Not scored yet" in card(hub)


def test_scores_of_other_bytes_are_refused(hub, outputs, out, tmp_path):
    scores = tmp_path / "scores.json"
    push = ("push", out, "owner/edited", "--scores", scores)
    scores.write_text(scores_of(out, 0.25))
    ok(hub.ws(*push, "--dry-run"))
    # Made again at the same place, with another scale: the path alone would not tell.
    shutil.rmtree(out)
    shutil.copytree(outputs / "other", out)
    what, remedy = error(hub.ws(*push))
    assert "scores of other content than" in what
    assert re.search(r"\(model-0000[123]-of-00003\.safetensors and 2 more differ\)", what)
    assert f"ws evaluate {out} ... --json > {scores}" in remedy
    scores.write_text(scores_of(out, 0.25))
    ok(hub.ws(*push, "--dry-run"))
    for content in (None, [], "x"):  # as an earlier ws wrote them, or nobody did
        scores.write_text(json.dumps(json.loads(scores_of(out, 0.25)) | {"content": content}))
        what, _ = error(hub.ws(*push))
        assert "does not say which bytes were scored" in what
    assert "owner/edited" not in hub.server.repos


def test_an_evaluation_of_somebody_else_s_stays(hub, outputs):
    repo = hub.server.add("owner/edited", {"evaluation.json": b"{}", "README.md": b"# Mine\n"})
    ok(hub.ws("push", outputs / "edited", "owner/edited"))
    assert repo.files()["evaluation.json"] == b"{}"


def test_a_pushed_card_is_valid_and_complete(hub, outputs):
    ok(hub.ws("push", outputs / "projected", "owner/edited"))
    text = card(hub)
    assert check_card(text) == ([], [])
    assert ModelCard(text).data.library_name == "transformers"
    for name, sha in shards(outputs / "projected").items():
        assert f"| `{name}` |" in text
        assert sha in text
    assert "ws project base --forget forget --keep keep -o projected" in text
    assert "![Size of the change by layer](weightsurgery-layers.png)" in text
    assert "**removed** | `forget`" in text
    assert "kept | `keep`" in text
    assert "AutoModelForCausalLM" in text
    assert os.path.realpath(outputs) not in text
    assert torch.__version__.replace("+", "") in text.replace("+", "")
