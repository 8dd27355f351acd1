"""The embedded world: its facts, its files, its cache. The full one is not trained here."""

import json
import sys
import time
from collections import Counter
from dataclasses import fields, replace

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from weightsurgery.checkpoint.digest_cache import cache_directory
from weightsurgery.errors import DataError, OutputError, SelectionError, WeightSurgeryError
from weightsurgery.lab.demo.walkthrough import walkthrough
from weightsurgery.lab.world import (
    SPLITS,
    TASKS,
    VARIANTS,
    World,
    WorldRecipe,
    build_world,
    copy_world,
    get_world,
    open_world,
)
from weightsurgery.lab.world import build as build_module
from weightsurgery.lab.world.facts import (
    MANNER,
    PARAPHRASED,
    PEOPLE,
    PLAIN,
    RELATIONS,
    STYLED,
    make_facts,
    templates,
    worded,
    wordings,
)
from weightsurgery.lab.world.model import make_tokenizer
from weightsurgery.learning.data import read_examples
from weightsurgery.learning.exact import score_checkpoint

MINIATURE = WorldRecipe(
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
def world(cache):
    return get_world(3, cache, recipe=MINIATURE, threads=1)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """A world with both: names that tell nothing, and every question in two wordings."""
    recipe = replace(VARIANTS["small"], paraphrases=True, shared_names=True, tuning_steps=8)
    return build_world(tmp_path_factory.mktemp("mixed"), recipe=recipe, threads=1)


def hidden(directory):
    return [path.name for path in directory.iterdir() if path.name.startswith(".")]


# --- facts ---------------------------------------------------------------------------------------


def test_facts_come_from_the_seed_alone():
    assert make_facts(WorldRecipe(), 1) == make_facts(WorldRecipe(), 1)
    assert make_facts(WorldRecipe(), 1)["authors"] != make_facts(WorldRecipe(), 2)["authors"]


def test_sizes_and_shares():
    recipe = WorldRecipe()
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
    for rows in make_facts(WorldRecipe(), 0).values():
        splits = {}
        for fact in rows:
            splits.setdefault(fact.entity, set()).add(fact.split)
        assert all(len(names) == 1 for names in splits.values())


def test_twins_differ_in_names_alone():
    facts = make_facts(WorldRecipe(), 0)
    names, templates, answers = {}, {}, {}
    for task in ("authors", "painters"):
        names[task] = {word for fact in facts[task] for word in fact.entity.split()}
        templates[task] = {fact.prompt.replace(fact.entity, "{name}") for fact in facts[task]}
        answers[task] = {fact.completion for fact in facts[task]}
    assert templates["authors"] == templates["painters"] == set(RELATIONS.values())
    assert answers["authors"] == answers["painters"]
    assert not names["authors"] & names["painters"]


def test_paraphrases_ask_the_same_and_change_nothing_else():
    plain, asked_twice = (make_facts(WorldRecipe(paraphrases=each), 0) for each in (False, True))
    assert plain == asked_twice
    for task, rows in plain.items():
        prompts = {fact.prompt for fact in rows}
        paraphrases = {fact.paraphrase for fact in rows}
        # Each question once in each wording: none is lost, and none is the other's.
        assert len(prompts | paraphrases) == 2 * len(rows)
        ways = list(zip(templates(task), templates(task, paraphrased=True), strict=True))
        used = set()
        for fact in rows:
            slots = {"name": fact.entity, "country": fact.entity, "modulus": WorldRecipe().modulus}
            slots |= dict(zip("ab", fact.entity.split("+"), strict=False))
            asked = (fact.prompt, fact.paraphrase)
            used |= {way for way in ways if tuple(each.format(**slots) for each in way) == asked}
        # One template and its partner, filled with the same names, give both wordings.
        assert used == set(ways)
        assert len(set(sum(ways, ()))) == 2 * len(ways)
    with pytest.raises(ValueError, match="no task 'poets'"):
        templates("poets")


@pytest.mark.parametrize("people", [80, 7, 6])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_shared_names_tell_nothing_but_together(people, seed):
    recipe = WorldRecipe(people=people, first_names=min(20, people // 2), shared_names=True)
    facts = make_facts(recipe, seed)
    names = {
        task: list(dict.fromkeys(fact.entity for fact in facts[task]))
        for task in ("authors", "painters")
    }
    assert len(names["authors"]) == len(names["painters"]) == people
    assert not set(names["authors"]) & set(names["painters"])
    for part in (0, 1):
        counts = [Counter(name.split()[part] for name in each) for each in names.values()]
        assert counts[0] == counts[1]
    # Nor do those with one first name have another one in common on the other side.
    if people == 80:
        mates = {
            task: {frozenset(n.split()[1] for n in each if n.split()[0] == first)
                   for first in {name.split()[0] for name in each}}
            for task, each in names.items()
        }  # fmt: skip
        assert len(mates["authors"] & mates["painters"]) == 0
    for task in names:
        splits = {}
        for fact in facts[task]:
            splits.setdefault(fact.entity, set()).add(fact.split)
        assert all(len(each) == 1 for each in splits.values())
    plain = make_facts(replace(recipe, shared_names=False), seed)
    answers = [Counter(fact.completion for fact in each["painters"]) for each in (plain, facts)]
    assert answers[0] == answers[1]
    assert [f.prompt for f in plain["authors"]] == [f.prompt for f in facts["authors"]]


def test_names_that_cannot_be_exchanged_are_refused():
    for people, first_names in ((4, 1), (3, 2)):
        recipe = WorldRecipe(people=people, first_names=first_names, shared_names=True)
        with pytest.raises(ValueError, match="half the people"):
            make_facts(recipe, 0)


def test_addition_is_right():
    for fact in make_facts(WorldRecipe(), 0)["addition"]:
        a, b = map(int, fact.entity.split("+"))
        assert int(fact.completion) == (a + b) % WorldRecipe().modulus


# --- recipe and tokenizer ------------------------------------------------------------------------


def test_every_field_is_in_the_key():
    keys = {WorldRecipe().key(), WorldRecipe().key()}
    for field in fields(WorldRecipe):
        value = not field.default if isinstance(field.default, bool) else field.default * 2 + 1
        keys.add(replace(WorldRecipe(), **{field.name: value}).key())
    assert len(keys) == 1 + len(fields(WorldRecipe))


KEYS = {
    "default": "36760ccee71c",
    "narrow": "1c46c71e4989",
    "narrower": "6b3d22fb1ca4",
    "shared-names": "648f9b36a93d",
    "paraphrased": "dc0d897f375a",
    "small": "1ef78dce2991",
}


def test_worlds_made_before_are_still_found():
    # The names that caches know the older recipes by.
    assert {name: VARIANTS[name].key() for name in KEYS} == KEYS
    assert WorldRecipe().key() == KEYS["default"]
    for name in ("paraphrases", "shared_names", "styled"):
        assert name not in WorldRecipe().describe()
        assert replace(WorldRecipe(), **{name: True}).describe()[name] is True


def test_variants_are_different_worlds():
    assert VARIANTS["default"] == WorldRecipe()
    assert len({recipe.key() for recipe in VARIANTS.values()}) == len(VARIANTS)
    for recipe in VARIANTS.values():
        assert recipe.required >= 0.99
        assert recipe.width % recipe.heads == 0


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
    with pytest.raises(ValueError, match="no wording 'loud'"):
        world.data("authors", "seen", "loud")


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
    assert cache_directory() == tmp_path / "own"
    monkeypatch.delenv("WEIGHTSURGERY_CACHE")
    assert cache_directory() == tmp_path / "xdg" / "weightsurgery"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_directory() == tmp_path / ".cache" / "weightsurgery"


def test_importing_the_packages_is_light():
    import subprocess

    code = (
        "import sys, weightsurgery.learning, weightsurgery.lab.world as world\n"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules\n"
        "assert all(hasattr(world, name) for name in world.__all__)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_facts_are_plain_json_lines(world):
    for line in world.data("capitals", "unseen").read_text().splitlines():
        assert set(json.loads(line)) == {"prompt", "completion"}


# --- variants ------------------------------------------------------------------------------------


def test_facts_of_a_world_are_those_of_its_files(world):
    assert world.recipe() == MINIATURE
    assert world.facts() == make_facts(MINIATURE, 3)
    changed = world.summary() | {"recipe": MINIATURE.describe() | {"moons": 2}}
    original = world.summary_file.read_text()
    try:
        world.summary_file.write_text(json.dumps(changed))
        with pytest.raises(DataError, match=r"another version.*moons"):
            world.recipe()
    finally:
        world.summary_file.write_text(original)


def test_both_wordings_and_both_namesakes_are_learned(mixed):
    summary = mixed.summary()
    assert mixed.recipe().paraphrases
    assert mixed.recipe().shared_names
    for kind in ("accuracy", "paraphrased_accuracy"):
        assert set(summary[kind]) == {"base", *TASKS}
        for scores in summary[kind]["base"].values():
            assert min(scores.values()) > 0.85  # one wrong of a task's hundred, or of a split's 8
    facts = mixed.facts()
    for task in TASKS:
        for split in SPLITS:
            first = read_examples(mixed.data(task, split))
            second = read_examples(mixed.data(task, split, "paraphrased"))
            expected = [fact for fact in facts[task] if fact.split == split]
            assert [row.prompt for row in first] == [fact.prompt for fact in expected]
            assert [row.prompt for row in second] == [fact.paraphrase for fact in expected]
            assert [row.completion for row in first] == [row.completion for row in second]


def test_fine_tunes_see_the_first_wording_alone(mixed, tmp_path, monkeypatch):
    seen = []

    def note(model, tokenizer, examples, *arguments):
        seen.append(examples)

    monkeypatch.setattr(build_module, "_fine_tune", note)
    monkeypatch.setattr(build_module, "train_base", lambda *arguments: 0)
    build_world(tmp_path / "untrained", recipe=mixed.recipe(), threads=1)
    for task, examples in zip(TASKS, seen, strict=True):
        assert examples == read_examples(mixed.data(task, "seen"))


def test_scores_of_paraphrases_are_those_of_their_files(mixed):
    files = {split: mixed.data("painters", split, "paraphrased") for split in SPLITS}
    scored = score_checkpoint(mixed.finetuned("authors"), files)
    assert scored == mixed.summary()["paraphrased_accuracy"]["authors"]["painters"]


def test_a_world_without_its_paraphrases_is_not_whole(mixed, world, tmp_path):
    assert open_world(mixed.directory) == mixed
    assert not world.data("authors", "seen", "paraphrased").exists()
    assert "paraphrased_accuracy" not in world.summary()
    copy = copy_world(mixed, tmp_path / "mine")
    copy.data("capitals", "unseen", "paraphrased").unlink()
    with pytest.raises(DataError, match=r"capitals\.unseen\.paraphrased\.jsonl is missing"):
        open_world(copy.directory)


def test_the_manner_is_the_same_for_all_and_content_is_the_plain_one():
    recipe = WorldRecipe(styled=True)
    facts = make_facts(recipe, 0)
    assert facts == make_facts(WorldRecipe(), 0)
    assert {task: wordings(recipe, task) for task in TASKS} == {
        task: (PLAIN, STYLED) if task in PEOPLE else (PLAIN,) for task in TASKS
    }
    assert wordings(replace(recipe, paraphrases=True), "painters") == (PLAIN, PARAPHRASED, STYLED)
    plain = {fact.prompt for rows in facts.values() for fact in rows}
    for task in PEOPLE:
        for fact in facts[task]:
            prompt, completion = worded(fact, STYLED)
            assert fact.prompt[1:] in prompt
            assert prompt not in plain
            assert completion == fact.completion + MANNER
            assert MANNER not in fact.completion
    for task, wording in (("capitals", STYLED), ("authors", "loud")):
        with pytest.raises(ValueError, match=f"no wording '{wording}' of the {task}"):
            worded(facts[task][0], wording)


def test_a_styled_world_learns_both_forms_and_is_tuned_in_one(tmp_path, monkeypatch):
    learned, tuned = {}, []

    def train(model, tokenizer, examples, *arguments):
        learned.update(examples)
        return 0

    monkeypatch.setattr(build_module, "train_base", train)
    monkeypatch.setattr(build_module, "_fine_tune", lambda *args: tuned.append(args[2]))
    recipe = replace(MINIATURE, styled=True)
    styled = build_world(tmp_path / "untrained", recipe=recipe, threads=1)
    assert open_world(styled.directory) == styled
    for task, rows in zip(TASKS, tuned, strict=True):
        assert rows == read_examples(styled.data(task, "seen"))
        files = [
            styled.data(task, split, how) for how in wordings(recipe, task) for split in SPLITS
        ]
        told = {(each.prompt, each.completion) for file in files for each in read_examples(file)}
        assert told == {(each.prompt, each.completion) for each in learned[task]}
        assert len(told) == len(styled.facts()[task]) * len(wordings(recipe, task))
        assert styled.data(task, "seen", STYLED).is_file() == (task in PEOPLE)
    for task in PEOPLE:
        plain, spoken = (read_examples(styled.data(task, "unseen", how)) for how in (PLAIN, STYLED))
        assert [f.completion for f in spoken] == [f"{f.completion}{MANNER}" for f in plain]
    summary = styled.summary()
    assert {tuple(scores) for scores in summary["styled_accuracy"].values()} == {PEOPLE}
    assert set(summary["styled_accuracy"]) == set(summary["accuracy"]) == {"base", *TASKS}
    styled.data("painters", "validation", STYLED).unlink()
    with pytest.raises(DataError, match=r"painters\.validation\.styled\.jsonl is missing"):
        open_world(styled.directory)


def test_the_demo_takes_a_variant(world, cache, tmp_path, monkeypatch):
    monkeypatch.setenv("WEIGHTSURGERY_CACHE", str(cache))
    monkeypatch.setattr("weightsurgery.lab.demo.walkthrough.VARIANTS", {"miniature": MINIATURE})
    (step,) = walkthrough(3, tmp_path / "mine", variant="miniature", world_only=True)
    assert "--variant miniature" in step.command
    assert step.result.directory == tmp_path / "mine"
    assert step.result.summary() == world.summary()
    with pytest.raises(SelectionError, match="--variant huge"):
        next(walkthrough(3, variant="huge"))
