"""The command that trains: identify."""

from __future__ import annotations

import json
import shlex
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from weightsurgery.cli import console
from weightsurgery.cli.helped import among
from weightsurgery.cli.opened import remarked
from weightsurgery.cli.options import Ckpt, Out, Overwrite, Show, Which
from weightsurgery.cli.panels import panel, training_option
from weightsurgery.cli.score import DeviceMap
from weightsurgery.cli.spread import options
from weightsurgery.cli.training_options import Optimise
from weightsurgery.deferred import need
from weightsurgery.errors import EditError

if TYPE_CHECKING:
    from weightsurgery.learning.method import IdentifyMode

__all__ = ["gather_statistics", "identify"]

_option, _other_option = panel("Which weights at a time"), panel("Other data")


@dataclass(frozen=True)
class Mode:
    """Which weights are trained at a time."""

    mode: Annotated[
        str,
        _option(
            autocompletion=among("learning.method:MODES", "activations"),
            help="delta (from the checkpoint's weights, one layer at a time), literal (from random"
            " weights, one layer at a time: what the paper's figure says), joint (all layers at"
            " once, a plain fine-tune), or activations (no training: what the layers are given on"
            " DATA, for --keep of project and learn).",
        ),
    ] = "delta"
    order: Annotated[
        str,
        _option(
            autocompletion=among("learning.method:ORDERS"),
            help="Order of the layers: ascending or descending.",
        ),
    ] = "ascending"
    lora_rank: Annotated[
        int | None,
        _option(
            metavar="R",
            help="Train a LoRA adapter of this rank (mode joint); saved as low-rank factors.",
        ),
    ] = None
    lora_alpha: Annotated[
        float | None, _option(help="The adapter's change is alpha / rank · B A. Default: the rank.")
    ] = None
    max_memory: Annotated[
        float | None,
        _option(
            metavar="GB",
            help="What sums may take at once in mode activations; with less, the data is run more"
            " often. Default: 2, or half of what is free on a GPU, and room for one matrix always.",
        ),
    ] = None
    device_map: DeviceMap = None

    def method(self, keep_weight: float) -> IdentifyMode:
        """As the library's method."""
        from weightsurgery.learning.method import IdentifyMode

        return IdentifyMode(self.mode, self.order, self.lora_rank, self.lora_alpha, keep_weight)


@dataclass(frozen=True)
class Further:
    """Options of training that ``ws identify`` alone has."""

    seed: Annotated[int, training_option(help="Seed of order, dropout and first weights.")] = 0
    dtype: Annotated[
        str | None, typer.Option(hidden=True, help="The former name of --precision.")
    ] = None
    trainer_arg: Annotated[
        list[str] | None,
        training_option(
            metavar="NAME=VALUE",
            help="Any other of transformers.TrainingArguments, as in lr_scheduler_type=cosine;"
            " repeatable.",
        ),
    ] = None

    def given(self, precision: str | None) -> dict[str, Any]:
        """As fields of the library's training, by name.

        Args:
            precision: What ``--precision`` says.

        Raises:
            EditError: Its former name says something else.
        """
        from weightsurgery.errors import EditError

        given = {"seed": self.seed, "extra": dict(_pair(text) for text in self.trainer_arg or ())}
        if self.dtype is None:
            return given
        if precision not in (None, self.dtype):
            raise EditError(
                f"--precision {precision} and, by its former name, --dtype {self.dtype}",
                "Give --precision alone.",
            )
        return {**given, "precision": self.dtype}


def _pair(text: str) -> tuple[str, Any]:
    """``name=value``, the value as JSON where it is that, else as text."""
    from weightsurgery.errors import EditError

    name, equals, value = text.partition("=")
    if not equals or not name:
        raise EditError(
            f"--trainer-arg {text}", "Write NAME=VALUE, as in lr_scheduler_type=cosine."
        )
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


@dataclass(frozen=True)
class Hold:
    """Data beside what is to be learned."""

    keep: Annotated[
        list[str] | None,
        _other_option(
            metavar="FILE",
            help="Data on which the model is held to what the checkpoint says; repeatable.",
        ),
    ] = None
    keep_weight: Annotated[
        float,
        _other_option(
            help="Loss: cross-entropy on DATA + weight · KL(checkpoint ‖ model) on --keep."
        ),
    ] = 1.0
    validation: Annotated[
        str | None,
        _other_option(
            metavar="FILE",
            help="Data on which the loss is watched; each stage keeps its best weights.",
        ),
    ] = None
    patience: Annotated[
        int | None,
        _other_option(
            metavar="LOOKS",
            help="End a stage after so many looks at --validation without a better loss.",
        ),
    ] = None


@options
def identify(
    ckpt: Ckpt,
    data: Annotated[
        str,
        typer.Argument(
            metavar="DATA", help="What to learn: a file of data, or org/name on the Hub."
        ),
    ],
    which: Which,
    mode: Mode,
    optimise: Optimise,
    further: Further,
    hold: Hold,
    show: Show,
    out: Out,
    overwrite: Overwrite = False,
    dry_run: Annotated[bool, typer.Option(help="Only say what would be trained and held.")] = False,
    device: Annotated[
        str, typer.Option(help="auto, cpu, cuda or cuda:0. Where to train.")
    ] = "auto",
) -> None:
    """Find the task vector of a data set, layer by layer.

    UNLEARN's subspace identification, a reconstruction of arXiv 2408.04140. Trains the all-linear
    tensors unless --targets says otherwise. Defaults: 3 epochs per stage, --lr 1e-4, --batch 8,
    float32. A killed run goes on when started again; torchrun and accelerate launch work.

    Example:  ws identify ./model data.jsonl -o ./vector --steps 30 --lr 5e-4
    """
    from weightsurgery.deferred import need
    from weightsurgery.errors import EditError
    from weightsurgery.learning.settings import Training

    given = {**further.given(optimise.precision), **optimise.given()}
    if mode.mode == "activations":
        alone = Mode("activations", max_memory=mode.max_memory, device_map=mode.device_map)
        defaults, default_training = (alone, Hold()), Training()
        # Recipes write defaults out, too.
        trains = any(value != getattr(default_training, name) for name, value in given.items())
        if dry_run or trains or (mode, hold) != defaults:
            raise EditError(
                "mode activations trains nothing, and takes no option of training, nor --dry-run",
                "Leave out all but --max-memory, --device, --device-map and what chooses tensors.",
            )
        where = device, mode.device_map
        gather_statistics(ckpt, data, out, which, show, *where, mode.max_memory, overwrite)
        return
    for option, value in (("max-memory", mode.max_memory), ("device-map", mode.device_map)):
        if value is not None:
            raise EditError(f"--{option} with mode {mode.mode}", "Use it with --mode activations.")
    adapter = () if mode.lora_rank is None else ("peft",)
    need("identify trains the model", "transformers", "accelerate", *adapter, extra="demo")
    from weightsurgery.checkpoint.reader import Checkpoint
    from weightsurgery.learning.stages import is_main
    from weightsurgery.report.plans import training_plan_lines
    from weightsurgery.report.trainings import identified_tables
    from weightsurgery.unlearning.methods import identify as library

    what: dict[str, Any] = {
        "training": Training(**given, patience=hold.patience),
        "method": mode.method(hold.keep_weight),
        "selection": which.selection("all-linear"),
        "keep": hold.keep or (),
        "validation": hold.validation,
        "device": device,
        "overwrite": overwrite,
    }
    if is_main():
        with Checkpoint.open(ckpt) as opened:
            remarked(opened, show)
    if dry_run:
        plan = library.plan(ckpt, data, out, **what)
        console.result(show, lambda: asdict(plan), lambda: training_plan_lines(plan, out))
        return
    with console.progress(
        show, unit="steps", interrupted="the same command goes on where this one stopped."
    ) as progress:
        record = library.identify(ckpt, data, out, **what, command=show.command, progress=progress)
    if not is_main():
        return
    console.result(
        show,
        lambda: {"out": out, **asdict(record)},
        lambda: identified_tables(record, every=show.verbose),
    )
    check = f"ws negate {shlex.quote(ckpt)} {shlex.quote(out)} -o ./edited"
    console.notice(f"Saved the task vector in {out}; take it away with:  {check}", show)


def gather_statistics(
    ckpt: str,
    data: str,
    out: str,
    which: Which,
    show: Show,
    device: str,
    device_map: str | None,
    max_memory: float | None,
    overwrite: bool,
) -> None:
    """Gather, save, and say what was gathered."""
    need("identify runs the model", "transformers", extra="demo")
    if max_memory is not None and not 0 < max_memory < 1e9:
        raise EditError(f"--max-memory {max_memory:g}", "Give a positive number of GB.")
    from weightsurgery.learning.statistics import gather_to

    with console.progress(show, unit="tokens") as progress:
        record = gather_to(
            out,
            ckpt,
            data,
            selection=which.selection("all-linear"),
            device=device,
            device_map=device_map,
            max_bytes=None if max_memory is None else int(max_memory * 1e9),
            overwrite=overwrite,
            command=show.command,
            progress=progress,
        )
    summary = record.summary
    if show.json:
        console.document({"out": out, **asdict(record)})
    else:
        console.show(
            f"{out}: what {summary['tensors']} tensors are given ({summary['matrices']} distinct"
            f" inputs) on {summary['tokens']} tokens of {summary['examples']} examples"
        )
    left = record.parameters["not_gathered"]
    if left:
        console.notice(
            f"{len(left)} tensors have no statistics (fused, or not run), {left[0]} for one.", show
        )
    keep = f"ws project {shlex.quote(ckpt)} --forget VECTOR --keep {shlex.quote(out)} -o ./edited"
    console.notice(f"Saved the statistics in {out}; keep what they describe with:  {keep}", show)
