"""One small model of experts, written under any names and in any layout."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

Tensors = dict[str, torch.Tensor]

KINDS = {"gate": "gate_proj", "up": "up_proj", "down": "down_proj"}
MIXTRAL = {"gate": "w1", "up": "w3", "down": "w2"}
LAYOUTS = ("apart", "mixtral", "fused", "turned", "stacked")


def truth(
    layers: int = 2,
    experts: int = 3,
    hidden: int = 4,
    width: int = 6,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Tensors:
    """Every matrix by a name of its own: experts as ``layers.L.mlp.experts.K.ROLE``."""
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    found = {"embed_tokens.weight": noise(11, hidden), "norm.weight": noise(hidden)}
    for layer in range(layers):
        at = f"layers.{layer}"
        found[f"{at}.self_attn.q_proj.weight"] = noise(hidden, hidden)
        found[f"{at}.self_attn.o_proj.weight"] = noise(hidden, hidden)
        found[f"{at}.input_layernorm.weight"] = noise(hidden)
        found[f"{at}.mlp.gate.weight"] = noise(experts, hidden)
        for k in range(experts):
            found[f"{at}.mlp.experts.{k}.gate"] = noise(width, hidden)
            found[f"{at}.mlp.experts.{k}.up"] = noise(width, hidden)
            found[f"{at}.mlp.experts.{k}.down"] = noise(hidden, width)
    return found


def stored(
    of: Mapping[str, torch.Tensor],
    layout: str = "apart",
    prefix: str = "model.",
    wrap: Callable[[str], str] = lambda name: name,
) -> Tensors:
    """The model as a checkpoint holds it."""
    found: Tensors = {}
    blocks: dict[str, dict[tuple[int, str], torch.Tensor]] = {}
    for name, tensor in of.items():
        if ".experts." not in name:
            found[name] = tensor
            continue
        block, _, rest = name.partition(".experts.")
        k, role = rest.split(".")
        blocks.setdefault(f"{block}.experts", {})[int(k), role] = tensor
    for block, matrices in blocks.items():
        found |= _experts(block, matrices, layout)
    if layout == "mixtral":
        found = {name.replace(".mlp.", ".block_sparse_moe."): t for name, t in found.items()}
    return {wrap(prefix + name): t.contiguous() for name, t in found.items()}


def _experts(block: str, matrices: Mapping[tuple[int, str], torch.Tensor], layout: str) -> Tensors:
    if layout in ("apart", "mixtral"):
        kinds = KINDS if layout == "apart" else MIXTRAL
        return {f"{block}.{k}.{kinds[role]}.weight": t for (k, role), t in matrices.items()}
    count = 1 + max(k for k, _ in matrices)
    stacks = {r: torch.stack([matrices[k, r] for k in range(count)]) for r in KINDS}
    if layout == "stacked":
        return {f"{block}.{KINDS[role]}": stack for role, stack in stacks.items()}
    both = torch.cat([stacks["gate"], stacks["up"]], 1)
    if layout == "turned":
        both, stacks["down"] = both.transpose(1, 2), stacks["down"].transpose(1, 2)
    return {f"{block}.gate_up_proj": both, f"{block}.down_proj": stacks["down"]}
