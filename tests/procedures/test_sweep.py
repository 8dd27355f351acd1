"""The sweep on a tiny model that knows what is to be forgotten."""

import json
import math
from collections import Counter
from dataclasses import replace

import pytest
import torch

from tests.conftest import read_tensors
from tests.learning.tiny import FACTS, save, tiny, write
from weightsurgery import Learn, Project, Rank, Selection, apply
from weightsurgery.checkpoint.reader import Checkpoint
from weightsurgery.errors import (
    DataError,
    EditError,
    LineageError,
    NonFiniteError,
    SelectionError,
    UnsupportedCheckpointError,
)
from weightsurgery.learning.data import Example
from weightsurgery.learning.exact import score_checkpoint
from weightsurgery.procedures import sweep as sweep_module
from weightsurgery.procedures.splits import DataSets
from weightsurgery.procedures.sweep import Grid, sweep
from weightsurgery.vectors.sources import open_keep, open_vector
from weightsurgery.vectors.task_vector import MappedChange, TaskVector

GRID = Grid((1.0, 4.0, 16.0), (4, 16), ("right", "both"))


@pytest.fixture(scope="module")
def base(taught):
    with Checkpoint.open(taught.base) as opened:
        yield opened


@pytest.fixture(scope="module")
def edit(taught, base):
    return Project(
        open_vector(base, [str(taught.forget)]), (open_vector(base, [str(taught.keep)]),)
    )


@pytest.fixture(scope="module")
def with_statistics(taught, base, edit):
    return replace(edit, keep_inputs=open_keep(base, [str(taught.statistics)]).inputs)


@pytest.fixture(scope="module")
def data(taught):
    return DataSets(taught.forget_data, [taught.keep_data], taught.test_forget, [taught.test_keep])


@pytest.fixture(scope="module")
def found(edit, base, data):
    return sweep(edit, base, data, GRID)


def test_it_finds_a_setting_that_forgets_and_keeps(found):
    assert (found.base_forget, found.base_keep) == (1.0, (1.0,))  # before: all is known
    assert len(found.cells) == 12
    assert [cell.scale for cell in found.cells[:3]] == [1.0, 4.0, 16.0]
    assert len({(c.scale, c.rank, c.side) for c in found.cells}) == 12
    assert max(cell.worst_drift for cell in found.cells) > 0.3  # some cells lose the keep set,
    assert min(cell.forgetting for cell in found.cells) == 0  # and some forget nothing
    chosen = found.cells[found.chosen]
    assert chosen.forgetting > 80
    assert chosen.retained >= 0.975
    assert found.nearest is None
    assert found.chosen in found.frontier


def test_each_cell_scores_as_what_project_writes(found, edit, base, taught, tmp_path):
    for number in (0, 5, 7, 11):
        cell = found.cells[number]
        one = replace(edit, rank=Rank(cell.rank), side=cell.side, scale=cell.scale)
        apply(one, base, tmp_path / str(number), device="cpu")
        scores = score_checkpoint(
            tmp_path / str(number), {"forget": taught.forget_data, "keep": taught.keep_data}
        )
        assert scores == {"forget": cell.forget, "keep": cell.keep[0]}


def test_ridges_are_swept_too(with_statistics, base, data):
    grid = replace(GRID, sides=("right",), ranks=(16,), epsilons=(1e-3, 10.0))
    found = sweep(with_statistics, base, data, grid)
    strict, loose = found.cells[:3], found.cells[3:]
    assert [cell.epsilon for cell in found.cells] == [1e-3] * 3 + [10.0] * 3
    assert sum(cell.forgetting for cell in strict) < sum(cell.forgetting for cell in loose)
    assert max(cell.worst_drift for cell in strict) <= max(cell.worst_drift for cell in loose)


def test_side_soft_is_swept_beside_others(edit, base, data):
    grid = Grid((4.0, 16.0), (16,), ("right", "soft"), (1e-3, 1.0))
    found = sweep(edit, base, data, grid)
    assert [(cell.side, cell.epsilon) for cell in found.cells[::2]] == [
        ("right", None), ("soft", 1e-3), ("soft", 1.0),
    ]  # fmt: skip
    forgetting = [sum(c.forgetting for c in found.cells[n : n + 2]) for n in (0, 2, 4)]
    assert forgetting == sorted(forgetting)
    assert forgetting[0] < forgetting[2]


def test_the_chosen_cell_alone_is_tested_and_once(edit, base, data, found, monkeypatch, taught):
    scored = Counter()
    inner = sweep_module.score

    def counting(model, tokenizer, examples, names, **named):
        scored[named["where"]] += 1
        return inner(model, tokenizer, examples, names, **named)

    monkeypatch.setattr(sweep_module, "score", counting)
    again = sweep(edit, base, data, GRID)
    assert again == found  # and it is deterministic
    assert scored == {"forget": 13, "keep": 13, "test-forget": 2, "test-keep": 2}
    forget, keep = again.test
    assert (forget.name, forget.role, forget.examples) == ("test-forget", "forget", 2)
    assert (forget.before.value, keep.before.value) == (1.0, 1.0)
    assert forget.change.value == pytest.approx(100 * (1 - forget.after.value))
    assert keep.change.value == pytest.approx(abs(keep.after.value - 1))
    assert len(keep.after.interval) == 2


def test_the_model_is_given_back_after_a_fault(edit, base, data, monkeypatch):
    models, moved = [], []
    load, inner = sweep_module.load_float32, sweep_module.score
    stored = read_tensors(base.path)

    def keeping(checkpoint):
        models.append(load(checkpoint))
        return models[-1]

    def interrupted(model, *rest, **named):
        moved.append(any(not torch.equal(v, stored[k]) for k, v in model.state_dict().items()))
        if sum(moved) == 3:
            raise KeyboardInterrupt
        return inner(model, *rest, **named)

    monkeypatch.setattr(sweep_module, "load_float32", keeping)
    monkeypatch.setattr(sweep_module, "score", interrupted)
    with pytest.raises(KeyboardInterrupt):
        sweep(edit, base, data, GRID)
    assert moved[-1]  # before: it was another when the fault came
    assert len(models) == 1
    for name, value in models[0].state_dict().items():
        assert torch.equal(value, stored[name]), name


def test_where_nothing_qualifies_the_nearest_is_named(edit, base, data):
    found = sweep(edit, base, data, Grid((64.0, 256.0), (4,), ("right",)))
    assert found.chosen is None
    assert found.test == ()
    worst = [cell.retained for cell in found.cells]
    assert max(worst) < 0.975
    assert found.cells[found.nearest].retained == max(worst)
    gentle = sweep(edit, base, data, Grid((1e-6,), (4,), ("right",)))
    assert (gentle.chosen, gentle.nearest) == (None, None)  # all is kept, and nothing forgotten
    assert gentle.cells[0].retained == 1.0


def test_cells_beyond_numbers_are_named_and_never_chosen(edit, base, data):
    found = sweep(edit, base, data, Grid((1.0, 4.0, 1e30), (16,), ("right",)))
    assert [bool(cell.failed) for cell in found.cells] == [False, False, True]
    failed = found.cells[2]
    assert failed.forget is None
    assert failed.keep == ()
    assert found.chosen == 1
    assert 2 not in found.frontier
    json.dumps(failed.__dict__, allow_nan=False)
    none = sweep(edit, base, data, Grid((1e30,), (16,), ("right",)))
    assert (none.chosen, none.nearest, none.frontier) == (None, None, ())


def test_scales_of_tensors_count(edit, base, data, found):
    """Zero everywhere but in one layer is that layer alone."""
    grid = Grid((16.0,), (16,), ("right",))
    halved = sweep(edit, base, data, grid, selection=Selection("all-linear", scales=(("*", 0.25),)))
    same = next(c for c in found.cells if (c.scale, c.rank, c.side) == (4.0, 16, "right"))
    assert replace(halved.cells[0], scale=4.0) == same
    full = sweep(edit, base, data, grid)
    assert full.cells[0].keep != halved.cells[0].keep


def test_learning_is_swept_with_the_opposite_sign(edit, base, data, found):
    learn = Learn(-1.0 * edit.task, edit.keep)
    again = sweep(learn, base, data, GRID)
    assert [cell.forget for cell in again.cells] == [cell.forget for cell in found.cells]


def test_a_metric_other_than_exact_match(edit, base, data, found):
    other = sweep(edit, base, data, GRID, metric="token_accuracy")
    assert other.base_forget == 1.0
    pairs = list(zip(found.cells, other.cells, strict=True))
    assert all(b.forget >= a.forget for a, b in pairs)
    assert any(b.forget > a.forget for a, b in pairs)


# --- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize("threshold", [0.0, -1.0, 1.01, math.nan, math.inf])
def test_thresholds_out_of_range(edit, base, data, threshold):
    with pytest.raises(EditError, match="threshold"):
        sweep(edit, base, data, GRID, threshold=threshold)


@pytest.mark.parametrize("metric", ["perplexity", "nll", "truth_ratio", "accuracy", ""])
def test_metrics_that_are_no_share(edit, base, data, metric):
    with pytest.raises(SelectionError, match="metric"):
        sweep(edit, base, data, GRID, metric=metric)


def test_ridges_and_statistics_come_together(edit, with_statistics, base, data):
    with pytest.raises(EditError, match="no epsilons"):
        sweep(with_statistics, base, data, GRID)
    with pytest.raises(EditError, match="without activation statistics"):
        sweep(edit, base, data, replace(GRID, epsilons=(1e-3,)))
    with pytest.raises(EditError, match="a ridge of its own"):
        sweep(with_statistics, base, data, replace(GRID, sides=("soft",), epsilons=(1e-3,)))
    with pytest.raises(EditError, match="several sides"):
        sweep(replace(with_statistics, keep=()), base, data, replace(GRID, epsilons=(1e-3,)))


def test_data_the_model_does_not_know(edit, base, data, tmp_path):
    wrong = write(tmp_path / "wrong.jsonl", [Example(FACTS[0].prompt, " mauve")])
    with pytest.raises(DataError, match=r"wrong: the base's score is 0 \(begins with.*to keep"):
        sweep(edit, base, replace(data, keep=[*data.keep, wrong]), GRID)
    with pytest.raises(DataError, match=r"wrong: .* nothing to forget"):
        sweep(edit, base, replace(data, forget=wrong), GRID)


def test_data_for_choice_and_test_both(edit, base, data, tmp_path):
    link = tmp_path / "link.jsonl"
    link.symlink_to(data.keep[0])
    with pytest.raises(DataError, match="to test what was chosen on it"):
        sweep(edit, base, replace(data, test_keep=[link]), GRID)
    with pytest.raises(DataError, match="named twice"):
        sweep(edit, base, replace(data, keep=[*data.keep, data.forget]), GRID)
    with pytest.raises(DataError, match="no data to keep"):
        sweep(edit, base, replace(data, keep=[]), GRID)


def test_a_vector_of_another_base(edit, base, data, tmp_path):
    torch.manual_seed(5)
    other = tmp_path / "other"
    model = type(sweep_module.load_float32(base))(sweep_module.load_float32(base).config)
    save(model, other)
    stranger = replace(edit, task=open_vector(base, [str(other)]))
    with pytest.raises(LineageError, match="other"):
        sweep(stranger, base, data, GRID)
    found = sweep(stranger, base, data, Grid((1.0,), (4,), ("right",)), allow_unrelated=True)
    assert len(found.cells) == 1


def test_a_model_whose_weights_have_other_names_in_memory(tmp_path, data):
    base = Checkpoint.open(save(tiny("mixtral"), tmp_path / "base"))
    names = [name for name in base.entries if "experts" in name]
    vector = TaskVector.of(
        MappedChange({name: torch.randn(base.entry(name).shape) for name in names})
    )
    with pytest.raises(UnsupportedCheckpointError, match="another matrix in memory"):
        sweep(Project(vector, (vector,)), base, data, GRID)


def test_a_base_that_says_nan(tmp_path, taught, data):
    model = sweep_module.load_float32(Checkpoint.open(taught.base))
    with torch.no_grad():
        model.model.norm.weight.fill_(math.nan)
    base = Checkpoint.open(save(model, tmp_path / "base"))
    vector = open_vector(base, [str(taught.forget)])
    with pytest.raises(NonFiniteError, match="forget"):
        sweep(Project(vector, (vector,)), base, data, GRID)
