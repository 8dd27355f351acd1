"""Data sets that are parts of others, as an edit reads and records them."""

import json

import pytest

from tests.learning.conftest import byte_tokenizer
from weightsurgery.errors import DataError
from weightsurgery.procedures.splits import DataSets
from weightsurgery.unlearning.sets import FileSet, Sets


@pytest.fixture
def parted(tmp_path):
    rows = {
        each: [{"question": f"{each} {n}?", "answer": "x"} for n in range(2)]
        for each in ("train", "test")
    }
    (tmp_path / "a.json").write_text(json.dumps(rows))
    return str(tmp_path / "a.json")


def test_two_splits_of_a_file_are_two_sets(parted, tmp_path):
    first, again, second = (
        FileSet.read(f"{parted}#{part}", None) for part in ("train", "train", "test")
    )
    assert first.same_as(again)
    assert not first.same_as(second)
    assert [each.prompt for each in second.examples] == ["test 0?", "test 1?"]
    assert first.described["name"] == f"{parted}#train"
    assert list(first.described["files"]) == ["a.json"]
    assert first.described["read"] == {"columns": {"prompt": "question", "text": "answer"}}
    Sets.read(None, target=[f"{parted}#train"], keep=[f"{parted}#test"])
    with pytest.raises(DataError, match="the same data as"):
        Sets.read(None, target=[f"{parted}#train"], keep=[f"{parted}#train"])
    sets = DataSets(f"{parted}#train", [f"{parted}#test"])
    assert [len(each.examples) for each in sets.read(None)[0]] == [2, 2]
    with pytest.raises(DataError, match="is named twice"):
        DataSets(f"{parted}#train", [f"{parted}#train"]).read(None)


def test_the_day_is_in_the_record(tmp_path):
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{{ strftime_now('%d') }}{% for m in messages %}{{ m.content }}</s>"
    tokenizer.chat_template += "{% endfor %}"
    talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    (tmp_path / "a.jsonl").write_text(json.dumps({"messages": talk}))
    (tmp_path / "b.jsonl").write_text(json.dumps({"prompt": "a", "completion": "b"}))
    assert FileSet.read(str(tmp_path / "a.jsonl"), tokenizer).described["read"] == {
        "date": "2024-07-26"
    }
    assert "read" not in FileSet.read(str(tmp_path / "b.jsonl"), tokenizer).described
