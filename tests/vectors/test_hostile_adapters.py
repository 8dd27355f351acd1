"""An adapter's config as a stranger may write it: two lines, in no time."""

import json
import time

import pytest
import torch
from safetensors.torch import save_file

from tests.conftest import write_checkpoint
from weightsurgery.checkpoint.reader import Checkpoint
from weightsurgery.errors import WeightSurgeryError
from weightsurgery.vectors.sources import open_vector


def adapter(root, config, rank=2):
    write_checkpoint(root / "base", {"layers.0.q_proj.weight": torch.eye(4)})
    place = root / "adapter"
    place.mkdir()
    key = "base_model.model.layers.0.q_proj.lora_{}.weight"
    factors = {key.format("A"): torch.ones(rank, 4), key.format("B"): torch.ones(4, rank)}
    save_file(factors, place / "adapter_model.safetensors")
    text = config if isinstance(config, str) else json.dumps({"peft_type": "LORA", **config})
    (place / "adapter_config.json").write_text(text)
    base = Checkpoint.open(root / "base")
    return open_vector(base, [str(place)]).at("layers.0.q_proj.weight")


HEAD = '{"peft_type": "LORA", '
HOSTILE = {
    "deep": "[" * 100_000,
    "deep object": '{"a":' * 100_000,
    "pattern (": {"alpha_pattern": {"(": 1}},
    "pattern list": {"alpha_pattern": ["a"]},
    "pattern text": {"alpha_pattern": "("},
    "pattern number": {"alpha_pattern": 7},
    "pattern value": {"alpha_pattern": {"q_proj": "x"}},
    "pattern null": {"alpha_pattern": {"q_proj": None}},
    "alpha text": {"lora_alpha": "x"},
    "alpha list": {"lora_alpha": [1]},
    "alpha true": {"lora_alpha": True},
    "alpha null": {"lora_alpha": None},
    "alpha huge": f'{HEAD}"lora_alpha": 1{"0" * 400}}}',
    "alpha of many digits": f'{HEAD}"lora_alpha": {"9" * 5000}}}',
    "alpha infinite": f'{HEAD}"lora_alpha": 1e999}}',
    "alpha nan": f'{HEAD}"lora_alpha": NaN}}',
    "twice": f'{HEAD}"lora_alpha": 1, "lora_alpha": 2}}',
    "surrogate": f'{HEAD}"lora_alpha": "\\ud800"}}',
    "type": '{"peft_type": {"a": 1}}',
    "type list": '{"peft_type": ["LORA"]}',
    "no object": "[]",
    "nothing": "",
}


@pytest.mark.parametrize("config", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_config(tmp_path, config):
    begun = time.process_time()
    with pytest.raises(WeightSurgeryError) as error:
        adapter(tmp_path, config)
    assert error.value.remedy
    assert len(error.value.what) < 1000 + len(str(tmp_path))
    assert time.process_time() - begun < 5


def test_a_rank_of_nothing(tmp_path):
    with pytest.raises(WeightSurgeryError, match="rank 0"):
        adapter(tmp_path, {}, rank=0)


def test_a_pattern_without_end(tmp_path):
    begun = time.process_time()
    assert adapter(tmp_path, {"alpha_pattern": {"(([a-z.0-9_]+)+)+!": 1}}) is not None
    assert time.process_time() - begun < 5


def test_patterns_count_as_in_peft(tmp_path):
    change = adapter(tmp_path, {"lora_alpha": 2, "alpha_pattern": {"k_proj": 4, "q_.*": 6}})
    assert change is not None
    found = torch.zeros(4, 4)
    change.add_rows(found, 0, 4, 1.0, torch.zeros(4, 4))
    assert torch.allclose(found, torch.full((4, 4), 6.0))
