"""Data files in every format, chat templates, tokens and label masks."""

import csv
import json

import pyarrow
import pyarrow.parquet
import pytest
from datasets import Dataset, DatasetDict

from tests.learning.conftest import byte_tokenizer, write
from weightsurgery.errors import DataError
from weightsurgery.learning.data import (
    IGNORED,
    Collator,
    Encoded,
    Example,
    encode,
    read_examples,
)

PAIR = {"prompt": "Où?", "completion": ' là, "bas"\nici'}
TALK = [
    {"role": "user", "content": "hi"},
    {"role": "assistant", "content": "Hello"},
    {"role": "user", "content": "why?"},
    {"role": "assistant", "content": "So."},
]


def lines(path, *rows):
    return write(path, *(json.dumps(row, ensure_ascii=False) for row in rows))


def test_reads_examples(tmp_path):
    row = {"prompt": "Où?", "completion": " là\u2028bas", "note": 1}
    path = write(
        tmp_path / "a.jsonl",
        json.dumps(row, ensure_ascii=False),
        "",
        '  {"prompt": "a", "completion": "b"}',
    )
    assert read_examples(path) == [Example("Où?", " là\u2028bas"), Example("a", "b")]


def test_every_source_gives_the_same(tmp_path):
    rows = [PAIR, {"prompt": "1", "completion": "007"}]
    expected = read_examples(lines(tmp_path / "a.jsonl", *rows))
    assert expected == [Example(row["prompt"], row["completion"]) for row in rows]

    marked = tmp_path / "bom.jsonl"
    marked.write_bytes(b"\xef\xbb\xbf" + (tmp_path / "a.jsonl").read_bytes())
    crlf = tmp_path / "crlf.jsonl"
    crlf.write_bytes((tmp_path / "a.jsonl").read_bytes().replace(b"\n", b"\r\n"))
    array = tmp_path / "a.json"
    array.write_text(json.dumps(rows))
    by_line = lines(tmp_path / "lines.json", *rows)
    table = tmp_path / "a.csv"
    with table.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["prompt", "completion"])
        writer.writeheader()
        writer.writerows(rows)
    parquet = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), parquet)
    Dataset.from_list(rows).save_to_disk(tmp_path / "saved")
    for path in (marked, crlf, array, by_line, table, parquet, tmp_path / "saved"):
        assert read_examples(path) == expected, path


def test_a_parquet_column_may_be_null(tmp_path):
    rows = [{**PAIR, "perturbed": ["x"], "text": None}, {**PAIR, "perturbed": None, "text": None}]
    path = tmp_path / "a.parquet"
    schema = pyarrow.schema(
        [
            ("prompt", pyarrow.string()),
            ("completion", pyarrow.string()),
            ("perturbed", pyarrow.list_(pyarrow.string())),
            ("text", pyarrow.string()),
        ]
    )
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows, schema=schema), path)
    assert [each.perturbed for each in read_examples(path)] == [("x",), ()]


def test_wrong_completions_and_paraphrases_are_kept(tmp_path):
    path = lines(tmp_path / "a.jsonl", {**PAIR, "perturbed": ["a", "b"], "paraphrase": "c"})
    (example,) = read_examples(path)
    assert example.perturbed == ("a", "b")
    assert example.paraphrase == "c"


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("{", "is not JSON"),
        ("[1]", "is a JSON list"),
        ("[" * 100_000, "nested too deeply"),
        ('{"prompt": "a"}', '"completion" is missing'),
        ('{"prompt": 3, "completion": "b"}', '"prompt" is missing, empty or not a string'),
        ('{"prompt": "a", "completion": ""}', '"completion" is missing, empty'),
        ('{"prompt": "a", "completion": "b", "perturbed": "c"}', '"perturbed" is no list'),
        ('{"prompt": "a", "completion": "b", "perturbed": [""]}', '"perturbed" is no list'),
        ('{"prompt": "a", "completion": "b", "paraphrase": ""}', '"paraphrase" is missing'),
        ('{"text": "a"}', "is a text, but the rows before it are a prompt with a completion"),
        (
            '{"question": "a"}',
            "has the columns question: no prompt with a completion, no messages, no text",
        ),
    ],
)
def test_bad_lines_are_named(tmp_path, line, fault):
    path = write(tmp_path / "a.jsonl", '{"prompt": "a", "completion": "b"}', line)
    with pytest.raises(DataError) as caught:
        read_examples(path)
    assert "a.jsonl, line 2" in str(caught.value)
    assert fault in str(caught.value)
    assert caught.value.remedy


def test_bad_files_are_named(tmp_path):
    for name in ("missing.jsonl", "missing.parquet", "missing.csv", "missing.json"):
        with pytest.raises(DataError, match=rf"{name}: cannot be read"):
            read_examples(tmp_path / name)
    with pytest.raises(DataError, match=r"empty.jsonl: holds no examples"):
        read_examples(write(tmp_path / "empty.jsonl", "", "  "))
    (tmp_path / "latin.jsonl").write_bytes(b"\xe9")
    with pytest.raises(DataError, match=r"latin.jsonl: is not UTF-8"):
        read_examples(tmp_path / "latin.jsonl")
    with pytest.raises(DataError, match=r"a.csv, line 3: has another number of cells"):
        read_examples(write(tmp_path / "a.csv", "prompt,completion", "a,b", "a,b,c"))
    with pytest.raises(DataError, match="is not CSV"):
        read_examples(write(tmp_path / "q.csv", "prompt,completion", '"a,b'))
    with pytest.raises(DataError, match="cannot be read as Parquet"):
        read_examples(write(tmp_path / "a.parquet", "no"))
    with pytest.raises(DataError, match="row 2: is a JSON int"):
        read_examples(write(tmp_path / "a.json", '[{"text": "a"}, 3]'))
    (tmp_path / "nothing").mkdir()
    with pytest.raises(DataError, match="none written by datasets"):
        read_examples(tmp_path / "nothing")
    DatasetDict({"train": Dataset.from_list([PAIR])}).save_to_disk(tmp_path / "splits")
    with pytest.raises(DataError, match="holds several splits"):
        read_examples(tmp_path / "splits")
    assert read_examples(tmp_path / "splits/train") == [Example(PAIR["prompt"], PAIR["completion"])]


def test_jsonl_needs_no_further_library(tmp_path, monkeypatch):
    rows = [PAIR]
    parquet = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), parquet)
    Dataset.from_list(rows).save_to_disk(tmp_path / "saved")
    monkeypatch.setattr("weightsurgery.deferred.find_spec", lambda name: None)
    for path in (parquet, tmp_path / "saved"):
        with pytest.raises(DataError) as caught:
            read_examples(path)
        assert "weightsurgery[eval]" in caught.value.remedy
    assert len(read_examples(lines(tmp_path / "a.jsonl", *rows))) == 1


def test_conversations_are_what_the_template_renders(tmp_path, chat_tokenizer):
    path = lines(tmp_path / "a.jsonl", {"messages": TALK}, {"messages": TALK[:2]})
    examples = read_examples(path, chat_tokenizer)
    assert len(examples) == 3
    assert [example.templated for example in examples] == [True] * 3
    for example, stop in zip(examples, (2, 4, 2), strict=True):
        text = chat_tokenizer.apply_chat_template(TALK[:stop], tokenize=False)
        assert example.prompt + example.completion == text
        assert example.completion == TALK[stop - 1]["content"] + "</s>\n"
        encoded = encode(chat_tokenizer, example)
        own = chat_tokenizer.apply_chat_template(TALK[:stop], tokenize=True, return_dict=False)
        assert encoded.input_ids == list(own)
        question = chat_tokenizer.apply_chat_template(
            TALK[: stop - 1], tokenize=True, add_generation_prompt=True, return_dict=False
        )
        assert encoded.input_ids[: encoded.prompt_length] == list(question)
        # What ends the turn: EOS and the line feed behind it.
        assert encoded.end_length == 2
        assert encoded.input_ids.count(chat_tokenizer.bos_token_id) == 0


@pytest.mark.parametrize(
    ("messages", "fault"),
    [
        ([], "has no message of the assistant"),
        (TALK[:1], "has no message of the assistant"),
        ([{"role": "user"}], 'message 1 lacks a "role" or "content"'),
        ([*TALK[:1], {"role": "assistant", "content": ["a"]}], "message 2 lacks"),
        ([*TALK[:1], {"role": "assistant", "content": ""}], "the assistant says nothing"),
        ("hi", '"messages" is not a list'),
    ],
)
def test_bad_conversations_are_named(tmp_path, chat_tokenizer, messages, fault):
    path = lines(tmp_path / "a.jsonl", {"messages": messages})
    with pytest.raises(DataError) as caught:
        read_examples(path, chat_tokenizer)
    assert "a.jsonl, line 1" in str(caught.value)
    assert fault in str(caught.value)


def test_conversations_need_a_template_that_works(tmp_path, tokenizer, chat_tokenizer):
    path = lines(tmp_path / "a.jsonl", {"messages": TALK})
    with pytest.raises(DataError, match="Pass the model's tokenizer"):
        read_examples(path)
    with pytest.raises(DataError, match="has no chat template"):
        read_examples(path, tokenizer)
    broken = byte_tokenizer()
    broken.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(DataError, match="roles must alternate"):
        read_examples(path, broken)
    # One that renders the past differently as the conversation goes on.
    broken.chat_template = (
        "{{ messages | length }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
    )
    with pytest.raises(DataError, match="renders the turns before an answer differently"):
        read_examples(path, broken)
    both = lines(tmp_path / "b.jsonl", {"messages": TALK, "perturbed": ["x"]})
    with pytest.raises(DataError, match='"perturbed" beside messages'):
        read_examples(both, chat_tokenizer)


def test_a_text_is_all_completion(tmp_path, tokenizer):
    (example,) = read_examples(lines(tmp_path / "a.jsonl", {"text": "abc"}))
    encoded = encode(tokenizer, example)
    assert encoded.prompt_length == 1
    assert encoded.input_ids[0] == tokenizer.bos_token_id
    assert tokenizer.decode(encoded.input_ids[1:-1]) == "abc"
    assert encoded.input_ids[-1] == tokenizer.eos_token_id
    # Without BOS the first token is given.
    bare = byte_tokenizer(bos=False)
    encoded = encode(bare, example)
    assert encoded.prompt_length == 1
    assert bare.decode(encoded.input_ids[:1]) == "a"
    assert bare.decode(encoded.input_ids[1:-1]) == "bc"
    with pytest.raises(DataError, match="no tokens in the prompt or completion"):
        encode(bare, Example("", "a"))


def test_encodes_with_bos_and_eos(tokenizer):
    encoded = encode(tokenizer, Example("ab", " c"))
    assert encoded.prompt_length == 3
    assert encoded.end_length == 1
    assert encoded.input_ids[0] == tokenizer.bos_token_id
    assert encoded.input_ids[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(encoded.input_ids[1:-1]) == "ab c"


@pytest.mark.parametrize("left", [False, True])
def test_labels_cover_completion_and_end_alone(left):
    rows = [Encoded([7, 8, 9, 1], 2), Encoded([7, 5, 1], 1), Encoded([7, 8, 6, 5, 9, 1], 4)]
    batch = Collator(pad_token_id=2, left=left)(rows)
    assert batch["input_ids"].shape == (3, 6)
    for index, row in enumerate(rows):
        real = batch["attention_mask"][index].bool()
        assert batch["input_ids"][index][real].tolist() == row.input_ids
        assert (batch["input_ids"][index][~real] == 2).all()
        assert (batch["labels"][index][~real] == IGNORED).all()
        expected = [IGNORED] * row.prompt_length + row.input_ids[row.prompt_length :]
        assert batch["labels"][index][real].tolist() == expected
        assert bool(real[-1 if left else 0])
