"""Long texts: every token counts once, in a window that the model can read."""

import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.learning.conftest import byte_tokenizer
from tests.learning.tiny import save, tiny
from weightsurgery.errors import DataError
from weightsurgery.learning.data import Example, encode
from weightsurgery.learning.models import load_tokenizer
from weightsurgery.learning.reading import read
from weightsurgery.learning.stages import encode_rows
from weightsurgery.learning.windows import text_windows, token_windows

TOKENIZERS = byte_tokenizer(), byte_tokenizer(bos=False)


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 300), st.integers(2, 64), st.data())
def test_every_place_counts_once(total, most, data):
    places = data.draw(st.integers(1, total))
    tokens = list(range(total))
    windows = token_windows(tokens, places, most)
    assert sum(counted for _, counted in windows) == places
    told = [token for read, counted in windows for token in read[len(read) - counted :]]
    assert told == tokens[total - places :]
    for number, (window, counted) in enumerate(windows):
        assert 1 <= counted <= len(window) <= most
        assert window == list(range(window[0], window[-1] + 1))
        if number:
            assert len(window) - counted >= min(most // 4, total - 1)
    if total <= most:
        assert windows == [(tokens, places)]


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(TOKENIZERS),
    st.text(st.sampled_from("ab é\n漢"), max_size=20),
    st.text(st.sampled_from("ab é\n漢"), min_size=1, max_size=400),
    st.booleans(),
    st.integers(40, 90),
)  # fmt: skip
def test_nothing_of_a_text_is_lost(tokenizer, prompt, text, templated, most):
    example = Example(prompt, text, templated=templated and bool(prompt))
    try:
        encode(tokenizer, example)
    except DataError:
        return  # a text of one token without BOS, or of spaces after a template
    try:
        windows = text_windows(tokenizer, example, most, "here")
    except DataError:
        assert len(tokenizer(prompt)["input_ids"]) >= most - 1
        return
    assert "".join(each.completion for each in windows) == text
    assert windows[0].prompt == prompt
    done = windows[0].prompt + windows[0].completion
    for each in windows[1:]:
        assert each.prompt
        assert done.endswith(each.prompt)
        done += each.completion
    for each in windows:
        assert 0 < len(encode(tokenizer, replace(each, templated=False)).input_ids) <= most + 2
    assert [each.goes_on for each in windows] == [True] * (len(windows) - 1) + [False]


def test_a_window_within_a_text_does_not_end():
    tokenizer = byte_tokenizer()
    first, *_, last = text_windows(tokenizer, Example("So:", " ab" * 60), 64, "here")
    ends = [encode(tokenizer, each) for each in (first, last)]
    assert [each.input_ids[-1] == tokenizer.eos_token_id for each in ends] == [False, True]
    assert [each.end_length for each in ends] == [0, 1]


def test_what_cannot_be_split_is_refused():
    tokenizer = byte_tokenizer()
    with pytest.raises(DataError, match=r"here: its prompt alone has 71 tokens; .* reads 64"):
        text_windows(tokenizer, Example("x" * 70, " y"), 64, "here")
    with pytest.raises(DataError, match="has 83 tokens, the model reads 64 at once, and wrong"):
        text_windows(tokenizer, Example("x", " " + "y" * 79, perturbed=("z",)), 64, "here")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save(tiny("llama"), tmp_path_factory.mktemp("model") / "model")


def test_a_file_is_split_at_what_the_config_says_and_counted(checkpoint, tmp_path):
    tokenizer = load_tokenizer(checkpoint)
    assert tokenizer.model_max_length == 64
    story = " ".join(["The tide came in."] * 12)
    rows = [{"prompt": "a", "completion": " b"}, {"prompt": "So:", "completion": f" {story}"}]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = read(path, tokenizer)
    assert "".join(each.completion for each in found.examples[1:]) == f" {story}"
    assert all(len(encode(tokenizer, each).input_ids) <= 64 for each in found.examples)
    windows = len(found.examples) - 1
    assert found.facts == {"windows": {"texts": 1, "windows": windows, "tokens": 64}}
    assert (
        f"1 longer than the 64 tokens that the model reads at once, split into {windows}"
        in (found.sentences[0])
    )
    # The same at a length of the caller's.
    model = tiny("llama")
    rows = encode_rows(model, tokenizer, [Example("So:", f" {story}")], 32)
    assert all(len(row.input_ids) <= 32 for row in rows)
    told = [token for row in rows for token in row.input_ids[row.prompt_length :]]
    assert tokenizer.decode(told, skip_special_tokens=True) == f" {story}"
    assert [row.end_length for row in rows] == [0] * (len(rows) - 1) + [1]
