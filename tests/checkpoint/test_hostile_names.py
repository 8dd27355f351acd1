"""Names of tensors as a stranger may choose them, looked at in no time."""

import json
import time

import pytest
import torch

from tests.conftest import write_checkpoint
from weightsurgery.checkpoint.header import LONGEST_NAME
from weightsurgery.checkpoint.inspection import inspect
from weightsurgery.checkpoint.naming import kind_of, layer_of
from weightsurgery.checkpoint.reader import Checkpoint
from weightsurgery.checkpoint.tied import is_tied, tied_copies
from weightsurgery.errors import UnsupportedCheckpointError

LONG = ["norm_" * 200 + "!", "a." * 499, "_attn" * 200, "layers.1" * 120, "embed" * 199 + "!",
        "layers." + "9" * 990 + ".w", "q_proj" * 150 + "-", "." * 999, "self_" * 199]  # fmt: skip


@pytest.mark.parametrize("name", LONG)
def test_long_names(name):
    begun = time.process_time()
    for number in range(20):
        kind_of(f"{name}{number}")
        layer_of(f"{name}{number}")
    assert time.process_time() - begun < 2


def test_longer_names_are_refused(tmp_path):
    write_checkpoint(tmp_path / "base", {"norm_" * 20_000: torch.zeros(1)})
    with pytest.raises(UnsupportedCheckpointError) as error:
        Checkpoint.open(tmp_path / "base")
    assert "100000 characters" in error.value.what
    assert len(error.value.what) < 500
    write_checkpoint(tmp_path / "longest", {"n" * LONGEST_NAME: torch.zeros(1)})
    Checkpoint.open(tmp_path / "longest").close()


def test_a_layer_of_many_digits_is_none(tmp_path):
    assert layer_of("layers." + "9" * 5000 + ".w") is None
    assert layer_of("layers.123.w") == 123


def test_many_twins(tmp_path):
    """Heads and embeddings without end: each is read once."""
    names = [f"m{number}.lm_head.weight" for number in range(500)]
    names += [f"m{number}.embed_tokens.weight" for number in range(500)]
    tensors = {name: torch.full((1, 1), float(at)) for at, name in enumerate(names)}
    tensors["m7.lm_head.weight"] = tensors["m9.embed_tokens.weight"]
    write_checkpoint(tmp_path / "base", tensors)
    begun = time.process_time()
    with Checkpoint.open(tmp_path / "base") as base:
        assert tied_copies(base) == {"m7.lm_head.weight": "m9.embed_tokens.weight"}
        assert is_tied(base, "m9.embed_tokens.weight")
        assert not is_tied(base, "m8.embed_tokens.weight")
    assert time.process_time() - begun < 10


@pytest.mark.parametrize("value", [[], {}, 7, None, ["gpt2"], "gpt2", "\x1b"])
def test_a_model_type_that_is_no_text(tmp_path, value):
    write_checkpoint(tmp_path / "base", {"h.0.attn.c_attn.weight": torch.eye(2)})
    config = {"model_type": value, "architectures": value, "tie_word_embeddings": value}
    (tmp_path / "base" / "config.json").write_text(json.dumps(config))
    with Checkpoint.open(tmp_path / "base") as base:
        inspect(base)
