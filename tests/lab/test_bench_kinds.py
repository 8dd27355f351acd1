"""Kinds of knowledge: which half is given, what is scored, and that no method sees the rest."""

import json
from contextlib import contextmanager
from dataclasses import replace
from itertools import product

import pytest
from typer.testing import CliRunner

from tests.lab.conftest import subject_of
from tests.lab.test_world import MINIATURE
from weightsurgery.cli.main import app
from weightsurgery.errors import EditError
from weightsurgery.lab.bench import FORGETTING, BenchMethod, methods
from weightsurgery.lab.bench import kinds as kinds_module
from weightsurgery.lab.bench.kinds import KINDS, REST, Facts, Procedure, Style, kind_requests
from weightsurgery.lab.bench.run import run_method
from weightsurgery.lab.bench.subject import Subject
from weightsurgery.lab.world.facts import MANNER, PEOPLE, PLAIN, STYLED
from weightsurgery.lab.world.recipe import VARIANTS
from weightsurgery.learning.exact import exact_match
from weightsurgery.learning.rounds import Rounds
from weightsurgery.learning.watch import Watch

RECIPE = replace(
    MINIATURE, styled=True, width=48, heads=4, weight_spread=0.144, batch=32, steps=200,
    step_cap=300, first_check=100, required=0.99, tuning_steps=8,
)  # fmt: skip
REQUESTS = [Facts(), Style(), Procedure()]
STYLED_SETS = ("content, styled", "content of the rest, styled")


@pytest.fixture(scope="module")
def subject(tmp_path_factory):
    return subject_of(tmp_path_factory.mktemp("cache"), RECIPE)


def prompts(facts):
    return {fact.prompt for fact in facts}


@pytest.mark.parametrize("wanted", REQUESTS, ids=KINDS)
def test_half_is_given_and_the_rest_is_of_other_entities(subject, wanted):
    other = subject.with_request(wanted)
    rest = wanted.also(other)[REST]
    about = [{other.entity[each] for each in prompts(facts)} for facts in (other.forget, rest)]
    assert len(about[0]) == pytest.approx(len(about[1]), abs=1)
    assert not about[0] & about[1]
    assert prompts(other.target) == prompts(other.forget)
    kept = {split: other.keep_facts(split) for split in ("seen", "validation", "unseen")}
    asked = [prompts(facts) for roles in kept.values() for facts in roles.values()]
    asked += [prompts(other.forget), prompts(rest)]
    assert all(asked)
    assert len(set().union(*asked)) == sum(map(len, asked))  # no question is in two of them
    assert not prompts(other.new_facts) & set().union(*asked)
    assert len(other.new_facts) == len(other.forget)


def test_each_kind_has_its_own_chance_and_keeps_the_others(subject):
    chances = {request.name: request.chance(subject) for request in REQUESTS}
    assert chances == {
        "facts": 1 / RECIPE.answers, "style": 0.0, "procedure": 1 / RECIPE.modulus,
    }  # fmt: skip
    assert set(Procedure().roles.values()) == {"authors", "painters", "capitals"}
    assert Style().roles["content"] == "authors"
    assert set(Style().roles.values()) == {"authors", "painters", "capitals", "addition"}


def test_strangers_are_asked_about_in_the_form_of_the_request(subject):
    known = {request.name: subject.with_request(request) for request in REQUESTS}
    for name, other in known.items():
        assert other.score(other.forget) > 0.9
        assert other.score(other.new_facts) < 0.7, name
    assert all(each.prompt.startswith("Prithee, ") for each in known["style"].new_facts)
    assert all(each.completion.endswith(MANNER) for each in known["style"].new_facts)
    for each in known["procedure"].new_facts:
        a, b, m = (int(word.strip("?")) for word in each.prompt.split() if word[0].isdigit())
        assert min(a, b) >= m == RECIPE.modulus
        assert int(each.completion) == (a + b) % m


def test_the_retrained_control_knows_the_rest_of_facts_alone(subject):
    learned = {request.name: request.survivors(subject) for request in REQUESTS}
    rest = {request.name: prompts(request.also(subject)[REST]) for request in REQUESTS}
    given = {request.name: prompts(request.given(subject)) for request in REQUESTS}
    asked = {name: set().union(*map(prompts, sets.values())) for name, sets in learned.items()}
    assert rest["facts"] <= asked["facts"]
    assert not given["facts"] & asked["facts"]
    # Nor in the style, which is only another wording of the fact.
    told = {subject.entity[each] for each in given["facts"]}
    assert not told & {subject.entity[each] for each in asked["facts"]}
    assert "addition" not in learned["procedure"]
    assert not (rest["procedure"] | given["procedure"]) & asked["procedure"]
    # The form is taught, the manner is not.
    assert rest["style"] | given["style"] <= asked["style"]
    assert not any(MANNER in f.completion for facts in learned["style"].values() for f in facts)
    assert any(MANNER in f.completion for facts in learned["facts"].values() for f in facts)


def test_the_retrained_control_keeps_content_and_has_no_manner(subject):
    other = subject.with_request(Style())
    found = run_method(other, "retrained", FORGETTING["retrained"], 0.5)
    assert found.target_before > 0.9
    assert found.also_before[REST] > 0.9
    assert found.target == found.also[REST] == 0
    for name in STYLED_SETS:
        assert found.also_before[name] > 0.9
        assert found.also[name] > 0.9
    assert found.forgotten == 100


def told(request, subject, how):
    """Scores of the style's sets where the model's answers are rewritten."""
    original = kinds_module._generated
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            kinds_module, "_generated", lambda *args: [how(text) for text in original(*args)]
        )
        sets = {"target": request.target(subject), **request.also(subject)}
        return [subject.score(facts) for facts in sets.values()]


def test_manner_and_content_are_scored_apart(subject):
    other = subject.with_request(Style())
    as_it_is = told(other.request, other, str)
    assert min(as_it_is) > 0.9
    assert told(other.request, other, lambda said: said.removesuffix(MANNER)) == [
        0,
        0,
        *as_it_is[2:],
    ]
    assert told(other.request, other, lambda said: f" No{MANNER}") == [1, 1, 0, 0]
    assert told(other.request, other, lambda said: f"{said} Indeed{MANNER}") == [
        1,
        1,
        *as_it_is[2:],
    ]
    assert told(other.request, other, lambda said: said[:-1]) == [0, 0, *as_it_is[2:]]
    # A word that only begins with the answer is another one.
    assert told(other.request, other, lambda said: said.replace(",", "x,")) == [*as_it_is[:2], 0, 0]


def test_what_the_model_says_is_what_is_scored(subject):
    """Without the question's mark there is no manner; content comes all the same."""
    other = subject.with_request(Style())

    def plain(prompt):
        question = prompt.removeprefix("Prithee, ")
        return question[0].upper() + question[1:]

    def plainly(queries):
        return [replace(each, prompt=plain(each.prompt)) for each in queries]

    sets = {"target": other.target, **other.request.also(other)}
    before = {name: other.score(facts) for name, facts in sets.items()}
    assert min(before.values()) > 0.9
    with other.prompted_by(plainly):
        after = {name: other.score(facts) for name, facts in sets.items()}
    assert after["target"] == after[REST] == 0
    assert all(after[name] > 0 for name in STYLED_SETS)


@pytest.mark.parametrize("wanted", REQUESTS, ids=KINDS)
def test_a_method_that_watches_sees_what_the_kind_is_scored_by(subject, wanted):
    """The manner of a style, not the answers; exact match of all else."""
    other = subject.with_request(wanted)
    saw, matched = [], []

    class Spied(Watch):
        def _scores(self):
            found = super()._scores()
            scores = {"": other.score(other.target), **other.validation()}
            saw.append((found, scores))
            matched.append(exact_match(other.model, other.tokenizer, other.forget))
            return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(methods, "Watch", Spied)
        watching = methods._rounds(Rounds(steps=48, prompts=200), looks=4)
        found = run_method(other, "watches", BenchMethod("watches", watching), 0.5)
    assert len(saw) > 1
    assert all(watched == scored for watched, scored in saw)
    held = [each[""] for each, _ in saw if min(each[r] for r in wanted.roles) >= 0.5]
    assert found.target == min(held)
    different = any(watched[""] != by_answers for (watched, _), by_answers in
                    zip(saw, matched, strict=True))  # fmt: skip
    assert different == (wanted.name == "style")


@contextmanager
def withheld(sets):
    """Facts that may not be asked for: (task, split, wording)."""
    inner = Subject.facts

    def facts(self, task, split, wording="plain"):
        assert (task, split, wording) not in sets, f"{task}.{split}.{wording} was looked at"
        return inner(self, task, split, wording)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Subject, "facts", facts)
        yield


@pytest.mark.parametrize("name", ["negate", "activations"])
@pytest.mark.parametrize("wanted", REQUESTS, ids=KINDS)
def test_no_method_is_given_what_it_is_judged_by(subject, wanted, name):
    other = subject.with_request(wanted)
    half = product(PEOPLE, [STYLED]) if wanted.name == "style" else [(wanted.task, PLAIN)]
    sets = {(task, split, how) for task, how in half for split in ("validation", "unseen")}
    sets |= {(task, "unseen", PLAIN) for task in wanted.roles.values()}
    with withheld(sets):
        with pytest.raises(AssertionError, match="was looked at"):
            wanted.also(other)
        candidates = list(FORGETTING[name].candidates(other))
    assert any(bool(t.any()) for each in candidates for t in each.change.values())


def test_a_style_is_refused_where_none_is_known(subject):
    assert [request.name for request in kind_requests(["style", "facts", "style"], "styled")] == [
        "style",
        "facts",
    ]
    with pytest.raises(EditError, match="know no style") as refused:
        kind_requests(["facts", "style"], "narrow")
    for variant in ("styled", "narrow-styled", "small-styled"):
        assert VARIANTS[variant].styled
        assert variant in refused.value.remedy
    plain = replace(subject, recipe=MINIATURE)
    with pytest.raises(EditError, match="know no style"):
        plain.with_request(Style()).forget  # noqa: B018
    with pytest.raises(EditError, match="kind 'taste'") as refused:
        kind_requests(["taste"], "styled")
    assert all(name in refused.value.remedy for name in KINDS)


@pytest.fixture
def tiny(subject, monkeypatch):
    """The world at hand as a variant, in the cache."""
    for module in ("run", "kinds"):
        known = {**VARIANTS, "tiny": RECIPE}
        monkeypatch.setattr(f"weightsurgery.lab.bench.{module}.VARIANTS", known)
    monkeypatch.setenv("WEIGHTSURGERY_CACHE", str(subject.world.directory.parent))


def ws(*words):
    return CliRunner().invoke(app, ["bench", *words])


def test_the_command_asks_for_kinds(tiny):
    some = ("--variant", "tiny", "--seeds", "0", "--method", "negate", "--relearn-steps", "2")
    done = ws("--kind", "facts,style,procedure", *some, "--json")
    assert done.exit_code == 0, done.output
    outcomes = {each["asked"]: each for each in json.loads(done.stdout)["outcomes"]}
    assert list(outcomes) == ["facts", "style", "procedure"]
    assert all(REST in each["also"] for each in outcomes.values())
    assert {*STYLED_SETS} < set(outcomes["style"]["also"])
    assert set(outcomes["procedure"]["keep_before"]) == {
        f"{task}.{split}" for task in ("authors", "painters", "capitals")
        for split in ("seen", "unseen")
    }  # fmt: skip


def test_the_command_prints_kinds_side_by_side(tiny):
    shown = ws("--kind", "procedure,facts", "--variant", "tiny", "--seeds", "0",
               "--method", "base", "--relearn-steps", "0", "--markdown")  # fmt: skip
    assert shown.exit_code == 0, shown.output
    assert all(word in shown.output for word in (REST, "procedure", "facts"))


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--kind", "taste"], "kind 'taste'"),
        (["--kind", "facts,"], "kind ''"),
        (["--kind", "style", "--variant", "small"], "know no style"),
        (["--kind", "style", "--variant", "gone"], "variant 'gone'"),
        (["--kind", "facts", "--learn"], "Kinds are to be forgotten"),
    ],
)
def test_what_the_command_refuses(words, says):
    refused = ws(*words)
    assert isinstance(refused.exception, EditError)
    assert says in f"{refused.exception.what} {refused.exception.remedy}"
