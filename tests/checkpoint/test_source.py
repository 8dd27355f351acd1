import importlib
import inspect
import os
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import errors as hub

from weightsurgery.checkpoint.blobs import git_sha1
from weightsurgery.checkpoint.reader import Checkpoint
from weightsurgery.checkpoint.source import resolve_source
from weightsurgery.errors import CorruptCheckpointError, SourceError

from .handmade import TWO, directory, file_bytes, run_python, says, sharded

# The HTTP client of the installed huggingface_hub.
http = importlib.import_module(hub.HTTPError.__module__.partition(".")[0])

COMMIT = "0123456789abcdef0123456789abcdef01234567"


# Directories


def test_a_directory_is_itself(tmp_path, monkeypatch):
    root = directory(tmp_path / "model", {"model.safetensors": TWO})
    source = resolve_source(root)
    assert (source.name, source.path, source.revision) == (str(root), root, None)
    link = tmp_path / "link"
    link.symlink_to(root)
    assert resolve_source(str(link)).path == root
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve_source("~/model").path == root


def test_a_directory_goes_before_a_repository(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("org/name", "org/name@main"):
        directory(tmp_path / name, {"model.safetensors": TWO})
        assert resolve_source(name).path == tmp_path / name


def test_a_file_is_no_checkpoint(tmp_path):
    root = directory(tmp_path, {"model.safetensors": TWO})
    assert set(Checkpoint.open(root).entries) == set(TWO)
    with pytest.raises(SourceError) as error:
        Checkpoint.open(root / "model.safetensors")
    says(error, str(root / "model.safetensors"), "a file")


@pytest.mark.parametrize(
    "name",
    [
        *("", "name", "/nowhere/at/all", "../nowhere", "a/b/c", "org/name@", "@main", "org/name\n"),
        *("~nosuchuser/x/y", "a\0b", "örg/name", "org name/x", "x" * 5000, f"{'x' * 300}/y/z"),
    ],
)
def test_what_can_be_no_repository(name, no_hub):
    with pytest.raises(SourceError) as error:
        resolve_source(name)
    assert name[:1500] in error.value.what  # very long ones are cut
    assert "org/name[@revision]" in error.value.remedy
    assert no_hub == []


@pytest.fixture
def no_hub(monkeypatch):
    """The calls that would have gone to the Hub."""
    calls = []
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *a, **k: calls.append((a, k)))
    return calls


# The Hub


def test_a_repository_is_pinned_to_its_commit(tmp_path, monkeypatch):
    call = {}
    snapshot = directory(tmp_path / "snapshots" / COMMIT, {"model.safetensors": TWO})
    real = inspect.signature(huggingface_hub.snapshot_download).parameters

    def download(repo, **options):
        assert set(options) <= set(real)
        call.update(options, repo=repo)
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    source = resolve_source("org/name@refs/pr/1")
    assert (call["repo"], call["revision"]) == ("org/name", "refs/pr/1")
    assert (source.name, source.path, source.revision) == ("org/name@refs/pr/1", snapshot, COMMIT)
    assert call["local_files_only"] is False
    resolve_source("org/na-me.2", local_only=True)
    assert (call["repo"], call["revision"], call["local_files_only"]) == (
        "org/na-me.2",
        None,
        True,
    )


def response(status: int):
    return http.Response(status, request=http.Request("GET", "https://hub.invalid"))


RAISED = [
    (hub.GatedRepoError("gated", response=response(403)), "gated repository", "hf auth login"),
    (
        hub.RepositoryNotFoundError("x", response=response(404)),
        "neither a directory here nor",
        "spelling",
    ),
    (
        hub.RevisionNotFoundError("x", response=response(404)),
        "no such revision",
        "branch, tag or commit",
    ),
    (
        hub.HfHubHTTPError("500 Server Error", response=response(500)),
        "500 Server Error",
        "connection",
    ),
    (hub.LocalEntryNotFoundError("nothing cached\nmore"), "(nothing cached)", "HF_HUB_OFFLINE"),
    (hub.OfflineModeIsEnabled("offline"), "(offline)", "HF_HUB_OFFLINE"),
    (http.ProxyError("proxy says no"), "proxy says no", "connection"),
    (http.RemoteProtocolError("half an answer"), "half an answer", "connection"),
    (ConnectionError(), "(ConnectionError)", "connection"),
    (TimeoutError("slow"), "slow", "connection"),
    (hub.HFValidationError("bad name"), "nor a possible name", "org/name[@revision]"),
    (OSError(28, "No space left on device"), "No space left on device", "HF_HOME"),
    (PermissionError(13, "Permission denied"), "Permission denied", "HF_HOME"),
]


@pytest.mark.parametrize(("raised", "what", "remedy"), RAISED, ids=lambda x: type(x).__name__)
def test_errors_of_the_hub(monkeypatch, raised, what, remedy):
    def download(*_, **__):
        raise raised

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    with pytest.raises(SourceError) as error:
        resolve_source("org/name@v1")
    says(error, "org/name@v1", what)
    assert remedy in error.value.remedy


def test_where_the_hub_is_forbidden_that_is_said_and_no_more(monkeypatch):
    def download(*_, **__):
        raise hub.LocalEntryNotFoundError("Cannot find an appropriate cached snapshot folder")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(SourceError) as error:
        resolve_source("org/name")
    says(error, "org/name", "the Hub could not be reached (HF_HUB_OFFLINE is set)")


@pytest.mark.parametrize(("typed", "meant"), [
    ("./models/basse", "Did you mean './models/base'? "),
    ("models/basse", "Did you mean 'models/base'? "),  # might be a name on the Hub
    ("models/bas/", "Did you mean 'models/base'? "),
    ("modells", "Did you mean 'models'? "),
    ("./models/zebra", ""),
    ("./nowhere/base", ""),
])  # fmt: skip
def test_a_mistyped_path_is_asked_about(typed, meant, tmp_path, monkeypatch):
    (tmp_path / "models" / "base").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SourceError) as error:
        resolve_source(typed)
    assert error.value.remedy.startswith(meant or ("Give", "Check"))
    assert ("Did you mean" in error.value.remedy) == bool(meant)


def test_bugs_are_not_taken_for_an_absent_hub(monkeypatch):
    def download(*_, **__):
        raise ZeroDivisionError

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(ZeroDivisionError):
        resolve_source("org/name")


@pytest.mark.parametrize("name", ["org/na--me", "org/name.git", "org/.."])
def test_names_the_hub_itself_refuses(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SourceError) as error:
        resolve_source(name, local_only=True)
    says(error, name, "nor a possible name")


OPEN = """
import sys
from weightsurgery.checkpoint.reader import Checkpoint
from weightsurgery.errors import SourceError
try:
    with Checkpoint.open(sys.argv[1]) as c:
        print(c.source.revision, sorted(c.entries), c.config, len(c.read_bytes("a.weight")))
except SourceError as error:
    print(error.what)
"""


def test_a_cached_repository_is_opened_without_a_network(tmp_path):
    repo = tmp_path / "hub" / "models--org--name"
    snapshot = repo / "snapshots" / COMMIT
    config = b'{"model_type": "x"}'
    small = git_sha1(config)
    for path, data in {
        repo / "refs" / "main": COMMIT.encode(),
        repo / "blobs" / ("a" * 64): file_bytes(TWO),
        repo / "blobs" / small: config,
    }.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    snapshot.mkdir(parents=True)
    (snapshot / "model.safetensors").symlink_to("../../blobs/" + "a" * 64)
    (snapshot / "config.json").symlink_to(f"../../blobs/{small}")
    offline = {
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(tmp_path),
        "HF_HUB_CACHE": str(tmp_path / "hub"),
    }
    whole = f"{COMMIT} ['a.weight', 'b.weight'] {{'model_type': 'x'}} 24\n"
    assert run_python(OPEN, "org/name", **offline) == whole
    assert run_python(OPEN, f"org/name@{COMMIT}", **offline) == whole
    assert run_python(OPEN, "org/name@v2", **offline).startswith("org/name@v2: no such directory")
    assert run_python(OPEN, "org/other", **offline).startswith("org/other: no such directory here")


def test_a_directory_that_is_half_there(tmp_path):
    root = sharded(tmp_path)
    assert Checkpoint.open(root).source == resolve_source(root)
    (root / "two.safetensors").unlink()
    with pytest.raises(CorruptCheckpointError) as error:
        Checkpoint.open(root)
    says(error, "two.safetensors")


def test_path_like_names(tmp_path):
    class Somewhere(os.PathLike):
        def __fspath__(self):
            return str(tmp_path)

    assert resolve_source(Somewhere()).path == Path(tmp_path)
