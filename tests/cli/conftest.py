import shutil
import sys

import pytest
from safetensors.torch import load_file, save_file

from tests.cli.typed import Command
from tests.learning.conftest import tiny_model
from tests.learning.tiny import byte_tokenizer
from weightsurgery.cli.main import main


@pytest.fixture
def ws(capsys, monkeypatch) -> Command:
    return Command(capsys, monkeypatch)


@pytest.fixture
def done(ws):
    """Runs what must succeed: stdout and stderr."""
    return ws.done


@pytest.fixture
def refused(ws):
    """Runs what must be refused: what was wrong, and the remedy."""
    return ws.refused


@pytest.fixture(scope="module")
def other_head(tmp_path_factory):
    """A checkpoint, one with another head, and the tokenizer and model of the first."""
    tokenizer, root = byte_tokenizer(), tmp_path_factory.mktemp("heads")
    model = tiny_model(tokenizer)
    model.save_pretrained(root / "base")
    tokenizer.save_pretrained(root / "base")
    shutil.copytree(root / "base", root / "edited")
    tensors = load_file(root / "edited/model.safetensors")
    tensors["lm_head.weight"] = tensors["lm_head.weight"].roll(1, 0)
    save_file(tensors, root / "edited/model.safetensors", {"format": "pt"})
    return root, tokenizer, model


@pytest.fixture(scope="module")
def subspace(llama, tmp_path_factory):
    """A saved vector of rank 4."""
    out = tmp_path_factory.mktemp("vectors") / "subspace"
    with pytest.MonkeyPatch.context() as patch:
        command = ["subspace", llama.base, llama.forget, "-o", out, "--rank", "4", "-q"]
        patch.setattr(sys, "argv", ["ws", *map(str, command)])
        with pytest.raises(SystemExit) as stopped:
            main()
    assert not stopped.value.code
    return out
