"""What edits of 70, 405 and 671 B parameters take on a cluster, by the plan's own formulas.

Makes checkpoints that are headers alone (Llama 3's shapes, and DeepSeek-V3's by headers.py), plans
edits of them as ``--dry-run`` does, and adds what a cluster reads besides: all inputs once more for
their SHA-256, unless that is known, and the output once more to compare it with what was written.

    hours = max(read / storage + written / storage, both / (nodes x network), processors)

Processor seconds are those of growth.py for each parameter, measured up to 3 B, divided by all
processors. Nothing of it was run at these sizes.

    python scripts/speed/sizes.py --dir /tmp/headers --read 10 --write 5 --network 3 --nodes 4
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

from growth import fitted
from headers import LAYERS, config, stored, write

from weightsurgery.algebra.lowrank import Rank
from weightsurgery.checkpoint.reader import Checkpoint
from weightsurgery.checkpoint.selection import Selection
from weightsurgery.checkpoint.stacks import is_matrix
from weightsurgery.surgery.apply import Storage
from weightsurgery.surgery.discriminating import Project
from weightsurgery.surgery.edit import Edit, Run
from weightsurgery.surgery.edits import Negate
from weightsurgery.surgery.plan import plan_checkpoint, worker_count
from weightsurgery.vectors.sources import open_vector

MEASURED = Path(__file__).parent / "results/growth.json"

# By billions: hidden size, width of MLPs, layers, width of keys and values, vocabulary, files.
LLAMAS = {
    "70": (8192, 28672, 80, 1024, 128256, 30),
    "405": (16384, 53248, 126, 1024, 128256, 191),
}


def llama(shape: tuple[int, ...]) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """Tensors in bfloat16, in the order of the files."""
    hidden, mlp, layers, keys, vocabulary, _ = shape
    yield "model.embed_tokens.weight", "BF16", (vocabulary, hidden)
    for layer in range(layers):
        at = f"model.layers.{layer}"
        yield f"{at}.input_layernorm.weight", "BF16", (hidden,)
        yield f"{at}.mlp.down_proj.weight", "BF16", (hidden, mlp)
        yield f"{at}.mlp.gate_proj.weight", "BF16", (mlp, hidden)
        yield f"{at}.mlp.up_proj.weight", "BF16", (mlp, hidden)
        yield f"{at}.post_attention_layernorm.weight", "BF16", (hidden,)
        for name, rows in (("q", hidden), ("k", keys), ("v", keys), ("o", hidden)):
            yield f"{at}.self_attn.{name}_proj.weight", "BF16", (rows, hidden)
    yield "model.norm.weight", "BF16", (hidden,)
    yield "lm_head.weight", "BF16", (vocabulary, hidden)


def make(root: Path, billions: str) -> None:
    """A base and two fine-tunes, empty."""
    for name in ("base", "forget", "keep"):
        if (root / name / "config.json").is_file():
            continue
        shutil.rmtree(root / name, ignore_errors=True)
        if billions in LLAMAS:
            write(root / name, llama(LLAMAS[billions]), LLAMAS[billions][-1], "model")
            settings = {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}
        else:
            write(root / name, stored(LAYERS, float8=False), 163, "model")
            settings = config(LAYERS, float8=False)
        (root / name / "config.json").write_text(json.dumps(settings))  # last: the rest is whole


def rows(root: Path, billions: str, speeds: argparse.Namespace) -> Iterator[list[str]]:
    """What is expected of each edit."""
    base = Checkpoint.open(root / "base")
    forget, keep = (open_vector(base, [str(root / name)]) for name in ("forget", "keep"))
    edits: dict[str, Edit] = {
        "negate": Negate(forget),
        "project 64": Project(forget, (keep,), Rank(64)),
    }
    measured = json.loads(MEASURED.read_text())
    for name, edit in edits.items():
        selection = Selection("all-linear" if edit.factors else "all")
        plan = plan_checkpoint(edit, base, root / "out", Storage(), Run(selection))
        hashed = (1 + len(edit.vectors())) * base.layout.nbytes
        read = plan.read_bytes + plan.write_bytes + (0 if speeds.known else hashed)
        written = plan.write_bytes
        chosen = [base.entry(each) for each in plan.edited]
        count = sum(each.numel for each in chosen if is_matrix(each) or not edit.factors)
        _, seconds = fitted(measured[name], elementwise=not edit.factors)
        times = {
            "storage": read / speeds.read + written / speeds.write,
            "network": (read + written) / speeds.network / speeds.nodes,
            "processors": seconds * count / speeds.processors / speeds.nodes,
        }
        held = plan.memory_bytes / worker_count(edit, None)
        yield [
            billions, name, f"{len(base.entries):,}", f"{read / 1e12:.2f}", f"{written / 1e12:.2f}",
            *(f"{each / 3600:.2f}" for each in times.values()), max(times, key=times.__getitem__),
            f"{held / 1e9:.2f}",
        ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dir", type=Path, required=True, help="where the headers go")
    parser.add_argument("--read", type=float, default=10, help="shared storage to all nodes, GB/s")
    parser.add_argument("--write", type=float, default=5, help="shared storage of all nodes, GB/s")
    parser.add_argument("--network", type=float, default=3, help="of each node, GB/s")
    parser.add_argument("--nodes", type=int, default=4)
    parser.add_argument("--processors", type=int, default=32, help="of each node")
    parser.add_argument("--known", action="store_true", help="inputs were hashed by an earlier run")
    speeds = parser.parse_args()
    for name in ("read", "write", "network"):
        setattr(speeds, name, getattr(speeds, name) * 1e9)
    heads = ("B", "edit", "tensors", "TB read", "TB written", "storage, h", "network, h",
             "processors, h", "longest", "GB a task")  # fmt: skip
    print(f"| {' | '.join(heads)} |\n{'|---' * len(heads)}|")
    for billions in (*LLAMAS, "671"):
        root = speeds.dir / f"sizes-{billions}"
        make(root, billions)
        for row in rows(root, billions, speeds):
            print(f"| {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main()
