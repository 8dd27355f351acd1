"""Every architecture: what ``ws`` does to its files is what arithmetic does to its loaded model."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.architectures.configs import ARCHITECTURES, Architecture
from tests.architectures.table import FILE, page
from tests.architectures.works import Trial

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


@pytest.fixture(scope="module")
def trials(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Trial]]:
    """Those made so far: each claim is worked out once, for its test and for the table."""
    made: dict[str, Trial] = {}
    yield made
    made.clear()


@pytest.fixture(params=ARCHITECTURES, ids=lambda each: each.title.replace(" ", "-"))
def trial(
    request: pytest.FixtureRequest,
    trials: dict[str, Trial],
    tmp_path_factory: pytest.TempPathFactory,
) -> Trial:
    of: Architecture = request.param
    if of.title not in trials:
        trials[of.title] = Trial(of, tmp_path_factory.mktemp(of.kind))
    return trials[of.title]


def test_inspect_and_diff(trial: Trial) -> None:
    assert trial.inspected > 10
    assert trial.compared > 0


def test_negate(trial: Trial) -> None:
    assert trial.negated


def test_negate_what_is_named_as_in_memory(trial: Trial) -> None:
    assert trial.restated in ("as on disk", "renamed", "regrouped", "renamed: refused")


def test_project(trial: Trial) -> None:
    assert trial.projected >= 8


def test_export(trial: Trial) -> None:
    found = trial.exported
    assert found.layers >= 4 if found.targets else found.refused


def test_the_table_is_current(
    trials: dict[str, Trial], tmp_path_factory: pytest.TempPathFactory
) -> None:
    for of in ARCHITECTURES:
        if of.title not in trials:
            trials[of.title] = Trial(of, tmp_path_factory.mktemp(of.kind))
    made = page([trials[of.title] for of in ARCHITECTURES])
    assert FILE.read_text() == made, "python -m tests.architectures.table writes it"
