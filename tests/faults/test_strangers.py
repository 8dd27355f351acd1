"""What strangers may hand over that is no mutant of a good file, and what becomes of it."""

from __future__ import annotations

import json
import os
import pickle
import re
import unicodedata
from pathlib import Path
from typing import Any

import jinja2
import pytest
import torch

from tests.cli.typed import ws
from tests.conftest import read_tensors, write_checkpoint
from tests.faults.fuzzed import good
from tests.faults.many import COMMANDS, measured, write_many
from tests.learning.tiny import byte_tokenizer
from tests.report.paged import data_of
from weightsurgery.checkpoint.record import read_record
from weightsurgery.errors import DataError, VerificationError, WeightSurgeryError
from weightsurgery.learning import chat
from weightsurgery.learning.conversations import Conversation
from weightsurgery.report.card import Base, Place, card_section, front_matter
from weightsurgery.report.outputs import output_page

NAME = "layers.0.mlp.up_proj.weight"


def refused(*words: object, cwd: Path) -> str:
    """What is wrong, of a command that says it in two lines."""
    done = ws(*words, cwd=cwd)
    assert done.returncode == 1, (words, done)
    assert "Traceback" not in done.stderr, done.stderr
    lines = done.stderr.strip().splitlines()
    assert lines[0].startswith("error: "), done.stderr
    assert len(lines) == 2, done.stderr
    return lines[0]


# Pickles


class Planted:
    """Makes a file where it is unpickled."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.place),)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "adapter_model.bin", "model.pt"])
def test_a_pickle_is_not_unpickled(tmp_path: Path, name: str) -> None:
    ran = tmp_path / "ran"
    evil = tmp_path / "evil"
    evil.mkdir()
    (evil / name).write_bytes(pickle.dumps({NAME: Planted(ran)}))
    (evil / "config.json").write_text('{"model_type": "llama"}')
    (evil / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 1, "lora_alpha": 1}')
    if not name.startswith("adapter"):
        (evil / "adapter_config.json").unlink()
    pickle.loads((evil / name).read_bytes())
    assert ran.is_dir()  # it would
    ran.rmdir()
    write_checkpoint(tmp_path / "base", {NAME: torch.eye(4)})
    for words in (
        ["inspect", "evil"], ["negate", "evil", "base", "-o", "out"],
        ["negate", "base", "evil", "-o", "out"], ["diff", "base", "evil"],
        ["evaluate", "evil", "--forget", "x.jsonl"],
    ):  # fmt: skip
        refused(*words, cwd=tmp_path)
    assert not ran.exists()
    assert not (tmp_path / "out").exists()


# Files that are not what they seem


def sparse(path: Path, header: dict[str, Any] | None, size: int) -> Path:
    """A file of this size, of which hardly anything lies on the disk."""
    path.parent.mkdir(exist_ok=True)
    with path.open("wb") as file:
        if header is None:
            file.write((size - 8).to_bytes(8, "little"))
        else:
            text = json.dumps(header).encode()
            file.write(len(text).to_bytes(8, "little") + text)
            size += 8 + len(text)
        file.truncate(size)
    assert path.stat().st_blocks < 100
    return path


def test_a_sparse_file_of_a_terabyte(tmp_path: Path) -> None:
    size = 1 << 40
    whole = {NAME: {"dtype": "F32", "shape": [size // 4], "data_offsets": [0, size]}}
    sparse(tmp_path / "wide/model.safetensors", whole, size)
    sparse(tmp_path / "headed/model.safetensors", None, size)
    code, said, _, megabytes = measured(["inspect", "wide", "--json"], tmp_path)
    assert (code, json.loads(said)["nbytes"]) == (0, size)
    assert megabytes < 1000
    code, _, _, megabytes = measured(["inspect", "headed"], tmp_path)
    assert code == 1
    assert megabytes < 1000
    assert "free" in refused("negate", "wide", "wide", "-o", "out", cwd=tmp_path)
    assert not (tmp_path / "out").exists()


def test_a_link_out_of_a_checkpoint_brings_nothing_along(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("a secret of this machine")
    write_checkpoint(tmp_path / "tuned", {NAME: torch.eye(4) * 2})
    for name in ("tokenizer.json", "config.json", "chat_template.jinja"):
        base = write_checkpoint(tmp_path / name, {NAME: torch.eye(4)})
        (base / name).unlink(missing_ok=True)
        (base / name).symlink_to("../secret")
        assert (base / name).read_text() == "a secret of this machine"
        refused("negate", base, "tuned", "-o", "out", cwd=tmp_path)
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", COMMANDS)
def test_twenty_thousand_tiny_tensors(tmp_path: Path, command: str) -> None:
    """Of no dimension, of no element, of one: a header's worth of memory, and a bound of time."""
    for count, place in ((100, tmp_path / "few"), (20_000, tmp_path / "many")):
        write_many(place / "base", count, 1.0)
        write_many(place / "tuned", count, 1.5)
    few = measured(COMMANDS[command], tmp_path / "few")
    many = measured(COMMANDS[command], tmp_path / "many")
    assert few[0] == many[0] == 0
    found = json.loads(many[1])
    if command == "inspect":
        assert found["tensors"] == 20_000
    elif command == "diff":
        assert len(found["tensors"]) == 20_000
    else:
        out = read_tensors(tmp_path / "many/out")
        assert {float(t) for t in out.values() if t.numel()} == {0.5}
    assert many[3] - few[3] < 200  # megabytes: ten kilobytes a tensor
    assert many[2] - few[2] < 120  # seconds, on a busy machine: six milliseconds


# Words that steer

STEERS = ("\x1b]0;owned\x07", "\x1b[2J", "\x9b31m", "\u202egnp", "<script>alert(1)</script>")


def harmless(text: str) -> None:
    for letter in text:
        assert letter in "\n\r\t" or unicodedata.category(letter) not in ("Cc", "Cf"), repr(letter)


def test_names_steer_neither_terminal_nor_page_nor_card(tmp_path: Path) -> None:
    steer = "".join(STEERS)
    assert unicodedata.category(steer[0]) == "Cc"
    tensors = {f"layers.{n}.{text}.up_proj.weight": torch.eye(4) for n, text in enumerate(STEERS)}
    base = write_checkpoint(tmp_path / f"base{STEERS[0]}", tensors)
    tuned = write_checkpoint(tmp_path / f"tuned{STEERS[3]}", {n: t * 2 for n, t in tensors.items()})
    (base / "model.safetensors").rename(base / f"model{STEERS[1]}.safetensors")
    runs = [
        ws("negate", base, tuned, "-o", "out", "-v", "--html", "edit.html", cwd=tmp_path),
        ws("diff", base, tuned, "-v", "--html", "diff.html", cwd=tmp_path),
        ws("diff", base, tuned, "--json", cwd=tmp_path),
        ws("verify", "out", cwd=tmp_path),
        ws("run", "--from", "out", cwd=tmp_path),
    ]
    for done in runs:
        assert done.returncode == 0, done.stderr
        harmless(done.stdout + done.stderr)
    assert "owned" in runs[0].stdout  # it is shown
    for page in ("edit.html", "diff.html"):
        text = (tmp_path / page).read_text()
        assert "owned" in text
        assert "<script>alert" not in text
        harmless(json.dumps(data_of(tmp_path / page), ensure_ascii=False))
    record = read_record(tmp_path / "out")
    card = card_section(record, Base(), Place("owner/name"), True)
    assert "owned" in card
    harmless(card)
    assert "<script>" not in re.sub(r"`[^`]*`|```.*?```", "", card, flags=re.S)


# Templates


ESCAPES = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ cycler.__init__.__globals__.os.mkdir('ran') }}",
    "{{ self.__init__.__globals__.__builtins__.open('ran', 'w') }}",
    "{% set f = messages.append.__self__.__class__ %}{{ f.__base__.__subclasses__() }}",
]


@pytest.mark.parametrize("template", ESCAPES)
def test_a_template_does_not_leave_its_sandbox(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, template: str
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    shown = jinja2.Environment().from_string(template).render(messages=rows)
    assert "class" in shown or list(tmp_path.iterdir())  # elsewhere it gets out
    for path in tmp_path.iterdir():
        path.rmdir() if path.is_dir() else path.unlink()
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template
    with pytest.raises(DataError, match="template"):
        chat.assistant_turns(tokenizer, Conversation(rows, None, (1,)), "here")
    assert list(tmp_path.iterdir()) == []


# Records


OTHERS: list[tuple[str, Any]] = [
    ("inputs", {"base": []}), ("parent", 1),
    ("parameters", {"selection": {"scales": [[1, 2, 3]]}}), ("parameters", []), ("lineage", ["x"]),
    ("summary", {"selected": {}}), ("summary", {"surviving_fraction": "x"}), ("summary", {}),
    ("versions", 0.5), ("tensors", {NAME: {"relative_change": "BF16"}}), ("tensors", {NAME: 1}),
    ("command", [1]), ("inputs", {"base": {"fitted": {"share": 1.0}}}),
]  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return good(tmp_path_factory.mktemp("whole"))


def told(out: Path) -> None:
    """All that a record is told of in: a card, its front matter, a page."""
    record = read_record(out)
    front_matter(record, Base())
    card_section(record, Base(), Place("owner/name"), False)
    output_page(out)


@pytest.mark.parametrize(("key", "value"), OTHERS)
def test_a_record_of_another_shape_is_refused(whole: Path, key: str, value: Any) -> None:
    path = whole / "out/weightsurgery.json"
    honest = path.read_text()
    told(whole / "out")
    try:
        path.write_text(json.dumps({**json.loads(honest), key: value}))
        with pytest.raises(VerificationError) as error:
            told(whole / "out")
        assert "weightsurgery.json" in error.value.what or "record" in error.value.what
    finally:
        path.write_text(honest)


def test_an_error_is_no_longer_than_a_screen() -> None:
    error = WeightSurgeryError("a" * 4000 + "z", "b" * 9000)
    assert len(error.what) < 3000
    assert error.what.endswith("z")
    assert "1201 characters" in error.what
    assert len(str(error)) < 4000
    assert WeightSurgeryError("a" * 2800).what == "a" * 2800
