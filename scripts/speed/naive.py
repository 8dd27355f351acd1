"""What one writes in five minutes: load both models, subtract, save.

python scripts/speed/naive.py BASE FINETUNED OUT
"""

from __future__ import annotations

import sys

import torch
from transformers import AutoModelForCausalLM


def main() -> None:
    base, finetuned, out = sys.argv[1:]
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    target = AutoModelForCausalLM.from_pretrained(finetuned, dtype=torch.bfloat16)
    # Parameters, not the state dict: there a tied embedding has two names, and would move twice.
    theirs = dict(target.named_parameters())
    with torch.no_grad():
        for name, weight in model.named_parameters():
            change = theirs[name].float() - weight.float()
            weight.copy_(weight.float() - change)
    model.save_pretrained(out)


if __name__ == "__main__":
    main()
