"""Opening of vectors and data sets by name; the content decides which kind it is."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from weightsurgery.checkpoint.dequantised import dequantised
from weightsurgery.checkpoint.reader import Checkpoint
from weightsurgery.checkpoint.record import read_record
from weightsurgery.checkpoint.repository import look_up
from weightsurgery.checkpoint.source import is_hub_name, resolve_source
from weightsurgery.checkpoint.staging import RECORD_NAME
from weightsurgery.errors import EditError, VectorError
from weightsurgery.vectors.adapter_config import find_adapter
from weightsurgery.vectors.adapters import AdapterChange
from weightsurgery.vectors.finetuned import FinetunedChange
from weightsurgery.vectors.saved import SavedChange, is_saved_vector
from weightsurgery.vectors.statistics import (
    InputStatistics,
    Statistics,
    WeightedStatistics,
    is_statistics,
)
from weightsurgery.vectors.task_vector import Change, TaskVector

__all__ = [
    "Keep",
    "classify",
    "is_data",
    "open_change",
    "open_keep",
    "open_vector",
    "split_data",
    "split_scale",
]

Opener = Callable[[str], Checkpoint]

_DATA = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".txt")


def is_data(name: str) -> bool:
    """Whether a name is a data set's: by its ending, packed or not; or one on the Hub.

    ``datasets/org/name``, or ``#part`` after a name, says that a repository is one of data. A
    folder is one where ``datasets`` saved it.
    """
    plain, mark, part = name.rpartition("#")
    if not mark or os.path.exists(os.path.expanduser(name)):
        plain, part = name, ""
    path = os.path.expanduser(plain)
    if os.path.isdir(path):
        markers = ("state.json", "dataset_dict.json")
        return bool(part) or any(os.path.isfile(os.path.join(path, marker)) for marker in markers)
    if plain.lower().removesuffix(".gz").endswith(_DATA):
        return True
    hub = plain.startswith(("datasets/", "hf://datasets/")) or bool(part)
    return hub and not os.path.exists(path)


def classify(name: str, opener: Opener = Checkpoint.open) -> str:
    """The kind of a source to forget, learn or keep.

    Args:
        name: A directory, ``org/name[@revision]`` or a file, without a scale.
        opener: See :func:`open_change`.

    Returns:
        ``"data"`` (a data set), ``"statistics"`` (activation statistics) or ``"vector"`` (a
        change of weights: whatever else there is).

    Raises:
        SourceError: Nothing there.
    """
    if is_data(name):
        return "data"
    if opener is not Checkpoint.open and _is_remote_model(name):
        return "vector"
    return "statistics" if is_statistics(resolve_source(name).path) else "vector"


def split_scale(text: str) -> tuple[str, float]:
    """``"path:0.5"`` as path and factor; the factor is 1 where none is given.

    An existing path wins over the reading of its last part as a number.
    """
    head, colon, tail = text.rpartition(":")
    if not colon or os.path.exists(os.path.expanduser(text)):
        return text, 1.0
    try:
        return head, float(tail)
    except ValueError:
        return text, 1.0


def split_data(names: Sequence[str]) -> tuple[list[str], list[str]]:
    """Data sets, and everything else.

    Raises:
        EditError: A data set with a scale, which belongs to vectors and statistics.
    """
    data, others = [], []
    for text in names:
        name, factor = split_scale(text)
        if not is_data(name):
            others.append(text)
        elif factor != 1:
            raise EditError(
                f"{text}: a data set with a factor", "Factors are for vectors and statistics."
            )
        else:
            data.append(name)
    return data, others


def open_change(
    base: Checkpoint,
    name: str,
    vocab: str = "error",
    missing: str = "error",
    opener: Opener = Checkpoint.open,
    partial: bool = False,
) -> Change:
    """Open a fine-tuned checkpoint, a saved task vector or an adapter as a change of a base.

    Args:
        base: The base.
        name: A directory or ``org/name[@revision]``.
        vocab: For fine-tuned checkpoints; see :class:`FinetunedChange`.
        missing: See :class:`FinetunedChange` and :class:`SavedChange`.
        opener: Opens a fine-tuned checkpoint; :func:`open_remote` fetches only what is read.
        partial: Take a vector of which less than half fits the base.

    Raises:
        SourceError: Nothing there.
        VectorError: Not a change of weights.
        MismatchError: It does not fit the base.
    """
    if is_data(name):
        raise VectorError(
            f"{name}: a data set, not a change of weights",
            "Find its vector with 'ws identify BASE DATA -o DIR', and pass that; 'ws project' and"
            " 'ws learn' take data too.",
        )
    if opener is not Checkpoint.open and _is_remote_model(name):
        return FinetunedChange(base, _as_base(base, opener(name)), vocab, missing, partial)
    source = resolve_source(name)
    if is_statistics(source.path):
        raise VectorError(
            f"{name}: activation statistics, not a change of weights",
            "They say what to keep: pass them to 'ws project' or 'ws learn' with --keep.",
        )
    adapter = find_adapter(source)
    if adapter is not None:
        return AdapterChange(base, source, adapter)
    if is_saved_vector(source.path):
        return SavedChange(base, source, missing, partial)
    finetuned = _as_base(base, Checkpoint.at(source))
    return FinetunedChange(base, finetuned, vocab, missing, partial)


def _as_base(base: Checkpoint, finetuned: Checkpoint) -> Checkpoint:
    """A fine-tuned checkpoint, read as numbers where the base is."""
    return dequantised(finetuned) if base.dequantises else finetuned


def _is_remote_model(name: str) -> bool:
    """Whether a name is a whole checkpoint on the Hub, and neither a saved vector nor an adapter.

    Those are small, and are downloaded.
    """
    repository = look_up(name) if is_hub_name(name) else None
    if repository is None:
        return False
    if any(file.rpartition("/")[2] == "adapter_config.json" for file in repository.files):
        return False
    if RECORD_NAME not in repository.files:
        return True
    return read_record(repository.download(RECORD_NAME).parent).kind == "checkpoint"


def open_vector(
    base: Checkpoint,
    names: Sequence[str],
    vocab: str = "error",
    missing: str = "error",
    opener: Opener = Checkpoint.open,
    partial: bool = False,
) -> TaskVector:
    """The sum of vectors, each optionally scaled: ``["a", "b:0.5"]``.

    Args:
        base: The base, of which they are changes; it stays open as long as the vector is used.
        names: Directories or ``org/name[@revision]``, each with ``:factor`` or without.
        vocab: ``"error"``, ``"common-rows"`` or ``"base"``; see :func:`open_change`.
        missing: ``"error"`` or ``"base"``; see :func:`open_change`.
        opener: See :func:`open_change`.
        partial: See :func:`open_change`.

    Returns:
        The vector, read lazily. It adds, subtracts and takes factors.

    Raises:
        WeightSurgeryError: See :func:`open_change`; or a factor that is no number.

    Example::

        with Checkpoint.open("base") as base:
            vector = open_vector(base, ["finetuned", "other:0.5"])
            vector.at("model.layers.0.mlp.up_proj.weight")  # a Delta, which is read lazily
    """
    terms = []
    for text in names:
        name, factor = split_scale(text)
        terms.append((factor, open_change(base, name, vocab, missing, opener, partial)))
    return TaskVector(tuple(terms))


@dataclass(frozen=True)
class Keep:
    """What an edit keeps: task vectors and activation statistics.

    Attributes:
        vectors: Tasks, as changes of the base.
        inputs: Activation statistics.
    """

    vectors: tuple[TaskVector, ...] = ()
    inputs: tuple[InputStatistics, ...] = ()


def open_keep(
    base: Checkpoint,
    names: Sequence[str],
    vocab: str = "error",
    missing: str = "error",
    opener: Opener = Checkpoint.open,
    partial: bool = False,
) -> Keep:
    """Open each name as a vector or as statistics; a scale weights the tokens of statistics.

    Args:
        base: The base.
        names: Vectors and directories of activation statistics, each with ``:factor`` or without.
        vocab: See :func:`open_vector`, as for the others.
        missing: Likewise.
        opener: Likewise.
        partial: Likewise.

    Raises:
        SourceError: Nothing there.
        VectorError: A data set, or not a change of weights.
        MismatchError: It does not fit the base.
        EditError: A weight that is not positive.
    """
    vectors: list[TaskVector] = []
    inputs: list[InputStatistics] = []
    for text in names:
        name, factor = split_scale(text)
        if classify(name, opener) == "statistics":
            statistics = Statistics.open(name)
            inputs.append(statistics if factor == 1 else WeightedStatistics(statistics, factor))
        else:
            vectors.append(open_vector(base, [text], vocab, missing, opener, partial))
    return Keep(tuple(vectors), tuple(inputs))
