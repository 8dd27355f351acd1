from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.conftest import (
    Trio,
    assert_rounded,
    exact,
    left_behind,
    read_tensors,
    same_bytes,
    snapshot,
    write_checkpoint,
)
from weightsurgery import (
    Add,
    Energy,
    Negate,
    Project,
    Rank,
    Selection,
    Storage,
    apply,
    open_vector,
    verify,
)
from weightsurgery.checkpoint.reader import Checkpoint
from weightsurgery.checkpoint.writer import CheckpointWriter
from weightsurgery.errors import (
    EditError,
    MismatchError,
    NonFiniteError,
    OutputError,
    SelectionError,
)
from weightsurgery.surgery import windows
from weightsurgery.surgery.apply import plan_edit
from weightsurgery.vectors.task_vector import MappedChange, TaskVector

Tensors = dict[str, torch.Tensor]


def load(directory: Path, **settings: Any) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(directory, **settings)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.arange(24).reshape(2, 12)).logits


def negate(
    root: Path, base: Tensors, finetuned: Tensors, scale: float = 1.0, **settings: Any
) -> Any:
    """Write both, and negate to ``root / "out"``."""
    if not (root / "base").exists():
        write_checkpoint(root / "base", base, 2)
        write_checkpoint(root / "ft", finetuned)
    opened = Checkpoint.open(root / "base")
    vector = open_vector(opened, [str(root / "ft")])
    return apply(Negate(vector, scale), opened, root / "out", allow_unrelated=True, **settings)


# --- a real model -------------------------------------------------------------------------------


def test_negated_model_answers_as_one_edited_in_memory(llama: Trio, tmp_path: Path) -> None:
    base = Checkpoint.open(llama.base)
    assert len(base.shards) > 2
    apply(Negate(open_vector(base, [str(llama.forget)]), 0.7), base, tmp_path / "out")
    model, finetuned = load(llama.base, dtype="auto"), load(llama.forget, dtype="auto")
    before = logits(model)
    with torch.no_grad():
        for w, f in zip(model.parameters(), finetuned.parameters(), strict=True):
            w.copy_((w.double() - 0.7 * (f.double() - w.double())).float())
    wanted, found = logits(model), logits(load(tmp_path / "out", dtype="auto"))
    assert (before - wanted).abs().max() > 0.01
    # Both are bfloat16; a tie may round either way.
    torch.testing.assert_close(
        found, wanted, rtol=0, atol=0.01 * float((before - wanted).abs().max())
    )


def test_projected_model_answers_as_one_edited_in_memory(llama: Trio, tmp_path: Path) -> None:
    base = Checkpoint.open(llama.base)
    forget, keep = (open_vector(base, [str(path)]) for path in (llama.forget, llama.keep))
    storage = Storage(dtype="float32")
    apply(Project(forget, (keep,), Rank(5), scale=2.0), base, tmp_path / "out", storage=storage)
    model = load(llama.base, dtype=torch.float32)
    others = [load(path, dtype=torch.float32) for path in (llama.forget, llama.keep)]
    before = logits(model)
    for name, w in model.named_parameters():
        if w.ndim < 2 or "embed_tokens" in name or "lm_head" in name:
            continue
        t, k = (exact((o.get_parameter(name) - w).detach()) for o in others)
        u, s, vh = np.linalg.svd(t, full_matrices=False)
        v = np.linalg.svd(k)[2][:5].T
        change = (u[:, :5] * s[:5]) @ vh[:5]
        change = change - change @ v @ v.T
        w.data -= torch.from_numpy(2.0 * change).float()
    wanted = logits(model)
    found = logits(load(tmp_path / "out", dtype="auto"))
    assert found.dtype == torch.float32
    assert (before - wanted).abs().max() > 0.01
    torch.testing.assert_close(found, wanted, rtol=0, atol=2e-5)  # float32 through two layers


def test_unknown_tensors_survive_and_the_model_still_loads(llama: Trio, tmp_path: Path) -> None:
    extra = {
        "model.layers.2.mtp.eh_proj.weight": torch.randn(32, 64).bfloat16(),
        "model.rotary.ids": torch.arange(7),
    }
    config = json.loads((llama.base / "config.json").read_text())
    tensors = {**read_tensors(llama.base), **extra}
    base = Checkpoint.open(write_checkpoint(tmp_path / "base", tensors, 3, config))
    vector = open_vector(base, [str(llama.forget)], missing="base")
    apply(Negate(vector), base, tmp_path / "out")
    after = read_tensors(tmp_path / "out")
    for name, tensor in extra.items():
        assert same_bytes(after[name], tensor)
    plain = Checkpoint.open(llama.base)
    apply(Negate(open_vector(plain, [str(llama.forget)])), plain, tmp_path / "plain")
    found, wanted = (load(tmp_path / n, dtype="auto") for n in ("out", "plain"))
    assert not torch.equal(logits(found), logits(load(llama.base, dtype="auto")))
    assert torch.equal(logits(found), logits(wanted))


def test_record_says_what_was_done_and_verifies(llama: Trio, tmp_path: Path) -> None:
    base = Checkpoint.open(llama.base)
    vector = open_vector(base, [str(llama.forget)])
    done = apply(Negate(vector, 0.5), base, tmp_path / "out", command=["negate", "x"])
    record = verify(tmp_path / "out")
    assert record.to_json() == done.record.to_json()
    assert record.parameters["scale"] == 0.5
    assert set(record.inputs["base"]["files"]) == {*base.shards, "config.json"}
    before, finetuned = read_tensors(llama.base), read_tensors(llama.forget)
    after = read_tensors(tmp_path / "out")
    assert set(record.tensors) == set(before)
    for name, facts in record.tensors.items():
        w, meant = exact(before[name]), -0.5 * (exact(finetuned[name]) - exact(before[name]))
        written = exact(after[name]) - w
        size = np.linalg.norm(written) / np.linalg.norm(w)
        assert facts["relative_change"] == pytest.approx(size, rel=1e-4)
        assert facts["surviving_fraction"] == pytest.approx(
            (written != 0)[meant != 0].mean(), abs=1e-5
        )
        agreement = (written * meant).sum() / (meant**2).sum()
        assert facts["edit_check"] == pytest.approx(agreement, rel=1e-4)


def test_an_edit_of_an_edit_names_its_parent(tmp_path: Path) -> None:
    w = {"w": torch.randn(6, 6)}
    negate(tmp_path, w, {"w": w["w"] + 1})
    base = Checkpoint.open(tmp_path / "out")
    vector = TaskVector.of(MappedChange({"w": torch.ones(6, 6)}))
    again = apply(Add(vector), base, tmp_path / "again").record
    assert again.parent is not None
    assert again.parent["name"] == base.source.name
    assert len(again.parent["record_sha256"]) == 64


# --- non-finite numbers -------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("where", ["base", "finetuned", "both"])
@pytest.mark.parametrize("kind", ["plain", "project"])
def test_nan_and_infinity_name_the_tensor_and_leave_nothing(
    tmp_path: Path, bad: float, where: str, kind: str
) -> None:
    names = [f"model.layers.{i}.mlp.up_proj.weight" for i in range(3)]
    w = {name: torch.randn(12, 10) for name in names}
    f = {name: t + 0.1 * torch.randn(12, 10) for name, t in w.items()}
    if where != "finetuned":
        w[names[1]][7, 3] = bad
    if where != "base":
        f[names[1]][7, 3] = bad
    base = Checkpoint.open(write_checkpoint(tmp_path / "base", w, 2))
    vector = open_vector(base, [str(write_checkpoint(tmp_path / "ft", f))])
    edit: Any = Negate(vector) if kind == "plain" else Project(vector, (vector,), Rank(2))
    with pytest.raises(NonFiniteError, match=names[1].replace(".", r"\.")):
        apply(edit, base, tmp_path / "out")
    assert left_behind(tmp_path / "out") == []
    apply(edit, base, tmp_path / "out", selection=Selection(exclude=(names[1],)))
    after = read_tensors(tmp_path / "out")
    assert same_bytes(after[names[1]], w[names[1]])


@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
def test_overflow_of_float16_is_an_error(tmp_path: Path, rounding: str) -> None:
    w = {"a": torch.ones(8, 8).half(), "big": torch.full((8, 8), 60000.0).half()}
    f = {"a": torch.ones(8, 8).half() * 1.5, "big": torch.full((8, 8), 40000.0).half()}
    with pytest.raises(NonFiniteError, match=r"'big'.*overflow F16"):
        negate(tmp_path, w, f, storage=Storage(rounding=rounding))
    assert left_behind(tmp_path / "out") == []
    negate(tmp_path, w, f, storage=Storage("float32"))
    assert read_tensors(tmp_path / "out")["big"].unique().tolist() == [80000.0]


# --- storage ------------------------------------------------------------------------------------


def test_float32_output_patches_config_and_index_alone(llama: Trio, tmp_path: Path) -> None:
    base = Checkpoint.open(llama.base)
    vector = open_vector(base, [str(llama.forget)])
    apply(Negate(vector), base, tmp_path / "out", storage=Storage("float32"))
    before, after = ((d / "config.json").read_text() for d in (llama.base, tmp_path / "out"))
    assert before.count('"bfloat16"') == 1
    assert after == before.replace('"bfloat16"', '"float32"')
    index = "model.safetensors.index.json"
    first, second = (json.loads((d / index).read_text()) for d in (llama.base, tmp_path / "out"))
    tensors = read_tensors(tmp_path / "out")
    assert second["metadata"]["total_size"] == sum(t.numel() * 4 for t in tensors.values())
    assert second["weight_map"] == first["weight_map"]
    assert {t.dtype for t in tensors.values()} == {torch.float32}
    model = load(tmp_path / "out", dtype="auto")
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    w, f = read_tensors(llama.base), read_tensors(llama.forget)
    for name, tensor in tensors.items():
        wanted = 2 * exact(w[name]) - exact(f[name])
        assert_rounded(tensor, wanted, scratch=1e-6)  # float32 arithmetic near one


def test_untouched_tensors_are_converted_too(tmp_path: Path) -> None:
    w = {"a": torch.randn(5, 5).bfloat16(), "b": torch.randn(5).half(), "ids": torch.arange(3)}
    f = {**w, "a": torch.randn(5, 5).bfloat16()}
    selection = Selection(include=("a",))
    negate(tmp_path, w, f, selection=selection, storage=Storage("float64"))
    after = read_tensors(tmp_path / "out")
    assert same_bytes(after["b"], w["b"].double())
    assert same_bytes(after["ids"], w["ids"])
    assert_rounded(after["a"], 2 * exact(w["a"]) - exact(f["a"]))


def test_float64_weights_are_computed_in_float64_whatever_the_output(tmp_path: Path) -> None:
    w = {"w": 1000 + torch.randn(30, 30, dtype=torch.float64)}
    f = {"w": w["w"] + 1e-3 * torch.randn(30, 30, dtype=torch.float64)}
    negate(tmp_path, w, f, 0.3, storage=Storage("float32"))
    wanted = exact(w["w"]) - 0.3 * (exact(f["w"]) - exact(w["w"]))
    assert_rounded(read_tensors(tmp_path / "out")["w"], wanted)


@pytest.mark.parametrize(
    "text",
    ['{"torch_dtype": "float16", "x": "float16"}', '{\n "dtype" : "torch.bfloat16"\n}', '{"a": 1}'],
)
def test_only_the_dtype_of_a_config_is_replaced(tmp_path: Path, text: str) -> None:
    w = {"a": torch.randn(5, 5)}
    write_checkpoint(tmp_path / "base", w)
    write_checkpoint(tmp_path / "ft", {"a": w["a"] + 1})
    (tmp_path / "base" / "config.json").write_text(text)
    negate(tmp_path, w, w, storage=Storage("float32"))
    new = text.replace('dtype": "float16"', 'dtype": "float32"')
    new = new.replace('"torch.bfloat16"', '"float32"')
    assert (tmp_path / "out" / "config.json").read_text() == new


def large(count: int = 1500) -> tuple[Tensors, Tensors]:
    """Three blocks of a matrix, with a change that nearest rounding mostly loses."""
    w = {"w": torch.randn(count, count).bfloat16(), "v": torch.randn(3, 40).bfloat16()}
    return w, {name: t.float() + 1e-4 * torch.randn(t.shape) for name, t in w.items()}


def test_stochastic_rounding_depends_on_its_seed_alone(tmp_path: Path) -> None:
    w, f = large()
    outs = {}
    for key, seed, workers in (("a", 0, 1), ("b", 0, 4), ("c", 1, 1)):
        storage = Storage(rounding="stochastic", seed=seed)
        negate(tmp_path, w, f, storage=storage, workers=workers)
        (tmp_path / "out").rename(tmp_path / key)
        outs[key] = read_tensors(tmp_path / key)
    assert snapshot(tmp_path / "a") == snapshot(tmp_path / "b")
    assert not torch.equal(outs["a"]["w"], outs["c"]["w"])


def test_stochastic_rounding_keeps_what_nearest_loses(tmp_path: Path) -> None:
    w, f = large(700)
    d = exact(w["w"]) - exact(f["w"])
    checks = {}
    for rounding in ("nearest", "stochastic"):
        done = negate(tmp_path, w, f, storage=Storage(rounding=rounding))
        (tmp_path / "out").rename(tmp_path / rounding)
        written = exact(read_tensors(tmp_path / rounding)["w"]) - exact(w["w"])
        checks[rounding] = (written * d).sum() / (d * d).sum()
        assert done.record.tensors["w"]["edit_check"] == pytest.approx(checks[rounding], rel=1e-3)
        if rounding == "nearest":
            assert any("consider --rounding stochastic" in line for line in done.notices)
            assert done.record.tensors["w"]["surviving_fraction"] < 0.2
    # Nearest keeps a fifth or twice the change, by luck of magnitudes; stochastic all of it.
    gaps = np.exp2(np.floor(np.log2(np.abs(exact(w["w"])) + 1e-30)) - 7)
    deviation = np.sqrt((np.abs(d) * gaps * d * d).sum()) / (d * d).sum()
    assert abs(checks["stochastic"] - 1) < 5 * deviation  # five standard deviations
    assert deviation < 0.2


def test_a_change_that_vanishes_whole_is_an_error(tmp_path: Path) -> None:
    w = {"w": torch.full((20, 20), 1.0).bfloat16()}
    f = {"w": w["w"].float() + 1e-5}
    with pytest.raises(EditError, match="vanished in rounding"):
        negate(tmp_path, w, f)
    assert left_behind(tmp_path / "out") == []
    done = negate(tmp_path, w, f, storage=Storage("float32"))
    assert done.record.summary["surviving_fraction"] == 1


def test_a_zero_change_is_no_error_and_is_said(tmp_path: Path) -> None:
    w = {"w": torch.randn(20, 20).bfloat16()}
    done = negate(tmp_path, w, w)
    assert same_bytes(read_tensors(tmp_path / "out")["w"], w["w"])
    assert any("Nothing changed" in line for line in done.notices)


@pytest.mark.parametrize("storage", [{"dtype": "int8"}, {"rounding": "up"}])
def test_unknown_storage_is_refused(storage: dict[str, str]) -> None:
    with pytest.raises(EditError):
        Storage(**storage)


# --- the run ------------------------------------------------------------------------------------


def test_result_does_not_depend_on_the_number_of_workers(llama: Trio, tmp_path: Path) -> None:
    base = Checkpoint.open(llama.base)
    forget, keep = (open_vector(base, [str(path)]) for path in (llama.forget, llama.keep))
    for workers in (1, 4):
        edit = Project(forget, (keep,), Energy(0.8), Rank(3))
        apply(edit, base, tmp_path / str(workers), workers=workers)
    first, second = snapshot(tmp_path / "1"), snapshot(tmp_path / "4")
    assert first == second
    assert first["config.json"] == (llama.base / "config.json").read_bytes()
    with pytest.raises(EditError, match="0 workers"):
        apply(edit, base, tmp_path / "none", workers=0)


@pytest.mark.parametrize(
    ("rounding", "stages"), [("nearest", {"negate"}), ("stochastic", {"negate", "checksums"})]
)
def test_progress_counts_up_to_the_total(
    llama: Trio, tmp_path: Path, rounding: str, stages: set[str]
) -> None:
    base = Checkpoint.open(llama.base)
    seen: list[tuple[str, int, int]] = []
    apply(
        Negate(open_vector(base, [str(llama.forget)])),
        base,
        tmp_path / "out",
        storage=Storage(rounding=rounding),
        progress=lambda *step: seen.append(step),
    )
    done = [count for _, count, _ in seen]
    assert done == sorted(done)
    assert len({total for *_, total in seen}) == 1
    assert seen[-1][1] == seen[-1][2]
    assert {stage for stage, *_ in seen} == stages


@pytest.mark.parametrize("inside", ["base", "base/out", "ft", "ft/deep/out", "."])
def test_outputs_may_not_touch_inputs(tmp_path: Path, inside: str) -> None:
    w = {"w": torch.randn(4, 4)}
    base = Checkpoint.open(write_checkpoint(tmp_path / "base", w))
    vector = open_vector(base, [str(write_checkpoint(tmp_path / "ft", {"w": w["w"] + 1}))])
    before = snapshot(tmp_path)
    with pytest.raises(OutputError, match="input"):
        apply(Negate(vector), base, tmp_path / inside, overwrite=True, allow_unrelated=True)
    assert snapshot(tmp_path) == before


def test_existing_outputs_are_replaced_only_when_asked_and_ours(tmp_path: Path) -> None:
    w = {"w": torch.randn(4, 4)}
    f = {"w": w["w"] + 1}
    negate(tmp_path, w, f)
    first = snapshot(tmp_path / "out")
    with pytest.raises(OutputError, match="exists"):
        negate(tmp_path, w, f, 2.0)
    assert snapshot(tmp_path / "out") == first
    negate(tmp_path, w, f, 2.0, overwrite=True)
    assert torch.allclose(read_tensors(tmp_path / "out")["w"], w["w"] - 2)
    (tmp_path / "out" / "weightsurgery.json").unlink()
    with pytest.raises(OutputError, match="not written by ws"):
        negate(tmp_path, w, f, overwrite=True)
    assert left_behind(tmp_path / "out") == ["out"]


@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
def test_an_interrupted_run_continues(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rounding: str
) -> None:
    """What only had to be added is added again; what else was done is not."""
    storage = Storage(rounding=rounding)
    monkeypatch.setattr(CheckpointWriter, "FLUSH_SECONDS", 0.01)
    monkeypatch.setattr(windows, "WINDOW", 4096)
    monkeypatch.setattr(windows, "WAITING", 0)
    w = {f"layers.{i}.w": torch.randn(50, 40) for i in range(8)}
    f = {name: t + 0.1 * torch.randn(50, 40) for name, t in w.items()}
    negate(tmp_path, w, f, storage=storage)
    wanted = snapshot(tmp_path / "out")
    (tmp_path / "out").rename(tmp_path / "whole")

    def stop(stage: str, done: int, total: int) -> None:
        time.sleep(0.05)  # several flushes
        if done > 5 * 50 * 40 * 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        negate(tmp_path, w, f, progress=stop, workers=1, storage=storage)
    assert left_behind(tmp_path / "out") == [".out.ws-partial"]
    done = negate(tmp_path, w, f, storage=storage)
    assert (0 < done.resumed < 8) == (rounding == "stochastic")
    assert snapshot(tmp_path / "out") == wanted
    assert left_behind(tmp_path / "out") == ["out"]


def test_another_command_does_not_continue_it(tmp_path: Path) -> None:
    w = {f"layers.{i}.w": torch.randn(50, 40) for i in range(8)}
    f = {name: t + 0.1 * torch.randn(50, 40) for name, t in w.items()}

    with pytest.raises(KeyboardInterrupt):
        negate(tmp_path, w, f, progress=stop_at_the_end)
    done = negate(tmp_path, w, f, 0.5)
    assert done.resumed == 0
    name = "layers.3.w"
    wanted = exact(w[name]) - 0.5 * (exact(f[name]) - exact(w[name]))
    assert_rounded(read_tensors(tmp_path / "out")[name], wanted, scratch=1e-6)


def stop_at_the_end(stage: str, done: int, total: int) -> None:
    if stage == "checksums" or done == total:
        raise KeyboardInterrupt


@pytest.mark.parametrize("changed", ["factor", "keep", "keep factor", "rank", "side", "vocab",
                                     "rounding", "content", "selection"])  # fmt: skip
def test_only_the_very_same_edit_is_continued(tmp_path: Path, changed: str) -> None:
    """Interrupted with all tensors done, then one thing differs: nothing old is left."""
    w = {f"layers.{i}.w": torch.randn(30, 20) for i in range(4)}
    w["model.embed_tokens.weight"] = torch.randn(7, 20)
    base = Checkpoint.open(write_checkpoint(tmp_path / "base", w))
    for name in ("ft", "a", "b"):
        tuned = {key: t + 0.1 * torch.randn(t.shape) for key, t in w.items()}
        if name == "ft":
            tuned["model.embed_tokens.weight"] = torch.randn(8, 20)
        write_checkpoint(tmp_path / name, tuned)

    def change(value: float) -> TaskVector:
        return TaskVector.of(MappedChange({name: torch.full((30, 20), value) for name in w if "l" in
                                           name and "embed" not in name}))  # fmt: skip

    def run(out: str, second: bool, **more: Any) -> Any:
        vocab = "base" if second and changed == "vocab" else "common-rows"
        factor = ":2" if second and changed == "factor" else ":0.5"
        forget = open_vector(base, [str(tmp_path / "ft") + factor], vocab)
        keep = str(tmp_path / ("b" if second and changed == "keep" else "a"))
        keep += ":-1" if second and changed == "keep factor" else ""
        edit: Any = Project(
            forget,
            (open_vector(base, [keep]),),
            Rank(4 if second and changed == "rank" else 3),
            side="left" if second and changed == "side" else "right",
        )
        if changed in ("vocab", "rounding"):
            edit = Negate(forget)
        if changed == "content":
            edit = Add(change(2.0 if second else 1.0))
        rounding = "stochastic" if second and changed == "rounding" else "nearest"
        layers = "1-" if second and changed == "selection" else None
        targets = "all" if changed == "vocab" else "all-linear"
        return apply(
            edit,
            base,
            tmp_path / out,
            storage=Storage("bfloat16", rounding),
            selection=Selection(targets, layers=layers),
            **more,
        )

    with pytest.raises(KeyboardInterrupt):
        run("out", second=False, progress=stop_at_the_end)
    same = run("out", second=False)
    assert same.resumed == len(w)  # before: the same edit does go on

    (tmp_path / "out").rename(tmp_path / "first")
    with pytest.raises(KeyboardInterrupt):
        run("out", second=False, progress=stop_at_the_end)
    assert run("out", second=True).resumed == 0
    run("clean", second=True)
    assert snapshot(tmp_path / "out") == snapshot(tmp_path / "clean")
    assert snapshot(tmp_path / "out") != snapshot(tmp_path / "first")


def test_large_matrices_do_not_depend_on_the_number_of_workers(tmp_path: Path) -> None:
    """Wide enough for the randomised decomposition; the exact one hides the difference."""
    w = {f"layers.{i}.mlp.up_proj.weight": torch.randn(640, 700) for i in range(2)}
    base = Checkpoint.open(write_checkpoint(tmp_path / "base", w))
    vectors = []
    for number in range(2):
        tuned = {name: t + 0.1 * torch.randn(t.shape) for name, t in w.items()}
        path = write_checkpoint(tmp_path / str(number), tuned)
        vectors.append(open_vector(base, [str(path)]))
    for workers in (1, 2):
        edit = Project(vectors[0], (vectors[1],), Rank(8))
        done = apply(edit, base, tmp_path / f"out{workers}", workers=workers)
        assert all(facts["svd_residual"] > 0 for facts in done.record.tensors.values())
    assert snapshot(tmp_path / "out1") == snapshot(tmp_path / "out2")


def test_narrowing_is_not_mistaken_for_the_change(tmp_path: Path) -> None:
    """A change far below bfloat16's resolution, while the conversion moves every weight."""
    w = {"a.weight": torch.randn(400, 400)}
    f = {"a.weight": w["a.weight"] + 1e-7 * (torch.rand(400, 400) < 0.1)}
    base = write_checkpoint(tmp_path / "base", w)
    tuned = write_checkpoint(tmp_path / "ft", f)
    opened = Checkpoint.open(base)
    edit = Negate(open_vector(opened, [str(tuned)]))
    done = apply(edit, opened, tmp_path / "out", storage=Storage("bfloat16"))
    stored = read_tensors(tmp_path / "out")["a.weight"]
    assert (stored.float() != w["a.weight"]).float().mean() > 0.9  # before: nearly all moved
    meant = (w["a.weight"] - f["a.weight"]) != 0
    moved = (stored != w["a.weight"].bfloat16()) & meant
    share = float(moved.sum() / meant.sum())
    assert share < 0.01
    assert done.record.summary["surviving_fraction"] == pytest.approx(share, rel=1e-5)


def test_infinite_masks_are_converted(tmp_path: Path) -> None:
    w = {"mask": torch.full((4, 4), float("-inf")), "a.weight": torch.randn(4, 4)}
    base = write_checkpoint(tmp_path / "base", w)
    tuned = write_checkpoint(tmp_path / "ft", {**w, "a.weight": w["a.weight"] + 1})
    opened = Checkpoint.open(base)
    edit = Negate(open_vector(opened, [str(tuned)]))
    with pytest.raises(NonFiniteError, match="mask"):
        apply(edit, opened, tmp_path / "out", storage=Storage("bfloat16"))
    chosen = Selection(exclude=("mask",))
    apply(edit, opened, tmp_path / "out", storage=Storage("bfloat16"), selection=chosen)
    after = read_tensors(tmp_path / "out")
    assert after["mask"].dtype == torch.bfloat16
    assert torch.isinf(after["mask"]).all()
    w["a.weight"][0, 0] = 1e30
    w["b.weight"] = torch.randn(4, 4)
    write_checkpoint(tmp_path / "big", w)
    opened = Checkpoint.open(tmp_path / "big")
    edit = Negate(open_vector(opened, [str(tmp_path / "big")]))
    with pytest.raises(NonFiniteError, match="overflow"):
        apply(
            edit, opened, tmp_path / "no", storage=Storage("float16"),
            selection=Selection(include=("b.weight",)),
        )  # fmt: skip
    assert left_behind(tmp_path / "no") == []


def test_a_change_of_a_tied_copy_alone_is_refused(tmp_path: Path) -> None:
    table = torch.randn(6, 4)
    w = {"model.embed_tokens.weight": table, "lm_head.weight": table.clone()}
    base = Checkpoint.open(write_checkpoint(tmp_path / "base", w))
    both = TaskVector.of(MappedChange(dict.fromkeys(w, torch.ones(6, 4))))
    apply(Add(both), base, tmp_path / "both")
    after = read_tensors(tmp_path / "both")
    assert same_bytes(after["lm_head.weight"], after["model.embed_tokens.weight"])
    head = TaskVector.of(MappedChange({"lm_head.weight": torch.ones(6, 4)}))
    with pytest.raises(MismatchError, match="lm_head"):
        apply(Add(head), base, tmp_path / "out")
    with pytest.raises(SelectionError, match="tied"):
        apply(Add(both), base, tmp_path / "out", selection=Selection(include=("lm_head*",)))
    assert left_behind(tmp_path / "out") == []


def test_what_would_keep_nothing_is_refused(tmp_path: Path) -> None:
    w = {"layers.0.w": torch.randn(5, 4)}
    base = Checkpoint.open(write_checkpoint(tmp_path / "base", w))
    one = TaskVector.of(MappedChange({"layers.0.w": torch.ones(5, 4)}))
    Project(one, (one,))
    for keep, scale in (((0.0 * one,), 1.0), ((one,), float("nan")), ((float("inf") * one,), 1.0)):
        with pytest.raises(EditError):
            Project(one, keep, scale=scale)
    with pytest.raises(EditError, match="finite"):
        Negate(one, float("inf"))
    other = TaskVector.of(MappedChange({"elsewhere": torch.ones(5, 4)}))
    done = apply(Project(one, (other,)), base, tmp_path / "out")
    assert any("nothing was held back" in text for text in done.notices)


def test_plan_knows_what_is_read_and_written(llama: Trio, tmp_path: Path) -> None:
    base = Checkpoint.open(llama.base)
    edit = Negate(open_vector(base, [str(llama.forget)]))
    plan = plan_edit(edit, base, tmp_path / "out", Selection(), Storage("float32"))
    apply(edit, base, tmp_path / "out", storage=Storage("float32"))
    written = sum(p.stat().st_size for p in (tmp_path / "out").glob("*.safetensors"))
    assert plan.write_bytes == written
    assert plan.read_bytes == 2 * base.layout.nbytes
    assert list(plan.edited) == list(base.entries)
    with pytest.raises(SelectionError):
        plan_edit(edit, base, tmp_path / "other", Selection(layers="9"), Storage())


def test_companion_files_come_along(tmp_path: Path) -> None:
    w = {"w": torch.randn(4, 4)}
    base = write_checkpoint(tmp_path / "base", w, 1, {"a": 1})
    write_checkpoint(tmp_path / "ft", {"w": w["w"] + 1})
    for name in ("tokenizer.json", "chat_template.jinja", "LICENSE"):
        (base / name).write_text(f"the {name}")
    for name in ("README.md", "optimizer.pt", "trainer_state.json", ".hidden.json"):
        (base / name).write_text("not these")
    negate(tmp_path, w, w)
    names = set(snapshot(tmp_path / "out"))
    assert names == {
        "model.safetensors",
        "weightsurgery.json",
        "config.json",
        "tokenizer.json",
        "chat_template.jinja",
        "LICENSE",
    }
    assert (tmp_path / "out" / "LICENSE").read_text() == "the LICENSE"
    verify(tmp_path / "out")
