"""A model's predictions of every token of a text, and its greedy continuations."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteria,
)

from weightsurgery.errors import DataError, NonFiniteError
from weightsurgery.learning.continued import batches, continued
from weightsurgery.learning.data import Collator, Encoded, padding_token
from weightsurgery.learning.models import context_length
from weightsurgery.learning.sharding import unrecorded
from weightsurgery.progress import Progress

__all__ = [
    "Forced",
    "Stop",
    "check_lengths",
    "end_tokens",
    "greedy",
    "teacher_forced",
]

Stop = Callable[[int, str], bool]
"""Whether a continuation need not go on: called with its prompt's number, from 0, and its text."""

_ENDS_OF_TEXT = {
    "<|endoftext|>", "<|end_of_text|>", "<|im_end|>", "<|eot_id|>", "<|end|>", "<end_of_turn>",
    "</s>", "<eos>",
}  # fmt: skip


@dataclass(frozen=True)
class Forced:
    """A model's predictions for the tokens of a completion, each given all before it.

    Attributes:
        labels: The tokens, int64, shape (tokens,), on the CPU as all of these.
        predicted: The likeliest ones instead, int64, shape (tokens,).
        nll: Negative log-likelihood of each label in nats, float64, shape (tokens,).
        end_length: How many of the last only say that the completion is over.
        beyond_end: How many of these come after EOS, where generation has stopped: the line feed
            that some chat templates put there.
        spread: With ``spread``, mean and variance of the log-likelihood under the model's own
            prediction, float64, shape (tokens, 2).
    """

    labels: Tensor
    predicted: Tensor
    nll: Tensor
    end_length: int
    beyond_end: int = 0
    spread: Tensor | None = None

    @property
    def right(self) -> Tensor:
        """Which predictions are right, bool, shape (tokens,)."""
        return self.labels == self.predicted

    def ended(self, values: Tensor) -> Tensor:
        """Of one value per token those of the completion and its end, up to EOS."""
        return values[: len(values) - self.beyond_end]

    def answer(self, values: Tensor) -> Tensor:
        """Of one value per token those of the completion without its end."""
        return values[: len(values) - self.end_length]


def check_lengths(model: PreTrainedModel, encoded: Sequence[Encoded], where: str) -> None:
    """Refuses texts that are longer than the model was made to read.

    Raises:
        DataError: One is; named by its number, from 1.
    """
    limit = context_length(model)
    for number, row in enumerate(encoded, start=1):
        if limit is not None and len(row.input_ids) > limit:
            raise DataError(
                f"{where}, example {number}: has {len(row.input_ids)} tokens; the model reads"
                f" {limit}",
                "Shorten or split the text.",
            )


@unrecorded()
def teacher_forced(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    encoded: Sequence[Encoded],
    batch_size: int = 32,
    stage: str = "",
    progress: Progress | None = None,
    spread: bool = False,
) -> list[Forced]:
    """Predicts every token of the completions given the ones before it, one forward pass per batch.

    Args:
        model: A causal language model; left in evaluation mode.
        tokenizer: Its tokenizer.
        encoded: Texts, each with a prompt of at least one token.
        batch_size: Texts per forward pass.
        stage: What to call this to `progress`.
        progress: Called after every batch.
        spread: Also measure how sure the model is at every token; see `Forced`.

    Returns:
        The predictions, in the order of `encoded`.

    Raises:
        NonFiniteError: A prediction is NaN, or a label's likelihood is not finite.
    """
    model.eval()  # type: ignore[no-untyped-call]
    collate = Collator(padding_token(tokenizer))
    predictions: list[Forced | None] = [None] * len(encoded)
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
        # Logits are needed from the last prompt token on: vocabularies can be large.
        first = min(row.prompt_length for row in rows) - 1
        positions = labels.shape[1] - first
        logits = model(**batch, use_cache=False, logits_to_keep=positions).logits[:, -positions:]
        for place, (index, row) in enumerate(zip(indices, rows, strict=True)):
            begin, stop = row.prompt_length, len(row.input_ids)
            wanted = labels[place, begin:stop]
            given = logits[place, begin - 1 - first : stop - 1 - first]
            predicted, nll = _read(given, wanted)
            _check_finite(given, nll, index)
            predictions[index] = Forced(
                wanted.cpu(),
                predicted.cpu(),
                nll.cpu(),
                row.end_length,
                _beyond(row, tokenizer.eos_token_id),
                _spread(given).cpu() if spread else None,
            )
        if progress is not None:
            progress(stage, start + len(indices), len(order))
    return [each for each in predictions if each is not None]


def _beyond(row: Encoded, eos: int | None) -> int:
    """How many tokens follow the EOS that ends a completion."""
    end = row.input_ids[len(row.input_ids) - row.end_length :]
    return len(end) - 1 - end.index(eos) if eos in end else 0


def _read(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The likeliest tokens, and the labels' negative log-likelihoods in float64."""
    exact = logits.float()
    chosen = exact.gather(-1, labels[:, None])[:, 0].double()
    return logits.argmax(-1), exact.logsumexp(-1).double() - chosen


def _spread(logits: Tensor) -> Tensor:
    """Mean and variance of the log-likelihood of what a model predicts, at every position."""
    logs = logits.float().log_softmax(-1)
    p = logs.exp()
    # A token that cannot come adds nothing: 0 log 0 = 0.
    weighted = (p * logs).nan_to_num(0.0)
    mean = weighted.sum(-1).double()
    square = (weighted * logs).nan_to_num(0.0).sum(-1).double()
    return torch.stack((mean, square - mean**2), -1)


def _check_finite(logits: Tensor, nll: Tensor, index: int) -> None:
    if bool(logits.isnan().any()) or not bool(nll.isfinite().all()):
        raise NonFiniteError(
            f"the model's predictions for example {index + 1} are NaN or infinite",
            "Check the weights: 'ws verify' for an output of ws, 'ws diff' against its base; an"
            " edit in float16 may have overflowed.",
        )


@unrecorded()
def greedy(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    limits: Sequence[int],
    batch_size: int = 32,
    stage: str = "",
    progress: Progress | None = None,
    stop: Stop | None = None,
) -> list[list[int]]:
    """Continues prompts with the likeliest token, again and again.

    The model's own generation settings (sampling, penalties, lengths) are left out; its EOS
    tokens are heeded, and so are special tokens by whose name a text is over: a chat model that
    goes on with a plain text ends it as it was pretrained to.

    Args:
        model: A causal language model.
        tokenizer: Its tokenizer.
        prompts: Tokens, at least one in each.
        limits: How many tokens to add to each at most, at least 1.
        batch_size: Prompts per forward pass.
        stage: What to call this to `progress`.
        progress: Called after every batch.
        stop: Called after every token, so that nothing is generated that nobody reads.

    Returns:
        The tokens added to each, in order, without an EOS; the one after which `stop` was true is
        the last.
    """
    ends = end_tokens(model, tokenizer)
    continuations: list[list[int]] = [[] for _ in prompts]
    waiting = batches(prompts, limits, batch_size)
    done = 0
    while waiting:
        indices = waiting.pop()
        steps = max(limits[index] for index in indices)
        longest = max(len(prompts[index]) for index in indices)
        limit = context_length(model)
        if limit is not None and longest + steps > limit and len(indices) > 1:
            # Together, some would run out of the context for the sake of the others.
            half = len(indices) // 2
            waiting += [indices[:half], indices[half:]]
            continue
        if limit is not None and longest <= limit < longest + steps:
            # Some models have no further positions; the last token that they read fills the last.
            steps = limit - longest + 1
        criteria = [] if stop is None else [_StopCriterion(tokenizer, indices, stop)]
        out = continued(
            model,
            [prompts[index] for index in indices],
            padding_token(tokenizer),
            GenerationConfig(  # type: ignore[no-untyped-call]
                max_new_tokens=steps,
                do_sample=False,
                use_cache=True,
                eos_token_id=sorted(ends) or None,
                pad_token_id=padding_token(tokenizer),
            ),
            criteria,
        )
        for index, tokens in zip(indices, out, strict=True):
            over = next((n for n, token in enumerate(tokens) if token in ends), len(tokens))
            for criterion in criteria:
                over = min(over, criterion.lengths.get(index, over))
            continuations[index] = tokens[: min(over, limits[index])]
        done += len(indices)
        if progress is not None:
            progress(stage, done, len(prompts))
    return continuations


class _StopCriterion(StoppingCriteria):
    """Calls ``stop`` for each row of a batch, and remembers after how many tokens it was true."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, indices: Sequence[int], stop: Stop
    ) -> None:
        self._tokenizer, self._indices, self._stop = tokenizer, indices, stop
        self._begun: int | None = None
        self.lengths: dict[int, int] = {}

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: object) -> Tensor:
        if self._begun is None:  # first called when there is one token more
            self._begun = input_ids.shape[1] - 1
        rows = input_ids[:, self._begun :].tolist()
        for index, tokens in zip(self._indices, rows, strict=True):
            if index not in self.lengths:
                text = str(self._tokenizer.decode(tokens, skip_special_tokens=True))
                if self._stop(index, text):
                    self.lengths[index] = len(tokens)
        over = [index in self.lengths for index in self._indices]
        return torch.tensor(over, device=input_ids.device)


def end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """The tokens that end a text: tokenizer's, generation settings', and special ones by name."""
    settings = getattr(model, "generation_config", None)
    eos = getattr(settings, "eos_token_id", None)
    listed = eos if isinstance(eos, list) else [eos]
    special = zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True)
    named = [token for name, token in special if name in _ENDS_OF_TEXT]
    return {int(token) for token in (*listed, tokenizer.eos_token_id, *named) if token is not None}
