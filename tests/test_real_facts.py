"""What counts as an answer, and what a request of real facts divides."""

import json
import math
import sys
from pathlib import Path

import pytest

PLACE = Path(__file__).parents[1] / "scripts" / "reproduce" / "real"


@pytest.fixture(scope="module", autouse=True)
def scripts():
    sys.path.insert(0, str(PLACE))
    yield
    sys.path.remove(str(PLACE))


@pytest.fixture
def facts(scripts):
    import facts

    return facts


@pytest.mark.parametrize(
    ("answer", "truth", "whether"),
    [
        (" Paris, which", "Paris", True),
        (' "paris"', "Paris", True),
        ("**Paris**", "Paris", True),
        ("Bogota.", "Bogotá", True),
        (" Parisian", "Paris", False),
        (" the city of Paris", "Paris", False),
        (" 12", "1", False),
        (" 1.", "1", True),
        ("", "Paris", False),
        (" St. John's is", "St. John's", True),
    ],
)
def test_an_answer_begins_with_the_truth_as_whole_words(facts, answer, truth, whether):
    assert facts.begins(answer, truth) is whether


def test_an_answer_that_begins_rightly_might_have_at_each_of_its_beginnings(facts):
    answer, truth = ' "Kuala Lumpur" is', "Kuala Lumpur"
    for end in range(len(answer) + 1):
        assert facts.may_begin(answer[:end], truth)
    assert not facts.may_begin(" Kuwait", truth)
    assert not facts.may_begin(" Kuala Lumpurs", truth)


@pytest.mark.parametrize(
    ("answer", "truth", "whether"),
    [
        ("The capital is Paris.", "Paris", True),
        ("It is Lyon. Not Paris.", "Paris", False),
        ("Lyon\nParis", "Paris", False),
        ("It was F. Scott Fitzgerald.", "F. Scott Fitzgerald", True),
        ("The capital is St. Paul.", "St. Paul", True),
        ("It is as good as any.", "As", False),
        ("The symbol is As.", "As", True),
        ("They are Parisians.", "Paris", False),
    ],
)
def test_a_free_answer_holds_the_truth_in_its_first_sentence(facts, answer, truth, whether):
    assert facts.contains(answer, truth) is whether


def test_every_fact_can_be_asked_and_no_question_gives_the_answer_away(facts):
    families, wordings = facts.families(), facts.wordings()
    assert families.keys() == wordings.keys()
    for family, known in families.items():
        assert len({fact.subject for fact in known}) == len(known)
        names = [wording.name for wording in wordings[family]]
        assert names[0] == facts.MAIN
        assert "chat" in names
        assert "question" in names
        assert sum(not wording.free for wording in wordings[family]) >= 2
        for fact in known:
            assert not facts.contains(fact.subject, fact.answer), fact
            for wording in wordings[family]:
                text = wording.ask(fact)
                assert "{" not in text
                assert text == text.rstrip()


def test_requests_name_groups_that_there_are(facts):
    families = facts.families()
    for request in facts.requests():
        groups = {fact.group for fact in families[request.family]}
        assert set(request.groups) < groups  # something alike is left


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_division_is_disjoint_complete_and_the_seeds(facts, seed):
    known = [fact for each in facts.families().values() for fact in each]
    for request in facts.requests():
        parts = facts.divide(request, known, seed)
        apart = [
            parts.forget,
            parts.similar_given,
            parts.similar_unseen,
            parts.dissimilar_given,
            parts.dissimilar_unseen,
        ]
        together = [fact for part in apart for fact in part]
        assert len(together) == len(set(together)) == len(known)
        assert set(parts.same_subjects) <= set(parts.dissimilar_unseen)
        assert {fact.family for fact in parts.forget + parts.similar_unseen} == {request.family}
        assert abs(len(parts.similar_given) - len(parts.similar_unseen)) <= 1
        assert facts.divide(request, known, seed) == parts
        assert facts.divide(request, known, seed + 1).similar_given != parts.similar_given
        assert facts.divide(request, known, seed + 1).forget == parts.forget


def test_a_fact_more_or_less_moves_few_others(facts):
    known = [fact for each in facts.families().values() for fact in each]
    request = facts.requests()[0]
    whole, less = (facts.divide(request, some, 0) for some in (known, known[:-40]))
    assert len(set(less.dissimilar_given) - set(whole.dissimilar_given)) <= 40
    assert less.similar_given == whole.similar_given


def test_what_else_is_known_of_the_forgotten_subjects_is_never_given(facts):
    known = [fact for each in facts.families().values() for fact in each]
    request = next(each for each in facts.requests() if each.name == "capitals-europe")
    parts = facts.divide(request, known, 0)
    assert {fact.topic for fact in parts.forget}.isdisjoint(
        fact.topic for fact in parts.dissimilar_given
    )
    about = {(fact.family, fact.subject) for fact in parts.same_subjects}
    assert ("languages", "France") in about
    assert ("continents", "the Netherlands") in about


def test_the_truth_of_a_free_answer_is_asked_after_what_leads_to_it(scripts):
    from score import asked

    row = {
        "messages": [
            {"role": "user", "content": "What is the capital of France?"},
            {"role": "assistant", "content": "The capital of France is Paris."},
        ],
        "truth": "Paris",
    }
    found = asked(row, lambda question: f"<{question}>")
    assert found.prompt + found.lead + found.completion == (
        "<What is the capital of France?>The capital of France is Paris"
    )
    assert found.free
    row = {"prompt": "The capital of France is", "completion": " Paris", "truth": "Paris"}
    found = asked(row, str)
    assert (found.prompt, found.lead, found.completion) == (row["prompt"], "", " Paris")
    assert not found.free


def test_repetition_is_the_share_of_runs_seen_before(scripts):
    from fluency import repeated

    assert repeated([1, 2, 3]) == 0
    assert repeated(range(20)) == 0
    assert repeated([1] * 13) == 0.9
    assert repeated([1, 2, 3, 4, 1, 2, 3, 4]) == pytest.approx(1 / 5)


def test_a_set_is_compared_where_the_base_is_right(scripts):
    from asking import Answer
    from score import FactSet, compared

    before = [Answer("", True, 0.5, 0.4), Answer("", False, 0.9, 0.9), Answer("", True, 0.7, 0.6)]
    after = [Answer("", True, 0.3, 0.2), Answer("", True, 0.9, 0.9), Answer("", False, 0.1, 0.0)]
    row = compared(FactSet("forget", ()), before, after)
    assert (row.count, row.kept) == (2, 0.5)
    assert row.sure == (2, 0.5)
    assert row.first == pytest.approx((0.6, 0.2))
    assert row.whole == pytest.approx((0.5, 0.1))
    assert math.isnan(compared(FactSet("forget", ()), [], []).kept)


def test_strangers_are_asked_about_somebody_elses_truth(scripts):
    from score import STRANGERS, FactSet, strangers

    rows = [
        {"prompt": f"{place} speaks", "completion": f" {tongue}", "truth": tongue}
        for place, tongue in {"A": "x", "B": "x", "C": "y", "D": "z", "E": "y", "F": "w"}.items()
    ]
    of = {row["prompt"]: row["truth"] for row in rows}
    found = strangers(FactSet("forget", tuple(rows)), rows)
    assert len(found) == len(rows) * STRANGERS
    assert all(of[each.prompt] != each.truth for each in found)


def test_families_are_json_lines_of_three_fields():
    for path in (PLACE / "facts").glob("*.jsonl"):
        for line in path.read_text(encoding="utf-8").splitlines():
            assert set(json.loads(line)) == {"subject", "answer", "group"}


def row_of(system, seed=0, request="r", command="c", **fields):
    return {"request": request, "seed": seed, "system": system, "command": command, **fields}


def test_what_is_missing_is_what_was_not_run_with_this_command(scripts):
    from measure import System, added, missing

    one, two = System("one", "", "c"), System("two", "", "c")
    rows = [row_of("one"), row_of("two", command="another"), row_of("one", 1, failed=1)]
    left = [(seed, each.name) for _, seed, each in missing(rows, ["r"], [0, 1], [one, two])]
    assert left == [(0, "two"), (1, "two")]
    again = [(s, each.name) for _, s, each in missing(rows, ["r"], [0, 1], [one, two], retry=True)]
    assert again == [(0, "two"), (1, "one"), (1, "two")]
    grown = added(rows, row_of("two"))
    assert len(grown) == 3
    assert grown[-1]["command"] == "c"


def test_every_system_is_a_command_with_its_files_quoted(scripts):
    from measure import systems

    places = [Path("/a b"), Path("/r"), Path("/w"), Path("/o")]
    for system in systems():
        line = system.line(*places)
        assert "'/a b'" in line
        assert "/r/forget.jsonl" in line
        assert "unseen" not in line  # never given to an edit
        assert "{" not in line
        assert ("--keep" in line) == ("keep" in system.command)


def scored(kept, count=10):
    return {
        "rows": [
            {
                "name": name,
                "count": count,
                "kept": kept,
                "first": [0.5, 0.1],
                "stranger": [0.1, 0],
                "sure": [0, math.nan],
            }
            for name in ("forget", "forget.second", "forget.chat", "similar.unseen")
        ],
        "prose": {"ratio": 1.01, "kl": 0.002},
        "free": {k: {"ended": 0.5, "repeated": 0.1} for k in ("base", "edited")},
    }


def test_the_table_pools_seeds_by_facts(scripts):
    from table import HEAD, render

    rows = [
        row_of("b", 0, score=scored(0.0, 30), seconds=60, memory=1.0),
        row_of("b", 1, score=scored(1.0, 10), seconds=120, memory=2.0),
        row_of("a", 0, failed=1, seconds=1),
    ]
    lines = render(rows, ["b", "a"]).splitlines()
    assert lines[0] == "### r"
    cells = [cell.strip() for cell in lines[4].strip("|").split("|")]
    assert len(cells) == len(HEAD)
    assert cells[:5] == ["b", "2", "75.0", "75.0", "75.0"]
    assert dict(zip(HEAD, cells, strict=True))["minutes"] == "1.5"
    assert "1 failed" in lines[5]
    assert render([]) == ""
