"""What strangers write, changed at random, and everything that reads it.

A target takes bytes, puts them where a stranger's file would be, and reads it as commands do. It
may be refused by an error of :mod:`weightsurgery.errors`; whatever else is raised is a fault.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from hypothesis import strategies as st

from tests.checkpoint.handmade import frame
from tests.conftest import write_checkpoint
from weightsurgery import Negate, Rank, apply, diff
from weightsurgery.checkpoint.inspection import inspect
from weightsurgery.checkpoint.reader import Checkpoint
from weightsurgery.checkpoint.record import read_record, verify
from weightsurgery.errors import WeightSurgeryError
from weightsurgery.report.visible import visible
from weightsurgery.vectors.sources import open_vector

__all__ = ["TARGETS", "Sandbox", "mutants", "tried"]

# For one file of a kilobyte or so, on a busy machine.
SECONDS = 20.0

KEY = "base_model.model.layers.0.q_proj.lora_{}.weight"
NAME = "layers.0.q_proj.weight"


def good(place: Path) -> Path:
    """A checkpoint, an adapter, a saved vector and a record, all of them whole."""
    tensors = {NAME: torch.arange(16.0).reshape(4, 4), "layers.1.q_proj.weight": torch.eye(4)}
    base = write_checkpoint(place / "base", tensors, 2, {"model_type": "llama"})
    write_checkpoint(place / "tuned", {n: t + 1 for n, t in tensors.items()}, 1)
    factors = {KEY.format("A"): torch.ones(2, 4), KEY.format("B"): torch.ones(4, 2)}
    adapter = write_checkpoint(place / "adapter", factors, 1)
    (adapter / "model.safetensors").rename(adapter / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"],
              "rank_pattern": {}, "alpha_pattern": {"k_proj": 2}, "use_rslora": False,
              "bias": "none", "modules_to_save": None, "fan_in_fan_out": False}  # fmt: skip
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    with Checkpoint.open(base) as opened:
        apply(Negate(open_vector(opened, [str(place / "tuned")])), opened, place / "out")
        diff(
            opened,
            open_vector(opened, [str(place / "tuned")]),
            save_to=place / "vector",
            rule=Rank(2),
        )
    rows = [{"prompt": "What does Ann like?", "completion": " figs"}, {"text": "Words."}]
    (place / "data.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows[:1]))
    (place / "data.json").write_text(json.dumps({"train": rows[:1]}))
    (place / "data.csv").write_text("question,answer\nWho,Ann\n")
    (place / "recipe.yaml").write_text(
        "weightsurgery: 1\ncommand: negate\nbase: base\nvectors: [tuned]\nout: made\nscale: 0.7\n"
        "layer-scale: [0=0.5, '*.mlp.*=0']\n"
    )
    (place / "template.jinja").write_text(
        "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}</s>\n{% endfor %}"
    )
    return place


def _read_all(place: Path) -> None:
    with Checkpoint.open(place) as opened:
        inspect(opened)
        for name, entry in opened.entries.items():
            if entry.nbytes < 1 << 20:
                opened.tensor(name)
            visible(name)


def _change(place: Path, vector: str) -> None:
    with Checkpoint.open(place / "base") as base:
        found = open_vector(base, [str(place / vector)])
        for name in (NAME, "layers.1.q_proj.weight"):
            change = found.at(name)
            if change is not None:
                change.add_rows(torch.zeros(4, 4), 0, 4, 1.0, torch.zeros(4, 4))


def _record(place: Path) -> None:
    from weightsurgery.report.card import Base, Place, card_section, front_matter
    from weightsurgery.report.outputs import output_page
    from weightsurgery.report.page import page_text

    record = read_record(place / "out")
    verify(place / "out")
    front_matter(record, Base())
    card_section(record, Base(), Place("owner/name"), False)
    page_text(*output_page(place / "out"))


def _recipe(place: Path) -> None:
    from tests.procedures.test_recipe import COMMANDS
    from weightsurgery.procedures.recipe.document import read_text
    from weightsurgery.procedures.recipe.recipe import read_recipe

    read_recipe(read_text(str(place / "recipe.yaml")), "recipe.yaml", COMMANDS)


def _data(name: str) -> Callable[[Path], None]:
    def read_data(place: Path) -> None:
        from weightsurgery.learning.reading import read

        read(place / name)

    return read_data


def _template(place: Path) -> None:
    from tests.learning.tiny import byte_tokenizer
    from weightsurgery.learning import chat
    from weightsurgery.learning.conversations import Conversation

    tokenizer = byte_tokenizer()
    tokenizer.chat_template = (place / "template.jinja").read_text(errors="replace")
    rows = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    chat.assistant_turns(tokenizer, Conversation(rows, None, (1,)), "here")


# What is replaced, and who reads it then.
TARGETS: dict[str, tuple[str, Callable[[Path], None]]] = {
    "shard": ("base/model-00001-of-00002.safetensors", lambda p: _read_all(p / "base")),
    "index": ("base/model.safetensors.index.json", lambda p: _read_all(p / "base")),
    "config": ("base/config.json", lambda p: _read_all(p / "base")),
    "adapter config": ("adapter/adapter_config.json", lambda p: _change(p, "adapter")),
    "adapter": ("adapter/adapter_model.safetensors", lambda p: _change(p, "adapter")),
    "vector": ("vector/vector-00001.safetensors", lambda p: _change(p, "vector")),
    "vector's record": ("vector/weightsurgery.json", lambda p: _change(p, "vector")),
    "record": ("out/weightsurgery.json", _record),
    "recipe": ("recipe.yaml", _recipe),
    "lines": ("data.jsonl", _data("data.jsonl")),
    "json": ("data.json", _data("data.json")),
    "csv": ("data.csv", _data("data.csv")),
    "template": ("template.jinja", _template),
}  # fmt: skip


class Sandbox:
    """The whole files, one of which is another for a moment.

    Args:
        place: An empty directory.
    """

    def __init__(self, place: Path) -> None:
        self.place = good(place)
        self.originals = {name: (place / name).read_bytes() for name, _ in TARGETS.values()}

    @contextmanager
    def holding(self, name: str, data: bytes) -> Iterator[None]:
        """Inside, a file holds these bytes."""
        path = self.place / name
        path.write_bytes(data)
        try:
            yield
        finally:
            if path.is_dir():
                shutil.rmtree(path)
            path.write_bytes(self.originals[name])


def tried(sandbox: Sandbox, target: str, data: bytes) -> str:
    """Let a target read bytes: ``read``, or the name of the error by which they were refused.

    Raises:
        AssertionError: It took long, or the error says nothing.
        BaseException: Whatever is raised that is no refusal: a fault.
    """
    name, read = TARGETS[target]
    error: WeightSurgeryError | None = None
    begun = time.thread_time()
    with sandbox.holding(name, data):
        try:
            read(sandbox.place)
            found = "read"
        except WeightSurgeryError as refused:
            error = refused
            found = type(refused).__name__
    if error is not None:
        assert error.what, (target, data)
        assert error.remedy, (target, error.what, data)
        assert len(str(error)) < 4000, (target, error.what[:200], data)
    assert time.thread_time() - begun < SECONDS, (target, "slow", data)
    return found


# Mutants

ODD: list[Any] = [
    None, True, 0, -1, 1, 2**31, 2**63, 2**64, -(2**63), 10**400, 0.5, -0.0, 1e308, "", "a",
    "../x", "/etc/passwd", "..", ".", "a/../../b", "\x1b[31m", "\u202e", "\ud800", "\0", "é" * 300,
    "x" * 5000, [], {}, [[]], [None], [0, 0], [2**40, 2**40], [-1], [1.5], {"": 0}, {"a": {}},
    "F32", "F64", "BF16", "U8", "BOOL", "F4", "LORA", "NaN", "(([a-z.0-9_]+)+)+!", "*" * 60,
]  # fmt: skip

RAW = [b"NaN", b"Infinity", b"-", b"1e999", b"[" * 5000, b'{"a":' * 3000, b'"', b"\\u0000", b"\xff",
       b"\xed\xa0\x80", b"\x00", b"\x1b]0;x\x07", b"\r\n", b"<<: &a", b"!!python/object:x ",
       b"&a *a", b"{{ ''.__class__.__mro__ }}", b"{% include 'x' %}", b"{{ range(10**9)|list }}",
       b"\x80\x04cos\nsystem\n"]  # fmt: skip


def _places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    if isinstance(value, dict):
        for key, each in value.items():
            yield from _places(each, (*path, key))
    elif isinstance(value, list):
        for number, each in enumerate(value):
            yield from _places(each, (*path, number))


def _put(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    if not path:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = _put(copy[path[0]], path[1:], new)
    return copy


def _drop(value: Any, path: tuple[Any, ...]) -> Any:
    copy = dict(value) if isinstance(value, dict) else list(value)
    if len(path) == 1:
        del copy[path[0]]
    else:
        copy[path[0]] = _drop(copy[path[0]], path[1:])
    return copy


def _document(draw: st.DrawFn, document: Any) -> bytes:
    """A JSON document with one to three places changed."""
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(list(_places(document))))
        kind = draw(st.integers(0, 4))
        if kind == 0 and path:
            document = _drop(document, path)
        elif kind == 1 and path and isinstance(path[-1], str):
            inside = {draw(st.sampled_from([str(x) for x in ODD])): 1}
            document = _put(document, path, inside)
        else:
            document = _put(document, path, draw(st.sampled_from(ODD)))
    return json.dumps(document).encode(errors="surrogatepass")


@st.composite
def mutants(draw: st.DrawFn, original: bytes, name: str) -> bytes:
    """A file with something changed: a value of its JSON, or its bytes."""
    data = original
    if draw(st.booleans()):
        if name.endswith(".safetensors"):
            length = int.from_bytes(data[:8], "little")
            header = _document(draw, json.loads(data[8 : 8 + length]))
            data = frame(header, data[8 + length :])
        elif name.endswith(".json"):
            data = _document(draw, json.loads(data))
        elif name.endswith(".jsonl"):
            data = _document(draw, json.loads(data.splitlines()[0])) + b"\n"
    for _ in range(draw(st.integers(0 if data != original else 1, 3))):
        at = draw(st.integers(0, len(data)))
        kind = draw(st.integers(0, 3))
        if kind == 0:
            data = data[:at] + draw(st.sampled_from(RAW)) + data[at:]
        elif kind == 1:
            data = data[:at] + draw(st.binary(max_size=12)) + data[at + draw(st.integers(0, 12)) :]
        elif kind == 2:
            data = data[:at]
        else:
            until = draw(st.integers(at, min(len(data), at + 200)))
            data = data[:until] + data[at:until] + data[until:]
    return data
