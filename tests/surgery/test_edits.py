from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import (
    EPS,
    assert_rounded,
    exact,
    low_rank,
    read_tensors,
    same_bytes,
    write_checkpoint,
)
from weightsurgery import Add, Learn, Negate, Project, Rank, Selection, open_vector
from weightsurgery.algebra.discriminate import BASES, SIDES, SOFT_EPSILON
from weightsurgery.checkpoint.dequantised import dequantised
from weightsurgery.checkpoint.reader import Checkpoint
from weightsurgery.checkpoint.record import EditRecord
from weightsurgery.errors import EditError, MismatchError
from weightsurgery.surgery.apply import AdapterStorage, Storage, apply, plan_edit
from weightsurgery.surgery.edits import EDITS
from weightsurgery.surgery.plan import EditPlan
from weightsurgery.vectors.saved import VectorWriter
from weightsurgery.vectors.statistics import MappedStatistics, WeightedStatistics
from weightsurgery.vectors.task_vector import MappedChange, TaskVector

Tensors = dict[str, torch.Tensor]
DTYPES = [torch.bfloat16, torch.float16, torch.float32, torch.float64]


def wide(dtype: torch.dtype) -> float:
    """Eps of the arithmetic."""
    return EPS[torch.float64 if dtype == torch.float64 else torch.float32]


# --- plain edits against float64 ----------------------------------------------------------------

axis = st.integers(0, 7)
shapes = st.one_of(
    st.just(()), st.tuples(axis), st.tuples(axis, axis), st.tuples(axis, axis, st.integers(0, 3))
)


@st.composite
def checkpoints(draw: st.DrawFn) -> tuple[Tensors, Tensors, int, int]:
    """A base and a fine-tune with tensors of any shape and dtype, each in its own shards."""
    rng = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    base, finetuned = {}, {}
    for i in range(draw(st.integers(1, 6))):
        shape, size = draw(shapes), draw(st.sampled_from([1e-2, 1.0, 30.0]))
        kind, other = draw(st.sampled_from(DTYPES)), draw(st.sampled_from(DTYPES))
        weights = size * torch.randn(shape, generator=rng, dtype=torch.float64)
        change = 0.3 * size * torch.randn(shape, generator=rng, dtype=torch.float64)
        base[f"layers.{i}.w"], finetuned[f"layers.{i}.w"] = (
            weights.to(kind),
            (weights + change).to(other),
        )
    base |= {"layers.0.frozen": torch.randn(4, 3, generator=rng).half(), "ids": torch.arange(5)}
    finetuned |= {"layers.0.frozen": torch.randn(4, 3, generator=rng), "ids": torch.arange(5) + 1}
    base["mask"] = torch.tensor([[True, False]])
    finetuned["mask"] = ~base["mask"]
    shards = st.integers(1, len(base))
    return base, finetuned, draw(shards), draw(shards)


def header(path: Path) -> bytes:
    raw = path.read_bytes()
    return raw[: 8 + int.from_bytes(raw[:8], "little")]


def weight_files(directory: Path) -> dict[str, tuple[bytes, int]]:
    return {p.name: (header(p), p.stat().st_size) for p in directory.glob("*.safetensors")}


@pytest.mark.parametrize(("edit", "sign"), [(Negate, -1), (Add, 1)])
@given(pair=checkpoints(), scale=st.sampled_from([1.0, 0.3, -2.0]))
def test_plain_edits_are_the_oracle_within_one_rounding(
    edit: type[Negate], sign: int, pair: tuple[Tensors, Tensors, int, int], scale: float
) -> None:
    before, finetuned, base_shards, finetuned_shards = pair
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_checkpoint(root / "base", before, base_shards, {"a": 1}, {"note": "kept ✓"})
        write_checkpoint(root / "ft", finetuned, finetuned_shards)
        with Checkpoint.open(root / "base") as base:
            vector = open_vector(base, [str(root / "ft")])
            apply(
                edit(vector, scale),
                base,
                root / "out",
                selection=Selection(exclude=("*.frozen",)),
                allow_unrelated=True,
            )
        after = read_tensors(root / "out")
        assert weight_files(root / "out") == weight_files(root / "base")
        for name in ("config.json", "model.safetensors.index.json"):
            assert (root / "base" / name).exists() == (root / "out" / name).exists()
            if (root / "base" / name).exists():
                assert (root / "base" / name).read_bytes() == (root / "out" / name).read_bytes()
    assert set(after) == set(before)
    for name, tensor in before.items():
        if name in ("ids", "mask", "layers.0.frozen"):
            assert same_bytes(after[name], tensor)
            assert not torch.equal(finetuned[name].to(tensor.dtype), tensor)
            continue
        w, f = exact(tensor), exact(finetuned[name])
        # Four operations in the arithmetic's precision, then the one rounding.
        scratch = 4 * wide(tensor.dtype) * (abs(w) + abs(scale) * (abs(w) + abs(f)))
        assert_rounded(after[name], w + sign * scale * (f - w), scratch)
        if tensor.numel() > 4:
            assert not torch.equal(after[name], tensor)


def test_float8_weights_without_scales_are_numbers_if_so_said(tmp_path: Path) -> None:
    w, f = (torch.randn(40, 30).to(torch.float8_e4m3fn) for _ in range(2))
    base = dequantised(Checkpoint.open(write_checkpoint(tmp_path / "base", {"w": w})))
    write_checkpoint(tmp_path / "ft", {"w": f})
    apply(
        Negate(open_vector(base, [str(tmp_path / "ft")])),
        base,
        tmp_path / "o",
        allow_unrelated=True,
    )
    # Sums of float8 numbers are exact in float32.
    wanted = (2 * w.float() - f.float()).to(torch.bfloat16)
    assert same_bytes(read_tensors(tmp_path / "o")["w"], wanted)


def test_zeros_that_do_not_change_keep_their_sign(tmp_path: Path) -> None:
    tensors = {"zeros": torch.full((8, 8), -0.0), "w": torch.randn(8, 8)}
    base = Checkpoint.open(write_checkpoint(tmp_path / "base", tensors))
    write_checkpoint(tmp_path / "ft", {**tensors, "w": tensors["w"] + 1})
    for edit in (Negate, Add):
        out = tmp_path / edit.name
        apply(edit(open_vector(base, [str(tmp_path / "ft")])), base, out, allow_unrelated=True)
        after = read_tensors(out)
        assert not torch.equal(after["w"], tensors["w"])
        assert same_bytes(after["zeros"], tensors["zeros"])


@pytest.mark.parametrize("dtype", DTYPES)
def test_negate_then_add_returns_to_the_base(tmp_path: Path, dtype: torch.dtype) -> None:
    w = torch.randn(30, 20, dtype=torch.float64).to(dtype)
    change = (0.1 * torch.randn(30, 20, dtype=torch.float64)).to(
        torch.float64 if dtype == torch.float64 else torch.float32
    )
    base = Checkpoint.open(write_checkpoint(tmp_path / "base", {"w": w}))
    with VectorWriter(tmp_path / "v", []) as writer:
        writer.add("w", change)
        writer.commit(EditRecord("task-vector"))
    apply(Negate(open_vector(base, [str(tmp_path / "v")])), base, tmp_path / "away")
    away = Checkpoint.open(tmp_path / "away")
    apply(Add(open_vector(away, [str(tmp_path / "v")])), away, tmp_path / "back")
    middle, end = read_tensors(tmp_path / "away")["w"], read_tensors(tmp_path / "back")["w"]
    assert (middle != w).float().mean() > 0.9
    # One rounding at the size of each result; arithmetic likewise.
    bound = (abs(exact(middle)) + abs(exact(end))) * (EPS[dtype] / 2 + 2 * wide(dtype)) + 1e-7
    assert (abs(exact(end) - exact(w)) <= bound).all()


def test_vectors_combine_and_scales_apply_per_layer(tmp_path: Path) -> None:
    names = [f"layers.{i}.w" for i in range(3)]
    w, a, b = ({n: torch.randn(6, 5) for n in names} for _ in range(3))
    base = Checkpoint.open(write_checkpoint(tmp_path / "base", w, 2))
    for key, change in (("a", a), ("b", b)):
        write_checkpoint(tmp_path / key, {n: w[n] + change[n] for n in names})
    vector = open_vector(base, [str(tmp_path / "a"), f"{tmp_path / 'b'}:-0.5"])
    selection = Selection(scales=(("1", 3.0), ("layers.2.*", 0.0)))
    apply(Add(vector, 2.0), base, tmp_path / "out", selection=selection, allow_unrelated=True)
    after = read_tensors(tmp_path / "out")
    for name, factor in zip(names, (1, 3, 0), strict=True):
        wanted = exact(w[name]) + 2 * factor * (exact(a[name]) - 0.5 * exact(b[name]))
        np.testing.assert_allclose(exact(after[name]), wanted, rtol=0, atol=1e-5)
    assert same_bytes(after[names[2]], w[names[2]])


# --- discrimination -----------------------------------------------------------------------------

LINEAR = "model.layers.0.mlp.up_proj.weight"
M, N = 26, 20


def matrices(dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """A base matrix, a task and two keep tasks, which share part of their directions."""
    found = {"base": torch.from_numpy(np.random.default_rng(0).standard_normal((M, N))).to(dtype)}
    shared = low_rank(M, N, [1.0], 50)
    found["forget"] = torch.from_numpy(low_rank(M, N, [2, 1.6, 1.2, 0.01, 0.005], 1)).float()
    for i in (1, 2):
        found[f"keep{i}"] = torch.from_numpy(low_rank(M, N, [2, 1.5], i + 1) + 4 * shared).float()
    return found


class Bench:
    """Saves matrices as checkpoints, edits, and reads the result."""

    def __init__(self, root: Path, tensors: dict[str, torch.Tensor], name: str, **config: Any):
        self.root, self.name, self.tensors = root, name, tensors
        base = {name: tensors["base"], "model.norm.weight": torch.ones(4)}
        self.base = Checkpoint.open(write_checkpoint(root / "base", base, 1, config))

    def vector(self, key: str) -> TaskVector:
        changes = {self.name: self.tensors[key], "model.norm.weight": torch.ones(4)}
        return TaskVector.of(MappedChange(changes, key))

    def edited(self, edit: Any, **settings: Any) -> torch.Tensor:
        out = self.root / f"out{len(list(self.root.iterdir()))}"
        self.record = apply(edit, self.base, out, **settings).record
        return read_tensors(out)[self.name]

    def project(self, keeps: list[str], kind: Any = Project, **settings: Any) -> torch.Tensor:
        settings = {"rank": Rank(3), **settings}
        return self.edited(
            kind(self.vector("forget"), tuple(self.vector(k) for k in keeps), **settings)
        )


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path, matrices(), LINEAR)


def top(matrix: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    u, s, vh = np.linalg.svd(matrix, full_matrices=False)
    return u[:, :k], s[:k], vh[:k].T


def span(columns: list[np.ndarray]) -> np.ndarray:
    u, s, _ = np.linalg.svd(np.concatenate(columns, 1), full_matrices=False)
    return u[:, s > 1e-5]


def damping(gram: np.ndarray, epsilon: float) -> np.ndarray:
    """ρ (C + ρI)⁻¹."""
    rho = epsilon * np.trace(gram) / len(gram)
    return rho * np.linalg.inv(gram + rho * np.eye(len(gram)))


def oracle(tensors: dict[str, torch.Tensor], side: str, basis: str, k: int = 3) -> np.ndarray:
    """T' in full float64 matrices."""
    u, s, v = top(exact(tensors["forget"]), k)
    t = (u * s) @ v.T
    keeps = [top(exact(tensors[key]), k) for key in ("keep1", "keep2")]
    if side == "soft":
        whole = [(u * s) @ v.T for u, s, v in keeps]
        grams = [each.T @ each for each in whole]
        grams = [sum(grams)] if basis == "joint" else grams
        return t - sum(t @ (np.eye(N) - damping(gram, SOFT_EPSILON)) for gram in grams)
    us, vs = ([each[i] for each in keeps] for i in (0, 2))
    if basis == "joint":
        us, vs = ([span(x)] for x in (us, vs))
    p, q = (sum(x @ x.T for x in each) for each in (us, vs))
    if side == "frobenius":
        terms = [np.outer(a[:, i], b[:, i]).ravel() for a, _, b in keeps for i in range(a.shape[1])]
        if basis == "sum":
            return t - sum((t.ravel() @ x) * x for x in terms).reshape(t.shape)
        design = np.stack(terms, 1)
        return t - (design @ np.linalg.lstsq(design, t.ravel())[0]).reshape(t.shape)
    one_m, one_n = np.eye(M), np.eye(N)
    return {
        "right": t @ (one_n - q),
        "left": (one_m - p) @ t,
        "both": (one_m - p) @ t @ (one_n - q),
        "shared": t - sum(a @ a.T @ t @ b @ b.T for a, b in zip(us, vs, strict=True)),
    }[side]


# float32 factors and arithmetic at size one to ten.
FLOAT32 = 2e-5


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("basis", BASES)
@pytest.mark.parametrize(("kind", "sign"), [(Project, -1), (Learn, 1)])
def test_discriminating_edits_are_the_dense_oracle(
    bench: Bench, side: str, basis: str, kind: Any, sign: int
) -> None:
    w = exact(bench.tensors["base"])
    wanted = w + sign * 0.7 * oracle(bench.tensors, side, basis)
    found = bench.project(["keep1", "keep2"], kind, side=side, basis=basis, scale=0.7)
    u, s, v = top(exact(bench.tensors["forget"]), 3)
    assert np.linalg.norm(wanted - w - sign * 0.7 * (u * s) @ v.T) > 0.1  # plain is another
    np.testing.assert_allclose(exact(found), wanted, rtol=0, atol=FLOAT32)
    facts = bench.record.tensors[LINEAR]
    survived = np.linalg.norm(oracle(bench.tensors, side, basis)) ** 2 / (s**2).sum()
    assert facts["survived"] == pytest.approx(survived, abs=1e-5)
    assert facts["keep_ranks"] == [3, 3]


@pytest.mark.parametrize("side", [side for side in SIDES if side != "soft"])
@pytest.mark.parametrize("basis", BASES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_projecting_a_task_out_of_itself_is_the_identity(
    tmp_path: Path, side: str, basis: str, dtype: torch.dtype
) -> None:
    bench = Bench(tmp_path, matrices(dtype), LINEAR)
    assert not torch.equal(bench.edited(Negate(bench.vector("forget"))), bench.tensors["base"])
    edit = Project(
        bench.vector("forget"), (bench.vector("forget"),), Rank(3), side=side, basis=basis
    )
    apply(edit, bench.base, tmp_path / "same")
    assert (tmp_path / "same" / "model.safetensors").read_bytes() == (
        tmp_path / "base" / "model.safetensors"
    ).read_bytes()


def test_right_keeps_the_outputs_of_every_keep_input(bench: Bench) -> None:
    w = exact(bench.tensors["base"])
    inputs = np.concatenate([top(exact(bench.tensors[k]), 3)[2] for k in ("keep1", "keep2")], 1)
    plain = exact(bench.edited(Negate(bench.vector("forget"))))
    assert np.abs((plain - w) @ inputs).max() > 0.1
    found = exact(bench.project(["keep1", "keep2"]))
    assert np.linalg.norm(found - w) > 0.1
    assert np.abs((found - w) @ inputs).max() < FLOAT32


def test_left_never_writes_to_a_keep_output(bench: Bench) -> None:
    w = exact(bench.tensors["base"])
    outputs = np.concatenate([top(exact(bench.tensors[k]), 3)[0] for k in ("keep1", "keep2")], 1)
    plain = exact(bench.edited(Negate(bench.vector("forget"))))
    assert np.abs(outputs.T @ (plain - w)).max() > 0.1
    found = exact(bench.project(["keep1", "keep2"], side="left"))
    assert np.linalg.norm(found - w) > 0.1
    assert np.abs(outputs.T @ (found - w)).max() < FLOAT32


@pytest.mark.parametrize("name", ["h.0.mlp.c_proj.weight", "h.0.attn.c_attn.weight"])
def test_inputs_of_a_conv1d_are_its_rows(tmp_path: Path, name: str) -> None:
    """GPT-2 stores (in, out): y = x W, so the keep inputs are the left singular vectors."""
    bench = Bench(tmp_path, matrices(), name, model_type="gpt2")
    w = exact(bench.tensors["base"])
    inputs = np.concatenate([top(exact(bench.tensors[k]), 3)[0] for k in ("keep1", "keep2")], 1).T
    outputs = np.concatenate([top(exact(bench.tensors[k]), 3)[2] for k in ("keep1", "keep2")], 1)
    plain = exact(bench.edited(Negate(bench.vector("forget"))))
    assert np.abs(inputs @ (plain - w)).max() > 0.1
    right = exact(bench.project(["keep1", "keep2"])) - w
    assert np.abs(inputs @ right).max() < FLOAT32
    assert np.abs(right @ outputs).max() > 0.1
    left = exact(bench.project(["keep1", "keep2"], side="left")) - w
    assert np.abs(left @ outputs).max() < FLOAT32


def test_joint_spares_a_shared_direction_and_sum_does_not(bench: Bench) -> None:
    w = exact(bench.tensors["base"])
    vs = [top(exact(bench.tensors[k]), 3)[2] for k in ("keep1", "keep2")]
    joint = exact(bench.project(["keep1", "keep2"])) - w
    summed = exact(bench.project(["keep1", "keep2"], basis="sum")) - w
    for v in vs:
        assert np.linalg.norm(joint @ v) < FLOAT32
        assert np.linalg.norm(summed @ v) > 0.05


@pytest.mark.parametrize("side", SIDES)
def test_order_of_keep_tasks_is_irrelevant(bench: Bench, side: str) -> None:
    first = bench.project(["keep1", "keep2"], side=side)
    second = bench.project(["keep2", "keep1"], side=side)
    assert not torch.equal(first, bench.tensors["base"])
    torch.testing.assert_close(first, second, rtol=0, atol=FLOAT32)


@pytest.mark.parametrize("side", ["right", "left", "both"])
def test_rank_of_the_change_is_at_most_the_tasks(bench: Bench, side: str) -> None:
    change = exact(bench.project(["keep1", "keep2"], side=side)) - exact(bench.tensors["base"])
    assert np.linalg.matrix_rank(exact(bench.tensors["forget"]), tol=1e-3) == 5
    assert np.linalg.matrix_rank(change, tol=1e-4) == 3
    assert bench.record.tensors[LINEAR]["rank"] == 3


def test_only_matrices_are_discriminated(bench: Bench, tmp_path: Path) -> None:
    vector = bench.vector("forget")
    apply(Negate(vector), bench.base, tmp_path / "plain")
    everything = Selection("all")
    apply(
        Project(vector, (bench.vector("keep1"),)), bench.base, tmp_path / "o", selection=everything
    )
    norm = "model.norm.weight"
    assert not read_tensors(tmp_path / "plain")[norm].any()
    assert same_bytes(read_tensors(tmp_path / "o")[norm], torch.ones(4))


def test_keep_rank_is_its_own(bench: Bench) -> None:
    all_of_it = bench.project(["keep1", "keep2"], rank=Rank(2), keep_rank=Rank(3))
    assert bench.record.tensors[LINEAR]["keep_ranks"] == [3, 3]
    some = bench.project(["keep1", "keep2"], rank=Rank(2))
    assert bench.record.tensors[LINEAR]["keep_ranks"] == [2, 2]
    assert not torch.equal(all_of_it, some)


def test_a_tensor_no_keep_task_changes_loses_the_truncated_task(bench: Bench) -> None:
    edit = Project(bench.vector("forget"), (TaskVector.of(MappedChange({}, "elsewhere")),), Rank(3))
    u, s, v = top(exact(bench.tensors["forget"]), 3)
    wanted = exact(bench.tensors["base"]) - (u * s) @ v.T
    np.testing.assert_allclose(exact(bench.edited(edit)), wanted, rtol=0, atol=FLOAT32)


def test_learn_then_project_returns(bench: Bench, tmp_path: Path) -> None:
    learned = bench.project(["keep1", "keep2"], Learn)
    back = Bench(tmp_path / "back", {**bench.tensors, "base": learned}, LINEAR)
    assert (learned - bench.tensors["base"]).abs().max() > 0.1
    found = back.project(["keep1", "keep2"])
    torch.testing.assert_close(found, bench.tensors["base"], rtol=0, atol=FLOAT32)


# --- keep by activations ------------------------------------------------------------------------


def activations(seed: int, tokens: int = 60, n: int = N) -> np.ndarray:
    """Inputs to keep, in columns; sizes fall from direction to direction."""
    rng = np.random.default_rng(seed)
    turned, _ = np.linalg.qr(rng.standard_normal((n, n)))
    return turned @ (rng.standard_normal((n, tokens)) * np.logspace(0, -1.5, n)[:, None])


def statistics(*inputs: np.ndarray, name: str = LINEAR) -> MappedStatistics:
    return MappedStatistics({name: torch.from_numpy(sum(x @ x.T for x in inputs))})


def ridge(x: np.ndarray, epsilon: float) -> np.ndarray:
    c = x @ x.T
    rho = epsilon * np.trace(c) / len(c)
    return rho * np.linalg.inv(c + rho * np.eye(len(c)))


@pytest.mark.parametrize("epsilon", [1e-3, 0.1])
@pytest.mark.parametrize(("kind", "sign"), [(Project, -1), (Learn, 1)])
def test_keeping_inputs_is_the_ridge_of_the_dense_oracle(
    bench: Bench, kind: Any, sign: int, epsilon: float
) -> None:
    x, w = activations(5), exact(bench.tensors["base"])
    u, s, v = top(exact(bench.tensors["forget"]), 3)
    t = (u * s) @ v.T
    wanted = t @ ridge(x, epsilon)
    assert np.linalg.norm(wanted - t) > 0.1
    settings = {"keep_inputs": (statistics(x),), "epsilon": epsilon, "scale": 0.7}
    found = bench.project([], kind, **settings)
    np.testing.assert_allclose(exact(found), w + sign * 0.7 * wanted, rtol=0, atol=FLOAT32)
    facts = bench.record.tensors[LINEAR]
    assert facts["survived"] == pytest.approx(np.square(wanted).sum() / (s**2).sum(), abs=1e-5)
    felt = np.square(wanted @ x).sum() / np.square(t @ x).sum()
    assert facts["response"] == pytest.approx(felt, rel=1e-4)
    assert facts["keep_ranks"] == []
    assert bench.record.parameters["epsilon"] == epsilon
    assert bench.record.inputs["keep_inputs1"]["kind"] == "memory"


def test_statistics_add_up_with_their_weights(bench: Bench) -> None:
    x, y = activations(5), activations(6)
    parts = (statistics(x), WeightedStatistics(statistics(y), 4.0))
    found = bench.project([], keep_inputs=parts)
    assert {"keep_inputs1", "keep_inputs2"} <= bench.record.inputs.keys()
    assert bench.record.inputs["keep_inputs2"]["weight"] == 4
    assert not torch.equal(found, bench.project([], keep_inputs=parts[:1]))
    together = bench.project([], keep_inputs=(statistics(x, 2 * y),))
    torch.testing.assert_close(found, together, rtol=0, atol=FLOAT32)


@pytest.mark.parametrize("side", ["right", "both"])
@pytest.mark.parametrize("epsilon", [0.0, 1e-3])
def test_beside_keep_tasks_their_inputs_stay_exact(bench: Bench, side: str, epsilon: float) -> None:
    w, x = exact(bench.tensors["base"]), activations(5)
    span_v = span([top(exact(bench.tensors[k]), 3)[2] for k in ("keep1", "keep2")])
    alone = exact(bench.project([], keep_inputs=(statistics(x),), epsilon=0.1)) - w
    assert np.abs(alone @ span_v).max() > 0.01
    few = x[:, :4] if epsilon == 0 else x
    settings = {"side": side, "keep_inputs": (statistics(few),), "epsilon": epsilon}
    found = exact(bench.project(["keep1", "keep2"], **settings)) - w
    assert np.linalg.norm(found) > 1e-3
    assert np.abs(found @ span_v).max() < FLOAT32 / 10
    outside = (np.eye(N) - span_v @ span_v.T) @ few
    t = oracle(bench.tensors, side, "joint")
    if epsilon:
        np.testing.assert_allclose(-found, t @ ridge(outside, epsilon), rtol=0, atol=FLOAT32)
    else:
        assert np.abs(t @ few).max() > 0.1
        assert np.abs(found @ few).max() < FLOAT32


@pytest.mark.parametrize(("side", "basis"), [("left", "joint"), ("shared", "joint"),
                                             ("frobenius", "joint"), ("right", "sum")])  # fmt: skip
def test_other_sides_take_the_ridge_of_all_inputs(bench: Bench, side: str, basis: str) -> None:
    x, w = activations(5), exact(bench.tensors["base"])
    found = bench.project(
        ["keep1", "keep2"], side=side, basis=basis, keep_inputs=(statistics(x),), epsilon=0.1
    )
    wanted = oracle(bench.tensors, side, basis) @ ridge(x, 0.1)
    np.testing.assert_allclose(w - exact(found), wanted, rtol=0, atol=FLOAT32)


@pytest.mark.parametrize("name", ["h.0.mlp.c_proj.weight", "h.0.attn.c_attn.weight"])
def test_a_conv1d_keeps_the_inputs_of_its_rows(tmp_path: Path, name: str) -> None:
    bench = Bench(tmp_path, matrices(), name, model_type="gpt2")
    w, x = exact(bench.tensors["base"]), activations(5, 6, M)
    plain = exact(bench.edited(Negate(bench.vector("forget"))))
    assert np.abs(x.T @ (plain - w)).max() > 0.05
    kept = bench.project([], keep_inputs=(statistics(x, name=name),), epsilon=0.0)
    assert np.linalg.norm(exact(kept) - w) > 0.1
    assert np.abs(x.T @ (exact(kept) - w)).max() < FLOAT32


def test_an_edit_that_is_all_felt_changes_nothing(bench: Bench) -> None:
    everything = statistics(np.eye(N))
    found = bench.project([], keep_inputs=(everything,), epsilon=0.0)
    assert same_bytes(found, bench.tensors["base"])
    assert bench.record.tensors[LINEAR]["survived"] == 0
    some = bench.project([], keep_inputs=(everything,), epsilon=1e-3)
    assert not torch.equal(some, bench.tensors["base"])


def test_a_tensor_without_statistics_is_refused_before_anything_is_written(bench: Bench) -> None:
    forget = bench.vector("forget")
    for grams, match in (
        ({}, rf"no activation statistics of tensor '{LINEAR}'"),
        ({LINEAR: torch.eye(N + 1)}, rf"'{LINEAR}' have width {N + 1}; here it is {N}"),
    ):
        edit = Project(forget, (), keep_inputs=(MappedStatistics(grams, "others"),))
        out = bench.root / "refused"
        with pytest.raises(MismatchError, match=match):
            plan_edit(edit, bench.base, out, Selection("all-linear"), Storage())
        with pytest.raises(MismatchError, match=match):
            apply(edit, bench.base, out)
        assert not out.exists()
    # What the task does not change needs none.
    elsewhere = TaskVector.of(MappedChange({}, "nothing"))
    edit = Project(elsewhere, (), keep_inputs=(MappedStatistics({}),))
    assert same_bytes(bench.edited(edit), bench.tensors["base"])


def test_without_statistics_nothing_of_them_is_recorded(bench: Bench) -> None:
    bench.project(["keep1"])
    assert "epsilon" not in bench.record.parameters
    assert "response" not in bench.record.tensors[LINEAR]
    assert "keep_inputs1" not in bench.record.inputs
    bench.project(["keep1"], keep_inputs=(statistics(activations(5)),))
    assert bench.record.parameters["epsilon"] == 1e-3
    assert bench.record.tensors[LINEAR]["keep_ranks"] == [3]


def test_side_soft_has_a_ridge_of_its_own(bench: Bench) -> None:
    w = exact(bench.tensors["base"])
    changes = {}
    for epsilon in (None, 0.0, 1e-3, 30.0):
        found = bench.project(["keep1", "keep2"], side="soft", epsilon=epsilon)
        changes[epsilon] = exact(found) - w
        given = SOFT_EPSILON if epsilon is None else epsilon
        assert bench.record.parameters["epsilon"] == given
    np.testing.assert_allclose(changes[0.0], -oracle(bench.tensors, "right", "joint"), atol=FLOAT32)
    sizes = [np.linalg.norm(changes[epsilon]) for epsilon in (0.0, 1e-3, 30.0)]
    assert sizes[0] < sizes[1] < sizes[2]
    forget, kept = bench.vector("forget"), statistics(activations(5))
    for keeps in ((), (forget,)):
        with pytest.raises(EditError, match="side soft with activation statistics"):
            Project(forget, keeps, side="soft", keep_inputs=(kept,))
    with pytest.raises(EditError, match="epsilon -1"):
        Project(forget, (forget,), side="soft", epsilon=-1.0)


@pytest.mark.parametrize("name", ["h.0.mlp.c_proj.weight", "h.0.attn.c_attn.weight"])
def test_soft_damps_the_rows_of_a_conv1d(tmp_path: Path, name: str) -> None:
    """GPT-2 stores (in, out): the ridge is on the left."""
    bench = Bench(tmp_path, matrices(), name, model_type="gpt2")
    w = exact(bench.tensors["base"])
    turned = {key: tensor.T for key, tensor in bench.tensors.items()}
    parts = {key: top(exact(turned[key]), 3) for key in ("forget", "keep1", "keep2")}
    t, *keeps = [(u * s) @ v.T for u, s, v in parts.values()]
    wanted = (t @ damping(sum(each.T @ each for each in keeps), 0.1)).T
    found = bench.project(["keep1", "keep2"], side="soft", epsilon=0.1)
    assert np.linalg.norm(wanted - t.T) > 0.1
    np.testing.assert_allclose(w - exact(found), wanted, rtol=0, atol=FLOAT32)


@pytest.mark.parametrize("kind", [Negate, Add, Project])
def test_an_edit_beyond_fine_tunes_says_so(tmp_path: Path, kind: Any) -> None:
    """Whether written as a checkpoint or as an adapter; the record has the figure."""
    tensors = matrices()
    base, forget = exact(tensors["base"]), exact(tensors["forget"])
    tensors["forget"] *= 0.049 * np.linalg.norm(base) / np.linalg.norm(forget)
    tensors["keep1"] = torch.zeros(M, N)
    tensors["keep1"][0, 0] = 1e-3
    bench = Bench(tmp_path, tensors, LINEAR)
    vector, rest = bench.vector("forget"), ()
    if kind is Project:
        rest = ((bench.vector("keep1"),), Rank(N), None, "right", "joint")
    some = Selection(include=(LINEAR,))
    for scale, said in ((1.0, False), (1.2, True), (-9.4, True)):
        for storage in (Storage(), AdapterStorage("float32", None if rest else Rank(N))):
            out = tmp_path / f"{scale}{type(storage).__name__}"
            done = apply(
                kind(vector, *rest, scale=scale), bench.base, out, selection=some, storage=storage
            )
            relative = done.record.summary["relative_change"]
            # What is kept is one direction of twenty.
            assert relative == pytest.approx(0.049 * abs(scale), rel=0.1 if rest else 1e-4)
            told = [
                text for text in done.notices if text.startswith("The edit changes the weights")
            ]
            assert len(told) == said
            assert all(f" by {relative:.0%} of their norm" in text for text in told)


def test_the_plan_counts_what_statistics_take(tmp_path: Path) -> None:
    names = [f"model.layers.{i}.mlp.down_proj.weight" for i in range(2)]
    m, n = 8, 512
    base = Checkpoint.open(
        write_checkpoint(tmp_path / "base", {name: torch.randn(m, n) for name in names})
    )
    vector = TaskVector.of(MappedChange({name: torch.randn(m, n) for name in names}))
    grams = MappedStatistics(dict.fromkeys(names, torch.eye(n)))

    def plan(*keep_inputs: MappedStatistics) -> EditPlan:
        edit = Project(vector, (vector,), keep_inputs=keep_inputs)
        out = tmp_path / "out"
        return plan_edit(edit, base, out, Selection("all-linear"), Storage(), workers=1)

    without, once, twice = plan(), plan(grams), plan(grams, grams)
    assert once.memory_bytes - without.memory_bytes == 36 * n**2 - 12 * m * n
    assert twice.memory_bytes == once.memory_bytes
    assert once.read_bytes - without.read_bytes == 2 * 4 * n**2
    assert twice.read_bytes - without.read_bytes == 4 * 4 * n**2


def test_more_than_a_matrix_is_refused(tmp_path: Path) -> None:
    name = "model.layers.0.mixer.conv1d.weight"
    base = Checkpoint.open(write_checkpoint(tmp_path / "base", {name: torch.randn(2, 4, 4)}))
    vector = TaskVector.of(MappedChange({name: torch.randn(2, 4, 4)}))
    with pytest.raises(EditError, match=rf"{name}.*\[2, 4, 4\]"):
        apply(Project(vector, (vector,)), base, tmp_path / "out", selection=Selection())
    assert not (tmp_path / "out").exists()


def test_senseless_parameters_are_refused(bench: Bench) -> None:
    forget = bench.vector("forget")
    with pytest.raises(EditError, match="no task to keep"):
        Project(forget, ())
    with pytest.raises(EditError, match="side"):
        Project(forget, (forget,), side="up")
    with pytest.raises(EditError, match="basis"):
        Learn(forget, (forget,), basis="product")
    inputs = (MappedStatistics({}),)
    assert Project(forget, (), keep_inputs=inputs).ridge == 1e-3
    for epsilon in (-1.0, float("nan"), float("inf")):
        with pytest.raises(EditError, match="epsilon"):
            Project(forget, (), keep_inputs=inputs, epsilon=epsilon)


def test_table_of_edits() -> None:
    assert {name: kind.name for name, kind in EDITS.items()} == {n: n for n in EDITS}
    assert EDITS["negate"] is Negate
    assert EDITS["learn"] is Learn
