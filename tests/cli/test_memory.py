"""Out of memory is an error in two lines that name the command's own options for taking less."""

import numpy as np
import pytest
import torch

from weightsurgery.cli.main import out_of_memory
from weightsurgery.errors import OutputError, SourceError
from weightsurgery.learning.models import _named
from weightsurgery.learning.points import writing

CUDA = (
    "CUDA out of memory. Tried to allocate 1.96 GiB. GPU 0 has a total capacity of 79.11 GiB of"
    " which 1.31 GiB is free. Including non-PyTorch memory, this process has 77.79 GiB memory in"
    " use. Of the allocated memory 76.00 GiB is allocated by PyTorch."
)
HOST = (
    "[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: you tried to"
    " allocate 4000000000000 bytes. Error code 12 (Cannot allocate memory)"
)


@pytest.mark.parametrize(
    ("words", "raised", "wrong", "remedy"),
    [
        (
            ["unlearn", "base", "--forget", "x.jsonl", "-o", "out"],
            torch.cuda.OutOfMemoryError(CUDA),
            "error: ws unlearn: out of memory on the GPU: 1.96 GiB were asked for, 1.31 GiB of"
            " 79.11 GiB are free",
            "Try a smaller --batch, --gradient-checkpointing, --lora-rank, fewer"
            " matrices by --targets or --device cpu. --dry-run says what will be held.",
        ),
        (
            ["negate", "base", "vector", "-o", "out"],
            RuntimeError(HOST),
            "error: ws negate: out of memory on the processor: 4000000000000 bytes were asked for",
            "Try --workers 1 or fewer matrices by --targets. --dry-run says what will be held.",
        ),
        (
            ["attack", "relearn", "base", "--forget", "x.jsonl"],
            MemoryError(),
            "error: ws attack relearn: out of memory on the processor",
            "Try a smaller --batch-size.",
        ),
    ],
)
def test_out_of_memory_is_told_in_two_lines(words, raised, wrong, remedy, monkeypatch, capsys):
    from weightsurgery.cli import main

    def fails(**named):
        raise raised

    monkeypatch.setattr(main, "app", _stand_in(main.app, fails))
    monkeypatch.setattr("sys.argv", ["ws", *words])
    with pytest.raises(SystemExit) as ended:
        main.main()
    assert ended.value.code == 1
    assert capsys.readouterr().err.splitlines() == [wrong, remedy]


def _stand_in(app, run):
    """The command line with the same commands, which all do one thing."""

    class StandIn:
        registered_commands = app.registered_commands

        def __getattr__(self, name):
            return getattr(app, name)

        def __call__(self, **named):
            run()

    return StandIn()


def test_a_bug_stays_one(monkeypatch):
    from weightsurgery.cli import main

    def fails():
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(main, "app", _stand_in(main.app, fails))
    with pytest.raises(RuntimeError, match="shapes"):
        main._run()


def test_what_libraries_say_is_known():
    """The messages of the libraries that are installed, not those that were written down."""
    with pytest.raises(RuntimeError) as torch_said:
        torch.empty(1 << 50)
    with pytest.raises(MemoryError) as numpy_said:
        np.empty(1 << 50)
    from weightsurgery.cli.main import app

    for said in (torch_said, numpy_said):
        told = out_of_memory(said.value, app, ["negate"])
        assert told is not None
        assert told[0].startswith("ws negate: out of memory on the processor")
    assert out_of_memory(ValueError("4 GB"), app, ["negate"]) is None


@pytest.mark.parametrize("around", [writing("out"), _named("base", "model")])
def test_it_is_not_taken_for_something_else(around):
    with pytest.raises(torch.OutOfMemoryError), around:
        raise torch.OutOfMemoryError(CUDA)


def test_other_errors_still_are():
    with pytest.raises(OutputError), writing("out"):
        raise RuntimeError("no such disk")
    with pytest.raises(SourceError), _named("base", "model"):
        raise RuntimeError("no such model")
