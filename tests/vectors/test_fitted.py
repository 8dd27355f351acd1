"""Whatever a trainer did to names and layouts, an edit is the one of the plain fine-tune."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from tests.checkpoint.namings import LAYOUTS, Tensors, stored, truth
from tests.cli.typed import Command
from tests.conftest import left_behind, read_tensors, same_bytes, write_checkpoint
from weightsurgery import Add, Negate, Project, Rank, apply, open_vector
from weightsurgery.algebra.lowrank import LowRank
from weightsurgery.checkpoint.reader import Checkpoint
from weightsurgery.checkpoint.record import EditRecord, read_record
from weightsurgery.errors import MismatchError
from weightsurgery.surgery.compare import diff
from weightsurgery.surgery.overlap import overlaps
from weightsurgery.vectors.lineage import kinship
from weightsurgery.vectors.saved import VectorWriter
from weightsurgery.vectors.sources import open_change

INNER = "model.language_model."
BEFORE = truth(seed=1)


@pytest.fixture
def ws(capsys: Any, monkeypatch: Any) -> Command:
    return Command(capsys, monkeypatch)


def finetuned(of: Tensors, seed: int = 2, size: float = 0.01) -> Tensors:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: t + size * torch.randn(t.shape, generator=generator).to(t.dtype)
        for name, t in of.items()
    }


def in_the_middle(wrapper: str) -> Callable[[str], str]:
    """Puts a wrapper before the last module of each name."""

    def wrap(name: str) -> str:
        parts = name.split(".")
        return ".".join([*parts[:-2], wrapper, *parts[-2:]])

    return wrap


WAYS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "compiled": ({}, {"wrap": lambda name: f"_orig_mod.{name}"}),
    "data parallel": ({}, {"wrap": lambda name: f"module.{name}"}),
    "fsdp": ({}, {"wrap": in_the_middle("_fsdp_wrapped_module")}),
    "wrapped base": ({"wrap": in_the_middle("_checkpoint_wrapped_module")}, {}),
    "merged by peft": ({}, {"prefix": "base_model.model.model."}),
    "deeper": ({"prefix": INNER}, {}),
    "back": ({}, {"prefix": INNER}),
    "fused": ({}, {"layout": "fused"}),
    "apart": ({"layout": "fused"}, {}),
    "turned": ({"layout": "turned"}, {"layout": "mixtral", "prefix": ""}),
}


class Written:
    """A base and a fine-tune of it, in ways of their own; and the fine-tune in the base's."""

    def __init__(self, root: Path, way: str) -> None:
        here, there = WAYS[way]
        self.root = root
        self.before = stored(BEFORE, **here)
        self.base = Checkpoint.open(write_checkpoint(root / "base", self.before, 2))
        for number in (1, 2):
            after = finetuned(BEFORE, number)
            write_checkpoint(root / f"theirs{number}", stored(after, **there), 3)
            write_checkpoint(root / f"ours{number}", stored(after, **here), 1)

    def vector(self, kind: str, number: int = 1) -> Any:
        return open_vector(self.base, [str(self.root / f"{kind}{number}")])

    def edited(self, make: Callable[[str], Any], kind: str) -> Tensors:
        apply(make(kind), self.base, self.root / f"out-{kind}")
        return read_tensors(self.root / f"out-{kind}")


EDITS: dict[str, Callable[[Written], Callable[[str], Any]]] = {
    "negate": lambda it: lambda kind: Negate(it.vector(kind), 0.7),
    "sum": lambda it: lambda kind: Add(it.vector(kind) + 0.5 * it.vector(kind, 2)),
    "project": lambda it: lambda kind: Project(it.vector(kind), (it.vector(kind, 2),), Rank(2)),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("edit", EDITS)
def test_an_edit_is_that_of_the_plain_fine_tune(tmp_path: Path, way: str, edit: str) -> None:
    if edit == "project" and way in ("apart", "turned"):
        pytest.skip("nothing discriminates stacks of matrices")
    it = Written(tmp_path, way)
    made = EDITS[edit](it)
    theirs, ours = it.edited(made, "theirs"), it.edited(made, "ours")
    assert any(not torch.equal(ours[name], t) for name, t in it.before.items())
    assert set(theirs) == set(ours)
    for name in ours:
        assert same_bytes(theirs[name], ours[name]), name
    fitted = [
        each["fitted"]
        for each in read_record(tmp_path / "out-theirs").inputs.values()
        if "fitted" in each
    ]
    assert fitted
    for each in fitted:
        assert each["names"]
        assert each["tensors"] == each["of"]
        assert each["share"] == 1


@pytest.mark.parametrize("way", ["fsdp", "deeper", "fused", "apart"])
def test_a_comparison_is_that_of_the_plain_fine_tune(tmp_path: Path, way: str) -> None:
    it = Written(tmp_path, way)
    theirs, ours = (diff(it.base, it.vector(kind)) for kind in ("theirs", "ours"))
    assert theirs.tensors == ours.tensors
    assert theirs.lineage[0].verdict == "related"
    pairs = [
        overlaps(it.base, {n: it.vector(kind, int(n)) for n in "12"}, Rank(2))[0]
        for kind in ("theirs", "ours")
    ]
    assert pairs[0] == pairs[1]


@given(
    layouts=st.tuples(st.sampled_from(LAYOUTS), st.sampled_from(LAYOUTS)),
    prefix=st.sampled_from(["", "model.", INNER]),
    count=st.integers(1, 4),
)
def test_what_is_left_out_is_counted(
    layouts: tuple[str, str], prefix: str, count: int, tmp_path_factory: Any
) -> None:
    """A fine-tune that has some tensors beside the model's."""
    root = tmp_path_factory.mktemp("left-out")
    after = stored(finetuned(BEFORE), layouts[1], prefix)
    beside = {f"value_head.{n}.weight": torch.ones(3, 5) for n in range(count)}
    base = Checkpoint.open(write_checkpoint(root / "base", stored(BEFORE, layouts[0])))
    write_checkpoint(root / "after", {**after, **beside})
    with pytest.raises(MismatchError, match=r"'value_head\.0\.weight'.*has no such tensor") as seen:
        open_change(base, str(root / "after"))
    assert "--missing base" in seen.value.remedy
    change: Any = open_change(base, str(root / "after"), missing="base")
    total, extra = sum(t.numel() for t in after.values()), 15 * count
    assert change.fitted.share == pytest.approx(total / (total + extra))
    assert change.fitted.of - change.fitted.used == count
    assert any(
        f"{change.fitted.used} of its {change.fitted.of}" in n for n in change.fitted.notes()
    )


# --- how much of a vector is used ---------------------------------------------------------------


def plain_pair(root: Path, beside: Tensors) -> Checkpoint:
    write_checkpoint(root / "after", {**stored(finetuned(BEFORE)), **beside})
    return Checkpoint.open(write_checkpoint(root / "base", stored(BEFORE)))


def test_most_of_a_fine_tune_is_never_left_out_without_a_word(tmp_path: Path, ws: Command) -> None:
    base = plain_pair(tmp_path, {"critic.up.weight": torch.ones(50, 50)})
    words = ("negate", base.path, tmp_path / "after", "-o", tmp_path / "out")
    done = ws(*words)
    assert done.returncode == 1
    assert "--missing base" not in done.stderr.splitlines()[-1]
    done = ws(*words, "--missing", "base")
    assert done.returncode == 1
    what, remedy = done.stderr.strip().splitlines()
    assert "only 28 of its 29 tensors fit the base" in what
    assert "--partial" in remedy
    assert left_behind(tmp_path / "out") == []
    out, err = ws.done(*words, "--missing", "base", "--partial")
    assert "only 28 of its 29 tensors are used" in err
    assert "used of after" in out
    record = read_record(tmp_path / "out")
    assert record.inputs["vector"]["partial"] is True
    assert record.inputs["vector"]["fitted"]["share"] < 0.5


def test_a_fine_tune_of_a_part_edits_that_part_and_says_so(tmp_path: Path, ws: Command) -> None:
    part = {name: t for name, t in stored(finetuned(BEFORE)).items() if ".layers.1." in name}
    base = Checkpoint.open(write_checkpoint(tmp_path / "base", stored(BEFORE)))
    write_checkpoint(tmp_path / "after", part)
    words = ("negate", base.path, tmp_path / "after", "-o", tmp_path / "out")
    what, remedy = ws(*words).stderr.strip().splitlines()
    assert f"{28 - len(part)} of the base's 28 tensors are missing" in what
    assert "meant to be a part" in remedy
    _, err = ws.done(*words, "--missing", "base")
    assert f"holds only {len(part)} of the base's 28 tensors" in err
    after = read_tensors(tmp_path / "out")
    moved = {name for name, t in stored(BEFORE).items() if not torch.equal(after[name], t)}
    assert moved == set(part)


def test_what_was_edited_in_part_is_made_again(
    tmp_path: Path, ws: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    plain_pair(tmp_path, {"critic.up.weight": torch.ones(50, 50)})
    with Checkpoint.open("base") as base:
        vector = open_vector(base, ["after"], missing="base", partial=True)
        apply(Negate(vector), base, "out")
    recipe, _ = ws.done("run", "--from", "out")
    assert "partial: true" in recipe
    Path("again.yaml").write_text(recipe)
    ws.done("run", "again.yaml", "-o", "again")
    first, again = (read_tensors(tmp_path / each) for each in ("out", "again"))
    assert all(same_bytes(first[name], again[name]) for name in first)


def test_what_was_done_is_said_once_on_every_road(tmp_path: Path, ws: Command) -> None:
    it = Written(tmp_path, "deeper")
    theirs = tmp_path / "theirs1"
    word = f"theirs1: 'model.' in its names was read as '{INNER}'"
    for words in (
        ("negate", it.base.path, theirs, "-o", tmp_path / "a"),
        ("negate", it.base.path, theirs, "-o", tmp_path / "b", "--dry-run"),
        (
            "project",
            it.base.path,
            "--forget",
            theirs,
            "--keep",
            tmp_path / "ours2",
            "-o",
            tmp_path / "c",
        ),
        ("diff", it.base.path, theirs),
        ("subspace", it.base.path, theirs, "--rank", "2", "-o", tmp_path / "d"),
        ("overlap", it.base.path, theirs, tmp_path / "theirs2"),
    ):
        _, err = ws.done(*words)
        assert err.count(word) == 1, words
    assert word not in ws.done("diff", it.base.path, theirs, "-q")[1]


# --- saved vectors ------------------------------------------------------------------------------


def test_a_saved_vector_fits_a_renamed_base(tmp_path: Path) -> None:
    base = Checkpoint.open(write_checkpoint(tmp_path / "base", stored(BEFORE)))
    write_checkpoint(tmp_path / "after", stored(finetuned(BEFORE)))
    vector = open_vector(base, [str(tmp_path / "after")])
    for rule in (None, Rank(2)):
        diff(base, vector, rule=rule, save_to=tmp_path / f"saved-{rule}")
        deeper = write_checkpoint(tmp_path / f"deeper-{rule}", stored(BEFORE, prefix=INNER))
        moved = Checkpoint.open(deeper)
        change = open_change(moved, str(tmp_path / f"saved-{rule}"))
        assert kinship(moved, change).verdict == "related"
        for where, one in ((base, "plain"), (moved, "moved")):
            saved = open_vector(where, [str(tmp_path / f"saved-{rule}")])
            apply(Negate(saved), where, tmp_path / f"{one}-{rule}")
        plain, after = (read_tensors(tmp_path / f"{one}-{rule}") for one in ("plain", "moved"))
        assert len(plain) == len(after)
        for name, tensor in plain.items():
            assert same_bytes(after[name.replace("model.", INNER, 1)], tensor)


def test_a_saved_dense_vector_follows_its_experts(tmp_path: Path) -> None:
    base = Checkpoint.open(write_checkpoint(tmp_path / "base", stored(BEFORE)))
    write_checkpoint(tmp_path / "after", stored(finetuned(BEFORE)))
    diff(base, open_vector(base, [str(tmp_path / "after")]), save_to=tmp_path / "saved")
    fused = Checkpoint.open(write_checkpoint(tmp_path / "fused", stored(BEFORE, "fused")))
    apply(Add(open_vector(fused, [str(tmp_path / "saved")])), fused, tmp_path / "out")
    for name, wanted in stored(finetuned(BEFORE), "fused").items():
        torch.testing.assert_close(read_tensors(tmp_path / "out")[name], wanted)


def test_the_share_of_a_saved_vector_is_of_its_squared_norm(tmp_path: Path) -> None:
    """Energies 9 and 16 and 25 · 2: dense, dense, and in factors."""
    with VectorWriter(tmp_path / "v", []) as writer:
        writer.add("a", torch.full((1, 1), 3.0))
        writer.add("b", torch.full((4, 1), 2.0))
        writer.add("c", LowRank(torch.eye(3)[:, :2], torch.tensor([5.0, 5.0]), torch.eye(2)))
        writer.commit(EditRecord("task-vector"))
    shapes = {"a": (1, 1), "b": (4, 1), "c": (3, 2)}
    for names, share in (("bc", 66 / 75), ("ab", 25 / 75), ("c", 50 / 75)):
        tensors = {name: torch.ones(shapes[name]) for name in names}
        base = Checkpoint.open(write_checkpoint(tmp_path / names, tensors))
        with pytest.raises(MismatchError, match=r"which .* does not have") as caught:
            open_change(base, str(tmp_path / "v"))
        assert ("--missing base" in caught.value.remedy) == (share >= 0.5)
        if share < 0.5:
            with pytest.raises(MismatchError, match=r"2 of its 3 tensors.*33% of its squared"):
                open_change(base, str(tmp_path / "v"), missing="base")
        found: Any = open_change(base, str(tmp_path / "v"), missing="base", partial=True)
        assert found.fitted.share == pytest.approx(share)


# --- adapters -----------------------------------------------------------------------------------

MODULES = ("self_attn.q_proj", "self_attn.o_proj")


def adapter(root: Path, name: Callable[[str], str], prefix: str = "model.") -> Path:
    """Factors for the attention of both layers, under names made of peft's."""
    generator = torch.Generator().manual_seed(5)
    tensors = {}
    for layer in range(2):
        for module in MODULES:
            for half, shape in (("A", (2, 4)), ("B", (4, 2))):
                key = f"base_model.model.{prefix}layers.{layer}.{module}.lora_{half}.weight"
                tensors[name(key)] = torch.randn(shape, generator=generator)
    root.mkdir()
    save_file(tensors, root / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": list(MODULES)}
    (root / "adapter_config.json").write_text(json.dumps(config))
    return root


NAMES: dict[str, Callable[[str], str]] = {
    "compiled": lambda key: f"_orig_mod.{key}",
    "compiled inside": lambda key: key.replace(".model.model.", ".model._orig_mod.model."),
    "fsdp": lambda key: key.replace(".self_attn.", "._fsdp_wrapped_module.self_attn."),
    "checkpointed": lambda key: key.replace(
        ".self_attn.", "._checkpoint_wrapped_module.self_attn."
    ),
    "twice": lambda key: f"base_model.model.{key}",
    "deeper": lambda key: key.replace(".model.model.", f".model.{INNER}"),
    "bare": lambda key: key.replace(".model.model.", ".model."),
}


@pytest.mark.parametrize("way", NAMES)
def test_an_adapter_under_other_names_is_the_same_adapter(tmp_path: Path, way: str) -> None:
    base = Checkpoint.open(write_checkpoint(tmp_path / "base", stored(BEFORE)))
    results = []
    for one, name in (("plain", str), (way, NAMES[way])):
        made = adapter(tmp_path / f"adapter-{one}", name)
        vector = open_vector(base, [str(made)])
        assert bool(vector.notes()) == (one not in ("plain", "twice"))
        apply(Add(vector), base, tmp_path / f"out-{one}")
        results.append(read_tensors(tmp_path / f"out-{one}"))
    assert all(same_bytes(results[0][name], results[1][name]) for name in results[0])
    assert sum(not torch.equal(results[1][n], t) for n, t in stored(BEFORE).items()) == 4


def test_an_adapter_that_fits_two_towers_is_refused(tmp_path: Path) -> None:
    twice = stored(BEFORE, prefix="text.") | stored(BEFORE, prefix="vision.")
    base = Checkpoint.open(write_checkpoint(tmp_path / "base", twice))
    made = adapter(tmp_path / "adapter", str)
    with pytest.raises(MismatchError, match=r"two ways.*'text\.'.*'vision\.'"):
        open_change(base, str(made))
