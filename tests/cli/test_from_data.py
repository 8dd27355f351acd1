"""``ws project`` and ``ws learn`` from data sets, and data beside vectors, as a user types it."""

import json
import re

import pytest

from tests.cli.typed import weights
from tests.conftest import read_tensors, same_bytes, snapshot
from weightsurgery.lab.world import VARIANTS, build_world

# The world here knows hardly anything and writes no prose: the guard's budget is not for it.
BRIEF = ["--steps", "2", "--batch", "8", "--prompts", "40", "--allow-harm"]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    from dataclasses import replace

    recipe = replace(
        VARIANTS["small"], people=8, steps=60, step_cap=60, first_check=60, required=0.3,
        tuning_steps=3,
    )  # fmt: skip
    return build_world(tmp_path_factory.mktemp("world"), recipe=recipe, threads=1).directory


@pytest.fixture
def fault(refused):
    """What was wrong."""
    return lambda *arguments: refused(*arguments)[0]


@pytest.fixture
def default(world):
    return ["project", world / "base", "--forget", world / "data/authors.seen.jsonl"]


@pytest.fixture
def project(default):
    return [*default, "--objective", "strangers"]


@pytest.fixture
def painters(world):
    return world / "data/painters.seen.jsonl"


def test_forget_a_file_and_keep_a_file(world, done, project, painters, tmp_path):
    command = [
        *project, "--keep", painters, "--steps", "10", "--lr", "1.5", "--batch", "8",
        "--prompts", "40", "--rounds", "2", "--threshold", "0.01", "--allow-harm",
        "--validation-keep", world / "data/painters.validation.jsonl",
    ]  # fmt: skip
    out, said = done(*command, "-o", tmp_path / "out", "-v")
    assert re.search(r"round +loss before +loss after +to forget +painters.validation.jsonl", out)
    assert re.search(r"\n before .* %", out)
    assert re.search(r"\n 1 +\d+\.\d{4} +\d+\.\d{4} +[\d.]+ % +[\d.]+ %", out)
    assert "edit check" in out
    assert f"Saved the vector in {tmp_path / 'out.vector'}" in said
    done("verify", tmp_path / "out")
    done("verify", tmp_path / "out.vector")
    done("negate", world / "base", tmp_path / "out.vector", "-o", tmp_path / "same")
    assert weights(tmp_path / "same") == weights(tmp_path / "out")
    assert weights(tmp_path / "out") != weights(world / "base")
    # Again: the vector is there.
    _, said = done(
        *command, "-o", tmp_path / "half", "--scale", "0.5", "--vector", tmp_path / "out.vector"
    )
    assert "nothing was trained" in said
    done("negate", world / "base", tmp_path / "out.vector", "--scale", ".5", "-o", tmp_path / "n")
    assert weights(tmp_path / "half") == weights(tmp_path / "n")


def test_one_document_with_both_records(world, done, project, painters, tmp_path):
    out, _ = done(
        *project, "--keep", painters, "--keep", f"{world / 'finetuned/addition'}",
        "-o", tmp_path / "out", *BRIEF, "--rank", "2", "--seed", "5", "--epsilon", "0.01", "--json",
    )  # fmt: skip
    document = json.loads(out)
    assert document["parameters"]["objective"] == "strangers"
    assert document["parameters"]["seed"] == 5
    assert document["parameters"]["epsilon"] == 0.01
    assert document["parameters"]["steps"] == 2
    assert document["parameters"]["rank"] == "2"
    assert document["vector"]["path"] == str(tmp_path / "out.vector")
    assert document["vector"]["inputs"].keys() == {"base", "keep1", "forget", "keep_data1"}
    assert {each["rank"] for each in document["vector"]["tensors"].values()} == {2}
    assert {each["rank"] for each in document["tensors"].values()} == {2}


def test_an_edit_from_data_as_an_adapter(world, ws, done, project, painters, tmp_path):
    """The trained change is of full rank: a rank truncates it, and then it is an adapter."""
    command = [*project, "--keep", painters, *BRIEF, "-o", tmp_path / "out", "--as", "adapter",
               "--dtype", "float32", "--scale", "2"]  # fmt: skip
    code, out, err = ws.run(*command)
    assert (code, out) == (1, "")
    what, remedy = err.strip().splitlines()
    assert "--as adapter with data" in what
    assert "--rank K" in remedy
    plan = json.loads(done(*command, "--rank", "3", "--dry-run", "--json")[0])
    assert set(plan["edit"]["ranks"].values()) == {3}
    out, _ = done(*command, "--rank", "3", "--dry-run")
    assert re.search(r"written +up to", out)
    assert list(tmp_path.iterdir()) == []
    out, said = done(*command, "--rank", "3")
    assert "of rank 3" in out
    assert re.search(r"the vector holds [\d.]+ % of its energy", out)
    assert "peft loads it" in said
    record = json.loads((tmp_path / "out/weightsurgery.json").read_text())
    assert (record["kind"], record["parameters"]["edit"]) == ("adapter", "project")
    assert record["parameters"]["objective"] == "strangers"
    size = (tmp_path / "out/adapter_model.safetensors").stat().st_size
    assert size == plan["edit"]["write_bytes"]
    done("verify", tmp_path / "out")
    # Beside the base it is what the vector's negation writes.
    done("negate", world / "base", tmp_path / "out.vector", "--scale", "2",
         "-o", tmp_path / "checkpoint", "--dtype", "float32")  # fmt: skip
    done("add", world / "base", tmp_path / "out", "-o", tmp_path / "added", "--dtype", "float32")
    before, wanted, found = (
        read_tensors(place)
        for place in (world / "base", tmp_path / "checkpoint", tmp_path / "added")
    )
    assert any(not same_bytes(before[name].float(), wanted[name]) for name in before)
    for name in before:
        change = float((wanted[name] - before[name]).norm())
        assert float((found[name] - wanted[name]).norm()) <= 2e-6 * change + 1e-6
    # The same command uses the vector, and writes the same bytes.
    first = snapshot(tmp_path / "out")
    (tmp_path / "out").rename(tmp_path / "before")
    assert "nothing was trained" in done(*command, "--rank", "3")[1]
    assert snapshot(tmp_path / "out") == first


def test_learn_a_file(world, done, painters, tmp_path):
    new = tmp_path / "new.jsonl"
    new.write_text('{"prompt": "Question: Who am I? Answer:", "completion": " You"}\n')
    _, said = done("learn", world / "base", "--task", new, "-o", tmp_path / "out", *BRIEF)
    assert "random words" in said
    assert "ws add" in said
    done("add", world / "base", tmp_path / "out.vector", "-o", tmp_path / "same")
    assert weights(tmp_path / "same") == weights(tmp_path / "out") != weights(world / "base")


def test_a_dry_run_says_what_it_would_do_and_does_nothing(done, project, painters, tmp_path):
    command = [*project, "--keep", painters, "-o", tmp_path / "out", "--dry-run"]
    out, _ = done(*command)
    for words in ("strangers", "statistics", "n x n", "out.vector", "1 x 80 of 64", "to keep"):
        assert words in out
    document = json.loads(done(*command, "--json")[0])
    assert document["statistics"] > 0
    assert document["edit"]["edit"] == "project"
    assert (document["settings"]["rounds"], document["settings"]["steps"]) == (1, 80)
    document = json.loads(done(*command, "--json", "--objective", "negate")[0])
    assert (document["settings"]["rounds"], document["settings"]["steps"]) == (12, 10)
    assert list(tmp_path.iterdir()) == []


def test_a_vector_is_taken_away_and_data_kept(world, done, project, painters, tmp_path):
    forget = ["project", world / "base", "--forget", world / "finetuned/authors", "--rank", "8"]
    command = [*forget, "--keep", painters, "-o"]
    done(*command, tmp_path / "a", "--prompts", "0")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]  # no statistics are left
    # The same as gathering first and keeping the statistics.
    done("identify", world / "base", painters, "--mode", "activations", "-o", tmp_path / "s")
    done(*forget, "--keep", tmp_path / "s", "-o", tmp_path / "b")
    assert weights(tmp_path / "a") == weights(tmp_path / "b")
    # Strangers' prompts hold more back.
    document = json.loads(done(*command, tmp_path / "c", "--json", "--prompts", "300")[0])
    assert weights(tmp_path / "c") != weights(tmp_path / "a")
    kept = document["inputs"]["keep_inputs1"]
    assert (kept["kind"], kept["prompts"]) == ("data", 300)
    assert list(kept["sha256"]) == [str(painters)]
    assert {kin["verdict"] for kin in document["lineage"]} == {"related"}
    done("verify", tmp_path / "c")
    # With statistics and a vector beside it.
    document = json.loads(
        done(*command, tmp_path / "d", "--json", "--keep", tmp_path / "s",
             "--keep", world / "finetuned/addition", "--targets", "mlp")[0]
    )  # fmt: skip
    assert document["inputs"].keys() == {
        "base", "forget", "keep1", "keep_inputs1", "keep_inputs2",
    }  # fmt: skip
    assert all(".mlp." in name for name in document["tensors"])
    assert document["inputs"]["keep_inputs2"]["prompts"] == 2000


def test_a_dry_run_of_a_vector_with_data_gathers_nothing(world, done, painters, tmp_path):
    forget = ["project", world / "base", "--forget", world / "finetuned/authors"]
    command = [*forget, "-o", tmp_path / "out", "--dry-run", "--json"]
    with_data = json.loads(done(*command, "--keep", painters)[0])
    without = json.loads(done(*command, "--keep", world / "finetuned/painters")[0])
    assert with_data["read_bytes"] != without["read_bytes"]
    assert list(tmp_path.iterdir()) == []


def test_data_to_forget_and_vectors_to_keep(world, done, project, tmp_path):
    done("identify", world / "base", world / "data/painters.seen.jsonl", "--mode", "activations",
         "-o", tmp_path / "s")  # fmt: skip
    done(*project, "--keep", world / "finetuned/painters", "--keep", tmp_path / "s",
         "-o", tmp_path / "out", *BRIEF)  # fmt: skip
    was, now = read_tensors(world / "base"), read_tensors(tmp_path / "out")
    assert any(not same_bytes(was[name], now[name]) for name in was)


def test_what_does_not_go_together_is_refused(world, fault, ws, project, painters, tmp_path):
    vector, before = world / "finetuned/authors", snapshot(tmp_path)
    out = ["-o", tmp_path / "out"]
    data = [*project, "--keep", painters, *out]
    plain = ["project", world / "base", "--forget", vector, *out]
    learn = ["learn", world / "base", "--task", painters, *out]
    for option in (["--rounds", "2"], ["--objective", "negate"], ["--lr", "1"], ["--steps", "1"],
                   ["--vector", "v"], ["--validation-keep", painters],
                   ["--keep-weight", "0"]):  # fmt: skip
        what = fault(*plain, "--keep", painters, *option)
        assert option[0] in what
        assert "with a vector" in what
    keep_vector = ["--keep", world / "finetuned/painters"]
    assert "--prompts" in fault(*plain, *keep_vector, "--prompts", "3")
    assert "--validation-forget" in fault(*plain, *keep_vector, "--validation-forget", painters)
    assert "prompts -1" in fault(*plain, "--keep", painters, "--prompts", "-1")
    assert "no task to keep" in fault(*plain)
    assert "is a data set and" in fault(*data, "--forget", vector)
    assert "with a factor" in fault(*plain, "--keep", f"{painters}:2")
    assert "with a factor" in fault("project", world / "base", "--forget", f"{painters}:2", *out)
    for extra, said in (
        (["--objective", "learn"], "--objective learn with 'ws project'"),
        (["--round-scale", "3"], "--round-scale"),
        (["--objective", "negate", "--draws", "1"], "--draws"),
        (["--threshold", "0.9"], "--threshold without"),
        (["--side", "left"], "--side left"),
        (["--side", "soft"], "--side soft"),
        (["--basis", "sum"], "--basis sum"),
        (["--steps", "0"], "steps 0"),
        (["--rounds", "-1"], "rounds -1"),
        (["--epsilon", "0"], "epsilon 0"),
        (["--lr", "nan"], "learning rate nan"),
        (["--rank", "0"], "rank 0"),
        (["--keep", painters], "the same data"),
        (["--validation-keep", painters], "the edit sees it"),
        (["--workers", "0"], "0 workers"),
        (["--keep", world / "data/none.jsonl"], "cannot be read"),
        (["--dtype", "int8"], "dtype"),
    ):
        assert said in fault(*data, *extra)
    assert "--objective strangers with 'ws learn'" in fault(*learn, "--objective", "strangers")
    assert "a data set, not a change" in fault("negate", world / "base", painters, *out)
    code, _, err = ws.run("project", world / "base", *out)
    assert code == 2
    assert "--forget" in err
    assert snapshot(tmp_path) == before


def test_an_output_that_is_there_is_told_before_anything_runs(
    world, fault, project, painters, tmp_path, monkeypatch
):
    from weightsurgery.procedures import gathered
    from weightsurgery.unlearning import method

    def never(*args, **kwargs):
        raise AssertionError("ran")

    monkeypatch.setattr(gathered, "load_model", never)
    monkeypatch.setattr(method, "load_float32", never)
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine").write_text("mine")
    vector = ["project", world / "base", "--forget", world / "finetuned/authors"]
    for command in (project, vector):
        for extra in ([], ["--overwrite"]):
            fault(*command, "--keep", painters, "-o", tmp_path / "out", *extra)
    assert snapshot(tmp_path) == {"out/mine": b"mine"}


def test_the_options_have_a_panel_of_their_own(ws):
    for command in ("project", "learn"):
        code, out, _ = ws.run(command, "--help-all")
        assert code == 0
        panel = out[out.index("From data sets") :]
        assert "--objective" in panel
        assert "--validation-keep" in panel
