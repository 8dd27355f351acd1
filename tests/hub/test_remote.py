"""Checkpoints of the Hub as sources: pinned, read by ranges, and what stands in the way."""

import json
import shutil
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
import torch

from tests.conftest import snapshot, write_checkpoint
from tests.hub.standin import HubClient
from weightsurgery.checkpoint.mirror import Ranges

WIDE = "layers.0.mlp.up_proj.weight"


def made(directory: Path, seed: int, of: dict[str, torch.Tensor] | None = None):
    """A checkpoint of three shards; a fine-tune of another one if that is given."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {f"layers.{n}.self_attn.q_proj.weight": (64, 64) for n in range(4)}
    shapes |= {f"layers.{n}.mlp.up_proj.weight": (256, 64) for n in range(4)}
    shapes |= {"embed_tokens.weight": (300, 64), "lm_head.weight": (300, 64)}
    noise = {k: torch.randn(shape, generator=generator) for k, shape in sorted(shapes.items())}
    tensors = noise if of is None else {k: of[k] + 0.01 * noise[k] for k in noise}
    config = {"model_type": "llama", "tie_word_embeddings": True}
    write_checkpoint(directory, tensors, 3, config)
    return tensors


def files(directory: Path) -> dict[str, Path]:
    return {path.name: path for path in directory.iterdir()}


@pytest.fixture
def pair(hub, tmp_path):
    """``org/base`` and ``org/tuned``, also in ``tmp_path``."""
    made(tmp_path / "tuned", 1, made(tmp_path / "base", 0))
    for name in ("base", "tuned"):
        hub.server.add(f"org/{name}", files(tmp_path / name))
    return tmp_path


def headers(directory: Path) -> int:
    """Bytes of the headers of all shards."""
    found = 0
    for path in directory.glob("*.safetensors"):
        found += 8 + int.from_bytes(path.read_bytes()[:8], "little")
    return found


def fetched(hub: HubClient) -> int:
    """Bytes of weight files that were served, by range or not."""
    whole = sum(each.sent for each in hub.server.requests if each.range is None)
    small = sum(each.sent for each in hub.server.requests if "/cdn" not in each.path)
    assert whole <= small, "a weight file was asked for without a range"
    return sum(each.sent for each in hub.server.requests if each.range and each.status == 206)


def kept(hub: HubClient) -> int:
    """Bytes of weight files that the lists of the cache say are here."""
    total = 0
    for path in hub.directory.rglob("parts/*.ranges"):
        ranges, size = Ranges(), path.with_suffix("").stat().st_size
        for line in path.read_text().splitlines():
            ranges.add(*map(int, line.split()))
        total += size - sum(stop - start for start, stop in ranges.missing(0, size))
    return total


def document(done: subprocess.CompletedProcess) -> dict:
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def two_lines(done: subprocess.CompletedProcess) -> tuple[str, str]:
    assert done.returncode == 1, (done.stdout, done.stderr)
    assert done.stdout == ""
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 2, lines
    assert lines[0].startswith("error: ")
    return lines[0].removeprefix("error: "), lines[1]


# By ranges


def test_inspect_moves_the_headers_and_no_other_byte(hub, pair):
    found = document(hub.ws("inspect", "org/base", "--json"))
    assert fetched(hub) == headers(pair / "base")
    assert found["revision"] == hub.server.repos["org/base"].head()
    local = document(hub.ws("inspect", pair / "base", "--json"))
    for key in ("parameters", "nbytes", "shards", "dtypes", "kinds", "groups"):
        assert found[key] == local[key], key
    # Which of the two is a copy only their bytes could tell.
    assert local["tied"] == {}
    assert "not compared" in found["tied"]["lm_head.weight"]

    hub.server.forget()
    document(hub.ws("inspect", "org/base", "--json"))
    assert fetched(hub) == 0  # headers of this commit are known


def test_a_diff_of_two_tensors_moves_their_bytes_and_the_headers(hub, pair):
    chosen = ("--include", WIDE, "--include", "layers.2.self_attn.q_proj.weight")
    wanted = 2 * 4 * (256 * 64 + 64 * 64)
    whole = sum(path.stat().st_size for path in (pair / "base").glob("*.safetensors"))
    both = headers(pair / "base") + headers(pair / "tuned")
    assert both + wanted < 2 * whole / 5

    plan = document(hub.ws("diff", "org/base", "org/tuned", *chosen, "--dry-run", "--json"))
    assert fetched(hub) == both
    assert plan["fetch_bytes"] == plan["read_bytes"] == wanted

    found = document(hub.ws("diff", "org/base", "org/tuned", *chosen, "--json"))
    assert fetched(hub) == both + wanted
    assert found["fetched"] == wanted  # the dry run had fetched the headers
    local = document(hub.ws("diff", pair / "base", pair / "tuned", *chosen, "--json"))
    assert found["tensors"] == local["tensors"]
    assert len(found["tensors"]) == 2
    assert found["lineage"][0]["verdict"] == "related"

    hub.server.forget()
    again = document(hub.ws("diff", "org/base", "org/tuned", *chosen, "--json"))
    assert (fetched(hub), again["fetched"]) == (0, 0)
    assert again["tensors"] == found["tensors"]


def test_what_is_saved_is_what_local_files_give(hub, pair):
    options = ("--layers", "1-2", "--rank", "4")
    done = hub.ws("diff", "org/base", "org/tuned", *options, "-o", pair / "remote")
    assert done.returncode == 0, done.stderr
    done = hub.ws("diff", pair / "base", pair / "tuned", *options, "-o", pair / "local")
    assert done.returncode == 0, done.stderr
    remote, local = snapshot(pair / "remote"), snapshot(pair / "local")
    assert remote.keys() == local.keys()
    for name in remote.keys() - {"weightsurgery.json"}:
        assert remote[name] == local[name]
    records = [json.loads(each["weightsurgery.json"]) for each in (remote, local)]
    for role, repo in (("base", "org/base"), ("vector", "org/tuned")):
        ours, theirs = (record["inputs"][role] for record in records)
        assert ours["files"] == theirs["files"]  # SHA-256, though hardly a byte was read
        assert ours["revision"] == hub.server.repos[repo].head()
        assert theirs["revision"] is None

    # And it is a change of the base like any other, the Hub's or a local one.
    done = hub.ws("negate", pair / "base", pair / "remote", "-o", pair / "edited")
    assert done.returncode == 0, done.stderr


def test_remote_or_the_cache_as_one_likes(hub, pair):
    size = sum(path.stat().st_size for path in (pair / "base").glob("*.safetensors"))
    narrow = ("diff", "org/base", "org/tuned", "--include", WIDE, "--json")
    first = document(hub.ws(*narrow, "--no-remote"))
    assert hub.server.sent("/cdn") >= 2 * size  # all of it
    hub.server.forget()
    # What the cache holds in whole is not fetched again.
    assert document(hub.ws(*narrow, "--remote"))["tensors"] == first["tensors"]
    assert hub.server.sent("/cdn") == 0

    shutil.rmtree(hub.directory / "hf")
    all_of_it = document(hub.ws("diff", "org/base", "org/tuned", "--remote", "--json"))
    assert all_of_it["fetched"] > 2 * size - 1000
    assert fetched(hub) == all_of_it["fetched"]
    assert not list((hub.directory / "hf").rglob("*.safetensors"))


# What goes wrong on the way


def test_a_cut_connection_is_taken_up_where_it_broke(hub, pair):
    chosen = ("--include", WIDE, "--json")
    document(hub.ws("inspect", "org/base", "--json"))
    document(hub.ws("inspect", "org/tuned", "--json"))
    hub.server.forget()
    hub.server.fault("/cdn", cut_after=20_000, times=2)
    found = document(hub.ws("diff", "org/base", "org/tuned", *chosen))
    local = document(hub.ws("diff", pair / "base", pair / "tuned", *chosen))
    assert found["tensors"] == local["tensors"]
    assert fetched(hub) == 2 * 4 * 256 * 64  # not a byte twice
    ranges = [each.range for each in hub.server.requests if each.range and each.sent]
    assert len(ranges) == 4  # two tensors, each in two parts


def test_a_run_that_failed_goes_on_where_it_stopped(hub, pair):
    chosen = ("--include", "layers.*.up_proj.weight", "--json")
    document(hub.ws("diff", "org/base", "org/tuned", *chosen, "--dry-run"))
    hub.server.forget()
    hub.server.fault("org/tuned/resolve.*safetensors", method="GET", status=403, times=100)
    before = kept(hub)
    what, _ = two_lines(hub.ws("diff", "org/base", "org/tuned", *chosen))
    assert "org/tuned" in what
    # What the server sent and nobody had received yet when it failed is lost; the rest is kept.
    here = kept(hub) - before
    assert 0 < here <= fetched(hub)
    hub.server.faults.clear()
    hub.server.forget()
    document(hub.ws("diff", "org/base", "org/tuned", *chosen))
    assert fetched(hub) == 2 * 4 * 4 * 256 * 64 - here


def test_a_busy_hub_is_asked_again(hub, pair):
    hub.server.fault("/cdn", status=503, headers={"Retry-After": "0"})
    found = document(hub.ws("inspect", "org/base", "--json"))
    assert found["tensors"] == 10
    assert any(each.status == 503 for each in hub.server.requests)


def test_a_hash_that_is_a_path_names_no_file(hub, pair):
    with urllib.request.urlopen(f"{hub.server.endpoint}/api/models/org/base?blobs=true") as answer:
        data = json.load(answer)
    evil = next(each for each in data["siblings"] if each["rfilename"].endswith(".safetensors"))
    evil["lfs"]["sha256"] = "../../../escaped"
    hub.server.fault("/api/models/org/base", status=200, body=json.dumps(data))
    what, _ = two_lines(hub.ws("inspect", "org/base"))
    assert "../../../escaped" in what
    assert fetched(hub) == 0
    assert not list(pair.rglob("escaped*"))


def test_a_server_without_ranges_is_refused(hub, pair):
    hub.server.fault("/cdn", status=200, body=bytes(10), times=100)
    what, remedy = two_lines(hub.ws("inspect", "org/base"))
    assert "org/base" in what
    assert "ignores byte ranges" in what
    assert "--no-remote" in remedy


@pytest.mark.parametrize("command", ["inspect", "negate"])
def test_who_may_not_read_is_told_so(hub, pair, command):
    server, names = hub.server, files(pair / "base")
    server.add("org/secret", names, private=True)
    server.add("org/gated", names, gated=True)
    server.add("org/pickles", {"pytorch_model.bin": b"x", "config.json": b"{}"})
    server.add("org/empty", {"README.md": b"nothing", "config.json": b"{}"})

    def fails(name: str, token: str = "hf_other") -> tuple[str, str]:
        options = [] if command == "inspect" else [pair / "tuned", "-o", pair / "out"]
        done = hub.ws(command, name, *options, env={"HF_TOKEN": token})
        assert not (pair / "out").exists()
        return two_lines(done)

    what, remedy = fails("org/secret")
    assert "org/secret: neither a directory here nor a repository you can see" in what
    assert "hf auth login" in remedy
    what, remedy = fails("org/gated")
    assert "org/gated: gated repository" in what
    assert "Ask for access" in remedy
    what, _ = fails("org/nowhere")
    assert "org/nowhere" in what
    what, remedy = fails("org/base@v9")
    assert "org/base@v9: no such revision" in what
    what, remedy = fails("org/base", "hf_wrong")
    assert "org/base" in what
    assert "hf auth login" in remedy
    what, remedy = fails("org/pickles")
    assert "org/pickles: holds PyTorch pickles (pytorch_model.bin)" in what
    what, _ = fails("org/empty")
    assert "org/empty: no .safetensors file among its" in what
    assert hub.server.sent("/cdn") == 0
    assert hub.ws("inspect", "org/secret").returncode == 0


def test_offline_only_the_cache_is_used(hub, pair):
    offline = {"HF_HUB_OFFLINE": "1"}
    what, remedy = two_lines(hub.ws("inspect", "org/base", env=offline))
    assert "the Hub could not be reached" in what
    assert "HF_HUB_OFFLINE" in remedy
    assert hub.server.requests == []
    assert hub.ws("negate", "org/base", "org/tuned", "-o", pair / "out").returncode == 0
    hub.server.forget()
    found = document(hub.ws("inspect", "org/base", "--json", env=offline))
    assert found["revision"] == hub.server.repos["org/base"].head()
    assert hub.server.requests == []
    # A Hub that is down is as good as none, once the files are here.
    down = {"HF_ENDPOINT": "http://127.0.0.1:1"}
    assert document(hub.ws("inspect", "org/base", "--json", env=down)) == found


def test_a_dry_run_of_an_edit_moves_the_headers_alone(hub, pair):
    sizes = {
        name: sum(path.stat().st_size for path in (pair / name).glob("*.safetensors"))
        for name in ("base", "tuned")
    }
    out = ("-o", pair / "out", "--dry-run", "--json")
    plain = ("negate", "org/base", "org/tuned")
    keeping = ("project", "org/base", "--forget", "org/tuned", "--keep", "org/tuned:2")
    heads = headers(pair / "base") + headers(pair / "tuned")
    for command in (plain, keeping):
        plan = document(hub.ws(*command, *out))
        assert plan["download_bytes"] == sizes["base"] + sizes["tuned"]
        assert fetched(hub) == heads
        assert not (pair / "out").exists()
    plan = document(hub.ws("negate", pair / "base", pair / "tuned", *out))
    assert plan["download_bytes"] == 0
    local = document(hub.ws("negate", pair / "base", "org/tuned", *out))
    assert local["download_bytes"] == sizes["tuned"]
    assert local["edited"] == plan["edited"]


# Pinned


def test_an_edit_of_sources_on_the_hub_names_their_commits(hub, pair):
    base, finetuned = hub.server.repos["org/base"], hub.server.repos["org/tuned"]
    old = finetuned.head()
    finetuned.commit({"README.md": b"later"})
    command = ("negate", "org/base", f"org/tuned@{old}", "-o")
    assert hub.ws(*command, pair / "edited").returncode == 0
    assert hub.ws("negate", pair / "base", pair / "tuned", "-o", pair / "local").returncode == 0
    edited, local = snapshot(pair / "edited"), snapshot(pair / "local")
    for name in local.keys() - {"weightsurgery.json"}:
        assert edited[name] == local[name]
    record = json.loads(edited["weightsurgery.json"])
    assert record["inputs"]["base"]["revision"] == base.head()
    assert record["inputs"]["vector"]["revision"] == old != finetuned.head()


TWICE = """
import sys
from weightsurgery.checkpoint.remote import open_remote
from weightsurgery.checkpoint.source import resolve_source
print(open_remote("org/base").source.revision, flush=True)
input()
print(resolve_source("org/base").revision, open_remote("org/base").source.revision)
"""


def test_a_name_is_one_commit_for_the_whole_command(hub, pair):
    repo = hub.server.repos["org/base"]
    first = repo.head()
    running = subprocess.Popen(
        [sys.executable, "-c", TWICE], env=hub.env, cwd=hub.directory,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert running.stdout.readline().strip() == first
    assert repo.commit({"README.md": b"a rival's push"}) != first
    rest, _ = running.communicate("\n")
    assert rest.split() == [first, first]


def test_vectors_and_adapters_of_the_hub_are_told_apart(hub, pair):
    done = hub.ws("diff", pair / "base", pair / "tuned", "-o", pair / "vector", "--rank", "4",
                  "--targets", "all-linear")  # fmt: skip
    assert done.returncode == 0, done.stderr
    hub.server.add("org/vector", files(pair / "vector"))
    remote = document(hub.ws("diff", "org/base", "org/vector", "--layers", "0", "--json"))
    local = document(hub.ws("diff", pair / "base", pair / "vector", "--layers", "0", "--json"))
    assert remote["tensors"] == local["tensors"]
    assert len(remote["tensors"]) == 2


def test_doctor_plans_trainings_from_config_and_headers(hub, known, tmp_path):
    """With the figures that it has of the same files in a directory; no weight is fetched."""
    known.model.save_pretrained(tmp_path / "known")
    known.tokenizer.save_pretrained(tmp_path / "known")
    hub.server.add("org/known", files(tmp_path / "known"))
    there, here = (
        {each["command"]: each for each in document(hub.ws("doctor", name, "--json"))["takes"]}
        for name in ("org/known", tmp_path / "known")
    )
    assert there.keys() == here.keys()
    weights = sum(path.stat().st_size for path in (tmp_path / "known").glob("*.safetensors"))
    for command in ("project a data set", "identify --mode delta"):
        assert not there[command]["problem"]
        assert there[command]["holds"] == here[command]["holds"] > 0
        assert there[command]["writes"] == here[command]["writes"] > 0
        assert (there[command]["fetches"], here[command]["fetches"]) == (weights, 0)
    # Base and vector are one repository: read twice, fetched once.
    decomposed = there["subspace --rank 32"]
    assert 0 < decomposed["fetches"] < weights
    assert decomposed["reads"] == 2 * decomposed["fetches"]
    assert fetched(hub) == headers(tmp_path / "known")
    shown = hub.ws("doctor", "org/known").stdout
    assert "fetches" in shown
    assert "fetches" not in hub.ws("doctor", tmp_path / "known").stdout
