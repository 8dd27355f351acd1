from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from tests.conftest import (
    assert_rounded,
    exact,
    left_behind,
    read_tensors,
    same_bytes,
    write_checkpoint,
)
from weightsurgery import Negate, apply, open_vector
from weightsurgery.checkpoint.reader import Checkpoint
from weightsurgery.errors import EditError, MismatchError, UnsupportedCheckpointError
from weightsurgery.vectors.finetuned import FinetunedChange

EMBED, HEAD, LINEAR = "model.embed_tokens.weight", "lm_head.weight", "model.layers.0.mlp.up.weight"
Tensors = dict[str, torch.Tensor]


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def model(rows: int = 10, seed: int = 0) -> Tensors:
    return {EMBED: noise(rows, 6, seed=seed), LINEAR: noise(8, 6, seed=seed + 1)}


def finetuned(of: Tensors) -> Tensors:
    return {name: t + 0.1 * noise(*t.shape, seed=7) for name, t in of.items()}


class Pair:
    """A base and a fine-tune on disk."""

    def __init__(self, root: Path, base: Tensors, finetuned: Tensors, **config: object) -> None:
        self.root = root
        self.base = Checkpoint.open(write_checkpoint(root / "base", base, 2, config))
        self.finetuned = Checkpoint.open(write_checkpoint(root / "ft", finetuned, 1, config))

    def change(self, **policies: str) -> FinetunedChange:
        return FinetunedChange(self.base, self.finetuned, **policies)

    def negated(self, **policies: str) -> Tensors:
        vector = open_vector(self.base, [str(self.root / "ft")], **policies)
        apply(Negate(vector), self.base, self.root / "out", allow_unrelated=True)
        return read_tensors(self.root / "out")


def check_negated(out: torch.Tensor, base: torch.Tensor, finetuned: torch.Tensor) -> None:
    assert not torch.equal(base, finetuned)
    assert_rounded(out, 2 * exact(base) - exact(finetuned), scratch=1e-6)  # float32 near 3


def with_head(of: Tensors) -> Tensors:
    return {**of, HEAD: of[EMBED].clone()}


# --- tied weights -------------------------------------------------------------------------------


@pytest.mark.parametrize("base_stores_both", [True, False])
@pytest.mark.parametrize("finetuned_stores_both", [True, False])
def test_ties_are_followed_however_they_are_stored(
    tmp_path: Path, base_stores_both: bool, finetuned_stores_both: bool
) -> None:
    base, after = model(), finetuned(model())
    pair = Pair(
        tmp_path,
        with_head(base) if base_stores_both else base,
        with_head(after) if finetuned_stores_both else after,
        tie_word_embeddings=True,
    )
    out = pair.negated()
    check_negated(out[EMBED], base[EMBED], after[EMBED])
    assert (HEAD in out) == base_stores_both
    if base_stores_both:
        assert same_bytes(out[HEAD], out[EMBED])


def test_a_tied_fine_tune_that_stores_only_the_head(tmp_path: Path) -> None:
    base, after = model(), finetuned(model())
    head_only = {HEAD: after[EMBED], LINEAR: after[LINEAR]}
    out = Pair(tmp_path, base, head_only, tie_word_embeddings=True).negated()
    check_negated(out[EMBED], base[EMBED], after[EMBED])


@pytest.mark.parametrize("base_stores_both", [True, False])
def test_a_head_trained_apart_is_refused(tmp_path: Path, base_stores_both: bool) -> None:
    base, after = model(), with_head(finetuned(model()))
    after[HEAD] = after[HEAD] + 1
    stored = with_head(base) if base_stores_both else base
    pair = Pair(tmp_path, stored, after, tie_word_embeddings=True)
    with pytest.raises(MismatchError, match=r"lm_head\.weight.*trained apart.*embed_tokens"):
        pair.change()
    out = pair.negated(missing="base")
    check_negated(out[EMBED], base[EMBED], after[EMBED])
    if base_stores_both:  # the head follows the embedding, so the output is tied still
        assert same_bytes(out[HEAD], out[EMBED])


def test_stochastic_rounding_keeps_the_tie(tmp_path: Path) -> None:
    from weightsurgery import Storage

    base = {name: t.bfloat16() for name, t in with_head(model()).items()}
    after = {name: t.bfloat16() for name, t in with_head(finetuned(model())).items()}
    pair = Pair(tmp_path, base, after, tie_word_embeddings=True)
    vector = open_vector(pair.base, [str(tmp_path / "ft")])
    apply(Negate(vector, 0.3), pair.base, tmp_path / "out", storage=Storage(rounding="stochastic"))
    out = read_tensors(tmp_path / "out")
    assert not torch.equal(out[EMBED], base[EMBED])
    assert same_bytes(out[HEAD], out[EMBED])


def test_an_untied_base_edits_its_head_apart(tmp_path: Path) -> None:
    base, after = with_head(model()), with_head(finetuned(model()))
    base[HEAD], after[HEAD] = base[HEAD] + 1, after[HEAD] - 1
    out = Pair(tmp_path, base, after, tie_word_embeddings=False).negated()
    check_negated(out[HEAD], base[HEAD], after[HEAD])
    check_negated(out[EMBED], base[EMBED], after[EMBED])


# --- vocabularies -------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [7, 13])
def test_another_vocabulary_is_refused(tmp_path: Path, rows: int) -> None:
    pair = Pair(tmp_path, model(10), finetuned(model(rows)))
    with pytest.raises(MismatchError, match=rf"{EMBED}.*{rows} rows, the base has 10"):
        pair.change()


@pytest.mark.parametrize("rows", [7, 13])
def test_common_rows_change_and_the_rest_stays(tmp_path: Path, rows: int) -> None:
    base, after = model(10), finetuned(model(rows))
    out = Pair(tmp_path, base, after).negated(vocab="common-rows")
    common = min(10, rows)
    check_negated(out[EMBED][:common], base[EMBED][:common], after[EMBED][:common])
    assert same_bytes(out[EMBED][common:], base[EMBED][common:])
    check_negated(out[LINEAR], base[LINEAR], after[LINEAR])


def test_vocab_base_leaves_the_embeddings_alone(tmp_path: Path) -> None:
    base, after = model(10), finetuned(model(13))
    out = Pair(tmp_path, base, after).negated(vocab="base")
    assert same_bytes(out[EMBED], base[EMBED])
    check_negated(out[LINEAR], base[LINEAR], after[LINEAR])


def write_tokenizer(directory: Path, tokens: list[str], kind: str) -> None:
    ids = {token: number for number, token in enumerate(tokens)}
    vocab = ids if kind == "bpe" else [[token, 0.0] for token in tokens]
    (directory / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocab}}))


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_common_rows_must_mean_common_tokens(tmp_path: Path, kind: str) -> None:
    pair = Pair(tmp_path, model(10), finetuned(model(13)))
    tokens = [f"t{i}" for i in range(13)]
    write_tokenizer(tmp_path / "base", tokens[:10], kind)
    write_tokenizer(tmp_path / "ft", tokens, kind)
    assert pair.change(vocab="common-rows").at(EMBED) is not None
    tokens[4] = "moved"
    write_tokenizer(tmp_path / "ft", tokens, kind)
    with pytest.raises(MismatchError, match="token 4 is 'moved', in the base 't4'"):
        pair.change(vocab="common-rows")
    assert pair.change(vocab="base").at(EMBED) is None


def test_a_moved_added_token_is_seen(tmp_path: Path) -> None:
    pair = Pair(tmp_path, model(10), finetuned(model(13)))
    for name, token in (("base", "<pad>"), ("ft", "<tool>")):
        tokenizer = {"model": {"vocab": {"a": 0}}, "added_tokens": [{"id": 9, "content": token}]}
        (tmp_path / name / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(MismatchError, match="token 9 is '<tool>', in the base '<pad>'"):
        pair.change(vocab="common-rows")


# --- what is missing, and what does not fit -----------------------------------------------------


def test_a_tensor_the_fine_tune_lacks(tmp_path: Path) -> None:
    base, after = {**model(), "extra.bias": noise(3)}, finetuned(model())
    pair = Pair(tmp_path, base, after)
    with pytest.raises(MismatchError, match=r"'extra\.bias'.*missing"):
        pair.change()
    out = pair.negated(missing="base")
    assert same_bytes(out["extra.bias"], base["extra.bias"])
    check_negated(out[LINEAR], base[LINEAR], after[LINEAR])


def test_a_tensor_the_base_lacks(tmp_path: Path) -> None:
    base, after = model(), {**finetuned(model()), "value_head.weight": noise(3, 3)}
    pair = Pair(tmp_path, base, after)
    with pytest.raises(MismatchError, match=r"'value_head\.weight'.*has no such tensor"):
        pair.change()
    assert set(pair.negated(missing="base")) == set(base)


def test_integers_may_be_missing_on_either_side(tmp_path: Path) -> None:
    base = {**model(), "position_ids": torch.arange(4)}
    after = {**finetuned(model()), "mask": torch.ones(3, dtype=torch.bool)}
    out = Pair(tmp_path, base, after).negated()
    assert same_bytes(out["position_ids"], base["position_ids"])
    check_negated(out[LINEAR], base[LINEAR], after[LINEAR])


@pytest.mark.parametrize("missing", ["error", "base"])
def test_another_shape_names_the_tensor(tmp_path: Path, missing: str) -> None:
    after = {**finetuned(model()), LINEAR: noise(8, 5)}
    pair = Pair(tmp_path, model(), after)
    with pytest.raises(MismatchError, match=rf"{LINEAR}.*\[8, 5\].*\[8, 6\]"):
        pair.change(missing=missing)


def test_codes_in_place_of_weights_are_refused(tmp_path: Path) -> None:
    after = {**finetuned(model()), LINEAR: torch.ones(8, 6, dtype=torch.int8)}
    with pytest.raises(MismatchError, match=rf"{LINEAR}.*dtype I8, the base's is F32"):
        Pair(tmp_path, model(), after).change()


@pytest.mark.parametrize("policy", [{"vocab": "some"}, {"missing": "ignore"}])
def test_unknown_policies_are_refused(tmp_path: Path, policy: dict[str, str]) -> None:
    with pytest.raises(EditError, match="policy"):
        Pair(tmp_path, model(), finetuned(model())).change(**policy)


# --- quantised ----------------------------------------------------------------------------------

CODES = torch.ones(8, 6, dtype=torch.uint8)
FP8 = torch.ones(8, 6).to(torch.float8_e4m3fn)
SCHEMES: dict[str, tuple[Tensors, dict[str, object]]] = {
    "gptq (config.json)": ({}, {"quantization_config": {"quant_method": "gptq"}}),
    "GPTQ or AWQ": ({"l.qweight": CODES, "l.qzeros": CODES}, {}),
    "compressed-tensors": ({"l.weight_packed": CODES}, {}),
    "fp8 with block scales": ({"l.weight": FP8, "l.weight_scale_inv": torch.ones(2, 2)}, {}),
    "fp8 or int8 with scales": ({"l.weight": FP8, "l.weight_scale": torch.ones(2)}, {}),
    "bitsandbytes int8": ({"l.weight": CODES.to(torch.int8), "l.SCB": torch.ones(8)}, {}),
    "bitsandbytes": ({"l.weight": CODES, "l.weight.absmax": torch.ones(8)}, {}),
    "bitsandbytes 4-bit": ({"l.weight.quant_state.bitsandbytes__nf4": CODES}, {}),
    "mxfp4": ({"l.experts_blocks": CODES, "l.experts_scales": CODES}, {}),
    "F8_E8M0 codes": ({"l.s": torch.ones(4).to(torch.float8_e8m0fnu)}, {}),
}


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("side", ["base", "finetuned"])
def test_quantised_checkpoints_are_refused(tmp_path: Path, scheme: str, side: str) -> None:
    tensors, config = SCHEMES[scheme]
    plain = write_checkpoint(tmp_path / "plain", model(), 1, {})
    quantised = write_checkpoint(tmp_path / "quantised", {**model(), **tensors}, 1, config)
    first, second = (quantised, plain) if side == "base" else (plain, quantised)
    base = Checkpoint.open(first)
    with pytest.raises(UnsupportedCheckpointError, match=re.escape(f"quantised, {scheme}")):
        open_vector(base, [str(second)])
    assert left_behind(tmp_path / "out") == []


def test_a_parameter_that_only_sounds_quantised_is_edited(tmp_path: Path) -> None:
    base = {**model(), "vision.query_blocks": noise(4, 4), "vision.query_scales": noise(4)}
    after = finetuned(base)
    out = Pair(tmp_path, base, after).negated()
    for name in ("vision.query_blocks", "vision.query_scales"):
        check_negated(out[name], base[name], after[name])
