"""The commands that are disturbed, on the inputs of `scripts/unchanged.py`."""

from __future__ import annotations

import importlib.util
import random
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from scripts.soak_parts.state import State
from tests.faults.running import Server
from tests.faults.trials import Trial, Whole, whole

__all__ = ["TRIALS", "disturb", "inputs"]

_NEGATE = "negate IN/base16 IN/tuned16 -o out"
_SETS = "--forget IN/forget.jsonl --keep IN/rest.jsonl"
_SHORT = (
    "--steps 6 --batch 4 --neighbours 5 --wordings 0 --draws 3 --lora-rank 2"
    " --keep-weight 1 --device cpu --allow-harm"
)

# Every command that writes: edits, vectors, adapters, pages, trainings of each kind, recipes.
TRIALS = [
    Trial("negate", _NEGATE),
    Trial("negate, replacing", f"{_NEGATE} --overwrite", f"{_NEGATE} --scale 0.5"),
    Trial("add", "add IN/base16 IN/tuned16:0.5 IN/kept16:-0.25 -o out --dtype float32"),
    Trial("project", "project IN/base16 --forget IN/tuned16 --keep IN/kept16 -o out --rank 4"),
    Trial("learn", "learn IN/base16 --task IN/tuned16 --keep IN/kept16 -o out --energy 0.5"),
    Trial("adapter", f"{_NEGATE} --as adapter --rank 4 --targets all-linear"),
    Trial("export", "export IN/base16 IN/tuned16 -o out --rank 4 --targets all-linear"),
    Trial("diff", "diff IN/base16 IN/tuned16 -o out --html page.html"),
    Trial("subspace", "subspace IN/base16 IN/tuned16 -o out --rank 8"),
    Trial("subspace, replacing", "subspace IN/base16 IN/tuned16 -o out --rank 8 --overwrite",
          "subspace IN/base16 IN/tuned16 -o out --rank 2"),
    Trial("recipe", "run IN/typed.yaml -o out"),
    Trial("npo", f"unlearn IN/base --method npo {_SETS} -o out --lr 1e-3 --steps 6 --save-every 2"),
    Trial("kga", f"unlearn IN/base --method kga {_SETS} --unseen IN/more.jsonl -o out --steps 3"
          " --save-every 1"),
    Trial("task-vector", f"unlearn IN/base --method task-vector {_SETS} -o out --steps 4"
          " --save-every 2 --set scale=0.5"),
    Trial("identify", "identify IN/base IN/forget.jsonl -o out --steps 4 --save-every 2 --batch 4"),
    Trial("identify, layer by layer", "identify IN/base IN/forget.jsonl -o out --mode literal"
          " --steps 2 --save-every 1 --batch 4"),
    Trial("identify, adapter", "identify IN/base IN/forget.jsonl -o out --mode joint"
          " --lora-rank 2 --steps 4 --save-every 2 --batch 4"),
    Trial("neighbours", f"project IN/base {_SETS} -o out {_SHORT}"),
]  # fmt: skip


def _unchanged() -> object:
    path = Path(__file__).parents[1] / "unchanged.py"
    spec = importlib.util.spec_from_file_location("unchanged", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def inputs(state: State) -> Path:
    """The inputs, made once."""
    folder = state.folder / "inputs"
    if not folder.exists():
        draft = state.folder / "inputs.draft"
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir()
        _unchanged().make_inputs(draft)  # type: ignore[attr-defined]
        typed = (draft / "typed.yaml").read_text()
        for name in ("base16", "tuned16"):
            typed = typed.replace(name, str(folder / name))
        (draft / "typed.yaml").write_text(typed)
        draft.rename(folder)
    return folder


def disturb(
    state: State, count: int, once: Callable[[Whole, random.Random, dict[str, Any]], None]
) -> None:
    """Disturb each command so often, as its trial's name draws it.

    Args:
        state: What has been done, and where.
        count: Trials, over all commands.
        once: One disturbance and its judgement: the undisturbed run, a source of numbers, and the
            facts to write down.
    """
    given = inputs(state)
    with Server() as server, tempfile.TemporaryDirectory(dir=state.folder) as root:
        for place, trial in enumerate(TRIALS):
            names = [f"{trial.name}:{number}" for number in range(-(-count // len(TRIALS)))]
            if not any(map(state.todo, names)):
                continue
            try:
                undisturbed = whole(trial, server, given, Path(root) / str(place))
            except AssertionError as error:
                state.note(f"{trial.name}:whole", "fault", error=str(error)[:2000])
                continue
            for name in filter(state.todo, names):
                with state.trial(name) as facts:
                    once(undisturbed, random.Random(name), facts)
            shutil.rmtree(Path(root) / str(place))
