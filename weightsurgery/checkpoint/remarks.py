"""Oddities of a checkpoint that are no errors, shown when it is inspected and before an edit.

Each of them may make an edit mean something else than intended: a head that the config ties but
that is stored apart, rows that belong to no token, layers that no library loads.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from weightsurgery.checkpoint.layout import TensorEntry
from weightsurgery.checkpoint.naming import kind_of, layer_of, twin_candidates
from weightsurgery.checkpoint.reader import Checkpoint
from weightsurgery.checkpoint.tied import same_bytes

__all__ = ["declared_total", "partitioned", "remarks"]

_VISION = re.compile(r"(^|\.)(visual|vision\w*|vit|image_encoder|multi_modal_projector)\.")
_VISION_CONFIGS = ("vision_config", "visual", "vision_tower", "mm_vision_tower", "vit_config")
_MTP = re.compile(r"(^|\.)(mtp\w*|nextn\w*)\.")
_MATRICES = ("attention", "mlp", "embeddings", "head")
_LARGEST = 64 << 20  # bytes of a tokenizer or an index worth reading for a remark


def remarks(checkpoint: Checkpoint) -> tuple[str, ...]:
    """One line each; for a remote checkpoint, those that headers and config show."""
    return checkpoint.remember("remarks", lambda: tuple(_all_remarks(checkpoint)))


def partitioned(entries: Mapping[str, TensorEntry]) -> list[str]:
    """Matrices of shape (0,): what ZeRO-3 and FSDP save where no process gathered them."""
    return [
        name
        for name, entry in entries.items()
        if entry.shape == (0,) and name.endswith(".weight") and kind_of(name) in _MATRICES
    ]


def declared_total(checkpoint: Checkpoint) -> float | None:
    """The sum of bytes that an index gives, right or wrong; None where it gives none."""
    name = checkpoint.layout.index_name
    metadata = ((_json(checkpoint, name) if name else None) or {}).get("metadata")
    total = metadata.get("total_size") if isinstance(metadata, dict) else None
    return total if isinstance(total, int | float) else None


def _all_remarks(checkpoint: Checkpoint) -> Iterator[str]:
    yield from _files(checkpoint)
    if lost := partitioned(checkpoint.entries):
        yield (
            f"{len(lost)} matrices are empty, such as {lost[0]}: the weights were partitioned over"
            " processes (DeepSpeed ZeRO-3, FSDP) when it was saved, and are not here"
        )
    yield from _ties(checkpoint)
    yield from _vocabulary(checkpoint)
    yield from _layers(checkpoint)
    yield from _towers(checkpoint)


def _files(checkpoint: Checkpoint) -> Iterator[str]:
    layout = checkpoint.layout
    if layout.index_name is None and len(layout.shards) > 1:
        yield f"{len(layout.shards)} shards and no index: they were read by their numbers"
    if checkpoint.remote or not checkpoint.as_stored:
        return
    total = declared_total(checkpoint)
    if total is not None and total != layout.nbytes:
        yield (
            f"{layout.index_name} says total_size {total:,.0f}; its tensors hold {layout.nbytes:,}"
            " bytes"
        )
    copies = ("consolidated*.safetensors", "*.gguf")
    beside = sorted(path.name for form in copies for path in checkpoint.path.glob(form))
    beside = [name for name in beside if name not in layout.shards]
    if (checkpoint.path / "original").is_dir():
        beside.append("original/")
    if beside:
        yield (
            f"{', '.join(beside)} beside the weights: another copy of them, which is neither read,"
            " edited nor copied"
        )


def _ties(checkpoint: Checkpoint) -> Iterator[str]:
    if checkpoint.remote:
        return
    names = list(checkpoint.entries)
    declared = checkpoint.text_config.get("tie_word_embeddings")
    heads = [name for name in names if kind_of(name) == "head"][:4]
    for head in heads:
        for other in twin_candidates(head, names):
            ours, theirs = checkpoint.entry(head), checkpoint.entry(other)
            if ours.shape != theirs.shape or ours.dtype != theirs.dtype or not ours.numel:
                continue
            same = same_bytes(checkpoint, head, other)
            if declared is True and not same:
                yield (
                    f"the config ties {head} to {other}, and the two are stored apart and differ:"
                    " each is edited as it is stored; what a library loads may be one of them alone"
                )
            if declared is False and same:
                yield (
                    f"{head} and {other} are equal, and the config says that they are not tied:"
                    " each is edited on its own"
                )


def _vocabulary(checkpoint: Checkpoint) -> Iterator[str]:
    names = [
        name
        for name, entry in checkpoint.entries.items()
        if len(entry.shape) == 2 and twin_candidates(name, ["lm_head.weight"])
    ]
    if len(names) != 1:
        return
    rows = checkpoint.entry(names[0]).rows
    declared = checkpoint.text_config.get("vocab_size")
    if isinstance(declared, int) and declared != rows:
        yield f"{names[0]} has {rows} rows, vocab_size of the config is {declared}"
    count = None if checkpoint.remote else _tokens(checkpoint)
    if count is not None and count < rows:
        yield (
            f"{names[0]} has {rows} rows, the tokenizer {count} tokens: the last"
            f" {rows - count} rows stand for none"
        )
    if count is not None and count > rows:
        yield (
            f"the tokenizer has {count} tokens, {names[0]} {rows} rows: {count - rows} tokens have"
            " none"
        )


def _tokens(checkpoint: Checkpoint) -> int | None:
    """One more than the largest id of a fast tokenizer."""
    tokenizer = _json(checkpoint, "tokenizer.json")
    try:
        vocabulary = (tokenizer or {})["model"]["vocab"]
        ids = (
            [int(number) for number in vocabulary.values()]
            if isinstance(vocabulary, dict)
            else range(len(vocabulary))
        )
        added = [int(token["id"]) for token in (tokenizer or {}).get("added_tokens") or ()]
        return 1 + max([*added, max(ids)])
    except (ValueError, KeyError, TypeError):
        return None


def _layers(checkpoint: Checkpoint) -> Iterator[str]:
    config = checkpoint.text_config
    names = list(checkpoint.entries)
    extra = [name for name in names if _MTP.search(name)]
    declared = config.get("num_hidden_layers")
    if isinstance(declared, int) and not isinstance(declared, bool) and not config.get(
        "is_encoder_decoder"
    ):  # fmt: skip
        text = [name for name in names if not _VISION.search(name)]
        layers = {layer for name in text if (layer := layer_of(name)) is not None}
        extra += [name for name in text if (layer_of(name) or 0) >= declared and name not in extra]
        if layers and max(layers) + 1 < declared:
            yield f"the config has {declared} layers, the weights {max(layers) + 1}"
    if extra:
        yield (
            f"{len(extra)} tensors are of layers beyond the config's, such as {extra[0]}: heads"
            " that predict more than one token (MTP); most libraries leave them out when they load,"
            " and an edit of all tensors changes them too"
        )


def _towers(checkpoint: Checkpoint) -> Iterator[str]:
    vision = [name for name in checkpoint.entries if _VISION.search(name)]
    declared = any(checkpoint.config.get(key) for key in _VISION_CONFIGS)
    if vision and checkpoint.config and not declared:
        yield (
            f"{len(vision)} tensors are of an image tower, such as {vision[0]}, and the config is"
            " that of a text model"
        )
    if declared and not vision:
        yield "the config has an image tower, and the weights have none"


def _json(checkpoint: Checkpoint, name: str) -> dict[str, Any] | None:
    path = checkpoint.file(name)
    try:
        if path is None or path.stat().st_size > _LARGEST:
            return None
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None  # reported where it is needed
    return content if isinstance(content, dict) else None
