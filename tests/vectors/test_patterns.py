"""Patterns of adapters: what peft's regular expressions say, and never longer than a moment."""

import re
import time
from contextlib import suppress

import pytest

from weightsurgery.errors import VectorError
from weightsurgery.vectors.patterns import ModulePattern

MODULES = [
    "q_proj", "model.layers.0.self_attn.q_proj", "model.layers.10.self_attn.q_proj",
    "model.layers.0.self_attn.qXproj", "model.layers.0.mlp.up_proj", "xq_proj", "lm_head", "",
    "model.layers.0.q_proj.q_proj", "a-b.c d", "model.embed_tokens",
]  # fmt: skip
PATTERNS = [
    "q_proj", "^q_proj", "q_proj$", r"^model\.layers\.0\.self_attn\.q_proj", "q.proj",
    r"layers\.(0|1\d)\..*", ".*", ".+_proj", r"(model\.)?layers\.[0-4]+\.mlp\..*", "[^.]*_proj",
    r"\w+", r"self_attn\.(q|k|v)_proj", r"layers\.\d{1,2}\.self_attn\.q_proj", "(q|up)_proj",
    ".*?head", r"\bq_proj\b", "", "()*", "(a|b|)*", r"[a-z_]{2,}", r"\D+", "layers.0.mlp.up_proj",
    "^$", "a-b.c d", r"x*q_proj", r"\S+ \S+", "[!-~]+", "q_pro[^a-i]",
]  # fmt: skip


@pytest.mark.parametrize("pattern", PATTERNS)
def test_patterns_mean_what_peft_takes_them_for(pattern):
    ours = ModulePattern(pattern, "here")
    for module in MODULES:
        assert ours.matches(module) == bool(re.match(rf"(.*\.)?({pattern})$", module)), module


@pytest.mark.parametrize(
    "pattern",
    [
        "(([a-z.0-9_]+)+)+!", "(a|a)*!", "(.*)*!", "(.*.*.*.*.*.*.*.*)*!", "(a?){900}a{900}",
        "(((((((((.*)*)*)*)*)*)*)*)*)*!", "(.{0,60000}){0,60000}!", "(\\w+\\.?)+$!",
        "((a{0,999}){0,999}){0,999}!",
    ],
)  # fmt: skip
def test_no_pattern_takes_long(pattern):
    begun = time.process_time()
    for module in ("a" * 999, "a." * 499, "model.layers.0.self_attn.q_proj"):
        with suppress(VectorError):
            assert not ModulePattern(pattern, "here").matches(module) or "!" not in pattern
    assert time.process_time() - begun < 5


@pytest.mark.parametrize(
    "pattern",
    ["(", "[", "*a", r"(a)\1", "(?=a)b", "(?<!a)b", "(?i)a", "(?i:a)", "a{2,1}", "(?(1)a|b)",
     "(" * 5000 + ")" * 5000, "(" * 400 + ")" * 400 + "(", "a" * 1001, "a{99999999999999999999}"],
)  # fmt: skip
def test_what_is_no_pattern_is_refused(pattern):
    with pytest.raises(VectorError) as error:
        ModulePattern(pattern, "here").matches("a")
    assert len(error.value.what) < 300
    assert error.value.remedy
