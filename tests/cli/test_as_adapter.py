"""``--as adapter`` on negate, add, project and learn, and ``ws export --dry-run``, as typed."""

import json
import re

import pytest
import torch

from tests.conftest import left_behind, read_tensors, snapshot
from weightsurgery.surgery import as_adapter as library


@pytest.fixture(params=["negate", "add", "project", "learn"])
def command(request, llama, subspace):
    """Each edit, but for where it writes."""
    if request.param in ("negate", "add"):
        return [request.param, llama.base, subspace, "--scale", "2"]
    task = "--forget" if request.param == "project" else "--task"
    keep = ["--keep", llama.keep, "--rank", "3", "--side", "both", "--scale", "5"]
    return [request.param, llama.base, task, llama.forget, *keep]


def same_change(base, first, second, tolerance):
    """How many tensors two float32 checkpoints change alike."""
    before, one, two = (read_tensors(place) for place in (base, first, second))
    moved = 0
    for name, tensor in before.items():
        moved += int(not torch.equal(one[name], tensor.float()))
        torch.testing.assert_close(two[name], one[name], rtol=0, atol=tolerance)
    return moved


def test_adding_the_adapter_is_the_edit(command, llama, done, tmp_path):
    some = ["--exclude", "*v_proj*", "--layer-scale", "1=0.5", "--layer-scale", "*q_proj*=-1"]
    wide = ["--dtype", "float32"]
    done(*command, *some, *wide, "-o", tmp_path / "edited")
    out, said = done(*command, *some, *wide, "-o", tmp_path / "adapter", "--as", "adapter")
    assert f"Wrote {tmp_path / 'adapter'}; peft loads it beside the base" in said
    assert "lost in rounding" in out
    discriminates = command[0] in ("project", "learn")
    assert ("survived discrimination" in out) == discriminates
    assert bool(re.search(r"task, truncated +[\d.]+ % to [\d.]+ %", out)) == discriminates
    assert ("lost by truncation" in out) != discriminates
    done("add", llama.base, tmp_path / "adapter", "-o", tmp_path / "added", *wide)
    assert same_change(llama.base, tmp_path / "edited", tmp_path / "added", 1e-7) == 12
    done("verify", tmp_path / "adapter")


def test_json_is_the_record(command, done, tmp_path):
    document = json.loads(
        done(*command, "-o", tmp_path / "out", "--as", "adapter", "--json", "--workers", "1")[0]
    )
    record = json.loads((tmp_path / "out/weightsurgery.json").read_text())
    assert {**record, "out": str(tmp_path / "out")} == document
    assert document["kind"] == "adapter"
    assert document["command"][1] == document["parameters"]["edit"] == command[0]
    assert document["parameters"]["dtype"] == "bfloat16"
    assert 0 < document["summary"]["rounding"] < 2**-8
    ranks = {facts["rank"] for facts in document["tensors"].values()}
    assert ranks == ({4} if command[0] in ("negate", "add") else {3})
    before = snapshot(tmp_path / "out")
    again = [*command, "-o", tmp_path / "out", "--as", "adapter", "--json", "--workers", "1"]
    done(*again, "--overwrite")
    after = snapshot(tmp_path / "out")
    assert after.keys() == before.keys()
    for name in before:  # the record holds the command as typed, which differs
        assert (after[name] == before[name]) == (name != "weightsurgery.json")


def test_a_dry_run_says_what_would_be_written(command, done, tmp_path):
    typed = [*command, "-o", tmp_path / "out", "--as", "adapter"]
    plan = json.loads(done(*typed, "--dry-run", "--json")[0])
    out, _ = done(*typed, "--dry-run")
    assert list(tmp_path.iterdir()) == []
    for words in (f"Plan: {command[0]} as an adapter", "written", "read", "working memory"):
        assert words in out
    exact = command[0] in ("negate", "add")
    assert plan["exact"] == exact
    assert bool(re.search(r"written +up to", out)) != exact
    done(*typed)
    size = (tmp_path / "out/adapter_model.safetensors").stat().st_size
    assert size == plan["write_bytes"]
    assert len(plan["edited"]) == 14


def test_a_dense_vector_is_truncated_when_told(llama, done, refused, tmp_path):
    typed = ["negate", llama.base, llama.forget, "-o", tmp_path / "out", "--as", "adapter"]
    what, remedy = refused(*typed)
    assert "forget: 'lm_head.weight' and 15 more: a dense change" in what
    assert "no matrix" in what
    assert "--rank K" in remedy
    what, remedy = refused(*typed, "--dry-run")
    assert "a dense change" in what
    assert list(tmp_path.iterdir()) == []
    out, said = done(*typed, "--targets", "all-linear", "--energy", "0.5", "-v")
    lost = json.loads((tmp_path / "out/weightsurgery.json").read_text())["summary"]["lost"]
    assert 0.2 < lost <= 0.5
    assert f"Truncation lost {lost:.2%} of the change's energy" in said
    assert f"{100 * lost:.2f} % of its energy" in out
    assert "left out" in out


@pytest.mark.parametrize(
    ("arguments", "what", "remedy"),
    [
        (["--as", "lora"], "--as lora", "checkpoint or adapter"),
        (["--as", "adapter", "--rounding", "stochastic"], "--rounding stochastic", "float32"),
        (["--as", "adapter", "--dtype", "float64"], "float64", "bfloat16"),
        (["--as", "adapter", "--workers", "0"], "workers", "one"),
        (["--as", "adapter", "--device", "tpu"], "tpu", "cpu"),
        (["--as", "adapter", "--scale", "0"], "none of the selected", "--scale"),
        (["--as", "adapter", "--scale", "nan"], "nan", "finite"),
        (["--as", "adapter", "--include", "nope*"], "nope*", "inspect"),
    ],
)
def test_settings_without_sense(command, arguments, what, remedy, refused, tmp_path):
    if "--device" in arguments and command[0] in ("negate", "add"):
        arguments = [*arguments, "--rank", "2"]
    said = refused(*command, "-o", tmp_path / "out", *arguments)
    assert what in said[0]
    assert remedy in said[1]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("option", [["--rank", "2"], ["--energy", "0.5"]])
def test_a_rank_is_for_adapters(option, llama, subspace, refused, done, tmp_path):
    for name in ("negate", "add"):
        what, remedy = refused(name, llama.base, subspace, "-o", tmp_path / "out", *option)
        assert f"{option[0]} without --as adapter" in what
        assert "ws subspace" in remedy
        done(name, llama.base, subspace, "-o", tmp_path / name, *option, "--as", "adapter")
    assert left_behind(tmp_path / "out") == []
    what, _ = refused(
        "add", llama.base, subspace, "-o", tmp_path / "out", "--as", "adapter",
        "--rank", "2", "--energy", "0.5",
    )  # fmt: skip
    assert "both" in what


def test_an_interrupt_leaves_nothing(command, ws, done, tmp_path, monkeypatch):
    work = library.write_adapter

    def stopped(*arguments, **options):
        def progress(stage, count, total):
            raise KeyboardInterrupt

        return work(*arguments, **{**options, "progress": progress})

    typed = [*command, "-o", tmp_path / "out", "--as", "adapter"]
    with monkeypatch.context() as patch:
        patch.setattr(library, "write_adapter", stopped)
        code, _, said = ws.run(*typed)
    assert code == 130
    assert "nothing was written" in said
    assert list(tmp_path.iterdir()) == []
    done(*typed)
    assert left_behind(tmp_path / "out") == ["out"]


def test_export_plans_too(llama, subspace, done, refused, tmp_path):
    out = tmp_path / "out"
    typed = ["export", llama.base, subspace, f"{subspace}:-0.5", "-o", out, "--scale", "-1"]
    plan = json.loads(done(*typed, "--dry-run", "--json")[0])
    shown, _ = done(*typed, "--dry-run")
    assert "Plan: export as an adapter" in shown
    assert "14, of rank 4" in shown
    assert list(tmp_path.iterdir()) == []
    done(*typed)
    assert plan["exact"]
    assert plan["write_bytes"] == (out / "adapter_model.safetensors").stat().st_size
    assert set(plan["ranks"].values()) == {4}
    what, remedy = refused(*typed, "--dry-run")
    assert "exists" in what
    assert "--overwrite" in remedy
    dense = ["export", llama.base, llama.forget, "-o", tmp_path / "x", "--dry-run"]
    assert "a dense change" in refused(*dense)[0]
    shown, _ = done(*dense, "--targets", "all-linear", "--rank", "2")
    assert re.search(r"written +up to [\d.]+ kB", shown)
    assert re.search(r"left out +.* and 6 more", shown)
