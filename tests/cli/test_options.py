"""Options are fields: what the command line takes is what the library takes, under its names."""

from dataclasses import dataclass, fields
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from weightsurgery.cli.data_options import FromData
from weightsurgery.cli.spread import given, option_of, options
from weightsurgery.cli.training_options import Optimise
from weightsurgery.errors import EditError
from weightsurgery.learning.forget import ByNeighbours
from weightsurgery.learning.forgetting import Forgetting
from weightsurgery.learning.rounds import Rounds
from weightsurgery.learning.settings import Training
from weightsurgery.unlearning.by_system import MethodSettings
from weightsurgery.unlearning.methods import system


def names(kind):
    return {each.name for each in fields(kind)}


def test_every_option_of_training_is_a_field_of_it():
    assert len(fields(Optimise)) == 11
    assert names(Optimise) < names(Training)
    # Nothing that was not given: the method's own defaults count.
    assert Optimise().given() == {}
    given = {"learning_rate": 0.5, "batch_size": 3, "precision": "bfloat16", "warmup": 0}
    assert Optimise(**given).given() == given
    trained = MethodSettings("npo", training=Optimise(**given).given()).trained(system("npo"))
    assert (trained.learning_rate, trained.epochs) == (0.5, system("npo").published.epochs)
    with pytest.raises(EditError, match="both --steps and --epochs"):
        Optimise(steps=1, epochs=1.0).given()


def test_options_are_called_as_they_were():
    called = {each.name: option_of(Optimise, each.name) for each in fields(Optimise)}
    assert called["learning_rate"] == "--lr"
    assert (called["batch_size"], called["accumulation"]) == ("--batch", "--accumulate")
    assert called["weight_decay"] == "--weight-decay"
    assert option_of(FromData, "validation_target") == "--validation-forget"
    assert option_of(FromData, "round_scale") == "--round-scale"


def test_options_from_data_reach_the_settings_that_have_them():
    found = FromData(steps=3, learning_rate=0.5, batch_size=7, draws=2, neighbours=4, keep_weight=2)
    search = found.search(False, "neighbours", None, 5, None, None)
    training = search.neighbours.training
    assert (training.steps, training.learning_rate, training.batch_size) == (3, 0.5, 7)
    assert (training.keep_weight, training.seed, search.neighbours.draws) == (2, 5, 2)
    assert training == Forgetting(**{n: getattr(training, n) for n in names(Forgetting)})
    rounds = FromData(rounds=2, steps=3, round_scale=8.0, learning_rate=0.5, prompts=0)
    found = rounds.search(False, "negate", 0.01, 5, None, None).rounds
    assert found == Rounds(
        "negate", rounds=2, steps=3, round_scale=8.0, learning_rate=0.5, prompts=0, epsilon=0.01,
        seed=5,
    )  # fmt: skip
    # Where nothing is given, what was measured for the objective.
    assert FromData().search(False, "negate", None, 0, None, None).rounds == Rounds(
        "negate", rounds=12, steps=10
    )
    assert FromData().search(False, "neighbours", None, 0, None, None).neighbours == ByNeighbours()


@dataclass(frozen=True)
class Inner:
    loud: Annotated[bool, typer.Option()] = False
    count: Annotated[int | None, typer.Option("--times")] = None


@dataclass(frozen=True)
class Outer:
    inner: Inner
    name: Annotated[str, typer.Option()]


def test_groups_in_groups_are_options_and_arrive_as_groups():
    received, app, runner = [], typer.Typer(), CliRunner()

    @app.command()
    @options
    def command(word: Annotated[str, typer.Argument()], outer: Outer) -> None:
        received.append((word, outer))

    plain = ["a", "--name", "b"]
    assert runner.invoke(app, ["a"]).exit_code == 2
    assert runner.invoke(app, plain).exit_code == 0
    assert runner.invoke(app, [*plain, "--loud", "--times", "0"]).exit_code == 0
    assert received == [("a", Outer(Inner(), "b")), ("a", Outer(Inner(True, 0), "b"))]
    assert [given(outer.inner) for _, outer in received] == [{}, {"loud": True, "count": 0}]
    # Typer's own way with a switch is another.
    assert runner.invoke(app, [*plain, "--no-loud"]).exit_code == 2
