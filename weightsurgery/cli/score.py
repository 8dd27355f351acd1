"""The command that scores a checkpoint: evaluate."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from weightsurgery.cli import console
from weightsurgery.cli.helped import among
from weightsurgery.cli.options import Show
from weightsurgery.cli.paged import Pages
from weightsurgery.cli.panels import machine_option, panel
from weightsurgery.cli.spread import options
from weightsurgery.cli.yardstick import TOFU, Yardstick
from weightsurgery.learning.metric_names import CHOICES, DEFAULT

if TYPE_CHECKING:
    from weightsurgery.learning.evaluate import Contexts

__all__ = [
    "BatchSize",
    "Device",
    "DeviceMap",
    "Forget",
    "Keep",
    "Model",
    "Placement",
    "Scoring",
    "check_installed",
    "evaluate",
]

_option = panel("How it is scored")

_OTHERS = [name for name in CHOICES if name not in DEFAULT]
_METRICS = (*DEFAULT, *_OTHERS, "all")
_LISTED = f"{', '.join(DEFAULT)} (these are the default), {', '.join(_OTHERS)}"


Model = Annotated[
    str, typer.Argument(metavar="CKPT", help="A causal language model with its tokenizer.")
]
Forget = Annotated[
    list[str] | None, typer.Option(metavar="DATA", help="What should be forgotten; repeatable.")
]
Keep = Annotated[
    list[str] | None, typer.Option(metavar="DATA", help="What should stay; repeatable.")
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:0. Where the model runs.")]
DeviceMap = Annotated[
    str | None,
    machine_option(
        metavar="auto|balanced|sequential",
        help="Spread the model over all GPUs, memory and disk instead, as accelerate's device_map"
        " does.",
    ),
]


BatchSize = Annotated[int, machine_option(help="Examples per forward pass.")]


@dataclass(frozen=True)
class Placement:
    """Where a model that is scored runs; both are arguments of the library's functions."""

    device: Device = "auto"
    device_map: DeviceMap = None


@dataclass(frozen=True)
class Scoring:
    """Which metrics are computed, and how."""

    metric: Annotated[
        list[str] | None,
        _option(
            autocompletion=among(*_METRICS), metavar="NAME", help=f"{_LISTED}, or all; repeatable."
        ),
    ] = None
    el_n: Annotated[
        int,
        _option(
            "--el-n", help="Length of the n-grams of el, in tokens; shorter completions have none."
        ),
    ] = 10
    any_end: Annotated[bool, _option(help="An exact match need not stop after the completion.")] = (
        False
    )

    @property
    def words(self) -> list[str]:
        """The metrics that every set is scored by; none where the yardstick alone is wanted."""
        return [name for name in self.metric or DEFAULT if name != TOFU]

    def arguments(self) -> dict[str, Any]:
        """As arguments of the library's functions that score."""
        return {
            "metrics": self.metric or DEFAULT,
            "n": self.el_n,
            "require_end": not self.any_end,
        }


@dataclass(frozen=True)
class _Evaluated(Scoring):
    """The same where the yardstick may be among them."""

    metric: Annotated[
        list[str] | None,
        _option(
            autocompletion=among(*_METRICS, TOFU),
            metavar="NAME",
            help=f"{_LISTED}, or all; and tofu: forget quality, model utility, extraction and"
            " membership as open-unlearning defines them; repeatable.",
        ),
    ] = None


@dataclass(frozen=True)
class Harness:
    """Tasks of lm-evaluation-harness."""

    tasks: Annotated[
        list[str] | None,
        typer.Option(metavar="lm-eval:NAME", help="A task of lm-evaluation-harness; repeatable."),
    ] = None
    include_path: Annotated[
        str | None,
        _option(
            metavar="DIR",
            help="Where task files (YAML) of your own are. Such files can name Python that"
            " lm-evaluation-harness runs: give none of a stranger's.",
        ),
    ] = None


@dataclass(frozen=True)
class Context:
    """Forgetting by the prompt."""

    in_context: Annotated[
        str | None,
        _option(
            autocompletion=among("icul"),
            metavar="METHOD",
            help="icul: forget by the prompt, weights unchanged. Before every query of CKPT stand"
            " an example to forget with a wrong answer and some to keep with right ones.",
        ),
    ] = None
    shots: Annotated[
        int | None, _option(metavar="S", help="Right examples in each context. Default: 4.")
    ] = None

    def contexts(self, tasks: list[str] | None) -> Contexts | None:
        """As the library's contexts; None without a method.

        Raises:
            EditError: They do not go with the other options.
        """
        from weightsurgery.errors import EditError
        from weightsurgery.learning.evaluate import Contexts

        if self.in_context is None:
            if self.shots is not None:
                raise EditError(f"--shots {self.shots} without a context", "Add --in-context icul.")
            return None
        if tasks:
            raise EditError(
                "--in-context with --tasks",
                "Score tasks of lm-evaluation-harness apart: they bring prompts of their own.",
            )
        return Contexts(self.in_context, 4 if self.shots is None else self.shots)


@options
def evaluate(
    ckpt: Model,
    show: Show,
    pages: Pages,
    scoring: _Evaluated,
    yardstick: Yardstick,
    forget: Forget = None,
    keep: Keep = None,
    against: Annotated[
        str | None,
        typer.Option(
            metavar="BASE", help="The model before: show forgetting and drift from it to CKPT."
        ),
    ] = None,
    *,
    harness: Harness,
    chance: Annotated[
        float | None,
        _option(
            metavar="P",
            help="What guessing scores, from 0 to 1. Default: of each set the share of its"
            " most frequent completion.",
        ),
    ] = None,
    context: Context,
    seed: Annotated[int, _option(help="Seed of the bootstrap intervals and of contexts.")] = 0,
    batch_size: BatchSize = 32,
    place: Placement,
) -> None:
    """Score a checkpoint on data, before and after an edit.

    DATA is a file (JSONL, JSON, CSV, TSV, Parquet, text; gzip or not), a folder or org/name on the
    Hub, each with or without #SPLIT. Rows are {"prompt", "completion"}, {"text"}, {"messages"}, or
    columns as data sets name them. Needs the extra named eval.

    Example:  ws evaluate ./edited --against ./base --forget authors.jsonl
    """
    check_installed()
    pages.check()
    from weightsurgery.errors import EditError
    from weightsurgery.learning.evaluate import evaluate as score
    from weightsurgery.learning.harness import find_tasks, run_tasks
    from weightsurgery.learning.placement import refuse_distributed
    from weightsurgery.learning.sharding import sharding
    from weightsurgery.learning.stages import is_main
    from weightsurgery.report.card_scores import content_of
    from weightsurgery.report.scores import evaluation_tables, task_table
    from weightsurgery.report.yardstick import yardstick_sections, yardstick_tables

    tasks = harness.tasks
    contexts = context.contexts(tasks)
    unlearned = yardstick.wanted(
        scoring.metric, contexts is not None or (against is not None and not scoring.words)
    )
    sharded = sharding()
    if not sharded:
        refuse_distributed("ws evaluate", "Run it in one process, or under FSDP.")
    if (place.device_map is not None or sharded) and (tasks or unlearned):
        raise EditError(
            f"{'FSDP' if sharded else '--device-map'} with"
            f" {'--tasks' if tasks else '--metric tofu'}, which hold a model on one device",
            "Leave it out, or score the other metrics alone.",
        )
    if place.device_map is not None and sharded:
        raise EditError("--device-map under FSDP, which shares the model", "Leave it out.")
    wanted = find_tasks(tasks, harness.include_path) if tasks else None
    content = content_of(ckpt) if show.json or pages else None
    scores, results, tofu = None, None, None
    if scoring.words and (forget or keep or wanted is None):
        with console.progress(show, unit="examples") as progress:
            scores = score(
                ckpt,
                forget or [],
                keep or [],
                against,
                **{**scoring.arguments(), "metrics": scoring.words},
                chance_of=chance,
                contexts=contexts,
                batch_size=batch_size,
                **vars(place),
                seed=seed,
                progress=progress,
            )
        if not is_main():
            return
        if not show.json:
            console.show(*evaluation_tables(scores))
    if unlearned:
        tofu = asdict(yardstick.score(ckpt, forget, keep, show, batch_size, place.device, seed))
        if not show.json:
            console.show(*yardstick_tables(tofu))
    if wanted is not None:
        console.notice(f"lm-evaluation-harness runs {', '.join(wanted.names)}.", show)
        results = run_tasks(ckpt, wanted, against, batch_size=batch_size, device=place.device)
        if not show.json:
            console.show(task_table([asdict(result) for result in results]))
    if not show.json and not pages:
        return
    document = {"checkpoint": ckpt, "against": against, "sets": [], "contexts": None} | (
        asdict(scores) if scores is not None else {}
    )
    if content != content_of(ckpt):  # not what was scored, or not all of it
        content = None
    document |= {"content": content, "tasks": [asdict(result) for result in results or ()]}
    if tofu is not None:
        document["tofu"] = tofu
    if show.json:
        console.document(document)
    if pages:
        from weightsurgery.report.sections import record_section, score_sections

        more = [] if tofu is None else yardstick_sections(tofu)
        sections = [*score_sections(document), *more, record_section(show.command)]
        pages.write(f"Scores of {ckpt}", sections, show)


def check_installed(*also: str) -> None:
    """Say which extra is missing.

    Args:
        also: Modules that are needed beside transformers.

    Raises:
        WeightSurgeryError: One is.
    """
    from weightsurgery.deferred import need

    need("scoring runs the model", "transformers", *also, extra="eval")
