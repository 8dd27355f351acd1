"""An edit of low rank is also an adapter: base and adapter have the edited model's logits."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tests.conftest import Trio, exact, left_behind, read_tensors, snapshot, write_checkpoint
from tests.vectors.test_adapters import gpt2
from tests.vectors.test_export import (
    adapted,
    factors,
    finetuned,
    is_layer,
    loaded,
    logits,
    low_rank,
    made_of,
    saved,
)
from weightsurgery import (
    Add,
    Checkpoint,
    Learn,
    Negate,
    Project,
    Selection,
    Storage,
    TaskVector,
    open_vector,
    verify,
)
from weightsurgery.algebra.discriminate import SIDES
from weightsurgery.algebra.lowrank import Energy, LowRank, Rank
from weightsurgery.errors import (
    EditError,
    LineageError,
    MismatchError,
    NonFiniteError,
    OutputError,
    SelectionError,
    UnsupportedCheckpointError,
    VectorError,
)
from weightsurgery.surgery.apply import AdapterStorage, apply, plan_edit
from weightsurgery.surgery.edit import Edit
from weightsurgery.surgery.edits import EDITS
from weightsurgery.vectors import lora_files
from weightsurgery.vectors.deltas import SumDelta
from weightsurgery.vectors.statistics import MappedStatistics
from weightsurgery.vectors.task_vector import MappedChange

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning:transformers.*"),
]

EXACT = AdapterStorage("float32")


def edit_of(name: str, base: Checkpoint, forget: TaskVector, keep: TaskVector) -> Edit:
    """Each edit, strong enough to move a tiny model's logits."""
    if name in ("negate", "add"):
        vector = low_rank(base, is_layer, lambda tensor: 3 + ("down" in tensor))
        return EDITS[name](vector, 0.7)
    return EDITS[name](forget, (keep,), Rank(4), scale=12.0)


@pytest.fixture(scope="module")
def opened(llama: Trio) -> tuple[Checkpoint, TaskVector, TaskVector]:
    base = Checkpoint.open(llama.base)
    return base, open_vector(base, [str(llama.forget)]), open_vector(base, [str(llama.keep)])


@pytest.fixture
def project(opened: Any) -> Project:
    _, forget, keep = opened
    return Project(forget, (keep,), Rank(4), scale=12.0)


def weights_of(path: Path, name: str) -> torch.Tensor:
    """What peft adds to a linear layer's weight: ``B A``, in float64."""
    halves = load_file(path / "adapter_model.safetensors")
    stem = f"base_model.model.{name.removesuffix('weight')}lora_"
    return halves[f"{stem}B.weight"].double() @ halves[f"{stem}A.weight"].double()


def check_logits(edit: Edit, base: Checkpoint, root: Path) -> Any:
    """Base and adapter give the logits of the edited checkpoint, merged and unmerged."""
    edited = apply(edit, base, root / "edited", storage=Storage("float32"))
    done = apply(edit, base, root / "adapter", storage=EXACT)
    before, wanted = logits(loaded(base.path)), logits(loaded(root / "edited"))
    assert (wanted - before).abs().max() > 0.1
    model = PeftModel.from_pretrained(loaded(base.path), root / "adapter")
    assert adapted(model) == {name.removesuffix(".weight") for name in edited.record.tensors}
    # Float32 in another order: a few of its eps at the size of the logits.
    tolerance = 2e-6 * max(1.0, float(wanted.abs().max()))
    torch.testing.assert_close(logits(model), wanted, rtol=0, atol=tolerance)
    with model.disable_adapter():
        assert torch.equal(logits(model), before)
    torch.testing.assert_close(logits(model.merge_and_unload()), wanted, rtol=0, atol=tolerance)
    assert verify(root / "adapter").to_json() == done.record.to_json()
    assert set(done.record.tensors) == set(edited.record.tensors)
    return done.record


@pytest.mark.parametrize("name", EDITS)
def test_base_and_adapter_have_the_logits_of_the_edited_llama(
    name: str, opened: Any, tmp_path: Path
) -> None:
    base, forget, keep = opened
    record = check_logits(edit_of(name, base, forget, keep), base, tmp_path)
    assert record.kind == "adapter"
    assert record.parameters["edit"] == name


@pytest.mark.parametrize("name", EDITS)
def test_base_and_adapter_have_the_logits_of_the_edited_gpt2(name: str, tmp_path: Path) -> None:
    """Conv1D stores its weights (in, out)."""
    base = saved(gpt2(), tmp_path)
    forget = open_vector(base, [str(finetuned(base, tmp_path / "f", norms=True))])
    keep = low_rank(base, is_layer, lambda tensor: 2)
    check_logits(edit_of(name, base, forget, keep), base, tmp_path)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("basis", ["joint", "sum"])
def test_every_side_gives_the_edited_weights(
    side: str, basis: str, opened: Any, tmp_path: Path
) -> None:
    """By scales of the selection too: W' of the checkpoint is W + B A."""
    base, forget, keep = opened
    other = low_rank(base, is_layer, lambda tensor: 3)
    edit = Learn(forget, (keep, other), Rank(4), Rank(3), side, basis, scale=-2.0)
    some = Selection("all-linear", exclude=("*v_proj*",), scales=(("1", 0.5), ("*q_proj*", -3.0)))
    apply(edit, base, tmp_path / "edited", selection=some, storage=Storage("float32"))
    plan = plan_edit(edit, base, tmp_path / "adapter", some, EXACT)
    record = apply(edit, base, tmp_path / "adapter", selection=some, storage=EXACT).record
    before, after = read_tensors(base.path), read_tensors(tmp_path / "edited")
    for name, tensor in after.items():
        change = exact(tensor) - exact(before[name])
        if name not in record.tensors:
            assert not change.any()
            continue
        assert abs(change).max() > 1e-3
        assert abs(change - exact(weights_of(tmp_path / "adapter", name))).max() < 1e-7
        assert record.tensors[name]["rank"] <= plan.edited[name]
    assert len(record.tensors) == 12
    size = (tmp_path / "adapter/adapter_model.safetensors").stat().st_size
    assert size <= plan.write_bytes
    assert (set(plan.edited.values()) == {4}) == (side not in ("shared", "frobenius"))


@pytest.mark.parametrize("name", EDITS)
def test_bfloat16_rounds_no_worse_than_its_dtype(name: str, opened: Any, tmp_path: Path) -> None:
    """Of a bfloat16 model edited as a checkpoint and as an adapter in bfloat16."""
    base, forget, keep = opened
    edit = edit_of(name, base, forget, keep)
    apply(edit, base, tmp_path / "edited")
    record = apply(edit, base, tmp_path / "adapter", storage=AdapterStorage()).record
    assert record.parameters["dtype"] == "bfloat16"
    unit = 2.0**-8
    assert 0 < record.summary["rounding"] < unit
    places = (base.path, base.path, tmp_path / "edited")
    models = [AutoModelForCausalLM.from_pretrained(path) for path in places]
    assert {model.dtype for model in models} == {torch.bfloat16}
    before, wanted = logits(models[0]).float(), logits(models[2]).float()
    model = PeftModel.from_pretrained(models[1], tmp_path / "adapter")
    unmerged = logits(model).float()
    merged = logits(model.merge_and_unload()).float()
    # Fourteen matrices and their activations, each rounded by itself: √28 units of the logits.
    error = 28**0.5 * unit * wanted.norm()
    assert (wanted - before).norm() > 3 * error
    assert (unmerged - wanted).norm() < error
    assert (merged - wanted).norm() < error


# --- rank ---------------------------------------------------------------------------------------


def spanned(u: torch.Tensor, v: torch.Tensor) -> LowRank:
    return LowRank(u, torch.linspace(0.6, 0.2, u.shape[1]), v)


def test_the_rank_is_what_discrimination_leaves(opened: Any, tmp_path: Path) -> None:
    """A task of 8 factors, of which 5 take inputs to keep: 3 are left, and no others stored."""
    base, _, _ = opened
    name = "model.layers.1.mlp.up_proj.weight"
    other = "model.layers.0.mlp.up_proj.weight"
    both = factors((64, 32), 8, 1)
    keep = spanned(factors((64, 32), 5, 2).U, both.V[:, :5])
    task = TaskVector.of(MappedChange({name: both, other: both}, "task"))
    kept = TaskVector.of(MappedChange({name: keep, other: both}, "kept"))
    edit = Project(task, (kept,), Rank(64))
    record = apply(edit, base, tmp_path / "adapter", storage=EXACT).record
    facts = record.tensors[name]
    assert facts["rank"] == 3
    halves = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert {tuple(half.shape) for half in halves.values()} == {(3, 32), (64, 3)}
    config = json.loads((tmp_path / "adapter/adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (3, 3)
    # The last three factors are untouched, and subtracted.
    wanted = -exact(both.U[:, 5:] * both.S[5:]) @ exact(both.V[:, 5:]).T
    assert abs(exact(weights_of(tmp_path / "adapter", name)) - wanted).max() < 1e-6
    # What the other matrix was taught is to be kept whole: nothing is left of the task there.
    assert record.summary["unchanged"] == [other]
    assert facts["kept_energy"] == pytest.approx(1)
    share = float(both.S[5:].square().sum() / both.S.square().sum())
    assert facts["survived"] == pytest.approx(share, rel=1e-5)
    assert facts["keep_ranks"] == [5]
    assert facts["norm"] == pytest.approx(float(both.S[5:].norm()), rel=1e-6)
    assert (facts["lost"], facts["residual"]) == (0, 0)


def test_what_little_is_left_is_told_from_rounding(opened: Any, tmp_path: Path) -> None:
    """One factor, a ten thousandth of those that are taken away, whose rounding is as large."""
    base, _, _ = opened
    name = "model.layers.1.mlp.up_proj.weight"
    parts = factors((64, 32), 6, 1)
    task = LowRank(parts.U, torch.tensor([1.0, 0.9, 0.8, 0.7, 0.6, 1e-4]), parts.V)
    keep = spanned(factors((64, 32), 5, 2).U, parts.V[:, :5])
    edit = Project(
        TaskVector.of(MappedChange({name: task})), (TaskVector.of(MappedChange({name: keep})),)
    )
    prepared = edit.prepare(base, name, "cpu")
    assert prepared is not None
    assert prepared.facts["rank"] > 1  # rounding is among the factors of a checkpoint's change
    record = apply(edit, base, tmp_path / "adapter", storage=EXACT).record
    assert record.tensors[name]["rank"] == 1
    assert record.tensors[name]["norm"] == pytest.approx(1e-4, rel=1e-2)


def test_nothing_left_is_no_adapter(opened: Any, tmp_path: Path) -> None:
    base, forget, _ = opened
    with pytest.raises(EditError, match="none of the selected") as caught:
        apply(Project(forget, (forget,), Rank(4)), base, tmp_path / "out", storage=EXACT)
    assert "keep less" in caught.value.remedy
    with pytest.raises(EditError, match="none of the selected"):
        apply(Project(forget, (forget,), Rank(4), scale=0.0), base, tmp_path / "out",
                 storage=EXACT)  # fmt: skip
    assert left_behind(tmp_path / "out") == []


def test_each_matrix_is_decomposed_once(
    opened: Any, project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, _, _ = opened
    seen: list[str] = []
    whole = SumDelta._into

    def counted(self: SumDelta, *arguments: Any) -> Any:
        seen.append(f"{self.name} of {self.label}")
        return whole(self, *arguments)

    monkeypatch.setattr(SumDelta, "_into", counted)
    plan_edit(project, base, tmp_path / "adapter", Selection("all-linear"), EXACT)
    assert seen == []  # a plan works nothing out
    apply(project, base, tmp_path / "adapter", storage=EXACT)
    assert len(seen) == len(set(seen)) == 28  # task and keep, of 14 matrices


# --- dense changes ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Negate, Add])
def test_a_dense_vector_is_refused_or_truncated(
    kind: Callable[..., Edit], opened: Any, tmp_path: Path
) -> None:
    base, forget, _ = opened
    edit = kind(forget, 3.0)
    some = Selection("all-linear")
    with pytest.raises(VectorError, match="13 more: a dense change") as caught:
        apply(edit, base, tmp_path / "out", selection=some, storage=EXACT)
    assert "--rank K" in caught.value.remedy
    with pytest.raises(VectorError, match="a dense change"):
        plan_edit(edit, base, tmp_path / "out", some, EXACT)
    assert left_behind(tmp_path / "out") == []
    for rule in (Rank(3), Energy(0.8)):
        out = tmp_path / str(rule)
        done = apply(edit, base, out, selection=some, storage=AdapterStorage("float32", rule))
        before, after = (
            {name: exact(each) for name, each in read_tensors(place).items()}
            for place in (base.path, forget.terms[0][1].finetuned.path)
        )
        lost = whole = 0.0
        for name in done.record.tensors:
            meant = edit.sign * 3 * (after[name] - before[name])
            lost += ((meant - exact(weights_of(out, name))) ** 2).sum()
            whole += (meant**2).sum()
        assert done.record.summary["lost"] == pytest.approx(lost / whole, rel=1e-4)
        assert lost / whole > 0.1
        (said,) = (each for each in done.notices if each.startswith("Truncation"))
        assert f"lost {lost / whole:.2%} of the change's energy" in said


def test_what_no_lora_holds_is_refused_or_left_out(opened: Any, tmp_path: Path) -> None:
    base, forget, keep = opened
    storage = AdapterStorage("float32", Rank(2))
    with pytest.raises(VectorError, match=r"norm\.weight' and \d more: no matrix"):
        apply(Negate(forget), base, tmp_path / "out", storage=storage)
    assert left_behind(tmp_path / "out") == []
    some = Selection("all-linear")
    record = apply(Negate(forget), base, tmp_path / "out", selection=some, storage=storage).record
    others = {name for name in base.entries if "proj" not in name}
    assert set(record.summary["left_out"]) == others
    # Discrimination is for matrices: norms stay as they are whatever is selected.
    edit = Project(forget, (keep,), Rank(2))
    every = apply(edit, base, tmp_path / "all", selection=Selection(), storage=EXACT).record
    assert set(every.tensors) == {name for name in base.entries if "norm" not in name}
    assert set(every.summary["left_out"]) == {name for name in base.entries if "norm" in name}


def test_tied_and_mixed_models(tmp_path: Path) -> None:
    """Tied embeddings and experts are refused by name, and left out as the remedy says."""
    expert = "model.layers.0.block_sparse_moe.experts.1.w1.weight"
    query = "model.layers.0.self_attn.q_proj.weight"
    embedding = "model.embed_tokens.weight"
    base = made_of(tmp_path, {query: (8, 8), expert: (8, 8), embedding: (12, 8)})
    deltas = {
        n: factors(base.entry(n).shape, 2, s) for s, n in enumerate((query, expert, embedding))
    }
    task = TaskVector.of(MappedChange(deltas))
    keep = TaskVector.of(MappedChange({query: factors((8, 8), 2, 7)}))
    for edit in (Negate(task), Project(task, (keep,), Rank(2))):
        with pytest.raises(VectorError) as caught:
            apply(edit, base, tmp_path / "out", selection=Selection(), storage=EXACT)
        assert f"{embedding!r}: embedding and head in one" in caught.value.what
        assert f"{expert!r}: of a mixture of experts" in caught.value.what
        assert "without --as adapter" in caught.value.remedy
        some = Selection("attention")
        out = tmp_path / edit.name
        record = apply(edit, base, out, selection=some, storage=EXACT).record
        assert set(record.summary["left_out"]) == {expert, embedding}


def test_stacks_of_matrices_are_refused(tmp_path: Path) -> None:
    base = made_of(tmp_path, {"model.layers.0.mlp.experts.up_proj": (4, 8, 8)})
    task = TaskVector.of(MappedChange({"model.layers.0.mlp.experts.up_proj": torch.ones(4, 8, 8)}))
    for edit in (Project(task, (task,)), Negate(task)):
        with pytest.raises(VectorError, match="mixture of experts"):
            apply(edit, base, tmp_path / "out", storage=EXACT)


# --- the record ---------------------------------------------------------------------------------


def test_the_record_says_how_it_was_made(
    llama: Trio, opened: Any, project: Project, tmp_path: Path
) -> None:
    base, _, _ = opened
    edited = apply(project, base, tmp_path / "edited").record
    record = apply(
        project, base, tmp_path / "adapter", storage=AdapterStorage(), command=["ws", "project"]
    ).record
    assert record.inputs == edited.inputs  # role by role, with every file's SHA-256
    assert {*record.inputs} == {"base", "forget", "keep1"}
    assert any(name.endswith(".safetensors") for name in record.inputs["base"]["files"])
    assert record.lineage == edited.lineage
    assert [kin["verdict"] for kin in record.lineage] == ["related", "related"]
    assert record.command == ["ws", "project"]
    assert record.parameters.items() >= dict(project.parameters()).items()
    assert record.parameters["selection"] == edited.parameters["selection"]
    assert (record.parameters["to"], record.parameters["rule"]) == ("peft", "all factors")
    for name, facts in record.tensors.items():
        for key in ("kept_energy", "svd_residual", "survived", "keep_ranks"):
            assert facts[key] == edited.tensors[name][key]
        assert facts.keys() >= {"rank", "norm", "kept", "lost", "rounding", "residual"}
        assert facts["rank"] == 4
    assert verify(tmp_path / "adapter").to_json() == record.to_json()
    assert set(record.files) == {"adapter_config.json", "adapter_model.safetensors"}
    assert record.parent is None


def test_an_adapter_of_an_edit_names_its_parent(opened: Any, tmp_path: Path) -> None:
    base, _, _ = opened
    vector = low_rank(base, is_layer, lambda tensor: 2)
    first = apply(Add(vector), base, tmp_path / "first").record
    second = Checkpoint.open(tmp_path / "first")
    record = apply(Negate(vector), second, tmp_path / "adapter", storage=EXACT).record
    assert first.kind == "checkpoint"
    assert record.parent is not None
    assert record.parent["name"] == str(tmp_path / "first")


@pytest.mark.parametrize("workers", [1, 3])
def test_the_same_edit_writes_the_same_bytes(
    opened: Any, project: Project, workers: int, tmp_path: Path
) -> None:
    base, _, _ = opened
    for out in ("first", "second"):
        count = workers if out == "second" else None
        apply(project, base, tmp_path / out, storage=AdapterStorage(), workers=count)
    assert snapshot(tmp_path / "first") == snapshot(tmp_path / "second")
    apply(project, base, tmp_path / "other", storage=AdapterStorage("float16"))
    assert snapshot(tmp_path / "first") != snapshot(tmp_path / "other")


# --- plans --------------------------------------------------------------------------------------


def test_a_plan_of_factors_knows_the_size(opened: Any, tmp_path: Path) -> None:
    base, _, _ = opened
    vector = low_rank(base, is_layer, lambda tensor: 3) + low_rank(
        base, lambda tensor: "k_proj" in tensor, lambda tensor: 2
    )
    for storage in (AdapterStorage(), EXACT, AdapterStorage(rule=Rank(2))):
        plan = plan_edit(Add(vector), base, tmp_path / "out", Selection(), storage, overwrite=True)
        record = apply(Add(vector), base, tmp_path / "out", storage=storage, overwrite=True).record
        size = (tmp_path / "out/adapter_model.safetensors").stat().st_size
        assert (plan.write_bytes, plan.exact) == (size, True)
        assert plan.edited == {name: facts["rank"] for name, facts in record.tensors.items()}
        assert plan.memory_bytes > 0
        (tmp_path / "out/weightsurgery.json").rename(tmp_path / "kept.json")
        with pytest.raises(OutputError, match="not written by ws"):
            plan_edit(Add(vector), base, tmp_path / "out", Selection(), storage, overwrite=True)
        (tmp_path / "kept.json").rename(tmp_path / "out/weightsurgery.json")


def test_a_plan_of_a_dense_change_bounds_the_size(opened: Any, tmp_path: Path) -> None:
    base, forget, _ = opened
    some, before = Selection("all-linear"), snapshot(tmp_path)
    for rule in (Rank(3), Energy(0.9)):
        plan = plan_edit(Negate(forget), base, tmp_path / "out", some, AdapterStorage(rule=rule))
        assert snapshot(tmp_path) == before
        storage = AdapterStorage(rule=rule)
        out = tmp_path / str(rule)
        apply(Negate(forget), base, out, selection=some, storage=storage)
        size = (out / "adapter_model.safetensors").stat().st_size
        assert not plan.exact
        assert size == plan.write_bytes if rule == Rank(3) else size < plan.write_bytes
        stored = sum(base.entry(name).nbytes for name in plan.edited)
        assert plan.read_bytes == 2 * stored  # the base's and the fine-tune's
        before = snapshot(tmp_path)


# --- hostile input ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("storage", "error", "said"),
    [
        (lambda: AdapterStorage("float64"), EditError, "float64"),
        (lambda: AdapterStorage("int8"), EditError, "int8"),
        (lambda: AdapterStorage(rule=Rank(2)), EditError, "a rank of the adapter beside"),
    ],
)
def test_storage_without_sense_is_refused(
    storage: Any, error: type[Exception], said: str, opened: Any, project: Project, tmp_path: Path
) -> None:
    base, _, _ = opened
    with pytest.raises(error, match=said):
        apply(project, base, tmp_path / "out", storage=storage())
    assert left_behind(tmp_path / "out") == []


def test_an_error_or_an_interrupt_leaves_nothing(
    opened: Any, project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, forget, keep = opened
    out = tmp_path / "out"
    seen: list[int] = []

    def stop(stage: str, done: int, total: int) -> None:
        seen.append(done)
        if len(seen) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        apply(project, base, out, storage=EXACT, progress=stop)
    assert len(seen) == 3
    assert left_behind(out) == []
    deltas = {"model.layers.1.mlp.up_proj.weight": factors((64, 32), 2, 0)}
    deltas["model.layers.1.mlp.up_proj.weight"].S.fill_(float("nan"))
    with pytest.raises(NonFiniteError, match=r"layers\.1\.mlp\.up_proj"):
        apply(Add(TaskVector.of(MappedChange(deltas))), base, out, storage=EXACT)
    edit = Project(forget, (keep,), Rank(4), scale=1e20)
    with pytest.raises(NonFiniteError, match="too large for float16"):
        apply(edit, base, out, storage=AdapterStorage("float16"))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(lora_files, "encode_header", full)
    with pytest.raises(OutputError, match="No space left"):
        apply(project, base, out, storage=EXACT)
    assert left_behind(out) == []
    monkeypatch.undo()
    apply(project, base, out, storage=EXACT)
    assert left_behind(out) == ["out"]


def test_what_stands_there_stays(opened: Any, project: Project, tmp_path: Path) -> None:
    base, _, _ = opened
    out = tmp_path / "out"
    apply(project, base, out, storage=EXACT)
    before = snapshot(out)
    with pytest.raises(OutputError, match="exists"):
        apply(project, base, out, storage=AdapterStorage())
    with pytest.raises(OutputError, match="exists"):
        plan_edit(project, base, out, Selection("all-linear"), EXACT)
    assert snapshot(out) == before
    # A checkpoint may give way to an adapter, and the other way round.
    apply(project, base, out, overwrite=True)
    assert (out / "config.json").is_file()
    apply(project, base, out, storage=EXACT, overwrite=True)
    assert snapshot(out) == before
    with pytest.raises(OutputError, match="input"):
        apply(project, base, base.path, storage=EXACT, overwrite=True)
    with pytest.raises(SelectionError, match="nothing"):
        apply(
            project, base, tmp_path / "x", storage=EXACT, selection=Selection(include=("nothing",))
        )


def test_strangers_and_quantised_bases_are_refused(
    opened: Any, project: Project, llama: Trio, tmp_path: Path
) -> None:
    base, _, _ = opened
    tensors = {name: torch.randn(t.shape) for name, t in read_tensors(llama.base).items()}
    write_checkpoint(tmp_path / "stranger", tensors, config=base.config)
    stranger = Checkpoint.open(tmp_path / "stranger")
    task = open_vector(stranger, [str(llama.forget)])
    edit = Project(task, (low_rank(stranger, is_layer, lambda tensor: 2),), Rank(2))
    with pytest.raises(LineageError, match="not derived"):
        apply(edit, stranger, tmp_path / "out", storage=EXACT)
    assert left_behind(tmp_path / "out") == []
    done = apply(edit, stranger, tmp_path / "out", storage=EXACT, allow_unrelated=True)
    assert any("lineage unrelated" in said for said in done.notices)
    config = {**base.config, "quantization_config": {"quant_method": "gptq"}}
    write_checkpoint(tmp_path / "quantised", tensors, config=config)
    with pytest.raises(UnsupportedCheckpointError, match="quantised"):
        apply(edit, Checkpoint.open(tmp_path / "quantised"), tmp_path / "no", storage=EXACT)


def test_unkept_matrices_are_told(opened: Any, tmp_path: Path) -> None:
    base, forget, _ = opened
    keep = low_rank(base, lambda tensor: "q_proj" in tensor, lambda tensor: 2)
    done = apply(Project(forget, (keep,), Rank(2)), base, tmp_path / "out", storage=EXACT)
    assert any("12 edited tensors are changed by no task to keep" in each for each in done.notices)


def test_statistics_hold_an_adapter_back_too(opened: Any, tmp_path: Path) -> None:
    """Inputs to keep, as activation statistics: the same change as the checkpoint's."""
    base, forget, _ = opened
    name = "model.layers.0.mlp.down_proj.weight"
    columns = torch.randn(5, 64, generator=torch.Generator().manual_seed(3))
    kept = MappedStatistics({name: columns.double().T @ columns.double()})
    some = Selection("all-linear", include=(name,))
    edit = Project(forget, (), Rank(4), keep_inputs=(kept,), epsilon=0.0)
    apply(edit, base, tmp_path / "edited", selection=some, storage=Storage("float32"))
    record = apply(edit, base, tmp_path / "out", selection=some, storage=EXACT).record
    change = exact(read_tensors(tmp_path / "edited")[name]) - exact(read_tensors(base.path)[name])
    assert abs(change).max() > 1e-3
    made = exact(weights_of(tmp_path / "out", name))
    assert abs(change - made).max() < 1e-7
    assert abs(made @ exact(columns).T).max() < 1e-5 * abs(change).max() * 64
    assert record.tensors[name]["response"] < 1e-6
    with pytest.raises(MismatchError):
        apply(edit, base, tmp_path / "more", storage=EXACT)  # the others have none
