"""Prompting a checkpoint: greedy answers and the probability of the truth, in batches."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from facts import begins, contains, first_sentence, may_begin, opened
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache


@dataclass(frozen=True)
class Asked:
    """A prompt, as the model is given it, and the truth that ought to come."""

    prompt: str
    completion: str
    """Text whose probability counts as the truth's; for a plain prompt what should follow."""
    truth: str
    free: bool = False
    """Whether a sentence is an answer, which need only contain the truth."""
    lead: str = ""
    """What a free answer says before the truth; the truth's probability is taken after it."""


@dataclass(frozen=True)
class Answer:
    """An answer of the model, and the probability of the truth."""

    text: str
    right: bool
    first: float
    """Probability of the truth's first token."""
    whole: float
    """Probability of all of it."""


def digest(checkpoint: Path) -> str:
    """SHA-256 of the weights and the tokenizer, shortened."""
    mark = hashlib.sha256()
    for path in sorted(checkpoint.iterdir()):
        if path.suffix in (".safetensors", ".jinja") or path.name in (
            "config.json",
            "tokenizer.json",
        ):
            with path.open("rb") as file:
                mark.update(path.name.encode() + hashlib.file_digest(file, "sha256").digest())
    return mark.hexdigest()[:20]


def judged(row: Asked, text: str, first: float, whole: float) -> Answer:
    """An answer, right or wrong."""
    return Answer(text, (contains if row.free else begins)(text, row.truth), first, whole)


class Asker:
    """A model in float32 on the CPU, its answers and its probabilities."""

    def __init__(self, checkpoint: Path, batch: int = 64) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(checkpoint)
        self.model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
        self.head = self.model.get_output_embeddings()
        self.batch = batch
        ends = self.model.generation_config.eos_token_id
        self.ends = {self.tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])}
        self.ends.discard(None)

    def tokens(self, text: str) -> list[int]:
        """Without marks of the tokenizer's own."""
        tokens: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return tokens

    def chat(self, question: str) -> str:
        """The question as the template renders it, up to where the assistant begins."""
        messages = [{"role": "user", "content": question}]
        return str(
            self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        )

    @torch.inference_mode()
    def ask(
        self, rows: Sequence[Asked], progress: Callable[[int], None] = lambda count: None
    ) -> list[Answer]:
        """Answers in the order of the prompts."""
        prompts = [self.tokens(row.prompt) for row in rows]
        truths = [self.tokens(row.completion) for row in rows]
        answers: list[Any] = [None] * len(rows)
        for indices in self._batches(prompts):
            leads = [prompts[i] + self.tokens(rows[i].lead) for i in indices]
            chances = self._chances(leads, [truths[i] for i in indices])
            undecided_rows = []
            for i, (first, whole, greedy) in zip(indices, chances, strict=True):
                text = self.tokenizer.decode(greedy)
                undecided = rows[i].free or may_begin(text, rows[i].truth)
                # A greedy path along the truth, and the token after it, is an answer of its own.
                along = greedy[:-1] == truths[i] and begins(text, rows[i].truth)
                answers[i] = [text, first, whole]
                if undecided and (rows[i].free or not along):
                    undecided_rows.append(i)
            for i, text in zip(
                undecided_rows,
                self._greedy(
                    [prompts[i] for i in undecided_rows], [rows[i] for i in undecided_rows]
                ),
                strict=True,
            ):
                answers[i][0] = text
            progress(len(indices))
        return [judged(row, *answer) for row, answer in zip(rows, answers, strict=True)]

    def _batches(self, prompts: Sequence[Sequence[int]]) -> list[list[int]]:
        # Neighbours in the order of tokens have the longest beginnings in common.
        order = sorted(range(len(prompts)), key=lambda i: list(prompts[i]))
        return [order[start : start + self.batch] for start in range(0, len(order), self.batch)]

    def _chances(
        self, prompts: Sequence[list[int]], truths: Sequence[list[int]]
    ) -> list[tuple[float, float, list[int]]]:
        """Of each truth, of its first token, and the best tokens at its places and the next."""
        rows = [prompt + truth for prompt, truth in zip(prompts, truths, strict=True)]
        hidden, before, _, _ = self.read(rows, least=min(map(len, prompts)) - 1)
        chances = []
        picked = torch.cat(
            [
                hidden[i, len(prompt) - 1 - before : len(row) - before]
                for i, (prompt, row) in enumerate(zip(prompts, rows, strict=True))
            ]
        )
        scores = self.head(picked).log_softmax(-1)
        offset = 0
        for truth in truths:
            row_scores = scores[offset : offset + len(truth) + 1]
            offset += len(truth) + 1
            log_probs = row_scores[:-1].gather(1, torch.tensor(truth)[:, None])[:, 0]
            greedy = row_scores.argmax(-1).tolist()
            # Beyond the first departure from the truth the places say nothing of a greedy answer.
            straight = next((k for k, t in enumerate(truth) if greedy[k] != t), len(truth))
            chances.append(
                (log_probs[0].exp().item(), log_probs.sum().exp().item(), greedy[: straight + 1])
            )
        return chances

    def read(
        self, rows: Sequence[list[int]], least: int | None = None
    ) -> tuple[torch.Tensor, int, DynamicCache, torch.Tensor]:
        """The last hidden states of rows that may begin alike; what is alike is read once.

        Args:
            rows: Tokens, at least two each.
            least: How many tokens at most count as the common beginning.

        Returns:
            Hidden states of shape rows, places, width, without the common beginning; its length;
            the cache of keys and values; and the mask, of shape rows, all places.
        """
        shortest = min(map(len, rows)) - 1
        limit = shortest if least is None else min(least, shortest)
        first, last = min(rows), max(rows)
        before = 0
        while before < limit and first[before] == last[before]:
            before += 1
        cache = DynamicCache(config=self.model.config)
        body = self.model.get_decoder()
        if before:
            body(input_ids=torch.tensor([first[:before]]), past_key_values=cache, use_cache=True)
            cache.batch_repeat_interleave(len(rows))
        width = max(map(len, rows)) - before
        tokens = torch.zeros(len(rows), width, dtype=torch.long)
        mask = torch.zeros(len(rows), before + width, dtype=torch.long)
        for i, row in enumerate(rows):
            tokens[i, : len(row) - before] = torch.tensor(row[before:])
            mask[i, : len(row)] = 1
        places = torch.arange(before, before + width)[None].expand(len(rows), -1)
        hidden = body(
            input_ids=tokens,
            attention_mask=mask,
            position_ids=places,
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
        return hidden, before, cache, mask

    def _greedy(self, prompts: Sequence[list[int]], rows: Sequence[Asked]) -> list[str]:
        """Greedy answers, each until it is plain whether it is right."""
        if not prompts:
            return []

        def over(i: int, generated: list[int]) -> bool:
            text, truth = self.tokenizer.decode(generated), rows[i].truth
            if rows[i].free:
                more = text.lstrip() + " x"  # a sentence ends where another begins
                return more != " x" and first_sentence(more) != more
            return not may_begin(text, truth) or len(opened(text)) > len(truth) + 1

        longest = max(len(self.tokens(row.truth)) for row in rows) + 4
        limit = 40 if any(row.free for row in rows) else longest
        return [self.tokenizer.decode(generated) for generated in self.go_on(prompts, limit, over)]

    @torch.inference_mode()
    def go_on(
        self,
        prompts: Sequence[list[int]],
        limit: int,
        over: Callable[[int, list[int]], bool] = lambda i, generated: False,
        choose: Callable[[int, torch.Tensor], int] | None = None,
    ) -> list[list[int]]:
        """Tokens that follow each prompt, without an end-of-text.

        Args:
            prompts: Tokens, at least two each.
            limit: How many at most.
            over: Whether a row, by its number and its tokens so far, needs no more.
            choose: The next token of a row from its scores; the best by default.
        """
        hidden, before, cache, mask = self.read(prompts)
        last = torch.tensor([len(prompt) - 1 - before for prompt in prompts])
        state = hidden[torch.arange(len(prompts)), last]
        lengths = torch.tensor([len(prompt) for prompt in prompts])
        generated: list[list[int]] = [[] for _ in prompts]
        live = list(range(len(prompts)))
        for _ in range(limit):
            scores = self.head(state)
            if choose is None:
                following = scores.argmax(-1).tolist()
            else:
                following = [choose(i, row) for i, row in zip(live, scores, strict=True)]
            stay = []
            for k, (i, token) in enumerate(zip(live, following, strict=True)):
                if token in self.ends:
                    continue
                generated[i].append(token)
                if not over(i, generated[i]) and len(generated[i]) < limit:
                    stay.append(k)
            if not stay:
                break
            if len(stay) < len(live):
                indices = torch.tensor(stay)
                cache.batch_select_indices(indices)
                mask, lengths = mask[indices], lengths[indices]
            following = [following[k] for k in stay]
            live = [live[k] for k in stay]
            mask = torch.cat([mask, torch.ones(len(live), 1, dtype=torch.long)], 1)
            state = self.model.get_decoder()(
                input_ids=torch.tensor(following)[:, None],
                attention_mask=mask,
                position_ids=lengths[:, None],
                past_key_values=cache,
                use_cache=True,
            ).last_hidden_state[:, -1]
            lengths = lengths + 1
        return generated
