"""Conversations: what was said reaches the template, or is missed by name."""

import json
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.learning.conftest import byte_tokenizer
from weightsurgery.errors import DataError
from weightsurgery.learning.chat import DATE
from weightsurgery.learning.data import encode, read_examples
from weightsurgery.learning.reading import read

# Templates after those of models: how they write a call, and what they make of none or of null.
LOOP = "{% for m in messages %}<{{ m.role }}>"
END = "</s>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
CALLS = "{% for c in m.tool_calls or [] %} CALL {{ c.function.name }} "
TOOLS = "{% for t in tools or [] %}TOOL {{ t.function.name }}\n{% endfor %}"
OBJECTS = (  # Qwen, Llama
    TOOLS + LOOP + "{% if m.content %}{{ m.content }}{% endif %}"
    + CALLS + "{{ c.function.arguments | tojson }}{% endfor %}" + END
)  # fmt: skip
JOINED = (  # SmolLM: what is null cannot be joined, and an argument that is no text neither
    TOOLS + LOOP + "{{ '' + m.content }}" + CALLS + "{{ '' + c.function.arguments }}{% endfor %}"
    + END
)  # fmt: skip
ABSENT = (  # calls where there is no content alone
    TOOLS + LOOP + "{% if m.content is not defined %}" + CALLS
    + "{{ '' + c.function.arguments }}{% endfor %}{% else %}{{ m.content }}{% endif %}" + END
)  # fmt: skip
DEAF = LOOP + "{{ m.content }}" + END

TIDE = {"name": "tide", "arguments": {"place": 'Osk "north"', "hours": [6, 12]}}
TALK = [
    {"role": "user", "content": "When?"},
    {"role": "assistant", "content": None, "tool_calls": [{"type": "function", "function": TIDE}]},
    {"role": "tool", "content": '{"at": "06:12"}'},
    {"role": "assistant", "content": "At 06:12."},
]


def templated(template):
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template
    return tokenizer


def talk(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def texts(path, template):
    return [(each.prompt, each.completion) for each in read_examples(path, templated(template))]


@pytest.mark.parametrize("template", [OBJECTS, JOINED, ABSENT])
@pytest.mark.parametrize("written", [json.dumps, dict])
def test_calls_reach_every_kind_of_template(tmp_path, template, written):
    rows = json.loads(json.dumps(TALK))
    function = rows[1]["tool_calls"][0]["function"]
    function["arguments"] = written(function["arguments"])
    called, answered = texts(talk(tmp_path / "a.jsonl", {"messages": rows}), template)
    arguments = json.dumps(TIDE["arguments"])
    assert called == ("<user>When?</s><assistant>", f" CALL tide {arguments}</s>")
    assert answered[0] == f'{"".join(called)}<tool>{{"at": "06:12"}}</s><assistant>'
    assert answered[1] == "At 06:12.</s>"


def test_older_and_other_words_for_calls_mean_the_same(tmp_path):
    expected = texts(talk(tmp_path / "a.jsonl", {"messages": TALK}), OBJECTS)
    older = json.loads(json.dumps(TALK))
    older[1] = {"role": "assistant", "content": None, "function_call": TIDE}
    older[2]["role"] = "function"
    older[2]["content"] = TALK[2]["content"]
    assert [c for _, c in texts(talk(tmp_path / "b.jsonl", {"messages": older}), OBJECTS)] == [
        c for _, c in expected
    ]
    said = [
        {"from": "human", "value": "When?"},
        {"from": "function_call", "value": json.dumps(TIDE)},
        {"from": "observation", "value": TALK[2]["content"]},
        {"from": "gpt", "value": "At 06:12."},
    ]
    assert texts(talk(tmp_path / "c.jsonl", {"conversations": said}), OBJECTS) == expected


@pytest.mark.parametrize(
    ("template", "rows", "fault"),
    [
        (DEAF, {"messages": TALK}, "leaves out the tool call 'tide' of message 2"),
        (DEAF, {"messages": [*TALK[:1], TALK[3]], "tools": [{"function": {"name": "tide"}}]},
         'leaves out the row\'s "tools"'),
        (ABSENT, {"messages": [TALK[0], {**TALK[1], "content": "Let me look."}]},
         "leaves out the tool call 'tide' of message 2"),
        (LOOP + "{% if m.role != 'tool' %}{{ m.content }}{% endif %}" + END,
         {"messages": [TALK[0], TALK[2], TALK[3]]}, "leaves out message 2, of the role 'tool'"),
    ],
)  # fmt: skip
def test_what_a_template_leaves_out_is_named(tmp_path, template, rows, fault):
    with pytest.raises(DataError) as caught:
        texts(talk(tmp_path / "a.jsonl", rows), template)
    assert "line 1" in caught.value.what
    assert fault in caught.value.what


def test_tools_are_rendered(tmp_path):
    tool = {"type": "function", "function": {"name": "tide", "parameters": {}}}
    for n, row in enumerate(
        [{"tools": [tool]}, {"tools": json.dumps([tool])}, {"functions": [tool["function"]]}]
    ):
        path = talk(tmp_path / f"{n}.jsonl", {"messages": [TALK[0], TALK[3]], **row})
        ((prompt, _),) = texts(path, OBJECTS)
        assert prompt == "TOOL tide\n<user>When?</s><assistant>"
    with pytest.raises(DataError, match='"tools" is no list'):
        texts(talk(tmp_path / "b.jsonl", {"messages": TALK, "tools": "{"}), OBJECTS)


def test_content_in_parts_is_joined(tmp_path):
    parts = [{"type": "text", "text": "Wh"}, {"type": "text", "text": "en?"}]
    row = {"messages": [{"role": "user", "content": parts}, TALK[3]]}
    whole = {"messages": [TALK[0], TALK[3]]}
    path = talk(tmp_path / "a.jsonl", row)
    assert texts(path, DEAF) == texts(talk(tmp_path / "b.jsonl", whole), DEAF)
    row["messages"][0]["content"].append({"type": "image", "url": "x"})
    with pytest.raises(DataError, match=r"message 1 .* a part of it is image"):
        texts(talk(path, row), DEAF)


def test_which_answers_are_learnt_is_said(tmp_path):
    again = {"role": "assistant", "content": "Anything else?"}
    row = {"messages": [TALK[0], TALK[3], again]}
    found = read(talk(tmp_path / "a.jsonl", row), templated(DEAF))
    assert [each.completion for each in found.examples] == ["At 06:12.</s>", "Anything else?</s>"]
    assert "1 conversations with 2 answers" in found.sentences[0]
    assert (found.facts["answers"], found.facts["untrained"]) == (2, 0)
    row["messages"][1] = {**TALK[3], "weight": 0}
    found = read(talk(tmp_path / "b.jsonl", row), templated(DEAF))
    assert [each.completion for each in found.examples] == ["Anything else?</s>"]
    assert "At 06:12." in found.examples[0].prompt
    assert "1 more are not to be learnt" in found.sentences[0]
    row["messages"][2] = {**again, "weight": 0}
    with pytest.raises(DataError, match="no message of the assistant to be learnt"):
        texts(talk(tmp_path / "c.jsonl", row), DEAF)
    # TRL's form: what is in the completion is learnt.
    row = {"prompt": [TALK[0], TALK[3], TALK[0]], "completion": [again]}
    ((prompt, completion),) = texts(talk(tmp_path / "d.jsonl", row), DEAF)
    assert completion == "Anything else?</s>"
    assert prompt.endswith("At 06:12.</s><user>When?</s><assistant>")


def test_turns_that_nobody_answers_are_counted(tmp_path):
    whole = {"messages": [TALK[0], TALK[3]]}
    found = read(talk(tmp_path / "a.jsonl", whole), templated(DEAF))
    assert (found.sentences, found.facts) == ((), {})
    path = talk(tmp_path / "b.jsonl", whole, {"messages": [TALK[0], TALK[3], TALK[0]]})
    asked = read(path, templated(DEAF))
    assert asked.examples == found.examples * 2
    assert asked.facts == {"unanswered": 1}
    assert "1 of 2 conversations go on after the last answer" in asked.sentences[0]


def test_a_system_turn_that_is_refused(tmp_path):
    template = "{% if messages[0].role == 'system' %}{{ raise_exception('Not here') }}{% endif %}"
    row = {"messages": [{"role": "system", "content": "Be short."}, TALK[0], TALK[3]]}
    with pytest.raises(DataError, match="line 1: the chat template takes no system turn: Not here"):
        texts(talk(tmp_path / "a.jsonl", row), template + DEAF)
    ignoring = DEAF.replace(
        "{{ m.content }}", "{% if m.role != 'system' %}{{ m.content }}{% endif %}"
    )
    with pytest.raises(DataError, match="leaves out message 1, of the role 'system'"):
        texts(talk(tmp_path / "b.jsonl", row), ignoring)
    said = [{"from": "human", "value": "When?"}, {"from": "gpt", "value": "At 06:12."}]
    other = {"conversations": said, "system": "Be short."}
    assert texts(talk(tmp_path / "c.jsonl", other), DEAF) == texts(
        talk(tmp_path / "d.jsonl", row), DEAF
    )


def test_the_day_is_the_same_on_every_day(tmp_path, monkeypatch):
    dated = "{{ strftime_now('%d %b %Y') }}\n" + DEAF
    path = talk(tmp_path / "a.jsonl", {"messages": [TALK[0], TALK[3]]})
    found = read(path, templated(dated))
    assert found.examples[0].prompt.startswith("26 Jul 2024\n")
    assert found.facts["date"] == "2024-07-26"
    assert "the date" in found.sentences[0]
    assert DATE in found.sentences[0]
    for form, written in (("%-d/%-m/%y", "26/7/24"), ("%B %Y, %A", "July 2024, Friday")):
        other = f"{{{{ strftime_now('{form}') }}}}|" + DEAF
        assert read(path, templated(other)).examples[0].prompt.startswith(f"{written}|<user>")
    monkeypatch.setenv(DATE, "1700000000")
    assert read(path, templated(dated)).facts["date"] == "2023-11-14"
    assert "date" not in read(path, templated(DEAF)).facts
    monkeypatch.setenv(DATE, "soon")
    with pytest.raises(DataError, match="SOURCE_DATE_EPOCH='soon'"):
        read(path, templated(dated))


THINKING = (  # DeepSeek-R1: thoughts are left out, and asked for
    "{% for m in messages %}<{{ m.role }}>{{ m.content.split('</think>') | last }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<assistant><think>\n{% endif %}"
)


def test_thoughts_that_are_left_out_are_counted(tmp_path):
    answer = {"role": "assistant", "content": "<think>\nTides.\n</think>\n\nAt six."}
    path = talk(tmp_path / "a.jsonl", {"messages": [TALK[0], answer]})
    found = read(path, templated(THINKING))
    assert found.facts == {"without_thought": 1}
    assert "thought before 1 of" in found.sentences[0]
    (example,) = found.examples
    assert example.prompt == "<user>When?</s><assistant>"
    assert example.completion == "\n\nAt six.</s>"
    # A template that keeps them loses nothing.
    kept = read(path, templated(DEAF))
    assert (kept.facts, kept.sentences) == ({}, ())
    assert kept.examples[0].completion == answer["content"] + "</s>"
    apart = {"role": "assistant", "content": "At six.", "reasoning_content": "Tides."}
    path = talk(tmp_path / "b.jsonl", {"messages": [TALK[0], apart]})
    assert read(path, templated(DEAF)).facts == {"without_thought": 1}


said = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), min_size=1).filter(
    lambda text: text.strip()
)
values = st.one_of(st.integers(-9, 9), said, st.lists(said, max_size=2))


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from([OBJECTS, JOINED, ABSENT]),
    st.lists(
        st.tuples(said, said, st.dictionaries(said, values, max_size=2)), min_size=1, max_size=3
    ),
)  # fmt: skip
def test_no_word_is_lost(tmp_path_factory, template, rounds):
    """Whatever is said and called, every answer is an example, and holds all before it."""
    messages = []
    for question, answer, arguments in rounds:
        function = {"name": "tide", "arguments": arguments}
        messages += [
            {"role": "user", "content": question},
            {"role": "assistant", "content": None, "tool_calls": [{"function": function}]},
            {"role": "tool", "content": answer},
            {"role": "assistant", "content": answer},
        ]
    path = talk(tmp_path_factory.mktemp("talk") / "a.jsonl", {"messages": messages})
    tokenizer = templated(template)
    examples = read_examples(path, tokenizer)
    assert len(examples) == 2 * len(rounds)
    assert examples[-1].prompt.count("CALL tide") >= len(rounds)
    for question, answer, _ in rounds:
        assert question in examples[-1].prompt
        assert answer in examples[-1].prompt
    for before, after in pairwise(examples):
        assert after.prompt.startswith(before.prompt + before.completion)
    assert all(encode(tokenizer, each).prompt_length for each in examples)
