"""Options that commands share, declared once, in groups of what they are about."""

from __future__ import annotations

import functools
import logging
import os
import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from weightsurgery.cli.helped import among
from weightsurgery.cli.panels import fit_option, machine_option, output_option, tensor_option

if TYPE_CHECKING:
    from weightsurgery.checkpoint.selection import Selection
    from weightsurgery.cli.factors import Truncate
    from weightsurgery.surgery.apply import AdapterStorage, Storage

__all__ = [
    "Ckpt",
    "Fit",
    "Out",
    "Overwrite",
    "Show",
    "Store",
    "Which",
    "Work",
    "written_line",
    "written_path",
    "written_place",
]


def written_path(text: str | None) -> str | None:
    """A path to write, as a shell would have it: ``~`` is expanded, as it is for inputs."""
    from weightsurgery.errors import OutputError

    if text is None:
        return None
    if not text:
        raise typer.BadParameter("an empty name")
    if text.startswith("s3:/"):
        raise OutputError(
            f"{text}: an address on S3, where a directory is needed",
            "Name a directory. What negate, add, project and learn of vectors write may go to S3.",
        )
    return os.path.expanduser(text)


@functools.wraps(written_path)
def written_place(text: str | None) -> str | None:
    """The same, or an address on S3."""
    return text if text is not None and text.startswith("s3:/") else written_path(text)


def written_line(out: str, kind: str) -> str:
    """The notice about a written output, by the kind of its record."""
    check = f"ws verify {shlex.quote(out)}"
    if kind == "adapter":
        return f"Wrote {out}; peft loads it beside the base; check it with:  {check}"
    return f"Wrote {out}; check it any time with:  {check}"


Ckpt = Annotated[str, typer.Argument(metavar="CKPT", help="The checkpoint.")]
Out = Annotated[
    str,
    typer.Option("--out", "-o", metavar="DIR", help="Directory to write.", callback=written_path),
]
Overwrite = Annotated[bool, typer.Option(help="Replace an existing output of ws.")]


@dataclass(frozen=True)
class Which:
    """Which tensors."""

    targets: Annotated[
        str | None,
        tensor_option(
            autocompletion=among("checkpoint.selection:TARGETS"),
            help="all, all-linear (without embeddings and head), attention, mlp, mlp-out (the"
            " matrices with which MLPs end) or embeddings. Default: all for negate, add and diff;"
            " mlp-out to forget data, but for --never-knew without --steps; all-linear otherwise.",
        ),
    ] = None
    include: Annotated[
        list[str] | None,
        tensor_option(metavar="GLOB", help="Only tensors whose name matches; repeatable."),
    ] = None
    exclude: Annotated[
        list[str] | None,
        tensor_option(metavar="GLOB", help="Not tensors whose name matches; repeatable."),
    ] = None
    layers: Annotated[
        str | None, tensor_option(metavar="RANGES", help="Only these layers, as in 0-3,8,20-")
    ] = None

    def selection(self, default: str, scales: list[str] | None = None) -> Selection:
        """As the library's selection."""
        from weightsurgery.checkpoint.selection import Selection
        from weightsurgery.errors import SelectionError

        pairs = []
        for text in scales or ():
            pattern, equals, value = text.rpartition("=")
            try:
                pairs.append((pattern, float(value)))
            except ValueError:
                equals = ""
            if not equals:
                raise SelectionError(
                    f"--layer-scale {text}", "Write PATTERN=FACTOR, as in 0-7=0.5 or '*.mlp.*=0'."
                )
        return Selection(
            self.targets or default,
            tuple(self.include or ()),
            tuple(self.exclude or ()),
            self.layers,
            tuple(pairs),
        )


@dataclass(frozen=True)
class Fit:
    """How the inputs must fit each other."""

    vocab: Annotated[
        str,
        fit_option(
            autocompletion=among("vectors.finetuned:VOCABULARY_POLICIES"),
            help="If the vocabularies differ: error, common-rows (change the rows both have) or"
            " base (leave embeddings and head alone).",
        ),
    ] = "error"
    missing: Annotated[
        str,
        fit_option(
            autocompletion=among("vectors.finetuned:MISSING_POLICIES"),
            help="If a tensor is on one side only: error, or base (leave it as the base has it).",
        ),
    ] = "error"
    partial: Annotated[
        bool, fit_option(help="Go on where less than half of a vector fits BASE.")
    ] = False
    dequantize: Annotated[
        bool,
        fit_option(
            help="Read float8 codes as the numbers they stand for: times their scales, in the dtype"
            " of the config; of BASE and of vectors."
        ),
    ] = False

    @property
    def policies(self) -> dict[str, Any]:
        """As arguments of the library's functions that open vectors."""
        return {"vocab": self.vocab, "missing": self.missing, "partial": self.partial}


@dataclass(frozen=True)
class Store:
    """How the result is stored."""

    out: Annotated[
        str,
        typer.Option(
            "--out",
            "-o",
            metavar="DIR",
            help="Directory or s3://…",
            callback=written_place,
        ),
    ]
    as_: Annotated[
        str,
        output_option(
            "--as",
            autocompletion=among("checkpoint", "adapter"),
            metavar="FORM",
            help="checkpoint, or adapter: a PEFT LoRA that makes the same of BASE, for edits of low"
            " rank.",
        ),
    ] = "checkpoint"
    dtype: Annotated[
        str | None,
        output_option(
            autocompletion=among("float64", "float32", "float16", "bfloat16"),
            help="Store floating tensors as float64, float32, float16 or bfloat16."
            " Default: each as in the base; an adapter's factors: bfloat16.",
        ),
    ] = None
    rounding: Annotated[
        str,
        output_option(autocompletion=among("nearest", "stochastic"), help="nearest or stochastic."),
    ] = "nearest"
    seed: Annotated[int, output_option(help="Seed of stochastic rounding and randomised SVD.")] = 0
    overwrite: Overwrite = False
    allow_unrelated: Annotated[
        bool, fit_option(help="Edit although a vector does not derive from BASE.")
    ] = False
    dry_run: Annotated[
        bool, typer.Option(help="Only say what would be read, written and held.")
    ] = False
    check: Annotated[
        bool,
        output_option(
            help="Run BASE and the output, and compare their predictions on ordinary text; edits"
            " from data do so always."
        ),
    ] = False
    with_code: Annotated[
        bool,
        output_option(
            help="Copy the Python files, too, that BASE's config names: whoever loads the output"
            " with trust_remote_code runs them. Read them first."
        ),
    ] = False
    layer_scale: Annotated[
        list[str] | None,
        tensor_option(
            metavar="PATTERN=FACTOR",
            help="Multiply the scale for some layers (0-7=0.5) or names ('*.mlp.*=0'); the last"
            " match counts; repeatable.",
        ),
    ] = None

    @property
    def on_s3(self) -> bool:
        """Whether the output goes to an object store."""
        return self.out.startswith("s3:/")

    def storage(self) -> Storage | AdapterStorage:
        """As the library's storage."""
        from weightsurgery.errors import EditError

        if self.as_ == "checkpoint":
            from weightsurgery.surgery.apply import Storage

            return Storage(self.dtype, self.rounding, self.seed, self.with_code)
        if self.as_ != "adapter":
            raise EditError(f"--as {self.as_}", "Choose checkpoint or adapter.")
        if self.rounding != "nearest":
            raise EditError(
                f"--rounding {self.rounding} with --as adapter: factors are rounded to the nearest",
                "Leave it out; --dtype float32 stores them as they are.",
            )
        from weightsurgery.surgery.apply import AdapterStorage

        return AdapterStorage(self.dtype or "bfloat16", seed=self.seed)

    def truncated(self, truncate: Truncate) -> Storage | AdapterStorage:
        """The same for an edit without a rank, truncated to one.

        Raises:
            EditError: A rank for a checkpoint.
        """
        from dataclasses import replace

        from weightsurgery.errors import EditError
        from weightsurgery.surgery.apply import Storage

        storage, rule = self.storage(), truncate.rule()
        if not isinstance(storage, Storage):
            return replace(storage, rule=rule)
        if rule is not None:
            option = "--rank" if truncate.rank is not None else "--energy"
            raise EditError(
                f"{option} without --as adapter: a checkpoint holds the change as it is",
                "Leave it out, or pass what 'ws subspace' saves with that rank as the VECTOR.",
            )
        return storage


@dataclass(frozen=True)
class Work:
    """Who does the work."""

    device: Annotated[
        str,
        typer.Option(
            autocompletion=among("auto", "cpu", "cuda"),
            help="auto, cpu, cuda or cuda:0. Where models run and matrices are decomposed.",
        ),
    ] = "auto"
    workers: Annotated[
        int | None,
        machine_option(
            help="Threads. Default: one per core, up to 8; 2 where matrices are decomposed."
        ),
    ] = None


@dataclass(frozen=True)
class Show:
    """What is printed, and the command line that it is the answer to."""

    context: typer.Context
    json: Annotated[bool, typer.Option(help="One JSON document on stdout.")] = False
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress, no notices.")] = False
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Every tensor, not a summary.")
    ] = False

    def __post_init__(self) -> None:
        level = logging.WARNING if self.quiet else logging.INFO
        logging.getLogger("weightsurgery").setLevel(level)

    @property
    def command(self) -> list[str]:
        """The command line, for the record: as typed, or as the recipe that runs stands for it.

        Raises:
            SourceError: The record could not hold it.
        """
        from weightsurgery.errors import SourceError

        words: list[str] = self.context.obj
        for text in words:
            if any("\ud800" <= letter <= "\udfff" for letter in text):
                raise SourceError(
                    f"{text!r}: this name is not UTF-8, so no record can hold it",
                    "Rename the directory, or link to it under another name.",
                )
        return list(words)
