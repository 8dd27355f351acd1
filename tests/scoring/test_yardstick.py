"""The yardstick of a checkpoint, against open-unlearning's formulas worked out in NumPy."""

import json
import math
import zlib

import numpy as np
import pytest
import torch
from rouge_score.rouge_scorer import RougeScorer
from scipy.stats import hmean, ks_2samp
from sklearn.metrics import roc_auc_score

from tests.learning.conftest import slow_greedy
from tests.scoring.conftest import rows, saved
from weightsurgery.errors import DataError
from weightsurgery.learning.data import Example
from weightsurgery.learning.models import load_model
from weightsurgery.scoring.sets import ModelScorer, read_reference
from weightsurgery.scoring.yardstick import tofu


@pytest.fixture(scope="module")
def found(tofu_world):
    return measure(tofu_world, "taught", "retrained")


def measure(root, name, reference, **changed):
    named = {
        "forget": [root / "forget.jsonl"],
        "keep": [root / "keep.jsonl", root / "choices.jsonl"],
        "holdout": [root / "holdout.jsonl"],
        "judge": root / "retrained",
        "reference": reference and root / reference,
    }
    return tofu(root / name, **{**named, **changed}, resamples=50)


class Oracle:
    """What a model says, one text at a time, by plain transformers and NumPy in float64."""

    def __init__(self, directory):
        self.model, self.tokenizer = load_model(directory)

    def logs(self, prompt, text):
        """Log-probabilities of the whole vocabulary at each token and at EOS; and the tokens."""
        before = self.tokenizer(prompt)["input_ids"]
        after = [*self.tokenizer(" " + text, add_special_tokens=False)["input_ids"], 1]
        with torch.no_grad():
            logits = self.model(torch.tensor([before + after])).logits[0].double()
        return logits.log_softmax(-1)[len(before) - 1 : -1].numpy(), np.array(after)

    def nll(self, prompt, text):
        logs, tokens = self.logs(prompt, text)
        return -logs[np.arange(len(tokens)), tokens]

    def average(self, prompt, text):
        return self.nll(prompt, text).mean()

    def said(self, prompt):
        # The tokens an answer may have: 32 more than " green" and its end have.
        tokens = slow_greedy(self.model, self.tokenizer(prompt)["input_ids"], 7 + 32)
        return self.tokenizer.decode(tokens).lstrip().split("\n")[0]


def open_unlearning(oracle, root):
    """Its scores of a model, as ``src/evals/metrics`` writes them, without the reference's."""

    def average(row, texts):
        return np.array([oracle.average(row["question"], text) for text in texts])

    def read(name):
        return [json.loads(line) for line in (root / name).read_text().splitlines()]

    def rouge(row):
        scorer = RougeScorer(["rougeL"], use_stemmer=True)
        return scorer.score(row["answer"], oracle.said(row["question"]))["rougeL"].recall

    def ratio(row, right):
        correct = np.exp(-average(row, [row[right]]).mean())
        return np.exp(-average(row, row["perturbed_answer"]).mean()) / (correct + 1e-10)

    forget, keep, choices = read("forget.jsonl"), read("keep.jsonl"), read("choices.jsonl")
    ratios = np.array([ratio(row, "paraphrased_answer") for row in forget])
    probabilities = []
    for row in choices:
        right = np.exp(-average(row, [row["answer"]]))[0]
        wrong = np.exp(-average(row, row["perturbed_answer"])).sum()
        probabilities.append(right / (right + wrong + 1e-10))
    utility = hmean([
        np.mean([np.exp(-average(row, [row["answer"]])) for row in keep]),
        np.mean([rouge(row) for row in keep]),
        np.mean([max(0, 1 - ratio(row, "paraphrased_answer")) for row in keep]),
        np.mean(probabilities),
        np.mean([rouge(row) for row in choices]),
        np.mean([max(0, 1 - ratio(row, "answer")) for row in choices]),
    ])  # fmt: skip
    scores = {"loss": [], "zlib": [], "min_k": [], "min_k++": []}
    for row in [*forget, *read("holdout.jsonl")]:
        logs, tokens = oracle.logs(row["question"], row["answer"])
        nll = oracle.nll(row["question"], row["answer"])
        inner, lps = logs[:-1], -nll[:-1]
        count = max(1, int(0.4 * len(lps)))
        mu = (np.exp(inner) * inner).sum(-1)
        sigma = np.clip((np.exp(inner) * inner**2).sum(-1) - mu**2, 1e-6, None)
        scores["loss"].append(nll.mean())
        scores["zlib"].append(nll.mean() / len(zlib.compress(row["answer"].encode())))
        scores["min_k"].append(-np.sort(lps)[:count].mean())
        scores["min_k++"].append(-np.sort((lps - mu) / np.sqrt(sigma))[:count].mean())
    labels = [0] * len(forget) + [1] * 8
    strengths, exact = [], []
    for row in forget:
        logs, tokens = oracle.logs(row["question"], row["answer"])
        right = (logs.argmax(-1) == tokens)[:-1]
        k = next((k for k in range(len(right)) if right[k:].all()), len(right))
        strengths.append(1 - k / len(right))
        exact.append(right.mean())
    return {
        "ratios": ratios,
        "utility": utility,
        "auc": {name: roc_auc_score(labels, values) for name, values in scores.items()},
        "probability": np.mean([np.exp(-average(row, [row["answer"]])) for row in forget]),
        "rouge_l_recall": np.mean([rouge(row) for row in forget]),
        "truth_ratio": np.mean(np.minimum(ratios, 1 / (ratios + 1e-10))),
        "extraction_strength": np.mean(strengths),
        "exact_memorisation": np.mean(exact),
    }


def test_every_figure_is_open_unlearnings(tofu_world, found):
    own = open_unlearning(Oracle(tofu_world / "taught"), tofu_world)
    other = open_unlearning(Oracle(tofu_world / "retrained"), tofu_world)
    assert np.exp(found.log_truth_ratios) == pytest.approx(own["ratios"], rel=1e-4)
    wanted = ks_2samp(own["ratios"], other["ratios"]).pvalue
    assert found.forget_quality == pytest.approx(wanted)
    assert found.model_utility == pytest.approx(own["utility"], rel=1e-4)
    assert found.membership == pytest.approx(own["auc"])
    assert found.reference_membership == pytest.approx(other["auc"])
    leak = 100 * ((1 - own["auc"]["min_k"]) - (1 - other["auc"]["min_k"]))
    assert found.priv_leak == pytest.approx(leak / (1 - other["auc"]["min_k"]))
    right = 1 / (1 + own["ratios"])
    parts = (
        own["extraction_strength"],
        own["exact_memorisation"],
        own["probability"],
        right.mean(),
    )
    assert found.memorisation == pytest.approx(hmean([1 - part for part in parts]), rel=1e-4)
    near = [max(0, 1 - abs(own["auc"][k] - v) / v) for k, v in other["auc"].items()]
    assert found.privacy == pytest.approx(hmean(near) if min(near) else 0)
    forget = found.sets[0]
    assert forget.role == "forget"
    for name, score in forget.scores.items():
        assert score.value == pytest.approx(own[name], rel=1e-4), name
        low, high = score.interval
        assert low <= score.value <= high
    assert [each.choices for each in found.sets] == [False, False, True]


def test_it_tells_a_model_that_knows_from_one_that_does_not(tofu_world, found):
    none = measure(tofu_world, "retrained", "retrained")
    assert none.forget_quality == 1
    assert none.priv_leak == 0
    assert none.privacy == 1
    assert found.forget_quality < 0.05
    assert found.priv_leak < 0
    assert found.privacy < 0.5
    assert found.memorisation < none.memorisation
    assert found.membership["loss"] > 0.9
    assert found.model_utility > none.model_utility
    assert found.sets[0].scores["extraction_strength"].value > 0.5


def test_fluency_is_the_judges_perplexity_of_what_is_said(tofu_world, found):
    judge, own = Oracle(tofu_world / "retrained"), Oracle(tofu_world / "taught")
    losses = []
    for row in rows("abcdefgh"):
        if answer := own.said(row["question"]):
            losses += judge.nll(row["question"], answer)[:-1].tolist()
    assert found.fluency.value == pytest.approx(math.exp(np.mean(losses)), rel=1e-4)
    assert measure(tofu_world, "taught", "retrained", judge=None).fluency is None


def test_a_judge_reads_as_much_as_it_can(tofu_world, caplog):
    """An answer of 60 tokens after a prompt of 19, to a judge that reads 64: 45 of them count."""
    judge = ModelScorer(*load_model(tofu_world / "retrained"))
    (prompt,) = [Example("The colour of a is", "")]
    own = Oracle(tofu_world / "retrained")
    for text, counted in (("x" * 59, 45), ("x" * 44, 45), ("x", 2)):
        # Said anew, since a tokenizer warns of long texts once.
        judge.tokenizer.deprecation_warnings.clear()
        caplog.clear()
        found = judge.surprise("answers", [prompt, prompt], [text, ""])
        assert caplog.records == []
        nll = own.nll(prompt.prompt, text)[:counted]
        assert found.values[0] == pytest.approx(nll.mean(), rel=1e-4)
        assert found.weights[0] == counted
        assert math.isnan(found.values[1])


def test_a_reference_is_taken_from_what_was_said_of_it(tofu_world, found, tmp_path):
    from dataclasses import asdict

    told = asdict(measure(tofu_world, "retrained", "retrained"))
    path = tmp_path / "retrained.json"
    path.write_text(json.dumps({"tofu": told}))
    assert read_reference(path).rows == found.rows
    again = measure(tofu_world, "taught", path)
    assert again.forget_quality == found.forget_quality
    assert again.priv_leak == found.priv_leak
    fewer = [saved(tmp_path / "fewer.jsonl", rows("abcdefgh")[:7])]
    with pytest.raises(DataError, match="asked other rows"):
        measure(tofu_world, "taught", path, forget=fewer)
    path.write_text("{}")
    with pytest.raises(DataError, match="no reference"):
        measure(tofu_world, "taught", path)


def test_several_files_to_forget_are_one_sample(tofu_world, found, tmp_path):
    lines = rows("abcdefgh")
    parts = [saved(tmp_path / f"{n}.jsonl", part) for n, part in enumerate((lines[:3], lines[3:]))]
    again = measure(tofu_world, "taught", "retrained", forget=parts)
    assert again.forget_quality == pytest.approx(found.forget_quality)
    assert again.rows == found.rows
    assert again.sets[0].name == "0 + 1"


def test_without_held_out_rows_nothing_is_said_of_members(tofu_world):
    found = measure(tofu_world, "taught", "retrained", holdout=(), judge=None)
    assert (found.membership, found.reference_membership, found.priv_leak) == ({}, {}, None)
    assert found.privacy is None
    assert found.memorisation is not None


def test_rows_that_lack_what_scores_take_are_refused(tofu_world, tmp_path):
    lines = rows("abcdefgh")

    def refused(match, reference="retrained", **changed):
        with pytest.raises(DataError, match=match):
            measure(tofu_world, "taught", reference, **changed)

    del lines[2]["perturbed_answer"]
    refused(
        r"bare.jsonl, example 3: no wrong answers", forget=[saved(tmp_path / "bare.jsonl", lines)]
    )
    refused("example 3: no wrong answers", keep=[tmp_path / "bare.jsonl"])
    bare = rows("abcdefgh", paraphrased=False)
    refused("example 1: no paraphrase", forget=[saved(tmp_path / "plain.jsonl", bare)])
    mixed = [*rows("abcdefgh")[:4], *bare[4:]]
    refused("example 5: no paraphrase", keep=[saved(tmp_path / "mixed.jsonl", mixed)])
    refused("without --keep", keep=[])
    refused("without --forget", forget=[])
    refused("without a reference", reference=None)
