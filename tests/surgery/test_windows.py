"""Window by window gives what tensor by tensor gives, and knows what it wrote."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.conftest import read_tensors, same_bytes, snapshot, write_checkpoint
from weightsurgery import Add, Negate, Selection, Storage, apply, open_vector
from weightsurgery.algebra.elementwise import COMPILED
from weightsurgery.checkpoint import digest_cache, writer
from weightsurgery.checkpoint.digests import content_sha256
from weightsurgery.checkpoint.reader import Checkpoint
from weightsurgery.errors import CorruptCheckpointError, NonFiniteError, OutputError
from weightsurgery.surgery import windows
from weightsurgery.surgery.windows import Windows

SHAPES = {
    "model.embed_tokens.weight": (50, 33),
    "model.layers.0.mlp.up_proj.weight": (129, 65),
    "model.layers.0.mlp.experts.down_proj": (3, 40, 70),
    "model.layers.0.input_layernorm.weight": (33,),
    "model.layers.1.mlp.up_proj.weight": (129, 65),
    "model.layers.1.scale": (),
    "model.empty": (0, 7),
    "model.norm.weight": (4099,),
}


def tensors(dtype, seed, size=0.02):
    generator = torch.Generator().manual_seed(seed)
    made = {}
    for name, shape in SHAPES.items():
        made[name] = (torch.randn(shape, generator=generator) * size).to(dtype)
    made["model.layers.0.positions"] = torch.arange(777)
    made["model.layers.1.mask"] = torch.tensor([True, False, True])
    return made


def moved(base, seed, dtype=None):
    generator = torch.Generator().manual_seed(100 + seed)
    return {
        name: t
        if not t.is_floating_point()
        else (t.float() + 0.01 * torch.randn(t.shape, generator=generator)).to(dtype or t.dtype)
        for name, t in base.items()
    }


def assert_alike(one, other):
    """Equal but for the last digit of the statistics, whose sums are taken in another order."""
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_alike(one[key], other[key])
    else:
        assert one == (
            pytest.approx(other, rel=1e-5, abs=1e-8) if isinstance(one, float) else other
        )


def by_tensor(monkeypatch):
    """Switch the windows off: every tensor for itself, hashed afterwards."""
    monkeypatch.setattr(Windows, "of", classmethod(lambda cls, stream: None))


@pytest.fixture
def counted(monkeypatch):
    """How many runs went window by window."""
    runs = []
    run = Windows.run
    monkeypatch.setattr(Windows, "run", lambda self, n: (runs.append(1), run(self, n))[1])
    return runs


@pytest.mark.parametrize("size", [4096, 1 << 21])
@pytest.mark.parametrize("workers", [1, 5])
@pytest.mark.parametrize(
    ("stored", "tuned", "shards"),
    [
        (torch.bfloat16, torch.bfloat16, (3, 3)),
        (torch.bfloat16, torch.float32, (3, 1)),
        (torch.float16, torch.bfloat16, (1, 2)),
        (torch.float32, torch.float32, (2, 2)),
    ],
)
def test_the_same_bytes_and_record_as_tensor_by_tensor(
    tmp_path, monkeypatch, counted, size, workers, stored, tuned, shards
):
    monkeypatch.setattr(windows, "WINDOW", size)
    w = tensors(stored, 0)
    write_checkpoint(tmp_path / "base", w, shards[0])
    write_checkpoint(tmp_path / "a", moved(w, 1, tuned), shards[1])
    write_checkpoint(tmp_path / "b", moved(w, 2), shards[0])
    base = Checkpoint.open(tmp_path / "base")
    given = [str(tmp_path / "a") + ":0.5", str(tmp_path / "b") + ":0.3"]
    edit = Add(open_vector(base, given), 0.7)
    apply(edit, base, tmp_path / "out", workers=workers)
    assert counted == [1]
    windowed = snapshot(tmp_path / "out")
    (tmp_path / "out").rename(tmp_path / "windowed")
    by_tensor(monkeypatch)
    apply(edit, base, tmp_path / "out", workers=workers)
    assert counted == [1]
    slow = snapshot(tmp_path / "out")
    name = "weightsurgery.json"
    assert_alike(json.loads(slow.pop(name)), json.loads(windowed.pop(name)))
    assert slow == windowed
    after = read_tensors(tmp_path / "out")
    changed = [name for name in w if not same_bytes(after[name], w[name])]
    assert sorted(changed) == sorted(name for name, s in SHAPES.items() if 0 not in s)


@pytest.mark.parametrize("size", [4096, 1 << 21])
def test_a_longer_vocabulary_changes_common_rows(tmp_path, monkeypatch, counted, size):
    monkeypatch.setattr(windows, "WINDOW", size)
    w = tensors(torch.bfloat16, 0)
    longer = moved(w, 1)
    name = "model.embed_tokens.weight"
    longer[name] = torch.cat([longer[name][:40], longer[name][:5]])
    write_checkpoint(tmp_path / "base", w)
    write_checkpoint(tmp_path / "a", longer)
    write_checkpoint(tmp_path / "b", moved(w, 2))
    base = Checkpoint.open(tmp_path / "base")
    names = [str(tmp_path / "a"), str(tmp_path / "b") + ":0.5"]
    edit = Negate(open_vector(base, names, vocab="common-rows"))
    apply(edit, base, tmp_path / "out")
    assert counted == [1]
    first = read_tensors(tmp_path / "out")[name]
    by_tensor(monkeypatch)
    apply(edit, base, tmp_path / "slow")
    assert same_bytes(first, read_tensors(tmp_path / "slow")[name])
    alone = Negate(open_vector(base, names[:1], vocab="common-rows"))
    apply(alone, base, tmp_path / "one")
    assert same_bytes(read_tensors(tmp_path / "one")[name][45:], w[name][45:])
    assert not same_bytes(first[45:], w[name][45:])


def test_unselected_and_scaled_tensors(tmp_path, counted):
    w = tensors(torch.bfloat16, 0)
    write_checkpoint(tmp_path / "base", w, 2)
    write_checkpoint(tmp_path / "a", moved(w, 1), 2)
    base = Checkpoint.open(tmp_path / "base")
    edit = Negate(open_vector(base, [str(tmp_path / "a")]))
    done = apply(edit, base, tmp_path / "out", selection=Selection(include=("*layers.1*",)))
    assert counted == [1]
    after = read_tensors(tmp_path / "out")
    changed = {name for name in w if not same_bytes(after[name], w[name])}
    assert changed == {"model.layers.1.mlp.up_proj.weight", "model.layers.1.scale"}
    assert done.record.summary["edited"] == 2


@pytest.mark.parametrize("layout", ["same", "other"])
def test_digests_are_those_of_the_files(tmp_path, monkeypatch, layout):
    monkeypatch.setenv("WEIGHTSURGERY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(digest_cache, "LEAST_BYTES", 0)
    monkeypatch.setattr(digest_cache, "_SETTLED_NS", 0)
    monkeypatch.setattr(windows, "WINDOW", 4096)
    w = tensors(torch.float16, 0)
    write_checkpoint(tmp_path / "base", w, 3, config={"model_type": "none"})
    write_checkpoint(tmp_path / "a", moved(w, 1), 3 if layout == "same" else 1)
    base = Checkpoint.open(tmp_path / "base")
    edit = Negate(open_vector(base, [str(tmp_path / "a")]))
    for number in range(2):  # hashed on the way, then remembered
        out = tmp_path / f"out{number}"
        record = apply(edit, base, out).record
        for name, facts in record.files.items():
            assert facts["sha256"] == content_sha256(out / name)
        for role, folder in (("base", "base"), ("vector", "a")):
            for name, digest in record.inputs[role]["files"].items():
                assert digest == content_sha256(tmp_path / folder / name)
        assert digest_cache.cached_digest(tmp_path / "base" / "model-00001-of-00003.safetensors")


@pytest.mark.parametrize("disk", ["no direct", "direct refused"])
def test_file_systems_without_direct_writes(tmp_path, monkeypatch, disk):
    monkeypatch.setattr(windows, "WINDOW", 4096)
    w = tensors(torch.bfloat16, 0)
    write_checkpoint(tmp_path / "base", w)
    write_checkpoint(tmp_path / "a", moved(w, 1))
    base = Checkpoint.open(tmp_path / "base")
    edit = Negate(open_vector(base, [str(tmp_path / "a")]))
    apply(edit, base, tmp_path / "direct")
    if disk == "no direct":
        monkeypatch.setattr(writer, "_open_direct", lambda path: None)
    else:
        write = os.pwrite

        def refuse(handle, data, offset):
            if os.readlink(f"/proc/self/fd/{handle}") and _is_direct(handle):
                raise OSError(22, "Invalid argument")
            return write(handle, data, offset)

        monkeypatch.setattr(os, "pwrite", refuse)
    apply(edit, base, tmp_path / "plain")
    assert snapshot(tmp_path / "plain") == snapshot(tmp_path / "direct")


def _is_direct(handle):
    import fcntl

    return bool(fcntl.fcntl(handle, fcntl.F_GETFL) & os.O_DIRECT)


@pytest.mark.parametrize("where", ["base", "a"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_bad_number_stops_all_threads_and_leaves_nothing(tmp_path, monkeypatch, where, value):
    """In the first window, so that the others wait for its turn at the hash."""
    monkeypatch.setattr(windows, "WINDOW", 4096)
    w = {f"layers.{i}.w": torch.randn(64, 64) for i in range(8)}
    both = {"base": w, "a": moved(w, 1)}
    both[where]["layers.0.w"][0, 3] = value
    for name, content in both.items():
        write_checkpoint(tmp_path / name, content)
    base = Checkpoint.open(tmp_path / "base")
    edit = Negate(open_vector(base, [str(tmp_path / "a")]))
    part = "in the base" if where == "base" else "in the change"
    with pytest.raises(NonFiniteError, match=rf"layers\.0\.w.*{part}"):
        apply(edit, base, tmp_path / "out", workers=6)
    assert [p.name for p in tmp_path.iterdir() if "out" in p.name] == []


def test_overflow_and_huge_numbers(tmp_path):
    w = {"layers.0.w": torch.full((70, 70), 1e30)}
    write_checkpoint(tmp_path / "base", w)
    write_checkpoint(tmp_path / "a", {"layers.0.w": w["layers.0.w"] * 1.5})
    base = Checkpoint.open(tmp_path / "base")
    vector = open_vector(base, [str(tmp_path / "a")])
    # Squares of these overflow float32: the sums are taken again, and nothing is refused.
    done = apply(Negate(vector), base, tmp_path / "out")
    assert done.record.summary["relative_change"] == pytest.approx(0.5)
    with pytest.raises(NonFiniteError, match="overflow"):
        apply(Add(vector, 1e9), base, tmp_path / "no")


def test_a_file_cut_short_while_it_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(windows, "WINDOW", 4096)
    w = {f"layers.{i}.w": torch.randn(64, 64) for i in range(8)}
    write_checkpoint(tmp_path / "base", w)
    write_checkpoint(tmp_path / "a", moved(w, 1))
    base = Checkpoint.open(tmp_path / "base")
    edit = Negate(open_vector(base, [str(tmp_path / "a")]))
    with (tmp_path / "a" / "model.safetensors").open("r+b") as file:
        file.truncate(90_000)
    with pytest.raises(CorruptCheckpointError, match="ended while reading"):
        apply(edit, base, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_full_disk(tmp_path, monkeypatch):
    w = tensors(torch.bfloat16, 0)
    write_checkpoint(tmp_path / "base", w)
    write_checkpoint(tmp_path / "a", moved(w, 1))
    base = Checkpoint.open(tmp_path / "base")
    edit = Negate(open_vector(base, [str(tmp_path / "a")]))

    def full(handle, data, offset):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writer, "write_all", lambda h, d, o: full(h, d, o) if o else None)
    monkeypatch.setattr(windows, "WINDOW", 4096)
    with pytest.raises(OutputError, match="No space left"):
        apply(edit, base, tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir() if "out" in p.name] == []


def test_other_kinds_of_edit_go_tensor_by_tensor(tmp_path, counted):
    w = tensors(torch.bfloat16, 0)
    write_checkpoint(tmp_path / "base", w)
    write_checkpoint(tmp_path / "a", moved(w, 1))
    base = Checkpoint.open(tmp_path / "base")
    edit = Negate(open_vector(base, [str(tmp_path / "a")]))
    apply(edit, base, tmp_path / "stochastic", storage=Storage(rounding="stochastic"))
    apply(edit, base, tmp_path / "wide", storage=Storage("float32"))
    assert counted == []
    apply(edit, base, tmp_path / "plain")
    assert counted == [1]


def test_elementwise_commands_do_not_load_torch(tmp_path):
    w = tensors(torch.bfloat16, 0)
    write_checkpoint(tmp_path / "base", w)
    write_checkpoint(tmp_path / "a", moved(w, 1))
    code = (
        "import sys\nfrom weightsurgery.cli.main import main\n"
        "sys.argv = ['ws', *sys.argv[1:]]\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code\n"
        "print('torch loaded:', 'torch' in sys.modules, file=sys.stderr)\n"
        "print('numpy loaded:', 'numpy' in sys.modules, file=sys.stderr)\n"
    )

    def run(*arguments: str) -> str:
        command = [sys.executable, "-c", code, *arguments]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
        return done.stderr

    edit = ["negate", "base", "a", "-q", "-o"]
    assert "torch loaded: True" in run(*edit, "stochastic", "--rounding", "stochastic")
    plain = run(*edit, "out")
    assert "torch loaded: False" in plain
    assert "numpy loaded: False" in plain or not COMPILED
    assert "torch loaded: False" in run("diff", "base", "a")
    assert "torch loaded: False" in run("inspect", "base")
    assert (Path(tmp_path) / "out" / "weightsurgery.json").is_file()
