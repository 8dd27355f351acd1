"""A checkpoint's own code is never run, whatever stands on standard input."""

import json
import subprocess
import sys

import pytest

from tests.learning.conftest import byte_tokenizer, tiny_model

LOAD = """
import sys
from weightsurgery.checkpoint.reader import Checkpoint
from weightsurgery.errors import WeightSurgeryError
from weightsurgery.learning import models, parameters
for load in (
    lambda: models.load_model(sys.argv[1]),
    lambda: models.load_tokenizer(sys.argv[1]),
    lambda: parameters.load_float32(Checkpoint.open(sys.argv[1])),
    lambda: parameters.random_model(Checkpoint.open(sys.argv[1]), 0),
):
    try:
        load()
        print("loaded")
    except WeightSurgeryError as error:
        assert "custom code" in error.what, error.what
        print("refused")
"""


@pytest.mark.parametrize("answers", ["y\n" * 9, ""])
def test_nobody_is_asked(tmp_path, answers):
    tokenizer = byte_tokenizer()
    base = tmp_path / "base"
    tiny_model(tokenizer).save_pretrained(base)
    tokenizer.save_pretrained(base)
    ran = tmp_path / "ran"
    (base / "planted.py").write_text(f"open({str(ran)!r}, 'w')\n")
    for name, classes in (
        ("config.json", ("AutoConfig", "AutoModelForCausalLM")),
        ("tokenizer_config.json", ("AutoTokenizer",)),
    ):
        told = json.loads((base / name).read_text())
        told["auto_map"] = dict.fromkeys(classes, "planted.X")
        told["auto_map"]["AutoTokenizer"] = ["planted.X", None]
        told |= {"model_type": "planted", "tokenizer_class": "Planted"}
        (base / name).write_text(json.dumps(told))
    done = subprocess.run(
        [sys.executable, "-c", LOAD, base], input=answers, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["refused"] * 4
    assert not ran.exists()
