"""The part of a change that a LoRA can hold: which layers, under which names, and their factors.

peft identifies a layer by its name in memory, and adapts linear layers and token embeddings only.
Changes that a LoRA cannot hold, or whose layers peft could not find, are refused with the reason.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from weightsurgery.algebra.lowrank import Rank, RankRule
from weightsurgery.algebra.rounding import compute_dtype
from weightsurgery.algebra.svd import Truncation
from weightsurgery.checkpoint.naming import is_transposed, kind_of, twin_candidates
from weightsurgery.checkpoint.reader import Checkpoint, torch_dtype
from weightsurgery.checkpoint.tied import is_tied
from weightsurgery.deferred import torch
from weightsurgery.errors import UnsupportedCheckpointError, VectorError
from weightsurgery.vectors.adapter_config import target_modules
from weightsurgery.vectors.deltas import FactorDelta, SumDelta

__all__ = [
    "Content",
    "LoraLayer",
    "LoraLayers",
    "Refusal",
    "Sorted",
    "factored",
    "is_factored",
    "sort_tensors",
]


@dataclass(frozen=True)
class LoraLayer:
    """A layer that a LoRA can adapt.

    Attributes:
        name: The tensor with its weight.
        module: The layer's name in memory.
        flipped: Whether the weight is stored (in, out): embeddings, and GPT-2's Conv1D.
        embedding: Whether it is a token embedding.
    """

    name: str
    module: str
    flipped: bool
    embedding: bool

    @property
    def keys(self) -> tuple[str, str]:
        """Names of ``A`` (r, in) and ``B`` (out, r) in an adapter's file."""
        if self.embedding:
            stem = f"base_model.model.{self.module}.lora_embedding_"
            return f"{stem}A", f"{stem}B"
        stem = f"base_model.model.{self.module}.lora_"
        return f"{stem}A.weight", f"{stem}B.weight"


@dataclass(frozen=True)
class Refusal:
    """Why a LoRA cannot hold a tensor's change.

    Attributes:
        reason: The reason, as in "'model.norm.weight': no matrix".
        remedy: The remedy, a sentence.
    """

    reason: str
    remedy: str


_LEAVE = (
    "Leave such tensors as in the base with --targets all-linear or --exclude, or write a"
    " checkpoint: 'ws add', or an edit without --as adapter."
)
_NO_MATRIX = Refusal("no matrix (norms, biases), and LoRA holds matrices only", _LEAVE)
_LOOSE = Refusal("neither a linear layer's weight nor the token embedding", _LEAVE)
# An adapter of one side changes that side alone until peft merges it, and both then; of an adapter
# of both sides, with ensure_weight_tying or without, merging adds the change twice.
_TIED = Refusal(
    "embedding and head in one, of which an adapter changes one side, or when merged both twice",
    _LEAVE,
)
_RENAMED = Refusal("a head not called lm_head on disk, as it may be in memory", _LEAVE)
_VISION = Refusal("of a vision transformer, whose layers have other names in memory", _LEAVE)
_STATES = Refusal("in a state-space mixer, which reads weights past their layers", _LEAVE)
_EXPERTS = Refusal(
    "of a mixture of experts, stacked or renamed in memory, where no LoRA finds it",
    "Leave such tensors as in the base with --targets all-linear --include '*attn*', or write a"
    " checkpoint: 'ws add', or an edit without --as adapter.",
)

# Vision transformers as they are published: transformers 5 calls ``encoder.layer.0.attention.
# attention.query`` ``layers.0.attention.q_proj``, and so on.
_VISION_IN = re.compile(r"(.*)encoder\.layer\.\d+\.attention\.attention\.query\.")

_EXPERTS_IN = re.compile(r"(.*\bmoe\.|.*_moe\.|.*\.(?=experts\.))")

# Layers at the very start of a name: saved without the module that holds them in memory.
_BARE = re.compile(r"(h|layers?|blocks?|(en|de)coder\.layers?)\.\d+\.")


class LoraLayers:
    """The layers of a base, found by the names and shapes of its tensors.

    Args:
        base: The base; its weights are read only to tell whether a stored head is tied.

    Raises:
        UnsupportedCheckpointError: transformers has other names for all of its tensors in memory,
            and they are not known here.
    """

    def __init__(self, base: Checkpoint) -> None:
        self._base = base
        self._prefix = _prefix(base)
        # What is beside experts (routers, shared experts) is renamed with them.
        self._moe = {
            match[1] for match in map(_EXPERTS_IN.match, base.entries) if match is not None
        }

        stems = [match[1] for match in map(_VISION_IN.match, base.entries) if match is not None]
        self._vision = {f"{stem}encoder.layer." for stem in stems}

    def find(self, name: str) -> LoraLayer | Refusal:
        """The layer whose weight a tensor is, or why there is none."""
        entry, kind = self._base.entry(name), kind_of(name)
        if self._moe and (kind == "mlp" or any(name.startswith(stem) for stem in self._moe)):
            return _EXPERTS
        if len(entry.shape) < 2 or kind == "norm":
            return _NO_MATRIX
        if len(entry.shape) > 2 or not name.endswith(".weight"):
            return _LOOSE
        if any(name.startswith(stem) for stem in self._vision):
            return _VISION
        if f"{name.rpartition('.')[0].rpartition('.')[0]}.A_log" in self._base.entries:
            return _STATES
        if kind == "head" and name != "lm_head.weight":
            return _RENAMED
        embedding = kind == "embeddings"
        if embedding and not twin_candidates(name, ["lm_head.weight"]):
            return _LOOSE  # positions, token types: layers of their own kinds
        if is_tied(self._base, name):
            return _TIED
        flipped = embedding or is_transposed(name, self._base.config)
        return LoraLayer(name, self.module_of(name), flipped, embedding)

    def module_of(self, name: str) -> str:
        """The name in memory of a tensor's layer."""
        prefix = "" if kind_of(name) == "head" else self._prefix
        return prefix + name.rpartition(".")[0]

    def targets(self, layers: Collection[LoraLayer]) -> list[str] | str:
        """The ``target_modules`` of peft's config; see :func:`target_modules`."""
        every = [self.module_of(name) for name in self._base.entries]
        return target_modules([layer.module for layer in layers], every)


def _prefix(base: Checkpoint) -> str:
    """The prefix in memory of the names of a checkpoint that was saved without its head."""
    if base.text_config is not base.config:
        raise UnsupportedCheckpointError(
            f"{base.source.name}: a model of several parts (text and others), whose layers have"
            " other names in memory than on disk",
            "Change its weights with 'ws add' instead.",
        )
    architecture = str((base.config.get("architectures") or [""])[0])
    headless = architecture.endswith("Model") and "Head" not in architecture
    if not architecture or headless or not any(_BARE.match(name) for name in base.entries):
        return ""
    if any(name.startswith("h.") for name in base.entries):
        return "transformer."  # GPT-2 and its kin
    raise UnsupportedCheckpointError(
        f"{base.source.name}: saved without the part of {architecture} that holds its layers, so"
        " that they have other names in memory",
        "Load it in transformers, save_pretrained it, and use that as the base.",
    )


_DENSE = Refusal(
    "a dense change, which no LoRA holds as it is",
    "Pass --rank K to truncate it (what that loses is reported), or take what 'ws subspace' saves.",
)


@dataclass(frozen=True)
class Content:
    """A change that is to become an adapter.

    Attributes:
        label: Its name in messages.
        chosen: The tensors that may change.
        outline: A tensor's change before it is computed; None where there is none. For a tensor
            that is not chosen, the change that the adapter leaves out.
        change: A chosen tensor's change as the adapter is to have it, with facts for the record;
            None where it is zero.
        rule: How many factors to keep of it; None for all there are.
        factored: Whether changes come as factors, whatever they are computed from.
        seed: Of the randomised SVD.
    """

    label: str
    chosen: Mapping[str, float]
    outline: Callable[[str], SumDelta | None]
    change: Callable[[str], tuple[SumDelta, Mapping[str, Any]] | None]
    rule: RankRule | None = None
    factored: bool = False
    seed: int = 0


@dataclass
class Sorted:
    """A change's tensors: those in the adapter, the others, and whether the base is needed.

    Attributes:
        places: The base's layers.
        layers: Those that change, in the base's order.
        left_out: Tensors that the change would change and the adapter does not.
        unchanged: Chosen tensors whose change is zero.
        reads_base: Whether a change is given as changed weights, so that the base's are needed.
    """

    places: LoraLayers
    layers: list[LoraLayer] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    unchanged: list[str] = field(default_factory=list)
    reads_base: bool = False


def sort_tensors(base: Checkpoint, content: Content) -> Sorted:
    """Sort tensors into those a LoRA holds, those left out and those that do not change.

    Raises:
        VectorError: A LoRA cannot hold some changes; it names the first of each kind.
    """
    result = Sorted(LoraLayers(base))
    refused: dict[Refusal, list[str]] = {}
    for name in base.entries:
        delta = content.outline(name)
        if delta is None:
            continue
        if name not in content.chosen:
            result.left_out.append(name)
            continue
        place = result.places.find(name)
        exact = content.rule is None and not content.factored
        if isinstance(place, LoraLayer) and exact and not is_factored(delta):
            place = _DENSE
        if isinstance(place, LoraLayer) and base.entry(name).numel:
            result.layers.append(place)
            result.reads_base = result.reads_base or _needs_base(delta)
        elif isinstance(place, LoraLayer) or _is_zero(base, name, delta):
            result.unchanged.append(name)
        else:
            refused.setdefault(place, []).append(name)
    if refused:
        kinds = [
            f"{names[0]!r}{f' and {len(names) - 1} more' if names[1:] else ''}: {why.reason}"
            for why, names in refused.items()
        ]
        remedies = dict.fromkeys(why.remedy for why in refused)
        raise VectorError(f"{content.label}: {'; '.join(kinds)}", " ".join(remedies))
    return result


def factored(
    base: Checkpoint, content: Content, layer: LoraLayer, device: torch.device | str
) -> tuple[Truncation, Mapping[str, Any]] | None:
    """The kept factors of one layer's change, oriented (out, in), and facts for the record.

    Returns:
        None where the change is zero.
    """
    worked = content.change(layer.name)
    if worked is None:
        return None
    delta, facts = worked
    rows, columns = base.entry(layer.name).shape
    truncation = delta.truncated(
        _base_rows(base, layer.name, delta),
        (rows, columns),
        content.rule or Rank(min(rows, columns)),
        transposed=layer.flipped,
        device=device,
        seed=content.seed,
    )
    # Beyond the change's rank, and where its terms cancel, there is only rounding error.
    s = truncation.factors.S
    largest = max(float(s[0]), _largest(delta))
    rank = int((s > largest * torch.finfo(torch.float32).eps).sum())
    if not rank:
        return None
    return replace(truncation, factors=truncation.factors.truncated(rank)), facts


def _largest(delta: SumDelta) -> float:
    """Norm of the largest of two or more factored terms; 0 for other changes."""
    if len(delta.terms) < 2:
        return 0.0
    norms = [
        abs(factor) * _norm(term) for factor, term in delta.terms if isinstance(term, FactorDelta)
    ]
    return max(norms, default=0.0)


def _norm(delta: FactorDelta) -> float:
    """``‖L Rᵀ‖``, from the Gram matrices of both."""
    left, right = delta.left.double(), delta.right.double()
    return math.sqrt(max(0.0, float(((left.T @ left) * (right.T @ right)).sum())))


def is_factored(delta: SumDelta) -> bool:
    """Whether a change is a sum of factors alone."""
    return all(isinstance(term, FactorDelta) for _, term in delta.terms)


def _needs_base(delta: SumDelta) -> bool:
    """Whether a change is given as the changed weights."""
    return delta.relative


def _base_rows(base: Checkpoint, name: str, delta: SumDelta) -> Callable[[int, int], torch.Tensor]:
    if _needs_base(delta):
        return lambda start, stop: base.rows(name, start, stop)
    return lambda start, stop: torch.empty(0)


def _is_zero(base: Checkpoint, name: str, delta: SumDelta) -> bool:
    """Whether a change is zero; reads up to the first nonzero number."""
    entry, rows = base.entry(name), _base_rows(base, name, delta)
    dtype = compute_dtype(torch_dtype(entry.dtype))
    for start, stop in entry.blocks():
        out = torch.zeros((stop - start, *entry.columns), dtype=dtype)
        delta.add_rows(out, start, stop, 1.0, rows(start, stop).to(dtype))
        if bool(out.count_nonzero()):
            return False
    return True
