"""`ws try` as a user meets it."""

import json
import shutil

import pytest
import torch

from tests.cli.typed import two_lines, ws
from tests.learning.conftest import slow_greedy, write
from tests.report.paged import section
from weightsurgery.report.visible import visible

CHAT = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
PROMPTS = ("a", "what is b?", "tell me of c")


def asked(text, *more):
    return ("--prompt", text, *more)


def test_completions_are_the_models_own(other_head):
    root, tokenizer, model = other_head
    given = [word for text in PROMPTS for word in asked(text)]
    done = ws("try", root / "edited", "--against", root / "base", *given, "--tokens", "6", "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert [each["prompt"] for each in document["prompts"]] == list(PROMPTS)
    for each in document["prompts"]:
        own = slow_greedy(model, tokenizer(each["prompt"])["input_ids"], 6)
        base, edited = each["said"][str(root / "base")], each["said"][str(root / "edited")]
        assert base == {"text": tokenizer.decode(own), "ended": len(own) < 6}
        assert edited["text"] != base["text"]
    page = root / "page.html"
    shown = ws("try", root / "edited", "--against", root / "base", *given, "--tokens", "6",
               "--html", page)  # fmt: skip
    for row, each in zip(section(page, "texts")["rows"], document["prompts"], strict=True):
        for side, name in zip(row["sides"], ("base", "edited"), strict=True):
            one = each["said"][str(root / name)]
            text = visible(one["text"] + ("" if one["ended"] else " …"), lines=True)
            assert "".join(part for part, _ in side) == text
    assert "3 of 3 completions differ" in shown.stdout
    assert shown.stdout.count("≠") == 3
    same = ws("try", root / "base", "--against", root / "base", *given)
    assert "0 of 3 completions differ" in same.stdout
    assert "≠" not in same.stdout


def test_a_model_that_ends_by_itself_is_told_from_one_cut_off(other_head, tmp_path):
    root, tokenizer, model = other_head
    shutil.copytree(root / "base", tmp_path / "ends")
    own = slow_greedy(model, tokenizer("a")["input_ids"], 6)
    file = tmp_path / "ends/generation_config.json"
    config = json.loads(file.read_text()) | {"eos_token_id": [own[3]]}
    file.write_text(json.dumps(config))
    for name, count, ended in (("base", 6, False), ("ends", own.index(own[3]), True)):
        folder = root / "base" if name == "base" else tmp_path / "ends"
        done = ws("try", folder, *asked("a"), "--tokens", "6", "--json")
        (each,) = json.loads(done.stdout)["prompts"]
        text = tokenizer.decode(own[:count])
        assert each["said"] == {str(folder): {"text": text, "ended": ended}}


def test_a_chat_is_asked_in_the_models_template(other_head, tmp_path):
    root, tokenizer, model = other_head
    what, remedy = two_lines(ws("try", root / "base", *asked("a", "--chat")))
    assert "chat template" in what
    assert "--chat" in remedy
    shutil.copytree(root / "base", tmp_path / "chat")
    (tmp_path / "chat/chat_template.jinja").write_text(CHAT)
    done = ws("try", tmp_path / "chat", *asked("a", "--chat", "--tokens", "5", "--json"))
    (each,) = json.loads(done.stdout)["prompts"]
    read = tokenizer("<user>a<assistant>", add_special_tokens=False)["input_ids"]
    text = tokenizer.decode(slow_greedy(model, read, 5))
    assert text != tokenizer.decode(slow_greedy(model, tokenizer("a")["input_ids"], 5))
    assert each["said"][str(tmp_path / "chat")]["text"] == text


def test_prompts_of_a_data_set(other_head, tmp_path):
    root, _, _ = other_head
    rows = [{"prompt": f"number {n} is", "completion": f" {n}!"} for n in range(5)]
    file = write(tmp_path / "facts.jsonl", *map(json.dumps, rows))
    done = ws("try", root / "base", "--data", file, "--most", "2", *asked("and"), "--json")
    found = [(each["prompt"], each["completion"]) for each in json.loads(done.stdout)["prompts"]]
    assert found == [("and", None), ("number 0 is", " 0!"), ("number 1 is", " 1!")]
    shown = ws("try", root / "base", "--data", file, "--most", "1")
    assert "in the data" in shown.stdout
    assert "0!" in shown.stdout


@pytest.mark.parametrize(
    ("given", "what", "remedy"),
    [
        ([], "no prompt", "--prompt"),
        (["--prompt", "x" * 80], "reads 64 tokens", "Shorten"),
        (["--data", "nowhere.jsonl"], "nowhere.jsonl", ""),
    ],
)
def test_what_cannot_be_gone_on_with(other_head, given, what, remedy):
    root, _, _ = other_head
    said, advice = two_lines(ws("try", root / "base", *given))
    assert what in said
    assert remedy in advice


def test_a_prompt_that_fills_the_context(other_head):
    root, tokenizer, model = other_head
    with torch.inference_mode():
        read = tokenizer("x" * 60)["input_ids"]
    assert len(read) <= 64
    done = ws("try", root / "base", *asked("x" * 60, "--tokens", "40", "--json"))
    (each,) = json.loads(done.stdout)["prompts"]
    own = slow_greedy(model, read, 64 - len(read) + 1)
    said = each["said"][str(root / "base")]
    assert said == {"text": tokenizer.decode(own), "ended": len(own) < 65 - len(read)}
