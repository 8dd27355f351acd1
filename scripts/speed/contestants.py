"""Who takes part: each row is a name and how its command is made.

A row with an environment variable of its own begins with ``"env", "NAME=value"``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent

Command = Callable[["Place"], "list[str | Path]"]


@dataclass(frozen=True)
class Place:
    """Where things are.

    Attributes:
        root: Holds base, forget and keep; and what the contestants write.
        programs: The compiled ones.
        peers: Virtual environment with mergekit.
    """

    root: Path
    programs: Path
    peers: Path

    @property
    def base(self) -> Path:
        """The checkpoint before."""
        return self.root / "base"

    @property
    def forget(self) -> Path:
        """A fine-tune of it."""
        return self.root / "forget"

    @property
    def keep(self) -> Path:
        """Another one."""
        return self.root / "keep"

    @property
    def out(self) -> Path:
        """What is written; removed after each run."""
        return self.root / "out"

    def native(self, mode: str, *rest: str) -> list[str | Path]:
        """The compiled floor, in two threads."""
        return [self.programs / "native", mode, self.base, self.forget, self.out, "2", *rest]

    def ws(self, *arguments: str | Path) -> list[str | Path]:
        """Ours, of the interpreter that runs this."""
        return [Path(sys.executable).with_name("ws"), *arguments, "-q"]

    def in_process(self, *arguments: str | Path) -> list[str | Path]:
        """Ours, without its start-up."""
        return [sys.executable, HERE / "in_process.py", *arguments]

    def peer(self, program: str, *arguments: str | Path) -> list[str | Path]:
        """A program of the peers' environment."""
        return [self.peers / "bin" / program, *arguments]

    def mergekit(self, *options: str, dtypes: str = "") -> list[str | Path]:
        """Task arithmetic with a weight of −1."""
        recipe = self.root / f"mergekit{'-float32' if dtypes else ''}.yml"
        recipe.write_text(
            f"merge_method: task_arithmetic\nbase_model: {self.base}\n{dtypes}"
            f"models:\n  - model: {self.forget}\n    parameters:\n      weight: -1.0\n"
        )
        return self.peer("mergekit-yaml", recipe, self.out, *options)

    def extract_lora(self, *options: str) -> list[str | Path]:
        """Full singular value decompositions, cut at rank 32."""
        return self.peer(
            "mergekit-extract-lora", "--model", self.forget, "--base-model", self.base,
            "--out-path", self.out, "--max-rank", "32", *options,
        )  # fmt: skip


@dataclass(frozen=True)
class Suite:
    """Contestants that do the same work.

    Attributes:
        rows: Their commands by name.
        floor: The one whose time the others are divided by.
        ours: Ours, by which they are divided too.
        once: Whether it takes so long that one warm run must do.
    """

    rows: dict[str, Command]
    floor: str
    ours: str
    once: bool = False
    pages: tuple[str, ...] = field(default=("base", "forget"))


_FLOAT32 = "dtype: float32\nout_dtype: bfloat16\n"
_NO_EMBEDDING = (
    "--exclude-regex", r"(^|\.)(embed_tokens|lm_head)$", "--skip-undecomposable"
)  # fmt: skip

SUITES = {
    "negate": Suite(
        {
            "native copy": lambda at: at.native("copy"),
            "native negate": lambda at: at.native("negate", "1"),
            "native copy (flushed)": lambda at: at.native("copy", "sync"),
            "native negate (flushed)": lambda at: at.native("negate", "1", "sync"),
            "ws negate": lambda at: at.ws("negate", at.base, at.forget, "-o", at.out),
            "ws negate (in process)": lambda at: at.in_process(
                "negate", at.base, at.forget, at.out
            ),
            "ws negate (in process unhashed)": lambda at: at.in_process(
                "unhashed", at.base, at.forget, at.out
            ),
            "mergekit": lambda at: at.mergekit(),
            "mergekit (lazy)": lambda at: at.mergekit("--lazy-unpickle", "--low-cpu-memory"),
            "mergekit (small shards)": lambda at: at.mergekit("--out-shard-size", "375M"),
            "mergekit (float32)": lambda at: at.mergekit(dtypes=_FLOAT32),
            "naive script": lambda at: at.peer(
                "python", HERE / "naive.py", at.base, at.forget, at.out
            ),
        },
        floor="native negate",
        ours="ws negate",
    ),
    "diff": Suite(
        {
            "native read": lambda at: at.native("read"),
            "ws diff": lambda at: at.ws("diff", at.base, at.forget),
        },
        floor="native read",
        ours="ws diff",
    ),
    "project": Suite(
        {
            "decompositions alone": lambda at: at.in_process(
                "decompose", at.base, at.forget, at.keep, "64"
            ),
            "ws project 64": lambda at: at.ws(
                "project", at.base, "--forget", at.forget, "--keep", at.keep,
                "-o", at.out, "--rank", "64",
            ),
        },
        floor="decompositions alone",
        ours="ws project 64",
        once=True,
        pages=("base", "forget", "keep"),
    ),
    "subspace": Suite(
        {
            "ws subspace 32": lambda at: at.ws(
                "subspace", at.base, at.forget, "-o", at.out, "--rank", "32"
            ),
            "mergekit-extract-lora": lambda at: at.extract_lora(),
            "mergekit-extract-lora (linear)": lambda at: at.extract_lora(*_NO_EMBEDDING),
        },
        floor="ws subspace 32",
        ours="ws subspace 32",
        once=True,
    ),
}  # fmt: skip
