"""Data and templates of strangers: an error of two lines, in bounded time."""

import json
import os
import time

import pytest

from weightsurgery.errors import DataError
from weightsurgery.learning import chat
from weightsurgery.learning.chat import assistant_turns
from weightsurgery.learning.conversations import Conversation
from weightsurgery.learning.files import read_rows

LINES = {
    "digits": '{"prompt": ' + "9" * 5000 + "}",
    "half a character": '{"prompt": "\\ud800", "completion": "x"}',
    "deep half": '{"messages": [{"content": "a\\uDFFFb"}]}',
    "half a key": '{"\\udc00": 1}',
    "twice": '{"prompt": "a", "prompt": "b"}',
    "twice inside": '{"messages": [{"role": "user", "role": "assistant"}]}',
    "deep": "[" * 100_000,
}


@pytest.mark.parametrize("ending", [".jsonl", ".json"])
@pytest.mark.parametrize("line", LINES.values(), ids=LINES)
def test_hostile_lines(tmp_path, line, ending):
    path = tmp_path / f"data{ending}"
    path.write_text(line if ending == ".jsonl" else f"[{line}]")
    with pytest.raises(DataError) as error:
        read_rows(path)
    assert str(path) in error.value.what
    assert len(error.value.what) < 500
    assert "\n" not in error.value.what


def test_whole_characters_stay(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text('{"prompt": "\\ud83d\\ude00", "completion": "\\\\ud800"}')
    assert read_rows(path)[0][1] == {"prompt": "\U0001f600", "completion": "\\ud800"}


def test_a_heading_that_stands_twice(tmp_path):
    path = tmp_path / "data.csv"
    path.write_text("prompt,completion,prompt\na,b,c\n")
    with pytest.raises(DataError, match="'prompt' twice"):
        read_rows(path)


@pytest.mark.parametrize("name", ["data.jsonl", "data.json", "data.csv", "data.parquet"])
def test_a_pipe_is_not_waited_for(tmp_path, name):
    os.mkfifo(tmp_path / name)
    with pytest.raises(DataError, match="no plain file"):
        read_rows(tmp_path / name)


def saved(root, files, **more):
    root.mkdir()
    (root / "state.json").write_text(json.dumps({"_data_files": files, **more}))
    (root / "dataset_info.json").write_text("{}")
    (root / "x.arrow").write_bytes(b"")
    return root


@pytest.mark.parametrize(
    "files",
    [[{"filename": "../x.arrow"}], [{"filename": "/etc/passwd"}], [{"filename": "a/../../x"}],
     [{"filename": 7}], [{}], [7], 7, None, {"a": 1}, [{"filename": ""}], [{"filename": ".."}]],
)  # fmt: skip
def test_a_saved_data_set_that_points_elsewhere(tmp_path, files):
    (tmp_path / "x.arrow").write_bytes(b"")
    with pytest.raises(DataError, match=r"state\.json"):
        read_rows(saved(tmp_path / "data", files))


def test_a_saved_data_set_of_links(tmp_path):
    (tmp_path / "secret").write_bytes(b"")
    data = saved(tmp_path / "data", [{"filename": "x.arrow"}])
    (data / "x.arrow").unlink()
    (data / "x.arrow").symlink_to("../secret")
    with pytest.raises(DataError, match="leads out"):
        read_rows(data)


MESSAGES = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
TALK = Conversation(MESSAGES, None, (1,))
LOOP = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
TEMPLATES = {
    "time": LOOP,
    "memory": "{{ 'a' * 99999999999 }}",
    "doubling": "{% set n = namespace(x='a') %}{% for i in range(60) %}"
    "{% set n.x = n.x ~ n.x %}{% endfor %}",
    "width": "{{ '%99999999999d' % 1 }}",
    "words": "{{ lipsum(n=999999999) }}",
}


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
def test_templates_without_end(chat_tokenizer, monkeypatch, template):
    monkeypatch.setattr(chat, "_SECONDS", 0.5)
    monkeypatch.setattr(chat, "_BYTES", 1 << 28)
    monkeypatch.setattr(chat_tokenizer, "chat_template", template)
    begun = time.process_time()
    with pytest.raises(DataError, match="the chat template fails"):
        assistant_turns(chat_tokenizer, TALK, "here")
    assert time.process_time() - begun < 10


@pytest.mark.parametrize("template", ["{{ 9**9**9 }}", "{% set x = 3 ** 4 %}"])
def test_a_template_that_raises_to_powers(chat_tokenizer, monkeypatch, template):
    monkeypatch.setattr(chat_tokenizer, "chat_template", template)
    with pytest.raises(DataError, match="powers"):
        assistant_turns(chat_tokenizer, TALK, "here")


def test_a_template_s_bounds_end_with_it(chat_tokenizer):
    import resource
    import sys

    before = resource.getrlimit(resource.RLIMIT_AS)
    assert assistant_turns(chat_tokenizer, TALK, "here")
    assert resource.getrlimit(resource.RLIMIT_AS) == before
    assert sys.gettrace() is None
