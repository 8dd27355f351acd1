"""Gathering activation statistics: ``C = Σ x xᵀ`` over what each linear layer is given.

In memory, for a model that is being worked on, or to files that
:mod:`weightsurgery.vectors.statistics` reads.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from weightsurgery.checkpoint.digests import input_sha256
from weightsurgery.checkpoint.reader import Checkpoint
from weightsurgery.checkpoint.record import EditRecord
from weightsurgery.checkpoint.selection import Selection
from weightsurgery.errors import DataError, MismatchError, UnsupportedCheckpointError
from weightsurgery.learning.activations import BATCH_TOKENS, gathered, linear_inputs, sums_bound
from weightsurgery.learning.data import Example, encode
from weightsurgery.learning.models import DeviceMap, context_length, load_model, load_tokenizer
from weightsurgery.learning.places import described, place_of, roles
from weightsurgery.learning.reading import Reading
from weightsurgery.learning.reading import read as read_data
from weightsurgery.progress import Progress
from weightsurgery.vectors.lineage import samples_of
from weightsurgery.vectors.statistics import StatisticsWriter

__all__ = ["Text", "gather", "gather_to", "tokens_of"]

Text = Example | str | Sequence[int]
"""An example, whose completion counts too; an unlabelled prompt; or tokens as they are."""


def gather(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Text],
    names: Collection[str] | None = None,
    *,
    max_bytes: int | None = None,
    batch_tokens: int = BATCH_TOKENS,
    progress: Progress | None = None,
) -> dict[str, Tensor]:
    """Activation statistics of a model in memory; all of them are held at once.

    Args:
        model: Called as ``model(input_ids=...)``; runs in evaluation mode and is left as it was.
        tokenizer: Its tokenizer.
        examples: What to run; at least one.
        names: Tensors to gather for; by default the weights of all linear layers that run.
        max_bytes: What the sums that grow at once may take; see :func:`gather_to`.
        batch_tokens: Tokens in one forward pass, at most (a longer example runs alone).
        progress: Called as ``progress(stage, done, total)`` in tokens.

    Returns:
        By name ``"MODULE.weight"``: ``C``, ``(n, n)``, float64, on the CPU. Tensors with the
        very same input share one matrix.

    Raises:
        DataError: No examples, or one without tokens or too long for the model.
        MismatchError: A name that is no linear layer, or one that the model does not run.
        EditError: ``max_bytes`` holds not even one matrix.
        NonFiniteError: The model computes NaN or infinity.
    """
    layers = linear_inputs(model)
    for name in names or ():
        if name not in layers:
            raise MismatchError(
                f"tensor {name!r}: not the weight of a linear layer of this model",
                f"Linear layers are named as in {next(iter(layers), 'none')!r}.",
            )
    chosen = {name: each for name, each in layers.items() if names is None or name in names}
    rows = tokens_of(tokenizer, examples, model)
    sums: dict[str, Tensor] = {}
    for members, gram, _ in gathered(model, chosen, rows, max_bytes, batch_tokens, progress):
        sums |= dict.fromkeys(members, gram.cpu())
    for name in names or ():
        if name not in sums:
            raise MismatchError(
                f"tensor {name!r}: the model does not run it on these examples",
                "Leave it out, or add examples that need it.",
            )
    return sums


def gather_to(
    directory: str | os.PathLike[str],
    checkpoint: str | os.PathLike[str],
    data: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    selection: Selection | None = None,
    device: str = "auto",
    device_map: DeviceMap | None = None,
    max_bytes: int | None = None,
    batch_tokens: int = BATCH_TOKENS,
    overwrite: bool = False,
    command: Sequence[str] = (),
    progress: Progress | None = None,
) -> EditRecord:
    """Activation statistics of a checkpoint on data files, saved; all or nothing.

    Args:
        directory: To be written; see :mod:`weightsurgery.vectors.statistics`.
        checkpoint: A causal language model: a directory or ``org/name[@revision]``.
        data: One or several files; see :func:`weightsurgery.learning.reading.read`.
        selection: Tensors to gather for; by default all linear layers between embedding and
            head. Matrices that are no linear layer in memory (fused experts) or that never run
            are listed in the record under ``not_gathered``.
        device: Where the model runs: ``auto``, ``cpu``, ``cuda`` or ``cuda:i``.
        device_map: Spread it instead; see :func:`weightsurgery.learning.models.load_model`.
        max_bytes: What the float64 sums that grow at once may take: 12 n² bytes for the largest,
            8 n² for each other matrix of a run over the data. None for
            :func:`weightsurgery.learning.activations.sums_bound`.
        batch_tokens: Tokens in one forward pass, at most (a longer example runs alone).
        overwrite: Replace an existing output of this tool.
        command: The command line, for the record.
        progress: Called as ``progress(stage, done, total)`` in tokens.

    Returns:
        The record.

    Raises:
        DataError: Data that cannot be read, or an example without tokens or too long.
        MismatchError: No selected tensor is a linear layer that runs.
        UnsupportedCheckpointError: Layers have other names in memory than on disk.
        WeightSurgeryError: See :func:`gather`; nothing is left of the output then.
    """
    paths = [data] if isinstance(data, str | os.PathLike) else list(data)
    places = [place_of(path) for path in paths]
    selection = selection or Selection("all-linear")
    with Checkpoint.open(checkpoint) as base:
        names = [
            name for name in selection.resolve(base.entries) if len(base.entry(name).shape) > 1
        ]
        read = [base.path, *(place.root for place in places)]
        with StatisticsWriter(Path(directory), read, overwrite) as writer:
            tokenizer = load_tokenizer(base.path)
            sets = [read_data(path, tokenizer) for path in paths]
            texts = [example for each in sets for example in each.examples]
            model, _ = load_model(base.path, device, device_map)
            layers = _on_disk(model, base)
            chosen = {name: layers[name] for name in names if name in layers}
            rows = tokens_of(tokenizer, texts, model)
            done, matrices = set[str](), 0
            bound = sums_bound(model, chosen) if max_bytes is None else max_bytes
            for each, gram, tokens in gathered(model, chosen, rows, bound, batch_tokens, progress):
                writer.add(each, gram, tokens)
                done |= set(each)
                matrices += 1
            if not done:
                raise MismatchError(
                    f"{base.source.name}: none of the selected tensors is a linear layer that runs",
                    "Widen --targets, --include, --exclude or --layers.",
                )
            record = EditRecord("activation-statistics", command=list(command))
            record.parameters = {
                "selection": asdict(selection),
                "max_bytes": max_bytes,
                "batch_tokens": batch_tokens,
                "device": model.device.type,
                "not_gathered": [name for name in names if name not in done],
                "base_samples": samples_of(base),
            }
            record.inputs = _inputs(base, paths, sets)
            record.summary = {
                "examples": len(rows),
                "tokens": sum(map(len, rows)),
                "tensors": len(done),
                "matrices": matrices,
            }
            return writer.commit(record)


def tokens_of(
    tokenizer: PreTrainedTokenizerBase, examples: Sequence[Text], model: PreTrainedModel
) -> list[list[int]]:
    """The tokens of each example, as the model would be given them.

    Raises:
        DataError: No examples, or one without tokens or too long for the model.
    """
    rows = [_tokens(tokenizer, example) for example in examples]
    if not rows:
        raise DataError("no examples to gather statistics on", "Pass at least one.")
    limit = context_length(model)
    for row, example in zip(rows, examples, strict=True):
        if not row:
            raise DataError(f"no tokens in {example!r}", "Leave it out, or write text.")
        if limit is not None and len(row) > limit:
            raise DataError(
                f"an example of {len(row)} tokens ({str(example)[:40]!r} …); the model takes"
                f" {limit}",
                "Split it into shorter ones.",
            )
    return rows


def _tokens(tokenizer: PreTrainedTokenizerBase, example: Text) -> list[int]:
    if isinstance(example, Example):
        return list(encode(tokenizer, example).input_ids)
    if not isinstance(example, str):
        return [int(token) for token in example]
    tokens: list[int] = tokenizer(example)["input_ids"]
    # A prompt is not at its end: what a tokenizer closes a whole text with is not part of it.
    if tokens and tokens[-1] in (tokenizer.eos_token_id, tokenizer.sep_token_id):
        tokens = tokens[:-1]
    return tokens


def _on_disk(model: nn.Module, base: Checkpoint) -> dict[str, tuple[nn.Module, int]]:
    """The linear layers whose weights are stored under their own names.

    A head that is tied to the embedding may be stored as the embedding alone: it is left out.
    """
    aliases: dict[int, set[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        aliases.setdefault(id(parameter), set()).add(name)
    layers = linear_inputs(model)
    stored = {}
    for name, (module, width) in layers.items():
        weight = module.get_parameter("weight")
        entry = base.entries.get(name)
        others = aliases[id(weight)] - {name}
        if others & layers.keys():
            raise UnsupportedCheckpointError(
                f"{base.source.name}: {name!r} and {min(others & layers.keys())!r} are one weight"
                " with several inputs",
                "Gather in memory with learning.statistics.gather, and add up what belongs"
                " together.",
            )
        if entry is not None and entry.shape == tuple(weight.shape):
            stored[name] = module, width
        elif not others & base.entries.keys():
            raise UnsupportedCheckpointError(
                f"{base.source.name}: the model's {name!r} {list(weight.shape)} is not stored under"
                " this name and shape; transformers renames this model's weights",
                "Save it anew with save_pretrained under the names it has in memory, or keep by"
                " vectors instead of activations.",
            )
    return stored


def _inputs(
    base: Checkpoint, data: Sequence[str | os.PathLike[str]], sets: Sequence[Reading]
) -> Mapping[str, Any]:
    """The record's entry for model and data, with the SHA-256 of each file."""
    source = {"kind": "checkpoint", "name": base.source.name, "revision": base.source.revision}
    files = {path.name: input_sha256(path) for path in base.files_read()}
    data_entries = {
        key: described(name, each.place.digests(), each.facts)
        for (key, name), each in zip(roles("data", data).items(), sets, strict=True)
    }
    return {"base": {**source, "files": files}, **data_entries}
