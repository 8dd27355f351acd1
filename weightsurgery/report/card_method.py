"""What an output is, in the words of its model card: the edit, its equation and papers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from weightsurgery.report.card_text import code, literal

if TYPE_CHECKING:
    from weightsurgery.checkpoint.record import EditRecord

__all__ = ["Provenance", "is_kept", "method", "provenance_of"]

_ARITHMETIC = "[Ilharco et al., 2023](https://arxiv.org/abs/2212.04089)"
_UNLEARN = "[Lizzo & Heck, 2024](https://arxiv.org/abs/2408.04140)"

_SIDES = {
    "right": "`T' = T (I − P_V)`: for every input `x` in the span of what the tasks to keep take"
    " in, `W'x = Wx`",
    "left": "`T' = (I − P_U) T`: the change never points along the outputs of the tasks to keep",
    "both": "`T' = (I − P_U) T (I − P_V)`: neither the inputs nor the outputs of the tasks to keep"
    " are touched",
    "shared": "`T' = T − P_U T P_V`: only what is shared on both sides at once is taken out",
    "frobenius": "`T'` is `T` less its projection on the span of the keep tasks' factors `u vᵀ`",
    "soft": "`T' = T ρ(C + ρI)⁻¹` with `C = Σ T_jᵀ T_j` of the tasks to keep: near to `T`, and the"
    " smaller the more they moved",
}
_BASES = {
    "joint": "one projection on the span of all tasks to keep",
    "sum": "one task to keep after another, each measured on `T`",
}
_SOFT_BASES = {
    "joint": "one ridge on the sum of all tasks to keep",
    "sum": "a ridge for each task to keep, and what they take away added up",
}

_EDITS = {"negate": -1, "project": -1, "unlearn": -1, "add": 1, "learn": 1}


@dataclass(frozen=True)
class Provenance:
    """What the record says of how an output was made.

    Attributes:
        kind: The record's.
        edit: ``negate``, ``add``, ``project``, ``learn`` or ``unlearn``; "" if the record does not
            say.
        command: The command that was typed, such as ``export``; "" for none.
        sign: −1 where something was taken away, +1 where something was added, 0 if neither or
            unknown.
        from_data: Whether the change was trained on data sets.
    """

    kind: str
    edit: str
    command: str
    sign: int
    from_data: bool

    @property
    def removes(self) -> bool:
        """Whether something was taken away."""
        return self.sign < 0

    @property
    def tags(self) -> list[str]:
        """The card's tags."""
        tags = ["weightsurgery"]
        if self.kind in ("adapter", "task-vector"):
            tags.append("lora" if self.kind == "adapter" else "task-vector")
        if self.edit in ("negate", "add") or self.command in ("export", "diff", "subspace"):
            tags.append("task-arithmetic")
        if self.removes:
            tags.append("unlearning")
        return tags


def provenance_of(record: EditRecord) -> Provenance:
    """How an output was made, by its record."""
    words = list(record.command)
    command = words[1] if len(words) > 1 and words[0] == "ws" else ""
    named = str(record.parameters.get("edit", ""))
    edit = next((name for name in (named, command) if name in _EDITS), "")
    if not edit:  # made from Python: the roles say it, but for negate and add, which share theirs
        edit = (
            "project" if "forget" in record.inputs else "learn" if "task" in record.inputs else ""
        )
        edit = edit if record.kind in ("checkpoint", "adapter") else ""
    sign = _EDITS.get(edit, 0)
    if record.kind == "adapter" and not edit:
        factors = [facts.get("factor") for facts in record.inputs.values()]
        known = [factor for factor in factors if isinstance(factor, int | float)]
        sign = -1 if known and max(known) < 0 else 1 if known and min(known) > 0 else 0
    elif isinstance(scale := record.parameters.get("scale"), int | float) and scale < 0:
        sign = -sign
    if record.kind in ("task-vector", "activation-statistics"):
        sign = 0
    return Provenance(record.kind, edit, command, sign, "data" in record.parameters)


def is_kept(role: str) -> bool:
    """Whether a role is of something that was to stay."""
    return re.fullmatch(r"keep(_data|_inputs)?\.?\d*(\.\d+)?", role) is not None


def method(record: EditRecord) -> list[str]:
    """Paragraphs on how it was done."""
    provenance = provenance_of(record)
    if record.kind == "activation-statistics":
        return [
            "For each linear layer `C = Σ x xᵀ` over its inputs `x`, summed over the tokens of the"
            " data above. `ws project` and `ws learn` take it as `--keep`: a change `T` becomes"
            " `T ρ(C + ρI)⁻¹`, near to `T` and small on those inputs."
        ]
    if record.kind == "task-vector":
        return _vector(record, provenance)
    paragraphs = _edit(record, provenance)
    if record.kind == "adapter":
        paragraphs.append(_adapter(record.parameters))
    return [*paragraphs, *_storage(record)]


def _edit(record: EditRecord, provenance: Provenance) -> list[str]:
    sign = {-1: "−", 1: "+"}.get(_EDITS.get(provenance.edit, provenance.sign), "±")
    scale = record.parameters.get("scale")
    amount = f", with `λ = {scale:g}`" if isinstance(scale, int | float) else ""
    if provenance.edit == "unlearn":
        return _system(record.parameters, sign, amount)
    if provenance.from_data:
        return _data(record.parameters, sign, amount)
    if provenance.edit in ("project", "learn"):
        return _discriminating(record, sign, amount)
    if record.kind == "adapter":
        return [
            f"Task arithmetic ({_ARITHMETIC}): base and adapter give `W + T`, where `T` is the sum"
            " of the vectors above with their factors."
        ]
    origin = " is the vector above: what fine-tuning changed, or what was saved of it"
    if "vector.2" in record.inputs:
        origin = " is the sum of the vectors above with their factors"
    return [f"Task arithmetic ({_ARITHMETIC}): `W' = W {sign} λT`{amount}, where `T`{origin}."]


def _discriminating(record: EditRecord, sign: str, amount: str) -> list[str]:
    parameters = record.parameters
    name = "LEARN" if sign == "+" else "UNLEARN"
    rank = literal(str(parameters.get("rank", "?")))
    side, basis = str(parameters.get("side", "")), str(parameters.get("basis", ""))
    paragraphs = [
        f"`W' = W {sign} λT'`{amount}. `T'` is the task, truncated by SVD (rank: {rank}), less what"
        f" it shares with the tasks to keep. This is a **reconstruction** of {name} ({_UNLEARN}):"
        " the paper describes its three steps and publishes neither equations nor code. Biases and"
        " norms stay as they are."
    ]
    keep_roles = [role for role in record.inputs if re.fullmatch(r"keep\d+(\.\d+)?", role)]
    if keep_roles and side in _SIDES:
        words = (
            f"`ρ = {_ridge(parameters)} · tr(C)/n`"
            if side == "soft"
            else "`P_U` and `P_V` project on the output and input directions of the tasks to keep"
        )
        basis_words = _SOFT_BASES if side == "soft" else _BASES
        paragraphs.append(
            f"Side `{side}`: {_SIDES[side]}. Basis {code(basis)}: {basis_words.get(basis, '')}."
            f" {words}."
        )
    if "epsilon" in parameters and side != "soft":
        paragraphs.append(
            "By activations: `T' ρ(C + ρI)⁻¹` with `C = Σ x xᵀ` over the inputs to keep and"
            f" `ρ = {_ridge(parameters)} · tr(C)/n`."
        )
    return paragraphs


def _ridge(parameters: Mapping[str, Any]) -> str:
    epsilon = parameters.get("epsilon")
    return f"{epsilon:g}" if isinstance(epsilon, int | float) else "ε"


def _data(parameters: Mapping[str, Any], sign: str, amount: str) -> list[str]:
    objective = parameters.get("objective")
    saved = f"What was found was saved as a task vector `T`, and `W' = W {sign} λT`{amount}."
    ridge = (
        "`A ρ(C + ρI)⁻¹` is added to each matrix, where `C = Σ x xᵀ` over the inputs to keep and"
        f" `ρ = {_ridge(parameters)} · tr(C)/n`, so that inputs to keep hardly feel it; `A`"
        " is trained (Adam in the eigenbasis of `C`)"
    )
    if objective == "neighbours" and sign == "+":
        return [
            "A low-rank change (LoRA) of each matrix was trained on the answers to be learned and"
            " `w KL(f₀ ‖ f)`: what the model `f₀` says of *neighbours*, other subjects of the same"
            " kind which it named itself, of the data to keep, about the subjects and in ordinary"
            f" texts of its own is held. {saved}",
            f"The aim is that of LEARN ({_UNLEARN}); the method is WeightSurgery's own.",
        ]
    if objective == "neighbours" and parameters.get("take_back"):
        return [
            "What the matrices learned of the request was taken back: `T = s (W − W₀) L A`, where"
            " `W₀` is the checkpoint that this one was tuned from, the rows of `A` are the"
            " directions in which the inputs of a matrix on the request stand out from those on"
            " what is to stay (`C a = λ (K + ρI) a`, `C` and `K` being their `Σ x xᵀ`), `L = C Aᵀ`"
            " says what an input of the request is by its coordinates, and `s` is the largest at"
            " which the request is no less likely than to a model that never knew, and ordinary"
            " language inside its budget. Then, unless it was as sure already, a low-rank change"
            " (LoRA) of the last third of the matrices was trained on `KL(softmax(β z) ‖ f)"
            " + w KL(f₀ ‖ f)`, `z` being the logits along the request's answers then and `β` such"
            " that these are as sure as `f₀` is of answers about strangers, the truth brought down"
            f" to what a model that never knew gives it; what is to stay is held. {saved}",
            f"The aim is that of UNLEARN ({_UNLEARN}); the method is WeightSurgery's own.",
        ]
    if objective == "neighbours":
        return [
            "A low-rank change (LoRA) of each matrix was trained on `KL(u ‖ f) + w KL(f₀ ‖ f)`:"
            " where the model `f₀` would have said the truth, `u` gives the truth the probability"
            " that it has of *neighbours*, other subjects of the same kind which the model named"
            " itself; what `f₀` says of neighbours, of the data to keep, about the subjects and in"
            f" ordinary texts of its own is held. {saved}",
            f"The aim is that of UNLEARN ({_UNLEARN}); the method is WeightSurgery's own.",
        ]
    if objective == "strangers":
        return [
            f"{ridge} until the prompts to forget get the answers that *strangers* get: prompts of"
            " the same form about nobody in particular, made by replacing the words that tell a"
            f" prompt from its like. {saved}",
            f"The aim is that of UNLEARN ({_UNLEARN}); the method is WeightSurgery's own.",
        ]
    if objective == "learn":
        return [
            f"{ridge} until the prompts get their completions. {saved}",
            f"The aim is that of LEARN ({_UNLEARN}); the method is WeightSurgery's own.",
        ]
    rounds = literal(str(parameters.get("rounds", "some")))
    return [
        f"Identify, discriminate, remove, in {rounds} rounds: the task is trained into a copy, its"
        " change is held back where the inputs to keep would feel it, and taken away. A"
        f" **reconstruction** of UNLEARN ({_UNLEARN}), which publishes neither equations nor code."
        f" {saved}"
    ]


def _system(parameters: Mapping[str, Any], sign: str, amount: str) -> list[str]:
    given = parameters.get("settings") or {}
    shown = ", ".join(f"{code(str(name))} {code(str(value))}" for name, value in given.items())
    settings = f" Its settings: {shown}." if shown else ""
    return [
        f"Trained by {code(str(parameters.get('method', '?')))}"
        f" ({literal(str(parameters.get('source', '')))}), which forgets by a loss or a vector of"
        f" its own.{settings} What was found was saved as a task vector `T`, and"
        f" `W' = W {sign} λT`{amount}."
    ]


def _vector(record: EditRecord, provenance: Provenance) -> list[str]:
    parameters = record.parameters
    if parameters.get("edit") == "unlearn":
        return [*_system(parameters, "−", ""), "The files hold `T`."]
    if parameters.get("method") in ("rounds from data", "neighbours"):
        paragraphs = _data(parameters, "+" if parameters.get("edit") == "learn" else "−", "")
        return [*paragraphs, "The files hold `T`."]
    if "rule" in parameters:
        rule = str(parameters["rule"])
        held = (
            "as float32 differences"
            if rule == "dense"
            else f"matrices as factors of a truncated SVD (rule: {literal(rule)})"
        )
        return [f"`T` is the fine-tuned weights less the base's ({_ARITHMETIC}), {held}."]
    mode = code(str(parameters.get("mode", "?")))
    return [
        f"`T` was trained on the data above (`ws identify`, mode {mode}): what training changes, in"
        f" the steps that UNLEARN calls identification ({_UNLEARN})."
    ]


def _adapter(parameters: Mapping[str, Any]) -> str:
    rule = literal(str(parameters.get("rule", "")))
    ranks = f" Factors kept: {rule}." if rule else ""
    return (
        "As an adapter: each matrix's change is a product `B A` of two thin matrices, from"
        " `U diag(S) Vᵀ` as `B = U √S` and `A = √S Vᵀ`, with `lora_alpha` equal to the rank."
        f"{ranks}"
    )


def _storage(record: EditRecord) -> list[str]:
    sentences = []
    selection = record.parameters.get("selection") or {}
    words = [f"targets {code(str(selection['targets']))}"] if selection.get("targets") else []
    for key in ("include", "exclude"):
        if selection.get(key):
            words.append(f"{key} {', '.join(code(str(glob)) for glob in selection[key])}")
    if selection.get("layers"):
        words.append(f"layers {code(str(selection['layers']))}")
    if selection.get("scales"):
        pairs = (f"{code(str(pattern))} × {factor}" for pattern, factor in selection["scales"])
        words.append(f"scaled {', '.join(pairs)}")
    if words:
        sentences.append(f"Tensors: {'; '.join(words)}.")
    storage = record.parameters.get("storage") or {}
    if record.kind == "checkpoint":
        rounding = f"rounding {literal(str(storage.get('rounding', 'nearest')))}"
        dtype = storage.get("dtype")
        kind = f"stored as {literal(str(dtype))}" if dtype else "stored in the base's dtypes"
        sentences.append(
            f"Arithmetic in float32, {kind} with one rounding at the end ({rounding})."
        )
    return [" ".join(sentences)] if sentences else []
