"""What a command would do, for ``--dry-run``: every plan as a table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from weightsurgery.report.exported import left_out_rows, ranks_shown
from weightsurgery.report.tables import Table, facts_table, size
from weightsurgery.vectors.lora_files import AdapterPlan

if TYPE_CHECKING:
    from weightsurgery.surgery.diff_plan import DiffPlan
    from weightsurgery.surgery.plan import EditPlan
    from weightsurgery.unlearning.methods.identify import IdentifyPlan
    from weightsurgery.unlearning.plan import SearchPlan, SystemPlan, TrainingPlan

__all__ = [
    "adapter_plan_lines",
    "comparison_lines",
    "data_plan_lines",
    "planned_lines",
    "training_plan_lines",
]

_OF_THE_OUTPUT = ("output", "files", "left out", "written", "free where it goes")


def _plan(what: str, facts: Sequence[tuple[str, ...]]) -> list[str | Table]:
    return [facts_table(f"Plan: {what}", facts)]


def _from_data(
    edit: EditPlan | AdapterPlan, out: str, facts: Sequence[tuple[str, ...]]
) -> list[str | Table]:
    """What finding a change takes, then what applying it writes."""
    (table,) = (line for line in planned_lines(edit, out) if isinstance(line, Table))
    rows = [*facts, *(row for row in table.rows if row[0] in _OF_THE_OUTPUT)]
    return [facts_table(f"{table.title} from data", rows)]


def planned_lines(plan: EditPlan | AdapterPlan, out: str) -> list[str | Table]:
    """What an edit would do, whichever it would write."""
    if isinstance(plan, AdapterPlan):
        return adapter_plan_lines(plan, out)
    return _checkpoint_lines(plan, out)


def _checkpoint_lines(plan: EditPlan, out: str) -> list[str | Table]:
    """What an edit would do."""
    facts = [
        ("output", out),
        ("tensors", f"{len(plan.edited)} edited, "
         f"{sum(len(h.entries) for h in plan.shards) - len(plan.edited)} copied as bytes"),
        ("files", str(len(plan.shards))),
        *([("downloaded", size(plan.download_bytes))] if plan.download_bytes else []),
        ("read", size(plan.read_bytes)),
        ("written", size(plan.write_bytes)),
        *([] if plan.free_bytes is None else [("free where it goes", size(plan.free_bytes))]),
        ("working memory", f"about {size(plan.memory_bytes)}"),
    ]  # fmt: skip
    return _plan(plan.edit, facts)


def adapter_plan_lines(plan: AdapterPlan, out: str) -> list[str | Table]:
    """What writing an adapter would do."""
    ranks = list(plan.edited.values())
    bound = "" if plan.exact else "up to "
    ranked = f", of rank {bound}{ranks_shown(min(ranks), max(ranks))}" if ranks else ""
    facts = [
        ("output", out),
        ("matrices", f"{len(ranks)}{ranked}"),
        *left_out_rows("left out", plan.left_out),
        ("read", size(plan.read_bytes)),
        ("written", f"{bound}{size(plan.write_bytes)}"),
        ("free where it goes", size(plan.free_bytes)),
        ("working memory", f"about {size(plan.memory_bytes)}"),
    ]
    return _plan(f"{plan.edit} as an adapter", facts)


def comparison_lines(plan: DiffPlan, out: str | None) -> list[str | Table]:
    """The plan as a table."""
    facts = [
        ("tensors", f"{len(plan.tensors)}, {plan.parameters:,} parameters"),
        ("read", size(plan.read_bytes)),
        ("fetched from the Hub", size(plan.fetch_bytes)),
        ("working memory", f"about {size(plan.memory_bytes)}"),
    ]
    if out is not None and plan.free_bytes is not None:
        facts += [
            ("output", out),
            ("written", f"at most {size(plan.write_bytes)}"),
            ("free where it goes", size(plan.free_bytes)),
        ]
    return _plan("diff", facts)


def data_plan_lines(plan: TrainingPlan, out: str) -> list[str | Table]:
    """What an edit from data sets would train, hold and write."""
    from weightsurgery.unlearning.plan import SearchPlan, SystemPlan  # which loads torch

    if isinstance(plan, SystemPlan):
        facts = _system_facts(plan)
    else:
        assert isinstance(plan, SearchPlan)
        facts = _search_facts(plan)
    return _from_data(plan.edit, out, facts)


def _search_facts(plan: SearchPlan) -> list[tuple[str, ...]]:
    settings = plan.settings
    facts: list[tuple[str, ...]]
    if plan.finished:
        facts = [("vector", f"{plan.vector}, there already: nothing would be trained")]
    else:
        facts = [
            ("objective", settings["objective"]),
            ("examples", f"{plan.examples} to {_verb(plan)}, {plan.keep_examples} to keep"),
            ("trained", f"{plan.matrices} matrices, {plan.trained:,} numbers"),
        ]
        if settings["objective"] == "neighbours":
            steps = f"{settings['steps'] or '40 or more'}, each of {settings['batch_size']} texts"
            if settings["take_back"]:
                steps = f"what was taught is taken back; of the last third {steps}"
            facts += [
                ("steps", steps),
                ("found by the model", f"{settings['wordings']} wordings, {settings['neighbours']}"
                 " neighbours, at most"),
                ("budget", f"{settings['budget']:g} nats a token of ordinary language"),
            ]  # fmt: skip
        else:
            facts += [
                ("steps", f"{settings['rounds']} x {settings['steps']} of"
                 f" {settings['batch_size']} examples"),
                ("strangers' prompts", str(settings["prompts"])),
            ]  # fmt: skip
        facts += [
            ("model", f"{size(plan.weights)} (float32)"),
            *_training("", plan),
        ]
        if plan.never_knew:
            facts.append(("that never knew", f"{size(plan.never_knew)}, with the statistics"))
        if plan.statistics:
            text = f"up to {size(plan.statistics)}, n x n for every distinct input"
            facts.append(("statistics", text))
        if plan.eigenvectors:
            facts.append(("eigenvectors", f"up to {size(plan.eigenvectors)} of those"))
        facts += _shared(plan)
        activations = f"about {size(plan.activations)}" if plan.activations else "come on top"
        facts.append(("activations", activations))
        facts.append(("vector", f"{plan.vector}, {size(plan.vector_bytes)}"))
    return facts


def _shared(plan: TrainingPlan) -> list[tuple[str, ...]]:
    """What each process would hold where several share the model."""
    from weightsurgery.unlearning.shared_plan import shared_text  # which loads torch

    return [("under FSDP", shared_text(plan.shared, size))] if plan.shared else []


def _training(bound: str, plan: TrainingPlan) -> list[tuple[str, ...]]:
    """What is held beside the model, and by the processor for a model that is on a GPU."""
    if not plan.copies:
        return [("training", f"{bound}{size(plan.training)} of gradients, moments and copies")]
    return [
        ("training", f"{bound}{size(plan.training)} of gradients and moments, on the GPU"),
        ("copies", f"{bound}{size(plan.copies)}, by the processor"),
    ]


def _verb(plan: SearchPlan) -> str:
    return "learn" if plan.edit.edit == "learn" else "forget"


def _system_facts(plan: SystemPlan) -> list[tuple[str, ...]]:
    from weightsurgery.report.trainings import settings_line  # which loads what trains

    facts: list[tuple[str, ...]] = [("method", f"{plan.method} ({plan.source})")]
    if plan.finished:
        facts.append(("vector", f"{plan.vector}, there already: nothing would be trained"))
    else:
        steps = f"{plan.steps} steps" if plan.steps is not None else f"{plan.epochs:g} epochs"
        unseen = f", {plan.unseen_examples} unseen" if plan.unseen_examples else ""
        adapter = "" if plan.lora_rank is None else f", as LoRA of rank {plan.lora_rank}"
        facts += [
            ("settings", settings_line(plan.settings) or "none of its own"),
            ("examples", f"{plan.examples} to forget, {plan.keep_examples} to keep{unseen}"),
            ("trained", f"up to {plan.matrices} matrices, {plan.trained:,} numbers{adapter}"),
            ("length", f"{steps} of {plan.batch_size} examples, lr {plan.learning_rate:g}"),
            ("model", f"{size(plan.weights)} (float32)"),
            *_training("up to ", plan),
            *_shared(plan),
            ("activations", "come on top"),
            ("vector", f"{plan.vector}, up to {size(plan.vector_bytes)}"),
        ]
    return facts


def training_plan_lines(plan: IdentifyPlan, out: str) -> list[str | Table]:
    """What an identification would train, hold and write."""
    rows = [(name, str(tensors), f"{count:,}") for name, tensors, count in plan.stages]
    lines: list[str | Table] = [
        Table(f"Would train, one after another (mode {plan.mode})",
              ("stage", "tensors", "numbers"), rows),
        f"would hold    {size(plan.weights)} of weights (float32), {size(plan.gradients)} of"
        f" gradients, {size(plan.optimiser)} of optimiser state; activations come on top",
    ]  # fmt: skip
    if plan.shared:
        from weightsurgery.unlearning.shared_plan import shared_text  # which loads torch

        lines.append(f"under FSDP    {shared_text(plan.shared, size)}")
    if plan.originals:
        lines.append(f"              {size(plan.originals)} of the base's values, for --keep")
    lines.append(f"would write   {out}, with up to {size(plan.disk)} beside it while training")
    return lines
