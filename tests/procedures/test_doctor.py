"""What `ws doctor` says is what the machine has, and what --dry-run of each command says."""

import json
import shutil
import tomllib
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement

from tests.cli.typed import Command
from tests.conftest import write_checkpoint
from weightsurgery.errors import WeightSurgeryError
from weightsurgery.procedures import doctor

ROOT = Path(__file__).parents[2]


@pytest.fixture
def ws(capsys, monkeypatch):
    return Command(capsys, monkeypatch)


def without(monkeypatch, *gone: str, old: str = ""):
    """A machine that lacks some libraries, or has an old one."""
    real = doctor.metadata.version

    def version(name):
        if name in gone:
            raise doctor.metadata.PackageNotFoundError(name)
        return "0.0.1" if name == old else real(name)

    monkeypatch.setattr(doctor.metadata, "version", version)


def test_it_knows_what_the_project_declares(monkeypatch):
    """As an installation of today's project would declare it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines, declared = list(project["dependencies"]), set()
    declared |= {("", Requirement(line).name) for line in lines}
    for extra, own in project["optional-dependencies"].items():
        lines += [f"{line}; extra == '{extra}'" for line in own]
        if extra in doctor.EXTRAS:
            declared |= {(extra, Requirement(line).name) for line in own}
    monkeypatch.setattr(doctor.metadata, "requires", lambda name: lines)
    assert {(each.extra, each.name) for each in doctor.libraries()} == declared
    assert len(declared) >= 18


@pytest.mark.parametrize(("gone", "ready", "install"), [
    ((), True, ""),
    (("peft",), True, "pip install 'weightsurgery[demo]'"),
    (("transformers",), True, "pip install 'weightsurgery[demo,eval]'"),
    (("matplotlib", "bitsandbytes"), True, "pip install 'weightsurgery[report,quantize]'"),
    (("safetensors",), False, "pip install weightsurgery"),
    (("torch", "lm_eval"), False, "pip install 'weightsurgery[eval]'"),
])  # fmt: skip
def test_what_is_missing_comes_with_one_command(ws, monkeypatch, gone, ready, install):
    here = {each.name for each in doctor.libraries() if each.fits}
    everything = {each.name for each in doctor.libraries()}
    if not here >= everything - {*gone, "bitsandbytes"}:
        pytest.skip("not everything is installed here")
    if "bitsandbytes" not in gone and "bitsandbytes" not in here:
        real = doctor.metadata.version
        monkeypatch.setattr(
            doctor.metadata, "version", lambda name: "9.9" if name == "bitsandbytes" else real(name)
        )
    without(monkeypatch, *gone)
    code, out, _ = ws.run("doctor")
    assert code == (0 if ready else 1)
    assert ("comes with:  " + install in out) == bool(install)
    assert out.count("MISSING") >= len(gone)
    assert ("MISSING" in out) == bool(gone)
    assert ("can not be run here" in out) == (not ready)
    document = json.loads(ws("doctor", "--json").stdout)
    assert (document["ready"], document["install"]) == (ready, install)


def test_a_version_that_is_too_old_is_told(ws, monkeypatch):
    assert "WANTED" not in ws("doctor").stdout
    without(monkeypatch, old="rich")
    done = ws("doctor")
    assert done.returncode == 1
    assert "WANTED" in done.stdout
    (found,) = [each for each in doctor.libraries() if each.name == "rich"]
    assert (found.installed, found.wanted, found.fits) == ("0.0.1", ">=13.7", False)


def test_figures_are_those_of_the_commands(ws, llama, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    takes = {each["command"]: each for each in ws.document("doctor", llama.base)["takes"]}
    dry = ["-o", "out", "--dry-run"]
    for name, words in (
        ("negate or add a fine-tune", ["negate", llama.base, llama.forget]),
        ("project with vectors, --rank 64",
         ["project", llama.base, "--forget", llama.forget, "--keep", llama.keep]),
        ("subspace --rank 32", ["subspace", llama.base, llama.forget, "--rank", "32"]),
    ):  # fmt: skip
        plan = ws.document(*words, *dry)
        figures = [plan[f"{each}_bytes"] for each in ("read", "write", "memory")]
        assert [takes[name][each] for each in ("reads", "writes", "holds")] == figures
        assert min(figures) > 0
    # It has no tokenizer: what trains on data cannot.
    assert takes["project a data set"]["problem"]
    assert list(tmp_path.iterdir()) == []


def test_training_is_planned_where_it_can_be(ws, known, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    known.model.save_pretrained("base")
    known.tokenizer.save_pretrained("base")
    Path("a.jsonl").write_text(json.dumps({"prompt": "a", "completion": " b"}) + "\n")
    takes = {each["command"]: each for each in ws.document("doctor", "base")["takes"]}
    plan = ws.document("project", "base", "--forget", "a.jsonl", "-o", "out", "--dry-run")
    assert takes["project a data set"]["holds"] == plan["held"]
    assert takes["project a data set"]["writes"] == (
        plan["edit"]["write_bytes"] + plan["vector_bytes"]
    )
    plan = ws.document("identify", "base", "a.jsonl", "-o", "out", "--dry-run")
    found = takes["identify --mode delta"]
    assert found["holds"] == plan["weights"] + plan["gradients"] + plan["optimiser"]
    assert not found["problem"]
    monkeypatch.setattr("weightsurgery.deferred.find_spec", lambda name: None)
    takes = {each["command"]: each for each in ws.document("doctor", "base")["takes"]}
    assert "weightsurgery[demo]" in takes["identify --mode delta"]["remedy"]


def test_the_hub_is_told_without_its_token(ws, monkeypatch):
    """What somebody who reads a report of a fault asks first."""
    import huggingface_hub

    def told(token: str | None, offline: bool) -> tuple[str, dict]:
        monkeypatch.setattr(huggingface_hub, "get_token", lambda: token)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", offline)
        shown, printed = ws("doctor").stdout, ws("doctor", "--json").stdout
        assert "hf_secret" not in shown + printed
        return shown, json.loads(printed)["machine"]["hub"]

    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "https://hub.invalid")
    shown, hub = told("hf_secret", False)
    assert "https://hub.invalid, with a token; its cache: " in shown
    assert (hub["token"], hub["offline"]) == (True, False)
    shown, hub = told(None, True)
    assert "https://hub.invalid, no token, HF_HUB_OFFLINE is set; " in shown
    assert (hub["token"], hub["offline"]) == (False, True)


@pytest.mark.parametrize("short", ["memory", "disk"])
def test_what_does_not_fit_is_told(ws, llama, monkeypatch, short):
    assert ws("doctor", llama.base).returncode == 0
    real = doctor._machine()
    tiny = {"memory": {"available": 1}, "disk": {"disk": 1}}[short]
    monkeypatch.setattr(doctor, "_machine", lambda: doctor.Hardware(**{**vars(real), **tiny}))
    done = ws("doctor", llama.base)
    assert done.returncode == 1
    assert f"not enough {short}" in done.stdout


def test_what_cannot_be_read_is_refused(ws, tmp_path):
    what, _ = ws.refused("doctor", tmp_path / "nowhere")
    assert "nowhere" in what
    codes = {"layers.0.mlp.up_proj.weight": torch.ones(4, 4, dtype=torch.float8_e4m3fn)}
    base = write_checkpoint(tmp_path / "codes", codes)
    (base / "config.json").write_text(json.dumps({"quantization_config": {"quant_method": "fp8"}}))
    done = ws("doctor", base)
    assert done.returncode == 1
    assert "negate or add a fine-tune: " in done.stdout
    shutil.rmtree(base)


def test_a_package_that_is_none_says_so(monkeypatch):
    def requires(name):
        raise doctor.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(doctor.metadata, "requires", requires)
    with pytest.raises(WeightSurgeryError, match="not installed"):
        doctor.libraries()
