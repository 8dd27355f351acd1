"""Vectors under drawn names: wrappers, beginnings and layouts give the plain one's edit."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from tests.checkpoint.namings import LAYOUTS, Tensors, stored, truth
from tests.conftest import read_tensors, same_bytes, write_checkpoint
from weightsurgery import LowRank, Negate, apply, open_vector
from weightsurgery.checkpoint.names.matching import find_match
from weightsurgery.checkpoint.names.prefixes import WRAPPERS
from weightsurgery.checkpoint.reader import Checkpoint
from weightsurgery.checkpoint.record import EditRecord
from weightsurgery.errors import MismatchError
from weightsurgery.vectors.saved import VectorWriter

PREFIXES = ("", "model.", "transformer.", "model.language_model.", "language_model.model.")
HEADS = ("lm_head.weight", "embed_out.weight", "output.weight")

prefixes = st.sampled_from(PREFIXES)
layouts = st.sampled_from(LAYOUTS)
wrapped = st.lists(st.tuples(st.sampled_from(WRAPPERS), st.integers(0, 5)), max_size=3)


def wrap(name: str, wrappers: Any, last: int = 1) -> str:
    """A name with wrappers at some places before its last parts."""
    parts = name.split(".")
    for wrapper, place in wrappers:
        parts.insert(min(place, len(parts) - last), wrapper)
    return ".".join(parts)


def shapes(tensors: Mapping[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def negated(root: Path, vector: str) -> tuple[Tensors, list[str]]:
    """The edit, and what was said of the vector."""
    base = Checkpoint.open(root / "base")
    opened = open_vector(base, [str(root / vector)])
    apply(Negate(opened, 0.5), base, root / f"without-{vector}", allow_unrelated=True)
    return read_tensors(root / f"without-{vector}"), opened.notes()


def check_same_edit(root: Path, drawn: str, changed: bool) -> None:
    """A vector under drawn names edits as the plain one does, and it is said if names differ."""
    plain, silent = negated(root, "plain")
    before = read_tensors(root / "base")
    assert silent == []
    assert any(not torch.equal(plain[name], before[name]) for name in before)
    found, notices = negated(root, drawn)
    assert found.keys() == plain.keys() == before.keys()
    for name in plain:
        assert same_bytes(found[name], plain[name]), name
    assert bool(notices) == changed


@settings(max_examples=10)
@given(
    here=layouts, there=layouts, new=prefixes, old=prefixes, wrappers=wrapped, head=st.booleans()
)
def test_fine_tunes(here: str, there: str, new: str, old: str, wrappers: Any, head: bool) -> None:
    base, finetuned = truth(2), truth(2, seed=1)
    ends = ({HEADS[0]: torch.ones(11, 4)}, {HEADS[1]: 2 * torch.ones(11, 4)}) if head else ({}, {})
    with TemporaryDirectory() as directory:
        root = Path(directory)
        write_checkpoint(root / "base", stored(base, here, new) | ends[0], 2)
        plain = stored(finetuned, here, new) | dict(zip(ends[0], ends[1].values(), strict=True))
        write_checkpoint(root / "plain", plain)
        other = stored(finetuned, there, old, lambda name: wrap(name, wrappers)) | ends[1]
        write_checkpoint(root / "drawn", other, 2)
        changed = set(other) != set(plain) or shapes(other) != shapes(plain)
        check_same_edit(root, "drawn", changed)


MODULES = ("self_attn.q_proj", "self_attn.o_proj", "mlp.gate")


@settings(max_examples=10)
@given(
    new=prefixes,
    old=prefixes,
    nested=st.integers(0, 3),
    wrappers=wrapped,
    modules=st.sets(st.sampled_from(MODULES), min_size=1),
)
def test_adapters(new: str, old: str, nested: int, wrappers: Any, modules: set[str]) -> None:
    base = {name: t for name, t in truth(2).items() if ".experts." not in name}
    names = [n.removesuffix(".weight") for n in base if any(m in n for m in modules)]
    factors = {
        name: (torch.randn(2, base[f"{name}.weight"].shape[1]),
               torch.randn(base[f"{name}.weight"].shape[0], 2))
        for name in names
    }  # fmt: skip
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": sorted(modules)}
    with TemporaryDirectory() as directory:
        root = Path(directory)
        write_checkpoint(root / "base", stored(base, prefix=new))
        ways = {"plain": (new, 1, ()), "drawn": (old, nested, wrappers)}
        for way, (prefix, times, inserted) in ways.items():
            keys = {}
            for name, (a, b) in factors.items():
                stem = f"{'base_model.model.' * times}{prefix}{name}"
                keys[wrap(f"{stem}.lora_A.weight", inserted, 2)] = a
                keys[wrap(f"{stem}.lora_B.weight", inserted, 2)] = b
            (root / way).mkdir()
            save_file(keys, root / way / "adapter_model.safetensors")
            (root / way / "adapter_config.json").write_text(json.dumps(config))
        check_same_edit(root, "drawn", bool(wrappers) or old != new)
        edited = read_tensors(root / "without-drawn")
        moved = {n for n, t in read_tensors(root / "base").items() if not same_bytes(t, edited[n])}
        assert moved == {f"{new}{name}.weight" for name in names}
        for name, (a, b) in factors.items():
            expected = base[f"{name}.weight"] - 0.5 * 2 * b @ a
            torch.testing.assert_close(edited[f"{new}{name}.weight"], expected)


@settings(max_examples=10)
@given(new=prefixes, old=prefixes, here=layouts, there=layouts, rank=st.integers(1, 3))
def test_saved_vectors(new: str, old: str, here: str, there: str, rank: int) -> None:
    """Matrices as factors, experts as differences; of factors the layout is the base's."""
    change = truth(2, seed=1)
    low = {
        name: LowRank(torch.randn(4, rank), torch.ones(rank), torch.randn(4, rank))
        for name in change
        if "self_attn" in name
    }
    dense = {name: tensor for name, tensor in change.items() if name not in low}
    with TemporaryDirectory() as directory:
        root = Path(directory)
        write_checkpoint(root / "base", stored(truth(2), here, new))
        for way, layout, prefix in (("plain", here, new), ("drawn", there, old)):
            with VectorWriter(root / way, [root / "base"]) as writer:
                for name, tensor in stored(dense, layout, prefix).items():
                    writer.add(name, tensor)
                for name, factors in low.items():
                    writer.add(f"{prefix}{name}", factors)
                writer.commit(EditRecord("task-vector"))
        check_same_edit(root, "drawn", (old, there) != (new, here))


@given(
    text=st.sampled_from(["language.", "text_model.", "model.text."]),
    other=st.sampled_from(["audio.", "vision_model.", "model.image."]),
    there=prefixes,
    layers=st.integers(1, 3),
    wider=st.integers(0, 2),
)
def test_two_towers_alike_are_refused_and_two_unlike_told_apart(
    text: str, other: str, there: str, layers: int, wider: int
) -> None:
    size = {"layers": layers, "experts": 1, "width": 6}
    tower = {n: t for n, t in truth(hidden=4, **size).items() if n.startswith("layers.")}
    beside = {n: t for n, t in truth(hidden=4 + wider, **size).items() if n.startswith("layers.")}
    base = stored(tower, prefix=text) | stored(beside, prefix=other)
    vector = stored(tower, prefix=there)
    assert not set(base) & set(vector)
    if wider == 0:
        with pytest.raises(MismatchError, match="in two ways that are equally good") as caught:
            find_match(shapes(base), shapes(vector), "the vector")
        assert repr(text) in caught.value.what
        assert repr(other) in caught.value.what
        assert "ws inspect -v" in caught.value.remedy
        return
    match = find_match(shapes(base), shapes(vector), "the vector")
    assert set(match.places) == {name for name in base if name.startswith(text)}
    assert match.rest == ()
    assert sum(each.count for each in match.renamings) == len(vector)


@given(old=st.sampled_from(HEADS), new=st.sampled_from(HEADS), rows=st.integers(0, 1))
def test_a_head_is_known_by_being_the_only_one_of_its_shape(old: str, new: str, rows: int) -> None:
    model = stored(truth(1))
    base = model | {new: torch.zeros(11, 4)}
    vector = model | {old: torch.zeros(11 + rows, 4)}
    match = find_match(shapes(base), shapes(vector), "the vector")
    known = old == new or rows == 0
    assert (new in match.places) == known
    assert match.is_identity == (old == new or not known)
    # Two heads do not say which is which.
    two = model | {"embed_out.weight": torch.zeros(11, 4), "output.weight": torch.zeros(11, 4)}
    found = find_match(shapes(model | {"lm_head.weight": torch.zeros(11, 4)}), shapes(two), "it")
    assert "lm_head.weight" not in found.places
