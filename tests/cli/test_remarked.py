"""What is odd about a base is said by every command that looks at it or edits it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.cli.typed import Command
from tests.learning.tiny import byte_tokenizer, tiny

SAID = "the tokenizer 259 tokens: the last 5 rows stand for none"

COMMANDS = {
    "diff": ["diff", "BASE", "TUNED"],
    "subspace": ["subspace", "BASE", "TUNED", "-o", "OUT", "--rank", "2", "--dry-run"],
    "overlap": ["overlap", "BASE", "TUNED", "TUNED"],
    "negate": ["negate", "BASE", "TUNED", "-o", "OUT", "--dry-run"],
    "project": ["project", "BASE", "--forget", "TUNED", "--keep", "TUNED", "-o", "OUT",
                "--dry-run"],
    "project from data": ["project", "BASE", "--forget", "DATA", "-o", "OUT", "--dry-run"],
    "identify": ["identify", "BASE", "DATA", "-o", "OUT", "--dry-run"],
    "unlearn": ["unlearn", "BASE", "--method", "gradient-ascent", "--forget", "DATA", "-o", "OUT",
                "--dry-run"],
    "sweep": ["sweep", "BASE", "--forget", "TUNED", "--keep", "TUNED", "--forget-data", "DATA",
              "--keep-data", "DATA", "--scales", "1", "--ranks", "2", "--sides", "right"],
}  # fmt: skip


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    """A base and a fine-tune, with rows for no token and without."""
    found = {}
    for padded in (True, False):
        root = tmp_path_factory.mktemp("padded" if padded else "plain")
        model = tiny("llama")
        if padded:
            model.resize_token_embeddings(264)
        for name in ("base", "tuned"):
            model.save_pretrained(root / name)
            byte_tokenizer().save_pretrained(root / name)
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.add_(0.01 * torch.randn_like(parameter))
        rows = [{"prompt": f"The colour of {n} is", "completion": " red"} for n in "abcd"]
        (root / "data.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
        found[padded] = root
    return found


@pytest.mark.parametrize("command", COMMANDS)
def test_it_is_said_once(command: str, ws: Command, places: dict[bool, Path]) -> None:
    for padded, root in places.items():
        where = {"BASE": root / "base", "TUNED": root / "tuned", "DATA": root / "data.jsonl",
                 "OUT": root / "out"}  # fmt: skip
        code, _, said = ws.run(*(where.get(word, word) for word in COMMANDS[command]))
        # A sweep of a model that knows nothing ends with an error, after what is said.
        assert code == 0 or command == "sweep", said
        assert said.replace("\n", " ").count(SAID) == padded, said
        assert not (root / "out").exists()
