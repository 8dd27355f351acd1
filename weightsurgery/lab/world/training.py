"""What a world is trained with: its model at random weights, and how many threads."""

import os

from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from weightsurgery.lab.world.recipe import WorldRecipe

__all__ = ["default_threads", "make_model"]


def default_threads() -> int:
    """Threads to train with: two, or one where this process may use a single core.

    OMP_NUM_THREADS bounds them, as it bounds torch's own.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    told = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]
    return min(2, cores or 1, int(told) if told.isdecimal() and int(told) else 2)


def make_model(recipe: WorldRecipe, tokenizer: PreTrainedTokenizerBase) -> LlamaForCausalLM:
    """A Llama of the recipe's shape, at random weights from torch's generator."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=recipe.width,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.heads,
        intermediate_size=recipe.mlp_width,
        max_position_embeddings=256,
        initializer_range=recipe.weight_spread,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)
