"""`ws export` as a user meets it."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file

from tests.cli.typed import two_lines, ws
from tests.conftest import left_behind, read_tensors, snapshot


def test_help():
    done = ws("export", "--help-all")
    assert done.returncode == 0
    for text in ("ws export", "Example:", "--to", "--rank", "--dtype", "--scale", "--json"):
        assert text in done.stdout
    assert done.stderr == ""


def test_json_is_the_record(llama, subspace, tmp_path):
    out = tmp_path / "adapter"
    done = ws("export", llama.base, subspace, "--to", "peft", "-o", out, "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    record = json.loads((out / "weightsurgery.json").read_text())
    assert {**record, "out": str(out)} == document
    assert document["command"][:2] == ["ws", "export"]
    assert document["summary"]["tensors"] == 14
    assert document["summary"]["lost"] == 0
    config = json.loads((out / "adapter_config.json").read_text())
    assert config["peft_type"] == "LORA"
    assert config["r"] == config["lora_alpha"] == 4
    assert ws("verify", out).returncode == 0


def test_tables_say_what_was_lost(llama, subspace, tmp_path):
    done = ws("export", llama.base, subspace, "-o", tmp_path / "all", "--exclude", "*.up_proj.*")
    assert done.returncode == 0, done.stderr
    assert "12, of rank 4" in done.stdout
    assert "0.00 % of its energy" in done.stdout
    assert re.search(r"left out +model\.layers\.\d\.mlp\.up_proj\.weight and 1 more", done.stdout)
    assert "Wrote" in done.stderr
    command = ["export", llama.base, subspace, "--rank", "2", "-o"]
    loud = ws(*command, tmp_path / "less", "-v")
    quiet = ws(*command, tmp_path / "quiet", "-v", "-q")
    assert quiet.stderr == ""
    assert quiet.stdout == loud.stdout
    record = json.loads((tmp_path / "less/weightsurgery.json").read_text())
    assert record["summary"]["lost"] > 0.1
    for name, facts in record["tensors"].items():
        (line,) = (line for line in loud.stdout.splitlines() if name in line)
        assert f"{100 * facts['lost']:.2f} %" in line


@pytest.mark.parametrize("scale", ["-1", "0.5"])
def test_adding_it_is_adding_the_vector(llama, subspace, tmp_path, scale):
    out = tmp_path / "adapter"
    for arguments in (
        ["export", llama.base, subspace, "--scale", scale, "--dtype", "float32", "-o", out],
        ["add", llama.base, out, "--dtype", "float32", "-o", tmp_path / "second"],
        ["add", llama.base, f"{subspace}:{scale}", "--dtype", "float32", "-o", tmp_path / "first"],
    ):
        done = ws(*arguments)
        assert done.returncode == 0, done.stderr
    first, second = read_tensors(tmp_path / "first"), read_tensors(tmp_path / "second")
    moved = 0
    for name, before in read_tensors(llama.base).items():
        moved += int(not torch.equal(first[name], before.float()))
        torch.testing.assert_close(second[name], first[name], rtol=0, atol=1e-7)
    assert moved == 14


def test_a_fine_tune_needs_a_rank(llama, tmp_path):
    out = tmp_path / "adapter"
    what, remedy = two_lines(ws("export", llama.base, llama.forget, "-o", out))
    assert "'lm_head.weight' and 15 more: a dense change" in what
    assert "no matrix" in what
    assert "--rank K" in remedy
    assert "--targets all-linear" in remedy
    assert list(tmp_path.iterdir()) == []
    command = ["export", llama.base, llama.forget, "-o", out, "--targets", "all-linear"]
    done = ws(*command, "--rank", "3", "--json")
    summary = json.loads(done.stdout)["summary"]
    assert 0 < summary["lost"] < 1
    assert set(summary["left_out"]) == {
        name for name in read_tensors(llama.base) if "proj" not in name
    }
    halves = load_file(out / "adapter_model.safetensors")
    assert {half.shape[0] for key, half in halves.items() if "lora_A" in key} == {3}


@pytest.mark.parametrize(
    ("arguments", "what", "remedy"),
    [
        (["{base}", "{vector}", "--to", "gguf"], "gguf", "peft"),
        (["{base}", "{vector}", "--dtype", "int8"], "int8", "bfloat16"),
        (["{base}", "{vector}", "--rank", "0"], "rank 0", "from 1"),
        (["{base}", "{vector}", "--scale", "0"], "none of the selected", "--scale"),
        (["{base}", "{vector}", "--scale", "nan"], "nan", "finite"),
        (["{base}", "{vector}", "--targets", "embeddings"], "none of the selected", "--targets"),
        (["{base}", "{vector}", "--include", "nope*"], "nope*", "inspect"),
        (["{base}", "{vector}", "--workers", "0"], "workers", "one"),
        (["{base}", "{vector}", "--device", "tpu", "--rank", "2"], "tpu", "cpu"),
        (["{vector}", "{vector}"], "changes", "base"),
        (["{base}", "nowhere"], "no such directory", "org/name"),
        (["{base}", "facts.jsonl"], "data set", "ws identify"),
    ],
)
def test_bad_input_gets_two_lines(llama, subspace, tmp_path, arguments, what, remedy):
    places = {"base": llama.base, "vector": subspace}
    typed = [text.format(**places) for text in arguments]
    lines = two_lines(ws("export", *typed, "-o", "x", cwd=tmp_path))
    assert what in lines[0]
    assert remedy in lines[1]
    assert list(tmp_path.iterdir()) == []


def test_an_existing_directory_stays(llama, subspace, tmp_path):
    out = tmp_path / "adapter"
    command = ["export", llama.base, subspace, "-o", out]
    assert ws(*command).returncode == 0
    before = snapshot(out)
    what, remedy = two_lines(ws(*command))
    assert "exists" in what
    assert "--overwrite" in remedy
    assert snapshot(out) == before
    assert ws(*command, "--overwrite", "--rank", "1").returncode == 0
    assert snapshot(out) != before
    assert left_behind(out) == ["adapter"]
    assert ws("export", llama.base, subspace).returncode == 2  # nowhere to write
