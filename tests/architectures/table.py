"""The page on architectures, made of what was found: ``python -m tests.architectures.table``."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path

from tests.architectures.configs import ARCHITECTURES
from tests.architectures.works import Exported, Trial

__all__ = ["FILE", "page"]

FILE = Path(__file__).parents[2] / "docs" / "architectures.md"

_HEAD = """\
# Architectures

Weight arithmetic needs no model class: an architecture that is not listed works like one that is.
Those below are made by transformers from their configs, small and random, with a fine-tune to
forget and one to keep, and saved in shards; what `ws` writes is loaded by transformers again and
compared, parameter by parameter, with the same arithmetic on the loaded models. This page is made
by that test: `python -m tests.architectures.table` writes it, and the test fails where it is out
of date.

Of every architecture, so checked:

- `ws inspect`: all tensors of the model, and all their numbers;
- `ws diff`: the norm of the difference of all parameters;
- `ws negate` (and so `ws add`): `W − λ T` in every parameter, biases, norms, embeddings and experts
  among them;
- `ws project` (and so `ws learn`) by vectors: what singular value decompositions of the loaded
  parameters give, in all linear layers, routers and experts, matrix by matrix where experts are
  stacked; embeddings, heads, norms, biases and convolutions keep their bytes.

The columns:

- *matrices*: how many `ws project` changes;
- *in memory*: whether tensors have the same names there as on disk. A fine-tune that a trainer
  saved by its names in memory is read all the same, and gives the same file, byte for byte; where
  it is refused, save it with `save_pretrained`;
- *as an adapter*: the widest `--targets` and `--include` of which `ws export` makes a LoRA adapter,
  and how many layers that is; merged by peft, it is the vector at that rank;
- *not in an adapter*: why a wider selection is refused, in the words of the error.

"""

_COLUMNS = (
    "architecture", "made by", "tensors", "matrices", "in memory", "as an adapter",
    "not in an adapter",
)  # fmt: skip


def page(trials: Sequence[Trial]) -> str:
    """The page, as text."""
    rows = [_COLUMNS, tuple("---" for _ in _COLUMNS), *(_row(each) for each in trials)]
    return _HEAD + "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _row(trial: Trial) -> tuple[str, ...]:
    return (
        trial.of.title,
        f"`{trial.of.made_by}`",
        str(trial.inspected),
        str(trial.projected),
        trial.restated,
        _adapter(trial.exported),
        trial.exported.refused or "—",
    )


def _adapter(found: Exported) -> str:
    if found.targets is None:
        return "no"
    return f"`{found.targets}` ({found.layers})"


def main() -> None:
    """Write it."""
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as root:
        trials = []
        for of in ARCHITECTURES:
            where = Path(root, of.kind)
            where.mkdir()
            trials.append(Trial(of, where))
        text = page(trials)
    FILE.parent.mkdir(exist_ok=True)
    FILE.write_text(text)


if __name__ == "__main__":
    main()
