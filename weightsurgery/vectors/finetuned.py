"""The difference between a fine-tuned checkpoint and its base, as a change."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from weightsurgery.checkpoint.layout import ARITHMETIC_DTYPES, TensorEntry
from weightsurgery.checkpoint.names.matching import find_match
from weightsurgery.checkpoint.names.restated import Restated
from weightsurgery.checkpoint.naming import kind_of, twin_candidates
from weightsurgery.checkpoint.quantised import matrices, quantisation
from weightsurgery.checkpoint.reader import Checkpoint
from weightsurgery.checkpoint.remarks import partitioned
from weightsurgery.checkpoint.tied import same_bytes, stored_name, tied_copies
from weightsurgery.errors import EditError, MismatchError, UnsupportedCheckpointError
from weightsurgery.suggestions import one_of
from weightsurgery.vectors.deltas import Delta, DenseDelta, Stored
from weightsurgery.vectors.fitted import LEAST, Fitted, numbers, shapes_of

__all__ = ["FinetunedChange", "refuse_quantised"]

VOCABULARY_POLICIES = ("error", "common-rows", "base")
MISSING_POLICIES = ("error", "base")


def refuse_quantised(checkpoint: Checkpoint) -> None:
    """Refuse checkpoints that hold codes, or whose weights were partitioned over processes.

    Raises:
        UnsupportedCheckpointError: Adding or scaling codes gives noise, not weights.
    """
    for name in partitioned(checkpoint.entries):
        raise UnsupportedCheckpointError(
            f"{checkpoint.source.name}: tensor {name!r} is [0]: its weights were partitioned over"
            " processes (DeepSpeed ZeRO-3, FSDP) when it was saved, and are not here",
            "Gather them: run zero_to_fp32.py on the training's checkpoint, or save again with"
            " stage3_gather_16bit_weights_on_model_save (FSDP: a full state dict).",
        )
    scheme = quantisation(checkpoint)
    if scheme is not None:
        raise UnsupportedCheckpointError(
            f"{checkpoint.source.name}: quantised, {scheme}; its stored numbers are codes,"
            " on which weight arithmetic means nothing",
            "Pass --dequantize to read float8 codes as the numbers they stand for, or use the"
            " unquantised checkpoint it was made from."
            if any(matrices(checkpoint.entries))
            else "Use the unquantised checkpoint it was made from, or dequantise it first.",
        )


class FinetunedChange:
    """``finetuned − base``, tensor by tensor, whatever the shards of either.

    Names, shapes, ties and vocabularies are compared when it is made, from headers alone. Changes
    that a trainer or a saver made to names and layouts are undone where names and shapes show them
    unambiguously; see :mod:`weightsurgery.checkpoint.names.matching`.

    Args:
        base: The base.
        finetuned: The fine-tuned checkpoint.
        vocab: What to do when embeddings or head have another number of rows: ``"error"``,
            ``"common-rows"`` (the rest does not change) or ``"base"`` (these tensors do not
            change).
        missing: What to do when a tensor is on one side only: ``"error"`` or ``"base"`` (it does
            not change; what only the fine-tuned has is ignored).

    Raises:
        MismatchError: The two do not fit, and the policies do not allow it.
        UnsupportedCheckpointError: One of them is quantised.
    """

    def __init__(
        self,
        base: Checkpoint,
        finetuned: Checkpoint,
        vocab: str = "error",
        missing: str = "error",
        partial: bool = False,
    ) -> None:
        for value, allowed in ((vocab, VOCABULARY_POLICIES), (missing, MISSING_POLICIES)):
            if value not in allowed:
                raise EditError(f"policy {value!r}", one_of(value, allowed))
        refuse_quantised(base)
        refuse_quantised(finetuned)
        match = find_match(shapes_of(base), shapes_of(finetuned), finetuned.source.name)
        self.base = base
        self.finetuned = finetuned if match.is_identity else Restated(finetuned, match)
        self.label = finetuned.source.name.rstrip("/").rsplit("/", 1)[-1] or "finetuned"
        self._vocab, self._missing, self._partial = vocab, missing, partial
        # Base name -> (name in the fine-tuned, rows that count or None for all).
        self._pairs: dict[str, tuple[str, int | None]] = {}
        self._lacking: list[TensorEntry] = []
        copies = tied_copies(base)
        for name, entry in base.entries.items():
            pair = self._pair(name, entry)
            if pair is not None:
                self._pairs[name] = pair
        if not self._pairs:
            raise MismatchError(
                f"{finetuned.source.name}: not one tensor in common with {base.source.name}",
                "They are different architectures: name the base it was trained from.",
            )
        self._check_ties(copies)
        extra = self._extra()
        self.fitted = self._fitted(extra, match.facts())
        if missing == "error":
            self._refuse_misfits(extra)
        self.fitted.check(partial)

    @property
    def notes(self) -> tuple[str, ...]:
        """How the fine-tuned checkpoint's numbers were converted, a line each."""
        return self.finetuned.notes

    def _where(self, name: str) -> str:
        return f"tensor {name!r} of {self.finetuned.source.name}"

    def _pair(self, name: str, entry: TensorEntry) -> tuple[str, int | None] | None:
        other_name = stored_name(self.finetuned, name, self.base)
        if other_name is None:
            if entry.dtype in ARITHMETIC_DTYPES:
                self._lacking.append(entry)
            return None
        other = self.finetuned.entry(other_name)
        if entry.dtype not in ARITHMETIC_DTYPES:
            return None  # integers and booleans are indices and masks: copied
        if other.dtype not in ARITHMETIC_DTYPES:
            raise MismatchError(
                f"{self._where(name)}: dtype {other.dtype}, the base's is {entry.dtype}",
                "Exclude the tensor with --exclude, or use another checkpoint.",
            )
        if entry.shape == other.shape:
            return other_name, None
        if entry.shape[1:] == other.shape[1:] and self._is_vocabulary(name):
            return self._common_rows(name, entry, other)
        raise MismatchError(
            f"{self._where(name)}: shape {list(other.shape)}, the base's is {list(entry.shape)}",
            "Only checkpoints of one architecture and size can be subtracted.",
        )

    def _is_vocabulary(self, name: str) -> bool:
        return kind_of(name) in ("embeddings", "head")

    def _common_rows(
        self, name: str, entry: TensorEntry, other: TensorEntry
    ) -> tuple[str, int | None] | None:
        if self._vocab == "base":
            return None
        if self._vocab == "error":
            raise MismatchError(
                f"{self._where(name)}: {other.rows} rows, the base has {entry.rows}:"
                " the vocabularies differ",
                "Pass --vocab common-rows (rows both have) or --vocab base (leave them alone).",
            )
        common = min(entry.rows, other.rows)
        moved = _moved_token(self.base, self.finetuned, common)
        if moved is not None:
            raise MismatchError(
                f"{self.finetuned.source.name}: token {moved[0]} is {moved[2]!r}, in the base"
                f" {moved[1]!r}: the common rows mean different tokens",
                "Pass --vocab base to leave embeddings and head alone.",
            )
        return other.name, common

    def _check_ties(self, copies: Mapping[str, str]) -> None:
        """A head the base ties to its embedding must be tied in the fine-tuned too."""
        for copy, original in copies.items():
            here, there = self._pairs.get(copy), self._pairs.get(original)
            if here is None or there is None or here[0] == there[0]:
                continue
            if not same_bytes(self.finetuned, here[0], there[0]):
                self._untied(copy, original)
                self._pairs[copy] = there

    def _untied(self, head: str, embedding: str) -> None:
        if self._missing == "error":
            raise MismatchError(
                f"{self._where(head)}: trained apart from {embedding!r}, to which the base ties it",
                "Pass --missing base to let the head follow the embedding.",
            )

    def _extra(self) -> list[TensorEntry]:
        """Tensors that only the fine-tuned has, apart from copies of tensors that both have."""
        used = {name for name, _ in self._pairs.values()} | set(self.base.entries)
        extra = []
        for name, entry in self.finetuned.entries.items():
            if name in used or entry.dtype not in ARITHMETIC_DTYPES:
                continue
            twins = [twin for twin in twin_candidates(name, list(used)) if twin in used]
            twins = [twin for twin in twins if twin in self.finetuned.entries]
            if any(same_bytes(self.finetuned, name, twin) for twin in twins):
                continue
            if twins:
                self._untied(name, twins[0])
            extra.append(entry)
        return extra

    def _fitted(self, extra: list[TensorEntry], names: Mapping[str, Any]) -> Fitted:
        theirs, ours = (
            [entry for entry in checkpoint.entries.values() if entry.dtype in ARITHMETIC_DTYPES]
            for checkpoint in (self.finetuned, self.base)
        )
        return Fitted(
            self.label,
            len(theirs) - len(extra),
            len(theirs),
            1 - numbers(extra) / max(1, numbers(theirs)),
            "numbers",
            len(self._lacking),
            len(ours),
            numbers(self._lacking) / max(1, numbers(ours)),
            names,
        )

    def _refuse_misfits(self, extra: list[TensorEntry]) -> None:
        """Refuse tensors that one side lacks, with a remedy that fits the case.

        Raises:
            MismatchError: There are some.
        """
        if not self._lacking and not extra:
            return
        fitted, base = self.fitted, self.base.source.name
        parts = []
        if self._lacking:
            parts.append(
                f"{self._where(self._lacking[0].name)}: missing; the base {base} has it"
                f" ({fitted.missing} of the base's {fitted.base} tensors are missing,"
                f" {fitted.missing_share:.1%} of its numbers)"
            )
        if extra:
            parts.append(
                f"{self._where(extra[0].name)}: the base {base} has no such tensor"
                f" ({len(extra)} of {fitted.of} tensors, {1 - fitted.share:.1%} of its numbers)"
            )
        parts += [note.removeprefix(f"{self.label}: ").rstrip(".") for note in fitted.done()]
        if fitted.share < LEAST:
            remedy = (
                "Name the base it was trained from, or rename its tensors as the base calls them"
                " ('ws inspect -v' lists them): most of it fits nothing here."
            )
        elif not self._lacking:
            remedy = "Pass --missing base to ignore what only the fine-tuned has."
        elif fitted.missing_share > 1 - LEAST:
            remedy = (
                "Use the whole checkpoint; if it is meant to be a part of the model, --missing base"
                " edits that part alone."
            )
        else:
            remedy = "Pass --missing base to leave such tensors as they are in the base."
        raise MismatchError("; ".join(parts), remedy)

    def at(self, name: str) -> Delta | None:
        """See :class:`weightsurgery.vectors.task_vector.Change`."""
        pair = self._pairs.get(name)
        if pair is None:
            return None
        other, limit = pair
        return DenseDelta(
            lambda start, stop: self.finetuned.rows(other, start, stop),
            relative=True,
            limit=limit,
            stored=Stored(self.finetuned, self.finetuned.entry(other)),
        )

    def rows_at(self, name: str) -> bool | None:
        """See :class:`weightsurgery.vectors.task_vector.Change`."""
        return True if name in self._pairs else None

    def close(self) -> None:
        """Close the fine-tuned checkpoint."""
        self.finetuned.close()

    def prefetch(self, names: Iterable[str]) -> None:
        """Announce which of the base's tensors will be read; see :meth:`Checkpoint.prefetch`."""
        self.finetuned.prefetch(self._their_names(names))

    def absent(self, names: Iterable[str]) -> int:
        """Bytes that reading these tensors would fetch; see :meth:`Checkpoint.absent`."""
        return self.finetuned.absent(self._their_names(names))

    def _their_names(self, names: Iterable[str]) -> list[str]:
        pairs = (self._pairs[name][0] for name in names if name in self._pairs)
        return list(dict.fromkeys(pairs))

    def provenance(self) -> Mapping[str, Any]:
        """See :class:`weightsurgery.vectors.task_vector.Change`."""
        checkpoint = self.finetuned
        return {
            "kind": "finetuned",
            "name": checkpoint.source.name,
            "revision": checkpoint.source.revision,
            "vocab": self._vocab,
            "missing": self._missing,
            "fitted": self.fitted.facts(),
            **({"partial": True} if self._partial else {}),
            **({"notes": list(self.notes)} if self.notes else {}),
            "paths": checkpoint.files_read(),
        }


def _moved_token(base: Checkpoint, other: Checkpoint, common: int) -> tuple[int, str, str] | None:
    """The first token id under ``common`` that two fast tokenizers disagree on, if any."""
    vocabularies = []
    for checkpoint in (base, other):
        path = checkpoint.file("tokenizer.json")
        if path is None:
            return None  # nothing to compare
        try:
            tokenizer = json.loads(path.read_text(encoding="utf-8"))
            vocabulary = tokenizer["model"]["vocab"]
            if isinstance(vocabulary, dict):
                by_id = {int(number): token for token, number in vocabulary.items()}
            else:  # unigram: a list of (token, score)
                by_id = {number: row[0] for number, row in enumerate(vocabulary)}
            by_id |= {int(t["id"]): t["content"] for t in tokenizer.get("added_tokens") or ()}
        except (ValueError, KeyError, TypeError, IndexError):
            return None
        vocabularies.append(by_id)
    first, second = vocabularies
    for number in range(common):
        if number in first and number in second and first[number] != second[number]:
            return number, first[number], second[number]
    return None
