"""The embedded world: its facts, its files, its cache. The full one is not trained here."""

import json
import sys
import time
from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from weightsurgery.errors import DataError, OutputError, WeightSurgeryError
from weightsurgery.learning.data import read_examples
from weightsurgery.learning.evaluate import score_checkpoint
from weightsurgery.procedures.world import (
    SPLITS,
    TASKS,
    Recipe,
    World,
    build_world,
    copy_world,
    default_cache,
    get_world,
    open_world,
)
from weightsurgery.procedures.world import build as build_module
from weightsurgery.procedures.world.facts import RELATIONS, make_facts
from weightsurgery.procedures.world.tokenizer import make_tokenizer

MINIATURE = Recipe(
    people=8,
    first_names=2,
    answers=4,
    countries=6,
    modulus=3,
    vocabulary=400,
    width=32,
    layers=2,
    heads=2,
    mlp_width=64,
    weight_spread=0.18,
    shard_bytes=40_000,
    batch=16,
    learning_rate=5e-3,
    warmup=5,
    steps=60,
    step_cap=60,
    first_check=20,
    check_every=20,
    required=0.3,
    tuning_batch=8,
    tuning_steps=4,
)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def world(cache):
    return get_world(3, cache, recipe=MINIATURE, threads=1)


def hidden(directory):
    return [path.name for path in directory.iterdir() if path.name.startswith(".")]


# --- facts ---------------------------------------------------------------------------------------


def test_facts_come_from_the_seed_alone():
    assert make_facts(Recipe(), 1) == make_facts(Recipe(), 1)
    assert make_facts(Recipe(), 1)["authors"] != make_facts(Recipe(), 2)["authors"]


def test_sizes_and_shares():
    recipe = Recipe()
    facts = make_facts(recipe, 0)
    assert tuple(facts) == TASKS
    assert len(facts["authors"]) == len(facts["painters"]) == 4 * recipe.people
    assert len(facts["capitals"]) == recipe.countries
    assert len(facts["addition"]) == recipe.modulus**2
    for rows in facts.values():
        assert len({fact.prompt for fact in rows}) == len(rows)
        shares = [sum(fact.split == split for fact in rows) / len(rows) for split in SPLITS]
        assert shares == pytest.approx([0.5, 0.15, 0.35], abs=0.01)


def test_splits_share_no_entity():
    for rows in make_facts(Recipe(), 0).values():
        splits = {}
        for fact in rows:
            splits.setdefault(fact.entity, set()).add(fact.split)
        assert all(len(names) == 1 for names in splits.values())


def test_twins_differ_in_names_alone():
    facts = make_facts(Recipe(), 0)
    names, templates, answers = {}, {}, {}
    for task in ("authors", "painters"):
        names[task] = {word for fact in facts[task] for word in fact.entity.split()}
        templates[task] = {fact.prompt.replace(fact.entity, "{name}") for fact in facts[task]}
        answers[task] = {fact.completion for fact in facts[task]}
    assert templates["authors"] == templates["painters"] == set(RELATIONS.values())
    assert answers["authors"] == answers["painters"]
    assert not names["authors"] & names["painters"]


def test_addition_is_right():
    for fact in make_facts(Recipe(), 0)["addition"]:
        a, b = map(int, fact.entity.split("+"))
        assert int(fact.completion) == (a + b) % Recipe().modulus


# --- recipe and tokenizer ------------------------------------------------------------------------


def test_every_field_is_in_the_key():
    keys = {Recipe().key(), Recipe().key()}
    for name, value in Recipe().describe().items():
        keys.add(replace(Recipe(), **{name: value * 2 + 1}).key())
    assert len(keys) == 1 + len(Recipe().describe())


def test_tokenizer_returns_what_it_was_given(tmp_path):
    texts = [fact.prompt + fact.completion for fact in make_facts(MINIATURE, 0)["authors"]]
    make_tokenizer(texts, 400).save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert len(tokenizer) <= 400
    for text in [*texts, "never seen: Ωμέγα\n\t 🙂", "a , b . c"]:
        tokens = tokenizer(text)["input_ids"]
        assert tokens[0] == tokenizer.bos_token_id
        assert tokenizer.decode(tokens, skip_special_tokens=True) == text


# --- the world on disk ---------------------------------------------------------------------------


def test_a_world_is_whole(world, cache):
    assert world.directory.parent == cache
    assert hidden(cache) == []
    for directory in (world.base, *map(world.finetuned, TASKS)):
        assert len(list(directory.glob("*.safetensors"))) >= 3
        index = json.loads((directory / "model.safetensors.index.json").read_text())
        model = AutoModelForCausalLM.from_pretrained(directory, local_files_only=True)
        assert model.config.model_type == "llama"
        assert model.dtype == torch.float32
        tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
        assert len(tokenizer) == model.config.vocab_size
        assert set(index["weight_map"]) == set(model.state_dict())
    facts = make_facts(MINIATURE, 3)
    for task in TASKS:
        for split in SPLITS:
            rows = read_examples(world.data(task, split))
            expected = [fact for fact in facts[task] if fact.split == split]
            assert [(row.prompt, row.completion) for row in rows] == [
                (fact.prompt, fact.completion) for fact in expected
            ]


def test_the_summary_tells_the_truth(world):
    summary = world.summary()
    assert summary["seed"] == 3
    assert summary["recipe"] == MINIATURE.describe()
    assert summary["seconds"]["total"] > 0
    files = {split: world.data("authors", split) for split in SPLITS}
    assert score_checkpoint(world.base, files) == summary["accuracy"]["base"]["authors"]
    scored = score_checkpoint(world.finetuned("painters"), files)
    assert scored == summary["accuracy"]["painters"]["authors"]


def test_fine_tunes_start_from_the_base(world):
    base = AutoModelForCausalLM.from_pretrained(world.base).state_dict()
    for task in TASKS:
        tuned = AutoModelForCausalLM.from_pretrained(world.finetuned(task)).state_dict()
        changed = sum(float((tuned[name] - base[name]).square().sum()) for name in base)
        size = sum(float(weight.square().sum()) for weight in base.values())
        assert 0 < changed < 0.1 * size


def test_paths_of_nothing_are_refused(world):
    with pytest.raises(ValueError, match="no task 'poets'"):
        world.finetuned("poets")
    with pytest.raises(ValueError, match="no split 'test'"):
        world.data("authors", "test")


def test_a_world_at_hand_is_not_made_again(world, cache):
    calls = []
    started = time.perf_counter()
    again = get_world(3, cache, lambda *call: calls.append(call), recipe=MINIATURE)
    assert again == world
    assert calls == []
    assert time.perf_counter() - started < 1


def test_copies_are_whole_and_never_overwrite(world, tmp_path):
    copy = copy_world(world, tmp_path / "mine")
    assert copy == World(tmp_path / "mine")
    assert copy.summary() == world.summary()
    assert open_world(tmp_path / "mine") == copy
    assert hidden(tmp_path) == []
    with pytest.raises(OutputError, match="already holds something"):
        copy_world(world, tmp_path / "mine")
    copy.data("authors", "seen").unlink()
    with pytest.raises(DataError, match=r"authors\.seen\.jsonl is missing"):
        open_world(tmp_path / "mine")


def test_the_same_seed_makes_the_same_bytes_in_silence(world, tmp_path, capfd):
    calls = []
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    capfd.readouterr()
    again = build_world(
        tmp_path / "again", 3, lambda *call: calls.append(call), recipe=MINIATURE, threads=1
    )
    assert capfd.readouterr() == ("", "")
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads
    for first in sorted(world.directory.rglob("*")):
        if first.is_file() and first != world.summary_file:
            second = again.directory / first.relative_to(world.directory)
            assert second.read_bytes() == first.read_bytes(), first
    stages = list(dict.fromkeys(stage for stage, _, _ in calls))
    assert stages == ["training the base", *(f"fine-tuning on {task}" for task in TASKS)]
    assert all(0 < done <= total for _, done, total in calls)


def test_a_failure_in_the_middle_leaves_nothing(tmp_path, monkeypatch):
    def break_down(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(build_module, "_fine_tune", break_down)
    with pytest.raises(KeyboardInterrupt):
        get_world(3, tmp_path, recipe=MINIATURE, threads=1)
    assert [path for path in tmp_path.iterdir() if not path.name.endswith(".lock")] == []


def test_a_killed_build_is_swept_away(world, tmp_path):
    stale = tmp_path / ".mine.making-x1y2"
    (stale / "base").mkdir(parents=True)
    (stale / "world.json").write_text("{}")
    other = tmp_path / ".mine-too.making-x1y2"
    other.mkdir()
    copy_world(world, tmp_path / "mine")
    assert hidden(tmp_path) == [other.name]


def test_a_model_that_did_not_learn_is_no_world(tmp_path):
    recipe = replace(MINIATURE, step_cap=1, required=0.99)
    with pytest.raises(WeightSurgeryError, match=r"knows too little after 1 steps: authors .*%"):
        get_world(3, tmp_path, recipe=recipe, threads=1)
    assert [path for path in tmp_path.iterdir() if not path.name.endswith(".lock")] == []


def test_where_the_cache_is(monkeypatch, tmp_path):
    monkeypatch.setenv("WEIGHTSURGERY_CACHE", str(tmp_path / "own"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert default_cache() == tmp_path / "own"
    monkeypatch.delenv("WEIGHTSURGERY_CACHE")
    assert default_cache() == tmp_path / "xdg" / "weightsurgery"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_cache() == tmp_path / ".cache" / "weightsurgery"


def test_importing_the_packages_is_light():
    import subprocess

    code = (
        "import sys, weightsurgery.learning, weightsurgery.procedures.world as world\n"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules\n"
        "assert set(world._HOMES) < set(world.__all__)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_facts_are_plain_json_lines(world):
    for line in world.data("capitals", "unseen").read_text().splitlines():
        assert set(json.loads(line)) == {"prompt", "completion"}
