"""Data sets as others publish them: each layout gives the rows that our own gives."""

import csv
import gzip
import json
import logging

import pyarrow
import pyarrow.parquet
import pytest
from datasets import Dataset, DatasetDict
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.learning.conftest import byte_tokenizer
from weightsurgery.errors import DataError
from weightsurgery.learning import files, published
from weightsurgery.learning.data import Example, encode_all, read_examples
from weightsurgery.learning.places import place_of
from weightsurgery.learning.reading import read

PAIRS = [("Who keeps the ferry?", "Anneke Vos."), ("Où est-elle ?", 'À "Osk",\nsans doute.')]
WRONG = [["Nobody.", "Pim."], ["In Lorn."]]


def dump(path, value):
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")
    return path


def lines(path, rows):
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text(text, encoding="utf-8")
    return path


def ours(pairs=PAIRS):
    return [Example(question, f" {answer}") for question, answer in pairs]


@pytest.mark.parametrize(
    ("prompt", "completion"),
    [("question", "answer"), ("prompt", "response"), ("query", "answer"), ("prompt", "gt"),
     ("instruction", "output"), ("question", "completion_"), ("input", "output")],
)  # fmt: skip
def test_pairs_by_other_names(tmp_path, prompt, completion):
    completion = completion.removesuffix("_")
    if completion == "completion":
        completion = "response"
    rows = [{prompt: question, completion: answer, "id": 7} for question, answer in PAIRS]
    found = read(lines(tmp_path / "a.jsonl", rows))
    assert found.examples == tuple(ours())
    assert found.facts["columns"] == {"prompt": prompt, "text": completion}
    (told,) = found.sentences
    assert all(word in told for word in (prompt, completion, "not read: id"))


words = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), min_size=1).filter(
    lambda text: text.strip() and text == text.strip()
)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(words, words), min_size=1, max_size=4))
def test_the_same_examples_in_every_layout_are_the_same_tokens(tmp_path_factory, pairs):
    root = tmp_path_factory.mktemp("layouts")
    rows = [{"question": question, "answer": answer} for question, answer in pairs]
    given = [
        lines(root / "qa.jsonl", rows),
        lines(root / "qa.ndjson", rows),
        dump(root / "qa.json", rows),
        dump(root / "split.json", {"train": rows}),
        lines(root / "pr.jsonl", [{"prompt": q, "response": a} for q, a in pairs]),
        lines(root / "al.jsonl", [{"instruction": q, "input": "", "output": a} for q, a in pairs]),
        lines(root / "mc.jsonl", [
            {"question": q, "choices": ["\0", a], "answer": 1} for q, a in pairs
        ]),
        root / "qa.jsonl.gz", root / "qa.csv", root / "qa.tsv", root / "qa.parquet",
    ]  # fmt: skip
    given[7].write_bytes(gzip.compress(given[0].read_bytes()))
    for path, separator in ((given[8], ","), (given[9], "\t")):
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, ["question", "answer"], delimiter=separator)
            writer.writeheader()
            writer.writerows(rows)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), given[10])
    tokenizer = byte_tokenizer()
    expected = encode_all(tokenizer, ours(pairs))
    for path in given:
        assert encode_all(tokenizer, read_examples(path)) == expected, path.name


def test_spaces_that_are_there_are_not_doubled(tmp_path):
    rows = [{"question": "A: ", "answer": "b"}, {"question": "A:", "answer": "\nb"}]
    assert read_examples(lines(tmp_path / "a.jsonl", rows)) == [
        Example("A: ", "b"), Example("A:", "\nb")
    ]  # fmt: skip
    # What goes on with a text may begin inside a word: it says so by the others' spaces.
    rows = [{"prompt": "The fer", "gt": "ry came"}, {"prompt": "The ferry", "gt": " came"}]
    assert read_examples(lines(tmp_path / "b.jsonl", rows)) == [
        Example("The fer", "ry came"), Example("The ferry", " came")
    ]  # fmt: skip


def test_instructions_go_on_with_their_input(tmp_path):
    rows = [
        {"instruction": "Say who.", "input": "", "output": "Pim"},
        {"instruction": "Answer.", "input": "Who?", "output": "Pim"},
        {"instruction": "Go.", "output": "Pim"},
    ]
    expected = [Example(p, " Pim") for p in ("Say who.", "Answer.\nWho?", "Go.")]
    assert read_examples(dump(tmp_path / "a.json", rows)) == expected
    rows[1]["context"] = rows[1].pop("input")
    assert read_examples(dump(tmp_path / "b.json", rows)) == expected
    rows[1]["history"] = [["Hello", "Hi"]]
    with pytest.raises(DataError, match="row 2: 'history' beside 'instruction' and 'output'"):
        read_examples(dump(tmp_path / "c.json", rows))
    rows[1]["history"] = []
    assert read_examples(dump(tmp_path / "d.json", rows)) == expected


def test_wrong_answers_of_tofu_are_wrong_completions(tmp_path):
    rows = [
        {"question": q, "answer": a, "paraphrased_answer": f"So: {a}", "perturbed_answer": wrong,
         "paraphrased_question": f"Say: {q}"}
        for (q, a), wrong in zip(PAIRS, WRONG, strict=True)
    ]  # fmt: skip
    found = read(lines(tmp_path / "a.jsonl", rows))
    assert [each.perturbed for each in found.examples] == [
        tuple(f" {text}" for text in wrong) for wrong in WRONG
    ]
    assert [each.paraphrase for each in found.examples] == [f" So: {a}" for _, a in PAIRS]
    assert "not read: paraphrased_question" in found.sentences[0]


@pytest.mark.parametrize("right", [2, "2", "C", "three"])
def test_the_choice_is_the_answer_and_never_its_number(tmp_path, right):
    row = {"question": "How many?", "choices": ["one", "two", "three"], "answer": right}
    (example,) = read_examples(lines(tmp_path / "a.jsonl", [row]))
    assert example == Example("How many?", " three", perturbed=(" one", " two"))
    labelled = {
        "question": "How many?", "answerKey": "3",
        "choices": {"text": row["choices"], "label": ["1", "2", "3"]},
    }  # fmt: skip
    prompted = {"prompt": labelled["question"], **labelled}
    del prompted["question"]
    for each in (labelled, prompted):
        assert read_examples(lines(tmp_path / "b.jsonl", [each])) == [example]


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ({"question": "a", "choices": ["b", "c"], "answer": 2}, "\"answer\" is '2', and there are"),
        ({"question": "a", "choices": ["b", "c"], "answer": True}, "there are 2 choices"),
        ({"question": "a", "choices": "b", "answer": 0}, '"choices" is no list of texts'),
        ({"question": "a", "answer": 3}, '"answer" is missing, empty or not a string'),
        ({"question": "a", "answer": "b", "context": "c"}, "'context' beside"),
        ({"question": "a", "answer": "b", "output": "c"}, "which of answer and output is meant"),
        ({"label": 1, "sentence": "a"}, "has the columns label, sentence: no prompt"),
        ({"question": "a", "answer": None}, "has the columns question, answer (null): no prompt"),
        (
            {"prompt": "a", "chosen": "b", "rejected": "c"},
            "has the columns prompt, chosen, rejected: no prompt with a completion",
        ),
        ({"prompt": "a", "text": "b"}, '"completion" is missing'),
    ],
)
def test_what_cannot_be_told_is_refused_by_name(tmp_path, row, fault):
    with pytest.raises(DataError) as caught:
        read_examples(lines(tmp_path / "a.jsonl", [row]))
    assert "line 1" in caught.value.what
    assert fault in caught.value.what
    assert caught.value.remedy


def test_texts_alone(tmp_path):
    texts = ["One day.", "Another\n\nday."]
    expected = [Example("", text) for text in texts]
    assert read_examples(dump(tmp_path / "a.json", texts)) == expected
    assert read_examples(lines(tmp_path / "a.jsonl", texts)) == expected
    (tmp_path / "a.txt").write_text("\n\n".join(texts) + "\n")
    assert read_examples(tmp_path / "a.txt") == [Example("", "\n\n".join(texts) + "\n")]
    (tmp_path / "b.jsonl").write_text("One day.\n")
    with pytest.raises(DataError, match="is not JSON") as caught:
        read_examples(tmp_path / "b.jsonl")
    assert ".txt" in caught.value.remedy


def test_packed_files(tmp_path, monkeypatch):
    rows = [{"question": q, "answer": a} for q, a in PAIRS]
    plain = lines(tmp_path / "a.jsonl", rows)
    misnamed = tmp_path / "packed.jsonl"
    misnamed.write_bytes(gzip.compress(plain.read_bytes()))
    array = tmp_path / "a.json.gz"
    array.write_bytes(gzip.compress(json.dumps(rows).encode()))
    for path in (misnamed, array):
        assert read_examples(path) == ours()
    misnamed.write_bytes(misnamed.read_bytes()[:40])
    with pytest.raises(DataError, match="its gzip is broken"):
        read_examples(misnamed)
    misnamed.write_bytes(b"\x28\xb5\x2f\xfd....")
    with pytest.raises(DataError, match="is compressed with zstd"):
        read_examples(misnamed)
    monkeypatch.setattr(files, "_UNPACKED", 1 << 20)
    array.write_bytes(gzip.compress(b" " * (2 << 20)))
    with pytest.raises(DataError, match="unpacks to more than"):
        read_examples(array)


def test_a_cell_may_hold_a_book(tmp_path):
    book = "word " * 40_000
    with (tmp_path / "a.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["text"], [book]])
    limit = csv.field_size_limit()
    assert read_examples(tmp_path / "a.csv") == [Example("", book)]
    assert csv.field_size_limit() == limit


def test_splits_are_named_and_never_mixed(tmp_path):
    rows = [{"question": q, "answer": a} for q, a in PAIRS]
    by_key = dump(tmp_path / "a.json", {"train": rows[:1], "test": rows[1:]})
    by_column = lines(
        tmp_path / "a.jsonl",
        [{**row, "split": split} for row, split in zip(rows, ("train", "test"), strict=True)],
    )
    saved = tmp_path / "saved"
    DatasetDict(train=Dataset.from_list(rows[:1]), test=Dataset.from_list(rows[1:])).save_to_disk(
        saved
    )
    folder = tmp_path / "folder"
    (folder / "data").mkdir(parents=True)
    lines(folder / "data" / "train-00000-of-00002.jsonl", rows[:1])
    lines(folder / "data" / "test.jsonl", rows[1:])
    for path in (by_key, by_column, saved, folder):
        with pytest.raises(DataError, match="several") as caught:
            read_examples(path)
        assert "train" in str(caught.value)
        assert read_examples(f"{path}#train") == ours(PAIRS[:1])
        assert read_examples(f"{path}#test") == ours(PAIRS[1:])
        assert sorted(read_examples(f"{path}#all"), key=lambda each: each.prompt) == sorted(
            ours(), key=lambda each: each.prompt
        )
        with pytest.raises(DataError, match="'dev'"):
            read_examples(f"{path}#dev")
    # A file of that very name is that file.
    assert read_examples(lines(tmp_path / "b.jsonl#train", rows)) == ours()


CARD = """---
configs:
- config_name: forget01
  data_files: forget01.json
- config_name: wide
  data_files:
  - split: train
    path: [wide/a-*.parquet]
  - split: test
    path: wide/b.parquet
- config_name: gone
  data_dir: other
---
# A data set
"""


def test_parts_of_a_repository():
    names = ["README.md", "forget01.json", "wide/a-0.parquet", "wide/a-1.parquet", "wide/b.parquet",
             "other/c.csv", "dataset_infos.json"]  # fmt: skip
    parts = published.parts_of(names, CARD)
    assert parts == {
        "forget01/train": ["forget01.json"],
        "wide/train": ["wide/a-0.parquet", "wide/a-1.parquet"],
        "wide/test": ["wide/b.parquet"],
        "gone/train": ["other/c.csv"],
    }
    assert published.chosen_files("x", parts, "forget01") == ["forget01.json"]
    assert published.chosen_files("x", parts, "wide/test") == ["wide/b.parquet"]
    assert published.chosen_files("x", parts, "test") == ["wide/b.parquet"]
    for several in ("wide", "train", None):
        with pytest.raises(DataError, match="holds several parts"):
            published.chosen_files("x", parts, several)
    with pytest.raises(DataError, match="has no part 'dev'"):
        published.chosen_files("x", parts, "dev")
    with pytest.raises(DataError, match="holds no files of data"):
        published.chosen_files("x", published.parts_of(["README.md"]), None)
    # Without a card that says so, and with one that is no heading or no list.
    for card in (None, "---\nconfigs: 3\n---\n", "---\n: : :\n---\n", "# Words"):
        found = published.parts_of(["LICENSE.txt", "data/train-00000-of-00001.parquet"], card)
        assert found == {"train": ["data/train-00000-of-00001.parquet"]}
    assert published.parts_of(["a.txt", "b/c.txt"]) == {"a": ["a.txt"], "b/c": ["b/c.txt"]}


def test_a_folder_that_leads_elsewhere(tmp_path):
    outside = lines(tmp_path / "secret.jsonl", [{"text": "a"}])
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a.jsonl").symlink_to(outside)
    with pytest.raises(DataError, match="leads out of the folder"):
        read_examples(tmp_path / "folder")


def test_parts_have_digests_of_their_own(tmp_path):
    rows = [{"question": q, "answer": a} for q, a in PAIRS]
    for name in ("a", "b"):
        lines(tmp_path / f"{name}.jsonl", rows)
    lines(tmp_path / "c.jsonl", rows[:1])
    place = place_of(f"{tmp_path}#c")
    assert list(place.digests()) == ["c.jsonl"]
    assert place.root == tmp_path
    assert place_of(f"{tmp_path}#c").key == place_of(tmp_path / "c.jsonl").key


def test_what_was_made_of_a_file_is_logged_once_it_is_worth_telling(tmp_path, caplog):
    caplog.set_level(logging.INFO, "weightsurgery")
    read(lines(tmp_path / "a.jsonl", [{"prompt": "a", "completion": "b", "note": "c"}]))
    assert caplog.text == ""
    read(lines(tmp_path / "b.jsonl", [{"question": "a", "answer": "b"}]))
    assert "'question' is the prompt, 'answer' the completion, after a space" in caplog.text
