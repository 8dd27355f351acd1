"""What a change must not touch, and where that leaves each matrix free to change.

That is the activations of the keep examples and of strangers' prompts of the same forms as theirs
and as those to forget. Without any keep data, texts of random words stand for the rest of the
world.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from weightsurgery.errors import MismatchError
from weightsurgery.learning.activations import BATCH_TOKENS, gathered, linear_inputs, sums_bound
from weightsurgery.learning.constrained import Confinement, confine
from weightsurgery.learning.data import Example
from weightsurgery.learning.statistics import Text, tokens_of
from weightsurgery.learning.strangers import (
    Words,
    halves,
    slot_words,
    special_texts,
    strangers,
    word_salad,
)
from weightsurgery.progress import Progress

__all__ = ["SUMS", "Kept", "confinements", "keep_texts", "words_for"]

SUMS = 4 << 30
"""Most bytes of activation sums at once; larger models run over the texts again."""


@dataclass(frozen=True)
class Kept:
    """What the change must not touch.

    Attributes:
        sets: Keep examples, by data set.
        directions: Input directions of keep vectors, by parameter: ``V``, ``(n, q)``,
            orthonormal.
        gram: Further activation statistics, by parameter: ``C``, ``(n, n)``, or None.
    """

    sets: Sequence[Sequence[Example]] = ()
    directions: Mapping[str, Tensor] = field(default_factory=dict)
    gram: Callable[[str], Tensor | None] = lambda name: None

    @property
    def empty(self) -> bool:
        """Whether there is neither data nor a vector."""
        return not self.sets and not self.directions


def keep_texts(
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    kept: Kept,
    prompts: int,
    seed: int = 0,
) -> list[Text]:
    """The texts whose activations are to stay as they are.

    Args:
        tokenizer: Its vocabulary fills the slots.
        examples: What to forget or learn; none of its prompts comes out. May be empty.
        kept: The keep examples are part of it.
        prompts: Strangers' prompts, in equal parts of the form of ``examples`` and of each keep
            set; where nothing is to be kept, half of them are texts of random words.
        seed: Of the draws.

    Raises:
        DataError: Strangers are to be made up, and there are no words to do so.
    """
    collected: list[Text] = [example for rows in kept.sets for example in rows]
    if not prompts:
        return collected
    sources = [halves(rows) for rows in (examples, *kept.sets)]
    prompt_sets = [[example.prompt for example in rows] for rows in sources]
    words = words_for(tokenizer, prompt_sets)
    salad = word_salad(words, prompts // 2, seed) if kept.empty else []
    share = (prompts - len(salad)) // len(sources)
    for number, (rows, source) in enumerate(zip(sources, prompt_sets, strict=True)):
        drawn = strangers(source, words, share, seed * len(sources) + number, set(prompt_sets[0]))
        if rows and rows[0].templated:  # the template has written the special tokens
            collected += [tokenizer(text, add_special_tokens=False)["input_ids"] for text in drawn]
        else:
            collected += drawn
    return [*collected, *salad]


def words_for(tokenizer: PreTrainedTokenizerBase, sources: Sequence[Sequence[str]]) -> Words:
    """Words to fill slots with: of the data's own slots, and of the vocabulary."""
    special = special_texts(tokenizer)
    return Words(tokenizer, {word for source in sources for word in slot_words(source, special)})


def confinements(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[Text],
    kept: Kept,
    epsilon: float,
    names: Sequence[str],
    progress: Progress | None = None,
) -> dict[str, Confinement]:
    """Where each matrix may change, by the model's activations; matrices of one input share.

    Args:
        model: With the changes made so far.
        tokenizer: Its tokenizer.
        texts: Their activations say what to keep; see :func:`keep_texts`.
        kept: Its directions, and its further statistics.
        epsilon: Ridge relative to the mean eigenvalue.
        names: Of the matrices.
        progress: Called as ``progress(text, done, total)``.

    Returns:
        By name; decomposed on the model's device and held on the CPU, or in its processes.

    Raises:
        MismatchError: The model does not run a matrix on these texts.
        NonFiniteError: Activations hold NaN or infinity.
    """
    layers = linear_inputs(model)
    chosen = {name: layers[name] for name in names}
    rows = tokens_of(tokenizer, texts, model)
    confined: dict[str, Confinement] = {}
    # Decomposed as they come: no more than one run's sums are held.
    bound = sums_bound(model, chosen, SUMS)
    for together, gram, _ in gathered(model, chosen, rows, bound, BATCH_TOKENS, progress):
        shared: Confinement | None = None
        for name in together:
            more, v = kept.gram(name), kept.directions.get(name)
            alone = more is None and v is None
            if not alone or shared is None:
                total = gram if more is None else gram + more.to(gram.device, gram.dtype)
                transposed = not isinstance(layers[name][0], nn.Linear)
                inside = confine(total, epsilon, v, transposed).held_for(model)
                shared = inside if alone else shared
            confined[name] = inside if not alone or shared is None else shared
    for name in names:
        if name not in confined:
            raise MismatchError(
                f"tensor {name!r}: the model does not run it on these examples",
                f"Leave it out with --exclude '{name}'.",
            )
    return {name: confined[name] for name in names}
