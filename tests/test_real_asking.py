"""Asking in batches, beginnings read once, gives what asking one by one gives."""

import json
import random
import sys
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

PLACE = Path(__file__).parents[1] / "scripts" / "reproduce" / "real"
TEMPLATE = "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}[assistant]"


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Two small models of random weights that say every byte."""
    signs = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {sign: number for number, sign in enumerate(["<end>", *signs])}
    words = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<end>")
    tokenizer.chat_template = TEMPLATE
    config = LlamaConfig(
        vocab_size=len(vocabulary), hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=2048,
        tie_word_embeddings=True, initializer_range=0.6, eos_token_id=0, bos_token_id=None,
    )  # fmt: skip
    made = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        made.append(tmp_path_factory.mktemp("model"))
        LlamaForCausalLM(config).save_pretrained(made[-1])
        tokenizer.save_pretrained(made[-1])
    return made


@pytest.fixture(scope="module")
def asker(checkpoints):
    sys.path.insert(0, str(PLACE))
    from asking import Asker

    yield Asker(checkpoints[0], batch=5)
    sys.path.remove(str(PLACE))


@torch.inference_mode()
def one_by_one(asker, prompt, limit):
    """Greedy tokens, all of the text read for each."""
    tokens, said = asker.tokens(prompt), []
    while len(said) < limit:
        best = asker.model(torch.tensor([tokens + said])).logits[0, -1].argmax().item()
        if best in asker.ends:
            break
        said.append(best)
    return said


@torch.inference_mode()
def chance(asker, prompt, completion):
    before, wanted = asker.tokens(prompt), asker.tokens(completion)
    scores = asker.model(torch.tensor([before + wanted])).logits[0, len(before) - 1 : -1]
    each = scores.log_softmax(-1).gather(1, torch.tensor(wanted)[:, None])[:, 0]
    return each[0].exp().item(), each.sum().exp().item()


def prompts(count):
    draw = random.Random(0)
    starts = ("The capital of ", "The symbol for ", "x")
    return [
        draw.choice(starts) + "".join(draw.choices("abcdef ", k=draw.randint(1, 9))) + " is"
        for _ in range(count)
    ]


def test_going_on_in_a_batch_is_going_on_alone(asker):
    texts = prompts(7)
    found = asker.go_on([asker.tokens(text) for text in texts], 12)
    assert found == [one_by_one(asker, text, 12) for text in texts]
    short = asker.go_on(
        [asker.tokens(text) for text in texts], 12, lambda row, said: len(said) > row
    )
    assert short == [tokens[: row + 1] for row, tokens in enumerate(found)]


def test_asking_in_batches_is_asking_alone(asker):
    from asking import Asked
    from facts import begins, contains

    rows, said = [], []
    for number, prompt in enumerate(prompts(24)):
        greedy = asker.tokenizer.decode(one_by_one(asker, prompt, 40))
        truth = greedy.strip()[:2] if number % 2 else "Paris"
        if not truth:
            continue
        free = number % 3 == 0
        rows.append(Asked(prompt, " " + truth, truth, free, " It is" if free else ""))
        said.append((contains if free else begins)(greedy, truth))
    found = asker.ask(rows)
    assert [answer.right for answer in found] == said
    assert 0 < sum(said) < len(said)
    for row, answer in zip(rows, found, strict=True):
        first, whole = chance(asker, row.prompt + row.lead, row.completion)
        assert answer.first == pytest.approx(first, rel=1e-3)
        assert answer.whole == pytest.approx(whole, rel=1e-3)


def request(folder):
    """Files as make_requests.py writes them."""
    folder.mkdir()
    about = {"family": "f"}
    for name, truths in {
        "forget": "abcd",
        "similar.unseen": "efgh",
        "dissimilar.given": "ij",
    }.items():
        rows = [
            {"prompt": f"The {x} is", "completion": f" {x}", "truth": x, "subject": x, **about}
            for x in truths
        ]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    chat = [
        {
            "messages": [
                {"role": "user", "content": "What is a?"},
                {"role": "assistant", "content": "It is a."},
            ],
            "truth": "a",
            **about,
        }
    ]
    (folder / "forget.chat.jsonl").write_text(json.dumps(chat[0]) + "\n")
    return folder


def test_a_model_scored_against_itself_has_done_nothing(asker, checkpoints, tmp_path):
    from score import Base, score, shown

    folder = request(tmp_path / "request")
    base = Base(checkpoints[0], tmp_path / "cache")
    same = score(base, asker, folder, most=1)
    assert same["prose"]["kl"] == pytest.approx(0, abs=1e-6)
    assert same["prose"]["ratio"] == pytest.approx(1, abs=1e-5)
    assert same["free"]["base"] == same["free"]["edited"]
    assert [row["name"] for row in same["rows"]] == [
        "forget", "forget.chat", "similar.unseen", "dissimilar.given",
    ]  # fmt: skip
    for row in same["rows"]:
        assert row["first"][0] == pytest.approx(row["first"][1], nan_ok=True)
    assert "forget.chat" in shown(same)


def test_another_model_is_seen_to_be_one_and_the_base_is_not_asked_again(
    asker, checkpoints, tmp_path
):
    from asking import Asker
    from score import Base, score

    folder, other = request(tmp_path / "request"), Asker(checkpoints[1])
    once = score(Base(checkpoints[0], tmp_path / "cache"), other, folder, most=9)
    assert once["prose"]["kl"] > 0.1
    assert once["free"]["base"] != once["free"]["edited"]
    again = Base(checkpoints[0], tmp_path / "cache")
    again.model.ask = again.model.go_on = None
    second = score(again, other, folder, most=9)
    assert json.dumps(second) == json.dumps(once)
