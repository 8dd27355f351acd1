"""What a model writes itself is drawn from what it says."""

import math

import pytest
import torch

from tests.learning.tiny import byte_tokenizer, tiny
from weightsurgery.learning.expected import Expected
from weightsurgery.learning.looks import logits_of
from weightsurgery.learning.material import Row
from weightsurgery.learning.models import for_writing
from weightsurgery.learning.written import _Drawn, sampled

PROMPT = [10, 11, 12]
DRAWS = 4000


def chosen(scores, temperature=1.0):
    """The token that each row's scores are left with."""
    picked = _Drawn(temperature)(torch.zeros(len(scores), 1, dtype=torch.int64), scores)
    assert torch.equal((picked == 0).sum(1), torch.ones(len(scores), dtype=torch.int64))
    assert bool((picked.isinf() | (picked == 0)).all())
    return picked.argmax(1)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_tokens_are_drawn_as_often_as_they_are_likely(temperature):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(12, generator=generator)
    torch.manual_seed(0)
    drawn = chosen(logits.expand(DRAWS, -1), temperature).bincount(minlength=12)
    wanted = DRAWS * (logits.double() / temperature).softmax(0)
    # Pearson's chi-square, 11 degrees of freedom: 31.3 is the 0.1 % point.
    assert float(((drawn - wanted) ** 2 / wanted).sum()) < 31.3
    # That of the likeliest alone is ten times as large and more.
    greedy = torch.zeros(12).index_fill(0, logits.argmax(), DRAWS)
    assert float(((greedy - wanted) ** 2 / wanted).sum()) > 313


def test_what_cannot_be_said_is_never_drawn(monkeypatch):
    logits = torch.tensor([[-math.inf, 0.0, -math.inf, 1.0, -math.inf]])
    for number, expected in ((0.0, 1), (1 - 2**-24, 3)):
        monkeypatch.setattr(torch, "rand", lambda *shape, n=number: torch.full(shape, n))
        assert chosen(logits).tolist() == [expected]


def test_the_seed_decides():
    model, tokenizer = tiny("llama"), byte_tokenizer()

    def written(seed):
        torch.manual_seed(seed)
        return sampled(model, tokenizer, [PROMPT] * 3, 8)

    first = written(0)
    assert first == written(0) != written(1)
    assert len({tuple(each) for each in first}) == 3  # each row draws for itself


@pytest.mark.parametrize("unit", ["amx_bf16", "avx512_bf16"])
def test_a_copy_writes_only_where_it_is_faster(unit, monkeypatch):
    def machine(able):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {unit: able})

    model = tiny("llama")
    before = {name: each.clone() for name, each in model.named_parameters()}
    machine(False)
    assert for_writing(model) is model
    machine(True)
    copy = for_writing(model)
    assert copy is not model
    assert {each.dtype for each in copy.parameters()} == {torch.bfloat16}
    assert all(torch.equal(each, before[name]) for name, each in model.named_parameters())
    assert for_writing(copy) is copy


def test_a_step_reads_in_halves_only_where_it_is_faster(monkeypatch):
    model = tiny("llama")
    expected = Expected(torch.tensor([[3], [4]]), torch.zeros(2, 1))
    row = Row((5, 6, 7, 8), expected, 1)
    with torch.no_grad():
        exact = model(input_ids=torch.tensor([row.tokens])).logits[0, -2:]
        monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
        torch.testing.assert_close(logits_of(model, [row], 2)[0], exact, atol=2e-5, rtol=1e-5)
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
        rounded = logits_of(model, [row], 2)[0]
        assert rounded.dtype == torch.float32
        assert 1e-5 < float((rounded - exact).norm() / exact.norm()) < 0.05
