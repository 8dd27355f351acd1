"""What must not go up with an output, whoever laid it there."""

import json
import os
import shutil

from tests.cli.typed import ws
from tests.hub.pushing import error, ok, writes


def test_a_linked_card_does_not_go_up(hub, out, tmp_path):
    (tmp_path / "secret").write_text("hf_secret")
    for target in (tmp_path / "secret", "/proc/self/environ", "nowhere"):
        (out / "README.md").unlink(missing_ok=True)
        (out / "README.md").symlink_to(target)
        what, _ = error(hub.ws("push", out, "owner/edited"))
        assert "README.md" in what
    (out / "README.md").unlink()
    os.mkfifo(out / "README.md")
    error(hub.ws("push", out, "owner/edited"))
    assert writes(hub.server) == []


def test_a_linked_record_does_not_go_up(hub, out, tmp_path):
    shutil.move(out / "weightsurgery.json", tmp_path / "elsewhere.json")
    (out / "weightsurgery.json").symlink_to(tmp_path / "elsewhere.json")
    what, _ = error(hub.ws("push", out, "owner/edited"))
    assert "weightsurgery.json" in what
    assert writes(hub.server) == []


def test_a_base_s_linked_card_is_not_carried_over(hub, outputs, tmp_path):
    base = shutil.copytree(outputs / "base", tmp_path / "base")
    (tmp_path / "secret").write_text("---\nlicense: hf_secret\n---\n")
    (base / "README.md").symlink_to("../secret")
    ok(ws("negate", "base", outputs / "forget", "-o", "first", cwd=tmp_path))
    done = ok(hub.ws("push", "first", "owner/edited", "--dry-run", "--json", cwd=tmp_path))
    assert "hf_secret" not in json.loads(done.stdout)["card"]
    assert "leads out of the base" in done.stderr
