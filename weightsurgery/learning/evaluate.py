"""Scores of a checkpoint: how many completions it gives exactly."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

from weightsurgery.errors import SourceError
from weightsurgery.learning.data import (
    IGNORED,
    Collator,
    Example,
    encode_all,
    padding_token,
    read_examples,
)

__all__ = ["exact_match", "exact_matches", "load_model", "quiet", "score_checkpoint"]


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


def load_model(
    checkpoint: str | Path, device: str = "cpu"
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Loads a causal language model and its tokenizer, printing nothing.

    Args:
        checkpoint: A directory with both.
        device: Where the weights go, in the dtype they are stored in.

    Returns:
        The model, in evaluation mode, and the tokenizer.

    Raises:
        SourceError: There is no such directory.
    """
    if not Path(checkpoint).is_dir():
        raise SourceError(
            f"{checkpoint}: is no directory with a checkpoint",
            "Check the path; download a repository of the Hub first.",
        )
    with quiet():
        tokenizer = AutoTokenizer.from_pretrained(checkpoint)
        model = AutoModelForCausalLM.from_pretrained(checkpoint)
    model.to(device)  # type: ignore[arg-type]
    model.eval()  # type: ignore[no-untyped-call]
    return model, tokenizer


def exact_match(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    batch_size: int = 128,
    require_end: bool = True,
) -> float:
    """The share of examples whose completion greedy decoding gives exactly.

    Args:
        model: A causal language model; left in evaluation mode.
        tokenizer: Its tokenizer.
        examples: At least one.
        batch_size: Examples per forward pass.
        require_end: The model must also stop after the completion, by the tokenizer's EOS.

    Returns:
        Accuracy in [0, 1].

    Raises:
        ValueError: There are no examples.
    """
    if not examples:
        raise ValueError("exact_match needs at least one example")
    right = exact_matches(model, tokenizer, examples, batch_size, require_end)
    return int(right.sum()) / len(right)


@torch.inference_mode()
def exact_matches(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    batch_size: int = 128,
    require_end: bool = True,
) -> Tensor:
    """Which examples greedy decoding completes exactly; see `exact_match`.

    One forward pass serves instead of a generation: greedy decoding gives exactly the completion
    if and only if every token of it is the likeliest after the prompt and the tokens before it.

    Returns:
        Bool, shape (examples,), on the CPU.
    """
    model.eval()  # type: ignore[no-untyped-call]
    encoded = encode_all(tokenizer, examples)
    collate = Collator(padding_token(tokenizer))
    right = torch.zeros(len(encoded), dtype=torch.bool)
    # Like lengths together: little padding, and few positions that need logits.
    order = sorted(
        range(len(encoded)),
        key=lambda index: (len(encoded[index].input_ids), encoded[index].prompt_length),
    )
    for start in range(0, len(order), batch_size):
        indices = order[start : start + batch_size]
        rows = [encoded[index] for index in indices]
        batch = {name: value.to(model.device) for name, value in collate(rows).items()}
        labels = batch.pop("labels")
        if not require_end and tokenizer.eos_token_id is not None:
            ends = torch.tensor([len(row.input_ids) - 1 for row in rows], device=labels.device)
            labels[torch.arange(len(rows), device=labels.device), ends] = IGNORED
        # Logits are needed from the last prompt token on: vocabularies can be large.
        first = min(row.prompt_length for row in rows) - 1
        kept = labels.shape[1] - first
        logits = model(**batch, use_cache=False, logits_to_keep=kept).logits
        predicted = logits[:, -kept:].argmax(-1)[:, :-1]
        wanted = labels[:, first + 1 :]
        right[indices] = ((predicted == wanted) | (wanted == IGNORED)).all(dim=1).cpu()
    return right


def score_checkpoint(
    checkpoint: str | Path,
    data: Mapping[str, str | Path],
    batch_size: int = 128,
    device: str = "cpu",
    require_end: bool = True,
) -> dict[str, float]:
    """Exact-match accuracy of a checkpoint on several data sets.

    Args:
        checkpoint: Directory of a causal language model with its tokenizer.
        data: Per name a JSONL file of prompts and completions; see `data.read_examples`.
        batch_size: Examples per forward pass.
        device: Where the forward passes run.
        require_end: See `exact_match`.

    Returns:
        Accuracy in [0, 1] per name, in the order of `data`.

    Raises:
        DataError: A data file cannot be read.
        SourceError: There is no such checkpoint.
    """
    # All files are read first: an error in the last one should not cost a model's loading.
    examples = {name: read_examples(path) for name, path in data.items()}
    model, tokenizer = load_model(checkpoint, device)
    return {
        name: exact_match(model, tokenizer, rows, batch_size, require_end)
        for name, rows in examples.items()
    }
