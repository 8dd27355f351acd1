"""Loading a causal language model and its tokenizer, in silence and whole."""

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

from weightsurgery.algebra.devices import pick_device, ran_out
from weightsurgery.checkpoint.quantised import FP8, quantisation
from weightsurgery.checkpoint.reader import Checkpoint
from weightsurgery.errors import (
    CheckpointError,
    CorruptCheckpointError,
    EditError,
    SourceError,
    UnsupportedCheckpointError,
)
from weightsurgery.learning.sharding import is_sharded, loading_options, own_sharding
from weightsurgery.suggestions import one_of

__all__ = [
    "DEVICE_MAPS",
    "TOKENIZER_FILES",
    "DeviceMap",
    "PreTrainedModel",
    "PreTrainedTokenizerBase",
    "checked_map",
    "context_length",
    "for_writing",
    "halved",
    "halves_sooner",
    "in_halves",
    "load_model",
    "load_tokenizer",
    "quiet",
    "refuse_codes",
    "refuse_offloaded",
    "sooner_in_halves",
    "tokenizer_files",
]

DeviceMap = str | Mapping[str, str | int]
"""Placement of a model on devices; see accelerate's ``device_map``."""

DEVICE_MAPS = ("auto", "balanced", "balanced_low_0", "sequential")
"""Those that accelerate makes itself, by the memory there is."""

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "vocab.json",
    "merges.txt",
)
"""Files that a tokenizer may be stored in: any of them decides how data become tokens."""


@contextmanager
def quiet() -> Iterator[None]:
    """Silences the log lines and progress bars of transformers inside; as they were, after."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    try:
        logging.set_verbosity_error()  # type: ignore[no-untyped-call]
        logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def load_tokenizer(checkpoint: str | Path) -> PreTrainedTokenizerBase:
    """Loads a checkpoint's tokenizer, printing nothing.

    Its `model_max_length` is what the model was made to read, where the config says so.

    Raises:
        SourceError: There is no such directory, or no tokenizer in it.
    """
    _check_directory(checkpoint)
    with quiet(), _named(checkpoint, "tokenizer"):
        # Without this argument it prompts, and takes a "y" off any standard input.
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            checkpoint, trust_remote_code=False
        )
        # What tokenizers say themselves is often another model's, or nothing.
        if (length := _positions(checkpoint)) is not None:
            tokenizer.model_max_length = length
    return tokenizer


def tokenizer_files(checkpoint: str | Path) -> list[Path]:
    """The files of a checkpoint's tokenizer: a vector that was trained is known by them, too."""
    paths = (Path(checkpoint) / name for name in TOKENIZER_FILES)
    return [path for path in paths if path.is_file()]


def _positions(checkpoint: str | Path) -> int | None:
    """The context length in a checkpoint's config, if it has one."""
    try:
        config = AutoConfig.from_pretrained(checkpoint, trust_remote_code=False)
    except Exception:  # whoever loads the model says what is wrong with it
        return None
    return _reads(config)


def load_model(
    checkpoint: str | Path,
    device: str = "cpu",
    device_map: DeviceMap | None = None,
    shared: bool = False,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Loads a causal language model and its tokenizer, printing nothing.

    Args:
        checkpoint: A directory with both.
        device: Where the weights go, in the dtype they are stored in; see `pick_device`.
        device_map: Spread them instead, as accelerate says: ``auto``, or modules and their places.
        shared: Share them among processes that were launched for that; see
            :mod:`weightsurgery.learning.sharding`.

    Returns:
        The model, in evaluation mode, and the tokenizer.

    Raises:
        SourceError: There is no such directory or device, or no causal language model in it that
            transformers can load.
        CorruptCheckpointError: Weights of the model are missing.
        UnsupportedCheckpointError: They are float8 codes, and its config does not say so.
        EditError: Such a map does not exist, or leaves no place for the embedding; or the model is
            to be shared in a way that is not done.
    """
    target = pick_device(device)
    spread: dict[str, Any] = {} if device_map is None else {"device_map": checked_map(device_map)}
    if shared:
        spread |= loading_options(target)
    _check_directory(checkpoint)
    refuse_codes(checkpoint)
    tokenizer = load_tokenizer(checkpoint)
    with quiet(), own_sharding(), _named(checkpoint, "model"):
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            checkpoint, output_loading_info=True, trust_remote_code=False, **spread
        )
    model, info = loaded
    if missing := sorted(info["missing_keys"]):
        # transformers would go on with random ones.
        raise CorruptCheckpointError(
            f"{checkpoint}: {len(missing)} weights are missing, the first {missing[0]}",
            "Restore the files; 'ws verify' checks an output of ws.",
        )
    if not spread:
        model.to(target)
    elif model.device.type == "meta":
        raise EditError(
            f"{checkpoint}: this map leaves no place in memory for the embedding, where inputs go",
            "Give a map in which it stays on a device.",
        )
    model.eval()
    return model, tokenizer


def checked_map(given: DeviceMap) -> DeviceMap:
    """A map of modules to devices, or the name of one.

    Raises:
        EditError: There is none of this name.
    """
    if isinstance(given, str) and given not in DEVICE_MAPS:
        raise EditError(f"device map {given!r}", one_of(given, DEVICE_MAPS))
    return given


def refuse_offloaded(model: torch.nn.Module, what: str) -> None:
    """Refuse to work on weights that are offloaded, and come into memory only as they are used.

    Raises:
        EditError: The model's device map left them on the processor or on disk.
    """
    away = [name for name, each in model.named_parameters() if each.device.type == "meta"]
    if away:
        raise EditError(
            f"{what}: {len(away)} weights are not in memory, as the device map found no place for"
            f" them, {away[0]!r} for one",
            "Take more GPUs, or run it with --device cpu.",
        )


def halves_sooner(device: torch.device) -> bool:
    """Whether it is a CPU that multiplies bfloat16 itself (AMX, AVX-512)."""
    able = torch.cpu.get_capabilities()
    return device.type == "cpu" and bool(able.get("amx_bf16") or able.get("avx512_bf16"))


def sooner_in_halves(model: PreTrainedModel) -> bool:
    """Whether weights are float32, and whole, where :func:`halves_sooner`."""
    return not is_sharded(model) and model.dtype == torch.float32 and halves_sooner(model.device)


@contextmanager
def in_halves(model: PreTrainedModel) -> Iterator[None]:
    """Layers multiply in bfloat16 inside, where :func:`sooner_in_halves`.

    What is compared must be of one kind: a model run so is some 4e-4 nats a token from itself in
    float32, and 1e-5 from itself run so in other batches. Trained towards the former, it would
    learn to undo the rounding.

    Args:
        model: Its weights stay as they are.
    """
    with torch.autocast("cpu", torch.bfloat16, enabled=sooner_in_halves(model)):
        yield


def refuse_codes(checkpoint: str | Path) -> None:
    """Refuse float8 weights that transformers would take for numbers, as their config is silent.

    Raises:
        UnsupportedCheckpointError: There are such.
    """
    try:
        with Checkpoint.open(str(checkpoint)) as opened:
            declared = opened.text_config.get("quantization_config")
            codes = [entry for entry in opened.entries.values() if entry.dtype in FP8]
            scheme = quantisation(opened) if codes and not declared else None
    except (CheckpointError, SourceError):
        return  # weights of another format, or none: whoever loads them says so
    if scheme is not None:
        raise UnsupportedCheckpointError(
            f"{checkpoint}: {scheme}, and its config does not say so: the model that is loaded"
            " would take codes for weights",
            f"Write the numbers first ('ws add {checkpoint} VECTOR --scale 0 --dequantize -o DIR'),"
            " and use DIR.",
        )


@contextmanager
def halved(model: Any) -> Iterator[None]:
    """Frozen weights of linear layers are bfloat16 inside, where :func:`in_halves` rounds them.

    Which it does at each pass, and a pass of few tokens takes a quarter of its time for that. What
    is computed is the same to the bit. The head stays, as logits are float32.

    Args:
        model: Or one with an adapter. The weights are its own again afterwards.
    """
    head, before = model.get_output_embeddings(), []
    if sooner_in_halves(model):
        for module in model.modules():
            linear = isinstance(module, torch.nn.Linear) and module is not head
            if linear and not module.weight.requires_grad:
                before.append((module.weight, module.weight.data))
    try:
        for weight, data in before:
            weight.data = data.bfloat16()
        yield
    finally:
        for weight, data in before:
            weight.data = data


def for_writing(model: PreTrainedModel) -> PreTrainedModel:
    """The model itself, or a bfloat16 copy of it that writes the same kind of text sooner.

    A copy where :func:`sooner_in_halves`: there it takes half the time. The copy's outputs need not
    agree to the last digit.

    Args:
        model: Left as it is.
    """
    if not sooner_in_halves(model):
        return model
    written: Any = copy.deepcopy(model)
    return written.to(torch.bfloat16)  # type: ignore[no-any-return]


def context_length(model: PreTrainedModel) -> int | None:
    """The model's context length in tokens; None where its config has none."""
    return _reads(model.config)


def _reads(config: Any) -> int | None:
    length = getattr(config.get_text_config(), "max_position_embeddings", None)
    return length if isinstance(length, int) and length > 0 else None


def _check_directory(checkpoint: str | Path) -> None:
    if not Path(checkpoint).is_dir():
        raise SourceError(
            f"{checkpoint}: is no directory with a checkpoint",
            "Check the path; download a repository of the Hub first.",
        )
    if (Path(checkpoint) / "adapter_config.json").is_file() and not (
        Path(checkpoint) / "config.json"
    ).is_file():
        raise SourceError(
            f"{checkpoint}: is an adapter (adapter_config.json), no model by itself",
            "Put it into its base first: ws add BASE ADAPTER -o OUT.",
        )


@contextmanager
def _named(checkpoint: str | Path, what: str) -> Iterator[None]:
    """Says which checkpoint it was that transformers failed to load."""
    try:
        yield
    except Exception as error:  # what transformers and tokenizers raise has no common base
        if ran_out(error):
            raise
        lines = str(error).strip().splitlines() or [type(error).__name__]
        reason = " ".join(lines) if lines[0].rstrip().endswith(":") else lines[0]
        raise SourceError(
            f"{checkpoint}: transformers cannot load a {what} from it: {reason}",
            "Name a directory with config, weights and tokenizer of a causal language model.",
        ) from error
