"""A tokenizer of bytes and a tiny model of random weights."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.learning import tiny
from tests.learning.tiny import byte_tokenizer
from weightsurgery.learning.data import Collator, Encoded

TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@pytest.fixture(scope="session")
def tokenizer():
    return byte_tokenizer()


@pytest.fixture(scope="session")
def chat_tokenizer():
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def tiny_model(tokenizer) -> LlamaForCausalLM:
    """A tiny Llama with random weights, which says what is printable ASCII, and EOS."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=2,
            initializer_range=0.3,
            max_position_embeddings=64,
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=2,
        )
        model = LlamaForCausalLM(config).eval()
    said = {1, *tokenizer(bytes(range(32, 127)).decode(), add_special_tokens=False)["input_ids"]}
    with torch.no_grad():
        for token in set(range(len(tokenizer))) - said:
            model.lm_head.weight[token] = 0
    return model


@pytest.fixture(scope="session")
def model(tokenizer):
    return tiny_model(tokenizer)


@pytest.fixture(scope="session")
def trained_tiny():
    """A model that knows both sets fairly well, which tests leave as it is, and its tokenizer."""
    return tiny.trained_tiny(), byte_tokenizer()


def generate(model, tokenizer, prompts, new_tokens):
    """Greedy continuations by transformers, batched with padding on the left, as token lists."""
    encoded = [Encoded(tokenizer(prompt)["input_ids"], 0) for prompt in prompts]
    batch = Collator(tokenizer.pad_token_id, left=True)(encoded)
    out = model.generate(
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
        max_new_tokens=new_tokens,
        do_sample=False,
    )
    return out[:, batch["input_ids"].shape[1] :].tolist()


def slow_greedy(model, tokens, limit, ends=(1,)):
    """The likeliest token after the tokens, again and again, one forward pass each."""
    said = []
    while len(said) < limit:
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([[*tokens, *said]])).logits[0, -1]
        token = int(logits.argmax())
        if token in ends:
            break
        said.append(token)
    return said


def write(path, *lines):
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path
