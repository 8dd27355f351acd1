"""WeightSurgery: edit model checkpoints by weight arithmetic.

Importing this package imports nothing heavy; the public names are loaded when first used::

    import weightsurgery as ws

    with ws.Checkpoint.open("./base") as base:
        forget = ws.open_vector(base, ["./finetuned/authors"])
        keep = ws.open_vector(base, ["./finetuned/painters"])
        ws.apply(ws.Project(forget, keep=(keep,), rank=ws.Rank(32)), base, "./edited")
    ws.evaluate("./edited", ["authors.jsonl"], ["painters.jsonl"], "./base")
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from weightsurgery.deferred import attributes

__version__ = "0.2.0"

if TYPE_CHECKING:  # what type checkers see of the table below
    from weightsurgery.algebra.discriminate import discriminate as discriminate
    from weightsurgery.algebra.lowrank import DonohoGavish as DonohoGavish
    from weightsurgery.algebra.lowrank import Energy as Energy
    from weightsurgery.algebra.lowrank import LowRank as LowRank
    from weightsurgery.algebra.lowrank import Rank as Rank
    from weightsurgery.algebra.svd import truncated_svd as truncated_svd
    from weightsurgery.checkpoint.inspection import inspect as inspect
    from weightsurgery.checkpoint.reader import Checkpoint as Checkpoint
    from weightsurgery.checkpoint.record import EditRecord as EditRecord
    from weightsurgery.checkpoint.record import read_record as read_record
    from weightsurgery.checkpoint.record import verify as verify
    from weightsurgery.checkpoint.selection import Selection as Selection
    from weightsurgery.errors import HarmError as HarmError
    from weightsurgery.errors import WeightSurgeryError as WeightSurgeryError
    from weightsurgery.hub.plan import PushPlan as PushPlan
    from weightsurgery.hub.plan import plan_push as plan_push
    from weightsurgery.hub.push import push as push
    from weightsurgery.hub.remote import Destination as Destination
    from weightsurgery.learning.completions import complete as complete
    from weightsurgery.learning.evaluate import evaluate as evaluate
    from weightsurgery.learning.forget import ByNeighbours as ByNeighbours
    from weightsurgery.learning.forgetting import Forgetting as Forgetting
    from weightsurgery.learning.method import IdentifyMode as IdentifyMode
    from weightsurgery.learning.settings import Training as Training
    from weightsurgery.procedures.attack import attack_quantize as attack_quantize
    from weightsurgery.procedures.attack import attack_relearn as attack_relearn
    from weightsurgery.procedures.doctor import diagnose as diagnose
    from weightsurgery.procedures.grid import Grid as Grid
    from weightsurgery.procedures.splits import DataSets as DataSets
    from weightsurgery.procedures.sweep import sweep as sweep
    from weightsurgery.procedures.unlearn import MethodSettings as MethodSettings
    from weightsurgery.procedures.unlearn import Search as Search
    from weightsurgery.procedures.unlearn import Sources as Sources
    from weightsurgery.procedures.unlearn import unlearn as unlearn
    from weightsurgery.surgery.apply import AdapterStorage as AdapterStorage
    from weightsurgery.surgery.apply import Applied as Applied
    from weightsurgery.surgery.apply import Storage as Storage
    from weightsurgery.surgery.apply import apply as apply
    from weightsurgery.surgery.apply import plan_edit as plan_edit
    from weightsurgery.surgery.compare import diff as diff
    from weightsurgery.surgery.discriminating import Learn as Learn
    from weightsurgery.surgery.discriminating import Project as Project
    from weightsurgery.surgery.edits import Add as Add
    from weightsurgery.surgery.edits import Negate as Negate
    from weightsurgery.surgery.overlap import overlaps as overlaps
    from weightsurgery.unlearning.methods.identify import identify as identify
    from weightsurgery.vectors.export import export_adapter as export_adapter
    from weightsurgery.vectors.sources import open_keep as open_keep
    from weightsurgery.vectors.sources import open_vector as open_vector
    from weightsurgery.vectors.task_vector import TaskVector as TaskVector

# Module -> the public names that it defines.
_MODULES = {
    "algebra.discriminate": "discriminate",
    "algebra.lowrank": "DonohoGavish Energy LowRank Rank",
    "algebra.svd": "truncated_svd",
    "checkpoint.inspection": "inspect",
    "checkpoint.reader": "Checkpoint",
    "checkpoint.record": "EditRecord read_record verify",
    "checkpoint.selection": "Selection",
    "errors": "HarmError WeightSurgeryError",
    "hub.plan": "PushPlan plan_push",
    "hub.push": "push",
    "hub.remote": "Destination",
    "learning.completions": "complete",
    "learning.evaluate": "evaluate",
    "learning.forget": "ByNeighbours",
    "learning.forgetting": "Forgetting",
    "learning.method": "IdentifyMode",
    "learning.settings": "Training",
    "procedures.attack": "attack_quantize attack_relearn",
    "procedures.doctor": "diagnose",
    "procedures.grid": "Grid",
    "procedures.splits": "DataSets",
    "procedures.sweep": "sweep",
    "procedures.unlearn": "MethodSettings Search Sources unlearn",
    "surgery.apply": "AdapterStorage Applied Storage apply plan_edit",
    "surgery.compare": "diff",
    "surgery.discriminating": "Learn Project",
    "surgery.edits": "Add Negate",
    "surgery.overlap": "overlaps",
    "unlearning.methods.identify": "identify",
    "vectors.export": "export_adapter",
    "vectors.sources": "open_keep open_vector",
    "vectors.task_vector": "TaskVector",
}
_PUBLIC = {name: module for module, names in _MODULES.items() for name in names.split()}

__all__ = ["__version__", *sorted(_PUBLIC)]


if not TYPE_CHECKING:  # checkers would take any name for one of ours
    __getattr__ = attributes(__name__, _MODULES)


def __dir__() -> list[str]:
    return list(__all__)
