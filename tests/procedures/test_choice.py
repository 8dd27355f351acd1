"""The frontier and the choice against their definitions."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weightsurgery.procedures.choice import Cell, choose, frontier, nearest, scored

SHARES = [0.0, 0.25, 0.5, 0.75, 0.9, 1.0]


def cell(forget: float | None, kept: tuple[float, ...] = (1.0,), scale: float = 1.0) -> Cell:
    if forget is None:
        return Cell(scale, 1, "right", None, failed="infinite weights")
    return Cell(scale, 1, "right", None, **scored((1.0, *[1.0] * len(kept)), (forget, *kept)))


cells = st.lists(
    st.builds(
        cell,
        st.one_of(st.none(), st.sampled_from(SHARES)),
        st.tuples(st.sampled_from([*SHARES, 1.1]), st.sampled_from(SHARES)),
        st.sampled_from([0.5, 1.0, 2.0]),
    ),
    max_size=12,
)


def beats(one: Cell, other: Cell) -> bool:
    a, b = (one.forget, one.worst_drift), (other.forget, other.worst_drift)
    return a[0] <= b[0] and a[1] <= b[1] and a != b


@given(cells)
def test_the_frontier_is_what_nothing_dominates(tried):
    scores = [(n, each) for n, each in enumerate(tried) if not each.failed]
    wanted = {n for n, each in scores if not any(beats(other, each) for _, other in scores)}
    assert set(frontier(tried)) == wanted
    drifts = [tried[n].worst_drift for n in frontier(tried)]
    assert drifts == sorted(drifts)


@given(cells, st.sampled_from([0.5, 0.75, 1.0]))
def test_the_choice_forgets_most_of_what_keeps_enough(tried, threshold):
    fit = [
        (each.forget, each.worst_drift, each.scale, n)
        for n, each in enumerate(tried)
        if not each.failed and each.forget < 1.0 and min(each.keep) >= threshold
    ]
    assert choose(tried, 1.0, threshold) == (min(fit)[3] if fit else None)


@given(cells)
def test_the_nearest_keeps_most_of_what_forgets(tried):
    fit = [
        (-min(each.keep), each.forget, each.scale, n)
        for n, each in enumerate(tried)
        if not each.failed and each.forget < 1.0
    ]
    assert nearest(tried, 1.0) == (min(fit)[3] if fit else None)


def test_ties_go_to_less_drift_and_then_to_the_smaller_scale():
    tried = [cell(0.1, (0.98,), 1.0), cell(0.1, (0.99,), 4.0), cell(0.1, (0.99,), 2.0)]
    assert choose(tried, 1.0, 0.975) == 2
    assert choose(tried[:2], 1.0, 0.975) == 1


def test_scores_become_forgetting_and_drift():
    found = scored((0.8, 0.5, 1.0), (0.2, 0.6, 0.9))
    assert found["forgetting"] == pytest.approx(75)
    assert found["worst_drift"] == pytest.approx(0.2)  # of the set that rose
    assert found["retained"] == pytest.approx(0.9)
    assert (found["forget"], found["keep"]) == (0.2, (0.6, 0.9))


def test_equal_shares_are_enough_whatever_float64_makes_of_them():
    kept = 0.975 * 0.8  # 39 of 40 of what was 80 %
    tried = [Cell(1.0, 1, "right", None, **scored((1.0, 0.8), (0.0, kept)))]
    assert kept / 0.8 != 0.975 or choose(tried, 1.0, 0.975) == 0
    assert choose(tried, 1.0, 0.975) == 0
    assert choose(tried, 1.0, 0.976) is None
