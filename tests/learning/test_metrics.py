"""Scores of one example: by hand, by the libraries, and by generating everything slowly."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import GenerationConfig, GPT2Config, GPT2LMHeadModel

from tests.learning.conftest import generate, slow_greedy
from weightsurgery.errors import DataError, NonFiniteError, WeightSurgeryError
from weightsurgery.learning import metrics
from weightsurgery.learning.data import Encoded, Example, encode_all
from weightsurgery.learning.forward import greedy, teacher_forced
from weightsurgery.learning.metric_names import METRICS
from weightsurgery.learning.scores import chance, score

WORDS = ["abcabcabcd", "hello hello", "zzzzzzzzzz", "once upon a", "xy"]


def bools(text):
    return torch.tensor([letter == "1" for letter in text])


def examples(model, tokenizer):
    """Completions the model gives in full, in part, and not at all."""
    found = []
    for index, prompt in enumerate(["a", "what is b?", "tell me of c", "dd", "e f g"]):
        own = slow_greedy(model, tokenizer(prompt)["input_ids"], 12)
        text = tokenizer.decode(own)
        if tokenizer(text, add_special_tokens=False)["input_ids"] == own and own:
            found += [Example(prompt, text), Example(prompt, text[:6] + WORDS[index][:4])]
            # What follows a beginning that the model would not have chosen.
            begun = tokenizer(prompt + "~~")["input_ids"]
            found.append(Example(prompt, "~~" + tokenizer.decode(slow_greedy(model, begun, 6))))
        found.append(Example(prompt, WORDS[index]))
    return found


def test_by_hand():
    assert metrics.exact_match(bools("111")) == 1
    assert metrics.exact_match(bools("110")) == 0
    assert metrics.token_accuracy(bools("1101")) == 0.75
    assert metrics.mismatches(bools("1010")) == [1, 3]
    for text, strength in {"1111": 1, "0111": 0.75, "1011": 0.5, "1110": 0, "0": 0}.items():
        assert metrics.extraction_strength(bools(text)) == strength


def test_likelihood_by_hand():
    labels = [1, 2, 3, 4]
    # From nothing 1 2 9 9, from 1 on 2 3 4: bigrams 12 | 23 34 | 34 of 3, 2, 1.
    continued = [[1, 2, 9, 9], [2, 3, 4], [3, 4], [5]]
    assert metrics.extraction_likelihood(labels, continued, 2) == pytest.approx((1 / 3 + 1 + 1) / 3)
    assert metrics.extraction_likelihood(labels, continued, 4) == 0
    assert metrics.extraction_likelihood(labels, [labels, [], [], []], 4) == 1
    assert metrics.extraction_likelihood(labels, continued, 5) is None
    # A repeated n-gram of the continuation counts each time, as in the authors' code.
    assert metrics.extraction_likelihood([1, 1, 2], [[1, 1, 1], [1], [2]], 2) == pytest.approx(0.5)


def test_truth_ratio_by_hand():
    # p(wrong) 0.1 and 0.4, geometric mean 0.2, against p(right) 0.5.
    ratio = metrics.truth_ratio(-math.log(0.5), [-math.log(0.1), -math.log(0.4)])
    assert ratio == pytest.approx(0.4)
    assert metrics.forget_truth(ratio) == pytest.approx(0.4)
    assert metrics.forget_truth(1 / ratio) == pytest.approx(0.4)
    assert metrics.keep_truth(ratio) == pytest.approx(0.6)
    assert metrics.keep_truth(1 / ratio) == 0
    for extreme in (metrics.truth_ratio(1e4, [0.0]), metrics.truth_ratio(0.0, [1e4])):
        assert metrics.forget_truth(extreme) == 0


def test_rouge_by_hand():
    recall, f = metrics.rouge_l("the cat sat down", "the dog sat")
    assert recall == pytest.approx(2 / 4)
    assert f == pytest.approx(2 * (2 / 4) * (2 / 3) / (2 / 4 + 2 / 3))
    assert metrics.rouge_l("painting", "paints")[0] == 1  # stemmed
    assert metrics.rouge_l("a", "") == (0, 0)
    assert metrics.rouge_l("你好", "你好") is None


def test_rouge_names_the_extra(monkeypatch):
    metrics._scorer.cache_clear()
    monkeypatch.setattr("weightsurgery.deferred.find_spec", lambda name: None)
    with pytest.raises(WeightSurgeryError) as caught:
        metrics.rouge_l("a", "a")
    assert "weightsurgery[eval]" in caught.value.remedy


@given(st.integers(1, 9), st.data())
def test_continuations_follow_the_model(length, data):
    """For any deterministic model: what it says after a prefix is what it says step by step."""
    table = data.draw(st.lists(st.integers(0, 3), min_size=64, max_size=64))
    labels = data.draw(st.lists(st.integers(1, 3), min_size=length, max_size=length))

    def says(tokens, limit):
        said = []
        while len(said) < limit:
            code = sum((token + 1) * 5**place for place, token in enumerate([*tokens, *said]))
            token = table[code % 64]
            if token == 0:  # the end
                break
            said.append(token)
        return said

    right = torch.tensor([says(labels[:k], 1) == [labels[k]] for k in range(length)])
    departures = {k: says(labels[:k], length - k) for k in metrics.mismatches(right)}
    expected = [says(labels[:k], length - k) for k in range(length)]
    assert metrics.continuations(labels, departures) == expected
    # The fewest tokens from which the rest follows, by trying each number of them.
    fewest = next(k for k in range(length + 1) if k == length or expected[k] == labels[k:])
    assert metrics.extraction_strength(right) == pytest.approx(1 - fewest / length)


def test_predictions_equal_those_of_single_passes(model, tokenizer):
    encoded = encode_all(tokenizer, examples(model, tokenizer))
    for batch_size in (1, 3, 64):
        forced = teacher_forced(model, tokenizer, encoded, batch_size)
        for row, each in zip(encoded, forced, strict=True):
            with torch.inference_mode():
                logits = model(input_ids=torch.tensor([row.input_ids])).logits[0].double()
            labels = torch.tensor(row.input_ids[row.prompt_length :])
            given = logits[row.prompt_length - 1 : -1]
            assert torch.equal(each.labels, labels)
            assert torch.equal(each.predicted, given.argmax(-1))
            nll = torch.nn.functional.cross_entropy(given, labels, reduction="none")
            torch.testing.assert_close(each.nll, nll, rtol=1e-5, atol=1e-5)
            assert len(each.answer(each.nll)) == len(labels) - 1


def test_greedy_is_greedy(model, tokenizer):
    prompts = ["a", "what is b?", "tell me of c", "dd"]
    tokens = [tokenizer(prompt)["input_ids"] for prompt in prompts]
    limits = [5, 3, 9, 1]
    expected = [slow_greedy(model, *each) for each in zip(tokens, limits, strict=True)]
    by_library = generate(model, tokenizer, prompts, 3)
    assert [each[:3] for each in expected[1:2]] == [by_library[1]]
    # Settings of the model's own, of which nothing may show.
    own = GenerationConfig(suppress_tokens=expected[1][:1], repetition_penalty=5.0)
    before, model.generation_config = model.generation_config, own
    try:
        assert generate(model, tokenizer, prompts[1:2], 3) != [expected[1]]
        for batch_size in (1, 3, 64):
            assert greedy(model, tokenizer, tokens, limits, batch_size) == expected
        assert model.generation_config is own
        # An end of the model's own is heeded.
        own.eos_token_id = [expected[2][4]]
        stop = expected[2].index(expected[2][4])
        assert greedy(model, tokenizer, tokens[2:3], [9]) == [expected[2][:stop]]
    finally:
        model.generation_config = before


def test_greedy_keeps_within_the_context(model, tokenizer):
    long, short = list(range(3, 63)), list(range(3, 8))
    expected = [slow_greedy(model, long, 4), slow_greedy(model, short, 12)]
    assert greedy(model, tokenizer, [long, short], [4, 12], 2) == expected


def test_greedy_fills_the_last_position(tokenizer):
    """GPT-2 has a row of weights for each position: past the last one there is no answer."""
    torch.manual_seed(0)
    sizes = {"n_positions": 16, "n_embd": 16, "n_layer": 1, "n_head": 2, "initializer_range": 0.3}
    model = GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), eos_token_id=1, **sizes)).eval()
    prompt = list(range(3, 13))
    with pytest.raises(IndexError):
        slow_greedy(model, prompt, 8, ends=())
    (said,) = greedy(model, tokenizer, [prompt], [20])
    assert said == slow_greedy(model, prompt, 7, ends=())
    assert len(said) == 7


def test_scores_equal_slow_generation(model, tokenizer):
    """EL and ES, each prefix generated from; exact match, MA and losses one by one."""
    rows = examples(model, tokenizer)
    encoded = encode_all(tokenizer, rows)
    n = 3
    likelihoods, strengths, exact, accuracies = [], [], [], []
    for row in encoded:
        prompt = row.input_ids[: row.prompt_length]
        labels = row.input_ids[row.prompt_length : -1]
        said = [
            slow_greedy(model, prompt + labels[:k], len(labels) - k) for k in range(len(labels))
        ]
        fewest = next((k for k in range(len(labels)) if said[k] == labels[k:]), len(labels))
        strengths.append(1 - fewest / len(labels))
        exact.append(float(said[0] == labels))
        accuracies.append(
            sum(s[:1] == [x] for s, x in zip(said, labels, strict=True)) / len(labels)
        )
        shares = []
        for k in range(len(labels) - n + 1):
            own = [tuple(labels[i : i + n]) for i in range(k, len(labels) - n + 1)]
            grams = [tuple(said[k][i : i + n]) for i in range(len(said[k]) - n + 1)]
            shares.append(sum(gram in own for gram in grams) / len(own))
        likelihoods.append(sum(shares) / len(shares) if shares else math.nan)
    assert 0 < sum(exact) < len(exact)  # a case of each
    assert any(0 < value < 1 for value in strengths)
    assert any(0 < value < 1 for value in likelihoods)
    assert any(math.isnan(value) for value in likelihoods)
    for batch_size in (1, 4, 64):
        found = score(
            model, tokenizer, rows, METRICS, n=n, batch_size=batch_size, require_end=False
        )
        assert list(found) == list(METRICS)
        assert found["es"].values.tolist() == pytest.approx(strengths)
        assert found["exact_match"].values.tolist() == exact
        assert found["ma"].values.tolist() == pytest.approx(accuracies)
        assert found["el"].values.tolist() == pytest.approx(likelihoods, nan_ok=True)
        assert found["el"].why == "completions of fewer than 3 tokens have no EL_3"
    with_end = score(model, tokenizer, rows, ["exact_match"])["exact_match"].values
    ends = [slow_greedy(model, row.input_ids[:-1], 1) == [] for row in encoded]
    assert with_end.tolist() == [float(e and s) for e, s in zip(exact, ends, strict=True)]


def test_perplexity_is_weighted_by_tokens(model, tokenizer):
    rows = [Example("a", "b"), Example("a", "hello you there")]
    found = score(model, tokenizer, rows, ["nll", "perplexity"])
    forced = teacher_forced(model, tokenizer, encode_all(tokenizer, rows))
    every = torch.cat([each.answer(each.nll) for each in forced])
    assert len(every) == 1 + 15  # a base model does not end where a completion does
    assert found["nll"].mean() == pytest.approx(float(every.mean()))
    assert found["nll"].mean() != pytest.approx(float(found["nll"].values.mean()), rel=1e-3)
    assert METRICS["perplexity"].transform(found["perplexity"].mean()) == pytest.approx(
        math.exp(float(every.mean()))
    )


def test_rouge_compares_with_what_is_generated(model, tokenizer):
    rows = examples(model, tokenizer)
    encoded = encode_all(tokenizer, rows)
    longest = max(len(row.input_ids) - row.prompt_length for row in encoded)
    found = score(model, tokenizer, rows, ["rouge_l_recall", "rouge_l_f"], batch_size=3)
    for place, (row, example) in enumerate(zip(encoded, rows, strict=True)):
        prompt = row.input_ids[: row.prompt_length]
        # Recall is of the whole answer; F1, which loses by its length, of no more than is asked.
        for name, which, more in (("rouge_l_recall", 0, 32), ("rouge_l_f", 1, 0)):
            room = min(longest + more, 64 - len(prompt))
            said = tokenizer.decode(slow_greedy(model, prompt, room), skip_special_tokens=True)
            expected = metrics.rouge_l(example.completion, said) or (math.nan, math.nan)
            value = found[name].values[place]
            assert value == pytest.approx(expected[which], nan_ok=True)


def test_truth_ratio_of_a_model(model, tokenizer):
    wrong = ("no", "never ever")
    rows = [
        Example("a", "b", perturbed=wrong, paraphrase="other"),
        Example("a", "b", perturbed=wrong),
        Example("a", "b"),
    ]

    def mean(text):
        (row,) = encode_all(tokenizer, [Example("a", text)])
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([row.input_ids])).logits[0].double()
        labels = torch.tensor(row.input_ids[row.prompt_length :])
        return float(torch.nn.functional.cross_entropy(logits[row.prompt_length - 1 : -1], labels))

    below = math.exp(-(mean("no") + mean("never ever")) / 2)
    ratios = [below / math.exp(-mean(text)) for text in ("other", "b")]
    for forget, rule in (
        (True, lambda ratio: min(ratio, 1 / ratio)),
        (False, lambda ratio: max(0, 1 - ratio)),
    ):
        found = score(model, tokenizer, rows, ["truth_ratio"], forget=forget)["truth_ratio"]
        expected = [*(rule(ratio) for ratio in ratios), math.nan]
        assert found.values.tolist() == pytest.approx(expected, rel=1e-4, nan_ok=True)
    nothing = score(model, tokenizer, rows[2:], ["truth_ratio"])["truth_ratio"]
    assert nothing.mean() is None
    assert "perturbed" in nothing.why


def test_after_eos_nothing_counts(model, chat_tokenizer):
    """A template's line feed behind EOS is never generated, so an exact match needs none."""
    row = Encoded([5, 6, 7, 1, 9], 2, 2)
    (each,) = teacher_forced(model, chat_tokenizer, [row])
    assert each.labels.tolist() == [7, 1, 9]
    assert each.ended(each.labels).tolist() == [7, 1]
    assert each.answer(each.labels).tolist() == [7]


def test_nan_is_an_error(model, tokenizer):
    rows = [Example("a", "b")]
    assert math.isfinite(score(model, tokenizer, rows, ["nll"])["nll"].mean())
    weight = model.lm_head.weight
    kept = weight[7, 0].item()
    with torch.no_grad():
        weight[7, 0] = math.nan
    try:
        with pytest.raises(NonFiniteError, match=r"cities: .*example 1 are NaN"):
            score(model, tokenizer, rows, ["exact_match"], where="cities")
    finally:
        with torch.no_grad():
            weight[7, 0] = kept


def test_texts_must_fit_the_context(model, tokenizer):
    fits = Example("a", "b" * 61)  # with BOS, the prompt and EOS 64
    assert score(model, tokenizer, [fits], ["rouge_l_recall"])
    with pytest.raises(DataError, match=r"cities, example 2: has 65 tokens; the model reads 64"):
        score(model, tokenizer, [fits, Example("a", "b" * 62)], where="cities")
    with pytest.raises(DataError, match="cities: holds no examples"):
        score(model, tokenizer, [], where="cities")


def test_chance_is_the_best_constant_answer():
    rows = [Example(str(n), completion) for n, completion in enumerate("aabc")]
    assert chance(rows) == 0.5
    assert max(sum(row.completion == guess for row in rows) for guess in "abc") / 4 == 0.5
    assert chance(rows[1:]) == pytest.approx(1 / 3)
