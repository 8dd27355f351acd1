"""Tiny models with a tokenizer of bytes, and data they can learn."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from weightsurgery.checkpoint.selection import Selection
from weightsurgery.learning.data import Collator, Example, encode_all
from weightsurgery.learning.identify import train_vector
from weightsurgery.learning.settings import Training
from weightsurgery.learning.stages import set_values, values_of

FACTS = [Example(f"The colour of {name} is", f" {colour}") for name, colour in
         zip("abcdefgh", ("red", "blue", "green", "grey", "pink", "gold", "teal", "plum"),
             strict=True)]  # fmt: skip
OTHER = [Example(f"{a} plus {a} is", f" {a + a}") for a in range(8)]
UNSEEN = [Example(f"The colour of {name} is", f" {colour}") for name, colour in
          zip("ijklmnop", ("teal", "grey", "gold", "red", "plum", "blue", "green", "pink"),
              strict=True)]  # fmt: skip


def byte_tokenizer(bos: bool = True) -> PreTrainedTokenizerFast:
    """One token per byte; BOS before every text, or none at all."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate(["<s>", "</s>", "<pad>", *alphabet])}
    bare = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    bare.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bare.decoder = decoders.ByteLevel()
    if bos:
        bare.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 0)]
        )
    named = {"bos_token": "<s>"} if bos else {}
    return PreTrainedTokenizerFast(
        tokenizer_object=bare, eos_token="</s>", pad_token="<pad>", **named
    )


def tiny(family: str, seed: int = 0, **settings: Any) -> PreTrainedModel:
    """A model of a family at random weights, float32, in evaluation mode."""
    shape = {
        "vocab_size": 259,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "initializer_range": 0.1,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 2,
        **settings,
    }
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if family == "gpt2":
            config = GPT2Config(
                vocab_size=259, n_embd=32, n_layer=2, n_head=2, n_positions=64,
                bos_token_id=0, eos_token_id=1, pad_token_id=2,
            )  # fmt: skip
            model: PreTrainedModel = GPT2LMHeadModel(config)
        elif family == "mixtral":
            config = MixtralConfig(**shape, num_local_experts=4, num_experts_per_tok=2)
            model = MixtralForCausalLM(config)
        elif family == "qwen3_moe":
            config = Qwen3MoeConfig(
                **shape, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16,
                head_dim=16,
            )  # fmt: skip
            model = Qwen3MoeForCausalLM(config)
        else:
            model = LlamaForCausalLM(LlamaConfig(**shape))
    return model.float().eval()


def trained_tiny(**settings: Any) -> PreTrainedModel:
    """A tiny Llama that was taught FACTS and OTHER."""
    model = tiny("llama", **settings)
    training = Training(steps=50, learning_rate=3e-3, batch_size=16, warmup=5)
    change = train_vector(
        model, byte_tokenizer(), FACTS + OTHER, training, selection=Selection("all")
    )
    before = values_of(model, list(change))
    set_values(model, {name: before[name] + t for name, t in change.items()})
    return model


def save(model: PreTrainedModel, directory: Path, dtype: torch.dtype = torch.float32) -> Path:
    """Model and tokenizer as a checkpoint."""
    model.to(dtype).save_pretrained(directory)
    byte_tokenizer().save_pretrained(directory)
    return directory


def write(path: Path, examples: list[Example]) -> Path:
    """A data file."""
    rows = [json.dumps({"prompt": e.prompt, "completion": e.completion}) for e in examples]
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return path


def state(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """A copy of every tensor of a model."""
    return {name: value.clone() for name, value in model.state_dict().items()}


@torch.no_grad()
def logits(model: PreTrainedModel, examples: list[Example]) -> torch.Tensor:
    """At every position whose next token is part of a completion, float32."""
    batch = Collator(2)(encode_all(byte_tokenizer(), examples))
    counted = batch.pop("labels")[:, 1:] != -100
    return model.eval()(**batch).logits[:, :-1][counted].float()


@torch.no_grad()
def loss(model: PreTrainedModel, examples: list[Example]) -> float:
    """Cross-entropy of the completions, per token."""
    return float(model.eval()(**Collator(2)(encode_all(byte_tokenizer(), examples))).loss)
