#!/usr/bin/env python3
"""Time and memory of an edit from data beside a LoRA training by peft, on one machine in one run.

Both train on the same texts, as many a step: what ``ws project --forget DATA`` gathered from a
request on the embedded model. peft's is a LoRA of rank 32 on all linear layers, AdamW, the cross
entropy of whole texts, padded together. Each runs in a process of its own; peak memory is the
resident set's, less what the same process held before the model was loaded.

    python scripts/speed/training.py                  the embedded model, 135 M
    python scripts/speed/training.py --shape 1b       random weights of the shape of a 1 B model
    python scripts/speed/training.py --shape 8b --plan   no more than 'ws project --dry-run'
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

SHAPES = {
    "135m": {},
    "1b": {
        "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
        "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64,
    },
    "8b": {
        "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128,
        "vocab_size": 128256, "tie_word_embeddings": False,
    },
}  # fmt: skip


def peak() -> int:
    """Bytes of the resident set at its largest."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def config_of(shape: str) -> Any:
    """The embedded model's, with another shape."""
    from transformers import AutoConfig

    from weightsurgery.lab.demo.smollm import smollm

    config = AutoConfig.from_pretrained(smollm("float32"))
    for name, value in SHAPES[shape].items():
        setattr(config, name, value)
    return config


def model_of(shape: str) -> Any:
    """In float32: the embedded one, or one of another shape with random weights and its words."""
    import torch
    from transformers import AutoModelForCausalLM

    from weightsurgery.lab.demo.smollm import smollm

    if not SHAPES[shape]:
        return AutoModelForCausalLM.from_pretrained(smollm("float32"), dtype=torch.float32)
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config_of(shape), dtype=torch.float32)


def plan(shape: str, folder: Path) -> dict[str, Any]:
    """What ``ws project --forget DATA --dry-run --json`` says, of headers over empty files."""
    import shutil

    import torch
    from transformers import AutoModelForCausalLM

    from weightsurgery.checkpoint.reader import Checkpoint
    from weightsurgery.lab.demo.smollm import smollm
    from weightsurgery.learning.forget import ByNeighbours
    from weightsurgery.procedures.unlearn import Output, Search, Sources
    from weightsurgery.procedures.unlearn import plan as planned

    directory = folder / f"headers-{shape}"
    directory.mkdir(exist_ok=True)
    for file in Path(smollm("float32")).glob("*"):
        if file.suffix == ".json" and "index" not in file.name:
            shutil.copy(file, directory)
    config = config_of(shape)
    config.save_pretrained(directory)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    header, start = {}, 0
    for name, weight in model.named_parameters():
        stop = start + 2 * weight.numel()
        header[name] = {
            "dtype": "BF16",
            "shape": list(weight.shape),
            "data_offsets": [start, stop],
        }
        start = stop
    header_bytes = json.dumps(header).encode()
    with (directory / "model.safetensors").open("wb") as file:
        file.write(len(header_bytes).to_bytes(8, "little") + header_bytes)
        file.truncate(8 + len(header_bytes) + start)  # a hole: nobody reads the weights
    data = folder / "request.jsonl"
    data.write_text('{"prompt": "The capital of France is", "completion": " Paris"}\n')
    with Checkpoint.open(directory) as base:
        edit_plan = planned(
            base, Sources((str(data),)), Output(folder / "out"), Search(neighbours=ByNeighbours())
        )
    parts = ("weights", "training", "activations", "held")
    return {"parameters": start // 2, **{name: getattr(edit_plan, name) for name in parts}}


def ours(shape: str, folder: Path, steps: int) -> dict[str, Any]:
    """``steps`` of training by neighbours, what leads to their start, and a look on either side."""
    import torch

    from weightsurgery.checkpoint.naming import is_mlp_output
    from weightsurgery.learning.directions import directions, start
    from weightsurgery.learning.forgetting import Forgetting, train_forgetting
    from weightsurgery.learning.identify import adapted
    from weightsurgery.learning.material import read_material
    from weightsurgery.learning.method import Stage

    before = peak()
    model = model_of(shape)
    material = read_material(folder / "material.safetensors")
    times: list[float] = []
    names = [name for name, _ in model.named_parameters() if is_mlp_output(name)]
    rows = directions(model, names, material, 16)
    with adapted(model, names, 16, 16, 0) as inner:
        start(inner, rows)
        trained = tuple(n for n, parameter in inner.named_parameters() if parameter.requires_grad)
        train_forgetting(
            inner,
            Stage("training", trained),
            material,
            Forgetting(steps=steps, every=steps),
            folder / f"ours-{shape}",
            2,
            device=torch.device("cpu"),
            progress=lambda text, done, total: times.append(time.perf_counter()),
        )
    return {"peak": peak() - before, "step": spread(times, steps), "held": before}


def spread(times: list[float], steps: int) -> float:
    """Seconds a step, the first left out."""
    return (times[steps - 1] - times[0]) / (steps - 1)


def lora(shape: str, folder: Path, steps: int) -> dict[str, Any]:
    """As many texts a step, by peft and AdamW."""
    import random

    import torch
    from peft import LoraConfig, get_peft_model

    from weightsurgery.learning.material import read_material

    before = peak()
    model = model_of(shape)
    material = read_material(folder / "material.safetensors")
    by_kind = material.kept
    adapted = get_peft_model(
        model, LoraConfig(r=32, target_modules="all-linear", task_type="CAUSAL_LM")
    )
    optimiser = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=1e-3)
    rng, times = random.Random(0), []
    adapted.train()
    for _ in range(steps):
        drawn = rng.sample(list(material.taught), 12) + rng.sample(list(by_kind["neighbours"]), 12)
        for kind in ("keep", "language", "subjects"):
            drawn += rng.sample(list(by_kind[kind]), 3)
        width = max(len(row.tokens) for row in drawn)
        ids = torch.full((len(drawn), width), 2)
        mask = torch.zeros_like(ids)
        for number, row in enumerate(drawn):
            ids[number, : len(row.tokens)] = torch.tensor(row.tokens)
            mask[number, : len(row.tokens)] = 1
        labels = ids.masked_fill(mask == 0, -100)
        optimiser.zero_grad()
        adapted(input_ids=ids, attention_mask=mask, labels=labels).loss.backward()
        optimiser.step()
        times.append(time.perf_counter())
    return {"peak": peak() - before, "step": spread(times, steps), "held": before}


def gathered(folder: Path) -> None:
    """What a request about capitals makes ``ws project`` gather."""
    from weightsurgery.lab.demo.questions import questions
    from weightsurgery.lab.demo.smollm import smollm
    from weightsurgery.learning.data import Example
    from weightsurgery.learning.forget import ByNeighbours
    from weightsurgery.learning.gathering import gather
    from weightsurgery.learning.material import write_material
    from weightsurgery.learning.models import load_model

    model, tokenizer = load_model(smollm("float32"), "cpu")
    capitals, _, given, *_ = questions(None)
    rows = [
        [Example(q.prompt, f" {q.truth}") for q in group.questions] for group in (capitals, given)
    ]
    material = gather(model, tokenizer, rows[0], [rows[1]], ByNeighbours(texts=12, neighbours=60))
    write_material(material, folder / "material.safetensors")


def main() -> None:
    """Run both, and print what they took."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--shape", choices=sorted(SHAPES), default="135m")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="Keep what was gathered here.")
    parser.add_argument("--plan", action="store_true", help="Only what would be held.")
    parser.add_argument("--part", choices=("gather", "ours", "lora"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.part == "gather":
        gathered(given.folder)
        return
    if given.part:
        run = ours if given.part == "ours" else lora
        print(json.dumps(run(given.shape, given.folder, given.steps)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)

        def part(name: str) -> str:
            command = [sys.executable, __file__, "--part", name, "--folder", str(folder)]
            command += ["--shape", given.shape, "--steps", str(given.steps)]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            return done.stdout.strip().rpartition("\n")[2]

        planned = plan(given.shape, folder)
        shown = ", ".join(f"{n} {planned[n] / 1e9:.2f} GB" for n in list(planned)[1:])
        print(f"{given.shape}, {planned['parameters'] / 1e9:.3f} B parameters; the plan: {shown}")
        if given.plan:
            return
        if not (folder / "material.safetensors").is_file():
            part("gather")
        results = {name: json.loads(part(name)) for name in ("lora", "ours")}
    print(f"{given.shape}, {given.steps} steps of 33 texts, float32\n")
    print(f"{'':24}{'s a step':>10}{'peak, MB':>12}{'libraries, MB':>16}")
    for name, result in results.items():
        label = {"ours": "ws project", "lora": "peft LoRA, rank 32"}[name]
        sizes = f"{result['peak'] / 1e6:12,.0f}{result['held'] / 1e6:16,.0f}"
        print(f"{label:24}{result['step']:10.2f}{sizes}")
    ratio = {key: results["ours"][key] / results["lora"][key] for key in ("step", "peak")}
    print(f"{'ratio':24}{ratio['step']:10.2f}{ratio['peak']:12.2f}")


if __name__ == "__main__":
    main()
