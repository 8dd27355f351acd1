"""Keeping by activations as a user meets it: gather, edit, and what the model then says."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.conftest import read_tensors, same_bytes, snapshot
from tests.learning.conftest import byte_tokenizer
from weightsurgery.learning.data import encode, read_examples
from weightsurgery.learning.statistics import gather_to

KEEP = [("the sky is", " blue"), ("grass is", " green")]
FORGET = [("my password is", " hunter2"), ("call me", " Ishmael")]


@dataclass(frozen=True)
class Case:
    """A model, a fine-tune of it, data, and statistics of the data to keep."""

    base: Path
    tuned: Path
    keep: Path
    forget: Path
    statistics: Path


def write(path: Path, pairs: list[tuple[str, str]]) -> Path:
    lines = [json.dumps({"prompt": prompt, "completion": end}) for prompt, end in pairs]
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def case(tmp_path_factory) -> Case:
    root = tmp_path_factory.mktemp("keep")
    tokenizer = byte_tokenizer()
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=80,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        initializer_range=0.1,
    )
    model = LlamaForCausalLM(config)
    for name in ("base", "tuned"):
        model.save_pretrained(root / name, max_shard_size="200KB")
        tokenizer.save_pretrained(root / name)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.02 * torch.randn_like(parameter))
    keep, forget = write(root / "keep.jsonl", KEEP), write(root / "forget.jsonl", FORGET)
    gather_to(root / "stats", root / "base", keep)
    return Case(root / "base", root / "tuned", keep, forget, root / "stats")


@torch.no_grad()
def logits(checkpoint: Path, data: Path) -> torch.Tensor:
    model = LlamaForCausalLM.from_pretrained(checkpoint).eval()
    tokenizer = byte_tokenizer()
    rows = [encode(tokenizer, each).input_ids for each in read_examples(data)]
    return torch.cat([model(input_ids=torch.tensor([row])).logits[0] for row in rows])


def moved(case: Case, edited: Path, data: Path) -> float:
    """How far the logits went, relative to their spread."""
    before = logits(case.base, data)
    return float((logits(edited, data) - before).abs().max() / before.std())


@pytest.mark.parametrize("epsilon", ["0", "1e-7"])
def test_keep_inputs_answer_as_before_and_forget_inputs_do_not(ws, case, tmp_path, epsilon):
    plain, kept = tmp_path / "plain", tmp_path / "kept"
    ws.done("negate", case.base, case.tuned, "-o", plain, "--targets", "all-linear")
    assert moved(case, plain, case.keep) > 0.5  # before: negation moves both
    assert moved(case, plain, case.forget) > 0.5
    ws.done("project", case.base, "--forget", case.tuned, "--keep", case.statistics,
         "-o", kept, "--energy", "1", "--epsilon", epsilon)  # fmt: skip
    assert moved(case, kept, case.keep) < 1e-3
    assert moved(case, kept, case.forget) > 0.2
    ws.done("verify", kept)


def test_a_larger_ridge_holds_less_back(ws, case, tmp_path):
    sizes = []
    for number, epsilon in enumerate(["1e-4", "1e-2", "1"]):
        document = ws.document(
            "project", case.base, "--forget", case.tuned, "--keep", case.statistics,
            "-o", tmp_path / str(number), "--epsilon", epsilon,
        )  # fmt: skip
        assert document["parameters"]["epsilon"] == float(epsilon)
        sizes.append(sum(facts["response"] for facts in document["tensors"].values()))
    assert sizes == sorted(sizes)
    assert sizes[0] < 0.1 * sizes[2]


def test_statistics_stand_beside_vectors_and_weigh(ws, case, tmp_path):
    command = ["project", case.base, "--forget", case.tuned, "--rank", "8"]
    text, said = ws.done(*command, "--keep", case.statistics, "-o", tmp_path / "a", "--json")
    assert "changed by no task to keep" not in said
    first = json.loads(text)
    second = ws.document(
        *command, "--keep", f"{case.statistics}:2", "--keep", case.tuned, "-o", tmp_path / "b"
    )
    assert first["inputs"].keys() == {"base", "forget", "keep_inputs1"}
    assert second["inputs"].keys() == {"base", "forget", "keep1", "keep_inputs1"}
    assert second["inputs"]["keep_inputs1"]["weight"] == 2
    files = first["inputs"]["keep_inputs1"]["files"]
    assert {"statistics-00001.safetensors", "weightsurgery.json"} <= files.keys()
    assert all(len(digest) == 64 for digest in files.values())
    assert {kin["verdict"] for kin in first["lineage"]} == {"related"}
    # A task that is its own keep task leaves nothing, whatever else is kept.
    assert any(facts["survived"] > 0.1 for facts in first["tensors"].values())
    assert all(facts["survived"] == 0 for facts in second["tensors"].values())
    learned = ws.document("learn", case.base, "--task", case.tuned, "--keep", case.statistics,
                          "--rank", "8", "-o", tmp_path / "c")  # fmt: skip
    base, down, up = (read_tensors(each) for each in (case.base, tmp_path / "a", tmp_path / "c"))
    assert learned["parameters"]["epsilon"] == 1e-3
    name = "model.layers.0.mlp.up_proj.weight"
    torch.testing.assert_close(up[name] - base[name], base[name] - down[name], atol=1e-6, rtol=0)
    assert not same_bytes(up[name], base[name])


def test_a_dry_run_counts_the_statistics(ws, case, tmp_path):
    command = ["project", case.base, "--forget", case.tuned, "-o", tmp_path / "out", "--dry-run"]
    without = ws.document(*command, "--keep", case.tuned)
    with_them = ws.document(*command, "--keep", case.tuned, "--keep", case.statistics)
    assert with_them["memory_bytes"] > without["memory_bytes"]
    assert with_them["read_bytes"] > without["read_bytes"]
    assert list(tmp_path.iterdir()) == []


def test_gathering_says_what_it_gathered(ws, case, tmp_path):
    before = snapshot(case.base)
    text, said = ws.done(
        "identify", case.base, case.keep, "-o", tmp_path / "s", "--mode", "activations",
        "--max-memory", "0.001", "--targets", "mlp", "--json",
    )  # fmt: skip
    document = json.loads(text)
    assert document["kind"] == "activation-statistics"
    assert document["summary"]["tensors"] == 6
    assert document["summary"]["matrices"] == 4
    assert document["command"][:2] == ["ws", "identify"]
    assert "Saved the statistics" in said
    ws.done("verify", tmp_path / "s")
    assert snapshot(case.base) == before
    whole, part = read_tensors(case.statistics), read_tensors(tmp_path / "s")
    assert part.keys() < whole.keys()
    assert all(same_bytes(part[name], whole[name]) for name in part)


def test_what_does_not_fit_is_refused(ws, case, tmp_path):
    gather = ["identify", case.base, case.keep, "-o", tmp_path / "s", "--mode", "activations"]
    for extra, said in (
        (["--steps", "3"], "trains nothing"),
        (["--keep", case.keep], "trains nothing"),
        (["--dry-run"], "trains nothing"),
        (["--max-memory", "0"], "--max-memory 0"),
        (["--max-memory", "0.00001"], "are allowed"),
    ):
        assert said in ws.refused(*gather, *extra)[0]
    what, _ = ws.refused(
        "identify", case.base, case.keep, "-o", tmp_path / "s", "--max-memory", "1"
    )
    assert "--max-memory" in what
    what, remedy = ws.refused("negate", case.base, case.statistics, "-o", tmp_path / "o")
    assert "activation statistics, not a change" in what
    assert "--keep" in remedy
    project = ["project", case.base, "--forget", case.tuned, "-o", tmp_path / "o"]
    assert "epsilon -1" in ws.refused(*project, "--keep", case.statistics, "--epsilon", "-1")[0]
    assert "weight" in ws.refused(*project, "--keep", f"{case.statistics}:-2")[0]
    for kept in (case.statistics, case.keep):
        what, remedy = ws.refused(*project, "--keep", kept, "--side", "soft")
        assert "a ridge of" in what
        assert "right" in remedy
    what, remedy = ws.refused(
        *project, "--keep", case.statistics, "--targets", "all", "--include", "lm_head.weight"
    )
    assert "no activation statistics of tensor 'lm_head.weight'" in what
    assert "--exclude 'lm_head.weight'" in remedy
    assert list(tmp_path.iterdir()) == []


def test_statistics_of_another_model_are_refused(ws, case, tmp_path):
    torch.manual_seed(9)
    config = LlamaConfig.from_pretrained(case.base)
    LlamaForCausalLM(config).save_pretrained(tmp_path / "other")
    byte_tokenizer().save_pretrained(tmp_path / "other")
    ws.done(
        "identify", tmp_path / "other", case.keep, "-o", tmp_path / "s", "--mode", "activations"
    )
    project = ["project", case.base, "--forget", case.tuned, "-o", tmp_path / "o"]
    what, remedy = ws.refused(*project, "--keep", tmp_path / "s")
    assert "s: not derived from" in what
    assert "--allow-unrelated" in remedy
    ws.done(*project, "--keep", tmp_path / "s", "--allow-unrelated")
