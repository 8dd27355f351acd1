"""LoRA adapters as changes: ``ΔW = scale · B A``, kept as factors.

Besides factors an adapter may hold rows that replace the base's (embeddings and heads that were
trained or resized, new tokens, biases, ``modules_to_save``), magnitudes (DoRA), biases of ``B``,
and factors of experts in one tensor (``target_parameters``). Anything else is refused with the
reason.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

from weightsurgery.checkpoint.layout import Layout, parse_header
from weightsurgery.checkpoint.names.prefixes import Shape
from weightsurgery.checkpoint.naming import is_transposed, kind_of
from weightsurgery.checkpoint.reader import Checkpoint
from weightsurgery.checkpoint.source import Source
from weightsurgery.checkpoint.tied import is_tied, tied_copies
from weightsurgery.errors import MismatchError, VectorError
from weightsurgery.vectors.adapter_config import CONFIG_NAME, AdapterConfig, read_config
from weightsurgery.vectors.adapter_deltas import DoraDelta, VectorDelta
from weightsurgery.vectors.adapter_experts import ExpertFactors, expert_factors
from weightsurgery.vectors.adapter_keys import Factors, SortedKeys, inside, sort_keys
from weightsurgery.vectors.adapter_rows import AdapterRows, BaseNames, find_rows, row_target
from weightsurgery.vectors.deltas import Delta, FactorDelta, SumDelta
from weightsurgery.vectors.fitted import Fitted

__all__ = ["AdapterChange"]

_MERGE = "Merge the adapter in peft, and pass the merged checkpoint instead."

_LAYOUTS = {
    "mlx-lora": "read as an adapter of MLX-LM: factors (in, r) and (r, out), the scale as it is",
    "kohya-lora": "read as an adapter of kohya's scripts: each module's alpha beside its factors",
}


class AdapterChange:
    """A LoRA adapter as a change of the base's tensors.

    Args:
        base: The base.
        source: Where the adapter is.
        config: Its settings; read from its config if not given.

    Attributes:
        fitted: How it fits the base.
        notes: How the adapter was read, for the user, a line each.

    Raises:
        VectorError: Not a LoRA, or one whose effect is no change of weights, or differs after
            merging (on a tied embedding or head).
        MismatchError: The adapter is for modules the base does not have.
    """

    def __init__(
        self, base: Checkpoint, source: Source, config: AdapterConfig | None = None
    ) -> None:
        self.base, self.source = base, source
        self.label = source.path.name
        self.config = read_config(source) if config is None else config
        self.notes: list[str] = []
        path = source.path / self.config.weights
        if not path.is_file():
            raise VectorError(
                f"{source.name}: no {self.config.weights}",
                "Save the adapter with safetensors: load it in peft and save_pretrained it again.",
            )
        with path.open("rb") as file:

            def read(offset: int, length: int) -> bytes:
                file.seek(offset)
                return file.read(length)

            header = parse_header(path.name, path.stat().st_size, read)
        entries = {entry.name: entry for entry in header.entries}
        self._weights = Checkpoint(source, Layout({path.name: header}, entries))
        self._check_gathered()
        # Base tensor → its changes, each read when it is called.
        self._terms: dict[str, list[Callable[[], Delta]]] = {}
        self._match_modules()
        if self.config.kind in _LAYOUTS:
            self._note(_LAYOUTS[self.config.kind])
        more = sorted(path.parent.name for path in source.path.glob(f"*/{CONFIG_NAME}"))
        if more:
            self._note(f"the adapter in the folder itself was read, not {', '.join(more)} in it")

    @property
    def base_name(self) -> str:
        """The base the adapter was trained on, as its config has it; may be empty."""
        return str(self.config.settings.get("base_model_name_or_path") or "")

    def _note(self, note: str) -> None:
        self.notes.append(f"{self.label}: {note}.")

    def _check_gathered(self) -> None:
        """Refuse a file whose weights were partitioned over processes when it was saved."""
        entries = self._weights.entries
        empty = [name for name, entry in entries.items() if 0 in entry.shape]
        if entries and not any(len(entries[name].shape) < 2 for name in empty):
            return  # a rank of 0 is another fault
        evidence = (
            f"tensor {empty[0]!r} is {list(entries[empty[0]].shape)}" if entries else "no tensor"
        )
        raise VectorError(
            f"{self.source.name}: {evidence} in {self.config.weights}: its weights were partitioned"
            " over processes (DeepSpeed ZeRO-3, FSDP) when it was saved, and are not here",
            "Gather them: set stage3_gather_16bit_weights_on_model_save and save again, or run"
            " zero_to_fp32.py on the training's checkpoint (FSDP: a full state dict).",
        )

    def _match_modules(self) -> None:
        config = self.config
        keys = sort_keys(self._weights.entries, config.kind, self.source.name)
        shapes = self._shapes(keys)
        self._names = BaseNames(self.base, shapes, self.source.name)
        count = len(keys.modules) + len(keys.rest)
        facts = self._names.facts(self._weights.entries)
        self.fitted = Fitted(self.label, count, count, names=facts)
        experts: list[Factors] = []
        for factors in keys.modules.values():
            if len({"A", "B"} & set(factors.keys)) != 2:
                raise VectorError(
                    f"{self.source.name}: module {factors.module!r} has only one of lora_A and"
                    " lora_B",
                    "Save the adapter again.",
                )
            if config.settings.get("target_parameters") and not self._is_linear(factors):
                experts.append(factors)
            else:
                self._add_factors(factors)
        rows = find_rows(self.base, self._weights, keys.rest, config.settings, self._names.find)
        self._check_untied([factors.module for factors in keys.modules.values()], rows)
        for replaced in rows:
            names = [replaced.name] if len(replaced.places) else []
            if names and replaced.both_sides:
                names += [a for a, b in tied_copies(self.base).items() if b == replaced.name]
            for name in names:
                self._terms.setdefault(name, []).append(replaced.delta)
            self._note(replaced.description())
        for stacked in expert_factors(self.base, self._weights, experts, config, self._names.find):
            self._add_experts(stacked)
        if not self._terms and not keys.modules:
            raise VectorError(f"{self.source.name}: an empty adapter", "Train it first.")

    def _shapes(self, keys: SortedKeys) -> dict[str, Shape]:
        """Names (the adapter's) and shapes (the base's) of the tensors that the adapter changes."""
        holders = [
            holder
            for target in self.config.settings.get("target_parameters") or ()
            if (holder := str(target).rpartition(".")[0])
        ]
        shapes: dict[str, Shape] = {}
        for factors in keys.modules.values():
            module = factors.module.replace(".base_layer", "")
            if not {"A", "B"} <= set(factors.keys) or self.config.kind == "kohya-lora":
                continue
            if any(f".{module}".endswith(f".{holder}") for holder in holders):
                continue  # a stack's factors, whose product is no matrix of the base's
            a, b = (self._weights.entry(factors.keys[part]).shape for part in ("A", "B"))
            if factors.transposed:
                a, b = a[::-1], b[::-1]
            if len(a) == len(b) == 2:
                product = (b[0], a[1])
                shapes[f"{module}.weight"] = product[::-1] if self._is_flipped(factors) else product
        if shapes:
            return shapes
        return {row_target(inside(key)): self._weights.entry(key).shape for key in keys.rest}

    def _is_linear(self, factors: Factors) -> bool:
        """Whether a module is a matrix of the base's rather than a module that holds a stack."""
        module = factors.module.replace(".base_layer", "")
        entry = self.base.entries.get(self._names.find(f"{module}.weight") or "")
        return entry is not None and len(entry.shape) == 2

    def _add_factors(self, factors: Factors) -> None:
        name = self._base_name_of(factors.module)
        a, b = (self._weights.entry(factors.keys[part]) for part in ("A", "B"))
        shapes = [entry.shape[:: -1 if factors.transposed else 1] for entry in (a, b)]
        self._check_shapes(name, factors, shapes[0], shapes[1])
        rank = shapes[0][0]
        self.config.check_rank(factors.module, rank)
        if self.config.settings.get("use_dora") and "magnitude" not in factors.keys:
            raise VectorError(
                f"{self.source.name}: use_dora is set, and {factors.module!r} has no magnitude",
                "Save the adapter again.",
            )
        if "magnitude" in factors.keys:
            rows = self.base.entry(name).rows
            magnitude = self._weights.entry(factors.keys["magnitude"])
            if self._is_flipped(factors) or magnitude.numel != rows:
                raise VectorError(
                    f"{self.source.name}: use_dora on {factors.module!r}, whose weight is stored"
                    " the other way round: what DoRA rescales are its columns",
                    _MERGE,
                )
            self._terms.setdefault(name, []).append(partial(self._dora, factors, name))
        else:
            self._terms.setdefault(name, []).append(partial(self._factors, factors))
        if "bias" in factors.keys:
            self._add_bias(factors, rank)

    def _add_bias(self, factors: Factors, rank: int) -> None:
        """``lora_bias``: a bias of ``B``, which merging adds to the module's bias."""
        name = f"{self._base_name_of(factors.module).removesuffix('weight')}bias"
        entry, key = self.base.entries.get(name), factors.keys["bias"]
        if entry is None or entry.shape != self._weights.entry(key).shape:
            raise VectorError(
                f"{self.source.name}: lora_bias is set, and {self.base.source.name} has no bias"
                f" {name!r} of this shape that it could be added to",
                "Use the adapter beside its base: no checkpoint of the base's layout is the same.",
            )
        scale = self.config.scaling(factors.module, rank)
        self._terms.setdefault(name, []).append(
            lambda: VectorDelta(self._weights.tensor(key).float() * scale)
        )

    def _add_experts(self, experts: ExpertFactors) -> None:
        for name, make in experts.terms.items():
            self._terms.setdefault(name, []).append(make)
        self._note(experts.description)

    def _check_untied(self, modules: Iterable[str], rows: Iterable[AdapterRows]) -> None:
        """Refuse a change of a tied embedding or head, which differs after merging."""
        named = [module for module in modules if ".experts" not in module]
        tied = [
            module
            for module in named
            if is_tied(self.base, self._names.find(f"{module}.weight") or module)
        ]
        tied += [changed.name for changed in rows if not changed.both_sides and len(changed.places)
                 and is_tied(self.base, changed.name)]  # fmt: skip
        if not tied:
            return
        remedy = (
            "Untie the base first: load it with tie_word_embeddings=False, copy the embedding"
            " into the head, save it, and use that as the base."
        )
        if len(tied) == 1:  # of both, merging would add one to the other
            remedy += " Or, if both sides are to change, pass what peft merges as a checkpoint."
        raise VectorError(
            f"{self.source.name}: adapts {tied[0]!r}, and {self.base.source.name} ties its head to"
            " its embedding: beside the base one side changes, in their one matrix both would",
            remedy,
        )

    def _base_name_of(self, module: str) -> str:
        name = self._names.find(f"{module}.weight")
        if name is None and self.config.kind == "kohya-lora":
            name = self._names.find_flat(module)
        if name is not None:
            return name
        ambiguous = any(stored.endswith(f".{module}.weight") for stored in self.base.entries)
        raise MismatchError(
            f"{self.source.name}: adapts {module!r}, and {self.base.source.name} has "
            f"{'several such modules' if ambiguous else 'no such module'}",
            f"The adapter was trained on {self.base_name or 'another model'}; use that base.",
        )

    def _check_shapes(
        self, name: str, factors: Factors, a: tuple[int, ...], b: tuple[int, ...]
    ) -> None:
        key_a, key_b = factors.keys["A"], factors.keys["B"]
        shape = self.base.entry(name).shape
        if len(a) != 2 or len(b) != 2 or a[0] != b[1]:
            raise VectorError(
                f"{self.source.name}: {key_a!r} {list(a)} and {key_b!r} {list(b)}"
                " are no pair of linear LoRA factors",
                _MERGE,
            )
        if a[0] == 0:
            raise VectorError(
                f"{self.source.name}: {key_a!r} has rank 0", "Save the adapter again."
            )
        product = (b[0], a[1])
        if (product[::-1] if self._is_flipped(factors) else product) != shape:
            raise MismatchError(
                f"{self.source.name}: {key_b!r} @ {key_a!r} gives {list(product)}; tensor {name!r}"
                f" of {self.base.source.name} is {list(shape)}",
                f"The adapter was trained on {self.base_name or 'another model'}; use that base.",
            )

    def _is_flipped(self, factors: Factors) -> bool:
        """Whether the stored weight is the transpose of ``B A``: embeddings, and Conv1D."""
        weight = f"{factors.module}.weight"
        if factors.embedding or is_transposed(weight, self.base.config):
            return True
        if factors.transposed:  # MLX-LM's embeddings are recognised by their name alone
            return kind_of(weight) == "embeddings"
        # peft notes the last module it wrapped: a GPT-2 adapter with its head says False, and
        # the head itself is linear in any model.
        return bool(self.config.settings.get("fan_in_fan_out")) and kind_of(weight) != "head"

    def _pair(self, factors: Factors) -> FactorDelta:
        """``scale · B`` and ``Aᵀ``."""
        a, b = (self._weights.tensor(factors.keys[part]).float() for part in ("A", "B"))
        if factors.transposed:
            a, b = a.T, b.T
        if "alpha" in factors.keys:
            scale = float(self._weights.tensor(factors.keys["alpha"]).float().sum()) / a.shape[0]
        else:
            scale = self.config.scaling(factors.module, a.shape[0])
        return FactorDelta(b * scale, a.T)

    def _factors(self, factors: Factors) -> Delta:
        pair = self._pair(factors)
        return FactorDelta(pair.right, pair.left) if self._is_flipped(factors) else pair

    def _dora(self, factors: Factors, name: str) -> Delta:
        pair = self._pair(factors)
        magnitude = self._weights.tensor(factors.keys["magnitude"]).float().reshape(-1)
        return DoraDelta(pair.left, pair.right, magnitude, name)

    def at(self, name: str) -> Delta | None:
        """See :class:`weightsurgery.vectors.task_vector.Change`."""
        terms = self._terms.get(name)
        if terms is None:
            return None
        if len(terms) == 1:
            return terms[0]()
        return SumDelta(tuple((1.0, make()) for make in terms), name, self.label)

    def rows_at(self, name: str) -> bool | None:
        """See :class:`weightsurgery.vectors.task_vector.Change`."""
        return False if name in self._terms else None

    def provenance(self) -> Mapping[str, Any]:
        """See :class:`weightsurgery.vectors.task_vector.Change`."""
        config = self.source.path / CONFIG_NAME
        return {
            "kind": self.config.kind,
            "name": self.source.name,
            "revision": self.source.revision,
            "base": self.base_name,
            "fitted": self.fitted.facts(),
            **({"notes": list(self.notes)} if self.notes else {}),
            "paths": [
                *([config] if config.is_file() else []),
                self.source.path / self.config.weights,
            ],
        }
