"""A model that says what it is told to, so that an answer can be anything."""

import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.modeling_outputs import CausalLMOutputWithPast


class Scripted(LlamaForCausalLM):
    """Goes on after each prompt with its line of a script, letter by letter, and then ends.

    Attributes:
        script: Prompt, as rendered, and what follows it.
        steps: Forward passes so far.
    """

    _is_stateful = True  # it keeps no keys: nothing of a text is read once for others

    def __init__(self, tokenizer, script):
        super().__init__(
            LlamaConfig(
                vocab_size=len(tokenizer), hidden_size=4, intermediate_size=4,
                num_hidden_layers=1, num_attention_heads=1, max_position_embeddings=512,
                eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
            )
        )  # fmt: skip
        self.script, self.steps = script, 0
        self._tokenizer = tokenizer
        self.eval()

    def prepare_inputs_for_generation(self, input_ids, attention_mask=None, **_):
        return {"input_ids": input_ids, "logits_to_keep": 1}

    def forward(self, input_ids, attention_mask=None, logits_to_keep=0, **_):
        self.steps += 1
        logits = torch.full((*input_ids.shape, len(self._tokenizer)), -20.0)
        for row, tokens in enumerate(input_ids):
            real = tokens != self._tokenizer.pad_token_id
            given, first = tokens[real].tolist(), int(real.int().argmax())
            # One that generates reads the last place alone.
            places = range(len(given)) if logits_to_keep != 1 else [len(given) - 1]
            for place in places:
                logits[row, first + place, self._next(given[: place + 1])] = 0
        return CausalLMOutputWithPast(logits=logits[:, -logits_to_keep:])

    def _next(self, given):
        text = self._tokenizer.decode(given, skip_special_tokens=False)
        text = text.removeprefix(self._tokenizer.bos_token)
        for prompt, answer in self.script.items():
            said = text[len(prompt) :]
            if text.startswith(prompt) and answer.startswith(said) and said != answer:
                letter = answer[len(said)]
                return self._tokenizer(letter, add_special_tokens=False)["input_ids"][0]
        return self._tokenizer.eos_token_id
