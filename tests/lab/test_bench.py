"""The yardstick: that it is fair, that it chooses as it says, and that its figures are right."""

import json
import math
import re
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from weightsurgery.cli.main import app
from weightsurgery.errors import DataError, EditError, OutputError, WeightSurgeryError
from weightsurgery.lab.bench import FORGETTING, LEARNING, Bench, BenchMethod, Outcome, bench
from weightsurgery.lab.bench import methods as methods_module
from weightsurgery.lab.bench import run as running
from weightsurgery.lab.bench.methods import BUDGET, Candidate, retrain
from weightsurgery.lab.bench.requests import FORGET, KEEP, Overlap, overlaps
from weightsurgery.lab.bench.results import Summary, read_bench
from weightsurgery.lab.bench.run import run_method
from weightsurgery.lab.bench.subject import Subject
from weightsurgery.lab.bench.tables import bench_tables, markdown
from weightsurgery.lab.world.recipe import VARIANTS
from weightsurgery.learning.rounds import Rounds
from weightsurgery.learning.watch import Rule, Watch


@contextmanager
def guarded(subject, forbidden):
    """Facts that may not be asked for."""
    inner = Subject.facts

    def facts(self, task, split, *wording):
        assert not forbidden(task, split), f"{task}.{split} was looked at"
        return inner(self, task, split, *wording)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Subject, "facts", facts)
        yield


def unseen_keep(task, split):
    return task in KEEP.values() and split == "unseen"


ROWS = [("forget", name) for name in FORGETTING if name != "retrained"]
ROWS += [("learn", name) for name in LEARNING]


@pytest.mark.parametrize(("task", "name"), ROWS)
def test_no_method_is_given_the_facts_it_is_judged_by(subject, task, name):
    """And none has more candidates than the others, or leaves the model changed."""
    method = (FORGETTING if task == "forget" else LEARNING)[name]
    before = {key: value.clone() for key, value in subject.model.state_dict().items()}
    with guarded(subject, unseen_keep):
        with pytest.raises(AssertionError, match="was looked at"):
            subject.facts("painters", "unseen")
        looks, changed = 0, False
        for candidate in method.candidates(subject):
            looks += 1 + candidate.looks
            changed |= any(bool(t.any()) for t in candidate.change.values())
            changed |= candidate.prompts is not None
            assert all(subject.before[k].shape == t.shape for k, t in candidate.change.items())
    assert 1 <= looks <= BUDGET
    assert changed == (name != "base")
    after = subject.model.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())
    assert all(each.requires_grad for each in subject.model.parameters())


def test_the_retrained_model_never_saw_the_request(subject):
    with guarded(subject, lambda task, split: task == FORGET):
        change = retrain(subject)
    assert set(change) == set(subject.before)  # all of it, embeddings too
    assert all(t.any() for name, t in change.items() if "norm" not in name)


def test_what_is_shared_is_to_be_kept(subject):
    people, targets = [], []
    for share in (0.0, 0.25, 0.5):
        other = subject.with_request(Overlap(share))
        assert other.forget == subject.forget
        shared = {f.prompt for f in other.forget} - {f.prompt for f in other.target}
        assert len(shared) == pytest.approx(share * len(other.forget), abs=4)
        assert not set(people) - shared  # a larger share holds the smaller one
        people, targets = shared, [*targets, len(other.target)]
        assert ("shared" in other.keep_facts("seen")) == bool(share)
        if share:
            parts = {split: {f.prompt for f in other.keep_facts(split)["shared"]}
                     for split in ("seen", "validation", "unseen")}  # fmt: skip
            assert parts["seen"] == shared
            assert parts["validation"] | parts["unseen"] == shared
            assert not parts["validation"] & parts["unseen"]
            entities = [{other.entity[p] for p in parts[s]} for s in ("validation", "unseen")]
            assert all(entities)
            assert not entities[0] & entities[1]
            survivors = {f.prompt for rows in other.request.survivors(other).values() for f in rows}
            assert shared <= survivors
            assert not survivors & {f.prompt for f in other.target}
            # Taken out of the request, it is kept and scored as before.
            apart = subject.with_request(Overlap(share, apart=True))
            assert apart.forget == apart.target == other.target
            assert apart.keep_facts("seen") == other.keep_facts("seen")
    assert targets[0] > targets[1] > targets[2]


@pytest.mark.parametrize("text", ["", "x", "1", "0.2,", "-0.1", "nan", "0.5,1.5"])
def test_shares_that_are_none_are_refused(text):
    forget_requests = overlaps("0,0.5,0.5")
    assert [(each.share, each.apart) for each in forget_requests] == [
        (0, False),
        (0.5, False),
        (0.5, True),
    ]
    assert len({each.name for each in forget_requests}) == 3
    with pytest.raises(EditError, match="--overlap"):
        overlaps(text)


def test_what_is_shared_has_columns_of_its_own(subject):
    other = subject.with_request(Overlap(0.5))
    found = run_method(other, "noise", offering(1.0), 0.0)
    assert found.asked == "50% shared"
    assert found.keep["shared.unseen"] < found.keep_before["shared.unseen"] == 1.0
    assert set(found.tried[0].keep) == {*KEEP, "shared"}


def offering(*scales):
    """Candidates that forget everything, or less, by noise of some size."""

    def candidates(subject):
        generator = torch.Generator().manual_seed(0)
        noise = {n: torch.randn(subject.before[n].shape, generator=generator)
                 for n in subject.names}  # fmt: skip
        for scale in scales:
            yield Candidate({"scale": scale}, {n: scale * t for n, t in noise.items()})

    return BenchMethod("noise", candidates)


def test_the_candidate_that_holds_the_keep_tasks_goes_first(subject):
    harmful = run_method(subject, "noise", offering(1.0), 0.975)
    assert not harmful.qualifies
    assert harmful.target < harmful.target_before
    found = run_method(subject, "noise", offering(1.0, 0.0, 0.5), 0.975)
    assert found.qualifies
    assert found.setting == {"scale": 0.0}
    assert found.target == found.target_before
    assert found.candidates == 3
    # Without a threshold the one that forgets most is chosen.
    anything = run_method(subject, "noise", offering(1.0, 0.0), 0.0)
    assert anything.setting == {"scale": 1.0}


def test_a_method_that_watches_is_held_to_the_threshold_of_the_bench(subject):
    """While it trains, too: what it would not offer cannot be chosen."""
    looked = []

    class Spied(Watch):
        def finish(self):
            super().finish()
            looked.append(self.history)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(methods_module, "Watch", Spied)
        watching = BenchMethod("watches", methods_module._rounds(Rounds(steps=80, prompts=200)))
        strict, lenient = (run_method(subject, "watches", watching, t) for t in (0.975, 0.0))
    for found, threshold, seen in zip((strict, lenient), (0.975, 0.0), looked, strict=True):
        assert seen[0] == {"": 1.0, **found.validation_before}
        held = [each for each in seen
                if min(each[role] / seen[0][role] for role in KEEP) >= threshold]  # fmt: skip
        assert found.target == found.tried[0].target == min(each[""] for each in held)
        assert found.qualifies
    assert lenient.target < strict.target < 1.0
    assert min(lenient.tried[0].keep.values()) < 0.975 <= min(strict.tried[0].keep.values())
    assert subject.rule == Rule()


def test_the_chosen_candidate_is_what_is_scored(subject):
    found = run_method(subject, "noise", offering(0.3), 0.0, relearn_steps=3)
    change = next(iter(offering(0.3).candidates(subject))).change
    with subject.edited(change):
        assert found.target == subject.score(subject.forget)
        assert found.keep["twin.unseen"] == subject.score(subject.facts("painters", "unseen"))
    assert subject.score(subject.forget) == found.target_before
    assert set(found.relearned) == {"half", "rest", "rest_before"}
    assert set(found.rounded) == set(found.rounded_int8) == {"target", *found.keep}


def test_prompts_change_every_score_and_no_weight(subject):
    """What a context does is scored like an edit, plainly and after rounding."""
    before = {key: value.clone() for key, value in subject.model.state_dict().items()}
    asked = []

    def silenced(queries):
        asked.append(len(queries))
        return [replace(each, prompt="?") for each in queries]

    def candidates(subject):
        yield Candidate({}, {}, prompts=silenced)

    plain = run_method(subject, "base", FORGETTING["base"], 0.0)
    found = run_method(subject, "silenced", BenchMethod("asks nothing", candidates), 0.0)
    assert plain.target == found.target_before > found.target
    assert found.rounded["target"] < plain.rounded["target"]
    assert all(found.keep[key] < plain.keep[key] for key in found.keep)
    assert len(asked) >= 1 + len(KEEP) + 3 * (1 + 2 * len(KEEP))
    assert subject.score(subject.forget) == found.target_before
    after = subject.model.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())


def test_icul_is_a_row_that_flips_the_request(subject):
    candidates = list(FORGETTING["icul"].candidates(subject))
    assert [each.setting["shots"] for each in candidates] == [0, 1, 2, 3, 4, 5, 6, 8]
    assert not any(each.change for each in candidates)
    asked = candidates[2].prompts(subject.forget)
    seen = {each.prompt + each.completion for rows in subject.seen for each in rows}
    for query, fact in zip(asked, subject.forget, strict=True):
        flipped, *shots, last = query.prompt.split("\n")
        assert last == fact.prompt
        assert flipped.startswith(fact.prompt)
        assert flipped != fact.prompt + fact.completion
        assert len(shots) == 2
        assert set(shots) <= seen


def test_more_candidates_than_the_budget_are_refused(subject):
    with pytest.raises(EditError, match="looks at validation data"):
        run_method(subject, "noise", offering(*[0.1] * (BUDGET + 1)), 0.975)


def outcome(seed=0, target=0.1, qualifies=True, **keep):
    before = {f"{role}.{split}": 1.0 for role in KEEP for split in ("seen", "unseen")}
    return Outcome(
        "negate", seed, {"scale": 1.0}, qualifies, 8, 2.0, target, 1.0, before | keep, before, 0.25,
        rounded={"target": 0.2, **before}, rounded_int8={"target": 0.3, **before},
    )  # fmt: skip


def test_forgetting_is_over_chance_and_at_most_all():
    assert outcome(target=1.0).forgotten == 0
    assert outcome(target=0.625).forgotten == pytest.approx(50)
    assert outcome(target=0.25).forgotten == 100
    assert outcome(target=0.0).forgotten == 100


def test_drift_is_relative_to_the_base():
    found = outcome(**{"twin.unseen": 0.9})
    assert found.drift("twin.unseen") == pytest.approx(10)
    assert found.drift("twin.seen") == 0
    halved = replace(found, keep_before={**found.keep_before, "twin.unseen": 0.45})
    assert halved.drift("twin.unseen") == pytest.approx(100)


def test_mean_and_spread_are_numpys():
    values = [0.3, 1.5, -2.0, 8.0]
    found = Summary.of(values)
    assert found.mean == pytest.approx(np.mean(values))
    assert found.spread == pytest.approx(np.std(values, ddof=1))
    assert Summary.of([4.0]) == Summary(4.0, 0.0)


def test_what_is_printed_can_be_read_and_joined(tmp_path):
    one = Bench("default", "forget", 0.975, (outcome(0), outcome(1)), {"torch": "x"})
    path = tmp_path / "one.json"
    path.write_text(json.dumps(one.document()))
    assert read_bench(path) == one
    other = Bench("default", "forget", 0.975, (outcome(1, target=0.5), outcome(2)))
    joined = one.merged(other)
    assert [each.seed for each in joined.outcomes] == [0, 1, 2]
    assert joined.outcomes[1].target == 0.5
    with pytest.raises(DataError, match="different benches"):
        one.merged(replace(other, variant="narrow"))


def test_results_of_before_there_was_int8_are_read(tmp_path):
    new = Bench("default", "forget", 0.975, (outcome(0),))
    document = new.document()
    del document["outcomes"][0]["rounded_int8"]
    path = tmp_path / "old.json"
    path.write_text(json.dumps(document))
    old = read_bench(path)
    assert old.outcomes == (replace(outcome(0), rounded_int8={}),)
    robust = bench_tables(new, {})[1]
    assert robust.columns[2:6] == (
        "after NF4 %", "NF4 drift unseen", "after int8 %", "int8 drift unseen",
    )  # fmt: skip
    assert robust.rows[0][2:6] == ("20.0", "0.0", "30.0", "0.0")
    assert "after int8 %" not in bench_tables(old, {})[1].columns
    mixed = Bench("default", "forget", 0.975, (*old.outcomes, outcome(1)))
    assert bench_tables(mixed, {})[1].rows[0][4:6] == ("–", "–")
    kept = sorted(Path(__file__).parents[2].glob("scripts/reproduce/results/*.json"))
    assert kept
    for file in kept:
        assert bench_tables(read_bench(file), {})


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"format": 9}', '{"format": 1}', "\x00"])
def test_files_that_hold_no_results_are_refused(tmp_path, text):
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(DataError, match="no results of a bench"):
        read_bench(path)
    with pytest.raises(DataError, match="cannot be read"):
        read_bench(tmp_path / "missing.json")


def test_tables_say_what_did_not_hold():
    good = Bench("default", "forget", 0.975, (outcome(0), outcome(1, target=0.3)))
    main, robust, about = bench_tables(good, {"negate": "W − λT"})
    left, forgotten = main.rows[0][1], main.rows[0][2]
    assert left == f"20.0 ± {10 * math.sqrt(2):.1f}"
    assert forgotten.startswith("96.7")
    assert main.rows[0][0] == "negate"
    assert "*" not in main.note
    assert robust.rows[0][2] == "20.0 ± 0.0"
    assert about.rows == [("negate", "W − λT")]
    bad = Bench("default", "forget", 0.975, (outcome(0), outcome(1, qualifies=False)))
    main = bench_tables(bad, {})[0]
    assert main.rows[0][0] == "negate *"
    assert "least harmful" in main.note
    assert "| negate * |" in markdown(main)


@pytest.mark.parametrize("command", ["bench", "demo"])
def test_the_help_names_every_variant(command):
    shown = CliRunner().invoke(app, [command, "--help-all"], env={"COLUMNS": "100"})
    assert shown.exit_code == 0
    assert set(VARIANTS) <= set(re.findall(r"[a-z]+(?:-[a-z]+)*", shown.output))


@pytest.mark.parametrize("command", ["bench", "demo"])
def test_what_cannot_train_a_world_says_what_to_install(command, monkeypatch, tmp_path):
    path = tmp_path / "found.json"
    path.write_text(json.dumps(Bench("small", "forget", 0.975, (outcome(0),)).document()))
    monkeypatch.setattr("weightsurgery.deferred.find_spec", lambda name: None)
    refused = CliRunner().invoke(app, [command])
    assert isinstance(refused.exception, WeightSurgeryError)
    assert "transformers and accelerate are not installed" in refused.exception.what
    assert "weightsurgery[demo]" in refused.exception.remedy
    # Tables of what was found elsewhere need no world.
    assert CliRunner().invoke(app, ["bench", "--load", str(path)]).exit_code == 0


def test_unknown_names_are_refused():
    with pytest.raises(EditError, match="'nothing'"):
        bench(methods=["nothing"])
    with pytest.raises(EditError, match="'other'"):
        bench(variant="other")
    with pytest.raises(EditError, match="'both'"):
        bench(task="both")


def test_a_bench_that_was_interrupted_runs_the_rows_that_are_missing(tmp_path, monkeypatch):
    ran, path = [], tmp_path / "results.json"
    monkeypatch.setattr(running, "get_world", lambda *_, **__: None)
    monkeypatch.setattr(
        running.Subject, "of", lambda world, recipe, seed: Subject(world, recipe, seed, None, None)
    )

    def row(subject, name, *_):
        ran.append((subject.seed, name))
        if len(ran) == 3:
            raise KeyboardInterrupt
        return replace(outcome(subject.seed), method=name, asked=subject.request.name)

    monkeypatch.setattr(running, "run_method", row)
    some = {"seeds": (0, 1), "methods": ("base", "negate"), "save_to": path}
    with pytest.raises(KeyboardInterrupt):
        bench(**some)
    assert [(each.seed, each.method) for each in read_bench(path).outcomes] == ran[:2]
    found = bench(**some)
    assert ran[3:] == [(1, "base"), (1, "negate")]
    assert read_bench(path) == found
    assert bench(**some) == found
    assert len(ran) == 5
    forget_requests = (Overlap(0.25), Overlap(0.5))
    more = bench((0,), methods=("negate",), save_to=path, forget_requests=forget_requests)
    assert [each.asked for each in more.outcomes] == [*[""] * 4, "25% shared", "50% shared"]
    assert len(ran) == 7
    assert bench((0,), methods=("negate",), save_to=path, forget_requests=forget_requests) == more
    assert len(ran) == 7
    found = more
    with pytest.raises(DataError, match="different benches"):
        bench(**some, threshold=0.5)
    with pytest.raises(OutputError, match="nowhere"):
        bench(**some | {"save_to": tmp_path / "nowhere" / "x.json"})
    assert read_bench(path) == found
