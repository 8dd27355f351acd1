"""How long a training goes on, and at what rate."""

from dataclasses import replace

import pytest

from weightsurgery.learning.cycles import Cycles
from weightsurgery.learning.looks import Look

FORGETTING = Cycles(length=6, most=3, budget=0.03, learning=False)
LEARNING = replace(FORGETTING, learning=True)
FIRST = Look(0, 1.0, 0.5, 0.1, 0.0, 0.0)


def look(step, neighbours=0.005, truth=0.1, language=0.001, known=0.0):
    return Look(step, known, truth, 0.1, language, neighbours)


def test_before_any_look_there_is_one_cycle():
    assert FORGETTING.ends([FIRST]) == [6]
    assert FORGETTING.around([FIRST], 5) == (0, 6)


def test_what_is_forgotten_ends_it_once_neighbours_have_settled():
    assert FORGETTING.ends([FIRST, look(6)]) == [6]
    assert FORGETTING.ends([FIRST, look(6, neighbours=0.007)]) == [6, 9]
    assert FORGETTING.ends([FIRST, look(6, neighbours=0.007), look(9)]) == [6, 9]


def test_what_is_left_takes_more_but_no_more_than_the_most():
    left = [FIRST, *(look(step, truth=0.3) for step in (6, 9, 12))]
    assert FORGETTING.ends(left[:2]) == [6, 9]
    assert FORGETTING.ends(left) == [6, 9, 12]
    assert replace(FORGETTING, most=1).ends(left) == [6]


def test_another_cycle_would_end_outside_of_the_budget():
    assert FORGETTING.ends([FIRST, look(6, truth=0.3, language=0.014)]) == [6, 9]
    assert FORGETTING.ends([FIRST, look(6, truth=0.3, language=0.016)]) == [6]


def test_to_learn_all_cycles_are_whole_and_neighbours_need_not_settle():
    assert LEARNING.ends([FIRST, look(6, known=1.0, truth=0.99, neighbours=0.02)]) == [6]
    assert LEARNING.ends([FIRST, look(6, known=0.2, truth=0.2)]) == [6, 12]


def test_a_step_is_in_the_cycle_that_begins_with_it():
    seen = [FIRST, look(6, truth=0.3), look(9)]
    around = [FORGETTING.around(seen, step) for step in (0, 5, 6, 8)]
    assert around == [(0, 6), (0, 6), (6, 9), (6, 9)]
    assert FORGETTING.around(seen[:1], 6) == (6, 12)  # its end is not looked at yet


@pytest.mark.parametrize(("truth", "share"), [(0.3, 1), (0.1, 0.5)])
def test_the_rate_rises_half_as_high_where_neighbours_are_all_there_is_to_settle(truth, share):
    cycles, seen = replace(FORGETTING, length=10), [FIRST, look(10, neighbours=0.007, truth=truth)]
    assert [cycles.rate(seen, step) for step in range(10)] == pytest.approx(
        [1 / 4, 2 / 4, 3 / 4, 1, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6]
    )
    again = [1 / 4, 2 / 4, 3 / 4, 1, 1]
    assert [cycles.rate(seen, step) for step in range(10, 15)] == [share * each for each in again]
