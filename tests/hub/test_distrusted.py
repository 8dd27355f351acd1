"""Bytes that went wrong on the way from the Hub, and the token that goes there and nowhere else."""

from pathlib import Path

from tests.conftest import snapshot
from tests.hub.test_remote import files, made

SECRET = "hf_owner"  # the stand-in's; see standin/client.py


def pair(hub, place: Path) -> None:
    made(place / "tuned", 1, made(place / "base", 0))
    for name in ("base", "tuned"):
        hub.server.add(f"org/{name}", files(place / name), private=True)


def test_bytes_that_went_wrong_are_found_and_the_token_stays_secret(hub, tmp_path):
    pair(hub, tmp_path)
    shard = sorted((tmp_path / "tuned").glob("*.safetensors"))[1]
    data = bytearray(shard.read_bytes())
    data[-3] ^= 1  # of the same size, and whole as far as its header says
    hub.server.fault(f"/cdn/org/tuned.*{shard.name}", method="GET", body=bytes(data), times=100)
    command = ("negate", "org/base", "org/tuned", "-o", tmp_path / "out", "-v")
    wrong = hub.ws(*command)
    assert wrong.returncode == 1, wrong
    what, remedy = wrong.stderr[wrong.stderr.index("error:") :].strip().splitlines()[:2]
    assert shard.name in what
    assert "went wrong on the way" in what
    assert not (tmp_path / "out").exists()
    hub.server.faults.clear()
    blob = Path(remedy.removeprefix("Remove ").partition(", then")[0])
    blob.unlink()  # as advised
    right = hub.ws(*command)
    assert right.returncode == 0, right.stderr

    pushed = hub.ws("push", tmp_path / "out", "owner/out", "-v")
    assert pushed.returncode == 0, pushed.stderr
    asked = [each for each in hub.server.requests if each.user == "owner"]
    assert asked  # it was used
    for done in (wrong, right, pushed):
        assert SECRET not in done.stdout + done.stderr
    told = [*snapshot(tmp_path / "out").values(), *hub.server.repos["owner/out"].files().values()]
    cache = hub.directory / "ws-cache"
    told += [path.read_bytes() for path in cache.rglob("*") if path.is_file()]
    assert len(told) > 10
    assert not any(SECRET.encode() in each for each in told)
