"""One decomposition for a whole grid: the changes that single edits work out."""

import math
from collections import Counter
from dataclasses import replace

import pytest
import torch

from tests.conftest import low_rank, write_checkpoint
from weightsurgery import Project, Rank
from weightsurgery.algebra.discriminate import SIDES, SOFT_EPSILON
from weightsurgery.algebra.svd import EXACT_UP_TO, truncated_svd
from weightsurgery.checkpoint.reader import Checkpoint
from weightsurgery.errors import EditError
from weightsurgery.procedures.grid import Changes, Grid
from weightsurgery.surgery.discriminating import Learn
from weightsurgery.vectors import deltas
from weightsurgery.vectors.statistics import MappedStatistics
from weightsurgery.vectors.task_vector import MappedChange, TaskVector

CPU = torch.device("cpu")
NAMES = [f"model.layers.{n}.self_attn.{kind}_proj.weight" for n in (0, 1) for kind in "qkv"]
ROWS, WIDTH = 40, 24
HARD = tuple(side for side in SIDES if side != "soft")


def gram(seed: int) -> torch.Tensor:
    x = torch.randn(60, WIDTH, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return x.T @ x


@pytest.fixture
def case(tmp_path):
    """A base of six matrices, and an edit of it by dense changes and statistics."""
    tensors = {name: torch.randn(ROWS, WIDTH) for name in NAMES}
    base = Checkpoint.open(write_checkpoint(tmp_path / "base", tensors))
    vectors = [
        TaskVector.of(MappedChange({name: torch.randn(ROWS, WIDTH) for name in NAMES}, label))
        for label in ("forget", "keep", "other")
    ]
    shared = [gram(0), gram(1)]
    statistics = MappedStatistics({name: shared[n // 3] for n, name in enumerate(NAMES)})
    return base, Project(vectors[0], tuple(vectors[1:]), keep_inputs=(statistics,))


def applied(delta, name: str, base: Checkpoint) -> torch.Tensor:
    entry = base.entry(name)
    out = torch.zeros(entry.shape)
    delta.add_rows(out, 0, entry.shape[0], 1.0, base.tensor(name))
    return out


@pytest.mark.parametrize("basis", ["joint", "sum"])
@pytest.mark.parametrize("keep_rank", [None, Rank(2)])
@pytest.mark.parametrize("epsilons", [(), (1e-3, 0.1)])
def test_every_setting_is_what_the_edit_works_out(case, basis, keep_rank, epsilons):
    base, edit = case
    edit = replace(edit, basis=basis, keep_rank=keep_rank)
    edit = edit if epsilons else replace(edit, keep_inputs=())
    grid = Grid((1.0,), (3, 6, 10), HARD, epsilons)
    found = Changes(edit, base, grid, CPU).at(NAMES[0])
    assert list(found) == list(grid.settings())
    assert len(found) == 3 * 5 * max(1, len(epsilons))
    for setting, delta in found.items():
        one = replace(
            edit, rank=Rank(setting.rank), side=setting.side, epsilon=setting.epsilon or 0.0
        )
        wanted = applied(one.prepare(base, NAMES[0], CPU).delta, NAMES[0], base)
        change = applied(delta, NAMES[0], base)
        assert float(wanted.norm()) > 0
        if setting.epsilon is None:
            assert torch.equal(change, wanted)
        else:  # eigenvectors here, a Cholesky solve there: the rounding of what was held back
            free = replace(one, keep_inputs=()).prepare(base, NAMES[0], CPU)
            size = float(applied(free.delta, NAMES[0], base).norm())
            assert float((change - wanted).norm()) <= 1e-6 * size
    sizes = {round(float(applied(delta, NAMES[0], base).norm()), 4) for delta in found.values()}
    assert len(sizes) > 5  # before: the settings do differ


@pytest.mark.parametrize("basis", ["joint", "sum"])
@pytest.mark.parametrize("epsilons", [(), (1e-3, 0.3)])
def test_side_soft_takes_ridges_and_the_others_beside_it_none(case, basis, epsilons):
    base, edit = case
    edit = replace(edit, basis=basis, keep_inputs=())
    grid = Grid((1.0,), (3, 10), ("right", "soft"), epsilons)
    ridges = epsilons or (SOFT_EPSILON,)
    each = [("right", None), *(("soft", epsilon) for epsilon in ridges)]
    assert [(s.side, s.epsilon) for s in grid.settings()] == 2 * each
    found = Changes(edit, base, grid, CPU).at(NAMES[0])
    assert list(found) == list(grid.settings())
    for setting, delta in found.items():
        one = replace(edit, rank=Rank(setting.rank), side=setting.side, epsilon=setting.epsilon)
        wanted = applied(one.prepare(base, NAMES[0], CPU).delta, NAMES[0], base)
        assert torch.equal(applied(delta, NAMES[0], base), wanted)
    assert len({float(applied(delta, NAMES[0], base).norm()) for delta in found.values()}) > 3


def test_iterative_truncations_agree_within_their_residuals(tmp_path):
    size = EXACT_UP_TO + 128
    rng = torch.Generator().manual_seed(1)
    change = torch.tensor(low_rank(size, size, [0.9**n for n in range(200)], 1)).float()
    base = Checkpoint.open(
        write_checkpoint(tmp_path / "base", {"layers.0.w": torch.randn(size, size, generator=rng)})
    )
    vector = TaskVector.of(MappedChange({"layers.0.w": change}))
    other = TaskVector.of(MappedChange({"layers.0.w": torch.zeros(size, size)}))
    grid = Grid((1.0,), (8, 64), ("right",))
    large, small = (truncated_svd(change, Rank(k)) for k in (64, 8))
    assert small.residual > 0  # before: it is no exact decomposition
    found = Changes(Project(vector, (other,)), base, grid, CPU).at("layers.0.w")
    cut, full = (applied(delta, "layers.0.w", base) for delta in found.values())
    wanted = small.factors.matrix()
    bound = 10 * (small.residual + large.residual + 1e-6)
    assert bound < 1e-3
    assert float((cut - wanted).norm()) <= bound * float(wanted.norm())
    assert float((full - wanted).norm()) > 0.1 * float(wanted.norm())


def test_more_cells_decompose_nothing_more(case, monkeypatch):
    base, edit = case
    counted = Counter()

    def count(module, name, key):
        inner = getattr(module, name)

        def counting(matrix, *rest, **named):
            counted[key(matrix)] += 1
            return inner(matrix, *rest, **named)

        monkeypatch.setattr(module, name, counting)

    count(deltas, "truncated_svd", lambda matrix: "truncated_svd")
    count(torch.linalg, "eigh", lambda matrix: f"eigh {tuple(matrix.shape)}")
    count(torch.linalg, "cholesky_ex", lambda matrix: "cholesky_ex")
    few, many = (
        Grid((1.0,), (6,), ("right",), (1e-3,)),
        Grid((0.5, 1.0, 2.0), (2, 3, 4, 5, 6), ("right", "left", "both", "shared"), (1e-3, 1e-2)),
    )
    counts = []
    for grid in (few, many):
        counted.clear()
        changes = Changes(edit, base, grid, CPU)
        cells = sum(len(changes.at(name)) for name in NAMES)
        assert cells == len(NAMES) * len(list(grid.settings()))
        counts.append(dict(counted))
    assert counts[0] == counts[1]
    # The task and two keep tasks of each matrix; and of the layers' two inputs each once.
    assert counts[0] == {"truncated_svd": 3 * len(NAMES), f"eigh ({WIDTH}, {WIDTH})": 2}
    counted.clear()
    soft = Grid((0.5, 1.0), (2, 3, 6), ("right", "soft"), (1e-4, 1e-3, 1e-2, 0.1))
    changes = Changes(replace(edit, keep_inputs=()), base, soft, CPU)
    assert sum(len(changes.at(name)) for name in NAMES) == len(NAMES) * 3 * 5
    assert counted == {"truncated_svd": 3 * len(NAMES)}
    counted.clear()  # before: edit by edit, each is decomposed again
    for _ in many.settings():
        edit.prepare(base, NAMES[0], CPU)
    assert counted["truncated_svd"] == 3 * 40


def test_keep_tasks_that_span_all_inputs_leave_nothing_to_hold_back(case):
    base, edit = case
    facts = replace(edit, rank=Rank(WIDTH)).prepare(base, NAMES[0], CPU).facts
    assert facts["survived"] == 0
    assert facts["response"] < 1e-9
    found = Changes(edit, base, Grid((1.0,), (WIDTH,), ("right",), (1e-3,)), CPU).at(NAMES[0])
    (delta,) = found.values()
    assert float(applied(delta, NAMES[0], base).norm()) == 0


def test_a_matrix_that_does_not_change_has_no_settings(case):
    base, edit = case
    less = TaskVector.of(MappedChange({NAMES[0]: torch.ones(ROWS, WIDTH)}))
    changes = Changes(Learn(less, edit.keep), base, Grid(), CPU)
    assert len(changes.at(NAMES[0])) == 4
    assert changes.at(NAMES[1]) == {}


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"scales": ()}, "no scales"),
        ({"ranks": ()}, "no ranks"),
        ({"sides": ()}, "no sides"),
        ({"scales": (1.0, 2.0, 1.0)}, "1.0 twice among the scales"),
        ({"ranks": (4, 4)}, "4 twice"),
        ({"scales": (0.0,)}, "scale 0.0"),
        ({"scales": (-1.0,)}, "scale -1.0"),
        ({"scales": (math.nan,)}, "scale nan"),
        ({"scales": (math.inf,)}, "scale inf"),
        ({"ranks": (0,)}, "rank 0"),
        ({"sides": ("up",)}, "side 'up'"),
        ({"epsilons": (-1e-3,)}, "epsilon -0.001"),
        ({"epsilons": (math.nan,)}, "epsilon nan"),
    ],
)
def test_grids_that_make_no_sense(values, says):
    with pytest.raises(EditError, match=says):
        Grid(**values)
