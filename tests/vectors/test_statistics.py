from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.conftest import left_behind, read_tensors, same_bytes, snapshot, write_checkpoint
from weightsurgery.checkpoint.reader import Checkpoint
from weightsurgery.checkpoint.record import EditRecord, verify
from weightsurgery.errors import (
    EditError,
    LineageError,
    MismatchError,
    NonFiniteError,
    OutputError,
    SourceError,
    VectorError,
    VerificationError,
)
from weightsurgery.vectors.lineage import check_lineage, kinship, samples_of
from weightsurgery.vectors.saved import is_saved_vector
from weightsurgery.vectors.sources import classify, open_change, open_keep
from weightsurgery.vectors.statistics import (
    MappedStatistics,
    Statistics,
    StatisticsWriter,
    WeightedStatistics,
    check_width,
    is_statistics,
    total_gram,
)

Q, K, DOWN = (
    f"model.layers.0.{each}_proj.weight" for each in ("self_attn.q", "self_attn.k", "mlp.down")
)


def gram(n: int, seed: int) -> torch.Tensor:
    x = torch.randn(50, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return x.T @ x


SHARED, ALONE = gram(6, 1), gram(9, 2)


@pytest.fixture
def base(tmp_path: Path) -> Checkpoint:
    tensors = {Q: torch.randn(6, 6), K: torch.randn(3, 6), DOWN: torch.randn(6, 9)}
    return Checkpoint.open(write_checkpoint(tmp_path / "base", tensors))


def save(target: Path, base: Checkpoint | None = None, shard_bytes: int = 1 << 26) -> Path:
    with StatisticsWriter(target, [], shard_bytes=shard_bytes) as writer:
        writer.add([Q, K], SHARED, 50)
        writer.add([DOWN], ALONE, 40)
        record = EditRecord("activation-statistics")
        record.parameters = {} if base is None else {"base_samples": samples_of(base)}
        writer.commit(record)
    return target


@pytest.mark.parametrize("shard_bytes", [1, 1 << 26])
def test_what_was_saved_is_read(tmp_path: Path, shard_bytes: int) -> None:
    target = save(tmp_path / "s", shard_bytes=shard_bytes)
    found = Statistics.open(target)
    assert found.label == "s"
    assert found.names == (Q, K, DOWN)
    assert [found.width(name) for name in (*found.names, "other")] == [6, 6, 9, None]
    for name, wanted in ((Q, SHARED), (K, SHARED), (DOWN, ALONE)):
        read = found.for_tensor(name)
        assert read is not None
        assert same_bytes(read, wanted.float())
    assert found.for_tensor("other") is None
    assert found.record.tensors[K] == {"input": Q, "width": 6, "tokens": 50}
    assert found.record.tensors[DOWN]["tokens"] == 40
    assert len(list(target.glob("*.safetensors"))) == (2 if shard_bytes == 1 else 1)
    assert left_behind(target) == ["s"]


def test_layers_with_one_input_share_one_matrix(tmp_path: Path) -> None:
    tensors = read_tensors(save(tmp_path / "s"))
    assert tensors.keys() == {Q, DOWN}
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}


def test_what_is_read_may_be_changed(tmp_path: Path) -> None:
    found = Statistics.open(save(tmp_path / "s"))
    first = found.for_tensor(Q)
    assert first is not None
    first.zero_()
    assert same_bytes(found.for_tensor(Q), SHARED.float())  # type: ignore[arg-type]


def test_record_tells_statistics_from_the_rest_and_verifies(
    base: Checkpoint, tmp_path: Path
) -> None:
    target = save(tmp_path / "s", base)
    assert is_statistics(target)
    assert not is_saved_vector(target)
    assert not is_statistics(base.path)
    assert verify(target).kind == "activation-statistics"
    shard = target / "statistics-00001.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1] + b"\x7f")
    with pytest.raises(VerificationError, match="statistics-00001"):
        verify(target)


def test_the_record_names_every_file_that_is_read(tmp_path: Path) -> None:
    target = save(tmp_path / "s", shard_bytes=1)
    described = Statistics.open(target).provenance()
    assert described["kind"] == "activation-statistics"
    assert {path.name for path in described["paths"]} == {
        "statistics-00001.safetensors", "statistics-00002.safetensors", "weightsurgery.json",
    }  # fmt: skip


def test_what_is_no_statistics_is_refused(base: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"no weightsurgery\.json"):
        Statistics.open(base.path)
    target = save(tmp_path / "s")
    path = target / "weightsurgery.json"
    good = path.read_text()

    def damage(**changes: object) -> None:
        path.write_text(json.dumps({**json.loads(good), **changes}))

    damage(kind="task-vector")
    with pytest.raises(VectorError, match="holds a task-vector"):
        Statistics.open(target)
    for facts in ({"input": "gone"}, {}, 3, {"input": 5}):
        damage(tensors={K: facts})
        # A record in which a tensor's facts are a number is refused as one.
        error = VerificationError if facts == 3 else VectorError
        with pytest.raises(error, match=f"'{K}'"):
            Statistics.open(target)


def test_a_matrix_that_is_not_square_is_refused(tmp_path: Path) -> None:
    with StatisticsWriter(tmp_path / "s", []) as writer:
        writer.add([Q], torch.ones(6, 5), 1)
        writer.commit(EditRecord("activation-statistics"))
    with pytest.raises(VectorError, match="no square float32 matrix"):
        Statistics.open(tmp_path / "s")


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e300])
def test_what_float32_cannot_hold_is_refused_and_leaves_nothing(tmp_path: Path, bad: float) -> None:
    def fail() -> None:
        with StatisticsWriter(tmp_path / "s", [], shard_bytes=1) as writer:
            writer.add([DOWN], ALONE, 1)
            assert left_behind(tmp_path / "s") == [".s.ws-partial"]
            writer.add([Q], SHARED.clone().fill_diagonal_(bad), 1)

    with pytest.raises(NonFiniteError, match=Q):
        fail()
    assert left_behind(tmp_path / "s") == []


def test_an_existing_output_is_replaced_only_when_asked(tmp_path: Path) -> None:
    target = save(tmp_path / "s")
    before = snapshot(target)
    with pytest.raises(OutputError, match="exists"):
        save(target)
    assert snapshot(target) == before
    with StatisticsWriter(target, [], overwrite=True) as writer:
        writer.add([Q], 2 * SHARED, 1)
        writer.commit(EditRecord("activation-statistics"))
    assert Statistics.open(target).names == (Q,)


def test_they_add_up(tmp_path: Path) -> None:
    saved = Statistics.open(save(tmp_path / "s"))
    memory = MappedStatistics({Q: gram(6, 7)})
    assert torch.equal(total_gram([saved], Q, 6), SHARED.float().double())
    found = total_gram([saved, WeightedStatistics(memory, 0.25)], Q, 6)
    torch.testing.assert_close(found, SHARED.float().double() + 0.25 * gram(6, 7))
    found.zero_()
    assert memory.grams[Q].any()  # it is memory of its own


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    saved = Statistics.open(save(tmp_path / "s"))
    check_width(saved, DOWN, 9)
    with pytest.raises(
        MismatchError, match=r"s: no activation statistics of tensor 'other'"
    ) as raised:
        total_gram([saved], "other", 6)
    assert "ws identify --mode activations" in raised.value.remedy
    assert "--exclude 'other'" in raised.value.remedy
    with pytest.raises(MismatchError, match=f"'{DOWN}' have width 9; here it is 6"):
        check_width(saved, DOWN, 6)
    with pytest.raises(NonFiniteError, match=f"'{Q}'"):
        total_gram([MappedStatistics({Q: torch.full((6, 6), float("nan"))})], Q, 6)


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf")])
def test_weights_are_positive(weight: float) -> None:
    assert WeightedStatistics(MappedStatistics({}), 0.5).label == "0.5 statistics in memory"
    with pytest.raises(EditError, match="weight"):
        WeightedStatistics(MappedStatistics({}), weight)


def test_statistics_in_memory_are_told_apart_by_their_content() -> None:
    digests = {
        str(MappedStatistics(grams).provenance()["sha256"])
        for grams in ({Q: SHARED}, {Q: 2 * SHARED}, {K: SHARED}, {Q: SHARED.float()})
    }
    assert len(digests) == 4
    same = MappedStatistics({Q: SHARED.clone()}).provenance()
    assert same == MappedStatistics({Q: SHARED}).provenance()


def test_statistics_of_another_model_are_refused(base: Checkpoint, tmp_path: Path) -> None:
    own = Statistics.open(save(tmp_path / "own", base))
    tensors = {name: torch.randn(entry.shape) for name, entry in base.entries.items()}
    other = Checkpoint.open(write_checkpoint(tmp_path / "other", tensors))
    alien = Statistics.open(save(tmp_path / "alien", other))
    assert [kin.verdict for kin in check_lineage(base, [own], False)] == ["related"]
    for each in (alien, WeightedStatistics(alien, 2.0)):
        assert kinship(base, each).verdict == "unrelated"
        with pytest.raises(LineageError, match="alien: not derived from"):
            check_lineage(base, [own, each], False)
        assert check_lineage(base, [each], True)[0].verdict == "unrelated"
    assert kinship(base, MappedStatistics({Q: SHARED})).verdict == "unknown"
    bare = Statistics.open(save(tmp_path / "bare"))
    assert kinship(base, bare).verdict == "unknown"


def test_what_is_named_is_told_apart(base: Checkpoint, tmp_path: Path) -> None:
    target = save(tmp_path / "s", base)
    changed = {name: base.tensor(name) + 0.01 for name in base.entries}
    vector = write_checkpoint(tmp_path / "tuned", changed)
    assert classify(str(target)) == "statistics"
    assert classify(str(vector)) == "vector"
    data_folder = tmp_path / "data"
    data_folder.mkdir()
    (data_folder / "state.json").write_text("{}")
    for name in ("keep.jsonl", "keep.JSON.gz", "keep.tsv", "a.txt#train", "datasets/org/name@main",
                 "org/name#forget01", f"{data_folder}#train", data_folder):  # fmt: skip
        assert classify(str(name)) == "data", name
    with pytest.raises(SourceError, match="nowhere"):
        classify(str(tmp_path / "nowhere"))
    found = open_keep(base, [str(target), f"{vector}:0.5", f"{target}:3"])
    assert [each.label for each in found.inputs] == ["s", "3 s"]
    assert [each.label for each in found.vectors] == ["0.5 tuned"]
    with pytest.raises(EditError, match="weight"):
        open_keep(base, [f"{target}:-1"])
    with pytest.raises(VectorError, match="data set"):
        open_keep(base, ["keep.jsonl"])
    with pytest.raises(VectorError, match="activation statistics, not a change") as raised:
        open_change(base, str(target))
    assert "--keep" in raised.value.remedy
