"""A checkpoint under other names and in another layout is the same checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.checkpoint.namings import LAYOUTS, Tensors, stored, truth
from tests.conftest import same_bytes, write_checkpoint
from weightsurgery.checkpoint.names.matching import Match, find_match
from weightsurgery.checkpoint.names.prefixes import WRAPPERS, unwrapped
from weightsurgery.checkpoint.names.restated import Restated
from weightsurgery.checkpoint.reader import Checkpoint
from weightsurgery.errors import MismatchError

PREFIXES = ("", "model.", "transformer.", "model.language_model.", "language_model.model.")


def shapes(tensors: Mapping[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def matched(base: Tensors, other: Tensors) -> Match:
    return find_match(shapes(base), shapes(other), "the other")


def check_restated(root: Path, base: Tensors, other: Tensors, wanted: Tensors) -> Match:
    """The other, under the base's names, holds what is wanted: whole, by rows and by bytes."""
    match = matched(base, other)
    inner = Checkpoint.open(write_checkpoint(root / "other", other, 2))
    with Restated(inner, match) as found:
        assert set(match.places) == set(wanted)
        for name, tensor in wanted.items():
            assert same_bytes(found.tensor(name), tensor), name
            entry = found.entry(name)
            assert entry.shape == tuple(tensor.shape)
            middle = entry.rows // 2
            rows = tensor.reshape(entry.rows, *entry.columns)
            assert same_bytes(found.rows(name, middle, entry.rows), rows[middle:])
            raw = bytes(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)
            for start in range(0, len(raw), 7):  # across rows, blocks and elements
                stop = min(start + 7, len(raw))
                assert bytes(found.read_bytes(name, start, stop)) == raw[start:stop]
    return match


# --- theorems -----------------------------------------------------------------------------------


@given(
    there=st.sampled_from(LAYOUTS),
    here=st.sampled_from(LAYOUTS),
    old=st.sampled_from(PREFIXES),
    new=st.sampled_from(PREFIXES),
    sizes=st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(2, 5), st.integers(2, 5)),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float64]),
    wrapped=st.lists(st.tuples(st.sampled_from(WRAPPERS), st.integers(0, 3)), max_size=2),
)
def test_names_layouts_and_wrappers_together_change_nothing(
    there: str, here: str, old: str, new: str, sizes: Any, dtype: torch.dtype, wrapped: Any
) -> None:
    layers, experts, hidden, width = sizes
    if hidden == width and "stacked" in (there, here):
        width += 1  # square matrices in stacks do not say which way round they lie

    def wrap(name: str) -> str:
        parts = name.split(".")
        for wrapper, place in wrapped:
            parts.insert(min(place, len(parts) - 1), wrapper)
        return ".".join(parts)

    model = truth(layers, experts, hidden, width, dtype=dtype)
    base = stored(truth(layers, experts, hidden, width, 1, dtype), here, new)
    with TemporaryDirectory() as root:
        other = stored(model, there, old, wrap)
        match = check_restated(Path(root), base, other, stored(model, here, new))
    assert match.rest == ()
    assert bool(match.wrappers) == bool(wrapped)
    # Where names and layouts are the same, so are the bytes, and nothing is said.
    assert match.is_identity == ((there, old) == (here, new) and not wrapped)


@given(name=st.lists(st.sampled_from(["model", "layers", "0", "q_proj", *WRAPPERS]), min_size=1))
def test_wrappers_are_taken_off_wherever_they_stand(name: list[str]) -> None:
    plain, found = unwrapped(".".join([*name, "weight"]))
    assert plain.split(".") == [part for part in [*name, "weight"] if part not in WRAPPERS]
    assert list(found) == [part for part in name if part in WRAPPERS]
    assert unwrapped(plain) == (plain, ())


# --- renamings ----------------------------------------------------------------------------------


def towers(text: str, vision: str, head: str | None = "lm_head.weight") -> Tensors:
    model = {text + name: t for name, t in truth(2, 1, 4, 6).items() if ".experts." not in name}
    seen = {
        f"{vision}blocks.{n}.{name}.weight": torch.ones(shape)
        for n in range(2)
        for name, shape in (("attn.qkv", (9, 3)), ("attn.proj", (3, 3)), ("mlp.fc1", (5, 3)))
    }
    seen[f"{vision}patch_embed.proj.weight"] = torch.ones(3, 2, 2)
    return model | seen | ({} if head is None else {head: torch.ones(11, 4)})


OLD, NEW = ("model.", "visual."), ("model.language_model.", "model.visual.")
LLAVA = ("language_model.model.", "vision_tower.vision_model.")


@pytest.mark.parametrize("head", ["lm_head.weight", None])
@pytest.mark.parametrize(("here", "there"), [(OLD, NEW), (NEW, OLD), (NEW, LLAVA), (LLAVA, OLD)])
def test_each_part_of_a_model_may_be_renamed_in_its_own_way(
    here: tuple[str, str], there: tuple[str, str], head: str | None
) -> None:
    base = towers(*here, head=head)
    moved = f"language_model.{head}" if there == LLAVA and head else head
    match = matched(base, towers(*there, head=moved))
    assert set(match.places) == set(base)
    for name, place in match.places.items():
        assert place.names == (name.replace(here[0], there[0], 1).replace(here[1], there[1], 1)
                               if name != head else moved,)  # fmt: skip


def test_a_part_of_a_model_is_found_and_the_rest_is_missing() -> None:
    base, text = towers(*NEW), towers("model.", "visual.")
    text = {name: t for name, t in text.items() if not name.startswith("visual.")}
    match = matched(base, text)
    assert set(base) - set(match.places) == {n for n in base if n.startswith("model.visual.")}
    assert [(each.old, each.new) for each in match.renamings] == [("model.", NEW[0])]


def test_two_ways_that_are_equally_good_are_refused() -> None:
    one = {f"layers.{n}.mlp.up_proj.weight": torch.ones(4, 3) for n in range(3)}
    base = {f"{tower}.{name}": t for tower in ("text", "vision") for name, t in one.items()}
    with pytest.raises(MismatchError, match=r"two ways.*'text\.'.*'vision\.'"):
        matched(base, one)
    # What is in one alone decides it.
    base["text.norm.weight"] = torch.ones(4)
    match = matched(base, {**one, "norm.weight": torch.ones(4)})
    assert {place.names[0] for place in match.places.values()} == {*one, "norm.weight"}
    assert all(name.startswith("text.") for name in match.places)


def test_layers_are_never_taken_for_one_another() -> None:
    base = {f"model.layers.{n}.mlp.up_proj.weight": torch.ones(4, 3) for n in range(3)}
    match = matched(base, {"model.layers.7.mlp.up_proj.weight": torch.ones(4, 3)})
    assert not match.places
    assert not match.renamings


def test_shapes_must_agree() -> None:
    base = {f"model.layers.{n}.mlp.up_proj.weight": torch.ones(4, 3) for n in range(3)}
    match = matched(base, {n.removeprefix("model."): torch.ones(5, 3) for n in base})
    assert not match.places


def test_a_longer_vocabulary_is_no_reason_not_to_see_a_renaming() -> None:
    base, other = towers(*NEW), towers(*OLD)
    other["model.embed_tokens.weight"] = torch.ones(13, 4)
    match = matched(base, other)
    place = match.places["model.language_model.embed_tokens.weight"]
    assert place.names == ("model.embed_tokens.weight",)
    assert place.shape == (13, 4)


def test_a_tensor_that_is_there_with_and_without_a_wrapper_is_refused() -> None:
    base = {"model.up.weight": torch.ones(2, 2)}
    with pytest.raises(MismatchError, match="one tensor without the wrappers"):
        matched(base, {**base, "_orig_mod.model.up.weight": torch.ones(2, 2)})


def test_another_architecture_is_not_talked_into_this_one() -> None:
    base = stored(truth())
    other = {
        f"encoder.layer.{n}.attention.output.dense.weight": torch.ones(4, 4) for n in range(5)
    } | {"encoder.final.norm.weight": torch.ones(4)}
    assert not matched(base, other).places


# --- experts and Conv1D -------------------------------------------------------------------------


def test_interleaved_experts_are_left_alone() -> None:
    base = stored(truth(), "apart")
    other = stored(truth(), "turned")
    for layer in range(2):
        other[f"model.layers.{layer}.mlp.experts.gate_up_proj_bias"] = torch.ones(3, 12)
    match = matched(base, other)
    assert not any(".experts." in name for name in match.places)


def test_an_expert_that_is_missing_is_missing() -> None:
    base, other = stored(truth(), "apart"), stored(truth(experts=2), "fused")
    match = matched(base, other)
    lacking = {name for name in base if ".experts.2." in name or name.endswith("mlp.gate.weight")}
    wanted = {name for name in base if ".experts.2." in name}
    assert set(base) - set(match.places) in (lacking, wanted)
    assert not {n for n in matched(stored(truth(), "fused"), stored(truth(experts=2))).places
                if ".experts." in n}  # fmt: skip


def gpt2(turned: bool) -> Tensors:
    found = {"wte.weight": torch.arange(20.0).reshape(5, 4)}
    for n in range(2):
        for name, shape in (("attn.c_attn", (4, 12)), ("attn.c_proj", (4, 4)),
                            ("mlp.c_fc", (4, 8)), ("mlp.c_proj", (8, 4))):  # fmt: skip
            made = torch.arange(float(shape[0] * shape[1])).reshape(shape) + n
            found[f"h.{n}.{name}.weight"] = made.T.contiguous() if turned else made
    return found


@pytest.mark.parametrize("turned", [True, False])
def test_conv1d_is_found_whichever_way_round_it_is_stored(tmp_path: Path, turned: bool) -> None:
    base, other = gpt2(turned), gpt2(not turned)
    other = {f"transformer.{name}": t for name, t in other.items()}
    match = check_restated(tmp_path, base, other, base)
    assert match.transposed == 8  # the square ones too, which fit as they stand


# --- against transformers -----------------------------------------------------------------------


def tiny(kind: str) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    settings = {
        "hidden_size": 8, "intermediate_size": 12, "moe_intermediate_size": 6, "vocab_size": 17,
        "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 4,
        "num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2,
    }  # fmt: skip
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **settings))


@pytest.mark.parametrize("kind", ["qwen3_moe", "mixtral"])
def test_experts_are_regrouped_as_transformers_does_it(kind: str, tmp_path: Path) -> None:
    model = tiny(kind)
    model.save_pretrained(tmp_path / "apart")  # one by one, as such models are published
    fused = {name: t.detach().contiguous() for name, t in model.state_dict().items()}
    write_checkpoint(tmp_path / "fused", fused)
    for here, there in (("apart", "fused"), ("fused", "apart")):
        ours, theirs = (Checkpoint.open(tmp_path / each) for each in (here, there))
        assert set(ours.entries) != set(theirs.entries)
        match = find_match({n: e.shape for n, e in ours.entries.items()},
                           {n: e.shape for n, e in theirs.entries.items()})  # fmt: skip
        assert match.experts is not None
        assert set(match.places) == set(ours.entries)
        found = Restated(theirs, match)
        for name in ours.entries:
            assert same_bytes(found.tensor(name), ours.tensor(name)), name


@pytest.mark.parametrize(("here", "there"), [("fused", "turned"), ("turned", "apart")])
def test_never_more_than_a_matrix_is_read_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, here: str, there: str
) -> None:
    """However many experts there are: sixteen of 6 by 4 and 4 by 6 numbers."""
    model = truth(1, 16)
    inner = Checkpoint.open(write_checkpoint(tmp_path / "other", stored(model, there)))
    found = Restated(inner, matched(stored(truth(1, 16, seed=1), here), stored(model, there)))
    sizes: list[int] = []
    read = Checkpoint.read_into

    def noted(self: Checkpoint, entry: Any, offset: int, buffer: memoryview) -> None:
        if self is inner:
            sizes.append(len(buffer))
        read(self, entry, offset, buffer)

    monkeypatch.setattr(Checkpoint, "read_into", noted)
    name = "model.layers.0.mlp.experts.gate_up_proj"
    rows = [found.rows(name, start, start + 1) for start in range(found.entry(name).rows)]
    assert same_bytes(torch.cat(rows), stored(model, here)[name].reshape(len(rows), -1))
    assert max(sizes) <= 4 * 2 * 6 * 4  # one expert's gate and up
    assert sum(sizes) <= 2 * 4 * 16 * 2 * 6 * 4  # and each of them twice at most


def tiny_multimodal(kind: str) -> Any:
    from transformers import AutoConfig, AutoModelForImageTextToText

    text = {
        "hidden_size": 8, "intermediate_size": 12, "vocab_size": 17, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    vision = {"hidden_size": 8, "intermediate_size": 12, "patch_size": 4}
    if kind == "llava":
        text["model_type"] = "llama"
        vision |= {"num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 8}
        vision["model_type"] = "clip_vision_model"
    else:
        text["rope_parameters"] = {"rope_type": "default", "mrope_section": [1, 1, 0],
                                   "rope_theta": 1e4}  # fmt: skip
        vision |= {"depth": 2, "num_heads": 2, "out_hidden_size": 8}
    config = AutoConfig.for_model(kind, text_config=text, vision_config=vision)
    return AutoModelForImageTextToText.from_config(config)


@pytest.mark.parametrize("kind", ["qwen2_5_vl", "llava"])
def test_parts_are_renamed_as_transformers_does_it(kind: str, tmp_path: Path) -> None:
    model = tiny_multimodal(kind)
    model.save_pretrained(tmp_path / "disk")  # as such models are published
    memory = {name: t.detach().contiguous() for name, t in model.state_dict().items()}
    write_checkpoint(tmp_path / "memory", memory)
    for here, there in (("disk", "memory"), ("memory", "disk")):
        ours, theirs = (Checkpoint.open(tmp_path / each) for each in (here, there))
        assert len(set(ours.entries) & set(theirs.entries)) <= 1
        match = find_match({n: e.shape for n, e in ours.entries.items()},
                           {n: e.shape for n, e in theirs.entries.items()})  # fmt: skip
        assert set(match.places) == set(ours.entries)
        found = Restated(theirs, match)
        for name in ours.entries:
            assert same_bytes(found.tensor(name), ours.tensor(name)), name
