"""How a mixture's experts are stored: one by one, or all of them in one tensor.

Every layout is a way to store the same matrices, each of shape (out, in): ``gate`` and ``up``
(width, hidden) and ``down`` (hidden, width) of expert 0, 1, 2 …

==========  ================================================================  ====================
layout      tensors                                                           found in
==========  ================================================================  ====================
one by one  ``experts.K.gate_proj.weight``, ``up_proj``, ``down_proj``        Qwen, DeepSeek, OLMoE
one by one  ``experts.K.w1.weight`` (gate), ``w3`` (up), ``w2`` (down)        Mixtral, Phi, LFM
fused       ``experts.gate_up_proj`` (experts, 2 · width, hidden), ``down_proj``  transformers 5
fused       the same with the last two axes exchanged                         Llama 4, Qwen3-VL
stacked     ``experts.gate_proj`` (experts, width, hidden), ``up_proj`` …      own trainers
==========  ================================================================  ====================

In ``gate_up_proj`` gate comes first. gpt-oss interleaves the two, and is recognised by the biases
beside them: it is never regrouped.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from weightsurgery.checkpoint.names.matrices import Block, Matrix
from weightsurgery.checkpoint.names.prefixes import Shape

__all__ = ["Experts", "Role", "find_experts", "transposed_stacks"]

_ROLES = {
    "gate_proj": "gate",
    "up_proj": "up",
    "down_proj": "down",
    "w1": "gate",
    "w3": "up",
    "w2": "down",
}
_APART = re.compile(r"(?P<block>(?:.+\.)?experts)\.(?P<number>\d+)\.(?P<kind>\w+)\.weight")
_FUSED = re.compile(r"(?P<block>(?:.+\.)?experts)\.(?P<kind>\w+?)(?P<end>\.weight)?")

Role = tuple[int, str]


@dataclass(frozen=True)
class Experts:
    """The experts of one block, in one layout.

    Attributes:
        block: The prefix of their names, as in ``model.layers.0.mlp.experts``.
        layout: Its description, for the record.
        stored: The names of its tensors, with the blocks that each consists of, as pairs (role,
            whether transposed) side by side.
        matrices: Where each matrix lies.
    """

    block: str
    layout: str
    stored: Mapping[str, tuple[tuple[tuple[Role, bool], ...], ...]]
    matrices: Mapping[Role, Matrix]

    def assembled(self, name: str, matrices: Mapping[Role, Matrix]) -> tuple[Block, ...] | None:
        """A stored tensor from another checkpoint's matrices; None where one is missing."""
        blocks = []
        for sides in self.stored[name]:
            if any(role not in matrices for role, _ in sides):
                return None
            pieces = (
                matrices[role].transposed() if transposed else matrices[role]
                for role, transposed in sides
            )
            blocks.append(Block(tuple(pieces)))
        return tuple(blocks)


def find_experts(shapes: Mapping[str, Shape]) -> dict[str, Experts]:
    """The blocks of experts among some tensors, by the prefix of their names.

    Args:
        shapes: Names and shapes. Incomplete blocks and unknown layouts are left out.
    """
    apart, fused = _sorted(shapes)
    blocks: dict[str, Experts] = {}
    for block, tensors in apart.items():
        if block not in fused and (experts := _one_by_one(block, tensors, shapes)):
            blocks[block] = experts
    for block, kinds in fused.items():
        biased = f"{block}.gate_up_proj_bias" in shapes
        if block not in apart and not biased and (experts := _together(block, kinds, shapes)):
            blocks[block] = experts
    return blocks


def transposed_stacks(shapes: Mapping[str, Shape]) -> frozenset[str]:
    """The stacks whose matrices are stored (in, out), gpt-oss's among them, by shapes alone.

    Args:
        shapes: Names and shapes.
    """
    names: set[str] = set()
    for block, kinds in _sorted(shapes)[1].items():
        if set(kinds) == {"gate_up_proj", "down_proj"}:
            both, down = kinds["gate_up_proj"], kinds["down_proj"]
            fused = _fused(block, both, down, shapes)
            if fused is not None and fused.layout != "fused":
                names |= {both, down}
    return frozenset(names)


def _sorted(
    shapes: Mapping[str, Shape],
) -> tuple[dict[str, dict[tuple[int, str], str]], dict[str, dict[str, str]]]:
    """By block: the tensors of single experts, and the tensors that hold all experts."""
    apart: dict[str, dict[tuple[int, str], str]] = {}
    fused: dict[str, dict[str, str]] = {}
    for name, shape in shapes.items():
        if "experts." not in name:
            continue
        match = _APART.fullmatch(name)
        if match is not None and match["kind"] in _ROLES and len(shape) == 2:
            role = (int(match["number"]), match["kind"])
            apart.setdefault(match["block"], {})[role] = name
            continue
        match = _FUSED.fullmatch(name)
        if match is not None and len(shape) == 3:
            fused.setdefault(match["block"], {})[match["kind"]] = name
    return apart, fused


def _one_by_one(
    block: str, tensors: Mapping[tuple[int, str], str], shapes: Mapping[str, Shape]
) -> Experts | None:
    kinds = {kind for _, kind in tensors}
    count = max(number for number, _ in tensors) + 1
    if len(kinds) != 3 or len({_ROLES[kind] for kind in kinds}) != 3 or len(tensors) != 3 * count:
        return None
    matrices, stored = {}, {}
    for (number, kind), name in tensors.items():
        role = (number, _ROLES[kind])
        matrices[role] = Matrix.whole(name, shapes[name])
        stored[name] = (((role, False),),)
    return Experts(block, f"one by one ({', '.join(sorted(kinds))})", stored, matrices)


def _together(block: str, kinds: Mapping[str, str], shapes: Mapping[str, Shape]) -> Experts | None:
    if set(kinds) == {"gate_up_proj", "down_proj"}:
        return _fused(block, kinds["gate_up_proj"], kinds["down_proj"], shapes)
    if len(kinds) == 3 and {_ROLES.get(kind) for kind in kinds} == {"gate", "up", "down"}:
        return _stacked(block, kinds, shapes)
    return None


def _fused(block: str, both: str, down: str, shapes: Mapping[str, Shape]) -> Experts | None:
    (count, a, b), (same, c, d) = shapes[both], shapes[down]
    # One of the two at most, as no width is zero.
    straight, transposed = b == c and a == 2 * d, a == d and b == 2 * c
    if count != same or straight == transposed:
        return None
    hidden, width = (b, d) if straight else (a, c)
    matrices: dict[Role, Matrix] = {}
    for k in range(count):
        at = k * 2 * width * hidden
        if straight:
            gate = Matrix(both, at, (width, hidden), (hidden, 1))
            up = Matrix(both, at + width * hidden, (width, hidden), (hidden, 1))
            low = Matrix(down, k * width * hidden, (hidden, width), (width, 1))
        else:
            gate = Matrix(both, at, (width, hidden), (1, 2 * width))
            up = Matrix(both, at + width, (width, hidden), (1, 2 * width))
            low = Matrix(down, k * width * hidden, (hidden, width), (1, hidden))
        matrices |= {(k, "gate"): gate, (k, "up"): up, (k, "down"): low}
    one: list[tuple[tuple[Role, bool], ...]] = []
    for k in range(count):
        if straight:
            one += [(((k, "gate"), False),), (((k, "up"), False),)]
        else:
            one.append((((k, "gate"), True), ((k, "up"), True)))
    lows = tuple((((k, "down"), transposed),) for k in range(count))
    layout = "fused" if straight else "fused, with axes exchanged"
    return Experts(block, layout, {both: tuple(one), down: lows}, matrices)


def _stacked(block: str, kinds: Mapping[str, str], shapes: Mapping[str, Shape]) -> Experts | None:
    by_role = {_ROLES[kind]: name for kind, name in kinds.items()}
    count, width, hidden = shapes[by_role["gate"]]
    fits = shapes[by_role["up"]] == (count, width, hidden)
    fits &= shapes[by_role["down"]] == (count, hidden, width)
    if not fits or width == hidden:  # square: the orientation is ambiguous
        return None
    matrices, stored = {}, {}
    for role, name in by_role.items():
        _, rows, columns = shapes[name]
        for k in range(count):
            place = (rows, columns), (columns, 1)
            matrices[k, role] = Matrix(name, k * rows * columns, *place)
        stored[name] = tuple((((k, role), False),) for k in range(count))
    return Experts(block, f"stacked ({', '.join(sorted(kinds))})", stored, matrices)
