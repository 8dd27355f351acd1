"""Which tensors of a checkpoint are layers that a LoRA can sit beside, and what peft calls them.

peft knows a layer by its name in memory, and for linear layers and token embeddings only. What a
LoRA cannot hold, or could not be found again by its name, is refused here with the reason.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from weightsurgery.checkpoint.naming import is_transposed, kind_of, twin_candidates
from weightsurgery.checkpoint.reader import Checkpoint
from weightsurgery.checkpoint.tied import is_tied
from weightsurgery.errors import UnsupportedCheckpointError

__all__ = ["LoraLayer", "LoraLayers", "Refusal", "target_modules"]


@dataclass(frozen=True)
class LoraLayer:
    """A layer that a LoRA can sit beside.

    Attributes:
        name: The tensor with its weight.
        module: What the layer is called in memory.
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
        reason: What it is, as in "'model.norm.weight': no matrix".
        remedy: What to do about it, as a sentence.
    """

    reason: str
    remedy: str


_LEAVE = (
    "Leave such tensors as in the base with --targets all-linear or --exclude, or write a"
    " checkpoint: 'ws add', or an edit without --as adapter."
)
_NO_MATRIX = Refusal("no matrix (norms, biases), and LoRA holds matrices only", _LEAVE)
_LOOSE = Refusal("neither a linear layer's weight nor the token embedding", _LEAVE)
# What peft does there: of one side it changes that side until it is merged, and both then; of both
# sides, with ensure_weight_tying or without, merging adds the change twice.
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
            and which ones cannot be told from here.
    """

    def __init__(self, base: Checkpoint) -> None:
        self._base = base
        self._prefix = _prefix(base)
        # What is beside experts (routers, shared experts) is renamed with them.
        self._moe = {
            match[1] for match in map(_EXPERTS_IN.match, base.entries) if match is not None
        }

        found = [match[1] for match in map(_VISION_IN.match, base.entries) if match is not None]
        self._vision = {f"{stem}encoder.layer." for stem in found}

    def find(self, name: str) -> LoraLayer | Refusal:
        """The layer a tensor is the weight of, or why there is none."""
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
        """What the layer of a tensor is called in memory."""
        prefix = "" if kind_of(name) == "head" else self._prefix
        return prefix + name.rpartition(".")[0]

    def targets(self, layers: Collection[LoraLayer]) -> list[str] | str:
        """What peft is to adapt; see :func:`target_modules`."""
        every = [self.module_of(name) for name in self._base.entries]
        return target_modules([layer.module for layer in layers], every)


def _prefix(base: Checkpoint) -> str:
    """What transformers puts before the names of a checkpoint that was saved without its head."""
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


def target_modules(targets: Collection[str], modules: Iterable[str]) -> list[str] | str:
    """What makes peft adapt some modules of a model and no others.

    peft adapts each module whose name is in a list, or ends with a dot and a name in it; or, given
    a string, each whose name it matches as a regular expression.

    Args:
        targets: Names of the modules to adapt.
        modules: Names of all modules that hold tensors; those around them count too.

    Returns:
        Last parts of names (``q_proj``) where all modules called so are targets, full names where
        not; a regular expression where a full name is the end of another.
    """
    wanted = set(targets)
    everything = {
        ".".join(parts[:count])
        for parts in (module.split(".") for module in {*modules, *wanted})
        for count in range(1, len(parts) + 1)
    }
    others = {_leaf(module) for module in everything - wanted}
    listed = {module if _leaf(module) in others else _leaf(module) for module in wanted}
    if {module for module in everything if _ends(module) & listed} == wanted:
        return sorted(listed)
    return "|".join(re.escape(module) for module in sorted(wanted))


def _leaf(module: str) -> str:
    return module.rpartition(".")[2]


def _ends(module: str) -> set[str]:
    """A name, and what is left of it when parts are taken off its front."""
    parts = module.split(".")
    return {".".join(parts[start:]) for start in range(len(parts))}
