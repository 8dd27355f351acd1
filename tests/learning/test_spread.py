"""Models that are spread over devices: here over processor and disk, by accelerate's hooks."""

from __future__ import annotations

import pytest
import torch

from tests.conftest import left_behind, read_tensors, same_bytes
from tests.learning.tiny import FACTS, OTHER, byte_tokenizer, save, tiny, write
from weightsurgery.errors import EditError
from weightsurgery.learning.attacks import quantised
from weightsurgery.learning.evaluate import evaluate
from weightsurgery.learning.last_places import last_logits
from weightsurgery.learning.models import load_model
from weightsurgery.learning.statistics import gather_to
from weightsurgery.procedures.attack import attack_quantize, attack_relearn

HERE = {"": "cpu"}
AWAY = {
    "model.embed_tokens": "cpu",
    "model.rotary_emb": "cpu",
    "model.norm": "cpu",
    "model.layers.0": "cpu",
    "model.layers.1": "disk",
    "lm_head": "disk",
}
ONLY = {"metrics": ["nll", "exact_match"], "device": "cpu", "resamples": 50}


@pytest.fixture
def base(tmp_path):
    return save(tiny("llama"), tmp_path / "base")


@pytest.fixture
def data(tmp_path):
    return [write(tmp_path / f"{name}.jsonl", rows) for name, rows in
            (("forget", FACTS), ("keep", OTHER))]  # fmt: skip


def test_some_weights_are_not_in_memory(base):
    plain, _ = load_model(base)
    here, _ = load_model(base, device_map=HERE)
    away, _ = load_model(base, device_map=AWAY)
    devices = [{each.device.type for each in model.parameters()} for model in (plain, here, away)]
    assert devices == [{"cpu"}, {"cpu"}, {"cpu", "meta"}]
    assert away.device == torch.device("cpu")


def test_it_says_the_same(base):
    """Also where the head reads some places alone."""
    texts, counts = [[0, 5, 9, 7], [0, 8]], [2, 1]
    found = [
        last_logits(load_model(base, device_map=each)[0], texts, counts, 2) for each in (None, AWAY)
    ]
    assert found[0].shape == (3, 259)
    assert same_bytes(*(each.detach() for each in found))


def test_it_scores_the_same(base, data):
    scored = [evaluate(base, data[:1], data[1:], **ONLY, device_map=each) for each in (None, AWAY)]
    assert scored[0].sets == scored[1].sets
    assert evaluate(base, data[1:], data[:1], **ONLY).sets != scored[0].sets


def test_its_statistics_are_the_same(base, data, tmp_path):
    for name, how in (("plain", None), ("spread", AWAY)):
        gather_to(tmp_path / name, base, data[0], device="cpu", device_map=how)
    plain, spread = (read_tensors(tmp_path / name) for name in ("plain", "spread"))
    assert len(plain) > 4
    assert plain.keys() == spread.keys()
    assert all(same_bytes(plain[name], spread[name]) for name in plain)


def test_sums_are_where_a_layer_runs():
    """Which is not where the inputs are: hooks move them."""
    from weightsurgery.learning.activations import _Shared, _sums, linear_inputs

    class Elsewhere(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.first = torch.nn.Linear(3, 3)
            self.second = torch.nn.Linear(3, 3, device="meta")

        def forward(self, input_ids, **_):
            return self.second(self.first(torch.randn(*input_ids.shape, 3)).to("meta"))

    model = Elsewhere()
    members = [
        _Shared((name,), module, width, 1) for name, (module, width) in linear_inputs(model).items()
    ]
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "weightsurgery.learning.activations._add_products",
            lambda total, rows: seen.append((total.device.type, rows.device.type)),
        )
        patch.setattr(torch, "isfinite", lambda total: torch.ones(1, dtype=torch.bool))
        found = _sums(model, members, [torch.zeros(1, 4)], torch.device("cpu"), lambda done: None)
    assert seen == [("cpu", "cpu"), ("meta", "meta")]
    assert [count for _, count in found.values()] == [4, 4]


@pytest.mark.parametrize("attack", [attack_relearn, attack_quantize])
def test_an_attack_on_weights_that_are_not_there_is_refused(attack, base, data):
    with pytest.raises(EditError, match=r"\d+ weights are not in memory, .*layers\.1") as refused:
        attack(base, data[:1], **ONLY, device_map=AWAY)
    assert "--device cpu" in refused.value.remedy
    found = attack(base, data[:1], **ONLY, device_map=HERE)
    assert found.sets == attack(base, data[:1], **ONLY).sets


def test_rounding_such_weights_is_refused_before_any_changes(base):
    model, _ = load_model(base, device_map=AWAY)
    with pytest.raises(EditError, match="quantising"), quantised(model, "int8"):
        raise AssertionError


def test_a_map_that_makes_no_sense_is_refused(base, data, tmp_path):
    with pytest.raises(EditError, match="device map 'atuo'") as refused:
        evaluate(base, data, **ONLY, device_map="atuo")
    assert "auto" in refused.value.remedy
    with pytest.raises(EditError, match="no place in memory for the embedding"):
        load_model(base, device_map={**AWAY, "model.embed_tokens": "disk"})
    with pytest.raises(EditError, match="device map"):
        gather_to(tmp_path / "out", base, data[0], device_map="wide")
    assert left_behind(tmp_path / "out") == []


def test_without_a_gpu_auto_is_the_processor(base):
    model, _ = load_model(base, device_map="auto")
    assert {each.device.type for each in model.parameters()} == {"cpu"}
    ids = torch.tensor([byte_tokenizer()("a")["input_ids"]])
    assert same_bytes(model(input_ids=ids).logits, load_model(base)[0](input_ids=ids).logits)
