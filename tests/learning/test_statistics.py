"""Activation statistics are the sums that one would write down by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from tests.conftest import left_behind, snapshot
from weightsurgery.checkpoint.record import verify
from weightsurgery.checkpoint.selection import Selection
from weightsurgery.errors import (
    DataError,
    EditError,
    MismatchError,
    NonFiniteError,
    OutputError,
    SelectionError,
    UnsupportedCheckpointError,
)
from weightsurgery.learning.activations import linear_inputs
from weightsurgery.learning.data import Example, encode
from weightsurgery.learning.statistics import gather, gather_to
from weightsurgery.vectors.statistics import Statistics

EXAMPLES = [Example(f"{'ab' * (i % 4)} {i} is", f" {i * i}") for i in range(9)]
PROMPTS = ["what is c", "xyz", "what is d"]


def llama(tied: bool = False, **settings: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 28, "num_hidden_layers": 3} | settings
    config = LlamaConfig(
        vocab_size=259,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=0.3,
        tie_word_embeddings=tied,
        **sizes,
    )
    return LlamaForCausalLM(config).eval()


def gpt2() -> PreTrainedModel:
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=259, n_positions=64, n_embd=16, n_layer=2, n_head=2)
    return GPT2LMHeadModel(config).eval()


def mixtral() -> PreTrainedModel:
    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=259,
        hidden_size=16,
        intermediate_size=20,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=4,
    )
    return MixtralForCausalLM(config).eval()


def rows_of(tokenizer: PreTrainedTokenizerFast) -> list[list[int]]:
    return [encode(tokenizer, each).input_ids for each in EXAMPLES] + [
        tokenizer(each)["input_ids"] for each in PROMPTS
    ]


@torch.no_grad()
def by_hand(model: PreTrainedModel, rows: list[list[int]]) -> dict[str, torch.Tensor]:
    """Every input of every linear layer, one example at a time, multiplied out in float64."""
    seen: dict[str, list[torch.Tensor]] = {}
    handles = []
    for name, (module, _) in linear_inputs(model).items():

        def keep(_: Any, args: tuple[torch.Tensor, ...], name: str = name) -> None:
            x = args[0]
            seen.setdefault(name, []).append(x.reshape(-1, x.shape[-1]).double())

        handles.append(module.register_forward_pre_hook(keep))
    for row in rows:
        model(input_ids=torch.tensor([row]))
    for handle in handles:
        handle.remove()
    inputs = {name: torch.cat(parts) for name, parts in seen.items()}
    return {name: x.T @ x for name, x in inputs.items()}


@pytest.mark.parametrize("make", [llama, gpt2, mixtral])
@pytest.mark.parametrize("batch_tokens", [1, 40, 4096])
def test_they_are_the_sums_by_hand(make: Any, batch_tokens: int, tokenizer: Any) -> None:
    model = make()
    wanted = by_hand(model, rows_of(tokenizer))
    found = gather(model, tokenizer, [*EXAMPLES, *PROMPTS], batch_tokens=batch_tokens)
    assert found.keys() == wanted.keys()
    assert len(found) >= 8
    for name, gram in found.items():
        assert gram.dtype == torch.float64
        assert torch.equal(gram, gram.T)
        scale = float(wanted[name].abs().max())
        torch.testing.assert_close(gram, wanted[name], rtol=0, atol=1e-5 * scale)


def test_wide_inputs_are_summed_in_blocks(tokenizer: Any) -> None:
    model = llama(hidden_size=64, intermediate_size=700, num_hidden_layers=1)
    wanted = by_hand(model, rows_of(tokenizer))
    found = gather(model, tokenizer, [*EXAMPLES, *PROMPTS])
    name = "model.layers.0.mlp.down_proj.weight"
    assert found[name].shape == (700, 700)
    assert torch.equal(found[name], found[name].T)
    torch.testing.assert_close(
        found[name], wanted[name], rtol=0, atol=1e-5 * float(wanted[name].max())
    )


def test_one_input_is_one_matrix(tokenizer: Any) -> None:
    found = gather(llama(), tokenizer, EXAMPLES)
    layer = "model.layers.1."
    q, k, v, o = (found[f"{layer}self_attn.{each}_proj.weight"] for each in "qkvo")
    assert q is k is v
    assert q is not o
    assert not torch.equal(q, o)
    gate, up, down = (found[f"{layer}mlp.{each}_proj.weight"] for each in ("gate", "up", "down"))
    assert gate is up
    assert down.shape == (28, 28)


def test_tokens_may_be_given_as_they_are(tokenizer: Any) -> None:
    first = gather(llama(), tokenizer, EXAMPLES)
    second = gather(llama(), tokenizer, [encode(tokenizer, each).input_ids for each in EXAMPLES])
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    shorter = gather(llama(), tokenizer, [each.prompt for each in EXAMPLES])
    name = "model.layers.0.mlp.down_proj.weight"
    assert shorter[name].trace() < first[name].trace()  # without the completions


def test_a_closing_token_is_no_part_of_a_prompt(tokenizer: Any) -> None:
    class Closing:
        eos_token_id, sep_token_id = 1, None

        def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
            return {"input_ids": [*tokenizer(text)["input_ids"], 1]}

    first, second = (gather(llama(), each, PROMPTS) for each in (tokenizer, Closing()))  # type: ignore[arg-type]
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("make", [llama, gpt2, mixtral])
def test_several_passes_give_the_same_in_less_memory(make: Any, tokenizer: Any) -> None:
    model = make()
    calls: list[int] = []
    model.register_forward_pre_hook(lambda *_: calls.append(1))
    whole = gather(model, tokenizer, EXAMPLES)
    once = len(calls)
    widest = max(gram.shape[0] for gram in whole.values())
    calls.clear()
    parts = gather(model, tokenizer, EXAMPLES, max_bytes=12 * widest**2)
    assert len(calls) > 2 * once
    assert parts.keys() == whole.keys()
    assert all(torch.equal(parts[name], whole[name]) for name in whole)
    with pytest.raises(EditError, match="are allowed"):
        gather(model, tokenizer, EXAMPLES, max_bytes=12 * widest**2 - 1)


def test_a_pass_ends_behind_its_last_layer(tokenizer: Any) -> None:
    model = llama()
    ran: list[str] = []
    for name, module in model.named_modules():
        module.register_forward_pre_hook(lambda *_, name=name: ran.append(name))
    gather(model, tokenizer, EXAMPLES[:1], ["model.layers.0.self_attn.o_proj.weight"])
    trial, run = ran[: ran.index("lm_head") + 1], ran[ran.index("lm_head") + 1 :]
    assert "model.layers.2.mlp" in trial
    assert "model.layers.0.self_attn" in run
    assert "model.layers.0.mlp" not in run
    ran.clear()
    gather(model, tokenizer, EXAMPLES[:1])
    assert ran.count("model.layers.2.mlp") == 2


def test_the_model_is_left_as_it_was(tokenizer: Any) -> None:
    model = llama(attention_dropout=0.5).train()
    model.model.layers[1].eval()
    model.lm_head.weight.requires_grad_(False)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    first = gather(model, tokenizer, EXAMPLES)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert torch.is_grad_enabled()
    second = gather(model.eval(), tokenizer, EXAMPLES)  # dropout was off
    assert all(torch.equal(first[name], second[name]) for name in first)
    model.lm_head.weight.requires_grad_(True)
    model(input_ids=torch.tensor([[1, 2]])).logits.sum().backward()


def test_names_choose(tokenizer: Any) -> None:
    q, up = "model.layers.1.self_attn.q_proj.weight", "model.layers.0.mlp.up_proj.weight"
    whole = gather(llama(), tokenizer, EXAMPLES)
    found = gather(llama(), tokenizer, EXAMPLES, [q, up])
    assert set(found) == {q, up} < whole.keys()
    assert all(torch.equal(found[name], whole[name]) for name in found)
    with pytest.raises(MismatchError, match=r"'model\.norm\.weight': not the weight of a linear"):
        gather(llama(), tokenizer, EXAMPLES, [q, "model.norm.weight"])


def test_a_layer_that_does_not_run_has_no_statistics(tokenizer: Any) -> None:
    model = llama()
    model.spare = torch.nn.Linear(16, 4)
    assert "spare.weight" not in gather(model, tokenizer, EXAMPLES)
    with pytest.raises(MismatchError, match=r"'spare\.weight': the model does not run it"):
        gather(model, tokenizer, EXAMPLES, ["spare.weight"])


class Rare(torch.nn.Module):
    """Runs its layer on some tokens alone, as an expert does: not in every batch."""

    def __init__(self) -> None:
        super().__init__()
        self.rare = torch.nn.Linear(16, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        chosen = x[:, 5:].reshape(-1, x.shape[-1])
        if len(chosen):
            self.rare(chosen)
        return x


@pytest.mark.parametrize("max_bytes", [None, 12 * 28**2])
def test_layers_that_run_now_and_then_are_summed_whole(tokenizer: Any, max_bytes: Any) -> None:
    model = llama()
    model.model.layers[0].mlp = torch.nn.Sequential(Rare(), model.model.layers[0].mlp)
    rows = [[2, 3], *rows_of(tokenizer)]
    name = "model.layers.0.mlp.0.rare.weight"
    assert name not in by_hand(model, rows[:1])  # the trial pass does not run it
    wanted = by_hand(model, rows)
    found = gather(model, tokenizer, rows, batch_tokens=1, max_bytes=max_bytes)
    assert found.keys() == wanted.keys()
    torch.testing.assert_close(found[name], wanted[name], rtol=1e-4, atol=1e-5)


def test_what_cannot_be_gathered_is_refused(tokenizer: Any) -> None:
    model = llama()
    with pytest.raises(DataError, match="no examples"):
        gather(model, tokenizer, [])
    with pytest.raises(DataError, match="no tokens"):
        gather(model, tokenizer, ["a", []])
    with pytest.raises(DataError, match=r"an example of 66 tokens.*takes 64"):
        gather(model, tokenizer, ["a" * 65])
    assert gather(model, tokenizer, ["a" * 63])
    with torch.no_grad():
        model.model.layers[1].input_layernorm.weight[3] = float("inf")
    with pytest.raises(NonFiniteError, match=r"layers\.1\.self_attn\.q_proj\.weight.*given"):
        gather(model, tokenizer, EXAMPLES)


# --- to files -----------------------------------------------------------------------------------


def stored(model: PreTrainedModel, tokenizer: Any, directory: Path, **options: Any) -> Path:
    model.save_pretrained(directory, **options)
    tokenizer.save_pretrained(directory)
    return directory


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "keep.jsonl"
    lines = [{"prompt": each.prompt, "completion": each.completion} for each in EXAMPLES]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.mark.parametrize("make", [llama, gpt2])
def test_files_hold_what_memory_holds(
    make: Any, tokenizer: Any, data: Path, tmp_path: Path
) -> None:
    model = make()
    base = stored(model, tokenizer, tmp_path / "base", max_shard_size="20KB")
    before = snapshot(base)
    record = gather_to(tmp_path / "gathered", base, data, device="cpu", command=["ws", "identify"])
    wanted = gather(model, tokenizer, EXAMPLES)
    found = Statistics.open(tmp_path / "gathered")
    assert set(found.names) == {name for name in wanted if name != "lm_head.weight"}
    for name in found.names:
        assert torch.equal(found.for_tensor(name), wanted[name].float())  # type: ignore[arg-type]
    assert snapshot(base) == before
    assert left_behind(tmp_path / "gathered") == ["gathered"]
    assert verify(tmp_path / "gathered").to_json() == record.to_json()
    assert record.command == ["ws", "identify"]
    assert record.parameters["not_gathered"] == []
    assert record.inputs["base"]["files"].keys() >= {"config.json"}
    assert list(record.inputs["data"]["files"]) == ["keep.jsonl"]
    tokens = sum(len(encode(tokenizer, each).input_ids) for each in EXAMPLES)
    assert record.summary["tokens"] == tokens
    assert {facts["tokens"] for facts in record.tensors.values()} == {tokens}
    assert record.summary["matrices"] < record.summary["tensors"] + (make is gpt2)


def test_a_memory_bound_changes_no_byte(tokenizer: Any, data: Path, tmp_path: Path) -> None:
    base = stored(llama(), tokenizer, tmp_path / "base")
    seen: list[tuple[int, int]] = []
    gather_to(tmp_path / "a", base, data, progress=lambda _, *at: seen.append(at))
    once = len(seen)
    assert seen[-1][0] == seen[-1][1]
    gather_to(
        tmp_path / "b", base, data, max_bytes=12 * 28**2, progress=lambda _, *at: seen.append(at)
    )
    assert len(seen) - once > 2 * once
    assert seen[-1][0] == seen[-1][1]
    first, second = snapshot(tmp_path / "a"), snapshot(tmp_path / "b")
    assert first.keys() == second.keys()
    for name in first.keys() - {"weightsurgery.json"}:
        assert first[name] == second[name]


def test_selection_and_several_files(tokenizer: Any, data: Path, tmp_path: Path) -> None:
    base = stored(llama(), tokenizer, tmp_path / "base")
    once = gather_to(tmp_path / "a", base, data, selection=Selection("mlp", layers="1-"))
    assert set(once.tensors) == {
        f"model.layers.{layer}.mlp.{each}_proj.weight"
        for layer in (1, 2)
        for each in ("gate", "up", "down")
    }
    twice = gather_to(tmp_path / "b", base, [data, data], selection=Selection("mlp", layers="1-"))
    assert twice.summary["tokens"] == 2 * once.summary["tokens"]
    assert set(twice.inputs) == {"base", "data.1", "data.2"}
    first, second = (Statistics.open(tmp_path / each) for each in "ab")
    name = first.names[0]
    torch.testing.assert_close(second.for_tensor(name), 2 * first.for_tensor(name))  # type: ignore[operator]
    with pytest.raises(SelectionError, match="no tensor"):
        gather_to(tmp_path / "neither", base, data, selection=Selection("mlp", layers="7"))
    with pytest.raises(MismatchError, match="none of the selected tensors"):
        gather_to(tmp_path / "neither", base, data, selection=Selection(include=("*embed*",)))
    assert left_behind(tmp_path / "neither") == []


def test_fused_experts_are_listed(tokenizer: Any, data: Path, tmp_path: Path) -> None:
    base = stored(mixtral(), tokenizer, tmp_path / "base")
    record = gather_to(tmp_path / "gathered", base, data)
    assert {name.split(".")[3] for name in record.tensors} == {"self_attn"}
    left = record.parameters["not_gathered"]
    assert left
    assert all("moe" in name or "mlp" in name for name in left)


def test_a_tied_head_is_left_out(tokenizer: Any, data: Path, tmp_path: Path) -> None:
    base = stored(llama(tied=True), tokenizer, tmp_path / "base")
    record = gather_to(tmp_path / "gathered", base, data, selection=Selection("all"))
    assert "lm_head.weight" not in record.tensors
    assert record.parameters["not_gathered"] == ["model.embed_tokens.weight"]
    untied = stored(llama(), tokenizer, tmp_path / "untied")
    record = gather_to(tmp_path / "t", untied, data, selection=Selection("all"))
    assert record.tensors["lm_head.weight"]["width"] == 16


def test_names_that_differ_on_disk_are_refused(tokenizer: Any, data: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    base = stored(llama(), tokenizer, tmp_path / "base")
    file = base / "model.safetensors"
    tensors = load_file(file)
    gather_to(tmp_path / "good", base, data)
    # A base model's own save has no "model." before its names, and still loads.
    bare = {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
    save_file(bare, file, {"format": "pt"})
    with pytest.raises(UnsupportedCheckpointError, match="not stored under this name") as raised:
        gather_to(tmp_path / "gathered", base, data)
    assert "save_pretrained" in raised.value.remedy
    assert left_behind(tmp_path / "gathered") == []


def test_failing_leaves_nothing(tokenizer: Any, data: Path, tmp_path: Path) -> None:
    base = stored(llama(), tokenizer, tmp_path / "base")
    standing: list[list[str]] = []

    def interrupt(stage: str, done: int, total: int) -> None:
        standing.append(left_behind(tmp_path / "gathered"))
        if done > total / 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        gather_to(tmp_path / "gathered", base, data, max_bytes=12 * 28**2, progress=interrupt)
    assert standing[-1] == [".gathered.ws-partial"]
    assert left_behind(tmp_path / "gathered") == []
    data.write_text('{"prompt": "a"}\n')
    with pytest.raises(DataError):
        gather_to(tmp_path / "gathered", base, data)
    with pytest.raises(OutputError, match="input"):
        gather_to(base, base, data, overwrite=True)
    with pytest.raises(OutputError, match="input"):
        gather_to(tmp_path, base, data, overwrite=True)
    assert left_behind(tmp_path / "gathered") == []
