"""Whether a checkpoint is quantised, by the dtypes and siblings of its tensors.

A float8 or integer matrix with a tensor of scales beside it is codes. So is, for all we can know,
a float8 matrix without any: its scales may have been lost, and nothing says that it has none.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping

from weightsurgery.checkpoint.header import TensorEntry
from weightsurgery.checkpoint.reader import Checkpoint

__all__ = ["FP8", "INPUT_SCALES", "MARKERS", "known_scale", "matrices", "quantisation"]

FP8 = frozenset({"F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ"})

# What stands beside codes in some formats and is no weight: a mark that there are codes, and the
# scales of a layer's inputs.
MARKERS = ("scaled_fp8",)
INPUT_SCALES = ("input_scale", "activation_scale", "scale_input", "k_scale", "v_scale")

# Tensors that quantised checkpoints store beside or instead of a weight: the suffix of the name,
# the suffix of the companion that proves it ("" for the tensor itself), and the scheme. A trained
# parameter may bear such a name too; then the companion is missing or holds real numbers.
_QUANTISED = (
    (".qweight", "", "GPTQ or AWQ"),
    (".weight_packed", "", "compressed-tensors"),
    (".weight_scale_inv", ".weight", "fp8 with block scales"),
    (".weight_scale", ".weight", "fp8 or int8 with scales"),
    (".weight.quant_map", ".weight", "bitsandbytes"),
    (".weight.absmax", ".weight", "bitsandbytes"),
    (".SCB", ".weight", "bitsandbytes int8"),
    ("_scales", "_blocks", "mxfp4"),
)
_CODES = frozenset({"U8", "I8", "I16", "I32", "I64", "U32", "F8_E4M3", "F8_E5M2", "F4"})
_CODES_ALONE = frozenset({"F8_E8M0", "F6_E2M3", "F6_E3M2", "F4"})
_SCALES = frozenset({"F64", "F32", "F16", "BF16", "F8_E8M0"})

# Names of a weight's scales, by which it is multiplied, after the module's or the weight's name.
_OF_MODULE = ("weight_scale_inv", "weight_scale", "scale_weight", "scale", "scale_inv",
              "qscale_weight")  # fmt: skip
_OF_TENSOR = ("_scale_inv", "_scale", ".scale")


def quantisation(checkpoint: Checkpoint) -> str | None:
    """Name the quantisation scheme of a checkpoint, if it has one.

    Looks at ``quantization_config`` in the config, at names (``.qweight``, ``.weight_scale`` …),
    at dtypes that hold codes rather than values, and at what stands beside them.

    Returns:
        A short description with its evidence, or None.
    """
    for key in ("quantization_config", "compression_config"):
        declared = checkpoint.text_config.get(key)
        if isinstance(declared, dict) and declared:
            return f"{declared.get('quant_method', 'unknown scheme')} (config.json)"
    entries = checkpoint.entries
    for name, entry in entries.items():
        for ending, companion, scheme in _QUANTISED:
            if name.endswith(ending):
                stem = name[: -len(ending)]
                codes = entries.get(stem + companion) if companion else entry
                if codes is not None and codes.dtype in _CODES:
                    return f"{scheme} (tensor {name!r})"
        if ".quant_state." in name:
            return f"bitsandbytes 4-bit (tensor {name!r})"
        if entry.dtype in _CODES_ALONE:
            return f"{entry.dtype} codes (tensor {name!r})"
    return _by_siblings(entries)


def _by_siblings(entries: Mapping[str, TensorEntry]) -> str | None:
    kinds = {*FP8, "I8"}
    codes = [entry for entry in entries.values() if entry.dtype in kinds and _is_matrix(entry)]
    if not codes:
        return None
    for marker in MARKERS:
        if marker in entries and entries[marker].dtype in FP8:
            return f"fp8 with scales (tensor {marker!r})"
    beside: dict[str, list[TensorEntry]] = defaultdict(list)
    for entry in entries.values():
        if entry.dtype in _SCALES:
            beside[entry.name.rpartition(".")[0]].append(entry)
    for entry in codes:
        kind = "fp8" if entry.dtype in FP8 else "int8"
        known = known_scale(entries, entry)
        if known is not None:
            return f"{kind} with scales (tensor {known!r})"
        for other in (
            () if kind == "int8" else (*beside[entry.name.rpartition(".")[0]], *beside[entry.name])
        ):
            if _may_be_scale(entry, other):
                return f"{kind} with scales (tensor {other.name!r})"
    plain = next((entry for entry in codes if entry.dtype in FP8), None)
    return None if plain is None else f"fp8 without scales (tensor {plain.name!r})"


def _is_matrix(entry: TensorEntry) -> bool:
    return len(entry.shape) >= 2


def matrices(entries: Mapping[str, TensorEntry]) -> Iterator[TensorEntry]:
    """The float8 matrices."""
    return (entry for entry in entries.values() if entry.dtype in FP8 and _is_matrix(entry))


def known_scale(entries: Mapping[str, TensorEntry], entry: TensorEntry) -> str | None:
    """The name of a matrix's scales, by one of the names in use; None if there are none."""
    module, _, leaf = entry.name.rpartition(".")
    names = [f"{entry.name}{ending}" for ending in _OF_TENSOR]
    if leaf == "weight":
        names = [f"{module}.{ending}" for ending in _OF_MODULE] + names
    for name in names:
        scale = entries.get(name)
        if scale is not None and (scale.dtype in _SCALES or scale.dtype == "U8"):
            return name
    return None


def _may_be_scale(entry: TensorEntry, other: TensorEntry) -> bool:
    """Whether a tensor beside codes has a scale's shape: one number, or one a row or block."""
    leaf = other.name.rpartition(".")[2]
    if "bias" in leaf or leaf in INPUT_SCALES or "norm" in leaf:
        return False
    if other.numel == 1:
        return True
    rows, columns = entry.shape[-2:]
    shape = other.shape[-2:] if len(other.shape) > 1 else (other.numel, 1)
    return shape[0] <= rows and shape[1] <= columns and other.numel < entry.numel and (
        shape == (rows, 1) or shape == (1, columns) or min(entry.shape[-2:]) > max(shape)
    )  # fmt: skip
