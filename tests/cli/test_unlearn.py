"""``ws unlearn`` as a user types it."""

import json
import re

import pytest

from tests.cli.typed import weights
from tests.conftest import snapshot
from tests.learning.tiny import FACTS, OTHER, UNSEEN, save, tiny, write
from weightsurgery.unlearning.methods import METHODS


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("place")
    save(tiny("llama"), folder / "base")
    for name, rows in (("forget", FACTS), ("keep", OTHER), ("unseen", UNSEEN)):
        write(folder / f"{name}.jsonl", rows)
    return folder


@pytest.fixture
def command(place):
    def words(method, *others):
        given = ["unlearn", place / "base", "--method", method]
        given += ["--forget", place / "forget.jsonl", "--keep", place / "keep.jsonl"]
        return [*given, "--steps", "2", "--lr", "3e-3", *others]

    return words


def test_the_help_names_what_there_is(done):
    from weightsurgery.unlearning.methods import SYSTEMS

    assert set(METHODS) == set(SYSTEMS)
    out, _ = done("unlearn", "--help")
    plain = re.sub(r"[│\s]+", " ", out)
    assert all(name in plain for name in METHODS)


def test_the_list_tells_sources_and_defaults(done):
    out, _ = done("unlearn", "--list")
    plain = re.sub(r"\s+", " ", out)
    for name in METHODS:
        assert re.search(rf"^ {re.escape(name)} ", out, re.M), name
    assert len(re.findall(r"2\d{3}\.\d{5}", plain)) >= len(METHODS)
    assert "beta=0.1, retain=none" in plain
    assert re.search(r"lr 5e-05, 20 epochs, batch 32", plain)


def test_the_list_as_a_document(done):
    from weightsurgery.unlearning.methods import SYSTEMS

    for words in (("--list", "--json"), ("--json", "--list")):
        rows = {row["method"]: row for row in json.loads(done("unlearn", *words)[0])}
        assert tuple(rows) == tuple(METHODS)
    kul, npo = rows["kul"], rows["npo"]
    assert kul["needs"] == ["--forget", "--unseen"]
    assert (kul["training"]["epochs"], kul["training"]["max_length"]) == (20, 200)
    assert npo["settings"] == {"beta": 0.1, "retain": "none", "keep_weight": 1.0}
    assert (rows["eul"]["lora_rank"], rows["cpem-ia3"]["takes_lora_rank"]) == (16, False)
    assert all(row["source"] == SYSTEMS[name].paper for name, row in rows.items())


def test_forget_a_file(place, done, command, tmp_path):
    words = command("npo", "--set", "beta=0.5", "--set", "retain=klr", "-o", tmp_path / "out")
    out, said = done(*words)
    assert "npo (Zhang et al. 2024, arXiv 2404.05868)" in out
    assert re.search(r"beta=0.5, retain=klr, keep_weight=1", out)
    assert re.search(r"2 steps, loss \d+\.\d{4} to \d+\.\d{4}", out)
    assert "edit check" in out
    assert f"Saved the vector in {tmp_path / 'out.vector'}" in said
    done("verify", tmp_path / "out")
    done("verify", tmp_path / "out.vector")
    done("negate", place / "base", tmp_path / "out.vector", "-o", tmp_path / "same")
    assert weights(tmp_path / "same") == weights(tmp_path / "out")
    assert weights(tmp_path / "out") != weights(place / "base")
    # The recipe of the output makes it again, settings that nobody typed included.
    recipe, _ = done("run", "--from", tmp_path / "out")
    assert "command: unlearn" in recipe
    assert "beta=0.5" in recipe
    (tmp_path / "recipe.yaml").write_text(recipe)
    done("run", tmp_path / "recipe.yaml", "-o", tmp_path / "again")
    assert weights(tmp_path / "again") == weights(tmp_path / "out")


def test_one_document(place, done, command, tmp_path):
    out, _ = done(
        *command("kga", "--unseen", place / "unseen.jsonl", "--set", "helper_steps=3"),
        "--set", "helper_rate=0.01",
        "--seed", "5", "--lora-rank", "2", "-o", tmp_path / "out", "--json",
    )  # fmt: skip
    document = json.loads(out)
    given = document["parameters"]
    assert (given["edit"], given["method"], given["lora_rank"]) == ("unlearn", "kga", 2)
    assert given["training"]["seed"] == 5
    assert given["settings"]["helper_steps"] == 3
    assert document["vector"]["path"] == str(tmp_path / "out.vector")
    assert {each["rank"] for each in document["vector"]["tensors"].values()} == {2}
    assert document["vector"]["summary"]["training"]["gap"] > 0
    out, _ = done("run", "--from", tmp_path / "out", "--json")
    assert json.loads(out)["command"] == "unlearn"


def test_a_dry_run_writes_nothing(done, command, tmp_path):
    words = [*command("eul"), "-o", tmp_path / "out", "--dry-run"]
    out, _ = done(*words)
    assert re.search(r"method +eul \(Chen and Yang 2023", out)
    assert re.search(r"examples +8 to forget, 8 to keep", out)
    assert re.search(r"as LoRA of rank 16", out)
    plan = json.loads(done(*words, "--json")[0])
    assert (plan["method"], plan["lora_rank"], plan["steps"]) == ("eul", 16, 2)
    assert list(tmp_path.iterdir()) == []


def test_refusals(place, ws, command, tmp_path):
    before = snapshot(place)
    out = ["-o", tmp_path / "out"]
    for words, said in (
        (command("forget-it", *out), "method 'forget-it'"),
        (command("npo", "--set", "beta", *out), "--set beta"),
        (command("npo", "--set", "delta=1", *out), "setting 'delta'"),
        (command("npo", "--epochs", "1", *out), "both --steps and --epochs"),
        (command("kul", *out), "kul without data the model never saw"),
        (command("npo", "--as", "adapter", *out), "--as adapter with npo in full"),
        (command("npo", "--scale", "nan", *out), "scale nan"),
        (command("npo", "--scale", "nan", "--dry-run", *out), "scale nan"),
        (command("cpem-ia3", "--lora-rank", "4", "--dry-run", *out), "cpem-ia3 as a LoRA adapter"),
        (command("npo", "--precision", "int8", *out), "precision 'int8'"),
    ):
        code, printed, err = ws.run(*words)
        assert (code, printed) == (1, ""), words
        what, remedy = err.strip().splitlines()
        assert said in what, what
        assert remedy
    code, _, err = ws.run("unlearn", place / "base", "-o", tmp_path / "out")
    assert code == 2
    assert "--method" in err
    assert snapshot(place) == before
    assert list(tmp_path.iterdir()) == []
