"""Tasks of lm-evaluation-harness from a local file, offline."""

import json

import pytest

from tests.learning.conftest import slow_greedy, write
from weightsurgery.errors import DataError, SourceError, WeightSurgeryError
from weightsurgery.learning.exact import score_checkpoint
from weightsurgery.learning.harness import find_tasks, run_tasks

TASK = """
task: tiny_facts
dataset_path: json
dataset_kwargs:
  data_files: {test: %s}
test_split: test
output_type: generate_until
doc_to_text: "{{prompt}}"
doc_to_target: "{{completion}}"
generation_kwargs: {until: ["</s>"], max_gen_toks: 4, do_sample: false}
metric_list: [{metric: exact_match}]
"""


@pytest.fixture
def checkpoint(model, tokenizer, tmp_path):
    model.save_pretrained(tmp_path / "ckpt")
    tokenizer.save_pretrained(tmp_path / "ckpt")
    return tmp_path / "ckpt"


@pytest.fixture
def facts(model, tokenizer, tmp_path):
    """Three completions that the model gives where BOS goes before the prompt, and one wrong."""
    rows = []
    for prompt in ("a", "what is b?", "tell me of c", "dd"):
        own = slow_greedy(model, tokenizer(prompt)["input_ids"], 4)
        bare = slow_greedy(model, tokenizer(prompt, add_special_tokens=False)["input_ids"], 4)
        assert len(own) == 4
        assert own != bare
        rows.append({"prompt": prompt, "completion": tokenizer.decode(own)})
    rows[-1]["completion"] = "~~~~"
    return write(tmp_path / "facts.jsonl", *map(json.dumps, rows))


def test_a_local_task_scores_as_ours_does(checkpoint, facts, tmp_path, monkeypatch, capfd):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_OFFLINE", True)
    own = tmp_path / "tasks"
    own.mkdir()
    (own / "facts.yaml").write_text(TASK % facts)
    capfd.readouterr()
    tasks = find_tasks(["lm-eval:tiny_facts"], own)
    (figure,) = run_tasks(checkpoint, tasks, checkpoint, batch_size=2, device="cpu")
    assert capfd.readouterr() == ("", "")
    assert (figure.task, figure.metric) == ("tiny_facts", "exact_match")
    ours = score_checkpoint(checkpoint, {"facts": facts}, require_end=False)["facts"]
    assert figure.value == figure.before == ours == 0.75
    assert figure.error == figure.before_error
    assert 0 < figure.error < 1

    with pytest.raises(SourceError, match="nowhere: no such directory"):
        run_tasks("nowhere", tasks)
    facts.unlink()
    with pytest.raises(DataError, match="tiny_facts: lm-evaluation-harness fails on"):
        run_tasks(checkpoint, tasks, device="cpu")
    assert capfd.readouterr() == ("", "")


def test_bad_names_are_named(tmp_path, monkeypatch):
    for text in ("hellaswag", "lm-eval:"):
        with pytest.raises(DataError, match="task"):
            find_tasks([text])
    with pytest.raises(DataError, match="no such directory"):
        find_tasks(["lm-eval:x"], tmp_path / "nowhere")
    with pytest.raises(DataError, match="knows no task 'no_such_task'"):
        find_tasks(["lm-eval:hellaswag", "lm-eval:no_such_task"])
    monkeypatch.setattr("weightsurgery.deferred.find_spec", lambda name: None)
    with pytest.raises(WeightSurgeryError) as caught:
        find_tasks(["lm-eval:hellaswag"])
    assert "weightsurgery[eval]" in caught.value.remedy
