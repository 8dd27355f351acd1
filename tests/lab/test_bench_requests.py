"""Several requests: in which order, on which base, by which rule, and what adds up."""

import json
from collections import Counter
from dataclasses import replace

import pytest
import torch

from tests.cli.typed import Command
from tests.lab.conftest import RECIPE
from tests.lab.test_bench import guarded, offering, outcome, unseen_keep
from weightsurgery.algebra.fusion import regression_mean
from weightsurgery.errors import EditError
from weightsurgery.lab.bench import FORGETTING, BenchMethod, bench, sequence
from weightsurgery.lab.bench import run as running
from weightsurgery.lab.bench.methods import Candidate
from weightsurgery.lab.bench.requests import KEEP, ForgetRequest, Overlap, PartialRequest, names_of
from weightsurgery.lab.bench.results import read_bench
from weightsurgery.lab.bench.run import run_method
from weightsurgery.lab.bench.sequence import run_requests, takes_part
from weightsurgery.lab.bench.subject import Subject
from weightsurgery.learning.attacks import relearn
from weightsurgery.learning.statistics import gather
from weightsurgery.learning.watch import Rule

COUNT = 3


@pytest.fixture
def untouched(subject):
    """The model is in the end what it was before, to the bit."""
    before = {name: value.clone() for name, value in subject.model.state_dict().items()}
    yield subject
    after = subject.model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def people(subject, facts):
    return {subject.entity[fact.prompt] for fact in facts}


def number_of(subject):
    """Which request a subject's facts to forget are; 0 for all of them."""
    count = subject.request.count
    if subject.forget == PartialRequest(count, 1, count).given(subject):
        return 0
    return 1 + [PartialRequest(count, n, n).given(subject) for n in range(1, count + 1)].index(
        subject.forget
    )


def noise(subject, seed):
    """A change of all matrices that depends on the seed alone."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(subject.before[name].shape, generator=generator) for name in subject.names
    }


class Scripted:
    """Known noise for each request; what was seen of the model and of the subject is kept.

    Attributes:
        seen: Request, and how far the model is from the base, at each call.
    """

    def __init__(self, subject, *scales):
        self.scales = scales
        self.seen = []
        self.base = {name: t.clone() for name, t in subject.before.items()}

    def change(self, subject, number, scale):
        return {name: scale * t for name, t in noise(subject, number).items()}

    def candidates(self, subject):
        number = number_of(subject)
        state = {name: t.detach() for name, t in subject.model.named_parameters()}
        self.seen.append((number, {name: state[name] - t for name, t in self.base.items()}))
        assert subject.target == subject.forget  # what earlier requests were about is not its own
        for scale in self.scales:
            yield Candidate({"scale": scale}, self.change(subject, number, scale))

    @property
    def method(self):
        return BenchMethod("noise by request", self.candidates)


def closest(change):
    """Size of the largest entry."""
    return max((float(t.abs().max()) for t in change.values()), default=0.0)


# --- who is in which request ----------------------------------------------------------------------


@pytest.mark.parametrize("count", [2, 3, 4, 8])
def test_each_person_is_in_one_request_and_all_are_as_large(subject, count):
    facts = ForgetRequest().given(subject)
    parts = [PartialRequest(count, n, n).given(subject) for n in range(1, count + 1)]
    assert Counter(f.prompt for part in parts for f in part) == Counter(f.prompt for f in facts)
    named = [people(subject, part) for part in parts]
    assert sum(map(len, named)) == RECIPE.people == len(set().union(*named))
    assert max(map(len, named)) - min(map(len, named)) <= 1
    assert PartialRequest(count, 1, count).given(subject) == facts  # in the very order, too
    assert [PartialRequest(count, n, n).given(subject) for n in range(1, count + 1)] == parts
    # Those who come first in the file are not those who come first.
    order = list(dict.fromkeys(subject.entity[fact.prompt] for fact in facts))
    assert [person for part in named for person in order if person in part] != order


def test_what_is_latest_and_what_is_waiting(subject):
    for n in (1, 2, 3):
        part = PartialRequest(COUNT, 1, n, "fused")
        assert part.name == f"fused, {n} of 3"
        also = part.also(subject)
        assert also["latest"] == PartialRequest(COUNT, n, n).given(subject)
        assert ("waiting" in also) == (n < COUNT)
        rest = also.get("waiting", [])
        told = [*part.given(subject), *rest]
        assert sorted(f.prompt for f in told) == sorted(
            f.prompt for f in ForgetRequest().given(subject)
        )


# --- one by one ----------------------------------------------------------------------------------


def test_one_by_one_changes_add_up_and_each_starts_where_the_last_one_ended(untouched):
    subject = untouched
    script = Scripted(subject, 0.02)
    found = run_requests(subject, "noise", script.method, 0.0, count=COUNT)
    assert [each.asked for each in found] == [*names_of(COUNT)]
    assert names_of(2) == (
        "one by one, 1 of 2", "one by one, 2 of 2", "fused, 1 of 2", "fused, 2 of 2",
        "in one go, 2 of 2",
    )  # fmt: skip
    # In turn; then those of the fusion, but for the first, which is done; then all of them.
    assert [number for number, _ in script.seen] == [1, 2, 3, 2, 3, 0]
    sums = [{name: torch.zeros_like(t) for name, t in script.base.items()}]
    for number in range(1, COUNT + 1):
        change = script.change(subject, number, 0.02)
        sums.append({name: t + change.get(name, 0) for name, t in sums[-1].items()})
    for place, wanted in enumerate([0, 1, 2, 0, 0, 0]):
        off = {name: t - sums[wanted][name] for name, t in script.seen[place][1].items()}
        assert closest(off) < 1e-6
        assert (closest(script.seen[place][1]) > 0.02) == (wanted > 0)
    # After each request: all so far, the latest alone, what is to come, and all that is kept.
    for number in range(1, COUNT + 1):
        row = found[number - 1]
        part = PartialRequest(COUNT, 1, number)
        with subject.edited({name: sums[number][name] for name in subject.names}):
            assert row.target == subject.score(part.given(subject))
            also = {name: subject.score(facts) for name, facts in part.also(subject).items()}
            keep = {
                role: subject.score(facts) for role, facts in subject.keep_facts("unseen").items()
            }
        assert row.also == also
        assert {role: row.keep[f"{role}.unseen"] for role in keep} == keep
        assert row.target_before == subject.score(part.given(subject)) == 1.0
        assert set(row.also_before) == set(row.also)
        assert row.keep_before == found[0].keep_before
        assert row.chance == 1 / RECIPE.answers
        assert row.cpu_seconds > 0
    assert found[2].target < found[2].target_before


def test_attacks_follow_the_last_request_alone(untouched):
    script = Scripted(untouched, 0.02)
    found = run_requests(untouched, "noise", script.method, 0.0, relearn_steps=2, count=2)
    for row in found:
        attacked = row.asked.endswith("2 of 2")
        assert bool(row.relearned) == attacked
        assert bool(row.rounded) == bool(row.rounded_int8) == attacked


# --- fused ---------------------------------------------------------------------------------------


def test_what_is_fused_is_the_regression_mean_of_what_each_does_to_the_base(untouched):
    subject = untouched
    script = Scripted(subject, 0.05)
    found = run_requests(subject, "noise", script.method, 0.0, count=COUNT)
    parts = [PartialRequest(COUNT, n, n).given(subject) for n in range(1, COUNT + 1)]
    changes = [script.change(subject, n, 0.05) for n in range(1, COUNT + 1)]
    grams = [gather(subject.model, subject.tokenizer, part, subject.names) for part in parts]
    for number in range(1, COUNT + 1):
        fused = {
            name: regression_mean(
                [each[name] for each in changes[:number]], [each[name] for each in grams[:number]]
            )
            for name in subject.names
        }
        row = found[COUNT + number - 1]
        with subject.edited(fused):
            assert row.target == subject.score(PartialRequest(COUNT, 1, number).given(subject))
            assert row.also["latest"] == subject.score(parts[number - 1])
            kept = {
                role: subject.score(facts) for role, facts in subject.keep_facts("unseen").items()
            }
        assert {role: row.keep[f"{role}.unseen"] for role in kept} == kept
    # It is neither the sum nor the plain mean, by what it does.
    assert found[COUNT] == replace(found[0], asked="fused, 1 of 3")
    assert found[2 * COUNT - 1].keep != found[COUNT - 1].keep


# --- the rule ------------------------------------------------------------------------------------


NORM = "model.norm.weight"


@pytest.fixture
def rule(monkeypatch, subject):
    """All scores by how far the last norm is from the base's: known to the last digit.

    Set ``harm`` to another function of that distance, by entry.
    """
    base = subject.before[NORM]

    class Rule:
        harm = staticmethod(lambda off: float(off.abs().sum()))

    def score(self, examples):
        return 1.0 - Rule.harm(self.model.get_parameter(NORM).detach() - base)

    def scored(subject, name, choice, *rest, **options):
        Rule.states.append({name: t.clone() for name, t in choice.candidate.change.items()})
        return running_scored(subject, name, choice, *rest, **options)

    running_scored = sequence.scored
    monkeypatch.setattr(Subject, "score", score)
    monkeypatch.setattr(sequence, "scored", scored)
    Rule.states = []
    return Rule


def harming(*amounts):
    """Each request's only candidate harms by so much; all of them together do nothing."""

    def candidates(subject):
        number = number_of(subject)
        harm = torch.zeros_like(subject.before[NORM])
        if number:
            harm[number] = amounts[number - 1]
        yield Candidate({"harm": amounts[number - 1] if number else 0.0}, {NORM: harm})

    return BenchMethod("harms", candidates)


def entries(change):
    """What the first, second and third request added to the norm."""
    return [round(float(t), 4) for t in change[NORM][1:4]] if change else [0.0, 0.0, 0.0]


def test_harm_adds_up_and_is_held_against_the_first_base(untouched, rule):
    found = run_requests(untouched, "harms", harming(0.02, 0.02, 0.02), 0.95, count=COUNT)
    alone = run_requests(untouched, "harms", harming(0.06, 0.02, 0.02), 0.95, count=COUNT)
    # The third leaves 0.94 of the base, though more than 0.95 of what it found.
    assert [each.qualifies for each in found[:3]] == [True, True, False]
    assert 0.94 / 0.96 > 0.95
    assert [each.tried[0].keep["twin"] for each in found[:3]] == pytest.approx([0.98, 0.96, 0.94])
    assert all(each.validation_before == dict.fromkeys(KEEP, 1.0) for each in found)
    assert [each.qualifies for each in alone[:3]] == [False, True, True]


def test_what_no_candidate_can_meet_is_refused_and_the_rest_go_on(untouched, rule):
    found = run_requests(untouched, "harms", harming(0.02, 0.5, 0.01), 0.95, 2, COUNT)
    assert [each.qualifies for each in found] == [True, False, True, True, False, True, True]
    assert [each.setting for each in found[:3]] == [
        {"harm": 0.02}, {"refused": True}, {"harm": 0.01},
    ]  # fmt: skip
    assert found[1].tried[0].setting == {"harm": 0.5}
    # After each request in turn; then after the second and third fused: norms are averaged.
    assert [entries(each) for each in rule.states] == [
        [0.02, 0.0, 0.0], [0.02, 0.0, 0.0], [0.02, 0.0, 0.01],
        [0.02, 0.0, 0.0], [0.01, 0.0, 0.005],
    ]  # fmt: skip
    assert found[1].keep == found[0].keep != found[0].keep_before


def test_where_all_are_refused_the_base_is_left(untouched, rule):
    found = run_requests(untouched, "harms", harming(0.5, 0.5, 0.5), 0.95, 2, COUNT)
    assert not any(each.qualifies for each in found[:-1])
    assert not any(rule.states)
    for each in found[:-1]:
        assert each.target == each.target_before
        assert each.keep == each.keep_before
    # Attacked all the same, and the model is as it was: see the fixture.
    assert found[2].relearned


def test_what_is_fused_must_hold_as_well(untouched, rule):
    rule.harm = staticmethod(lambda off: 0.02 * int((off != 0).sum()) ** 2)
    found = run_requests(untouched, "harms", harming(0.1, 0.1, 0.1), 0.95, count=COUNT)
    assert [each.qualifies for each in found] == [True, False, False, True, False, False, True]
    # Yet it is what there is to show: nothing else is offered offline.
    assert [entries(each) for each in rule.states[3:]] == [
        [0.05, 0.05, 0.0], [0.0333, 0.0333, 0.0333],
    ]  # fmt: skip


def test_a_method_without_any_candidate_is_refused(untouched):
    """As when all its training ended in NaN."""
    found = run_requests(
        untouched, "none", BenchMethod("none", lambda subject: iter(())), 0.9, count=2
    )
    assert not any(each.qualifies for each in found)
    assert all(each.target == each.target_before for each in found)
    assert found[0].setting == {"refused": True}
    assert found[-1].candidates == 0


def test_watches_hold_what_they_see_against_the_first_base(untouched):
    subject = untouched
    before, after, given = subject.validation(), [], []

    def candidates(subject):
        given.append(subject.rule)
        change = {name: 0.02 * t for name, t in noise(subject, 1).items()}
        with subject.edited(change):
            after.append(subject.validation())
        yield Candidate({}, change)

    run_requests(subject, "noise", BenchMethod("noise", candidates), 0.25, count=2)
    assert any(each != before for each in after)
    assert given == [Rule(0.25, before)] * 4
    assert subject.rule == Rule()


# --- what a method is given ----------------------------------------------------------------------


def test_candidates_of_a_request_see_no_other_request_and_nothing_unseen(untouched):
    told = []

    def candidates(subject):
        told.append(people(subject, subject.forget))
        with guarded(subject, unseen_keep):
            with pytest.raises(AssertionError, match="was looked at"):
                subject.facts("painters", "unseen")
            yield from FORGETTING["negate"].candidates(subject)

    found = run_requests(untouched, "negate", BenchMethod("", candidates), 0.5, count=2)
    assert told[0].isdisjoint(told[1])
    assert told == [told[0], told[1], told[1], told[0] | told[1]]
    for each in found[:-1]:
        assert len(each.tried) == 8
        assert all(set(t.keep) == set(KEEP) for t in each.tried)


def test_all_in_one_go_is_the_plain_row(untouched):
    plain = run_method(untouched, "noise", offering(0.05, 0.1), 0.0, 2)
    *_, whole = run_requests(untouched, "noise", offering(0.05, 0.1), 0.0, 2, 2)
    costs = {"seconds": 0, "cpu_seconds": 0, "memory": 0}
    named = {"asked": "", "also": {}, "also_before": {}}
    assert whole.asked == "in one go, 2 of 2"
    assert replace(whole, **costs, **named) == replace(plain, **costs)
    assert whole.target < whole.target_before


def test_the_attack_comes_after_all_scores(untouched):
    """It trains; what is scored besides is of the model before it."""
    part = untouched.with_request(PartialRequest(2, 1, 1, "one by one"))
    found = run_method(part, "noise", offering(0.1), 0.0, 30)
    waiting = part.request.also(part)["waiting"]
    with untouched.edited(next(iter(offering(0.1).candidates(part))).change):
        edited = untouched.score(waiting)
        half = {part.entity[fact.prompt] for fact in part.forget[:4]}
        trained = [fact for fact in part.forget if part.entity[fact.prompt] in half]
        relearn(untouched.model, untouched.tokenizer, trained, 30)
        assert untouched.score(waiting) != edited
    assert found.also["waiting"] == edited < found.also_before["waiting"]
    assert found.relearned


def test_a_run_that_is_interrupted_leaves_the_model_as_it_was(untouched):
    script = Scripted(untouched, 0.02)

    def candidates(subject):
        if number_of(subject) == 2:
            moved = subject.model.get_parameter(subject.names[0])
            assert not torch.equal(moved, script.base[subject.names[0]])
            raise KeyboardInterrupt
        yield from script.candidates(subject)

    with pytest.raises(KeyboardInterrupt):
        run_requests(untouched, "noise", BenchMethod("", candidates), 0.0, count=2)


def test_rows_without_changed_weights_take_no_part(untouched):
    left_out = {"icul", "retrained"}
    assert {name for name in FORGETTING if not takes_part(name)} == left_out
    for name in left_out:
        with pytest.raises(EditError, match=f"^{name} with several"):
            run_requests(untouched, name, FORGETTING[name], 0.5, count=2)

    def candidates(subject):
        yield Candidate({}, {}, prompts=list)

    with pytest.raises(EditError, match="changes prompts"):
        run_requests(untouched, "asks", BenchMethod("", candidates), 0.5, count=2)
    script = Scripted(untouched, *[0.01] * 9)
    with pytest.raises(EditError, match="looks at validation data"):
        run_requests(untouched, "noise", script.method, 0.5, count=2)


# --- a bench of them -----------------------------------------------------------------------------


@pytest.fixture
def miniature(monkeypatch, subject):
    """All worlds are the one at hand, whatever the seed; it is called small."""
    monkeypatch.setattr(Subject, "entity", subject.entity)
    monkeypatch.setattr(running, "VARIANTS", {"small": RECIPE})
    monkeypatch.setattr(running, "get_world", lambda *_, **__: subject.world)


def test_a_bench_that_was_interrupted_runs_the_pairs_that_are_missing(
    miniature, monkeypatch, tmp_path
):
    ran, path = [], tmp_path / "results.json"

    def counted(subject, name, method, threshold, steps, count):
        ran.append((subject.seed, name))
        if len(ran) == 2:
            raise KeyboardInterrupt
        found = replace(outcome(subject.seed), method=name)
        return [replace(found, asked=asked) for asked in names_of(count)]

    monkeypatch.setattr(running, "run_requests", counted)
    rows = {"base": FORGETTING["base"], "noise": offering(0.05)}
    monkeypatch.setattr(running, "FORGETTING", rows)
    some = {
        "seeds": (0, 1), "methods": ("base", "noise"), "variant": "small", "requests": 2,
        "threshold": 0.0, "relearn_steps": 0, "save_to": path,
    }  # fmt: skip
    with pytest.raises(KeyboardInterrupt):
        bench(**some)
    assert [each.asked for each in read_bench(path).outcomes] == [*names_of(2)]
    found = bench(**some)
    pairs = [(0, "base"), (0, "noise"), (1, "base"), (1, "noise")]
    assert ran == [(0, "base"), *pairs[1:2], *pairs[1:]]
    assert Counter((e.seed, e.method, e.asked) for e in found.outcomes) == Counter(
        (*pair, asked) for pair in pairs for asked in names_of(2)
    )
    assert read_bench(path) == found
    assert bench(**some) == found
    assert len(ran) == 5
    # A pair that lacks something is run as a whole, and takes the place of what there was.
    document = json.loads(path.read_text())
    gone = document["outcomes"].pop(7)
    path.write_text(json.dumps(document))
    again = bench(**some)
    assert ran[5:] == [(gone["seed"], gone["method"])] == [(0, "noise")]
    assert len(again.outcomes) == len(found.outcomes) == 20
    # Another number of requests, and none at all, are other rows.
    more = bench(**some | {"requests": 3, "seeds": (0,)})
    assert len(more.outcomes) == 20 + 2 * 7
    plain = bench(**some | {"requests": None, "seeds": (0,), "methods": ("base",)})
    assert len(plain.outcomes) == 35
    rows = [(method, asked) for method, asked, _ in plain.by_row()]
    assert len(rows) == len(set(rows)) == 2 * (5 + 7) + 1


def test_rows_that_take_no_part_are_left_out_where_all_run(miniature, monkeypatch):
    ran = []
    monkeypatch.setattr(running, "run_requests", lambda s, name, *_: ran.append(name) or [])
    bench((0,), "small", requests=2)
    assert ran == [name for name in FORGETTING if takes_part(name)]
    assert len(ran) == len(FORGETTING) - 2


@pytest.mark.parametrize("count", [-1, 0, 1, RECIPE.people + 1])
def test_what_cannot_be_split_is_refused(miniature, count):
    with pytest.raises(EditError, match=f"{count} requests about {RECIPE.people} people"):
        bench((0,), "small", ("base",), requests=count)


def test_requests_go_with_no_other_study(miniature):
    with pytest.raises(EditError, match="task 'learn'"):
        bench((0,), "small", task="learn", requests=2)
    with pytest.raises(EditError, match="together with: 25% shared"):
        bench((0,), "small", requests=2, forget_requests=(Overlap(0.25),))
    with pytest.raises(EditError, match="requests with icul, retrained"):
        bench((0,), "small", ("base", "icul", "retrained"), requests=2)


def test_the_command_prints_and_keeps_them(miniature, monkeypatch, capsys, tmp_path):
    ws, path = Command(capsys, monkeypatch), tmp_path / "f.json"
    some = ("bench", "--variant", "small", "--seeds", "0", "--method", "base")
    out, _ = ws.done(*some, "--requests", "2", "--relearn-steps", "2", "--save", path)
    assert [each.asked for each in read_bench(path).outcomes] == [*names_of(2)]
    for text in ("one by one", "fused", "in one go", "base"):
        assert text in out
    before = path.read_bytes()
    for bad in (["0"], ["1"], ["99"], ["2", "--learn"]):
        what, _ = ws.refused(*some[:5], "--requests", *bad, "--save", path)
        assert f"{bad[0]} requests" in what
    assert path.read_bytes() == before
